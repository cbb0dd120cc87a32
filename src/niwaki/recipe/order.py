"""Keep law 2: coarse to fine inside one `Train`, nothing cuts what is packed into bits, nor one of several that share.

A wrong order is refused with the right one written out, never mended in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from niwaki.errors import NiwakiError
from niwaki.technique import Grain, Technique
from niwaki.train import Train

Step = Train | Technique


def check(steps: Sequence[Step]) -> None:
    """Refuse steps that cannot stand where they stand.

    Raises:
        NiwakiError: no steps, something that is no step, a technique where it cannot stand, a wrong order.
    """
    if not steps:
        raise NiwakiError("a recipe without steps", expected="at least one step", fix="Recipe([Quantize(bits=8)])")
    for index, step in enumerate(steps):
        place = f"steps[{index}]"
        if isinstance(step, Train):
            _check_together(step.together, place)
        elif not isinstance(step, Technique):
            raise NiwakiError(
                f"{step!r} is no step",
                expected="Train or a technique, as a value",
                fix="Quantize(bits=8)",
                place=place,
            )
        elif not step.can_apply:
            raise NiwakiError(
                f"{step.name} cannot stand as a step of its own",
                expected="a place inside train, where it accompanies the training",
                fix=f"- train: {{together: [{step.name}]}}",
                place=place,
            )
    _check_packed(steps)
    _check_tied(steps)
    _check_dropped(steps)
    _check_fitted(steps)


def _check_together(together: Sequence[Technique], place: str) -> None:
    """Refuse companions that cannot train, or that do not descend strictly from coarse to fine."""
    for index, technique in enumerate(together):
        if not technique.can_accompany:
            raise NiwakiError(
                f"{technique.name} {technique.at_once}".rstrip() + " cannot stand inside train",
                expected="a step of its own, before or after train",
                fix=f"- {technique.name}",
                place=f"{place}.together[{index}]",
            )
        try:
            technique.check_accompany()
        except NiwakiError as error:
            raise error.at(f"{place}.together[{index}]") from None
    _check_alone(together, place)
    _check_held(together, place)
    _check_descent([technique for technique in together if technique.cuts != Grain.NONE], together, place)


def _check_alone(together: Sequence[Technique], place: str) -> None:
    """Refuse what cuts or packs weights that are becoming one weight in the same train."""
    ties = next((technique for technique in together if technique.ties), None)
    others = [one for one in together if one is not ties and not one.cuts_tied(meanwhile=True)]
    if ties is not None and others:
        other = others[0]
        when = "after" if other.cuts == Grain.BIT else "before"
        raise NiwakiError(
            f"{other.name} cuts {_word(other.cuts)}s of weights that {ties.name} is making one",
            expected=f"{ties.name} in one train with what cuts all its layers alike, or nothing, as distill",
            fix=f"{other.name} in a step of its own, {when} this train",
            place=f"{place}.together",
        )


def _check_held(together: Sequence[Technique], place: str) -> None:
    """Refuse what needs the model's weights to learn in a train that holds them."""
    holder = next((technique for technique in together if technique.without_holding), None)
    others = [one for one in together if one is not holder and one.cuts != Grain.BIT]
    if holder is not None and others:
        raise NiwakiError(
            f"{others[0].name} needs the model to learn, and {holder.name} holds its weights",
            expected=f"beside {holder.name} what packs into bits, or nothing",
            fix=f"{holder.without_holding}, or {holder.name} in a train of its own, after this one",
            place=f"{place}.together",
        )


def _check_descent(cutters: Sequence[Technique], together: Sequence[Technique], place: str) -> None:
    """Refuse cutting techniques whose grains do not strictly descend, and write out the right order."""
    seen: dict[Grain, str] = {}
    for technique in cutters:
        if technique.cuts in seen:
            raise NiwakiError(
                f"{seen[technique.cuts]} and {technique.name} both cut {_word(technique.cuts)}s",
                expected="at most one technique for each of layer, unit, weight and bit in one train",
                fix=f"{technique.name} in a train of its own, before or after this one",
                place=f"{place}.together",
            )
        seen[technique.cuts] = technique.name
    for first, second in pairwise(cutters):
        if first.cuts < second.cuts:
            names = ", ".join(technique.name for technique in coarse_to_fine(together))
            raise NiwakiError(
                f"{first.name} cuts {_word(first.cuts)}s before {second.name} cuts {_word(second.cuts)}s",
                expected="coarse to fine: layers, then units, then weights, then bits",
                fix=f"together in this order: {names}",
                place=f"{place}.together",
            )


def coarse_to_fine(together: Sequence[Technique]) -> list[Technique]:
    """Return the techniques in the right order; those that cut nothing keep their places."""
    ordered = iter(sorted((one for one in together if one.cuts != Grain.NONE), key=lambda one: -one.cuts))
    return [one if one.cuts == Grain.NONE else next(ordered) for one in together]


def _check_packed(steps: Sequence[Step]) -> None:
    """Refuse a step that cuts what a step before it packed into bits."""
    packed = -1
    for index, step in enumerate(steps):
        if packed >= 0 and _cuts(step):
            raise NiwakiError(
                f"{_label(step)} cuts what steps[{packed}] ({_label(steps[packed])}) has packed into bits",
                expected="cuts first, bits last",
                fix=_right_order(steps),
                place=f"steps[{index}]",
            )
        if packed < 0 and _packs(step):
            packed = index


def _check_tied(steps: Sequence[Step]) -> None:
    """Refuse a step that cuts layers one by one that a step before it made share their weights."""
    tied = -1
    for index, step in enumerate(steps):
        in_train = isinstance(step, Train)
        if tied >= 0 and not all(part.cuts_tied(in_train=in_train) for part in _parts(step)):
            raise NiwakiError(
                f"{_label(step)} cuts layer by layer, and steps[{tied}] ({_label(steps[tied])}) has made them share",
                expected="cuts first, then what several layers share, bits last",
                fix=f"{_label(step)} before {_label(steps[tied])}",
                place=f"steps[{index}]",
            )
        if any(part.ties for part in _parts(step)):
            tied = index


def _check_fitted(steps: Sequence[Step]) -> None:
    """Refuse a step behind the last one that fits something to the model as it then is."""
    fitting = [index for index, step in enumerate(steps) if any(part.fits for part in _parts(step))]
    if fitting and fitting[-1] < len(steps) - 1:
        name = next(part.name for part in _parts(steps[fitting[-1]]) if part.fits)
        raise NiwakiError(
            f"{_label(steps[-1])} changes the model that steps[{fitting[-1]}] ({_label(steps[fitting[-1]])}) was "
            f"fitted to",
            expected=f"{name} once more, as the last step: it fits its thresholds to the model that ships",
            fix=f"- {name}: {{}}",
            place=f"steps[{len(steps) - 1}]",
        )


def _check_dropped(steps: Sequence[Step]) -> None:
    """Refuse what needs every token in every layer, in or behind a step that lets layers drop some."""
    drops = ""
    for index, step in enumerate(steps):
        dropping = [part.name for part in _parts(step) if part.drops_tokens]
        if len(dropping) > 1:
            raise NiwakiError(
                f"{' and '.join(dropping)} both say which tokens go",
                expected=f"at most one {dropping[0]} in one train",
                place=f"steps[{index}].together",
            )
        drops = drops or next(iter(dropping), "")
        needs = next((part for part in _parts(step) if part.without_dropping), None)
        if drops and needs is not None:
            raise NiwakiError(
                f"{needs.name} needs every token in every layer, and {drops} lets go of some",
                expected=f"beside {drops}, and behind it, what looks at the answer alone",
                fix=needs.without_dropping,
                place=f"steps[{index}]",
            )


def _right_order(steps: Sequence[Step]) -> str:
    """Return the steps with those that pack last, where moving whole steps is enough."""
    stuck = sum(_packs(step) and _cuts(step) for step in steps)
    if stuck > 1:
        return "one train for all that is cut beside quantize, or quantize as the last step alone"
    # A train that cuts and packs must stand before steps that only pack, and after all that only cut.
    ordered = sorted(steps, key=lambda step: 0 if not _packs(step) else 1 if _cuts(step) else 2)
    return "steps in this order: " + ", ".join(_label(step) for step in ordered)


def _parts(step: Step) -> tuple[Technique, ...]:
    """Return the techniques at work in a step."""
    return step.together if isinstance(step, Train) else (step,)


def _packs(step: Step) -> bool:
    """Say whether a step leaves bits behind."""
    return any(part.cuts == Grain.BIT for part in _parts(step))


def _cuts(step: Step) -> bool:
    """Say whether a step cuts layers, units or weights."""
    return any(part.cuts > Grain.BIT for part in _parts(step))


def _label(step: Step) -> str:
    """Return a step's name, with what stands together in it."""
    if isinstance(step, Train) and step.together:
        return f"train ({', '.join(part.name for part in step.together)})"
    return step.name


def _word(grain: Grain) -> str:
    """Return a grain as a word."""
    return grain.name.lower()
