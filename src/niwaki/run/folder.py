"""The run folder: what is in it, and what is written into it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.checkpoint import JOURNAL, WEIGHTS, load, model_hash, save, write_text
from niwaki.comparison import Comparison, joined
from niwaki.errors import NiwakiError
from niwaki.measure import count_parameters
from niwaki.parts import Parts, layout_of
from niwaki.recipe import Recipe
from niwaki.task import Dataset, Task


@dataclass(frozen=True)
class Run:
    """Name a run folder and read what is in it; the folder of a family holds runs, its members."""

    folder: Path

    @property
    def name(self) -> str:
        """Return the folder's name."""
        return self.folder.name

    @property
    def recipe(self) -> Recipe:
        """Return the recipe that was carried out, with every default."""
        return Recipe.read(self.folder / "recipe.yaml")

    @property
    def members(self) -> list[Run]:
        """Return the runs of a family, in the order of its recipe; a single run is its own only member."""
        return [Run(self.folder / name) for name in self.recipe.family()] or [self]

    @property
    def is_measured(self) -> bool:
        """Say whether there is a comparison: not of a model that was read block by block, or not to be measured."""
        return all((member.folder / "measurement.json").is_file() for member in self.members)

    @property
    def comparison(self) -> Comparison:
        """Return what was measured of the run, or of all members, beside the base."""
        return joined([Comparison.read(member.folder / "measurement.json") for member in self.members])

    @property
    def base(self) -> dict[str, Any]:
        """Return which base model and data the run came from."""
        return dict(json.loads((self.folder / "base.json").read_text(encoding="utf-8")))

    def load(self) -> nn.Module:
        """Load the compressed model."""
        if self.members != [self]:
            names = [member.name for member in self.members]
            raise NiwakiError(
                f"{self.folder} is a family of {len(names)} runs",
                expected="one of its members",
                fix=f"niwaki.load({str(self.folder / names[0])!r})",
            )
        return load(self.folder)

    def __fspath__(self) -> str:
        return str(self.folder)


def save_result(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write the model into the run folder, unless this very model is there already."""
    stamp = folder / ".weights"
    digest = model_hash(model)
    if (folder / WEIGHTS).is_file() and stamp.is_file() and stamp.read_text() == digest:
        return
    stamp.unlink(missing_ok=True)
    shutil.rmtree(folder / "artifacts", ignore_errors=True)
    (folder / "measurement.json").unlink(missing_ok=True)
    save(model, folder, tokenizer)
    write_text(stamp, digest)


def link_result(step: Path, tokenizer: Any, folder: Path) -> None:
    """Let the run folder have the files of its last step, which are not copied, and the tokenizer.

    The weights come last: a folder that has them is whole.
    """
    tokenizer.save_pretrained(folder)
    for name in ("config.json", JOURNAL, WEIGHTS):
        aside = folder / f".{name}.writing"
        aside.unlink(missing_ok=True)
        try:
            os.link(step / name, aside)
        except OSError:  # a file system without links
            shutil.copyfile(step / name, aside)
        aside.replace(folder / name)


def refuse_other_content(folder: Path, members: Collection[Path] = (), mark: str = "base.json") -> None:
    """Refuse to write a run, or the members of a family, where something else stands: a folder without the mark."""
    if folder.is_file():
        raise NiwakiError(f"{folder} is a file", expected="a folder for the run", fix=f"--out {folder}-run")
    ours = any((place / mark).is_file() for place in members or [folder])
    if folder.is_dir() and any(folder.iterdir()) and not ours:
        raise NiwakiError(
            f"{folder} holds other files",
            expected="an empty folder, or a run to go on with",
            fix=f"--out {folder}/small",
        )


def base_record(model: nn.Module, source: str, task: Task, data: Dataset, parts: Parts) -> dict[str, Any]:
    """Return which base and which data a run came from, as `base.json` keeps it."""

    def rows(split: Any) -> int | None:
        return None if split is None else len(split)

    return {
        "model": source,
        "sha256": parts.weights_hash(model),
        "family": anatomy_of(model).family.name,
        "labels": list(data.labels),
        "parameters": count_parameters(model),
        "size_bytes": sum(tensor.numel() * tensor.element_size() for tensor in layout_of(model).values()),
        "task": task.model_dump(mode="json"),
        "data": {
            "source": task.data,
            "fingerprint": data.fingerprint,
            "rows": {"train": rows(data.train), "validation": rows(data.validation), "test": rows(data.test)},
            "notes": list(data.notes),
        },
    }


def logger(file: Path) -> Callable[[dict[str, Any]], None]:
    """Return a function that appends one JSON line an event, with the time."""

    def log(event: dict[str, Any]) -> None:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")

    return log
