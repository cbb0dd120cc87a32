"""The measurement record: one model in one runtime, numbers with the conditions they were taken under."""

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Latency(_Record):
    """Hold seconds of one call at batch 1, pooled over all rounds.

    Attributes:
        median, p10, p90, p99: over calls, a row of the evaluation split each.
        mean: the same, where rows of one of the models measured together may leave early: what a row costs then
            depends on the row, and it is the mean that a server's load follows. Else None.
    """

    median: float
    p10: float
    p90: float
    p99: float
    mean: float | None = None

    @property
    def typical(self) -> float:
        """Return the seconds to compare by: the mean where there is one, else the median."""
        return self.median if self.mean is None else self.mean


class LatencyRatio(_Record):
    """Say how many times faster than the base at batch 1 (above 1 is faster).

    Each round times the base and this artifact on the same inputs, minutes of drift apart at most, and gives
    one ratio of medians, base over this; of means, where the latency has one. These are the median and the spread over
    rounds.

    Attributes:
        base: name of the row it is a ratio to.
        base_runtime: and the runtime of that row.
        median, p10, p90: over rounds.
    """

    base: str
    base_runtime: str
    median: float
    p10: float
    p90: float


class Quality(_Record):
    """Hold the metric on the evaluation split, paired with the base on the same examples.

    Attributes:
        metric: name of the task's metric.
        value: in percent; of a language model in nats per token, or its perplexity, where lower is better.
        difference: this minus base, in points, or in the unit of the value.
        interval: of the difference, 95%, paired bootstrap over examples, in the unit of the difference.
        p_value: of McNemar's exact test that base and this are right equally often; of a language model of a paired
            permutation test that base and this are equally surprised.
        changed: share of examples whose prediction differs from the base's, 0 to 1; None of a language model.
        count: number of examples, or of texts.
        split: the split's name.
        higher_is_better: of the metric; of the surprise of a language model less is better.
        value_interval: of the value itself, 95%, bootstrap over texts, of a language model.
    """

    metric: str
    value: float
    difference: float
    interval: tuple[float, float]
    p_value: float
    changed: float | None
    count: int
    split: str
    higher_is_better: bool = True
    value_interval: tuple[float, float] | None = None


class ParityRecord(_Record):
    """Hold how well the artifact agrees with the model it was exported from.

    Attributes:
        agreement: share of equal predictions, 0 to 1.
        largest_difference: of logits, absolute.
        count: number of examples compared.
        same_exit: of a model with exits, the share of examples that leave where they leave the model, 0 to 1.
    """

    agreement: float
    largest_difference: float
    count: int | None = None
    same_exit: float | None = None


class ExitRecord(_Record):
    """Hold what left at one exit, or went to the end.

    Attributes:
        layer: index of the layer that the exit stands behind; None of the end.
        threshold: at which a row is sure enough to leave; None of the end.
        share: of the evaluation rows, 0 to 1; of a row that is read in windows, the share of those.
        count: number of rows that left here, in part at least: a row in windows may leave at several exits.
        value: the task's metric on them alone, in percent; None where there are none.
        base_value: the base's, on the same rows.
    """

    layer: int | None
    threshold: float | None
    share: float
    count: int
    value: float | None
    base_value: float | None


class ExitsRecord(_Record):
    """Hold where the rows of the evaluation split left a model with exits.

    Attributes:
        by: what a row's sureness is: "entropy", "probability" or "patience".
        exits: the earliest first, and the end last.
    """

    by: str
    exits: tuple[ExitRecord, ...]


class Lengths(_Record):
    """Hold the tokens of a row, over the evaluation split."""

    mean: float
    p50: float
    p90: float
    max: int


class Conditions(_Record):
    """Hold what the numbers depend on.

    Attributes:
        device: processor model.
        instruction_sets: those of avx2, avx512, vnni, amx, bf16 (or their ARM kin) the processor has.
        cores: physical cores this process may use.
        threads: of one inference.
        precision: floating-point precision in force in the runtime.
        os, date: of the machine, ISO 8601.
        load_average: runnable processes of the machine just before; near 0 is quiet.
        lengths: tokens of the rows of the evaluation split, from which the timed inputs are drawn.
        latency_batch, throughput_batch: rows a call.
        rounds: times that all artifacts were timed, in a new random order each.
        repeats: timed calls a round, at batch 1.
        throughput_rows: rows of one throughput pass, sorted by length before they are cut into batches.
        throughput_rounds: passes; the throughput is their median.
        memory_baseline_bytes: peak of the worker process before it imported the runtime, part of the peak.
        versions: of the packages that matter.
        seed: of inputs, order and bootstrap.
    """

    device: str
    instruction_sets: tuple[str, ...]
    cores: int
    threads: int
    precision: str
    os: str
    date: str
    load_average: float | None
    lengths: Lengths
    latency_batch: int
    throughput_batch: int
    rounds: int
    repeats: int
    throughput_rows: int
    throughput_rounds: int
    memory_baseline_bytes: int
    versions: dict[str, str]
    seed: int


class Measurement(_Record):
    """Hold everything measured of one model in one runtime; what a runtime cannot know is None.

    Attributes:
        name, runtime: which model, and what executed it.
        parameters: weights and biases, tied ones once.
        macs_per_token: multiply-accumulates at the mean length, one row.
        size_bytes: all files the runtime needs to run the model, tokenizer apart.
        latency_seconds, latency_ratio: at batch 1.
        throughput_per_second: rows a second at batch 32.
        memory_peak_bytes: peak resident set of a process that holds only this artifact, after batch 1 and
            batch 32.
        exits: where rows left, of a model with exits.
        quality, parity, conditions: see there.
    """

    name: str
    runtime: str
    parameters: int | None = None
    macs_per_token: float | None = None
    size_bytes: int | None = None
    latency_seconds: Latency | None = None
    latency_ratio: LatencyRatio | None = None
    throughput_per_second: float | None = None
    memory_peak_bytes: int | None = None
    exits: ExitsRecord | None = None
    quality: Quality | None = None
    parity: ParityRecord | None = None
    conditions: Conditions | None = None
