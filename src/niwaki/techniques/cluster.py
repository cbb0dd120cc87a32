"""`cluster`: store each weight as a code of a few bits, and a table of what the codes stand for."""

# G groups of rows, K centroids, R rows, C columns

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from niwaki.bits import packed_size
from niwaki.errors import NiwakiError
from niwaki.kmeans import codebooks
from niwaki.packable import check_patterns, packable
from niwaki.surgery import cluster_embedding, cluster_linear
from niwaki.technique import Companion, Context, Grain, Technique

Matrix = nn.Linear | nn.Embedding


class Cluster(Technique):
    """Store weights as codes of a few bits and a table of centroids, one table a matrix: a smaller file, no more speed.

    The weights w of a matrix are put into K = 2 ** bits clusters by k-means, so that sum (w - c[k(w)])^2 is least; the
    file holds the codes k and the centroids c. As a step that is all, in seconds. Inside `train` codes stay and
    centroids learn: the gradient of a centroid is the sum of those of its weights, dL/dc_k = sum over k(w) = k of
    dL/dw. Zeros of a matrix that was pruned have the code 0 to themselves, and stay zeros.

    This is storage: the saved `model.safetensors` is small, and every runtime computes with floats, as fast and in as
    much memory as before. Exported ONNX and OpenVINO files hold the floats.

    Args:
        bits: of a code, 1 to 8. 8 and 5 lose little without training; see the card for 4 and 3.
        group_rows: rows of a matrix that share a table of centroids; by default all. Smaller groups fit nearer and cost
            a table of 4 * 2 ** bits bytes each: 64 to 512.
        embeddings: also cluster the embedding tables, and a language head tied to one; they are half of a small model's
            bytes.
        skip: dotted names, or patterns with * and ?, of modules that stay as they are.
        entropy: Huffman-code the codes in the file; it saves a tenth to a sixth, more after pruning.

    Raises:
        NiwakiError: a pattern of `skip` matches nothing, or everything is packed already.

    Composes with: everything before it (prune first: zeros have a code of their own), distill and prune inside the same
        train; nothing may cut what is packed into bits.

    References:
        Han, Mao and Dally 2016, Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization
        and Huffman Coding, section 3 (equations 2 and 3) and section 4.

    Example:
        >>> Cluster(bits=4).entropy
        False
    """

    grain: ClassVar[Grain] = Grain.BIT

    bits: int = Field(5, ge=1, le=8)
    group_rows: int | None = Field(None, ge=1)
    embeddings: bool = True
    skip: tuple[str, ...] = ()
    entropy: bool = False

    def check(self, model: nn.Module) -> None:
        """Refuse patterns that match nothing."""
        check_patterns(model, self.skip, self.name)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Cluster the weights now."""
        for name in self.chosen(model):
            self.store(model, name)
        return model

    def accompany(self, model: nn.Module, context: Context) -> Companion:
        """Cluster the weights now, and let the centroids learn."""
        return Centroids(self, model)

    def chosen(self, model: nn.Module) -> list[str]:
        """Return the dotted names of the matrices to cluster: those that get smaller."""
        linears, tables = packable(model, embeddings=self.embeddings, skip=self.skip, technique=self.name)
        found = [name for name in (*linears, *tables) if self._pays(*_matrix(model, name).weight.shape)]
        if not found:
            raise NiwakiError(
                f"cluster with {self.bits} bits finds no matrix that gets smaller",
                expected="tables of centroids smaller than what they save",
                fix="fewer bits, or a greater group_rows",
            )
        return found

    def _pays(self, rows: int, columns: int) -> bool:
        """Say whether codes and centroids take fewer bytes than the floats."""
        tables = -(-rows // (self.group_rows or max(1, rows)))
        size: int = rows * packed_size(columns, self.bits) + 4 * tables * 2**self.bits
        return size < 4 * rows * columns

    def store(self, model: nn.Module, name: str) -> None:
        """Put codes and centroids in the place of one matrix."""
        edit = cluster_linear if isinstance(_matrix(model, name), nn.Linear) else cluster_embedding
        edit(model, module=name, bits=self.bits, group_rows=self.group_rows, entropy=self.entropy)


class Centroids(Companion):
    """Let the centroids of a model's matrices learn, each weight staying in its cluster.

    Each matrix gets, beside its weight and saved with it, a buffer `codes` (R, C), cut where the weight is cut, and a
    parameter `centroids`, all its tables in a row; its forward pass sees the centroids looked up. The weight itself
    rests. Code 0 is a zero that never learns. Two modules that are one tensor share both.
    """

    def __init__(self, technique: Cluster, model: nn.Module) -> None:
        super().__init__()
        self.technique = technique
        self.handles: list[Any] = []
        shared: dict[int, tuple[Tensor, nn.Parameter]] = {}
        for name in technique.chosen(model):
            matrix = _matrix(model, name)
            if id(matrix.weight) not in shared:
                shared[id(matrix.weight)] = _clustered(matrix, technique)
                matrix.weight.requires_grad_(False)
            codes_RC, centroids = shared[id(matrix.weight)]
            matrix.register_buffer("codes", codes_RC)
            matrix.register_parameter("centroids", centroids)
            self.handles += [
                # before the hooks of coarser companions, which multiply what is there by their masks
                matrix.register_forward_pre_hook(_show, prepend=True),
                matrix.register_forward_hook(_hide, always_call=True),
            ]

    def finish(self, model: nn.Module) -> nn.Module:
        """Write the centroids into the weights, without what was pruned, and store them as codes."""
        for handle in self.handles:
            handle.remove()
        matrices = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, Matrix) and "codes" in module._buffers
        }
        for matrix in matrices.values():
            with torch.no_grad():
                matrix.weight.copy_(_seen(matrix) * (matrix.weight != 0))
        for name, matrix in matrices.items():
            del matrix.codes, matrix.centroids
            matrix.weight.requires_grad_(True)
            if self.technique._pays(*matrix.weight.shape):
                self.technique.store(model, name)
        return model


def _matrix(model: nn.Module, name: str) -> Matrix:
    """Return a linear or an embedding table by its name."""
    module = model.get_submodule(name)
    assert isinstance(module, Matrix)
    return module


def _clustered(matrix: Matrix, technique: Cluster) -> tuple[Tensor, nn.Parameter]:
    """Return codes (R, C) into all tables in a row, from 1 on, 0 being zero; and the tables in a row."""
    weight_RC = matrix.weight
    prunes = "mask" in matrix._buffers or bool((weight_RC == 0).any())
    centroids_GK, codes_RC = codebooks(weight_RC, technique.bits, technique.group_rows, keep_zeros=prunes)
    groups_R = torch.arange(len(weight_RC), device=weight_RC.device) // (technique.group_rows or len(weight_RC))
    places_RC = codes_RC.int() + (groups_R * centroids_GK.shape[1] + 1).int()[:, None]
    return places_RC.masked_fill_(weight_RC == 0, 0), nn.Parameter(centroids_GK.flatten())


def _seen(matrix: nn.Module) -> Tensor:
    """Return the weight (R, C) that the centroids make up; a centroid's gradient is the sum of its weights'."""
    codes_RC, centroids = matrix.get_buffer("codes"), matrix.get_parameter("centroids")
    with_zero = nn.functional.pad(centroids, (1, 0))
    return with_zero.index_select(0, codes_RC.flatten()).view(codes_RC.shape)


def _show(matrix: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Put the weight that the centroids make up before the parameter, for one forward pass."""
    matrix.__dict__["weight"] = _seen(matrix)


def _hide(matrix: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Take it away; the parameter is seen again."""
    matrix.__dict__.pop("weight", None)
