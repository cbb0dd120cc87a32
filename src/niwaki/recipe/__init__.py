"""`Recipe`: a list of steps, from YAML or Python, its defaults resolved and its order checked when read.

parse.py makes steps of plain data, order.py keeps law 2 (coarse to fine), override.py sets single values,
schema.py describes the format to editors, shipped.py finds our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from niwaki import dialect
from niwaki.errors import NiwakiError, closest
from niwaki.recipe import order, override, parse, shipped
from niwaki.recipe.order import Step
from niwaki.recipe.schema import schema
from niwaki.technique import Technique

__all__ = ["Recipe", "Step"]


@dataclass(frozen=True, init=False)
class Recipe:
    """Hold steps in the order they run; a recipe among the steps stands for its own steps.

    Args:
        steps: `Train` and techniques, at least one.

    Raises:
        NiwakiError: a step that cannot stand where it stands, or an order that cuts fine before coarse.

    Example:
        >>> from niwaki.train import Train
        >>> recipe = Recipe([Train(epochs=2)])
        >>> Recipe.parse(recipe.dump()) == recipe
        True
    """

    steps: tuple[Step, ...]

    def __init__(self, steps: Sequence[Step | Recipe]) -> None:
        if not isinstance(steps, (list, tuple)):
            raise NiwakiError(
                f"a recipe is made of {type(steps).__name__}",
                expected="a list of steps",
                fix="Recipe([Train(...), Quantize(bits=8)])",
            )
        flat: list[Step] = []
        for step in steps:
            flat.extend(step.steps if isinstance(step, Recipe) else [step])
        order.check(flat)
        object.__setattr__(self, "steps", tuple(flat))

    @classmethod
    def read(cls, source: str | Path) -> Recipe:
        """Read a YAML file, the recipe of a run folder, or a shipped recipe by its name.

        Raises:
            NiwakiError: no such recipe, text that is not a recipe; the message names the place.
        """
        path = Path(source)
        if (path / "recipe.yaml").is_file():
            path = path / "recipe.yaml"
        if path.is_file():
            return cls.parse(_text(path), str(path))
        if str(source) in shipped.names():
            return cls.parse(shipped.text(str(source)), str(source))
        known = shipped.names()
        raise NiwakiError(
            f'no recipe "{source}"',
            expected="a YAML file, or a shipped recipe: " + (", ".join(known) or "(none)"),
            fix=closest(str(source), known) or "the path of the file, as seen from here",
        )

    @classmethod
    def parse(cls, text: str, source: str = "recipe") -> Recipe:
        """Read YAML text; `source` names it in messages."""
        try:
            return cls(parse.steps(dialect.load(text)))
        except NiwakiError as error:
            raise error.at(source) from None

    def plain(self) -> dict[str, Any]:
        """Return the recipe as mappings, lists and values, every default written out."""
        return {"steps": [parse.plain(step) for step in self.steps]}

    def dump(self) -> str:
        """Return the recipe as YAML, every default written out; `Recipe.parse` gives an equal recipe back."""
        return dialect.dump(self.plain())

    def replaced(self, assignments: Sequence[str]) -> Recipe:
        """Return the recipe with single values set anew: `["steps[0].train.epochs=2"]`."""
        recipe = self
        for assignment in assignments:
            try:
                recipe = Recipe(parse.steps(override.assign(recipe.plain(), assignment)))
            except NiwakiError as error:
                raise error.at(assignment) from None
        return recipe

    def has_place(self, assignment: str) -> bool:
        """Say whether the path of an assignment, as in `replaced`, leads somewhere in this recipe."""
        return override.has_place(self.plain(), assignment)

    def strengths(self, assignment: str) -> list[Recipe]:
        """Return the recipe with one value set to each of several: "steps[0].drop.keep_layers=6,4,3"."""
        path, equals, values = assignment.partition("=")
        return [self.replaced([f"{path}{equals}{value}"]) for value in values.split(",")]

    def family(self) -> dict[str, Recipe]:
        """Return, by name, the single recipes that one with lists of targets stands for; else nothing."""
        for index, step in enumerate(self.steps):
            members = step.family() if isinstance(step, Technique) else {}
            if members:
                steps = self.steps
                single = {name: Recipe([*steps[:index], one, *steps[index + 1 :]]) for name, one in members.items()}
                return {
                    "-".join(filter(None, [name, inner])): recipe
                    for name, outer in single.items()
                    for inner, recipe in (outer.family() or {"": outer}).items()
                }
        return {}

    @staticmethod
    def schema() -> dict[str, Any]:
        """Return the JSON schema of the YAML format, for editors."""
        return schema()


def _text(path: Path) -> str:
    """Read a file that must be UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise NiwakiError(
            f"byte {error.start} is not UTF-8", expected="a YAML text in UTF-8", place=str(path)
        ) from None
