"""Mixed precision under a limit: what each module costs alone, and which stay in more bits until little is lost."""

# N rows, C classes

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import predict
from niwaki.errors import NiwakiError
from niwaki.limit import Limit
from niwaki.losses import soft_targets
from niwaki.runtime import OUTCOMES
from niwaki.task import Encoded, Task, outcome_of
from niwaki.task.metrics import nats
from niwaki.technique import Context

#: Rows that modules are ranked by: a divergence needs fewer than a metric.
RANKED_ROWS = 256
BATCH = 32
FLOATS = 32


Event = dict[str, Any]


class Settings(Protocol):
    """What is asked of `quantize` here."""

    @property
    def bits(self) -> int:
        """Return the bits of a weight."""

    @property
    def table_bits(self) -> int:
        """Return the bits of embedding tables."""

    def chosen(self, model: nn.Module) -> tuple[list[str], list[str]]:
        """Return the dotted names of the linears and of the tables to pack."""

    def of(self, name: str) -> Settings:
        """Return the settings for one linear."""

    def keeping(self, kept: Mapping[str, int], names: Collection[str]) -> Sequence[Settings]:
        """Return the steps that pack all `names` but those in `kept`, and those in 8 bits or not at all."""

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Pack the model."""


@dataclass(frozen=True)
class Part:
    """Name modules that are packed together, with their bits: one, or a word table and the head tied to it."""

    modules: tuple[str, ...]
    bits: int


@dataclass(frozen=True)
class Sensitivity:
    """Say what it costs to pack one part alone.

    Attributes:
        modules: dotted names.
        bits: they are packed into.
        divergence: mean Kullback-Leibler divergence of the answers from the float model's, in nats; of a language model
            the rise of its surprise, in nats per token.
        loss: the rise of the task's loss.
        difference: of the metric.
    """

    modules: tuple[str, ...]
    bits: int
    divergence: float
    loss: float
    difference: float


@dataclass(frozen=True)
class Answers:
    """Hold what a model says to rows: class ids (N,) and logits (N, C), or surprises (N, 2) alone; and its loss."""

    outcome: np.ndarray
    logits: np.ndarray | None
    loss: float


def within(settings: Settings, model: nn.Module, context: Context, limit: Limit) -> nn.Module:
    """Return the model packed so that what it loses on the selection rows is within the limit.

    All is packed as the settings say. While that loses too much, the parts that cost most alone, by the divergence of
    their answers, go to the next higher precision: 8 bits those that had fewer, the worst first, and then floats, the
    worst first. How many must go is found by bisection; each try is packed and scored anew. What is compared is the
    difference to the float model on the same rows.

    Raises:
        NiwakiError: nothing could stay packed.
    """
    rest, rows = context.data.selection(context.seed)
    context = replace(context, data=replace(context.data, train=rest))
    parts = parts_of(settings, model)
    pack = partial(packed, settings, parts, model)
    whole = answers(model, rows, context.task)
    few_hundred = rows.sample(RANKED_ROWS, context.seed)
    ranked = _ranked(partial(pack, quiet(context)), parts, model, few_hundred, context)
    steps = promotions([Part(cost.modules, cost.bits) for cost in ranked])
    tries: dict[int, dict[str, Any]] = {}
    best: list[tuple[nn.Module, list[Event]]] = []

    def holds(count: int) -> bool:
        told: list[Event] = []
        candidate = pack(replace(context, log=told.append), kept_after(steps, count))
        tries[count] = _lost(limit, whole, answers(candidate, rows, context.task), rows, context)
        if limit.holds(tries[count]):
            # each that is within the limit has fewer in higher precision than the one before
            best[:] = [(candidate, told)]
        return limit.holds(tries[count])

    _tell_few(rows, context, limit.allowed)
    count = fewest(holds, len(steps))
    numbers = ("drop", "bound")
    context.log(
        {
            "event": "allowed-drop",
            **limit.told(),
            "rows": len(rows),
            "metric": context.task.metric,
            "tries": [
                {"kept": len(kept_after(steps, at)), **{key: found[key] for key in numbers}}
                for at, found in tries.items()
            ],
            "kept": kept_after(steps, count),
            **({key: tries[count][key] for key in ("difference", "interval", "bound")} if best else {}),
        }
    )
    if not best:
        _refuse(limit, list(tries.values()))
    result, told = best[0]
    for event in told:
        context.log(event)
    return result


def parts_of(settings: Settings, model: nn.Module) -> list[Part]:
    """Return what can be packed or not: each linear and table, a word table and the head tied to it as one."""
    linears, tables = settings.chosen(model)
    head, table = (anatomy_of(model).tied_names or (None, None)) if tables else (None, None)
    together = (table, head) if table in tables and head in linears else ()
    parts = [Part((name,), settings.of(name).bits) for name in linears if name not in together]
    parts += [Part((name,), settings.table_bits) for name in tables if name not in together]
    return parts + ([Part(tuple(filter(None, together)), settings.table_bits)] if together else [])


def promotions(ranked: Sequence[Part]) -> list[tuple[Part, int]]:
    """Return the order in which parts go to more bits: to 8 those with fewer, worst first; then to floats.

    >>> [(part.modules, bits) for part, bits in promotions([Part(("up",), 4), Part(("down",), 8)])]
    [(('up',), 8), (('up',), 32), (('down',), 32)]
    """
    return [(part, 8) for part in ranked if part.bits < 8] + [(part, FLOATS) for part in ranked]


def kept_after(steps: Sequence[tuple[Part, int]], count: int) -> dict[str, int]:
    """Return the bits of the modules in higher precision after so many promotions."""
    return {name: bits for part, bits in steps[:count] for name in part.modules}


def fewest(holds: Callable[[int], bool], most: int) -> int:
    """Return the least count that holds the limit; `most`, with which nothing is lost, is not tried.

    Between two counts that were tried the loss is taken to fall; where it does not quite, the count that is returned
    held the limit all the same.

    >>> fewest(lambda count: [3.0, 2.0, 0.9, 0.5, 0.1][count] <= 1.0, 5)
    2
    """
    if holds(0):
        return 0
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def packed(
    settings: Settings, parts: Sequence[Part], model: nn.Module, context: Context, kept: Mapping[str, int]
) -> nn.Module:
    """Return a copy of the model with all parts packed, those in `kept` in 8 bits or not at all."""
    result = copy.deepcopy(model)
    for step in settings.keeping(kept, [name for part in parts for name in part.modules]):
        result = step.apply(result, context)
    return result


def quiet(context: Context) -> Context:
    """Return the context without its log: what the packing of a copy has to tell, that of the result tells again."""
    return replace(context, log=lambda event: None)


def answers(model: nn.Module, rows: Encoded, task: Task) -> Answers:
    """Return what the model says to the rows."""
    kind = outcome_of(task.metric)
    if kind == "surprises":
        surprises_N2 = predict(model, rows, BATCH, OUTCOMES[kind])
        return Answers(surprises_N2, None, nats(surprises_N2))
    logits_NC = predict(model, rows, BATCH)
    loss = float(task.loss(torch.from_numpy(logits_NC), torch.from_numpy(rows.labels)))
    return Answers(logits_NC.argmax(-1), logits_NC, loss)


def divergence(this: Answers, whole: Answers) -> float:
    """Return how far answers are from those of the whole model, in nats."""
    if this.logits is None or whole.logits is None:
        return this.loss - whole.loss
    return float(soft_targets(torch.from_numpy(this.logits), torch.from_numpy(whole.logits), temperature=1.0))


def _ranked(
    pack: Callable[[Mapping[str, int]], nn.Module],
    parts: Sequence[Part],
    model: nn.Module,
    rows: Encoded,
    context: Context,
) -> list[Sensitivity]:
    """Pack each part alone, log what that costs, and return it, the worst first."""
    whole, costs = answers(model, rows, context.task), []
    for part in parts:
        others = {name: FLOATS for other in parts if other != part for name in other.modules}
        this = answers(pack(others), rows, context.task)
        difference = float(_lost(Limit(0.0), whole, this, rows, context)["difference"])
        costs.append(Sensitivity(part.modules, part.bits, divergence(this, whole), this.loss - whole.loss, difference))
    costs.sort(key=lambda cost: -cost.divergence)
    told = {"rows": len(rows), "metric": context.task.metric, "modules": [asdict(cost) for cost in costs]}
    context.log({"event": "sensitivity", **told})
    return costs


def _lost(limit: Limit, whole: Answers, this: Answers, rows: Encoded, context: Context) -> dict[str, Any]:
    classes = None if whole.logits is None else whole.logits.shape[-1]
    outcomes = whole.outcome, this.outcome
    return limit.lost(*outcomes, rows.labels, context.task.metric, num_classes=classes, seed=context.seed)


def _refuse(limit: Limit, tries: Sequence[Mapping[str, Any]]) -> NoReturn:
    """Say that nothing could stay packed, and what could."""
    key, sure = ("drop", "") if limit.confidence is None else ("bound", f" with confidence {limit.confidence:g}")
    least = min(float(told[key]) for told in tries)
    raise NiwakiError(
        f"nothing can be packed within allowed_drop {limit.allowed:g}{sure}: the best of {len(tries)} tries lost"
        f" {'at most ' if sure else ''}{least:.3g}",
        expected="a limit that one module in integers can hold",
        fix=f"allowed_drop: {least:.2g}, or by: gptq",
    )


def _tell_few(rows: Encoded, context: Context, allowed: float) -> None:
    """Say where a single row is more than the limit."""
    share = 100.0 / len(rows)
    if rows.labels is not None and share > allowed:
        note = f"one of the {len(rows)} selection rows is {share:.2g} points, more than allowed_drop {allowed:g}"
        context.log({"event": "note", "note": note})
