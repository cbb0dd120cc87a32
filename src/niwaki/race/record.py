"""What came of a race: who reached the budget, who is ahead there, and whether the rows can tell."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from niwaki.budget import show_bytes, show_seconds
from niwaki.measure.records import Quality
from niwaki.plain_table import plain_table

NONE = "-"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Trial(_Record):
    """Hold one recipe that a parent was compressed by.

    Attributes:
        recipe: its number, from 1, the mildest.
        run: the run folder, as seen from the race's.
        misses: the bounds that were missed, in words; none where it fits.
    """

    recipe: int
    run: str
    misses: tuple[str, ...]


class Entrant(_Record):
    """Hold what became of one parent.

    Attributes:
        parent: its name.
        model: where it was loaded from.
        keep_layers: layers that it was cut to before the race, or None.
        recipes: how many recipes it had.
        trials: those that were carried out, from the mildest.
        recipe: number of the mildest that fits, or None.
        misses: the bounds that it missed where it was measured last, in words.
        runtime: the one it is judged in: of those in which all bounds hold, the fastest.
        size_bytes, latency_seconds, memory_peak_bytes: of the artifact there; the latency is the median at batch 1.
        quality: of the artifact, paired with the one that is ahead, on the same examples.
        lost: the same, paired with its own parent in the same runtime.
        parent_size_bytes, parent_latency_seconds: of its parent there.
        parent_fits: whether its parent holds all bounds as it is.
    """

    parent: str
    model: str
    keep_layers: int | None
    recipes: int
    trials: tuple[Trial, ...]
    recipe: int | None
    misses: tuple[str, ...]
    runtime: str | None = None
    size_bytes: int | None = None
    latency_seconds: float | None = None
    memory_peak_bytes: int | None = None
    quality: Quality | None = None
    lost: Quality | None = None
    parent_size_bytes: int | None = None
    parent_latency_seconds: float | None = None
    parent_fits: bool | None = None

    @property
    def fits(self) -> bool:
        """Say whether it reached the budget."""
        return not self.misses

    @property
    def run(self) -> str | None:
        """Return the folder of the run that fits, as seen from the race's."""
        return next((trial.run for trial in self.trials if trial.recipe == self.recipe), None)


class Race(_Record):
    """Hold which parent to start from.

    Attributes:
        budget: the bounds, in words.
        seed: of everything random.
        entrants: those that reached the budget first, the best quality ahead.
        key: hash of all that was measured, so that the same race is not measured again.
    """

    budget: str
    seed: int
    entrants: tuple[Entrant, ...]
    key: str

    @property
    def winner(self) -> Entrant | None:
        """Return the entrant that is ahead, or None where none reached the budget."""
        first = self.entrants[0]
        return first if first.fits else None

    @property
    def verdict(self) -> str:
        """Say which parent to start from, and of which others the rows cannot tell it."""
        if self.winner is None:
            return f"No parent reaches {self.budget}: give stronger recipes, or a wider budget."
        others = [entrant for entrant in self.entrants[1:] if entrant.fits]
        told = [f"Start from {self.winner.parent}: {_ahead(others, self.budget)}"]
        told += [f"{entrant.parent} does not reach the budget." for entrant in self.entrants if not entrant.fits]
        told += [f"{one.parent} fits as it is." for one in self.entrants if one.parent_fits]
        return " ".join(told)

    @classmethod
    def read(cls, file: Path) -> Race:
        """Read what `to_json` wrote."""
        record = json.loads(file.read_text(encoding="utf-8"))
        return cls(**{name: value for name, value in record.items() if name in cls.model_fields})

    def to_json(self) -> str:
        """Return the record as JSON, with the winner's name and the verdict at its head."""
        told = {"winner": self.winner and self.winner.parent, "verdict": self.verdict}
        return json.dumps(told | self.model_dump(mode="json"), indent=2)

    def __str__(self) -> str:
        rows = [_cells(entrant, is_first=entrant == self.winner) for entrant in self.entrants]
        return "\n".join([*plain_table(TITLES, rows, words=3), "", self.verdict])


TITLES = (
    "parent",
    "recipe",
    "runtime",
    "size",
    "latency",
    "memory",
    "quality",
    "to the first (95%)",
    "to its parent (95%)",
    "budget",
)


def _ahead(others: list[Entrant], budget: str) -> str:
    """Say in words what the paired differences to the winner tell."""
    if not others:
        return f"only it reaches {budget}."
    clear = [_told(entrant) for entrant in others if _is_behind(entrant.quality)]
    close = [_told(entrant) for entrant in others if not _is_behind(entrant.quality)]
    told = [f"at {budget} it is ahead of {' and of '.join(clear)}"] if clear else []
    told += [f"{'' if clear else f'at {budget} '}these rows cannot tell it from {' nor from '.join(close)}"]
    return "; ".join(told if close else told[:1]) + "."


def _is_behind(quality: Quality | None) -> bool:
    """Say whether the whole interval of the difference to the winner is on the worse side."""
    assert quality is not None
    low, high = quality.interval
    return high < 0 if quality.higher_is_better else low > 0


def _told(entrant: Entrant) -> str:
    return f"{entrant.parent} ({_difference(entrant.quality)})"


def _difference(quality: Quality | None) -> str:
    if quality is None:
        return NONE
    digits = _digits(quality)
    low, high = quality.interval
    return f"{quality.difference:+.{digits}f}, {low:+.{digits}f}..{high:+.{digits}f}"


def _cells(entrant: Entrant, is_first: bool) -> list[str]:
    quality, tried = entrant.quality, [trial.recipe for trial in entrant.trials]
    return [
        entrant.parent,
        f"{entrant.recipe or max(tried)} of {entrant.recipes}",
        entrant.runtime or NONE,
        show_bytes(entrant.size_bytes) if entrant.size_bytes else NONE,
        show_seconds(entrant.latency_seconds) if entrant.latency_seconds else NONE,
        show_bytes(entrant.memory_peak_bytes) if entrant.memory_peak_bytes else NONE,
        f"{quality.value:.{_digits(quality)}f}" if quality else NONE,
        NONE if is_first else _difference(quality),
        _difference(entrant.lost),
        "; ".join(entrant.misses) or "fits",
    ]


def _digits(quality: Quality) -> int:
    return 4 if quality.metric == "nats" else 2
