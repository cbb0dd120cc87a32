"""Tell where the accuracy of a quantized model was lost, which forms were tried, and what exits and dropping cost."""

from __future__ import annotations

from collections.abc import Sequence

from niwaki.report import exits, tokens, units
from niwaki.report.folders import Row, number, section
from niwaki.report.told import Told

MOST = 12
"""Modules that are told one by one; of more, the worst."""


def told_of(log: Sequence[Row]) -> list[Told]:
    """Return the tables that a log has the numbers for; a step that was taken up again counts as it ended."""
    last = {(str(record.get("step", "")), str(record.get("event"))): record for record in log}
    found = []
    for (step, event), record in last.items():
        if event == "forms":
            found.append(_forms(record))
        elif event == "sensitivity":
            found.append(_sensitivity(record, last.get((step, "allowed-drop"), {})))
        elif event == "exits":
            found.append(exits.told(record))
        elif event == "tokens":
            found.append(tokens.told(record))
    return found


def _sensitivity(record: Row, limit: Row) -> Told:
    """Tell what each module costs alone, the worst first, and what became of it."""
    metric, kept = record.get("metric"), section(limit, "kept")
    costs = [cost for cost in record.get("modules", []) if cost.get("modules")]
    lines = tuple(
        (
            ", ".join(cost["modules"]),
            _bits(kept.get(cost["modules"][0], cost.get("bits"))),
            units.figures(number(cost, "divergence") or 0.0),
            units.figures(number(cost, "loss") or 0.0),
            units.points(number(cost, "difference"), metric),
        )
        for cost in costs[:MOST]
    )
    told = [f"Each module packed alone, on {record.get('rows')} selection rows, the costliest first."]
    if len(costs) > MOST:
        told.append(f"{len(costs) - MOST} others cost less.")
    if (difference := number(limit, "difference")) is not None:
        low, high = (units.points(end, metric) for end in limit.get("interval", (None, None)))
        told.append(
            f"All together, with {len(kept)} in higher precision: {units.points(difference, metric)} ({low} to {high})"
            f" on {limit.get('rows')} rows, {_allowed(limit)}."
        )
    head = ("module", "stored in", "divergence, nats", "loss", f"{metric}, alone")
    return Told("Where the accuracy was lost", head, lines, 2, " ".join(told))


def _forms(record: Row) -> Told:
    """Tell what was tried, the fastest first; what no file holds stands last, with the reason."""
    metric = record.get("metric")
    forms = sorted(record.get("forms", []), key=lambda form: number(form, "seconds") or float("inf"))
    lines = tuple(
        (
            str(form.get("form")),
            str(form.get("runtime")),
            str(form.get("refused") or ("chosen" if form.get("chosen") else "")),
            units.seconds(number(form, "seconds")),
            units.size(number(form, "size_bytes")),
            units.NONE if (drop := number(form, "drop")) is None else units.points(-drop, metric),
        )
        for form in forms
    )
    below = (
        f"Median of one row at batch 1, timed in turns; {metric} against the floats on {record.get('rows')} selection"
        f" rows, {_allowed(record)}."
    )
    if record.get("repaired"):
        below += " No form was within that: of the one that was chosen, modules stay in higher precision."
    return Told("Forms that were tried", ("form", "runtime", "", "latency", "size", "difference"), lines, 3, below)


def _allowed(record: Row) -> str:
    """Write the limit, and where it is to hold with confidence, what is lost at most."""
    metric = record.get("metric")
    limit = f"a loss of {units.quality(number(record, 'allowed') or 0.0, metric)} {units.unit(metric)} allowed"
    if (confidence := number(record, "confidence")) is None:
        return limit
    limit += f", with {units.percent(confidence)} confidence"
    bound = number(record, "bound")
    return limit if bound is None else f"{limit}; the bound is {units.figures(bound)}"


def _bits(bits: object) -> str:
    """Write a precision.

    >>> _bits(4), _bits(32)
    ('4 bits', 'floats')
    """
    return "floats" if bits == 32 else f"{bits} bits"
