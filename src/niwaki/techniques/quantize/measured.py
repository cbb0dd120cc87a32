"""Try every form of integers that the runtimes here offer, by the clock and by quality, and take the fastest."""

from __future__ import annotations

import copy
import gc
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.errors import NiwakiError
from niwaki.export import export_onnx, export_openvino, file_for
from niwaki.limit import Limit
from niwaki.measure.subjects import Subject, measure_session
from niwaki.runtime import default_threads, installed
from niwaki.task import Encoded
from niwaki.technique import Context
from niwaki.techniques.quantize.sensitivity import Settings, quiet, within

#: Points that may be lost where nothing else is said.
USUAL_DROP = 1.0
ROUNDS = 5
SCORED_ROWS = 1000
#: Share of the time of a form that is packed whole, which one with modules in floats, and so larger, has to beat.
CLEARLY = 0.9
#: Rows that a file is checked against its model on.
CHECKED_ROWS = 32
FLOATS = "floats"
WRITERS: dict[str, tuple[str, Callable[..., object]]] = {
    "onnxruntime": ("model.onnx", export_onnx),
    "openvino": ("model.xml", export_openvino),
}


class Forms(Settings, Protocol):
    """What is asked of `quantize` here."""

    @property
    def allowed_drop(self) -> float | None:
        """Return the points that may be lost."""

    @property
    def confidence(self) -> float | None:
        """Return with which confidence no more is lost on new rows."""

    @property
    def embeddings(self) -> bool | int:
        """Return the bits of tables, or whether they are packed."""

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return the settings with others in the place of some."""


Kind = TypeVar("Kind", bound=Forms)


@dataclass(frozen=True)
class Tried:
    """Say what a form is worth in a runtime.

    Attributes:
        form: its name, or "floats": the model as it is.
        runtime: what executed the exported file.
        seconds: median of one row at batch 1; none where the file could not be made, like the next three.
        size_bytes: of the file.
        drop: points lost on the selection rows, in that runtime.
        bound: at most, where a confidence is asked for.
        interval: 95%, of the difference.
        refused: why there is no such file.
    """

    form: str
    runtime: str
    seconds: float | None = None
    size_bytes: int | None = None
    drop: float | None = None
    bound: float | None = None
    interval: tuple[float, float] | None = None
    refused: str = ""


def fastest(settings: Forms, forms: Mapping[str, Mapping[str, Any]], model: nn.Module, context: Context) -> nn.Module:
    """Pack the model in the fastest form whose drop is within the limit.

    Every form is packed on a copy, exported for each runtime that is installed, timed in turns with the others and with
    the floats, on rows of the user's lengths, and scored on the selection rows, in its runtime. Where the fastest form
    is not within the limit, it keeps modules in higher precision until it is; that is timed beside the fastest form
    that is within the limit as it stands, where there is one, and is taken where it is clearly faster.

    Args:
        settings: what holds for every form: `skip`, `examples` and so on.
        forms: other settings of each, by name.
        model: is packed, or a copy of it.
        context: of the step.

    Raises:
        NiwakiError: no runtime is installed, the model cannot be exported, or nothing is within the limit.
    """
    limit = Limit(USUAL_DROP if settings.allowed_drop is None else settings.allowed_drop, settings.confidence)
    runtimes = runtimes_for(model)
    rest, rows = context.data.selection(context.seed)
    rows, held = rows.sample(SCORED_ROWS, context.seed), replace(context, data=replace(context.data, train=rest))
    named = {name: form_of(settings, form) for name, form in forms.items() if _fits(settings, form)}
    with tempfile.TemporaryDirectory() as folder:
        subjects, refused = _exported(named, runtimes, model, held, rows, Path(folder))
        tried = [*_measured(subjects, rows, context, limit), *refused]
        chosen, first = choose(tried, limit), choose(tried, Limit(math.inf))
        if not limit.holds(vars(chosen)):  # then it is the first, and there is nothing to compare it with
            _tell(tried, chosen, True, limit, rows, context)
            return within(named[chosen.form], model, context, limit)
        if chosen != first:
            told: list[dict[str, Any]] = []
            loud = replace(context, log=told.append)
            others = [one for one in subjects if (one.name, one.runtime) in ((FLOATS, first.runtime), _key(chosen))]
            own, mixed = _in_part(named[first.form], first, others, model, rows, loud, limit, Path(folder))
            tried.append(own)
            if mixed is not None:
                _tell(tried, own, False, limit, rows, context)
                for event in told:
                    context.log(event)
                return mixed
    _tell(tried, chosen, False, limit, rows, context)
    return named[chosen.form].apply(model, held)


def _key(tried: Tried) -> tuple[str, str]:
    """Return what tells apart the files that are tried."""
    return tried.form, tried.runtime


def _in_part(
    settings: Forms,
    first: Tried,
    others: Sequence[Subject],
    model: nn.Module,
    rows: Encoded,
    context: Context,
    limit: Limit,
    folder: Path,
) -> tuple[Tried, nn.Module | None]:
    """Keep modules of a form in higher precision until it is within the limit, and time it beside others.

    Args:
        settings: of the form.
        first: what was tried of it, as it stood.
        others: the floats in its runtime, and the form to compare it with.
        model: stays as it is.
        rows: to time and score on.
        context: of the step; its log is told where the accuracy is lost.
        limit: how much may be lost.
        folder: for its file.

    Returns:
        what it is worth, and the model, where it is within the limit and clearly faster than the other form.
    """
    name = f"{first.form}, mixed"
    try:
        mixed = within(settings, model, context, limit)
        path = _write(mixed, first.runtime, _examples(rows), folder / "mixed")
    except NiwakiError as error:  # nothing of it can stay packed, or no file holds it
        return Tried(name, first.runtime, refused=error.wrong), None
    *found, own = _measured([*others, Subject(name=name, runtime=first.runtime, path=path)], rows, context, limit)
    seconds = [one.seconds for one in found if one.form != FLOATS and one.seconds is not None]
    is_taken = limit.holds(vars(own)) and own.seconds is not None and own.seconds < CLEARLY * min(seconds)
    return own, mixed if is_taken else None


def form_of(settings: Kind, form: Mapping[str, Any]) -> Kind:
    """Return the settings of a form, with what the user's settings say beside it."""
    own = {} if settings.embeddings is True else {"embeddings": settings.embeddings}
    return settings.model_copy(update={"by": "nearest", "allowed_drop": None, "confidence": None, **form, **own})


def choose(tried: Sequence[Tried], limit: Limit) -> Tried:
    """Return the fastest form within the limit; where there is none, the fastest, which is to be repaired.

    A form that one of the runtimes cannot hold is taken only where there is no other: any may come after.

    >>> forms = [Tried("a", "x", 2.0, 1, 0.5), Tried("b", "x", 1.0, 1, 3.0), Tried("floats", "x", 0.5, 1, 0.0)]
    >>> choose(forms, Limit(1.0)).form, choose(forms, Limit(0.1)).form
    ('a', 'b')
    """
    forms = [form for form in tried if form.form != FLOATS and not form.refused]
    if not forms:
        raise NiwakiError(
            f"no form could be exported: {tried[-1].refused}",
            expected="a form that one runtime takes",
            place="quantize",
        )
    narrow = {form.form for form in tried if form.refused}
    forms = [form for form in forms if form.form not in narrow] or forms
    good = [form for form in forms if limit.holds(vars(form))]
    return min(good or forms, key=lambda form: form.seconds or 0.0)


def _fits(settings: Forms, form: Mapping[str, Any]) -> bool:
    """Say whether a form differs from the others where embeddings are told already."""
    return settings.embeddings is True or form.get("embeddings") is not True


def runtimes_for(model: nn.Module) -> list[str]:
    """Return the runtimes to try.

    Raises:
        NiwakiError: none is installed, or the model cannot be exported.
    """
    if anatomy_of(model).language_head is not None:
        raise NiwakiError(
            "by: measured exports every form, and a language model cannot be exported yet",
            expected="a classifier",
            fix="allowed_drop, which looks at the model in PyTorch",
            place="quantize",
        )
    found = [runtime for runtime in WRITERS if runtime in installed()]
    if not found:
        raise NiwakiError(
            "by: measured finds no runtime to measure in",
            expected=" or ".join(WRITERS),
            fix="pip install 'niwaki[onnx]'",
            place="quantize",
        )
    return found


def _exported(
    named: Mapping[str, Settings],
    runtimes: Sequence[str],
    model: nn.Module,
    context: Context,
    rows: Encoded,
    folder: Path,
) -> tuple[list[Subject], list[Tried]]:
    """Write the floats and every form for every runtime; return what is to be measured, and what no file holds."""
    subjects: list[Subject] = []
    refused: list[Tried] = []
    examples = _examples(rows)
    for index, (name, settings) in enumerate({FLOATS: None, **named}.items()):
        candidate = copy.deepcopy(model)
        try:
            candidate = candidate if settings is None else settings.apply(candidate, quiet(context))
        except NiwakiError as error:  # a group that does not divide a width
            refused += [Tried(name, runtime, refused=error.wrong) for runtime in runtimes]
            continue
        for runtime in runtimes:
            try:
                path = _write(candidate, runtime, examples, folder / f"{index}-{runtime}")
            except NiwakiError as error:
                refused.append(Tried(name, runtime, refused=error.wrong))
            else:
                subjects.append(Subject(name=name, runtime=runtime, path=path))
    return subjects, refused


def _write(model: nn.Module, runtime: str, examples: Sequence[dict[str, Tensor]], folder: Path) -> Path:
    """Write the file of a model for a runtime into a new folder; return what the runtime opens."""
    file_name, write = WRITERS[runtime]
    path = file_for(model, folder / file_name)
    path.parent.mkdir()
    write(model, examples, path)
    return path


def _examples(rows: Encoded) -> list[dict[str, Tensor]]:
    """Return rows to check a file on, the longest ones last, alone and in padded batches."""
    chosen = rows.lengths.argsort(kind="stable")[:: max(1, len(rows) // CHECKED_ROWS)]
    groups = [*([int(row)] for row in chosen[::2]), chosen.tolist()]
    return [{name: value for name, value in rows.batch(group).items() if name != "labels"} for group in groups]


def _measured(subjects: Sequence[Subject], rows: Encoded, context: Context, limit: Limit) -> list[Tried]:
    """Time all in turns and score them on the selection rows, beside the floats."""
    names = [subject.name for subject in subjects]
    if FLOATS not in names:
        return []
    gc.collect()
    base = names.index(FLOATS)
    session = measure_session(
        subjects,
        rows,
        context.task.metric,
        base=base,
        threads=min(torch.get_num_threads(), default_threads()),
        rounds=ROUNDS,
        seed=context.seed,
        progress=context.progress,
    )
    whole = session.predictions[base]
    tried = []
    for record, answers in zip(session.records, session.predictions, strict=True):
        lost = limit.lost(whole, answers, session.labels, context.task.metric, seed=context.seed)
        assert record.latency_seconds is not None
        seconds, numbers = record.latency_seconds.typical, (lost["drop"], lost["bound"], lost["interval"])
        tried.append(Tried(record.name, record.runtime, seconds, record.size_bytes, *numbers))
    return tried


def _tell(tried: Sequence[Tried], chosen: Tried, repaired: bool, limit: Limit, rows: Encoded, context: Context) -> None:
    """Log the whole grid, and what follows from it."""
    forms = [{**vars(form), "chosen": form == chosen} for form in tried]
    told = {**limit.told(), "rows": len(rows), "metric": context.task.metric, "repaired": repaired}
    context.log({"event": "forms", **told, "forms": forms})
    floats = [form.seconds for form in tried if form.form == FLOATS and form.seconds is not None]
    if floats and chosen.seconds is not None and min(floats) <= chosen.seconds:
        context.log(
            {"event": "note", "note": "on this machine no form of integers within the limit is faster than the floats"}
        )
    if chosen.runtime != "onnxruntime":
        context.log(
            {"event": "note", "note": f"the form that was chosen is the fastest in {chosen.runtime}: export to it"}
        )
