"""Which recipes each parent tries, from the mildest to the strongest."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from niwaki.errors import NiwakiError, closest
from niwaki.race.parents import NAME
from niwaki.recipe import Recipe

#: One recipe: itself, its file, its run folder, or its name.
Source = Recipe | str | os.PathLike[str]
#: One recipe or several, from the mildest to the strongest.
Strengths = Source | Sequence[Source]


def strengths_of(names: Iterable[str], recipes: Strengths | Mapping[str, Strengths]) -> dict[str, list[Recipe]]:
    """Return the recipes of each parent; a family of targets counts as so many recipes.

    Raises:
        NiwakiError: recipes are given for a parent that is not there, or a parent has none.
    """
    names = list(names)
    if not isinstance(recipes, Mapping):
        several = _read(recipes)
        return dict.fromkeys(names, several)
    for name in recipes:
        if name not in names:
            raise NiwakiError(
                f'a recipe is for "{name}", and no parent has that name',
                expected="one of " + ", ".join(names),
                fix=closest(name, names),
            )
    if missing := next((name for name in names if name not in recipes), None):
        raise NiwakiError(f"{missing} has no recipe", expected="one for each parent", fix=f"{missing}=RECIPE")
    return {name: _read(recipes[name]) for name in names}


def read_recipes(
    words: Sequence[str], names: Iterable[str], settings: Sequence[str] = (), strengths: str | None = None
) -> dict[str, list[Recipe]]:
    """Return the recipes of each parent from words: `RECIPE` is for all parents without their own, `NAME=RECIPE`.

    Args:
        words: the recipes, from the mildest to the strongest.
        names: of the parents.
        settings: values to set in each recipe: "steps[1].train.epochs=2".
        strengths: a value of each recipe to be set to each of several: "steps[0].drop.keep_layers=6,4,3".
    """
    given: dict[str, list[Recipe]] = {}
    for word in words:
        named = None if Path(word).exists() else re.fullmatch(rf"({NAME})=(.+)", word)
        name, source = named.groups() if named else ("", word)
        recipe = Recipe.read(source).replaced(settings)
        given.setdefault(name, []).extend([recipe] if strengths is None else recipe.strengths(strengths))
    shared = given.pop("", None)
    return given | {name: shared for name in names if name not in given and shared}


def _read(recipes: Strengths) -> list[Recipe]:
    several = [recipes] if isinstance(recipes, Recipe | str | os.PathLike) else list(recipes)
    if not several:
        raise NiwakiError("there is no recipe", expected="one or more, from the mildest", fix="encoder-cpu")
    read = [one if isinstance(one, Recipe) else Recipe.read(Path(one)) for one in several]
    return [member for one in read for member in [*one.family().values()] or [one]]
