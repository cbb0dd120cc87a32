"""Measure what ships: size, operations, latency, throughput, memory and quality, each with its conditions.

subjects.py    several artifacts in one run: the entry
asking.py      what a worker answers about rows
timing.py      the same inputs, in turns, in an order that chance decides
quality.py     difference to the base, its interval, McNemar's test
ablation.py    what a model is worth without each part; ends.py: whether its ends matter more than its middle
exits.py       where rows leave a model with exits, and how right it is about them
surprise.py    the same of language models, with a permutation test
counting.py    parameters, bytes and multiply-accumulates, by part
conditions.py  the machine, the packages, the inputs
records.py     what is written down
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from niwaki.measure.quality import paired_quality
from niwaki.measure.records import Measurement
from niwaki.measure.subjects import Session, Subject, measure_session, measure_subjects

if TYPE_CHECKING:
    from niwaki.measure.counting import count_macs_per_token, count_parameters, module_table

__all__ = [
    "Measurement",
    "Session",
    "Subject",
    "count_macs_per_token",
    "count_parameters",
    "measure_session",
    "measure_subjects",
    "module_table",
    "paired_quality",
]


def __getattr__(name: str) -> Any:
    """Load counting on first use: it alone needs torch."""
    if name in __all__:
        from niwaki.measure import counting

        return getattr(counting, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
