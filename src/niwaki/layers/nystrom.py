"""Attention through landmarks: a softmax of low rank, in time and memory that grow with the length."""

# B batch, T tokens, Q queries, H heads, S width of a head, D = H S, L landmarks

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.layers.attention import Mechanism, apart, side_by_side

#: Steps of the iteration towards the pseudo-inverse.
STEPS = 6


class NystromAttention(Mechanism):
    """Attend through the means of `landmarks` segments of each text: softmax(Q K~') softmax(Q~ K~')^+ softmax(Q~ K') V.

    Segments are cut from the tokens that are no padding, so that a text has the same ones in any batch. A text of fewer
    tokens than landmarks has a landmark for each. The convolution that the paper adds is left out: a model that was
    trained without one has no weights for it.

    Args:
        heads: number of heads.
        landmarks: L, at least 1.

    References:
        Xiong et al. 2021, Nystromformer, equations 13 (landmarks) and 14 (pseudo-inverse).
    """

    first_alone = False

    def __init__(self, heads: int, landmarks: int) -> None:
        super().__init__()
        self.heads, self.landmarks = heads, landmarks

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
        with torch.autocast(query_BTD.device.type, enabled=False):
            query, key, value = (apart(states, self.heads).float() for states in (query_BTD, key_BTD, value_BTD))
            share_B1LT, there_BL = self._segments(real_BT)
            query_BHLS, key_BHLS = share_B1LT @ query, share_B1LT @ key
            there_B11L = there_BL[:, None, None, :]
            near_BHTL = _softmax(query * scaling, key_BHLS, there_B11L)
            among_BHLL = _softmax(query_BHLS * scaling, key_BHLS, there_B11L)
            # a landmark that is not there is its own inverse, and touches no other
            alone_LL = torch.eye(self.landmarks, device=among_BHLL.device)
            among_BHLL = torch.where(there_BL[:, None, :, None], among_BHLL, alone_LL)
            seen_BHLS = _softmax(query_BHLS * scaling, key, real_BT[:, None, None, :]) @ value
            answer_BHTS = near_BHTL @ (pseudo_inverse(among_BHLL) @ seen_BHLS)
        return side_by_side(answer_BHTS).to(value_BTD.dtype)

    def _segments(self, real_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return each token's share in each landmark, (B, 1, L, T), and which landmarks are there, (B, L)."""
        rank_BT = real_BT.to(torch.int64).cumsum(dim=1) - 1
        length_B1 = real_BT.to(torch.int64).sum(dim=1, keepdim=True).clamp_min(1)
        segment_BT = rank_BT * length_B1.clamp_max(self.landmarks) // length_B1
        place_L1 = torch.arange(self.landmarks, device=real_BT.device)[:, None]
        member_BLT = ((segment_BT[:, None] == place_L1) & real_BT[:, None]).to(torch.float32)
        count_BL1 = member_BLT.sum(dim=-1, keepdim=True)
        return (member_BLT / count_BL1.clamp_min(1.0))[:, None], count_BL1[..., 0] > 0


def pseudo_inverse(matrix_BHLL: Tensor) -> Tensor:
    """Return about the pseudo-inverse, by an iteration of products alone that starts anew for each matrix.

    >>> two = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    >>> bool(torch.allclose(pseudo_inverse(two) @ two, torch.eye(2), atol=1e-4))
    True
    """
    columns, rows = matrix_BHLL.abs().sum(dim=-2), matrix_BHLL.abs().sum(dim=-1)
    inverse = matrix_BHLL.mT / (columns.amax(dim=-1) * rows.amax(dim=-1))[..., None, None]
    one_LL = torch.eye(matrix_BHLL.shape[-1], device=matrix_BHLL.device)
    for _ in range(STEPS):
        product = matrix_BHLL @ inverse
        inverse = 0.25 * inverse @ (13 * one_LL - product @ (15 * one_LL - product @ (7 * one_LL - product)))
    return inverse


def _softmax(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """Return softmax(Q K') over the keys where the mask is true; over all where it nowhere is: never over nothing."""
    products = query @ key.mT
    return products.masked_fill(~mask, torch.finfo(products.dtype).min).softmax(dim=-1)
