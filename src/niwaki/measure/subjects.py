"""Measure several artifacts in one run: each in its own process, timed in turns, quality paired."""

# N rows, S subjects, R rounds, I inputs of a round

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import NiwakiError
from niwaki.measure.asking import BATCH, MESSAGE_ROWS, Tick, ask_in_batches
from niwaki.measure.conditions import describe_lengths, machine, versions
from niwaki.measure.exits import left_at, route
from niwaki.measure.quality import paired_quality
from niwaki.measure.records import (
    Conditions,
    Latency,
    LatencyRatio,
    Lengths,
    Measurement,
    ParityRecord,
    Quality,
)
from niwaki.measure.timing import (
    Floats,
    batches_by_length,
    draw_rows,
    pad_rows,
    ratio_over_rounds,
    summarize_seconds,
    time_in_turns,
)
from niwaki.runtime import Worker, default_threads, open_worker, size_on_disk
from niwaki.runtime.artifact import Array
from niwaki.task.metrics import outcome_of

if TYPE_CHECKING:
    from niwaki.task import Encoded

#: How many times more inputs a round has where a row's latency depends on the row, and it is the mean that counts.
EXIT_REPEATS = 4


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Hold one artifact to be measured in one runtime, and what its file cannot tell.

    Attributes:
        name: of the model, as the table will say.
        runtime: "torch", "onnxruntime" or "openvino".
        path: what the runtime opens.
        size_bytes: all files the runtime needs; counted from `path` when None.
        parameters, macs_per_token: counted on the model, when known.
        precision: "f32", "bf16" or None for the runtime's own choice (ONNX Runtime: None).
        parity: `agreement`, `largest_difference` and perhaps `count` of the export.
        rows: the evaluation split in the model's own token ids, where they are not those of the others.
    """

    name: str
    runtime: str
    path: Path
    size_bytes: int | None = None
    parameters: int | None = None
    macs_per_token: float | None = None
    precision: str | None = None
    parity: dict[str, Any] | None = None
    rows: Encoded | None = None


@dataclass(frozen=True)
class Plan:
    """Hold how much is measured.

    Attributes:
        rounds, repeats: of latency at batch 1: rounds in turns, and inputs a round.
        throughput_rounds, throughput_batches: of 32 rows.
        quality_rows: at most so many rows of the split are predicted; None for all.
    """

    rounds: int = 10
    repeats: int = 25
    throughput_rounds: int = 3
    throughput_batches: int = 8
    quality_rows: int | None = None


QUICK = Plan(rounds=3, repeats=10, throughput_rounds=2, throughput_batches=2, quality_rows=1000)


@dataclass(frozen=True)
class Session:
    """Hold what was measured together: a record each, and what each answered, so that any two can be paired.

    Attributes:
        records: one a subject, in their order; quality and speed are paired with the base's.
        predictions: of each subject, on the same rows.
        labels: class ids of these rows, where the task has them.
        seed: of the bootstrap.
    """

    records: list[Measurement]
    predictions: list[Array]
    labels: npt.NDArray[np.int64] | None
    seed: int

    def paired(self, other: int, this: int) -> Quality:
        """Return the quality of subject `this`, with subject `other` in the place of the base."""
        quality = self.records[this].quality
        assert quality is not None
        answers = self.predictions[other], self.predictions[this]
        return Quality(split=quality.split, **paired_quality(*answers, self.labels, quality.metric, seed=self.seed))


def measure_subjects(
    subjects: Sequence[Subject],
    evaluation: Encoded,
    metric: str,
    *,
    base: int | None = None,
    threads: int | None = None,
    rounds: int = 10,
    seed: int = 0,
    quick: bool = False,
    progress: bool = True,
) -> list[Measurement]:
    """Measure all subjects in one run and return one record each, in their order: the records of `measure_session`."""
    return measure_session(
        subjects,
        evaluation,
        metric,
        base=base,
        threads=threads,
        rounds=rounds,
        seed=seed,
        quick=quick,
        progress=progress,
    ).records


def measure_session(
    subjects: Sequence[Subject],
    evaluation: Encoded,
    metric: str,
    *,
    base: int | None = None,
    threads: int | None = None,
    rounds: int = 10,
    seed: int = 0,
    quick: bool = False,
    progress: bool = True,
) -> Session:
    """Measure all subjects in one run, and keep what each of them answered.

    All workers are alive at once, one at a time works. Order of things: every distinct length once (runtimes
    compile by shape; a server that has run for a while has seen them all), latency in turns, throughput in
    turns, peak memory, then quality.

    Args:
        subjects: artifacts, the base's among them.
        evaluation: the split no technique has seen; timed inputs are drawn from it. A subject with rows of its own
            gets the same texts from those.
        metric: "accuracy", "f1", "mcc"; "nats" or "perplexity".
        base: index of the subject that quality and speed are compared with; the first torch subject, or the
            first, when None.
        threads: of one inference; all physical cores when None.
        rounds: of latency, 3 or more for a spread that means something.
        seed: of inputs, order and bootstrap.
        quick: 3 short rounds, and quality on at most 1000 rows; for a first look.
        progress: draw a progress bar on standard error.

    Raises:
        NiwakiError: no subjects, no rows; or an artifact that cannot be opened, dies, or gives NaN.
    """
    base = _check(subjects, evaluation, base, rounds)
    threads = threads or default_threads()
    plan = QUICK if quick else Plan(rounds=rounds)
    facts, kind = machine(), outcome_of(metric)
    read = [evaluation if subject.rows is None else subject.rows for subject in subjects]
    with ExitStack() as stack:
        tick = stack.enter_context(_progress(_ticks(subjects, evaluation, plan), progress))
        workers = [stack.enter_context(_start(subject, threads, tick)) for subject in subjects]
        with_exits = any(worker.rule for worker in workers)
        plan = replace(plan, repeats=plan.repeats * EXIT_REPEATS) if with_exits else plan
        latency_SRI = _time_singles(workers, evaluation, read, plan, seed, kind, tick)
        throughput_SR = _time_batches(workers, evaluation, read, plan, seed, kind, tick)
        memory = [worker.peak_memory() for worker in workers]
        rows = _quality_rows(evaluation, plan, seed)
        answers = [
            route(worker, worker.rule, own, rows, tick)
            if worker.rule
            else (_predict(worker, own, rows, kind, tick), None)
            for worker, own in zip(workers, read, strict=True)
        ]
        predictions = [found for found, _ in answers]
    against = {"base": subjects[base].name, "base_runtime": subjects[base].runtime}
    labels = None if evaluation.labels is None else evaluation.labels[rows]
    records = []
    for index, (subject, worker, own) in enumerate(zip(subjects, workers, read, strict=True)):
        ratio = ratio_over_rounds(latency_SRI[base], latency_SRI[index], mean=with_exits)
        left = left_at(worker.rule, answers[index][1], predictions[index], predictions[base], labels, metric)
        mean = float(latency_SRI[index].mean()) if with_exits else None
        quality = paired_quality(predictions[base], predictions[index], labels, metric, seed=seed)
        timed = {
            "latency_seconds": Latency(**summarize_seconds(latency_SRI[index]), mean=mean),
            "latency_ratio": LatencyRatio(**against, **ratio),
            "throughput_per_second": float(np.median(throughput_SR[index])),
            "memory_peak_bytes": memory[index],
            "exits": left,
            "quality": Quality(split=evaluation.name, **quality),
            "conditions": _conditions(facts, worker, own, plan, threads, seed),
        }
        records.append(Measurement(**_known(subject), **timed))
    return Session(records, predictions, labels, seed)


def _known(subject: Subject) -> dict[str, Any]:
    """Return the fields of a record that need no clock."""
    size_bytes = subject.size_bytes
    return {
        "name": subject.name,
        "runtime": subject.runtime,
        "parameters": subject.parameters,
        "macs_per_token": subject.macs_per_token,
        "size_bytes": size_on_disk(subject.path, subject.runtime) if size_bytes is None else size_bytes,
        "parity": ParityRecord(**subject.parity) if subject.parity else None,
    }


def _check(subjects: Sequence[Subject], evaluation: Encoded, base: int | None, rounds: int) -> int:
    """Refuse what cannot be measured; return the index of the base."""
    if not subjects:
        raise NiwakiError("nothing to measure", expected="one artifact or more")
    if not len(evaluation):
        raise NiwakiError(f"the {evaluation.name} split is empty", expected="rows to measure on")
    for subject in subjects:
        own = evaluation if subject.rows is None else subject.rows
        same = own.labels is None or evaluation.labels is None or np.array_equal(own.labels, evaluation.labels)
        if len(own) != len(evaluation) or not same:
            raise NiwakiError(f"{subject.name} has other rows than {evaluation.name}", expected="the same texts")
    if rounds < 1:
        raise NiwakiError(f"rounds is {rounds}", expected="1 or more", fix="rounds=10")
    if base is None:
        runtimes = [subject.runtime for subject in subjects]
        return runtimes.index("torch") if "torch" in runtimes else 0
    if not 0 <= base < len(subjects):
        raise NiwakiError(f"base is {base}", expected=f"an index in 0..{len(subjects) - 1}")
    return base


def _start(subject: Subject, threads: int, tick: Tick) -> Worker:
    """Open a subject in a process of its own."""
    worker = open_worker(subject.path, subject.runtime, threads=threads, precision=subject.precision)
    tick(f"opened {subject.name} in {subject.runtime}")
    return worker


def _time_singles(
    workers: list[Worker], rows: Encoded, read: list[Encoded], plan: Plan, seed: int, kind: str, tick: Tick
) -> Floats:
    """Return seconds (S, R, I) at batch 1, after every worker has seen every length that will come."""
    drawn_RI = draw_rows(rows.lengths, plan.rounds, plan.repeats, seed)
    for worker, own in zip(workers, read, strict=True):
        first_of_length = np.unique(own.lengths[drawn_RI.ravel()], return_index=True)[1]
        seen = [pad_rows(own, [row]) for row in drawn_RI.ravel()[first_of_length]]
        worker.outcomes(seen, kind)
        if worker.rule and worker.runtime == "openvino":  # it compiles by shape, and some may go further than these
            worker.every(seen)
        tick("warming up")
    batches = [[[pad_rows(own, [row]) for row in drawn_I] for drawn_I in drawn_RI] for own in read]
    return time_in_turns(workers, batches, seed, tick=lambda: tick("latency"))


def _time_batches(
    workers: list[Worker], rows: Encoded, read: list[Encoded], plan: Plan, seed: int, kind: str, tick: Tick
) -> Floats:
    """Return rows per second (S, R) at batch 32: the same rows each round, cut into batches by length."""
    drawn = draw_rows(rows.lengths, 1, plan.throughput_batches * BATCH, seed)[0]
    batches = [batches_by_length(own, drawn, BATCH) for own in read]
    for worker, own in zip(workers, batches, strict=True):
        worker.outcomes(own, kind)
        tick("warming up")
    rounds = [[own] * plan.throughput_rounds for own in batches]
    seconds_SRI = time_in_turns(workers, rounds, seed, warm=1, tick=lambda: tick("throughput"))
    return np.asarray(len(drawn) / seconds_SRI.sum(axis=2))


def _quality_rows(rows: Encoded, plan: Plan, seed: int) -> npt.NDArray[np.int64]:
    """Return the rows to predict, ascending: all, or a sample."""
    if plan.quality_rows is None or len(rows) <= plan.quality_rows:
        return np.arange(len(rows))
    return np.sort(np.random.default_rng(seed).choice(len(rows), plan.quality_rows, replace=False))


def _predict(worker: Worker, rows: Encoded, chosen: npt.NDArray[np.int64], kind: str, tick: Tick) -> Array:
    """Return what is kept of the chosen rows' logits: predicted class ids (N,), or surprises (N, 2)."""
    return ask_in_batches(worker, rows, chosen, lambda batches: worker.outcomes(batches, kind), tick)


def _conditions(
    facts: dict[str, Any], worker: Worker, rows: Encoded, plan: Plan, threads: int, seed: int
) -> Conditions:
    """Put together what one subject's numbers depend on."""
    return Conditions(
        **facts,
        threads=threads,
        precision=worker.precision,
        lengths=Lengths(**describe_lengths(rows.lengths)),
        latency_batch=1,
        throughput_batch=BATCH,
        rounds=plan.rounds,
        repeats=plan.repeats,
        throughput_rows=plan.throughput_batches * BATCH,
        throughput_rounds=plan.throughput_rounds,
        memory_baseline_bytes=worker.memory_baseline_bytes,
        versions=versions(),
        seed=seed,
    )


def _ticks(subjects: Sequence[Subject], rows: Encoded, plan: Plan) -> int:
    """Return how often the progress bar will be told to advance."""
    count = len(rows) if plan.quality_rows is None else min(len(rows), plan.quality_rows)
    return len(subjects) * (3 + plan.rounds + plan.throughput_rounds + -(-count // MESSAGE_ROWS))


@contextmanager
def _progress(total: int, shown: bool) -> Iterator[Tick]:
    """Draw a bar on standard error; yield what advances it.

    It is drawn between blocks only: a bar that refreshes itself would be a neighbour to what is being timed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<32}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, disable=not shown, transient=True) as bar:
        task = bar.add_task("measuring", total=total)

        def tick(description: str) -> None:
            bar.update(task, advance=1, description=description)
            bar.refresh()

        yield tick
