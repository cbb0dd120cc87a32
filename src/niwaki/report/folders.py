"""Read run folders as they lie on disk: files in, plain values out; no model is built."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from niwaki.errors import NiwakiError

Row = Mapping[str, Any]
"""One measurement record: a model in a runtime."""

Place = str | PathLike[str]
"""A path as a caller may write it; a `Run` is one too."""

MEASUREMENT = "measurement.json"


@dataclass(frozen=True)
class RunFolder:
    """Hold what a run folder says of itself; everything but the path and the name may be missing.

    Attributes:
        path: the folder, or the JSON file of a comparison.
        name: short and unlike the name of any other run in the same report.
        base: name of the base in `rows`.
        rows: measurement records.
        modules: {"base": [...], "run": [...]}, records of `module`, `parameters`, `bytes`,
            `macs_per_token` and perhaps `seconds`.
        log: records of `log.jsonl`.
        journal: records of `journal.jsonl`, the `build` record first.
        recipe: text of `recipe.yaml`.
        origin: `base.json`: base model, data, labels.
        config: `config.json`.
        artifacts: paths of the exported files, relative to the folder.
        race: `race.json`, of the folder of a race.
    """

    path: Path
    name: str
    base: str = ""
    rows: tuple[Row, ...] = ()
    modules: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    log: tuple[Row, ...] = ()
    journal: tuple[Row, ...] = ()
    recipe: str = ""
    origin: Row = field(default_factory=dict)
    config: Row = field(default_factory=dict)
    artifacts: tuple[str, ...] = ()
    race: Row = field(default_factory=dict)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Return the names of the measured models other than the base, in the order they were measured."""
        return tuple(dict.fromkeys(str(row["name"]) for row in self.rows if row["name"] != self.base))

    def of(self, name: str) -> tuple[Row, ...]:
        """Return the records of one model."""
        return tuple(row for row in self.rows if row["name"] == name)


def number(row: Row, *keys: str) -> float | None:
    """Return the finite number under nested keys, or None where a key is missing or holds something else.

    >>> number({"latency_seconds": {"median": 0.002}}, "latency_seconds", "median")
    0.002
    """
    value: Any = row
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def size_of(row: Row) -> float | None:
    """Return the bytes of all files that a record's runtime needs."""
    return number(row, "size_bytes")


def latency(row: Row) -> float | None:
    """Return the seconds at batch 1 that records are compared by: the mean where rows may leave early, else the median.

    >>> latency({"latency_seconds": {"median": 0.002}}), latency({"latency_seconds": {"median": 0.002, "mean": 0.003}})
    (0.002, 0.003)
    """
    mean = number(row, "latency_seconds", "mean")
    return number(row, "latency_seconds", "median") if mean is None else mean


def section(row: Row, key: str) -> Row:
    """Return the mapping under a key, or an empty one."""
    value = row.get(key)
    return value if isinstance(value, Mapping) else {}


def read_runs(folders: Sequence[Place]) -> list[RunFolder]:
    """Read every measured run in `folders`, each a run, a folder of runs, or a comparison's JSON file.

    Raises:
        NiwakiError: a folder is not there, or no measured run is left; the unmeasured ones are named.
    """
    found: list[Path] = []
    unmeasured: list[Path] = []
    for folder in map(Path, folders):
        measured, other = _measured_in(folder)
        found += [path for path in measured if path not in found]
        unmeasured += other
    if not found:
        named = ", ".join(str(path) for path in unmeasured) or "no folder was given"
        raise NiwakiError(
            f"no measured run among: {named}",
            expected=f"a run folder with {MEASUREMENT}, or a folder that holds such folders",
            fix="niwaki compress BASE ... --out runs/small, which measures when it is done",
        )
    return [read_run(path, name) for path, name in zip(found, _distinct_names(found), strict=True)]


def read_run(path: Path, name: str | None = None) -> RunFolder:
    """Read one run folder (measured or not) or one comparison file."""
    if path.is_file():
        base, rows, modules = _measurement(path)
        return RunFolder(path, name or path.stem, base, rows, modules)
    base, rows, modules = _measurement(path / MEASUREMENT) if (path / MEASUREMENT).is_file() else ("", (), {})
    artifacts = sorted(path.glob("artifacts/**/*"))
    return RunFolder(
        path=path,
        name=name or _name(path),
        base=base,
        rows=rows,
        modules=modules,
        log=_lines(path / "log.jsonl"),
        journal=_lines(path / "journal.jsonl"),
        recipe=_text(path / "recipe.yaml"),
        origin=_object(path / "base.json"),
        config=_object(path / "config.json"),
        race=_object(path / "race.json"),
        artifacts=tuple(file.relative_to(path).as_posix() for file in artifacts if file.is_file()),
    )


def _measured_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return (measured runs, folders without a measurement) at or right below a path."""
    if not folder.exists():
        raise NiwakiError(f"there is no folder {folder}", expected="a run folder, or a folder of runs")
    if folder.is_file() or (folder / MEASUREMENT).is_file():
        return [folder], []
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    measured = [path for path in below if (path / MEASUREMENT).is_file()]
    return measured, [] if measured else [folder]


def _measurement(path: Path) -> tuple[str, tuple[Row, ...], Mapping[str, Sequence[Row]]]:
    """Read base name, records and modules of a measurement or a comparison."""
    record = _object(path)
    rows = record.get("rows")
    whole = isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) and "name" in row for row in rows)
    if not isinstance(rows, list) or not whole:
        raise NiwakiError(
            f"{path} has no measurement records",
            expected='{"base": NAME, "rows": [{"name": ..., "runtime": ...}, ...]}',
            fix="niwaki compare BASE RUN --json > comparison.json",
        )
    base = str(record.get("base") or rows[0]["name"])
    modules = {key: value for key, value in section(record, "modules").items() if isinstance(value, list)}
    return base, tuple(rows), modules


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Name runs by their folders, with the parent's name where two folders share one.

    >>> _distinct_names([Path("runs/small"), Path("other/small"), Path("runs/tiny")])
    ['runs/small', 'other/small', 'tiny']
    """
    names = [_name(path) for path in paths]
    return [
        name if names.count(name) == 1 else f"{_name(path.parent)}/{name}"
        for path, name in zip(paths, names, strict=True)
    ]


def _name(path: Path) -> str:
    # a path like "." has no name of its own
    return (path if path.name else path.resolve()).stem if path.is_file() else path.name or path.resolve().name


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _object(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing file is an empty one."""
    try:
        value = json.loads(_text(path) or "{}")
    except json.JSONDecodeError as error:
        raise NiwakiError(f"{path} is not JSON: {error}", expected="a file that niwaki wrote") from error
    return value if isinstance(value, dict) else {}


def _lines(path: Path) -> tuple[Row, ...]:
    """Read JSON lines; a line cut short by an interruption is passed over."""
    records = []
    for line in _text(path).splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return tuple(records)
