"""The edits of how a model attends, and of how far it reads."""

# T tokens, D hidden

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from niwaki.anatomy import Layer, anatomy_of, first_position
from niwaki.errors import NiwakiError
from niwaki.layers.attention import IMPLEMENTATION, Mechanism, register
from niwaki.layers.empty import EmptyAttention
from niwaki.layers.kinds import OF_DECODERS, SETTINGS, Kind, build
from niwaki.surgery.cutting import as_table, layer_at
from niwaki.surgery.dropping import refuse_dropping
from niwaki.surgery.journal import edit


@edit
def swap_attention(
    model: nn.Module,
    *,
    layer: int,
    by: Kind,
    window: int = 128,
    global_tokens: int = 1,
    features: Literal["hedgehog", "t2r"] = "hedgehog",
    landmarks: int = 64,
) -> None:
    """Let a layer attend in another way than by a softmax over all tokens; its projections stay as they are.

    Args:
        model: any model of a known family.
        layer: index of the layer, from 0.
        by: of an encoder "window" (see `niwaki.layers.attention.WindowAttention`), "linear"
            (`niwaki.layers.linear_attention.LinearAttention`, whose feature maps begin as the identity and are to be
            learnt) or "nystrom" (`niwaki.layers.nystrom.NystromAttention`); of a decoder "hybrid"
            (`niwaki.layers.hybrid.HybridAttention`).
        window: of "window" and "hybrid": a token sees those less than this away.
        global_tokens: of "window": how many first tokens see all, and are seen by all.
        features: of "linear" and "hybrid": the kind of feature map.
        landmarks: of "nystrom": how many there are in a text.
    """
    refuse_dropping(model, "attend")
    part = layer_at(model, layer)
    if isinstance(part.attention, EmptyAttention):
        raise NiwakiError(f"layer {layer} has no heads", expected="a layer that attends")
    if part.family.pre_norm != (by in OF_DECODERS):
        fitting = [kind for kind in SETTINGS if part.family.pre_norm == (kind in OF_DECODERS)]
        raise NiwakiError(f"by is {by!r}, of a {part.family.name}", expected=" or ".join(fitting))
    if by == "window" and not 0 <= global_tokens <= window:
        raise NiwakiError(f"global_tokens is {global_tokens}", expected=f"0 to {window}, the window")
    given = {"window": window, "global_tokens": global_tokens, "features": features, "landmarks": landmarks}
    settings = {name: given[name] for name in SETTINGS[by]}
    _put_mechanism(model, part, build(by, part.heads, part.head_size, part.key_value_heads, **settings))


def _put_mechanism(model: nn.Module, layer: Layer, mechanism: Mechanism) -> None:
    """Stand a mechanism in a layer's attention, and tell Transformers to ask it."""
    register()
    layer.attention.mechanism = mechanism.train(model.training).to(next(layer.module.parameters()).device)
    config: Any = model.config
    config._attn_implementation = IMPLEMENTATION
    for part in anatomy_of(model).layers:  # a layer that was copied has a config of its own
        if hasattr(part.attention, "config"):
            part.attention.config._attn_implementation = IMPLEMENTATION  # type: ignore[union-attr]


@edit
def extend_positions(model: nn.Module, *, tokens: int, fill: Literal["copied", "interpolated"] = "copied") -> None:
    """Let a model read more tokens: its table of positions gets longer.

    "copied" sets the table behind itself again and again: what the model read before it reads as before, and beyond,
    near tokens keep their distances. "interpolated" stretches it: every position moves, and training must follow.

    Args:
        model: an encoder of a known family; a decoder has no such table.
        tokens: how many it is to read, more than now.
        fill: "copied" or "interpolated".

    References:
        Beltagy et al. 2020, Longformer, section 5 (copied).
    """
    embeddings: Any = anatomy_of(model).embeddings
    if not hasattr(embeddings, "position_embeddings"):
        raise NiwakiError(
            f"a {type(model).__name__} has no table of positions", expected="an encoder, whose positions are learnt"
        )
    table = as_table(embeddings.position_embeddings, "the table of positions")
    before = first_position(model)
    reads = table.num_embeddings - before
    if tokens <= reads:
        raise NiwakiError(f"tokens is {tokens}", expected=f"more than {reads}, which the model reads now")
    head_D, rows_TD = table.weight.detach().split([before, reads])
    wide_TD = torch.cat([head_D, _filled(rows_TD, tokens, fill)])
    table.weight = nn.Parameter(wide_TD, table.weight.requires_grad)
    table.num_embeddings = len(wide_TD)
    model.config.max_position_embeddings = len(wide_TD)  # type: ignore[union-attr]
    for name in ("position_ids", "token_type_ids"):
        if isinstance(ids := getattr(embeddings, name, None), Tensor):
            longer_1T = torch.arange(len(wide_TD), device=ids.device)[None]
            setattr(embeddings, name, longer_1T if name == "position_ids" else torch.zeros_like(longer_1T))


def _filled(rows_TD: Tensor, tokens: int, fill: str) -> Tensor:
    """Return a table of so many rows, made of a shorter one."""
    if fill == "copied":
        times = -(-tokens // len(rows_TD))
        return rows_TD.repeat(times, 1)[:tokens]
    stretched_1DT = nn.functional.interpolate(rows_TD.T[None], size=tokens, mode="linear", align_corners=True)
    return stretched_1DT[0].T.contiguous()
