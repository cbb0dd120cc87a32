"""Linear attention: learnt features of queries and keys in the place of the exponential."""

# B batch, T tokens, Q queries, H heads, S width of a head, D = H S, F = 2 S features, E what they are made of

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from niwaki.layers.attention import Mechanism, apart, side_by_side

#: Below this a sum of features counts as nothing.
SMALLEST = 1e-9


class LinearAttention(Mechanism):
    """Put learnt features in the place of the exponential: sum_j phi(q) phi(k_j) v_j / sum_j phi(q) phi(k_j).

    The sums over j do not depend on the query, so they are taken once.

    Args:
        heads: number of heads.
        head_size: S.
        features: "hedgehog" or "t2r", see `FeatureMap`.

    References:
        Katharopoulos et al. 2020, Transformers are RNNs, equations 4 and 5. Zhang et al. 2024, The Hedgehog and the
        Porcupine, section 4. Kasai et al. 2021, Finetuning Pretrained Transformers into RNNs, section 2.2.
    """

    def __init__(self, heads: int, head_size: int, features: str) -> None:
        super().__init__()
        self.heads = heads
        self.query_map = FeatureMap(heads, head_size, features)
        self.key_map = FeatureMap(heads, head_size, features)

    def forward(
        self,
        query_BTD: Tensor,
        key_BTD: Tensor,
        value_BTD: Tensor,
        real_BT: Tensor,
        scaling: float,
        dropout: float = 0.0,
    ) -> Tensor:
        """Return the answers of all queries (B, Q, D)."""
        with torch.autocast(query_BTD.device.type, enabled=False):  # thousands of small numbers are added up
            query_BHQF, key_BHTF = self.features(query_BTD, key_BTD, real_BT, scaling)
            state_BHFS = key_BHTF.transpose(-1, -2) @ apart(value_BTD, self.heads).float()
            total_BHF1 = key_BHTF.sum(dim=-2)[..., None]
            answer_BHQS = (query_BHQF @ state_BHFS) / (query_BHQF @ total_BHF1).clamp_min(SMALLEST)
        return side_by_side(answer_BHQS).to(value_BTD.dtype)

    def first(self, query_B1D: Tensor, key_BTD: Tensor, value_BTD: Tensor, real_BT: Tensor, scaling: float) -> Tensor:
        """Return the answer of the first token alone, (B, 1, D)."""
        return cast(Tensor, self(query_B1D, key_BTD, value_BTD, real_BT, scaling))

    def features(self, query_BQD: Tensor, key_BTD: Tensor, real_BT: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """Return features of queries (B, H, Q, F) and of keys (B, H, T, F), 0 for keys that are padding."""
        query_BHQS, key_BHTS = apart(query_BQD, self.heads).float(), apart(key_BTD, self.heads).float()
        key_BHTF = self.key_map(key_BHTS * scaling**0.5) * real_BT[:, None, :, None]
        return self.query_map(query_BHQS * scaling**0.5), key_BHTF

    def weights(self, query_BTD: Tensor, key_BTD: Tensor, real_BT: Tensor, scaling: float) -> Tensor:
        """Return what stands for the softmax, (B, H, T, T): quadratic, to learn by and to test with."""
        query_BHTF, key_BHTF = self.features(query_BTD, key_BTD, real_BT, scaling)
        products_BHTT = query_BHTF @ key_BHTF.transpose(-1, -2)
        return products_BHTT / products_BHTT.sum(dim=-1, keepdim=True).clamp_min(SMALLEST)

    def keep_heads(self, heads: Sequence[int]) -> None:
        """Keep the feature maps of these heads."""
        super().keep_heads(heads)
        for part in (self.query_map, self.key_map):
            part.keep_heads(heads)


class FeatureMap(nn.Module):
    """Turn each head's x (S) into F = 2 S features that are not negative.

    "hedgehog": softmax([x W + b, -x W - b]); "t2r": max(0, [x W + b, x W' + b']). At first W is the identity, and W'
    the identity turned around.

    Args:
        heads: number of heads, each with weights of its own.
        head_size: S.
        features: "hedgehog" or "t2r".
    """

    def __init__(self, heads: int, head_size: int, features: str) -> None:
        super().__init__()
        self.kind = features
        start_SE = torch.eye(head_size)
        if features == "t2r":
            start_SE = torch.cat([start_SE, -start_SE], dim=1)
        self.features = 2 * head_size
        self.weight = nn.Parameter(start_SE.repeat(heads, 1, 1))
        self.bias = nn.Parameter(torch.zeros(heads, 1, start_SE.shape[1]))

    def forward(self, states_BHTS: Tensor) -> Tensor:
        """Return the features (B, H, T, F)."""
        mapped_BHTE = states_BHTS @ self.weight + self.bias
        if self.kind == "t2r":
            return mapped_BHTE.relu()
        return torch.cat([mapped_BHTE, -mapped_BHTE], dim=-1).softmax(dim=-1)

    def keep_heads(self, heads: Sequence[int]) -> None:
        """Keep the weights of these heads."""
        for name, parameter in list(self.named_parameters()):
            index = torch.tensor(heads, device=parameter.device)
            kept = parameter.detach().index_select(0, index)
            setattr(self, name, nn.Parameter(kept, parameter.requires_grad))
