"""Factor while the model trains: two factors learn from the start, and what they leave out fades away."""

# O outputs, I inputs, V vocabulary, D hidden; `...` any leading dimensions

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from niwaki.layers.factored import FactoredEmbedding, FactoredLinear
from niwaki.schedules import cubic
from niwaki.surgery import factor_embedding, factor_linear
from niwaki.technique import Companion
from niwaki.techniques.factor.ranks import Shape

Pair = FactoredLinear | FactoredEmbedding


class Gradual(Companion):
    """Let each matrix be its two factors and a residual, W = B A + fade R, whose share falls from 1 to 0.

    Each matrix keeps its place and its hooks; beside its weight, and saved with it, it has a module `pair`, which
    learns, and a buffer `residual`, which does not. The weight itself rests, and is cut where the others are cut.

    Args:
        model: whose matrices are factored.
        pairs: by dotted name, the factors to begin with, without a bias.
        head: of a language head that is tied to a table among them.
        begin, end: progress at which the residual begins to fade, along the cubic schedule, and is gone.
        log: told of matrices that stay whole after all.
    """

    def __init__(
        self,
        model: nn.Module,
        pairs: Mapping[str, Pair],
        head: str | None = None,
        *,
        begin: float,
        end: float,
        log: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> None:
        super().__init__()
        self.names, self.head, self.begin, self.end, self.log = list(pairs), head, begin, end, log
        self.fade = 1.0
        for name, pair in pairs.items():
            matrix = _matrix(model, name)
            matrix.register_buffer("residual", matrix.weight.detach() - pair.weight.detach())
            matrix.add_module("pair", pair.train(model.training))
            matrix.weight.requires_grad_(False)
            seen = self._linear if isinstance(matrix, nn.Linear) else self._embedding
            matrix.forward = partial(seen, matrix)  # type: ignore[method-assign]
            if head is not None and isinstance(matrix, nn.Embedding):
                linear = _matrix(model, head)
                linear.forward = partial(self._head, linear, matrix)  # type: ignore[method-assign]

    def step(self, progress: float) -> None:
        """Let the residual fade."""
        self.fade = 1.0 - cubic(progress, self.begin, self.end)

    def ready(self, progress: float) -> bool:
        """Judge the model only once the residual is gone."""
        return progress >= self.end

    def _linear(self, linear: nn.Module, hidden: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        output: Tensor = linear.pair(hidden)  # type: ignore[operator]
        if self.fade:
            output = output + self.fade * functional.linear(hidden, linear.get_buffer("residual"))
        return output if linear.bias is None else output + cast(Tensor, linear.bias)

    def _embedding(self, table: nn.Module, ids: Tensor) -> Tensor:
        """Map ids (...) to rows (..., D)."""
        rows: Tensor = table.pair(ids)  # type: ignore[operator]
        return rows + self.fade * functional.embedding(ids, table.get_buffer("residual")) if self.fade else rows

    def _head(self, linear: nn.Module, table: nn.Module, hidden: Tensor) -> Tensor:
        """Map (..., D) to (..., V) by the table's factors."""
        pair = cast(FactoredEmbedding, table.pair)
        output = functional.linear(functional.linear(hidden, pair.outer.weight.T), pair.inner.weight)
        if self.fade:
            output = output + self.fade * functional.linear(hidden, table.get_buffer("residual"))
        return output if linear.bias is None else output + cast(Tensor, linear.bias)

    def finish(self, model: nn.Module) -> nn.Module:
        """Let the factors take the places of the matrices; where these were cut and pairs no longer pay, make them one.

        A coarser technique beside this one may have cut the matrices by now.
        """
        for name in self.names:
            matrix = _matrix(model, name)
            pair, shape = cast(Pair, matrix.pair), Shape(*matrix.weight.shape)
            if not shape.parameters or shape.paying(pair.rank) is None:
                self._join(model, matrix, pair)
                self.log({"event": "note", "note": f"{name} was cut, and stays one matrix"})
            elif isinstance(pair, FactoredLinear):
                factor_linear(model, module=name, rank=pair.rank, values=pair)
            else:
                factor_embedding(model, module=name, rank=pair.rank, head=self.head, values=pair)
        return model

    def _join(self, model: nn.Module, matrix: nn.Linear | nn.Embedding, pair: Pair) -> None:
        """Write the product of the factors into a matrix and take the scaffolding down."""
        with torch.no_grad():
            matrix.weight.copy_(pair.weight)
        matrix.weight.requires_grad_(True)
        del matrix.pair, matrix.residual, matrix.forward
        if self.head is not None and isinstance(matrix, nn.Embedding):
            del _matrix(model, self.head).forward


def _matrix(model: nn.Module, name: str) -> nn.Linear | nn.Embedding:
    """Return a linear or an embedding table by its name."""
    return cast(nn.Linear | nn.Embedding, model.get_submodule(name))
