"""Attention in less than quadratic time and memory: what `swap_attention` puts beside a layer's projections.

A mechanism stands as `mechanism` in the attention module of a layer. That module keeps its class and its linears, so
that all that prunes, packs or factors them finds them where they were; Transformers asks `answer`, below, what to do
with queries, keys and values. No tensor with a token in each of two dimensions is made, the mask included.
"""

# B batch, T tokens, Q queries, K keys, H heads, S width of a head, D = H S, N blocks, W window, G global tokens
# of decoders: K key and value heads

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Name of the implementation, in `config._attn_implementation` of a model whose attention was swapped.
IMPLEMENTATION = "niwaki"


class Mechanism(nn.Module, ABC):
    """Go from queries, keys and values to what the output projection reads.

    Attributes:
        heads: how many stand side by side in the last dimension.
        form: the name of its kind, and the parameters of that; see `niwaki.layers.kinds.build`.
        first_alone: whether the first token's answer can be had without the other tokens' queries.
    """

    heads: int
    form: tuple[str, dict[str, Any]] = ("", {})
    first_alone: bool = True

    @abstractmethod
    def forward(
        self,
        query_BTD: Tensor,
        key_BTD: Tensor,
        value_BTD: Tensor,
        real_BT: Tensor,
        scaling: float,
        dropout: float = 0.0,
    ) -> Tensor:
        """Return the answers of all tokens (B, T, D); a token that is padding is never looked at."""

    def first(self, query_B1D: Tensor, key_BTD: Tensor, value_BTD: Tensor, real_BT: Tensor, scaling: float) -> Tensor:
        """Return the answer of the first token alone, (B, 1, D); by default, of one that sees all."""
        return attend(query_B1D, key_BTD, value_BTD, real_BT[:, None, None, :], self.heads, scaling)

    def exact(
        self,
        query_BTD: Tensor,
        key_BTD: Tensor,
        value_BTD: Tensor,
        real_BT: Tensor,
        scaling: float,
        dropout: float = 0.0,
    ) -> Tensor:
        """Return the answers of the attention in whose place this one stands (B, T, D)."""
        return attend(query_BTD, key_BTD, value_BTD, real_BT[:, None, None, :], self.heads, scaling, dropout)

    def keep_heads(self, heads: Sequence[int]) -> None:
        """Keep what belongs to these heads."""
        self.heads = len(heads)


class WindowAttention(Mechanism):
    """Let each token see those less than `window` away on both sides, and some that see, and are seen by, all.

    An input of up to `window` tokens is attended to in full. A longer one is cut into blocks of W tokens, and the
    queries of a block meet the keys of the block before, their own and the next: 3 W + G keys each.

    Args:
        heads: number of heads.
        window: W, at least 1.
        global_tokens: G, the first tokens of the input, at most W.

    References:
        Beltagy et al. 2020, Longformer, section 3.1.
    """

    def __init__(self, heads: int, window: int, global_tokens: int) -> None:
        super().__init__()
        self.heads, self.window, self.global_tokens = heads, window, global_tokens
        self.first_alone = global_tokens > 0

    def forward(
        self,
        query_BTD: Tensor,
        key_BTD: Tensor,
        value_BTD: Tensor,
        real_BT: Tensor,
        scaling: float,
        dropout: float = 0.0,
    ) -> Tensor:
        """Return the answers of all tokens (B, T, D)."""
        mask_B11T = real_BT[:, None, None, :]
        if not torch.compiler.is_exporting() and query_BTD.shape[1] <= self.window:  # a graph serves all lengths
            return attend(query_BTD, key_BTD, value_BTD, mask_B11T, self.heads, scaling, dropout)
        near_BTD = self._near(query_BTD, key_BTD, value_BTD, real_BT, scaling, dropout)
        # By index: of a slice a traced graph would keep a formula of the length, which grows with every layer.
        place_T = torch.arange(query_BTD.shape[1], device=query_BTD.device)
        if not self.global_tokens:
            return near_BTD.index_select(1, place_T)
        first_BGD = first_of(query_BTD, self.global_tokens)
        mask_B1GT = mask_B11T.expand(-1, -1, self.global_tokens, -1)
        far_BGD = attend(first_BGD, key_BTD, value_BTD, mask_B1GT, self.heads, scaling, dropout)
        return torch.cat([far_BGD, near_BTD[:, self.global_tokens :]], dim=1).index_select(1, place_T)

    def _near(
        self, query_BTD: Tensor, key_BTD: Tensor, value_BTD: Tensor, real_BT: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        """Return the answers of tokens that see their window and the global tokens, and of what fills up blocks."""
        batch, _, width = query_BTD.shape
        query_BNWD = in_blocks(query_BTD, self.window)
        key_BNKD, value_BNKD = (self._seen(states_BTD, query_BNWD.shape[1]) for states_BTD in (key_BTD, value_BTD))
        mask_BNWK = self._mask(real_BT, query_BNWD.shape[1])
        near = attend(
            query_BNWD.flatten(0, 1),
            key_BNKD.flatten(0, 1),
            value_BNKD.flatten(0, 1),
            mask_BNWK.flatten(0, 1)[:, None],
            self.heads,
            scaling,
            dropout,
        )
        return near.reshape(batch, -1, width)

    def _seen(self, states_BTD: Tensor, blocks: int) -> Tensor:
        """Return, for each block, the states of the three blocks that it sees, and those of the global tokens."""
        near_BNKD = neighbours(states_BTD, self.window)
        if not self.global_tokens:
            return near_BNKD
        far_BNGD = first_of(states_BTD, self.global_tokens)[:, None].expand(-1, blocks, -1, -1)
        return torch.cat([near_BNKD, far_BNGD], dim=2)

    def _mask(self, real_BT: Tensor, blocks: int) -> Tensor:
        """Return which keys each query of a block may see, (B, N, W, K).

        A token sees itself even where it is padding: a row without any key would be no number, and spread.
        """
        place_W = torch.arange(self.window, device=real_BT.device)
        place_K = torch.arange(3 * self.window, device=real_BT.device) - self.window
        distance_WK = place_W[:, None] - place_K
        place_T = torch.arange(real_BT.shape[1], device=real_BT.device)
        others_BT = real_BT & (place_T >= self.global_tokens)  # those that see all are seen as such, and once
        seen_BNK = neighbours(others_BT[:, :, None], self.window)[..., 0]
        near_BNWK = (distance_WK.abs() < self.window) & seen_BNK[:, :, None]
        if not self.global_tokens:
            return near_BNWK | (distance_WK == 0)
        far_BG = first_of(real_BT[:, :, None], self.global_tokens)[..., 0]
        far_BNWG = far_BG[:, None, None].expand(-1, blocks, self.window, -1)
        return torch.cat([near_BNWK, far_BNWG], dim=3)


def attend(
    query_BQD: Tensor,
    key_BTD: Tensor,
    value_BTD: Tensor,
    mask_B1QT: Tensor,
    heads: int,
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:
    """Return softmax(Q K' * scaling) V over the tokens where the mask is true, (B, Q, D)."""
    if torch.onnx.is_in_onnx_export():
        # The ONNX operator takes heads side by side and spares four transpositions (a tenth of the time at batch 1).
        output = torch.onnx.ops.attention(
            query_BQD, key_BTD, value_BTD, mask_B1QT, q_num_heads=heads, kv_num_heads=heads, scale=scaling
        )
        return output[0]
    query, key, value = (apart(tensor, heads) for tensor in (query_BQD, key_BTD, value_BTD))
    context = functional.scaled_dot_product_attention(query, key, value, mask_B1QT, dropout, scale=scaling)
    return side_by_side(context)


def attend_to_past(
    query_BHQS: Tensor,
    key_BKTS: Tensor,
    value_BKTS: Tensor,
    real_BT: Tensor,
    scaling: float,
    dropout: float = 0.0,
    window: int | None = None,
) -> Tensor:
    """Return softmax(Q K' * scaling) V of the last Q tokens, each over the tokens up to itself, (B, H, Q, S).

    Args:
        query_BHQS: of the last Q tokens.
        key_BKTS: of all T; K divides H, where heads share keys and values.
        value_BKTS: of all T.
        real_BT: false for padding, on whatever side. A token that would see nothing sees itself.
        scaling: of the products.
        dropout: of the weights.
        window: a token sees the last so many alone; all when None.
    """
    queries, keys = query_BHQS.shape[2], key_BKTS.shape[2]
    grouped = query_BHQS.shape[1] != key_BKTS.shape[1]
    settings: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "enable_gqa": grouped}
    if queries == keys and (window is None or window >= keys) and bool(real_BT.all()):
        return functional.scaled_dot_product_attention(query_BHQS, key_BKTS, value_BKTS, is_causal=True, **settings)
    place_T = torch.arange(keys, device=key_BKTS.device)
    distance_QT = place_T[keys - queries :, None] - place_T
    seen_QT = (distance_QT >= 0) & (distance_QT < (window or keys))
    mask_B1QT = seen_QT & real_BT[:, None, None, :]
    alone_B1Q1 = ~mask_B1QT.any(dim=-1, keepdim=True)  # of padding on the left: a row without any key is no number
    mask_B1QT = mask_B1QT | (alone_B1Q1 & (distance_QT == 0))
    return functional.scaled_dot_product_attention(query_BHQS, key_BKTS, value_BKTS, mask_B1QT, **settings)


def apart(states_BTD: Tensor, heads: int) -> Tensor:
    """Return (B, T, D) as (B, H, T, S)."""
    return cast(Tensor, states_BTD.unflatten(-1, (heads, -1)).transpose(1, 2))


def side_by_side(states_BHTS: Tensor) -> Tensor:
    """Return (B, H, T, S) as (B, T, D)."""
    return states_BHTS.transpose(1, 2).flatten(2)


def in_blocks(states_BTD: Tensor, width: int) -> Tensor:
    """Cut tokens into blocks of `width`, (B, N, W, D); the last is filled up with 0."""
    tokens = states_BTD.shape[1]
    filler = (tokens + width - 1) // width * width - tokens  # a remainder has no operator in OpenVINO
    return cast(Tensor, functional.pad(states_BTD, (0, 0, 0, filler)).unflatten(1, (-1, width)))


def first_of(states_BTD: Tensor, count: int) -> Tensor:
    """Return the first tokens, (B, count, D), filled up with 0 where there are fewer.

    >>> [first_of(torch.tensor([[[1], [2]]]), count)[..., 0].tolist() for count in (3, 1)]
    [[[1, 2, 0]], [[1]]]
    """
    return functional.pad(states_BTD[:, :count], (0, 0, 0, count))[:, :count]


def neighbours(states_BTD: Tensor, width: int) -> Tensor:
    """Return the states of each block and of the ones before and after it, (B, N, 3 W, D); beyond the ends are zeros.

    >>> neighbours(torch.tensor([[[1], [2], [3]]]), width=2)[..., 0].tolist()
    [[[0, 0, 1, 2, 3, 0], [1, 2, 3, 0, 0, 0]]]
    """
    around_BTD = functional.pad(states_BTD, (0, 0, width, width))
    blocks_BNWD = in_blocks(around_BTD, width)
    return torch.cat([blocks_BNWD[:, :-2], blocks_BNWD[:, 1:-1], blocks_BNWD[:, 2:]], dim=2)


def mechanisms_of(model: nn.Module) -> Iterator[tuple[nn.Module, Mechanism]]:
    """Yield each attention module that has a mechanism, and the mechanism."""
    for module in model.modules():
        mechanism = getattr(module, "mechanism", None)
        if isinstance(mechanism, Mechanism):
            yield module, mechanism


def register() -> None:
    """Make the implementation known to Transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, answer)
    AttentionMaskInterface.register(IMPLEMENTATION, padding_alone)


def padding_alone(*, attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
    """Return the mask (B, 1, 1, T) of a padding mask (B, T): a row for each query would be quadratic."""
    return None if attention_mask is None else attention_mask[:, None, None, :]


def answer(
    module: nn.Module,
    query_BHTS: Tensor,
    key_BKTS: Tensor,
    value_BKTS: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return what a layer's mechanism answers, (B, T, H, S), and no weights; without one, attend in full."""
    mechanism = getattr(module, "mechanism", None)
    tokens = key_BKTS.shape[2]
    if attention_mask is None:
        real_BT = torch.ones(key_BKTS.shape[0], tokens, dtype=torch.bool, device=key_BKTS.device)
    else:
        real_BT = attention_mask[:, 0, 0]
        if real_BT.shape[1] != tokens:  # a cache gives the last tokens alone
            real_BT = real_BT[:, -tokens:]
    states = (query_BHTS, key_BKTS, value_BKTS)
    if mechanism is not None:
        answer_BTD = mechanism(*(side_by_side(one) for one in states), real_BT, scaling, dropout)
        return answer_BTD.unflatten(-1, (mechanism.heads, -1)), None
    if getattr(module, "is_causal", False):
        context_BHTS = attend_to_past(*states, real_BT, scaling, dropout, sliding_window)
    else:
        context_BHTS = functional.scaled_dot_product_attention(*states, attention_mask, dropout, scale=scaling)
    return context_BHTS.transpose(1, 2), None
