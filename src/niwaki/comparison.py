"""`compare` and `measure`: base and runs, as artifacts in the runtimes they run in, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niwaki.anatomy import label_names, longest_input
from niwaki.artifacts import artifact_of, require_exportable
from niwaki.checkpoint import load, load_tokenizer, model_hash, write_text
from niwaki.errors import NiwakiError, closest
from niwaki.measure import (
    Measurement,
    Session,
    Subject,
    count_macs_per_token,
    count_parameters,
    measure_session,
    module_table,
)
from niwaki.measure.records import Quality
from niwaki.plain_table import plain_table
from niwaki.runtime import default_threads, installed
from niwaki.teacher import cache_folder

if TYPE_CHECKING:
    from niwaki.task import Encoded, Task

TITLES = (
    "model",
    "runtime",
    "size",
    "latency",
    "faster",
    "rows/s",
    "memory",
    "quality",
    "difference (95%)",
    "changed",
)
#: The runtimes that can be compared, and the export each one opens ("" is the model folder itself).
RUNTIMES = {"torch": "", "onnxruntime": "onnx", "openvino": "openvino"}


@dataclass(frozen=True)
class Comparison:
    """Hold one row a model and runtime; the base's rows come first."""

    base: str
    rows: list[Measurement]
    modules: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: str | Path) -> Comparison:
        """Read what `to_json` or `compare` wrote."""
        record = json.loads(Path(file).read_text(encoding="utf-8"))
        return cls(record["base"], [Measurement(**row) for row in record["rows"]], record.get("modules", {}))

    def to_json(self) -> str:
        """Return `{"base": NAME, "rows": [...]}` as JSON."""
        rows = [row.model_dump(mode="json") for row in self.rows]
        return json.dumps({"base": self.base, "rows": rows}, indent=2)

    def __str__(self) -> str:
        return as_table(self)


def compare(
    base: str | Path | Any,
    *runs: str | Path | Any,
    task: Task,
    runtimes: Sequence[str] | None = None,
    threads: int | None = None,
    quick: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    """Measure base and runs in the same session, interleaved, on the artifacts that ship.

    Artifacts that are not there yet are exported first. The rows are also kept in each run's `measurement.json`.

    Args:
        base: folder or hub id of the model that the runs are compared with.
        runs: run folders, or other model folders.
        task: quality is measured on its test split, or on validation without one.
        runtimes: of "torch", "onnxruntime" and "openvino"; by default those that are installed and run such models.
        threads: of one inference; by default the physical cores.
        quick: fewer rounds.
        seed: of inputs, order and bootstrap.
        progress: draw progress bars.

    Raises:
        NiwakiError: a runtime is unknown, a folder holds no model, or an artifact does not agree with its model.
    """
    sources = _named([str(base), *(str(Path(run)) for run in runs)])
    comparison, _ = measure_together(
        sources, task, runtimes=runtimes, threads=threads, quick=quick, seed=seed, progress=progress
    )
    for name, source in list(sources.items())[1:]:
        _keep(comparison, name, Path(source))
    return comparison


def measure_together(
    sources: Mapping[str, str],
    task: Task,
    *,
    runtimes: Sequence[str] | None = None,
    threads: int | None = None,
    quick: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Comparison, Session]:
    """Do the work of `compare` on models by name, the base first; also return the session, to pair any two of the rows.

    No record is kept in a folder.
    """
    runtimes = known_runtimes(task, runtimes)
    rows = _rows_of_each(sources, task)
    subjects: list[Subject] = []
    modules: dict[str, list[dict[str, Any]]] = {}
    for name, source in sources.items():
        found, table = _subjects_of(name, source, runtimes, rows[name])
        subjects += found
        modules[name] = table
    session = measure_session(
        subjects,
        next(iter(rows.values())),
        task.metric,
        threads=threads or default_threads(),
        seed=seed,
        quick=quick,
        progress=progress,
    )
    return Comparison(next(iter(sources)), session.records, modules), session


def joined(comparisons: Sequence[Comparison]) -> Comparison:
    """Return one comparison of several with the same base; the base's rows are those of the first."""
    first = comparisons[0]
    if len(comparisons) == 1:
        return first
    others = [row for one in comparisons for row in one.rows if row.name != one.base]
    return Comparison(first.base, [*(row for row in first.rows if row.name == first.base), *others])


def measure(
    model: str | Path | Any,
    task: Task,
    *,
    runtimes: Sequence[str] | None = None,
    threads: int | None = None,
    quick: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    """Measure one model in several runtimes; the first of them is what the others are compared with."""
    return compare(model, task=task, runtimes=runtimes, threads=threads, quick=quick, seed=seed, progress=progress)


def known_runtimes(task: Task, runtimes: Sequence[str] | None) -> tuple[str, ...]:
    """Return the runtimes that are asked for, or the usual ones; refuse those that cannot be compared."""
    runtimes = tuple(runtimes or usual_runtimes(task))
    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise NiwakiError(
                f"there is no runtime {runtime!r}",
                expected=f"one of {', '.join(RUNTIMES)}",
                fix=closest(runtime, RUNTIMES),
            )
    require_exportable(task, [RUNTIMES[runtime] for runtime in runtimes if RUNTIMES[runtime]])
    return runtimes


def usual_runtimes(task: Task) -> tuple[str, ...]:
    """Return the runtimes that are installed and that models of the task can be exported to, torch first."""
    return tuple(runtime for runtime in installed() if task.exports or not RUNTIMES[runtime])


def _named(sources: Sequence[str]) -> dict[str, str]:
    """Name each model after its folder; where two would share a name, after its whole path.

    >>> _named(["a/base", "b/small"])
    {'base': 'a/base', 'small': 'b/small'}
    """
    short = [Path(source).name for source in sources]
    names = [name if short.count(name) == 1 else source for name, source in zip(short, sources, strict=True)]
    return dict(zip(names, sources, strict=True))


def _rows_of_each(sources: Mapping[str, str], task: Task) -> dict[str, Encoded]:
    """Return the split that quality is measured on as each model reads it.

    Models of one vocabulary that read as far share the rows.
    """
    known: list[tuple[tuple[dict[str, int], int], Encoded]] = []
    rows: dict[str, Encoded] = {}
    labels: list[str] | None = None
    for name, source in sources.items():
        tokenizer = load_tokenizer(source)
        reading = (tokenizer.get_vocab(), tokenizer.model_max_length)
        found = next((shared for other, shared in known if other == reading), None)
        if found is None:
            model = load(source)
            task.check(model)
            labels = labels or label_names(model)  # the base's, so that class ids mean the same for all
            found = task.encode(tokenizer, longest_input(model, tokenizer, task.max_length), labels).evaluation
            known.append((reading, found))
        rows[name] = found
    return rows


def _subjects_of(
    name: str, source: str, runtimes: Sequence[str], rows: Encoded
) -> tuple[list[Subject], list[dict[str, Any]]]:
    """Return what is to be measured of one model, exporting what is missing, and where its bytes and work are."""
    model = load(source)
    ours = (Path(source) / "base.json").is_file()  # nothing is written into a folder that niwaki did not make
    folder = Path(source) / "artifacts" if ours else cache_folder() / "artifacts" / model_hash(model)[:20]
    counted: dict[str, Any] = {
        "parameters": count_parameters(model),
        "macs_per_token": count_macs_per_token(model, rows),
    }
    subjects = []
    for runtime in runtimes:
        to = RUNTIMES[runtime]
        path, parity = artifact_of(source, to, rows, folder) if to else (Path(source), None)
        subjects.append(Subject(name=name, runtime=runtime, path=path, parity=parity, rows=rows, **counted))
    return subjects, module_table(model, rows)


def _keep(comparison: Comparison, name: str, folder: Path) -> None:
    """Write the rows of base and run into the run's folder."""
    names = {comparison.base, name}
    own = Comparison(comparison.base, [row for row in comparison.rows if row.name in names])
    modules = {"base": comparison.modules[comparison.base], "run": comparison.modules[name]}
    record = {**json.loads(own.to_json()), "modules": modules}
    write_text(folder / "measurement.json", json.dumps(record, indent=2) + "\n")


def as_table(comparison: Comparison) -> str:
    """Return the comparison as a table of plain text."""
    rows = [[row.name, row.runtime, *_cells(row)] for row in comparison.rows]
    return "\n".join([*plain_table(TITLES, rows, words=2), *_exit_lines(comparison.rows)])


def _exit_lines(rows: Sequence[Measurement]) -> list[str]:
    """Return a line for each model with exits: which share of rows left where; latencies are means then."""
    lines = []
    for row in rows:
        if row.exits:
            ends = [
                f"{exit.share:.0%} {'at the end' if exit.layer is None else f'after layer {exit.layer}'}"
                for exit in row.exits.exits
            ]
            lines.append(f"{row.name} in {row.runtime}: {', '.join(ends)}.")
    told = "Latency is the mean over rows: where rows may leave early, it depends on the row."
    return ["", told, *lines] if lines else []


def _cells(row: Measurement) -> list[str]:
    latency, ratio, quality = row.latency_seconds, row.latency_ratio, row.quality
    none = "-"
    return [
        f"{row.size_bytes / 1e6:.1f} MB" if row.size_bytes else none,
        f"{latency.typical * 1e3:.2f} ms" if latency else none,
        f"{ratio.median:.2f}x" if ratio else none,
        f"{row.throughput_per_second:.0f}" if row.throughput_per_second else none,
        f"{row.memory_peak_bytes / 1e6:.0f} MB" if row.memory_peak_bytes else none,
        *(_quality_cells(quality) if quality else (none, none, none)),
    ]


def _quality_cells(quality: Quality) -> tuple[str, str, str]:
    """Return value, difference with its interval, and share of changes; nats with four decimals and their name."""
    digits = 4 if quality.metric == "nats" else 2
    low, high = quality.interval
    value = f"{quality.value:.{digits}f}"
    if quality.value_interval:
        least, most = quality.value_interval
        value = f"{value} {quality.metric} ({least:.{digits}f}..{most:.{digits}f})"
    difference = f"{quality.difference:+.{digits}f} ({low:+.{digits}f}..{high:+.{digits}f})"
    return value, difference, "-" if quality.changed is None else f"{quality.changed:.1%}"
