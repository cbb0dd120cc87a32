"""Attention of decoders: exact over the last tokens, linear over all before, in time and memory that grow with length.

Written in blocks it answers for a whole text at once; with what it remembers of the tokens before (`Past`, which is as
large after ten of them as after ten thousand) it answers for one token more.
"""

# B batch, T tokens, Q queries, H heads, K key and value heads, S width of a head, D = H S (of keys and values K S)
# G = H / K, X = B K, F features, W window, U = W + T, N blocks, R = min(W, T) rows of a block, P = G R, C = W + R

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from niwaki.layers.attention import Mechanism, apart, attend_to_past, in_blocks, side_by_side
from niwaki.layers.linear_attention import FeatureMap

#: What the share of the window begins as: sigmoid(-2.197) is 0.1.
SHARE = -2.197


@dataclass(frozen=True)
class Past:
    """Hold what a layer remembers of the tokens before.

    Attributes:
        keys, values: of the last W tokens, (B, K, W, S).
        real: which of these are tokens, (B, W).
        state: of all earlier tokens, the sum of features times values, (B, K, F, S).
        total: the sum of their features, (B, K, F).
    """

    keys: Tensor
    values: Tensor
    real: Tensor
    state: Tensor
    total: Tensor

    def select(self, rows: Tensor) -> Past:
        """Return the past of these rows of the batch."""
        return Past(*(tensor.index_select(0, rows.to(tensor.device)) for tensor in self.tensors))

    @property
    def tensors(self) -> list[Tensor]:
        """Return all of it."""
        return [getattr(self, field.name) for field in fields(self)]


class Memory(Protocol):
    """Keep a past from one call to the next."""

    past: Past | None


class HybridAttention(Mechanism):
    """See the last `window` tokens, itself among them, by a softmax, and all earlier ones through learnt features.

    y_i = (g sum_near e_ij v_j + sum_far f_ij v_j) / (g sum_near e_ij + sum_far f_ij), near 0 <= i - j < W, far the
    rest; e_ij = exp(q_i k_j / sqrt(S) - c_i) with c_i the largest near score, f_ij = phi(q_i) phi(k_j), and g =
    sigmoid(share), learnt for each head. A text of up to `window` tokens is attended to as before. Heads that share a
    key and value head share the features of its keys, and so the sums over them.

    Args:
        heads: H.
        head_size: S.
        key_value_heads: K, which divides H.
        window: W, at least 1.
        features: "hedgehog" or "t2r", see `FeatureMap`.

    References:
        Zhang et al. 2025, LoLCATs, section 3. Katharopoulos et al. 2020, Transformers are RNNs, section 3.4.
    """

    first_alone = False

    def __init__(self, heads: int, head_size: int, key_value_heads: int, window: int, features: str) -> None:
        super().__init__()
        self.heads, self.key_value_heads, self.window = heads, key_value_heads, window
        self.query_map = FeatureMap(heads, head_size, features)
        self.key_map = FeatureMap(key_value_heads, head_size, features)
        self.share = nn.Parameter(torch.full((heads,), SHARE))
        #: What the next call, and no other, reads and leaves its past in: a cache puts it here.
        self.memory: Memory | None = None

    def forward(
        self,
        query_BTD: Tensor,
        key_BTD: Tensor,
        value_BTD: Tensor,
        real_BT: Tensor,
        scaling: float,
        dropout: float = 0.0,
    ) -> Tensor:
        """Return the answers (B, Q, D) of the queries, which are those of the last Q tokens."""
        memory, self.memory = self.memory, None
        if memory is None and key_BTD.shape[1] <= self.window:
            return self.exact(query_BTD, key_BTD, value_BTD, real_BT, scaling, dropout)
        with torch.autocast(query_BTD.device.type, enabled=False):  # thousands of small numbers are added up
            query = apart(query_BTD, self.heads).float()
            key, value = (apart(states, self.key_value_heads).float() for states in (key_BTD, value_BTD))
            absent = key.shape[2] - query.shape[2]  # of tokens before, in a cache that grows: not asked for again
            query = functional.pad(query, (0, 0, absent, 0))
            past = memory.past if memory is not None and memory.past is not None else self._nothing(key)
            answer_BHTS, after = self._answer(query, key, value, real_BT, past, scaling)
        if memory is not None:
            memory.past = after
        return side_by_side(answer_BHTS[:, :, absent:]).to(value_BTD.dtype)

    def exact(
        self,
        query_BTD: Tensor,
        key_BTD: Tensor,
        value_BTD: Tensor,
        real_BT: Tensor,
        scaling: float,
        dropout: float = 0.0,
    ) -> Tensor:
        """Return the answers of a softmax over all tokens up to each (B, Q, D)."""
        query, key = apart(query_BTD, self.heads), apart(key_BTD, self.key_value_heads)
        value = apart(value_BTD, self.key_value_heads)
        return side_by_side(attend_to_past(query, key, value, real_BT, scaling, dropout))

    def keep_heads(self, heads: Sequence[int]) -> None:
        """Keep what belongs to these heads, and to the key and value heads that they share."""
        groups = sorted({head * self.key_value_heads // self.heads for head in heads})
        super().keep_heads(heads)
        self.key_value_heads = len(groups)
        self.query_map.keep_heads(heads)
        self.key_map.keep_heads(groups)
        index = torch.tensor(heads, device=self.share.device)
        self.share = nn.Parameter(self.share.detach().index_select(0, index), self.share.requires_grad)

    def _nothing(self, key_BKTS: Tensor) -> Past:
        """Return the past of a text's first token."""
        batch, heads, _, width = key_BKTS.shape
        window = key_BKTS.new_zeros(batch, heads, self.window, width)
        state = key_BKTS.new_zeros(batch, heads, self.key_map.features, width)
        real_BW = torch.zeros(batch, self.window, dtype=torch.bool, device=key_BKTS.device)
        return Past(window, window, real_BW, state, state[..., 0])

    def _answer(
        self, query_BHTS: Tensor, key_BKTS: Tensor, value_BKTS: Tensor, real_BT: Tensor, past: Past, scaling: float
    ) -> tuple[Tensor, Past]:
        """Return the answers (B, H, T, S), and the past of the token after these.

        A block of queries meets the keys of the block before and its own: those near by the softmax, the far ones of
        the block before by features. For all earlier blocks stand sums, which are added up from block to block.
        """
        batch, _, tokens, _ = query_BHTS.shape
        rows = min(self.window, tokens)
        number = -(-tokens // rows)
        key_BKUS, value_BKUS = torch.cat([past.keys, key_BKTS], dim=2), torch.cat([past.values, value_BKTS], dim=2)
        real_BU = torch.cat([past.real, real_BT], dim=1)
        seen_BKUF = self.key_map(key_BKUS * scaling**0.5) * real_BU[:, None, :, None]

        near_XNCS, value_XNCS = (self._near(states, rows, number) for states in (key_BKUS, value_BKUS))
        real_BKU1 = real_BU[:, None, :, None].expand(-1, self.key_value_heads, -1, -1)
        real_XN1C = self._near(real_BKU1, rows, number).mT
        query_XNPS = self._together(query_BHTS * scaling, rows)
        asked_XNPF = self._together(self.query_map(query_BHTS * scaling**0.5), rows)

        distance_RC = self._distance(rows, key_BKTS.device)
        mask_XNRC = (distance_RC >= 0) & (distance_RC < self.window) & real_XN1C | (distance_RC == 0)
        scores_XNGRC = (query_XNPS @ near_XNCS.mT).unflatten(2, (-1, rows))
        scores_XNGRC = scores_XNGRC.masked_fill(~mask_XNRC[:, :, None], -torch.inf)
        weights_XNGRC = (scores_XNGRC - scores_XNGRC.amax(dim=-1, keepdim=True)).exp() * self._shares(batch)

        before_XNWF = in_blocks(seen_BKUF.flatten(0, 1), self.window)[:, :number]
        linear_XNGRW = (asked_XNPF @ before_XNWF.mT).unflatten(2, (-1, rows))
        linear_XNGRW = linear_XNGRW * (distance_RC[:, : self.window] >= self.window)
        weights_XNPC = (weights_XNGRC + functional.pad(linear_XNGRW, (0, rows))).flatten(2, 3)

        added_XNFS = before_XNWF[:, :-1].mT @ value_XNCS[:, :-1, : self.window]
        state_XNFS = torch.cat([past.state.flatten(0, 1)[:, None], added_XNFS], dim=1).cumsum(dim=1)
        total_XNF = torch.cat([past.total.flatten(0, 1)[:, None], before_XNWF[:, :-1].sum(dim=2)], dim=1).cumsum(dim=1)
        above_XNPS = weights_XNPC @ value_XNCS + asked_XNPF @ state_XNFS
        below_XNP1 = weights_XNPC.sum(dim=-1, keepdim=True) + asked_XNPF @ total_XNF[..., None]

        leaving_BKTF, leaving_BKTS = seen_BKUF[:, :, :tokens], value_BKUS[:, :, :tokens]
        after = Past(
            key_BKUS[:, :, tokens:],
            value_BKUS[:, :, tokens:],
            real_BU[:, tokens:],
            past.state + leaving_BKTF.mT @ leaving_BKTS,
            past.total + leaving_BKTF.sum(dim=2),
        )
        return self._apart(above_XNPS / below_XNP1, batch, rows)[:, :, :tokens], after

    def _near(self, states_BKUS: Tensor, rows: int, number: int) -> Tensor:
        """Return the states of the block before each, and of its own, (X, N, C, S)."""
        states_XUS = states_BKUS.flatten(0, 1)
        before_XNWS = in_blocks(states_XUS, self.window)[:, :number]
        return torch.cat([before_XNWS, in_blocks(states_XUS[:, self.window :], rows)], dim=2)

    def _together(self, states_BHTS: Tensor, rows: int) -> Tensor:
        """Return blocks in which heads that share a key and value head stand below each other, (X, N, P, S)."""
        group = self.heads // self.key_value_heads
        states_XGNRS = in_blocks(states_BHTS.flatten(0, 1), rows).unflatten(0, (-1, group))
        return cast(Tensor, states_XGNRS.transpose(1, 2).flatten(2, 3))

    def _apart(self, states_XNPS: Tensor, batch: int, rows: int) -> Tensor:
        """Undo `_together`, (B, H, N R, S)."""
        states_XGNRS = states_XNPS.unflatten(2, (-1, rows)).transpose(1, 2)
        return cast(Tensor, states_XGNRS.flatten(2, 3).flatten(0, 1).unflatten(0, (batch, -1)))

    def _distance(self, rows: int, device: torch.device) -> Tensor:
        """Return how far before each query of a block the keys stand that it meets, (R, C)."""
        place_R = torch.arange(rows, device=device)
        return place_R[:, None] + self.window - torch.arange(self.window + rows, device=device)

    def _shares(self, batch: int) -> Tensor:
        """Return the share of the window by head, (X, 1, G, 1, 1)."""
        share_KG = self.share.sigmoid().unflatten(0, (self.key_value_heads, -1))
        return cast(Tensor, share_KG.repeat(batch, 1)[:, None, :, None, None])
