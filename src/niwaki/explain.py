"""Explain a technique (its docstring is the paper in small), `train`, or a shipped recipe."""

from __future__ import annotations

import inspect

from pydantic import BaseModel

from niwaki import techniques
from niwaki.errors import NiwakiError, closest
from niwaki.parameters import default_of, takes
from niwaki.recipe import shipped
from niwaki.technique import Grain, Technique
from niwaki.train import Train


def explain(name: str | None = None) -> str:
    """Return the explanation of `name` as text; without a name, a line for each technique and shipped recipe.

    Args:
        name: a technique ("prune"), "train", or a shipped recipe ("encoder-cpu").

    Raises:
        NiwakiError: there is nothing of that name.
    """
    if name is None:
        return overview()
    if name == Train.name:
        return "\n".join([f"{name}: {inspect.getdoc(Train)}", "", *parameters(Train)])
    if name in techniques.names():
        return technique(techniques.get(name))
    if name in shipped.names():
        return shipped.text(name)
    known = [Train.name, *techniques.names(), *shipped.names()]
    raise NiwakiError(
        f'there is nothing called "{name}"',
        expected="one of " + ", ".join(known),
        fix=f"niwaki explain {closest(name, known)}".rstrip(),
    )


def overview() -> str:
    """Return the first line of everything there is to explain."""
    steps = {Train.name: first_line(Train)} | {name: first_line(techniques.get(name)) for name in techniques.names()}
    recipes = {name: shipped.headline(name) for name in shipped.names()}
    width = max(map(len, [*steps, *recipes]))
    lines = ["Steps of a recipe:", *(f"  {name:<{width}}  {line}" for name, line in steps.items())]
    if recipes:
        lines += ["", "Shipped recipes:", *(f"  {name:<{width}}  {line}" for name, line in recipes.items())]
    return "\n".join([*lines, "", "niwaki explain NAME tells more."])


def technique(one: type[Technique]) -> str:
    """Return a technique's docstring, where it can stand, and its parameters."""
    places = [
        word
        for word, method in (("as a step of its own", "apply"), ("inside train", "accompany"))
        if getattr(one, method) is not getattr(Technique, method)
    ]
    cuts = "nothing, it may stand anywhere" if one.grain == Grain.NONE else f"{one.grain.name.lower()}s"
    facts = [f"Stands: {' or '.join(places)}", f"Cuts: {cuts}"]
    if one.fits:
        facts.append("Fits: to the model as it then is; no step may follow the last time")
    return "\n".join([f"{one.name}: {inspect.getdoc(one)}", "", *facts, "", *parameters(one)])


def parameters(model: type[BaseModel]) -> list[str]:
    """Return the table of parameters: name, default, what it takes."""
    rows = [("parameter", "default", "takes")]
    for name, field in model.model_fields.items():
        rows.append((name, default_of(field) or "(needed)", field.description or takes(field)))
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{name:<{first}}  {default:<{second}}  {what}".rstrip() for name, default, what in rows]


def first_line(model: type[BaseModel]) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(model) or "").partition("\n")[0]
