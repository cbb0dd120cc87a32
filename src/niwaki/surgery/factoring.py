"""The edits that put two matrices of low rank in the place of one."""

# O outputs, I inputs, V vocabulary, D hidden, R rank

from __future__ import annotations

from torch import Tensor, nn

from niwaki.errors import NiwakiError
from niwaki.layers.factored import FactoredEmbedding, FactoredLinear, linear_with, truncated
from niwaki.surgery.cutting import as_linear, as_table, put
from niwaki.surgery.journal import edit
from niwaki.surgery.sharing import users_of


@edit
def factor_linear(model: nn.Module, *, module: str, rank: int, values: FactoredLinear | None = None) -> None:
    """Put two linears, from the inputs to `rank` and from there to the outputs, in the place of one; its bias stays.

    Modules that share the weight share the two matrices.

    Args:
        model: any model.
        module: dotted name of the linear.
        rank: the width between the two, at least 1.
        values: the two, without a bias; by default the pair whose product is nearest to the weight.
    """
    linear = as_linear(model.get_submodule(module), module)
    _check_rank(rank, linear.weight, module, values)
    if values is None:
        outer_OR, inner_RI = truncated(linear.weight, rank)
        values = FactoredLinear.of(inner_RI, outer_OR)
    for name in users_of(model, module):
        bias = as_linear(model.get_submodule(name), name).bias
        put(model, name, FactoredLinear(linear_with(values.inner.weight), linear_with(values.outer.weight, bias)))


@edit
def factor_embedding(
    model: nn.Module, *, module: str, rank: int, head: str | None = None, values: FactoredEmbedding | None = None
) -> None:
    """Put a table (V, R) and a linear from R to D in the place of an embedding table (V, D).

    A language head that is the same tensor follows: it goes from D to R, and from there to the vocabulary by the narrow
    table itself, which the two go on sharing. The small matrix between D and R each has for itself.

    Args:
        model: any model.
        module: dotted name of the table.
        rank: the width of the narrow table, at least 1.
        head: dotted name of the linear that is tied to the table, where there is one.
        values: table and linear; by default those whose product is nearest to the table.
    """
    table = as_table(model.get_submodule(module), module)
    _check_rank(rank, table.weight, module, values)
    if values is None:
        values = FactoredEmbedding.of(*_factors(table, rank), padding_idx=table.padding_idx)
    if head is not None:
        whole = as_linear(model.get_submodule(head), head)
        outer = linear_with(values.inner.weight, whole.bias)
        put(model, head, FactoredLinear(linear_with(values.outer.weight.detach().T.clone()), outer))
    put(model, module, values)


def _factors(table: nn.Embedding, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    rows_VR, columns_RD = truncated(table.weight, rank)
    return nn.Parameter(rows_VR), nn.Parameter(columns_RD.T.contiguous())


def _check_rank(rank: int, weight: Tensor, module: str, values: FactoredLinear | FactoredEmbedding | None) -> None:
    """Refuse a rank that no matrix of this shape has, and values of another."""
    rows, columns = weight.shape
    given = rank if values is None else values.rank
    if not 1 <= rank <= min(rows, columns) or given != rank:
        raise NiwakiError(
            f"rank is {rank}, of {module} ({rows} x {columns})" + (f", and the values' {given}" * (given != rank)),
            expected=f"1 to {min(rows, columns)}",
        )
