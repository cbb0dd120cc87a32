"""Two matrices in a row in the place of one: what `factor_linear` and `factor_embedding` put in."""

# I inputs, O outputs, R rank, V vocabulary, D width; `...` any leading dimensions

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class FactoredLinear(nn.Module):
    """Stand in for `nn.Linear` with two plain ones: `outer(inner(x))`, a weight of rank R at most.

    Each of the two is a linear as any other: it is trained, packed into bits and exported as such.

    Attributes:
        inner: from I inputs to R, without a bias.
        outer: from R to O outputs, with the bias where there is one.
    """

    inner: nn.Linear
    outer: nn.Linear

    def __init__(self, inner: nn.Linear, outer: nn.Linear) -> None:
        super().__init__()
        self.inner, self.outer = inner, outer

    @classmethod
    def of(cls, inner_RI: Tensor, outer_OR: Tensor, bias_O: Tensor | None = None) -> FactoredLinear:
        """Return the pair of these matrices."""
        return cls(linear_with(inner_RI), linear_with(outer_OR, bias_O))

    @property
    def rank(self) -> int:
        """Return the width between the two."""
        return self.inner.out_features

    @property
    def in_features(self) -> int:
        """Return the number of inputs."""
        return self.inner.in_features

    @property
    def out_features(self) -> int:
        """Return the number of outputs."""
        return self.outer.out_features

    @property
    def weight(self) -> Tensor:
        """Return the product of the two, (O, I): multiplied anew each time."""
        return self.outer.weight @ self.inner.weight

    @property
    def bias(self) -> Tensor | None:
        """Return the bias of the second, (O)."""
        return self.outer.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        return cast(Tensor, self.outer(self.inner(hidden)))


class FactoredEmbedding(nn.Module):
    """Stand in for `nn.Embedding` with a narrow table and a linear that widens its rows.

    Attributes:
        inner: the table (V, R).
        outer: from R to D, without a bias.
        padding_idx: as in `nn.Embedding`; its row is kept as any other.
    """

    inner: nn.Embedding
    outer: nn.Linear

    def __init__(self, inner: nn.Embedding, outer: nn.Linear, padding_idx: int | None = None) -> None:
        super().__init__()
        self.inner, self.outer, self.padding_idx = inner, outer, padding_idx

    @classmethod
    def of(cls, inner_VR: Tensor, outer_DR: Tensor, padding_idx: int | None = None) -> FactoredEmbedding:
        """Return the pair of these matrices."""
        # no padding_idx on the narrow table: PyTorch would give that row no gradient, which the whole one may have had
        table = nn.Embedding(len(inner_VR), inner_VR.shape[1], _weight=inner_VR.detach())
        return cls(table, linear_with(outer_DR), padding_idx)

    @property
    def rank(self) -> int:
        """Return the width of the narrow table."""
        return self.inner.embedding_dim

    @property
    def num_embeddings(self) -> int:
        """Return the number of rows."""
        return self.inner.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """Return the width of what is looked up."""
        return self.outer.out_features

    @property
    def weight(self) -> Tensor:
        """Return the whole table, (V, D): multiplied anew each time."""
        return self.inner.weight @ self.outer.weight.T

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (...) to rows (..., D)."""
        return cast(Tensor, self.outer(self.inner(ids)))


def linear_with(weight_OI: Tensor, bias_O: Tensor | None = None) -> nn.Linear:
    """Return a linear with this weight and this bias; parameters are taken as they are, so that they can be shared."""
    rows, columns = weight_OI.shape
    linear = nn.utils.skip_init(nn.Linear, columns, rows, bias=bias_O is not None, device=weight_OI.device)
    linear.weight = _parameter(weight_OI)
    if bias_O is not None:
        linear.bias = _parameter(bias_O)
    return cast(nn.Linear, linear)


def truncated(weight_RC: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return (rows, rank) and (rank, columns) whose product is nearest to a matrix; meta tensors give meta tensors.

    >>> left, right = truncated(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), rank=1)
    >>> (left @ right).abs().round(decimals=5).tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    weight_RC = weight_RC.detach()
    if weight_RC.is_meta:
        return weight_RC.new_empty(len(weight_RC), rank), weight_RC.new_empty(rank, weight_RC.shape[1])
    left, values, right = torch.linalg.svd(weight_RC.double(), full_matrices=False)
    root = values[:rank].sqrt()
    return (left[:, :rank] * root).to(weight_RC.dtype), (root[:, None] * right[:rank]).to(weight_RC.dtype)


def pairs_in(model: nn.Module) -> list[str]:
    """Return the dotted names of the linears that are pairs."""
    return [name for name, module in model.named_modules() if isinstance(module, FactoredLinear)]


def _parameter(value: Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach().contiguous())
