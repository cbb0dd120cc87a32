"""Factor while the model trains: two factors learn from the start, and what they leave out fades away."""

# O outputs, I inputs, V vocabulary, D hidden; `...` any leading dimensions

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from niwaki.layers.either import coins
from niwaki.layers.factored import FactoredEmbedding, FactoredLinear
from niwaki.schedules import cubic
from niwaki.surgery import factor_embedding, factor_linear
from niwaki.swapping import Coin
from niwaki.technique import Companion
from niwaki.techniques.factor.ranks import Shape

Pair = FactoredLinear | FactoredEmbedding


class Gradual(Companion):
    """Let each matrix be its two factors and a residual, W = B A + fade R, whose share falls from 1 to 0.

    By coins, the residual stands in full or not at all, with `fade` as its probability; in evaluation it does not.

    Each matrix keeps its place and its hooks; beside its weight, and saved with it, it has a module `pair`, which
    learns, and a buffer `residual`, which does not. The weight itself rests, and is cut where the others are cut.

    Args:
        model: whose matrices are factored.
        pairs: by dotted name, the factors to begin with, without a bias.
        head: of a language head that is tied to a table among them.
        begin, end: progress at which the residual begins to fade, along the cubic schedule, and is gone.
        coin: for each matrix and batch, or each matrix and example; None lets the residual fade.
        seed: of the coins.
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
        coin: Coin | None = None,
        seed: int = 0,
        log: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> None:
        super().__init__()
        self.names, self.head, self.begin, self.end, self.log = list(pairs), head, begin, end, log
        self.coin, self.seed = coin, seed
        self.progress, self.fade = 0.0, 1.0
        for place, (name, pair) in enumerate(pairs.items()):
            matrix = _matrix(model, name)
            matrix.register_buffer("residual", matrix.weight.detach() - pair.weight.detach())
            matrix.add_module("pair", pair.train(model.training))
            matrix.weight.requires_grad_(False)
            seen = self._linear if isinstance(matrix, nn.Linear) else self._embedding
            matrix.forward = partial(seen, matrix, place)  # type: ignore[method-assign]
            if head is not None and isinstance(matrix, nn.Embedding):
                linear = _matrix(model, head)
                linear.forward = partial(self._head, linear, matrix, place)  # type: ignore[method-assign]

    def step(self, progress: float) -> None:
        """Let the residual fade."""
        self.progress = progress
        self.fade = 1.0 - cubic(progress, self.begin, self.end)

    def ready(self, progress: float) -> bool:
        """Judge the model only once the residual is gone."""
        return progress >= self.end

    def _share(self, matrix: nn.Module, place: int, answer: Tensor) -> float | Tensor:
        """Return the share of a matrix's residual in an answer (B, ...): one number, or (B, 1, ...)."""
        if self.coin is None or not self.fade:
            return self.fade
        if not matrix.training:
            return 0.0
        count = len(answer) if self.coin == "example" else 1
        alone_B = coins(count, 1.0 - self.fade, seed=self.seed, progress=self.progress, place=place)
        return (~alone_B).to(answer).view(-1, *[1] * (answer.dim() - 1))

    def _beside(self, matrix: nn.Module, place: int, answer: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        """Add to the answer of a pair what the residual makes of the same inputs, as far as it still stands."""
        share = self._share(matrix, place, answer)
        stands = bool(share.any()) if isinstance(share, Tensor) else bool(share)
        return answer + share * product(matrix.get_buffer("residual")) if stands else answer

    def _linear(self, linear: nn.Module, place: int, hidden: Tensor) -> Tensor:
        """Map (B, ..., I) to (B, ..., O)."""
        output = self._beside(linear, place, linear.pair(hidden), partial(functional.linear, hidden))  # type: ignore[operator]
        return output if linear.bias is None else output + cast(Tensor, linear.bias)

    def _embedding(self, table: nn.Module, place: int, ids: Tensor) -> Tensor:
        """Map ids (B, ...) to rows (B, ..., D)."""
        return self._beside(table, place, table.pair(ids), partial(functional.embedding, ids))  # type: ignore[operator]

    def _head(self, linear: nn.Module, table: nn.Module, place: int, hidden: Tensor) -> Tensor:
        """Map (B, ..., D) to (B, ..., V) by the table's factors."""
        pair = cast(FactoredEmbedding, table.pair)
        words = functional.linear(functional.linear(hidden, pair.outer.weight.T), pair.inner.weight)
        output = self._beside(table, place, words, partial(functional.linear, hidden))
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
