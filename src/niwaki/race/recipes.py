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
        strengths: a value to be set to each of several, in the recipes that have such a place, of which there must be
            one: "steps[0].drop.keep_layers=6,4,3".
    """
    pairs = [_named(word) for word in words]
    recipes = [Recipe.read(source).replaced(settings) for _, source in pairs]
    several = [[one] for one in recipes] if strengths is None else _strengthened(recipes, strengths)
    given: dict[str, list[Recipe]] = {}
    for (name, _), members in zip(pairs, several, strict=True):
        given.setdefault(name, []).extend(members)
    shared = given.pop("", None)
    return given | {name: shared for name in names if name not in given and shared}


def _named(word: str) -> tuple[str, str]:
    """Return the name of a parent, or none, and the recipe."""
    named = None if Path(word).exists() else re.fullmatch(rf"({NAME})=(.+)", word)
    return (named[1], named[2]) if named else ("", word)


def _strengthened(recipes: Sequence[Recipe], strengths: str) -> list[list[Recipe]]:
    """Return for each recipe its strengths, or itself where it has no such place; where none has, it is an error."""
    placed = [recipe.has_place(strengths) for recipe in recipes]
    return [
        recipe.strengths(strengths) if there or not any(placed) else [recipe]
        for recipe, there in zip(recipes, placed, strict=True)
    ]


def _read(recipes: Strengths) -> list[Recipe]:
    several = [recipes] if isinstance(recipes, Recipe | str | os.PathLike) else list(recipes)
    if not several:
        raise NiwakiError("there is no recipe", expected="one or more, from the mildest", fix="encoder-cpu")
    read = [one if isinstance(one, Recipe) else Recipe.read(Path(one)) for one in several]
    return [member for one in read for member in [*one.family().values()] or [one]]
