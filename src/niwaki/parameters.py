"""Values of parameters: frozen, checked when made, and able to say what each parameter takes."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from niwaki.dialect import inline
from niwaki.errors import NiwakiError, closest

_NOUNS = {
    int: "a whole number",
    float: "a number",
    str: "a word",
    bool: "true or false",
    type(None): "null",
}
_BOUNDS = (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most"))
_WHAT_GOES = ("sparsity", "sparse", "ratio", "amount", "remove", "prune", "drop", "cut")


class Parameters(BaseModel):
    """Hold parameters by name; a wrong one is refused with what it takes and what to write.

    >>> class Example(Parameters):
    ...     name = "example"
    ...     keep: float = 0.5
    >>> Example(kepe=0.2)
    Traceback (most recent call last):
    ...
    niwaki.errors.NiwakiError: example has no parameter "kepe"
      expected: it has keep
      write: keep
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str] = ""

    def __init__(self, **parameters: Any) -> None:
        try:
            super().__init__(**parameters)
        except ValidationError as error:
            raise refused(error, type(self), self.name) from None


def takes(field: FieldInfo) -> str:
    """Return what the field takes, with its range.

    >>> from pydantic import Field
    >>> class Example(BaseModel):
    ...     share: float = Field(0.5, gt=0, le=1)
    >>> takes(Example.model_fields["share"])
    'a number, above 0 and at most 1'
    """
    return _words(field.annotation, field.metadata)


def _words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Return a type in words, with the bounds its metadata sets."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _words(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, types.UnionType):
        return _bounded_union(arguments, metadata)
    return _noun(annotation, origin, arguments) + _range(metadata)


def _bounded_union(arguments: tuple[Any, ...], metadata: Iterable[Any]) -> str:
    """Return alternatives, null last; bounds on a union stand behind each alternative they can bound."""
    present = [argument for argument in arguments if argument is not type(None)]
    words = [_words(argument, metadata) for argument in present]
    if len(present) < len(arguments):
        words.append("null")
    return ", or ".join(words) if any(" " in word for word in words[1:]) else " or ".join(words)


def _noun(annotation: Any, origin: Any, arguments: tuple[Any, ...]) -> str:
    """Return the bare kind of a type."""
    if origin is Literal:
        words = ", ".join(inline(argument) for argument in arguments)
        return f"one of {words}" if len(arguments) > 1 else words
    if origin in (list, tuple, set, frozenset) or getattr(origin, "__name__", "") == "Sequence":
        items = [argument for argument in arguments if argument is not Ellipsis]
        each = _words(items[0]) if len(set(items)) == 1 else ""
        return f"a list, each {each}" if each else "a list"
    if origin is dict or getattr(origin, "__name__", "") == "Mapping":
        return "a mapping"
    return _NOUNS.get(annotation, f"a {getattr(annotation, '__name__', str(annotation)).lower()}")


def _range(metadata: Iterable[Any]) -> str:
    """Return the bounds in words, with a comma before them."""
    bounds = {
        key: getattr(item, key) for item in metadata for key, _ in _BOUNDS if getattr(item, key, None) is not None
    }
    parts = [f"{word} {bounds[key]}" for key, word in _BOUNDS if key in bounds]
    lengths = [item.min_length for item in metadata if getattr(item, "min_length", None)]
    parts += [f"with at least {length} in it" for length in lengths]
    return ", " + " and ".join(parts) if parts else ""


def unknown_parameter(name: str, word: str, value: Any, fields: Iterable[str], place: str) -> NiwakiError:
    """Return the error for a parameter that is not there, with what there is and what was likely meant."""
    known = list(fields)
    fix = closest(word, known)
    kept = [field for field in known if field.startswith("keep_")]
    expected = "it has " + (", ".join(known) or "no parameters")
    share = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1
    if kept and not fix and any(part in word for part in _WHAT_GOES):
        expected += "; numbers say what stays"
        fix = ", or ".join(f"{field}: {round(1 - value, 6)}" for field in kept) if share else ""
    return NiwakiError(f'{name} has no parameter "{word}"', expected=expected, fix=fix, place=place)


def refused(error: ValidationError, model: type[BaseModel], name: str, place: str = "") -> NiwakiError:
    """Return pydantic's first complaint about `model` as an error of ours."""
    # an unknown word is told before a missing one: it may be the missing one, misspelt
    first = sorted(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")[0]
    location = first["loc"]
    if not location or location[0] not in model.model_fields:
        word = str(location[0]) if location else ""
        if first["type"] == "extra_forbidden":
            return unknown_parameter(name, word, first["input"], model.model_fields, place)
        return NiwakiError(f"{name}: {_plain_message(first)}", place=place)
    parameter = str(location[0])
    field = model.model_fields[parameter]
    if first["type"] == "missing":
        return NiwakiError(
            f"{name} needs {parameter}", expected=takes(field), fix=_fix(parameter, field, None), place=place
        )
    value = first["input"]
    spot = parameter + "".join(f"[{part}]" for part in location[1:] if isinstance(part, int))
    if first["type"] in ("value_error", "assertion_error"):
        return NiwakiError(f"{name}: {spot} is {_shown(value)}", expected=_plain_message(first), place=place)
    return NiwakiError(
        f"{name}: {spot} is {_shown(value)}",
        expected=takes(field),
        fix=_fix(parameter, field, value),
        place=place,
    )


def default_of(field: FieldInfo) -> str:
    """Return the default as YAML, or an empty string where the field must be given."""
    if field.is_required():
        return ""
    return inline(_plain(field.get_default(call_default_factory=True, validated_data={})))


def _plain_message(complaint: Mapping[str, Any]) -> str:
    """Return the words of the check that failed, without pydantic's preface."""
    return str(complaint["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _shown(value: Any) -> str:
    """Return the value as the user may have written it, shortened."""
    try:
        text = inline(_plain(value))
    except yaml.YAMLError:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fix(parameter: str, field: FieldInfo, value: Any) -> str:
    """Return a line to write instead: the nearest word, the nearest bound or the default."""
    annotation = field.annotation
    if isinstance(value, str) and get_origin(annotation) is Literal:
        near = closest(value, [str(word) for word in get_args(annotation)])
        if near:
            return f"{parameter}: {near}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        for item in field.metadata:
            bound = _bound(item, value)
            if bound is not None:
                return f"{parameter}: {bound}"
    default = default_of(field)
    return f"{parameter}: {default}" if default not in ("", "null") else ""


def _bound(item: Any, value: float) -> Any:
    """Return the inclusive bound that the value oversteps, or None."""
    if getattr(item, "le", None) is not None and value > item.le:
        return item.le
    if getattr(item, "ge", None) is not None and value < item.ge:
        return item.ge
    return None


def _plain(value: Any) -> Any:
    """Return a default as YAML can show it."""
    if isinstance(value, (tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (int, float, str, bool, list, dict, type(None))) else str(value)
