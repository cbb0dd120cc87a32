"""Token dropping: layers that let go of the tokens to which little attention is paid, so that later ones have fewer.

A `TokenDropper` stands as `dropper` in the attention of a layer and in the norm behind it. The attention tells it how
much attention each token received; it chooses, and the norm lets those that stay through, in their order and at the
front. What is left of a batch is as long as the longest row. The mask that Transformers hands to all layers of a pass
is thinned in place, so that whoever comes later knows which tokens are there.
"""

# B batch, T tokens, Q of them that ask, K tokens that stay in the longest row, H heads, S width of a head, D hidden

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Name of the implementation, in `config._attn_implementation` of a model that drops tokens.
IMPLEMENTATION = "niwaki-dropping"
#: Tokens have a place number by which they are put in order; none has one as high as this.
MOST_TOKENS = 2**24
#: Of a token: how far a share times a whole number may be rounded up before it counts as one more.
SLACK = 1e-3
#: Shares of attention that a CPU computes at once in PyTorch: 8 MB stay near, and memory for more is slow to get.
AT_ONCE = 2**21

By = Literal["threshold", "share"]
#: What a dropper does: take tokens out; leave them, unseen by later layers; or nothing at all.
Form = Literal["cropped", "masked", "off"]


class TokenDropper(nn.Module):
    """Choose which tokens stay behind one layer.

    The first token always stays, for the head reads it; padding never does. A row of fewer tokens than `from_length`
    keeps all.

    Args:
        by: "threshold", a token stays whose score is at least `level`; "share", the ceil(level * n) tokens of a row
            of n with the highest scores stay, and those with the very same score as the last of them.
        level: a score in [0, 1], or a share in (0, 1].
        from_length: tokens of a row, padding not counted.

    Attributes:
        form: what is done with tokens that do not stay.
        kept_B: how many tokens of each row stayed in the last pass; None where it had no need to look.
        margin_B: in the last pass, how far the closest score of a row was from where it is decided, as a share of that.

    References:
        Kim et al. 2022, Learned Token Pruning for Transformers, section 3 (thresholds).
        Goyal et al. 2020, PoWER-BERT (how many stay). Kim and Cho 2021, Length-Adaptive Transformer, LengthDrop (as a
        share of those that came).
    """

    def __init__(self, by: By, level: float, from_length: int = 0) -> None:
        super().__init__()
        self.by, self.level, self.from_length = by, level, from_length
        self.form: Form = "cropped"
        self.kept_B: Tensor | None = None
        self.margin_B: Tensor | None = None
        self._index_BK: Tensor | None = None

    def is_idle(self, tokens: int) -> bool:
        """Say whether nothing is to be looked at in rows of up to so many tokens."""
        idle = self.form == "off" or (tokens < self.from_length and not torch.compiler.is_exporting())
        if idle:
            self.kept_B = self.margin_B = None
        return idle

    def forward(self, scores_BT: Tensor, real_BT: Tensor) -> Tensor:
        """Return which tokens stay, (B, T), by how much attention each received; who watches it sees both.

        >>> scores, real = torch.tensor([[0.1, 0.2, 0.4, 0.3, 0.0]]), torch.tensor([[True, True, True, True, False]])
        >>> TokenDropper("share", 0.5)(scores, real).tolist()
        [[True, False, True, False, False]]
        >>> TokenDropper("threshold", 0.25)(scores, real).tolist()
        [[True, False, True, True, False]]
        """
        place_T = torch.arange(scores_BT.shape[1], device=scores_BT.device)
        ranked_BT = scores_BT.masked_fill(place_T == 0, math.inf).masked_fill(~real_BT, -math.inf)
        count_B = real_BT.sum(dim=1)
        cut_B = self._cut(ranked_BT, count_B)
        if self.from_length:
            cut_B = cut_B.masked_fill(count_B < self.from_length, -math.inf)
        stays_BT = real_BT & (ranked_BT >= cut_B[:, None])
        if not torch.compiler.is_exporting():
            self.kept_B = stays_BT.sum(dim=1)
            apart_B = (ranked_BT - cut_B[:, None]).detach().abs().nan_to_num(nan=math.inf).amin(dim=1)
            self.margin_B = torch.where(cut_B.isfinite(), apart_B / cut_B.detach().abs().clamp_min(1e-9), math.inf)
        return stays_BT

    def _cut(self, ranked_BT: Tensor, count_B: Tensor) -> Tensor:
        """Return the score from which on tokens of a row stay, (B,)."""
        if self.by == "threshold":
            return torch.full_like(ranked_BT[:, 0], self.level)
        stay_B = (count_B * self.level - SLACK).ceil().clamp_min(1).to(torch.int64)
        falling_BT = ranked_BT.sort(dim=1, descending=True).values
        last_B = falling_BT.gather(1, stay_B[:, None] - 1)[:, 0]
        next_B = falling_BT.gather(1, stay_B[:, None].clamp_max(ranked_BT.shape[1] - 1))[:, 0]
        # in the middle between the last that stays and the first that goes: rounding moves neither across
        return torch.where(stay_B < count_B, (last_B + next_B) / 2, -math.inf)

    def choose(self, scores_BT: Tensor, mask_B11T: Tensor) -> None:
        """Choose by scores, and thin the mask of the pass, whose first T entries they belong to."""
        tokens = scores_BT.shape[1]
        stays_BT: Tensor = self(scores_BT, mask_B11T[:, 0, 0, :tokens])
        if self.form == "masked":
            mask_B11T[:, 0, 0, :tokens] = stays_BT
            return
        self._index_BK = to_front(stays_BT)
        mask_B11T[:, 0, 0, : self._index_BK.shape[1]] = stays_BT.gather(1, self._index_BK)

    def take(self, states_BTD: Tensor) -> Tensor:
        """Return the states of what stays, (B, K, D), where the attention before has chosen; else those given."""
        index_BK, self._index_BK = self._index_BK, None
        return states_BTD if index_BK is None else taken(states_BTD, index_BK)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy takes over: nothing of the last pass."""
        return {**self.__dict__, "kept_B": None, "margin_B": None, "_index_BK": None}

    def extra_repr(self) -> str:
        """Return the rule in short."""
        return f"{self.by} {self.level:g}" + (f", from {self.from_length} tokens" if self.from_length else "")


class DroppingNorm(nn.LayerNorm):
    """Normalise what stays of the tokens, behind the attention of a layer that drops some."""

    dropper: TokenDropper

    def forward(self, states_BTD: Tensor) -> Tensor:
        """Return (B, K, D)."""
        return super().forward(self.dropper.take(states_BTD))


@torch.library.custom_op("niwaki::to_front", mutates_args=())
def to_front(stays_BT: Tensor) -> Tensor:
    """Return (B, K), the places of the tokens that stay, in their order, and behind them of others, to fill rows up.

    >>> to_front(torch.tensor([[True, False, True, False], [True, False, False, False]])).tolist()
    [[0, 2], [0, 1]]
    """
    tokens = stays_BT.shape[1]
    longest = max(1, int(stays_BT.sum(dim=1).amax()))  # a batch that is all padding has a first token too
    place_T = torch.arange(tokens, device=stays_BT.device)
    order_BT = stays_BT.to(torch.int64) * MOST_TOKENS - place_T
    return order_BT.topk(longest, dim=1).indices


@to_front.register_fake
def _(stays_BT: Tensor) -> Tensor:
    longest = torch.library.get_ctx().new_dynamic_size(min=1)
    return stays_BT.new_empty(stays_BT.shape[0], longest, dtype=torch.int64)


def taken(states_BTD: Tensor, index_BK: Tensor) -> Tensor:
    """Return the states of these tokens, (B, K, D)."""
    return states_BTD.gather(1, index_BK[:, :, None].expand(-1, -1, states_BTD.shape[2]))


def attend_and_score(
    query_BHTS: Tensor,
    key_BHTS: Tensor,
    value_BHTS: Tensor,
    real_BT: Tensor,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the attention's answer (B, H, T, S), and how much attention each token received, (B, T).

    s_i = 1 / (H n) sum over heads and the n tokens j of the row of A_ji, the share of j's attention that goes to i. The
    scores of a row sum to 1; those of padding are 0.

    On a CPU in PyTorch no more than 2 million A_ji are there at once, so that without a way back memory grows with T.

    References:
        Kim et al. 2022, Learned Token Pruning for Transformers, section 3, the importance score.
    """
    states = (query_BHTS, key_BHTS, value_BHTS, real_BT)
    attended = partial(_attended, scaling=scaling, dropout=dropout)
    in_blocks = query_BHTS.is_cpu and not torch.compiler.is_exporting()
    answer_BHTS, given_BT = _in_blocks(attended, *states) if in_blocks else attended(*states, real_BT)
    return answer_BHTS, given_BT / (query_BHTS.shape[1] * real_BT.sum(dim=1, keepdim=True).clamp_min(1))


def _in_blocks(
    attended: Callable[..., tuple[Tensor, Tensor]], query_BHTS: Tensor, *others: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what `_attended` does, some rows after the other, and where one is too large, some of its tokens.

    Args:
        attended: of the states, and which of the tokens that ask are there.
        query_BHTS: of all tokens.
        others: key_BHTS, value_BHTS and real_BT.
    """
    _, heads, tokens, _ = query_BHTS.shape
    rows = max(1, AT_ONCE // (heads * tokens * tokens))
    asking = tokens if rows > 1 else max(1, AT_ONCE // (heads * tokens))
    # in one piece, or each product would copy what all blocks of a row read
    inputs = (query_BHTS, *(one.contiguous() for one in others))
    found = []
    for query, key, value, real in zip(*(one.split(rows) for one in inputs), strict=True):
        # room for all before the blocks: what is asked for between them would cut up the memory that they leave
        answer, given = torch.empty_like(query), torch.zeros(real.shape, device=real.device)
        for at in range(0, tokens, asking):
            block = slice(at, at + asking)
            answer[:, :, block], more = attended(query[:, :, block], key, value, real, real[:, block])
            given += more
        found.append((answer, given))
    answers_BHTS, given_BT = (torch.cat(parts) for parts in zip(*found, strict=True))
    return answers_BHTS, given_BT


def _attended(
    query_BHQS: Tensor,
    key_BHTS: Tensor,
    value_BHTS: Tensor,
    real_BT: Tensor,
    asks_BQ: Tensor,
    *,
    scaling: float,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Return what some tokens get, (B, H, Q, S), and the attention that they give to each, over heads, (B, T)."""
    # the least number, not -inf: of a row that is all padding a softmax over nothing would be no number
    least = torch.finfo(torch.float32).min
    padding_BT = torch.zeros(real_BT.shape, device=real_BT.device).masked_fill(~real_BT, least)
    products_BHQT = ((query_BHQS * scaling) @ key_BHTS.transpose(-1, -2)).float() + padding_BT[:, None, None, :]
    shares_BHQT = products_BHQT.softmax(dim=-1)
    received_BH1T = asks_BQ[:, None, None, :].to(shares_BHQT.dtype) @ shares_BHQT
    weights_BHQT = functional.dropout(shares_BHQT, dropout, training=dropout > 0)
    return weights_BHQT.to(value_BHTS.dtype) @ value_BHTS, received_BH1T.sum(dim=(1, 2))


def answer(
    module: nn.Module,
    query_BHTS: Tensor,
    key_BHTS: Tensor,
    value_BHTS: Tensor,
    attention_mask: Tensor,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the attention's answer, (B, T, H, S), and no weights; where the layer drops tokens, choose which."""
    dropper: TokenDropper | None = getattr(module, "dropper", None)
    tokens = key_BHTS.shape[2]
    mask_B11T = attention_mask[..., :tokens].clone()  # what is kept for the way back may not be thinned
    states = (query_BHTS, key_BHTS, value_BHTS)
    if dropper is None or dropper.is_idle(tokens):
        context_BHTS = functional.scaled_dot_product_attention(*states, mask_B11T, dropout, scale=scaling)
    else:
        context_BHTS, scores_BT = attend_and_score(*states, mask_B11T[:, 0, 0], scaling, dropout)
        dropper.choose(scores_BT, attention_mask)
    return context_BHTS.transpose(1, 2), None


def mask_of_pass(
    *, batch_size: int, kv_length: int, device: torch.device, attention_mask: Tensor | None = None, **_: Any
) -> Tensor:
    """Return the mask (B, 1, 1, T) that all layers of a pass read and thin, of a padding mask (B, T) or none."""
    if attention_mask is None:
        return torch.ones(batch_size, 1, 1, kv_length, dtype=torch.bool, device=device)
    return attention_mask[:, None, None, :].clone()


def register() -> None:
    """Make the implementation known to Transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, answer)
    AttentionMaskInterface.register(IMPLEMENTATION, mask_of_pass)


def droppers_of(model: nn.Module) -> list[TokenDropper]:
    """Return what drops tokens in a model, from input to output."""
    return [module for module in model.modules() if isinstance(module, TokenDropper)]


@contextlib.contextmanager
def dropping(model: nn.Module, form: Form) -> Iterator[None]:
    """Have all that drops tokens do so in this form while the block lasts."""
    before = [(dropper, dropper.form) for dropper in droppers_of(model)]
    for dropper, _ in before:
        dropper.form = form
    try:
        yield
    finally:
        for dropper, own in before:
            dropper.form = own
