"""Budgets: words to bounds, and bounds against records worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from niwaki.budget import Budget, Miss, show_bytes, show_seconds
from niwaki.errors import NiwakiError
from niwaki.measure import Measurement


def record(**changes: Any) -> dict[str, Any]:
    """A record of 10 MB, 2 ms, 500 MB and 91 of the base's 92 percent."""
    quality = {"metric": "accuracy", "value": 91.0, "difference": -1.0, "count": 872, "split": "validation"}
    return {
        "name": "small",
        "runtime": "onnxruntime",
        "size_bytes": 10_000_000,
        "latency_seconds": {"median": 0.002, "p10": 0.0019, "p90": 0.0025, "p99": 0.004},
        "memory_peak_bytes": 500_000_000,
        "quality": quality,
    } | changes


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("size=10MB", "size_bytes", 10_000_000),
        ("size=10MiB", "size_bytes", 10_485_760),
        ("size=1.5GB", "size_bytes", 1_500_000_000),
        ("size=300kB", "size_bytes", 300_000),
        ("latency=2ms", "latency_seconds", 0.002),
        ("latency=.5s", "latency_seconds", 0.5),
        ("latency=850us", "latency_seconds", 0.00085),
        ("memory=500MB", "memory_bytes", 500_000_000),
        ("quality=-1pt", "quality_points", -1),
        ("quality=-0.5pt", "quality_points", -0.5),
        ("quality=0pt", "quality_points", 0),
        ("quality=+1pt", "quality_points", 1),
        ("quality=97%", "quality_share", 0.97),
    ],
)
def test_words_are_bounds(text: str, field: str, value: float):
    budget = Budget.parse(text)
    assert getattr(budget, field) == pytest.approx(value)
    assert budget == Budget(**{field: getattr(budget, field)})


def test_bounds_stand_side_by_side():
    budget = Budget.parse("  size=10MB, latency=2ms quality=-1pt\tquality=97% ")
    assert str(budget) == "size=10MB latency=2ms quality=-1pt quality=97%"
    assert Budget.parse(str(budget)) == budget
    assert budget == Budget(
        size_bytes=10e6, latency_seconds=0.002, quality_points=-1.0, quality_share=0.97, memory_bytes=None
    )


@pytest.mark.parametrize(
    ("text", "wrong", "fix"),
    [
        ("", "is no bound", "size=10MB latency=2ms"),
        ("10MB", '"10MB" is no bound', "size=10MB"),
        ("latncy=2ms", '"latncy=2ms" is no bound', "latency=2ms"),
        ("size=10", 'size is "10"', "size=10MB"),
        ("size=10ms", 'size is "10ms"', "size=10MB"),
        ("size=-10MB", 'size is "-10MB"', "size=10MB"),
        ("size=0MB", 'size is "0MB"', "size=10MB"),
        ("size=", 'size is ""', "size=10MB"),
        ("latency=2mb", 'latency is "2mb"', "latency=2ms"),
        ("quality=1pt", 'quality is "1pt"', "quality=-1pt"),
        ("quality=-3%", 'quality is "-3%"', "quality=-1pt"),
        ("quality=90", 'quality is "90"', "quality=-1pt"),
        ("quality=-101pt", 'quality is "-101pt"', "quality=-1pt"),
        ("size=1MB size=2MB", '"size=2MB" bounds again', ""),
    ],
)
def test_what_is_no_bound_is_refused(text: str, wrong: str, fix: str):
    with pytest.raises(NiwakiError) as caught:
        Budget.parse(text)
    assert wrong in caught.value.wrong
    assert fix in caught.value.fix
    assert caught.value.place == f'budget "{text}"'


def test_on_the_bound_is_within():
    assert Budget.parse("size=10MB latency=2ms memory=500MB quality=-1pt").check(record()) == []


@pytest.mark.parametrize(
    ("bounds", "miss"),
    [
        ("size=9.9MB", "size is 10 MB, the budget is at most 9.9 MB"),
        ("latency=1.9ms", "latency is 2 ms, the budget is at most 1.9 ms"),
        ("memory=499MB", "memory is 500 MB, the budget is at most 499 MB"),
        ("quality=-0.9pt", "quality is -1.00 points, the budget is at least -0.9 points against the base"),
        # 91 of 92 is 98.913%
        ("quality=99%", "quality is 98.91%, the budget is at least 99% of the base"),
    ],
)
def test_a_miss_says_what_was_found(bounds: str, miss: str):
    assert [str(one) for one in Budget.parse(bounds).check(record())] == [miss]


def test_the_share_is_of_the_base():
    assert Budget.parse("quality=98.9%").check(record()) == []  # 91 >= 0.989 * 92 = 90.988


def test_a_third_of_a_point_is_not_lost_to_rounding():
    quality = {"value": 90.0, "difference": 100 * (270 / 300 - 273 / 300)}  # -1 but for the last digits
    assert Budget.parse("quality=-1pt").check(record(quality=quality)) == []


@pytest.mark.parametrize(
    ("bounds", "missing"),
    [
        ("size=10MB", {"size_bytes": None}),
        ("latency=2ms", {"latency_seconds": None}),
        ("memory=1GB", {"memory_peak_bytes": None}),
        ("quality=-1pt", {"quality": None}),
        ("quality=97%", {"quality": {"value": 91.0, "difference": None}}),
    ],
)
def test_what_was_not_measured_is_missed(bounds: str, missing: dict[str, Any]):
    (miss,) = Budget.parse(bounds).check(record(**missing))
    assert miss.found.startswith("not measured")


def test_measurements_are_checked_as_their_dicts_are():
    measurement = Measurement(name="small", runtime="torch", size_bytes=11_000_000)
    assert Budget.parse("size=10MB").check(measurement) == [Miss("size", "at most 10 MB", "11 MB")]


def test_one_runtime_within_the_budget_is_enough():
    budget = Budget.parse("size=20MB latency=1ms")
    slow, big = record(runtime="torch"), record(runtime="openvino", size_bytes=30e6)
    fast = record(latency_seconds={"median": 0.0009})
    other = record(name="other", size_bytes=30e6, latency_seconds={"median": 0.0009})
    assert budget.judge([slow, big, fast]) == {"small": []}
    verdicts = budget.judge([record(name="base"), big, slow, other], base="base")
    assert {name: [miss.name for miss in misses] for name, misses in verdicts.items()} == {
        "small": ["latency"],
        "other": ["size"],
    }


@pytest.mark.parametrize(("count", "shown"), [(999, "999 B"), (1e3, "1 kB"), (91_043_840, "91.04 MB"), (2e9, "2 GB")])
def test_bytes_for_people(count: float, shown: str):
    assert show_bytes(count) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(1.5, "1.5 s"), (0.0123456, "12.35 ms"), (5e-5, "50 us")])
def test_seconds_for_people(seconds: float, shown: str):
    assert show_seconds(seconds) == shown


def test_a_budget_is_frozen_and_strict():
    budget = Budget(size_bytes=1)
    with pytest.raises(ValueError, match="frozen"):
        budget.size_bytes = 2  # type: ignore[misc]
    with pytest.raises(ValueError, match="extra"):
        Budget(size="10MB")  # type: ignore[call-arg]
