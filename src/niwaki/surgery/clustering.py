"""The edits that store weights as codes: a table of centroids, and each weight's place in it."""

# O outputs, I inputs, V vocabulary, D hidden

from __future__ import annotations

from torch import nn

from niwaki.layers.codebook import ClusteredEmbedding, ClusteredLinear, Codebook
from niwaki.surgery.cutting import as_linear, as_table, put
from niwaki.surgery.journal import edit
from niwaki.surgery.sharing import tie_again
from niwaki.surgery.ties import tie_head


@edit
def cluster_linear(
    model: nn.Module, *, module: str, bits: int, group_rows: int | None = None, entropy: bool = False
) -> None:
    """Store a linear's weight (O, I) as codes of a few bits and the centroids they stand for.

    A matrix of no more than 2 ** bits different values, of a group of rows, keeps its values; any other is clustered by
    k-means (`niwaki.kmeans`). Where more than a quarter are zeros, as after pruning, just those stay zeros.

    Args:
        model: any model.
        module: dotted name of the linear.
        bits: of a code, 1 to 8.
        group_rows: rows that share a table of centroids; by default the whole matrix has one.
        entropy: a file holds the codes entropy-coded.
    """
    linear = as_linear(model.get_submodule(module), module)
    put(model, module, ClusteredLinear(linear, bits, group_rows, entropy))
    tie_head(model)
    tie_again(model)


@edit
def cluster_embedding(
    model: nn.Module, *, module: str, bits: int, group_rows: int | None = None, entropy: bool = False
) -> None:
    """Store an embedding table (V, D) as codes and centroids; else as `cluster_linear`.

    A language head tied to it and clustered as well goes on sharing it: the same weights have the same codes.
    """
    table = as_table(model.get_submodule(module), module)
    put(model, module, ClusteredEmbedding(table, bits, group_rows, entropy))
    tie_head(model)


def entropy_coded(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the names of the tensors that a file is to hold entropy-coded, with the columns and the bits of each."""
    return {
        f"{name}.codes": (module.columns, module.bits)
        for name, module in model.named_modules()
        if isinstance(module, Codebook) and module.entropy
    }
