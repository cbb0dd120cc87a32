"""Make steps of plain data, and plain data of steps; every mistake is named by its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from niwaki import techniques
from niwaki.dialect import inline
from niwaki.errors import NiwakiError, closest
from niwaki.recipe.order import Step
from niwaki.technique import Technique
from niwaki.train import Train

_FORM = "steps:\n  - train: {epochs: 3, together: [distill]}\n  - quantize: {bits: 8}".replace("\n", "\n    ")

Model = TypeVar("Model", bound=BaseModel)


def steps(data: Any) -> list[Step]:
    """Return the steps of a recipe's data: `{"steps": [{"train": {...}}, {"quantize": {...}}, "drop"]}`.

    Raises:
        NiwakiError: a form, name or value that is not one of a recipe's.
    """
    for key in data if isinstance(data, Mapping) else ():
        if key != "steps":
            near = closest(str(key), ["steps"])
            raise NiwakiError(f'a recipe has no "{key}"', expected="steps, and nothing beside it", fix=near)
    if not isinstance(data, Mapping) or not data:
        what = "nothing is written" if data is None else f"there is {_kind(data)}"
        raise NiwakiError(f'{what} where "steps" should stand', expected="a list of steps", fix=f"\n    {_FORM}")
    items = data["steps"]
    if not isinstance(items, (list, tuple)) or not items:
        raise NiwakiError(f"steps is {_kind(items)}", expected="a list of at least one step", fix=f"\n    {_FORM}")
    return [_step(item, f"steps[{index}]") for index, item in enumerate(items)]


def plain(step: Step) -> dict[str, Any]:
    """Return a step as data, every default written out: `{"prune": {"keep_neurons": 0.5, ...}}`."""
    if isinstance(step, Train):
        values = step.model_dump(mode="json", exclude={"together"})
        return {step.name: values | {"together": [plain(technique) for technique in step.together]}}
    return {step.name: step.model_dump(mode="json")}


def _step(item: Any, place: str) -> Step:
    """Read one step."""
    name, parameters = _named(item, place)
    return _train(parameters, place) if name == Train.name else _technique(name, parameters, place)


def _train(parameters: dict[str, Any], place: str) -> Train:
    """Read a `train` step and what stands together in it."""
    together = parameters.get("together") or []
    if not isinstance(together, (list, tuple)):
        raise NiwakiError(
            f"together is {_kind(together)}",
            expected="a list of techniques",
            fix=f"together: [{inline(together)}]",
            place=place,
        )
    companions = []
    for index, item in enumerate(together):
        inner = f"{place}.together[{index}]"
        name, values = _named(item, inner)
        if name == Train.name:
            raise NiwakiError("train stands inside train", expected="a technique", fix="a step of its own", place=inner)
        companions.append(_technique(name, values, inner))
    return _build(Train, Train.name, parameters | {"together": tuple(companions)}, place)


def _technique(name: str, parameters: dict[str, Any], place: str) -> Technique:
    """Read one technique."""
    known = techniques.names()
    if name not in known:
        every = list(known) if ".together" in place else [Train.name, *known]
        raise NiwakiError(
            f'there is no technique "{name}"',
            expected="one of " + ", ".join(every),
            fix=closest(name, every),
            place=place,
        )
    return _build(techniques.get(name), name, parameters, place)


def _build(model: type[Model], name: str, parameters: dict[str, Any], place: str) -> Model:
    """Make the value, or say which parameter is wrong and what it takes."""
    try:
        return model(**parameters)
    except NiwakiError as error:
        raise error.at(place) from None


def _named(item: Any, place: str) -> tuple[str, dict[str, Any]]:
    """Read `name`, `name:` or `name: {parameters}`."""
    if isinstance(item, str):
        return item, {}
    if not isinstance(item, Mapping) or not item:
        raise NiwakiError(
            f"there is {_kind(item)}",
            expected="a name and its parameters",
            fix="- prune: {keep_neurons: 0.5}",
            place=place,
        )
    if len(item) > 1:
        name, *others = item
        raise NiwakiError(
            f"{len(item)} names stand in one step: {', '.join(map(str, item))}",
            expected="one name, its parameters indented below it or in braces",
            fix=f"- {name}: {inline({other: item[other] for other in others})}",
            place=place,
        )
    ((name, parameters),) = item.items()
    if parameters is None:
        return str(name), {}
    if not isinstance(parameters, Mapping):
        raise NiwakiError(
            f"{name} is given {_kind(parameters)}",
            expected="parameters by name",
            fix=f"- {name}: {{{_first_parameter(str(name))}: {inline(parameters)}}}",
            place=place,
        )
    return str(name), dict(parameters)


def _first_parameter(name: str) -> str:
    """Return the first parameter of a step, as an example of one."""
    model: type[BaseModel] | None = Train if name == Train.name else None
    if name in techniques.names():
        model = techniques.get(name)
    return next(iter(model.model_fields), "parameter") if model else "parameter"


def _kind(value: Any) -> str:
    """Return what stands there, in words."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, (list, tuple)):
        return "a list" if value else "an empty list"
    return inline(value)
