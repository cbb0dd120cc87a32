"""Which layers share: lists of their indices, each index in one list."""

# L layers

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

Groups = list[list[int]]


def neighbours(count: int, groups: int) -> Groups:
    """Return runs of neighbours, as even as can be.

    >>> neighbours(6, 3), neighbours(5, 2)
    ([[0, 1], [2, 3], [4, 5]], [[0, 1], [2, 3, 4]])
    """
    ends = [index * count // groups for index in range(groups + 1)]
    return [list(range(start, end)) for start, end in pairwise(ends)]


def cyclic(count: int, groups: int) -> Groups:
    """Return every n-th layer together, so that the same few layers run again and again.

    >>> cyclic(6, 2)
    [[0, 2, 4], [1, 3, 5]]
    """
    return [list(range(start, count, groups)) for start in range(groups)]


def sandwich(count: int) -> Groups:
    """Return the first and the last layer alone, and all between them together (Reid et al. 2021, section 3.1).

    >>> sandwich(5), sandwich(2)
    ([[0], [1, 2, 3], [4]], [[0], [1]])
    """
    return [group for group in ([0], list(range(1, count - 1)), [count - 1][: count - 1]) if group]


def similar(distances_LL: Tensor, groups: int) -> Groups:
    """Join, again and again, the two groups whose layers are nearest on average, neighbours or not.

    Args:
        distances_LL: symmetric; infinite where two layers cannot share.
        groups: how many are left in the end, or more where no two can be joined.

    >>> similar(torch.tensor([[0.0, 9, 1], [9, 0, 8], [1, 8, 0]]), 2)
    [[0, 2], [1]]
    """
    found: Groups = [[index] for index in range(len(distances_LL))]
    while len(found) > groups:
        pairs = [(one, two) for one in range(len(found)) for two in range(one + 1, len(found))]
        apart = [float(distances_LL[found[one]][:, found[two]].mean()) for one, two in pairs]
        if min(apart) == float("inf"):
            break
        one, two = pairs[apart.index(min(apart))]
        found[one] = sorted(found[one] + found.pop(two))
    return sorted(found)


def weight_distances(matrices: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return how far the weights of each two layers are apart, (L, L): mean of |A - B|^2 / (|A|^2 + |B|^2).

    0 is the same weights, 1 weights that have nothing to do with each other; infinite where shapes differ.

    Args:
        matrices: of each layer, its matrices, in the same order.

    >>> one, two = torch.eye(2), 2 * torch.eye(2)
    >>> weight_distances([[one, one], [one, two]]).tolist()  # 2 / 10 of the second matrix, 0 of the first
    [[0.0, 0.10000000149011612], [0.10000000149011612, 0.0]]
    """
    count = len(matrices)
    distances_LL = torch.zeros(count, count)
    for one in range(count):
        for two in range(one):
            apart = sum(_distance(a, b) for a, b in zip(matrices[one], matrices[two], strict=True))
            distances_LL[one, two] = distances_LL[two, one] = apart / len(matrices[one])
    return distances_LL


def _distance(one: Tensor, two: Tensor) -> float:
    if one.shape != two.shape:
        return float("inf")
    size = float(one.detach().square().sum() + two.detach().square().sum())
    return float((one.detach() - two.detach()).square().sum()) / size if size else 0.0
