"""What races: models by name, and relatives of them with fewer layers."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from niwaki.errors import NiwakiError
from niwaki.technique import Technique
from niwaki.techniques.drop import Drop

NAME = r"[A-Za-z0-9][\w.-]*"
EXAMPLE = "half=runs/base:keep_layers=3"


class Parent(BaseModel):
    """Name a model that may be the one to start from.

    Args:
        name: in tables, and of folders.
        model: its folder, or a hub id.
        keep_layers: make a smaller relative of it, with every n-th layer, so many in all; None takes it as it is.

    Example:
        >>> Parent.read("half=runs/base:keep_layers=3")
        Parent(name='half', model='runs/base', keep_layers=3)
        >>> Parent.read("runs/base:keep_layers=3").name, Parent.read("owner/large").name
        ('base-3-layers', 'large')
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=f"^{NAME}$")
    model: str
    keep_layers: int | None = Field(None, ge=1)

    @classmethod
    def read(cls, source: str | os.PathLike[str] | Parent) -> Parent:
        """Read `MODEL`, `NAME=MODEL`, or either with `:keep_layers=N` behind it.

        Raises:
            NiwakiError: there is no model in it, or no name can be made of it.
        """
        if isinstance(source, Parent):
            return source
        text = os.fspath(source)
        found = re.fullmatch(rf"(?:(?P<name>{NAME})=)?(?P<model>.+?)(?::keep_layers=(?P<layers>[1-9]\d*))?", text)
        if Path(text).exists() or found is None:
            name, model, layers = None, text, None
        else:
            name, model, layers = found["name"], found["model"], int(found["layers"]) if found["layers"] else None
        short = Path(model).name or Path(model).resolve().name
        name = name or (f"{short}-{layers}-layers" if layers else short)
        if ":keep_layers" in model or not re.fullmatch(NAME, name):
            raise NiwakiError(
                f'"{text}" is no parent',
                expected="a model, with a name before it or a number of layers behind it where they are wanted",
                fix=EXAMPLE,
            )
        return cls(name=name, model=model, keep_layers=layers)

    @property
    def steps(self) -> tuple[Technique, ...]:
        """Return what makes the relative of the model."""
        return () if self.keep_layers is None else (Drop(keep_layers=self.keep_layers, by="uniform"),)


def read_parents(sources: Sequence[str | os.PathLike[str] | Parent]) -> dict[str, Parent]:
    """Return the parents by name.

    Raises:
        NiwakiError: there are fewer than two, or two of one name.
    """
    parents = [Parent.read(source) for source in sources]
    if len(parents) < 2:
        raise NiwakiError(f"{len(parents)} parent takes part in the race", expected="two or more", fix=EXAMPLE)
    names = [parent.name for parent in parents]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise NiwakiError(f'two parents are called "{doubled}"', expected="a name for each", fix=f"other={doubled}")
    return dict(zip(names, parents, strict=True))
