"""`Budget`: bounds on a measurement, read from words like "size=10MB latency=2ms quality=-1pt"."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from niwaki.errors import NiwakiError, closest
from niwaki.task.metrics import higher_is_better

_BYTES = {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_EXAMPLE = {
    "size": "size=10MB",
    "latency": "latency=2ms",
    "memory": "memory=500MB",
    "quality": "quality=-1pt",
}
_UNITS = {"size": _BYTES, "memory": _BYTES, "latency": _SECONDS}
_FIELDS = {"size": "size_bytes", "memory": "memory_bytes", "latency": "latency_seconds"}


@dataclass(frozen=True)
class Miss:
    """Say which bound a measurement missed.

    Attributes:
        name: "size", "latency", "memory" or "quality".
        bound: the bound, in words.
        found: what was measured, in words.
    """

    name: str
    bound: str
    found: str

    def __str__(self) -> str:
        return f"{self.name} is {self.found}, the budget is {self.bound}"


class Budget(BaseModel):
    """Bound a measurement; what is None is not bounded.

    Args:
        size_bytes: of all files the runtime needs, at most.
        latency_seconds: median at batch 1, at most; the mean, where rows may leave early.
        memory_bytes: peak, at most.
        quality_points: difference to the base in points, at least: -1 allows one point to be lost. Metrics in percent
            have points, those of language models (nats, perplexity) have none.
        quality_share: share of the base's metric that must be kept, at least: 0.97. Of a language model it is the
            base's perplexity over this one's, whichever metric is measured.

    Example:
        >>> Budget.parse("size=10MB quality=-1pt").size_bytes
        10000000.0
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_bytes: float | None = Field(None, gt=0)
    latency_seconds: float | None = Field(None, gt=0)
    memory_bytes: float | None = Field(None, gt=0)
    quality_points: float | None = Field(None, ge=-100, le=100)
    quality_share: float | None = Field(None, gt=0)

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read bounds, set apart by spaces or commas.

        Raises:
            NiwakiError: an unknown name or unit, a number missing, a bound given twice, no bound at all.
        """
        found: dict[str, float] = {}
        for word in re.split(r"[\s,]+", text.strip()):
            field, value = _bound(word, text)
            if field in found:
                raise NiwakiError(f'"{word}" bounds again what is bounded already', place=f'budget "{text}"')
            found[field] = value
        return cls(**found)

    def require(self, metric: str) -> None:
        """Refuse a bound that means nothing for a metric, before any work.

        Raises:
            NiwakiError: points are asked of a metric that is not in percent.
        """
        if self.quality_points is not None and not higher_is_better(metric):
            raise NiwakiError(
                f"quality is bounded in points, and {metric} has none",
                expected="a share of the base's perplexity that is kept",
                fix="quality=97%",
                place=f'budget "{self}"',
            )

    def check(self, record: Any) -> list[Miss]:
        """Return what a measurement record (or its dict) misses; what was not measured is missed too.

        Quality is judged by the measured difference itself, not by the ends of its interval.
        """
        row: Mapping[str, Any] = record if isinstance(record, Mapping) else record.model_dump()
        seconds = row.get("latency_seconds") or {}
        latency = seconds.get("median") if seconds.get("mean") is None else seconds["mean"]
        quality = row.get("quality") or {}
        misses = [
            _over("size", self.size_bytes, row.get("size_bytes"), show_bytes),
            _over("latency", self.latency_seconds, latency, show_seconds),
            _over("memory", self.memory_bytes, row.get("memory_peak_bytes"), show_bytes),
            _points_lost(self.quality_points, quality),
            _share_kept(self.quality_share, quality),
        ]
        return [miss for miss in misses if miss]

    def judge(self, records: Iterable[Any], base: str = "") -> dict[str, list[Miss]]:
        """Return what each model but the base misses, by its name, in the runtime where it misses least.

        One runtime in which all bounds hold is enough: that is the one to ship.
        """
        best: dict[str, list[Miss]] = {}
        for record in records:
            name = record["name"] if isinstance(record, Mapping) else record.name
            misses = self.check(record)
            if name != base and (name not in best or len(misses) < len(best[name])):
                best[name] = misses
        return best

    def __str__(self) -> str:
        shown = [
            self.size_bytes and f"size={show_bytes(self.size_bytes)}",
            self.latency_seconds and f"latency={show_seconds(self.latency_seconds)}",
            self.memory_bytes and f"memory={show_bytes(self.memory_bytes)}",
            None if self.quality_points is None else f"quality={self.quality_points:+g}pt",
            self.quality_share and f"quality={100 * self.quality_share:g}%",
        ]
        return " ".join(word.replace(" ", "") for word in shown if word)


def _bound(word: str, text: str) -> tuple[str, float]:
    """Read one bound: "size=10MB" is ("size_bytes", 1e7)."""
    place = f'budget "{text}"'
    name, equals, value = word.partition("=")
    if not equals or name not in _EXAMPLE:
        near = closest(name, _EXAMPLE)
        raise NiwakiError(
            f'"{word}" is no bound',
            expected="bounds on " + ", ".join(_EXAMPLE) + ", each with = and its number",
            fix=_EXAMPLE[near] if near else " ".join(_EXAMPLE.values()),
            place=place,
        )
    parts = re.fullmatch(r"([-+]?)(\d+(?:\.\d*)?|\.\d+)([a-zA-Zµ%]*)", value)
    sign, number, unit = parts.groups() if parts else ("", "0", "")
    if name == "quality" and parts and unit in ("pt", "%"):
        field, amount = _quality(sign, float(number), unit)
        if field:
            return field, amount
    if name != "quality" and not sign and unit in _UNITS[name] and float(number) > 0:
        return _FIELDS[name], float(number) * _UNITS[name][unit]
    raise NiwakiError(f'{name} is "{value}"', expected=_accepted(name), fix=_EXAMPLE[name], place=place)


def _quality(sign: str, number: float, unit: str) -> tuple[str, float]:
    """Read "-1pt" or "97%"; "1pt" and "-3%" could be read in two ways, and are not read."""
    if unit == "pt" and (sign or number == 0) and number <= 100:
        return "quality_points", -number if sign == "-" else number
    if unit == "%" and not sign and number > 0:
        return "quality_share", number / 100
    return "", 0.0


def _accepted(name: str) -> str:
    """Return what a bound of this name may be."""
    if name == "quality":
        return "points against the base, with a sign (-1pt), or a kept share of the base's metric (97%)"
    return "a number above 0 with a unit: " + ", ".join(_UNITS[name])


def _over(name: str, bound: float | None, found: float | None, show: Any) -> Miss | None:
    """Return a miss where a number is over its bound, or unknown."""
    if bound is None or (found is not None and found <= bound):
        return None
    return Miss(name, f"at most {show(bound)}", "not measured" if found is None else show(found))


def _points_lost(bound: float | None, quality: Mapping[str, Any]) -> Miss | None:
    """Return a miss where the difference to the base, in points, is below the bound."""
    difference = quality.get("difference") if higher_is_better(str(quality.get("metric"))) else None
    # Points come from counts of examples, so that a millionth is rounding and no example.
    if bound is None or (difference is not None and difference >= bound - 1e-6):
        return None
    shown = "not measured against a base" if difference is None else f"{difference:+.2f} points"
    return Miss("quality", f"at least {bound:+g} points against the base", shown)


def _share_kept(bound: float | None, quality: Mapping[str, Any]) -> Miss | None:
    """Return a miss where too little of the base's metric is kept; the base's value is value - difference."""
    if bound is None:
        return None
    wanted = f"at least {100 * bound:g}% of the base"
    value, difference = quality.get("value"), quality.get("difference")
    if value is None or difference is None:
        return Miss("quality", wanted, "not measured against a base")
    kept = _kept(str(quality.get("metric")), value, value - difference)
    return None if kept >= bound - 1e-8 else Miss("quality", wanted, f"{100 * kept:.2f}%")


def _kept(metric: str, value: float, base: float) -> float:
    """Return the share of the base's metric that is kept; of surprise, the share of its perplexity.

    >>> _kept("accuracy", 87.3, 90.0), _kept("perplexity", 5.0, 4.0), round(_kept("nats", 1.1, 1.0), 4)
    (0.97, 0.8, 0.9048)
    """
    if metric == "nats":
        return math.exp(base - value)
    return value / base if higher_is_better(metric) else base / value


def show_bytes(count: float) -> str:
    """Return bytes for people.

    >>> show_bytes(12_300_000)
    '12.3 MB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:g} B"


def show_seconds(seconds: float) -> str:
    """Return a time for people.

    >>> show_seconds(0.00215)
    '2.15 ms'
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds / 1e-6:.4g} us"
