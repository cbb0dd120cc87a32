"""Layers with weights from a codebook: what `cluster_linear` and `cluster_embedding` put in."""

# B batch, T tokens, I inputs, O outputs, V vocabulary, D width, R rows, C columns, G groups of rows, K centroids

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from niwaki.bits import pack_bits, unpack_bits
from niwaki.kmeans import codebooks


def look_up(centroids_GK: Tensor, codes_RC: Tensor, groups_R: Tensor) -> Tensor:
    """Return the weights (R, C) that codes stand for: `weight[r, c] = centroids[group of row r, code[r, c]]`.

    >>> look_up(torch.tensor([[0.5, 2.0], [7.0, 8.0]]), torch.tensor([[0, 1], [1, 1]]), torch.tensor([0, 1])).tolist()
    [[0.5, 2.0], [8.0, 8.0]]
    """
    places_RC = codes_RC.to(torch.int32) + (groups_R * centroids_GK.shape[1]).to(torch.int32)[:, None]
    return centroids_GK.flatten().index_select(0, places_RC.flatten()).view(codes_RC.shape)


class Codebook(nn.Module):
    """Hold a matrix (R, C) as a table of centroids and, for each weight, its place in the table.

    Attributes:
        codes: uint8, (R, ceil(C * bits / 8)), packed as in `niwaki.bits`.
        centroids: float32, (G, 2 ** bits), a table for each group of rows.
        bits: of a code.
        columns: weights in a row, C.
        group_rows: rows of a group; the last may have fewer.
        entropy: whether a file is to hold the codes entropy-coded (`niwaki.entropy`).
    """

    codes: Tensor
    centroids: Tensor

    def __init__(self, weight_RC: Tensor, bits: int, group_rows: int | None, entropy: bool) -> None:
        super().__init__()
        rows, self.columns = weight_RC.shape
        self.bits, self.group_rows, self.entropy = bits, group_rows or max(1, rows), entropy
        centroids_GK, codes_RC = codebooks(weight_RC, bits, group_rows)
        self.register_buffer("codes", pack_bits(codes_RC, bits))
        self.register_buffer("centroids", centroids_GK)

    @property
    def num_weights(self) -> int:
        """Return how many weights the codes stand for."""
        return len(self.codes) * self.columns

    def rows(self, index: Tensor) -> Tensor:
        """Return rows of the matrix in floats, (N, C), by their index (N)."""
        codes_NC = unpack_bits(self.codes.index_select(0, index), self.bits, self.columns)
        return look_up(self.centroids, codes_NC, index // self.group_rows)

    @property
    def weight(self) -> Tensor:
        """Return the whole matrix in floats, (R, C)."""
        return self.rows(torch.arange(len(self.codes), device=self.codes.device))

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return f"{len(self.codes)}, {self.columns}, bits={self.bits}, groups={len(self.centroids)}"


class ClusteredLinear(Codebook):
    """Stand in for `nn.Linear` with clustered weights: it computes what a linear with the weights looked up computes.

    Small in the file, not in memory: the weights are looked up once, when they are first needed. Inference only:
    nothing here is a parameter.

    Attributes:
        bias: float32, (O,), or none.

    References:
        Han, Mao and Dally 2016, Deep Compression, section 3.
    """

    bias: Tensor | None

    def __init__(self, linear: nn.Linear, bits: int, group_rows: int | None = None, entropy: bool = False) -> None:
        super().__init__(linear.weight, bits, group_rows, entropy)
        self.out_features, self.in_features = linear.weight.shape
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self._weight_OI: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """Return the weight in floats, (O, I)."""
        if self.codes.is_meta:
            return super().weight
        if self._weight_OI is None:
            with torch.inference_mode(False), torch.no_grad():  # it may be needed in a training, too
                self._weight_OI = super().weight
        return self._weight_OI

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        return nn.functional.linear(hidden, self.weight, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._weight_OI = None  # moved or cast, codes and centroids are others
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        self._weight_OI = None
        super()._load_from_state_dict(*arguments, **named)


class ClusteredEmbedding(Codebook):
    """Stand in for `nn.Embedding` with clustered weights; rows are looked up as they are asked for, here and in memory.

    Attributes:
        padding_idx: as in `nn.Embedding`; its row is kept as any other.
    """

    def __init__(self, table: nn.Embedding, bits: int, group_rows: int | None = None, entropy: bool = False) -> None:
        super().__init__(table.weight, bits, group_rows, entropy)
        self.num_embeddings, self.embedding_dim = table.weight.shape
        self.padding_idx = table.padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (...) to rows (..., D)."""
        return self.rows(ids.flatten()).view(*ids.shape, self.columns)


def in_floats(model: nn.Module) -> nn.Module:
    """Return a model with ordinary linears and tables in the place of clustered ones; the one given is left as it was.

    Everything else is shared between the two, and layers with the same codes have the same weights. Without a clustered
    layer it is the model itself.
    """
    if not any(isinstance(module, Codebook) for module in model.modules()):
        return model
    memo: dict[int, Any] = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    weights: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, ClusteredLinear):
            weight_OI = weights.setdefault(id(module.codes), nn.Parameter(module.weight, requires_grad=False))
            memo[id(module)] = _as_linear(module, weight_OI)
        elif isinstance(module, ClusteredEmbedding):
            memo[id(module)] = nn.Embedding.from_pretrained(module.weight, padding_idx=module.padding_idx)
        elif not list(module.children()):
            memo[id(module)] = module
    return copy.deepcopy(model, memo)


def _as_linear(clustered: ClusteredLinear, weight_OI: nn.Parameter) -> nn.Linear:
    """Return an ordinary linear with the weights that were looked up."""
    linear: nn.Linear = nn.utils.skip_init(
        nn.Linear, clustered.in_features, clustered.out_features, bias=clustered.bias is not None
    )
    linear.weight = weight_OI
    if clustered.bias is not None:
        linear.bias = nn.Parameter(clustered.bias, requires_grad=False)
    linear.train(clustered.training)
    return linear
