"""The edit of token dropping: which layers let go of tokens, and by what."""

from __future__ import annotations

from typing import Any, get_args

from torch import nn

from niwaki.anatomy import Layer, anatomy_of
from niwaki.errors import NiwakiError
from niwaki.layers.attention import mechanisms_of
from niwaki.layers.dropping import IMPLEMENTATION, By, DroppingNorm, TokenDropper, register
from niwaki.layers.exits import exits_of
from niwaki.surgery.journal import edit

#: The level at which all tokens stay, by kind.
NEUTRAL: dict[str, float] = {"threshold": 0.0, "share": 1.0}


@edit
def drop_tokens(model: nn.Module, *, by: By, levels: list[float], from_length: int = 0) -> None:
    """Let layers drop the tokens to which little attention is paid; what dropped before by other levels does no more.

    A layer whose level keeps all, or that has no heads, attends as before.

    Args:
        model: an encoder whose head reads the first token.
        by: "threshold" or "share", see `niwaki.layers.dropping.TokenDropper`.
        levels: one a layer but the last, whose tokens nobody reads but the first: scores in [0, 1], 0 keeps all; or
            shares in (0, 1] of the tokens that came into the layer, 1 keeps all.
        from_length: a row with fewer tokens than this in front of a layer keeps all of them there.
    """
    stand_droppers(model, by, levels, from_length)


def stand_droppers(model: nn.Module, by: By, levels: list[float], from_length: int = 0) -> None:
    """Do what `drop_tokens` does without a word in the journal: to try levels, or to learn them.

    This is no edit: whoever uses it ends with the edit.
    """
    require_droppable(model)
    layers = anatomy_of(model).layers
    if by not in get_args(By):
        raise NiwakiError(f"by is {by!r}", expected=f"one of {', '.join(get_args(By))}")
    lowest_fits = all(level > 0 for level in levels) if by == "share" else all(level >= 0 for level in levels)
    if len(levels) != len(layers) - 1 or not lowest_fits or not all(level <= 1 for level in levels):
        raise NiwakiError(
            f"levels are {levels}",
            expected=f"{len(layers) - 1} numbers in {'(0, 1]' if by == 'share' else '[0, 1]'}, none of the last layer",
        )
    if from_length < 0:
        raise NiwakiError(f"from_length is {from_length}", expected="a number of tokens from 0")
    for layer, level in zip(layers, [*levels, NEUTRAL[by]], strict=True):
        take_dropper_away(layer)
        if level != NEUTRAL[by] and layer.heads:
            _put(layer, TokenDropper(by, float(level), from_length))
    register()
    config: Any = model.config
    config._attn_implementation = IMPLEMENTATION
    for layer in layers:  # a layer that was copied has a config of its own
        if hasattr(layer.attention, "config"):
            layer.attention.config._attn_implementation = IMPLEMENTATION  # type: ignore[union-attr]


def levels_of(model: nn.Module, by: By) -> list[float]:
    """Return the level at which each layer but the last drops tokens, of a model that drops by another kind neutral."""
    found: list[float] = []
    for layer in anatomy_of(model).layers[:-1]:
        dropper = getattr(layer.attention, "dropper", None)
        found.append(dropper.level if isinstance(dropper, TokenDropper) and dropper.by == by else NEUTRAL[by])
    return found


def require_droppable(model: nn.Module) -> None:
    """Refuse a model whose layers must all see every token.

    Raises:
        NiwakiError: its head reads other tokens than the first, it runs one layer again and again, it has exits, or
            its attention was swapped.
    """
    anatomy = anatomy_of(model)
    name = type(model).__name__
    if not anatomy.family.first_token or anatomy.head is None:
        raise NiwakiError(
            f"a {name} has no head that reads the first token: what is dropped would be missing in its answer",
            expected="an encoder with a classification head",
            place="drop-tokens",
        )
    anatomy.refuse_repeated("drop-tokens", "drop-tokens in another family, or exit")
    if anatomy.num_layers < 2:
        raise NiwakiError(
            f"a {name} of one layer: behind it the first token alone is read",
            expected="a model with more than one layer",
            place="drop-tokens",
        )
    if exits_of(model) is not None:
        raise NiwakiError(
            "the model has exits, and runs in parts that each read the whole text",
            expected="drop-tokens or exit, not both",
            place="drop-tokens",
        )
    if any(mechanisms_of(model)):
        raise NiwakiError(
            "the model's attention was swapped, and tells no scores of tokens",
            expected="softmax attention in all layers",
            fix="drop-tokens without attend",
            place="drop-tokens",
        )


def refuse_dropping(model: nn.Module, what: str) -> None:
    """Refuse what needs all tokens in all layers, of a model that drops some."""
    if is_dropping(model):
        raise NiwakiError(
            f"{what} needs every token in every layer, and the model drops tokens",
            expected="a model without drop-tokens",
            place=what,
        )


def is_dropping(model: nn.Module) -> bool:
    """Say whether a model has been made to drop tokens, be it with levels that keep all."""
    return getattr(model.config, "_attn_implementation", None) == IMPLEMENTATION


def _put(layer: Layer, dropper: TokenDropper) -> None:
    """Stand a dropper in a layer's attention and the norm behind it.

    The norm changes its class, and stays the very module that others, as gates on the channels, may be watching.
    """
    norm = layer.part("attention_norm")
    layer.attention.dropper = dropper.train(layer.module.training)
    norm.__class__ = DroppingNorm
    norm.dropper = dropper


def take_dropper_away(layer: Layer) -> None:
    """Leave attention and norm of a layer as they are without one; where there is none, do nothing."""
    norm = layer.part("attention_norm")
    if isinstance(norm, DroppingNorm):
        del norm.dropper
        norm.__class__ = nn.LayerNorm  # type: ignore[assignment]
    if hasattr(layer.attention, "dropper"):
        del layer.attention.dropper
