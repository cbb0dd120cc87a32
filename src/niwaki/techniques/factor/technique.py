"""The parameters of `factor`, and what is done with them."""

# V vocabulary

from __future__ import annotations

import fnmatch
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.errors import NiwakiError
from niwaki.layers.factored import FactoredEmbedding, FactoredLinear
from niwaki.layers.relaxed import RelaxedLinear
from niwaki.packable import check_patterns
from niwaki.surgery import factor_embedding, firsts_of, refuse_tied, tied_names, word_table
from niwaki.swapping import Coin
from niwaki.technique import Companion, Context, Grain, Technique
from niwaki.techniques.factor import ranks as rank_of
from niwaki.techniques.factor.at_once import factor_now, linear_at, losses_by_rank, spectra_of
from niwaki.techniques.factor.gradual import Gradual
from niwaki.techniques.factor.ranks import Ranks, Shape
from niwaki.techniques.factor.truncate import narrow_table

#: What the words of `modules` stand for.
ROLES = {"attention": ("query", "key", "value", "output"), "feed-forward": ("gate", "up", "down")}


class Factor(Technique):
    """Put two matrices of low rank in the place of one: W (O, I) becomes B (O, R) A (R, I), and products are two.

    A pair holds R (O + I) numbers, so it is smaller below the break-even rank O I / (O + I). A matrix whose rank would
    not pay stays whole, and log and report say so.

    What is lost is the rest of a singular value decomposition W S = U diag(s) V^T, cut to its first R values: A = V^T
    S^-1 and B = U diag(s), and the sum of the other s^2 is the error ||(W - B A) S||^2. `by` chooses S: "svd" the
    identity (the error of the weights); "fisher" diag(sqrt(sum over outputs of F)), with F the sum of (dL/dW)^2 over
    batches of 8 rows, in the place of the Fisher information, which squares row by row; "asvd" diag(x^0.5), with x the
    size of each input; "whitened" a root of X^T X, with X the inputs over calibration rows, which makes it the error of
    what the linear puts out. By "asvd" and "whitened" layers are taken in order, on the inputs that the layers before,
    factored, put out; by "whitened", B is then fitted to what the linear put out before anything was cut, by least
    squares.

    Inside `train` pair and residual stand side by side, W = B A + fade (W - B A): A and B learn from the first step on,
    and the residual fades with 1 - fade = 1 - (1 - p)^3 for p = (progress - begin) / (end - begin).

    The word table E (V, D) is a lookup and costs bytes alone. It becomes A (V, R) and B (R, D) with the least sum over
    tokens f_v ||E_v - A_v B||^2, f_v the times that token v stands in the training rows, plus 1. A language head tied
    to it follows.

    Args:
        keep: share of the parameters of the chosen matrices that stays, in (0, 1]; 1 leaves them whole. 0.5 to 0.8.
        rank: in the place of `keep`, the same rank for each.
        even: the same share of each matrix; else `keep` is one budget over all of them, and ranks are where they cost
            least: by the share of its squares that a matrix loses, times the sum of F w^2 over its weights.
        by: "svd", "fisher", "asvd" or "whitened".
        modules: "attention", "feed-forward", and dotted names of linears, or patterns with * and ?.
        skip: dotted names, or patterns, of linears that stay whole.
        embedding: rank of the word table, a whole number, or share of its parameters that stays, a fraction. 64 to 128.
        multiple_of: ranks that follow from shares are rounded down to a multiple, but never below one multiple; int8
            kernels want 32 or 64.
        examples: training rows to look at. 256 to 2048.
        begin, end: progress of the training, in [0, 1], at which the residual begins to fade, and is gone.
        coin: of module replacing: the residual stands in full or not at all, with fade as its probability, as one coin
            for each matrix and "batch", or each matrix and "example", decides; by default it fades.

    Raises:
        NiwakiError: no matrix would get smaller, a budget below the smallest ranks, a pattern that matches nothing, or
            matrices that are packed into bits already.

    Composes with: distill (recommended, inside `train` or after it), drop and prune of units before it, quantize and
        cluster after it: each of the two factors is a matrix as any other.

    References:
        Hsu et al. 2022, Language model compression with weighted low-rank factorization, section 3 (fisher). Yuan et
        al. 2023, ASVD: Activation-aware Singular Value Decomposition for Compressing Large Language Models, section 3.2
        (asvd). Wang et al. 2024, SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model
        Compression, sections 3.1 and 3.2 (whitened, and the update of the outer factor). Lan et al. 2020, ALBERT,
        section 3.1 (factors of the word table).

    Example:
        >>> Factor(keep=0.5).by, Factor(embedding=128).keep
        ('whitened', 1.0)
    """

    grain: ClassVar[Grain] = Grain.WEIGHT

    keep: float = Field(1.0, gt=0, le=1)
    rank: int | None = Field(None, ge=1)
    even: bool = True
    by: Literal["svd", "fisher", "asvd", "whitened"] = "whitened"
    modules: tuple[str, ...] = ("attention", "feed-forward")
    skip: tuple[str, ...] = ()
    embedding: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = None
    multiple_of: int = Field(8, ge=1)
    examples: int = Field(512, ge=1)
    begin: float = Field(0.05, ge=0, le=1)
    end: float = Field(0.5, ge=0, le=1)
    coin: Coin | None = None

    @model_validator(mode="after")
    def _sound(self) -> Factor:
        if self.end <= self.begin:
            raise ValueError(f"end is {self.end}, expected a progress above begin, which is {self.begin}")
        if self.rank is not None and (self.keep < 1.0 or not self.even):
            raise ValueError(f"rank {self.rank} is the same for each matrix: leave keep and even")
        return self

    @property
    def cuts_linears(self) -> bool:
        """Say whether anything but the word table is factored."""
        return self.rank is not None or self.keep < 1.0

    def cuts_tied(self, *, meanwhile: bool = False, in_train: bool = False) -> bool:
        """Say that layers which share a matrix share its factors, where these are made at once."""
        return not meanwhile and not (in_train and self.cuts_linears)

    def check(self, model: nn.Module) -> None:
        """Refuse, before any work begins, what this model cannot give."""
        check_patterns(model, self.skip, self.name)
        check_patterns(model, [one for one in self.modules if one not in ROLES], self.name, "modules")
        if self.cuts_linears:
            shapes = self.shapes(model)
            if self.even:
                rank_of.check_pays(shapes, self._even(shapes))
            else:
                options = {name: self._options(shape, [0.0] * (shape.rows + 1)) for name, shape in shapes.items()}
                rank_of.least_cost(options, self.keep)
        if self.embedding is not None:
            self.table_rank(model)

    def shapes(self, model: nn.Module) -> dict[str, Shape]:
        """Return the shapes of the linears that are chosen, by their dotted names, from input to output.

        Of linears that share a weight it is the first.
        """
        anatomy = anatomy_of(model)
        words = [role for word in self.modules for role in ROLES.get(word, ())]
        chosen = {layer.name_of(role) for layer in anatomy.layers for role in words if getattr(layer.family, role)}
        linears = {
            name: one for name, one in model.named_modules() if isinstance(one, nn.Linear) and one.weight.numel()
        }
        patterns = [one for one in self.modules if one not in ROLES]
        chosen |= {name for name in linears if any(fnmatch.fnmatchcase(name, one) for one in patterns)}
        chosen -= {name for name in chosen if any(fnmatch.fnmatchcase(name, one) for one in self.skip)}
        in_order = [*dict.fromkeys([*anatomy.linear_names(), *linears])]
        self._check_chosen(model, chosen, set(linears))
        whole = [name for name in in_order if name in chosen & set(linears)]
        return {name: Shape(*linears[name].weight.shape) for name in firsts_of(model, whole)}

    def _check_chosen(self, model: nn.Module, chosen: set[str], linears: set[str]) -> None:
        """Refuse what is no plain linear, a head that is the word table, and no linear at all; pairs stay pairs."""
        tied = tied_names(model)
        if tied is not None and tied[0] in chosen:
            raise NiwakiError(
                f"modules has {tied[0]}, which is the word table too",
                expected="one word for both of them",
                fix=f"embedding: {self.rank or 128}",
                place=self.name,
            )
        for name in sorted(chosen - linears):
            module = model.get_submodule(name)
            if isinstance(module, nn.Linear | FactoredLinear):  # a linear without rows
                continue
            relaxed = isinstance(module, RelaxedLinear)
            raise NiwakiError(
                f"{name} is a {type(module).__name__}",
                expected="a linear " + ("without a difference of its own" if relaxed else "not packed into bits yet"),
                fix="rank: 0 in share" if relaxed else "factor before quantize and cluster",
                place=self.name,
            )
        if not chosen & linears:
            raise NiwakiError(
                "factor finds no linear that is whole",
                expected="modules that name one, and that skip leaves",
                fix="modules: [attention, feed-forward]",
                place=self.name,
            )

    def table_rank(self, model: nn.Module) -> int:
        """Return the rank of the word table, or say that none pays."""
        table, wanted = word_table(model), self.embedding
        assert wanted is not None
        shape = Shape(*table.weight.shape)
        rank = shape.paying(wanted) if isinstance(wanted, int) else shape.at_share(wanted, self.multiple_of)
        if rank is None:
            raise NiwakiError(
                f"embedding is {wanted}, and the word table has {shape.rows} x {shape.columns} numbers",
                expected=f"a rank below {shape.break_even:.4g}, where two factors hold as many",
                fix=f"embedding: {max(1, shape.columns // 3)}",
                place=self.name,
            )
        return rank

    def _even(self, shapes: dict[str, Shape]) -> Ranks:
        """Return the ranks where each matrix has the same share, or the same rank."""
        if self.rank is not None:
            return rank_of.same_rank(shapes, self.rank)
        return rank_of.same_share(shapes, self.keep, self.multiple_of)

    def _options(self, shape: Shape, costs_K: list[float] | Tensor) -> list[rank_of.Option]:
        return rank_of.options_of(shape, costs_K, self.multiple_of)

    def ranks(self, model: nn.Module, context: Context) -> Ranks:
        """Return the rank of each chosen linear, None where it stays whole."""
        shapes = self.shapes(model)
        if self.even:
            chosen = self._even(shapes)
        else:
            costs = losses_by_rank(model, list(shapes), self.by, context, self.examples)
            options = {name: self._options(shape, costs[name]) for name, shape in shapes.items()}
            chosen = rank_of.least_cost(options, self.keep)
        rank_of.check_pays(shapes, chosen)
        return chosen

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Factor now."""
        self.check(model)
        if self.cuts_linears:
            chosen = self.ranks(model, context)
            shapes = self.shapes(model)
            lost = factor_now(model, chosen, self.by, context, self.examples)
            self._tell(context, shapes, chosen, lost)
        if self.embedding is not None:
            name, pair, head = self._table(model, context)
            factor_embedding(model, module=name, rank=pair.rank, head=head, values=pair)
        return model

    def accompany(self, model: nn.Module, context: Context) -> Companion:
        """Stand the factors beside the matrices; what these leave out fades while all learns."""
        self.check(model)
        if self.cuts_linears:
            refuse_tied(model, list(self.shapes(model)), "factor in train", "factor as a step of its own")
        pairs: dict[str, Any] = {}
        head = None
        if self.cuts_linears:
            chosen = self.ranks(model, context)
            names = [name for name, rank in chosen.items() if rank is not None]
            spectra = spectra_of(model, names, self.by, context, self.examples)
            lost = {name: float(one.lost_K[cast(int, chosen[name])]) for name, one in spectra.items()}
            self._tell(context, self.shapes(model), chosen, lost)
            for name, one in spectra.items():
                weight = linear_at(model, name).weight
                pairs[name] = FactoredLinear.of(*(half.to(weight) for half in one.pair(cast(int, chosen[name]))))
        if self.embedding is not None:
            name, pairs[name], head = self._table(model, context)
        swaps: dict[str, Any] = {"begin": self.begin, "end": self.end, "coin": self.coin, "seed": context.seed}
        return Gradual(model, pairs, head, **swaps, log=context.log)

    def _table(self, model: nn.Module, context: Context) -> tuple[str, FactoredEmbedding, str | None]:
        """Return the name of the word table, its factors, and the name of the head that is tied to it."""
        anatomy, table, tied = anatomy_of(model), word_table(model), tied_names(model)
        counts_V = np.bincount(context.train.tokens, minlength=table.num_embeddings) + 1
        rank = self.table_rank(model)
        inner_VR, outer_DR, lost = narrow_table(table.weight, torch.from_numpy(counts_V), rank)
        pair = FactoredEmbedding.of(inner_VR.to(table.weight), outer_DR.to(table.weight), table.padding_idx)
        name = anatomy.prefix + anatomy.family.word_embeddings
        self._tell(context, {name: Shape(*table.weight.shape)}, {name: rank}, {name: lost})
        return name, pair, None if tied is None else tied[0]

    def _tell(self, context: Context, shapes: dict[str, Shape], ranks: Ranks, lost: dict[str, float]) -> None:
        """Log each matrix with the rank it keeps, none where it stays whole, and the share of its squares it loses."""
        matrices = [
            {
                "module": name,
                "rows": shape.rows,
                "columns": shape.columns,
                "rank": ranks[name],
                "break_even": shape.break_even,
                "lost": lost.get(name, 0.0),
            }
            for name, shape in shapes.items()
        ]
        context.log({"event": "factor", "by": self.by, "matrices": matrices})
