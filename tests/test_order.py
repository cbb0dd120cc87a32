"""Law 2: coarse to fine inside one train, bits last across steps, and the right order in every refusal."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from niwaki.errors import NiwakiError
from niwaki.recipe import Recipe, order
from niwaki.technique import Grain, Technique
from niwaki.techniques.factor import Factor
from niwaki.techniques.share import Share
from niwaki.train import Train


class Cut(Technique):
    """Stand for techniques that are not written yet: works at once and in training."""

    word: str = "cut"

    def apply(self, model: Any, context: Any) -> Any:
        return model

    def accompany(self, model: Any, context: Any) -> Any:
        return None


class Layer(Cut):
    grain: ClassVar[Grain] = Grain.LAYER


class Unit(Cut):
    grain: ClassVar[Grain] = Grain.UNIT


class Weight(Cut):
    grain: ClassVar[Grain] = Grain.WEIGHT


class Bit(Cut):
    grain: ClassVar[Grain] = Grain.BIT


class Free(Cut):
    grain: ClassVar[Grain] = Grain.NONE


@pytest.mark.parametrize(
    "together",
    [
        (),
        (Free(),),
        (Layer(), Unit(), Weight(), Bit()),
        (Free(), Layer(), Free(), Bit(), Free()),
        (Unit(), Bit()),
    ],
)
def test_coarse_to_fine_may_stand_together(together: tuple[Technique, ...]):
    order.check([Train(together=together)])


@pytest.mark.parametrize(
    ("together", "right"),
    [
        ((Unit(), Layer()), "layer, unit"),
        ((Free(), Bit(), Unit(), Layer()), "free, layer, unit, bit"),
        ((Weight(), Free(), Unit()), "unit, free, weight"),
    ],
)
def test_fine_before_coarse_is_refused_with_the_right_order(together: tuple[Technique, ...], right: str):
    with pytest.raises(NiwakiError) as caught:
        Recipe([Train(together=together)])
    assert caught.value.place == "steps[0].together"
    assert caught.value.fix == f"together in this order: {right}"
    names = [technique.name for technique in order.coarse_to_fine(together)]
    assert ", ".join(names) == right
    order.check([Train(together=tuple(order.coarse_to_fine(together)))])


def test_one_grain_is_cut_once_in_a_train():
    with pytest.raises(NiwakiError, match="unit and unit both cut units"):
        Recipe([Train(together=(Unit(), Free(), Unit(word="again")))])


@pytest.mark.parametrize(
    "steps",
    [
        [Bit()],
        [Unit(), Layer(), Bit()],  # across steps fine may come before coarse
        [Train(together=(Unit(), Bit()))],
        [Bit(), Train()],
        [Bit(), Bit(word="again")],
        [Train(together=(Bit(),)), Free()],
    ],
)
def test_across_steps_only_bits_must_come_last(steps: list[Any]):
    order.check(steps)


@pytest.mark.parametrize(
    ("steps", "right"),
    [
        ([Bit(), Unit()], "unit, bit"),
        ([Bit(), Train(), Layer(), Unit()], "train, layer, unit, bit"),
        ([Bit(), Train(together=(Unit(), Bit())), Layer()], "layer, train (unit, bit), bit"),
        ([Train(together=(Bit(),)), Weight()], "weight, train (bit)"),
    ],
)
def test_what_is_packed_into_bits_is_not_cut(steps: list[Any], right: str):
    with pytest.raises(NiwakiError, match="packed into bits") as caught:
        Recipe(steps)
    assert caught.value.fix == f"steps in this order: {right}"


def test_shared_layers_are_not_factored_little_by_little():
    shared = Train(together=(Share(groups="all"),))
    order.check([shared, Factor(keep=0.5)])
    order.check([shared, Train(together=(Factor(modules=(), embedding=8),))])
    with pytest.raises(NiwakiError, match="has made them share"):
        Recipe([shared, Train(together=(Factor(keep=0.5),))])


def test_two_trains_that_cut_and_pack_have_no_right_order():
    with pytest.raises(NiwakiError) as caught:
        Recipe([Train(together=(Unit(), Bit())), Train(together=(Layer(), Bit()))])
    assert "last step" in caught.value.fix
