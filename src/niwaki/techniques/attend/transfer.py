"""Teach a layer's new attention what the exact one does, layer by layer, with all else of the model held still."""

# B batch, T tokens, D hidden, H heads, S width of a head

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from niwaki.calibrate import frozen, inputs_of
from niwaki.layers.attention import Mechanism, apart
from niwaki.layers.linear_attention import LinearAttention
from niwaki.losses import scaled_squares

Match = Literal["maps", "outputs"]
Batch = dict[str, Tensor]
#: Attention modules, and the mechanisms that were put into them.
Swapped = Sequence[tuple[nn.Module, Mechanism]]


def transfer(
    model: nn.Module, swapped: Swapped, batches: Sequence[Batch], *, match: Match, passes: int, learning_rate: float
) -> tuple[list[float], list[float]]:
    """Train the weights of the new attentions alone, each on what comes into its layer while they answer exactly.

    Args:
        model: whose attentions were swapped.
        swapped: the new ones; those that have nothing to learn are passed over.
        batches: padded, with an attention mask.
        match: "maps" or "outputs", see `difference`.
        passes: over the batches.
        learning_rate: of Adam.

    Returns:
        The losses of each attention over the first pass and over the last, means over batches.
    """
    with frozen(model), matching(swapped, match) as students:
        learning = [parameter for one in students for parameter in one.own.parameters()]
        for parameter in learning:
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(learning, lr=learning_rate)
        history = [_one_pass(model, batches, students, optimizer) for _ in range(passes)]
    return history[0], history[-1]


def _one_pass(
    model: nn.Module, batches: Sequence[Batch], students: Sequence[Matching], optimizer: torch.optim.Optimizer
) -> list[float]:
    """Step once for each batch; return the mean losses."""
    device = next(model.parameters()).device
    sums = torch.zeros(len(students))
    for batch in batches:
        model(**{name: value.to(device) for name, value in inputs_of(batch).items()})
        losses = torch.stack([one.loss for one in students])
        if losses.requires_grad:  # texts within a window teach nothing
            optimizer.zero_grad(set_to_none=True)
            losses.sum().backward()
            optimizer.step()
        sums += losses.detach().cpu()
    return [float(one) for one in sums / len(batches)]


@contextlib.contextmanager
def matching(swapped: Swapped, match: Match) -> Iterator[list[Matching]]:
    """Let every attention that can learn answer exactly, and note how far it would have been off by itself."""
    places = [(place, one) for place, one in swapped if any(True for _ in one.parameters())]
    students = [Matching(one, match) for _, one in places]
    for (place, _), student in zip(places, students, strict=True):
        place.mechanism = student
    try:
        yield students
    finally:
        for place, one in places:
            place.mechanism = one


class Matching(Mechanism):
    """Answer as exact attention does; `loss` holds how far the own answer was from it."""

    loss: Tensor

    def __init__(self, own: Mechanism, match: Match) -> None:
        super().__init__()
        self.own, self.match, self.heads = own, match, own.heads

    def forward(
        self,
        query_BTD: Tensor,
        key_BTD: Tensor,
        value_BTD: Tensor,
        real_BT: Tensor,
        scaling: float,
        dropout: float = 0.0,
    ) -> Tensor:
        """Return the exact answer (B, T, D)."""
        exact_BTD = self.own.exact(query_BTD, key_BTD, value_BTD, real_BT, scaling)
        if self.match == "maps" and isinstance(self.own, LinearAttention):
            own_BHTT = self.own.weights(query_BTD, key_BTD, real_BT, scaling)
            self.loss = map_difference(
                own_BHTT, exact_weights(query_BTD, key_BTD, real_BT, self.heads, scaling), real_BT
            )
        else:
            own_BTD = self.own(query_BTD, key_BTD, value_BTD, real_BT, scaling)
            self.loss = scaled_squares(own_BTD[real_BT], exact_BTD[real_BT])
        return exact_BTD


def exact_weights(query_BTD: Tensor, key_BTD: Tensor, real_BT: Tensor, heads: int, scaling: float) -> Tensor:
    """Return softmax(Q K' * scaling), (B, H, T, T)."""
    scores_BHTT = apart(query_BTD, heads) @ apart(key_BTD, heads).transpose(-1, -2) * scaling
    return scores_BHTT.masked_fill(~real_BT[:, None, None, :], -torch.inf).softmax(dim=-1)


def map_difference(own_BHTT: Tensor, exact_BHTT: Tensor, real_BT: Tensor) -> Tensor:
    """Return the cross-entropy of attention maps, -sum_j a_j log b_j, mean over heads and tokens that are not padding.

    Source: Zhang et al. 2024, The Hedgehog and the Porcupine, equation 4.
    """
    entropy_BHT = -(exact_BHTT * own_BHTT.clamp_min(1e-6).log()).sum(dim=-1)
    return entropy_BHT.transpose(1, 2)[real_BT].mean()
