"""Say in one sentence what a compressed model gains and loses, also when it gains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from niwaki.report import units
from niwaki.report.folders import Row, RunFolder, latency, number, section, size_of

CLOSE = 1.05
"""Two sizes or times whose ratio is below this are called alike."""

NOTABLE = 2.0
"""A verdict stays open while the interval allows a loss of more points than this, or of more percent of perplexity."""

LEVEL = 0.05
"""A difference with a p-value below this is called significant."""


@dataclass(frozen=True)
class Headline:
    """Hold what is said of one model.

    Attributes:
        name: of the model.
        verdict: three or four words.
        good: True for a plain gain, False for none, None for one that costs quality or cannot be judged.
        sentence: to be read after the name.
        runtime: in which the model is fastest, and in which it is compared.
        tiles: (what, value, base's value, ratio or difference in words), for the eye.
    """

    name: str
    verdict: str
    good: bool | None
    sentence: str
    runtime: str
    tiles: tuple[tuple[str, str, str, str], ...]


def headlines(run: RunFolder) -> list[Headline]:
    """Return one headline for each measured model of a run beside the base."""
    return [headline(run.rows, run.base, run.of(name)) for name in run.subjects]


def headline(rows: Sequence[Row], base: str, own: Sequence[Row]) -> Headline:
    """Compare the fastest of a model's records with the base in the same runtime.

    Args:
        rows: all records of the measurement.
        base: name of the base.
        own: records of the model, at least one.
    """
    best = min(own, key=lambda row: latency(row) or float("inf"))
    peer = peer_of(rows, base, best)
    said = [_size(best, peer), _speed(best, peer), _elsewhere(rows, base, best, peer)]
    gains = [text for text in said if text]
    first = f"is {units.listed(gains)}." if gains else "was measured without the base beside it."
    sentences = [first, _quality(best), _parity(best)]
    good, verdict = _verdict(best, peer)
    sentence = " ".join(text for text in sentences if text)
    return Headline(str(best["name"]), verdict, good, sentence, runtime_of(best), tuple(_tiles(best, peer)))


def peer_of(rows: Sequence[Row], base: str, row: Row) -> Row | None:
    """Return the base's record in the same runtime, else its first one, else None."""
    bases = [other for other in rows if other["name"] == base]
    same = [other for other in bases if other.get("runtime") == row.get("runtime")]
    return next(iter(same or bases), None)


def ratio(base: float | None, value: float | None) -> float | None:
    """Return how many times smaller `value` is than `base`."""
    return base / value if base and value else None


def significant(quality: Row) -> bool | None:
    """Say whether a difference in quality is more than chance, or None where nothing tells.

    McNemar's test counts right and wrong answers, so it speaks of accuracy only; for other metrics the
    interval decides.
    """
    p_value, interval = number(quality, "p_value"), interval_of(quality)
    if quality.get("metric", "accuracy") == "accuracy" and p_value is not None:
        return p_value < LEVEL
    return None if interval is None else interval[0] > 0 or interval[1] < 0


def interval_of(quality: Row) -> tuple[float, float] | None:
    """Return the 95% interval of the difference, in the metric's unit, or None."""
    interval = quality.get("interval")
    if not isinstance(interval, Sequence) or isinstance(interval, str) or len(interval) != 2:
        return None
    ends = {"low": interval[0], "high": interval[1]}
    low, high = number(ends, "low"), number(ends, "high")
    return None if low is None or high is None else (low, high)


def loss_of(quality: Row, difference: float) -> float:
    """Return a difference so that more of it is worse: of a metric that is better when higher, its negative."""
    return -difference if quality.get("higher_is_better", True) else difference


def _largest_loss(quality: Row) -> float | None:
    """Return the loss that the 95% interval of the difference still allows, or None where there is no interval."""
    interval = interval_of(quality)
    return None if interval is None else max(0.0, *(loss_of(quality, end) for end in interval))


def _notable(quality: Row) -> float:
    """Return the loss that matters, in the metric's unit."""
    percent = NOTABLE / 100
    return {"nats": percent, "perplexity": percent * (number(quality, "value") or 0.0)}.get(
        str(quality.get("metric")), NOTABLE
    )


def _size(row: Row, peer: Row | None) -> str:
    own, other = number(row, "size_bytes"), number(peer or {}, "size_bytes")
    times = ratio(other, own)
    if times is None:
        return ""
    sizes = f"({units.size(own)} instead of {units.size(other)})"
    return f"{_times(times, 'smaller', 'larger', 'the same size as')}{_target(times, peer)} {sizes}"


def _speed(row: Row, peer: Row | None) -> str:
    own, other = latency(row), latency(peer or {})
    times = ratio(other, own)
    if times is None or peer is None:
        return ""
    latencies = f"({units.seconds(own)} instead of {units.seconds(other)} at batch 1)"
    where = runtime_of(row)
    if runtime_of(peer) != where:
        where = f"{where}, the base being in {runtime_of(peer)},"
    return f"{_times(times, 'faster', 'slower', 'as fast')} in {where} {latencies}"


def _elsewhere(rows: Sequence[Row], base: str, row: Row, peer: Row | None) -> str:
    """Compare with the base in the runtime it was measured in first, where that is another one."""
    first = next((other for other in rows if other["name"] == base), None)
    times = first_ratio(rows, base, row)
    if first is None or first is peer or times is None:
        return ""
    return f"{_times(times, 'faster', 'slower', 'as fast as')}{_target(times, first)} in {runtime_of(first)}"


def first_ratio(rows: Sequence[Row], base: str, row: Row) -> float | None:
    """Return how many times faster a record is than the base's first one, if it can be round by round."""
    first = next((other for other in rows if other["name"] == base), None)
    if first is None:
        return None
    measured = section(row, "latency_ratio")
    if measured.get("base") == base and measured.get("base_runtime") == first.get("runtime"):
        return number(measured, "median")
    return ratio(latency(first), latency(row))


def runtime_of(row: Row) -> str:
    """Name a record's runtime as its makers do."""
    names = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    runtime = str(row.get("runtime") or "an unnamed runtime")
    return names.get(runtime, runtime)


def _times(times: float, better: str, worse: str, alike: str) -> str:
    if times >= CLOSE:
        return f"{units.times(times)} {better}"
    return f"{units.times(1 / times)} {worse}" if times <= 1 / CLOSE else f"about {alike}"


def _target(times: float, peer: Row | None) -> str:
    """Name the base after a comparative: "than base", or "base" after "as fast as"."""
    name = str((peer or {}).get("name", "the base"))
    return f" {name}" if 1 / CLOSE < times < CLOSE else f" than {name}"


def _quality(row: Row) -> str:
    quality = section(row, "quality")
    value, difference = number(quality, "value"), number(quality, "difference")
    if value is None:
        return "Its quality was not measured."
    name = quality.get("metric")
    metric = {"nats": "Surprise"}.get(str(name), str(name or "quality").capitalize())
    written, size = units.quality(value, name), units.quality(abs(difference or 0.0), name)
    if difference is None:
        return f"{metric} is {written}; it was not paired with the base."
    if not size.strip("0."):
        sentence = f"{metric} is the same, {written}"
    else:
        moved = f"{'falls' if difference < 0 else 'rises'} by {size} {units.unit(name)}"
        sentence = f"{metric} {moved}, {units.quality(value - difference, name)} to {written}"
    return f"{sentence}{_evidence(quality)}.{_changed(quality)}"


def _evidence(quality: Row) -> str:
    """Return interval, test and what they mean, without claiming that no significance is equality."""
    interval, p_value, surely = interval_of(quality), number(quality, "p_value"), significant(quality)
    name, parts = quality.get("metric"), []
    if interval:
        low, high = (units.points(end, name) for end in interval)
        parts.append(f"95% interval of the difference {low} to {high}")
    if p_value is not None:
        sign = "" if p_value < 0.001 else "= "
        test = "McNemar" if quality.get("higher_is_better", True) else "permutation"
        parts.append(f"{test} p {sign}{units.probability(p_value)}".replace("p <", "p < "))
    count = number(quality, "count")
    if count:
        parts.append(f"{count:,.0f} {quality.get('split', '')} examples".replace("  ", " "))
    text = f" ({', '.join(parts)})" if parts else ""
    if surely is None:
        return text
    if surely:
        return f"{text}: a significant difference"
    largest = _largest_loss(quality)
    loss = f"{units.quality(largest or 0.0, name)} {units.unit(name)}"
    allows = f", though a loss of up to {loss} is not ruled out" if largest else ""
    return f"{text}: not a significant difference{allows}"


def _changed(quality: Row) -> str:
    changed = number(quality, "changed")
    return "" if changed is None else f" {units.percent(changed)} of its predictions differ from the base's."


def _parity(row: Row) -> str:
    agreement = number(row, "parity", "agreement")
    if agreement is None or agreement == 1:
        return ""
    count = number(row, "parity", "count")
    share = units.percent(agreement) + (f" of {count:,.0f}" if count else " of the")
    return f"The exported file answered as the model it was made from in {share} checked examples."


def _verdict(row: Row, peer: Row | None) -> tuple[bool | None, str]:
    size = ratio(number(peer or {}, "size_bytes"), number(row, "size_bytes"))
    speed = ratio(latency(peer or {}), latency(row))
    known = [value for value in (size, speed) if value is not None]
    if not known:
        return None, "nothing to compare with"
    gained = [word for word, value in (("smaller", size), ("faster", speed)) if value is not None and value >= CLOSE]
    lost = [word for word, value in (("larger", size), ("slower", speed)) if value is not None and value <= 1 / CLOSE]
    if not gained:
        return False, f"no gain: {' and '.join(lost)}" if lost else "no gain"
    quality = section(row, "quality")
    difference, surely = number(quality, "difference"), significant(quality)
    text = " and ".join(gained) + (f", but {' and '.join(lost)}" if lost else "")
    if difference is None or surely is None:
        return None, f"{text}; quality not compared"
    if surely:
        metric = quality.get("metric", "quality")
        if loss_of(quality, difference) > 0:
            return None, f"{text}, at a cost in {metric}"
        return not lost, f"{text}, better {metric}"
    allowed = _largest_loss(quality)
    if allowed is None:
        return None if lost else True, f"{text}, no significant loss"
    good = None if lost or allowed > _notable(quality) else True
    most, unit = units.quality(allowed, quality.get("metric")), units.unit(quality.get("metric"))
    return good, f"{text}, {f'at most {most} {unit} lost (95%)' if most.strip('0.') else 'nothing lost'}"


def _tiles(row: Row, peer: Row | None) -> list[tuple[str, str, str, str]]:
    """Return the numbers the eye should meet first."""
    other = peer or {}
    tiles = []
    for title, read, write, words in (
        ("size on disk", size_of, units.size, ("smaller", "larger", "the same size")),
        (
            f"latency in {runtime_of(row)}",
            latency,
            units.seconds,
            ("faster", "slower", "as fast"),
        ),
    ):
        own, base = read(row), read(other)
        times = ratio(base, own)
        if own is not None:
            tiles.append((title, write(own), write(base) if base else "", _times(times, *words) if times else ""))
    quality = section(row, "quality")
    value, difference = number(quality, "value"), number(quality, "difference")
    if value is not None:
        name = quality.get("metric")
        before = "" if difference is None else units.quality(value - difference, name)
        change = "" if difference is None else f"{units.points(difference, name)} {units.unit(name)}"
        tiles.append((str(name or "quality"), units.quality(value, name), before, change))
    return tiles
