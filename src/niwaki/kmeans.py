"""Cluster the values of a matrix: one-dimensional k-means on sorted values."""

# R rows, C columns, G groups of rows, N values of a group in ascending order, K centroids

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from niwaki.errors import NiwakiError

#: Lloyd's iterations end where no value changes its cluster, and here at the latest.
MOST_ITERATIONS = 1000
#: A matrix with a greater share of zeros was pruned: they stay what they are.
PRUNED = 0.25


def codebooks(
    weight_RC: Tensor, bits: int, group_rows: int | None = None, keep_zeros: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Find the centroids of a matrix, one table a group of rows, and each weight's place in its table.

    Lloyd's algorithm from centroids in equal steps between the least and the greatest value, which keeps the few large
    weights (Han et al. 2016, section 3.2). Values are sorted once; then each iteration looks up the K - 1 boundaries
    and takes means from cumulative sums, O(K log N). Where a group has no more than 2 ** bits different values,
    its table holds just them. The same matrix gives the same tables, always.

    Args:
        weight_RC: float. A meta tensor gives meta tensors.
        bits: of a code, 1 to 8.
        group_rows: rows that share a table; all of them by default. The last group may have fewer.
        keep_zeros: the first centroid is 0, and zeros alone have its code; by default where more than a quarter of
            the weights are zeros.

    Returns:
        centroids (G, K) float32 with K = 2 ** bits, and codes (R, C) uint8.

    Raises:
        NiwakiError: a weight is not finite.

    References:
        Han, Mao and Dally 2016, Deep Compression, equation 2.

    >>> codebooks(torch.tensor([[0.0, 1.0, 5.0, 6.0]]), bits=1)[0].tolist()
    [[0.5, 5.5]]
    """
    size, rows = 2**bits, group_rows or max(1, len(weight_RC))
    if weight_RC.is_meta:
        groups = -(-len(weight_RC) // rows)
        return weight_RC.new_empty(groups, size, dtype=torch.float32), torch.empty_like(weight_RC, dtype=torch.uint8)
    device, weight_RC = weight_RC.device, weight_RC.detach().to("cpu", torch.float32)
    if not weight_RC.isfinite().all():
        raise NiwakiError("a matrix has weights that are not finite", expected="finite weights, to cluster them")
    if keep_zeros is None:
        keep_zeros = int(weight_RC.count_nonzero()) < (1 - PRUNED) * weight_RC.numel()
    whole = len(weight_RC) // rows * rows  # the rest is a group with fewer rows
    parts = [part for part in (weight_RC[:whole].unflatten(0, (-1, rows)), weight_RC[None, whole:]) if part.numel()]
    found = [_of_groups(part.flatten(1), size, keep_zeros) for part in parts]
    codes_RC = torch.cat([codes_GN.flatten() for _, codes_GN in found]).view_as(weight_RC)
    return torch.cat([centroids_GK for centroids_GK, _ in found]).to(device), codes_RC.to(device)


def _of_groups(values_GN: Tensor, size: int, keep_zeros: bool) -> tuple[Tensor, Tensor]:
    """Return the tables (G, K) of groups of values, and their codes (G, N)."""
    sorted_GN = torch.from_numpy(np.sort(values_GN.numpy(), axis=1))  # torch's own takes twenty times as long
    counted_GN = sorted_GN != 0 if keep_zeros else torch.ones_like(sorted_GN, dtype=torch.bool)
    centroids_GK = _centroids(sorted_GN, counted_GN, size - keep_zeros)
    codes_GN = torch.searchsorted(_boundaries(centroids_GK), values_GN.contiguous(), out_int32=True).to(torch.uint8)
    if keep_zeros:
        centroids_GK = torch.nn.functional.pad(centroids_GK, (1, 0))
        codes_GN = (codes_GN + 1).masked_fill_(values_GN == 0, 0)
    return centroids_GK, codes_GN


def _centroids(sorted_GN: Tensor, counted_GN: Tensor, size: int) -> Tensor:
    """Return `size` centroids of the values that count, ascending, of each group."""
    exact_GK, is_exact_G = _different_values(sorted_GN, counted_GN, size)
    if bool(is_exact_G.all()):
        return exact_GK
    return torch.where(is_exact_G[:, None], exact_GK, _lloyd(sorted_GN, counted_GN, size))


def _different_values(sorted_GN: Tensor, counted_GN: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the different values of each group, as many as there is room for, and whether that is all of them."""
    new_GN = counted_GN.clone()
    new_GN[:, 1:] &= sorted_GN[:, 1:] != sorted_GN[:, :-1]
    is_exact_G = new_GN.sum(dim=1) <= size
    table = sorted_GN[:, -1:].repeat(1, size + 1)
    if bool(is_exact_G.any()):
        place_GN = (new_GN.cumsum(dim=1) - 1).clamp_(max=size).masked_fill_(~counted_GN, size)
        table.scatter_(1, place_GN, sorted_GN)
    return table[:, :size], is_exact_G


def _boundaries(centroids_GK: Tensor) -> Tensor:
    """Return the greatest value that belongs to each centroid but the last: the middle, and below the next centroid.

    Where the table ends with the same number several times, the first of them has all values.
    """
    low, high = centroids_GK[:, :-1], centroids_GK[:, 1:]
    below = torch.nextafter(high, torch.full_like(high, -math.inf))
    middle = torch.minimum(low + (high - low) / 2, below)
    return middle.masked_fill_(low == centroids_GK[:, -1:], math.inf).contiguous()


def _lloyd(sorted_GN: Tensor, counted_GN: Tensor, size: int) -> Tensor:
    """Return centroids (G, K), each the mean of the values that are nearest to it."""
    values_GN = sorted_GN.double()
    # zeros that do not count add nothing to a sum anyway
    counts, sums, squares = (_until(terms) for terms in (counted_GN, values_GN, values_GN.square()))
    low_G1, high_G1 = values_GN[:, :1], values_GN[:, -1:]
    steps_K = torch.linspace(0, 1, size, dtype=torch.float64)
    centroids_GK = low_G1 + (high_G1 - low_G1) * steps_K
    ends_GK = torch.full_like(centroids_GK, sorted_GN.shape[1], dtype=torch.int64)
    for _ in range(MOST_ITERATIONS):
        before = ends_GK.clone()
        ends_GK[:, :-1] = torch.searchsorted(sorted_GN, _boundaries(centroids_GK.float()), right=True)
        if torch.equal(ends_GK, before):
            break
        count_GK, sum_GK, square_GK = (_between(ends_GK, terms) for terms in (counts, sums, squares))
        centroids_GK = torch.where(count_GK > 0, sum_GK / count_GK.clamp(min=1), centroids_GK)
        error_GK = (square_GK - sum_GK * centroids_GK).clamp_(min=0).masked_fill_(count_GK == 0, 0)
        centroids_GK = _fill(centroids_GK, count_GK, error_GK)
    return centroids_GK.float()


def _until(terms_GN: Tensor) -> Tensor:
    """Return the sums of the first 0, 1, ..., N terms, (G, N + 1), in doubles."""
    sums = np.zeros((len(terms_GN), terms_GN.shape[1] + 1))
    np.cumsum(terms_GN.numpy(), axis=1, dtype=np.float64, out=sums[:, 1:])
    return torch.from_numpy(sums)


def _between(ends_GK: Tensor, terms: Tensor) -> Tensor:
    """Return the sums over each cluster, from cumulative sums."""
    until_GK = terms.gather(1, ends_GK)
    return until_GK.diff(dim=1, prepend=torch.zeros_like(until_GK[:, :1]))


def _fill(centroids_GK: Tensor, count_GK: Tensor, error_GK: Tensor) -> Tensor:
    """Move centroids that nothing is near to: each takes half of a cluster, the ones with most error first."""
    empty_GK = count_GK == 0
    if not bool(empty_GK.any()):
        return centroids_GK
    vacant_GK = empty_GK.sort(dim=1, descending=True, stable=True).indices
    worst = error_GK.sort(dim=1, descending=True, stable=True)
    crowded_GK = worst.indices
    moves_GK = empty_GK.gather(1, vacant_GK) & (worst.values > 0)
    middle_GK = centroids_GK.gather(1, crowded_GK)
    spread_GK = (worst.values / count_GK.gather(1, crowded_GK).clamp(min=1)).sqrt()
    result = centroids_GK.scatter(1, crowded_GK, torch.where(moves_GK, middle_GK - spread_GK, middle_GK))
    kept_GK = result.gather(1, vacant_GK)
    return result.scatter(1, vacant_GK, torch.where(moves_GK, middle_GK + spread_GK, kept_GK)).sort(dim=1).values
