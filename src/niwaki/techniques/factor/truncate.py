"""Cut one matrix to a low rank, by what an error in it costs."""

# O outputs, I inputs, K rank of the whole, R rank that is kept, V vocabulary, D hidden, P tokens

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from niwaki.hessian import factor_of_inverse

#: Share of the mean of the diagonal that is added to products of inputs.
RIDGE = 1e-3
#: How much of the size of an input counts, by "asvd": the exponent alpha of the paper.
EXPONENT = 0.5


@dataclass(frozen=True)
class Spectrum:
    """Hold a matrix as a sum of parts of rank 1, the one that counts most first.

    W = left diag(values) right, and leaving a part out costs the square of its value.

    Attributes:
        left_OK: orthonormal columns.
        values_K: descending.
        right_KI: rows.
    """

    left_OK: Tensor
    values_K: Tensor
    right_KI: Tensor

    def pair(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return inner (R, I) and outer (O, R) in 32 bits, each with the root of the values."""
        root_R = self.values_K[:rank].sqrt()
        return (root_R[:, None] * self.right_KI[:rank]).float(), (self.left_OK[:, :rank] * root_R).float()

    @property
    def lost_K(self) -> Tensor:
        """Return what 0, 1, ..., K parts lose, (K + 1): shares of the sum of all squares, from 1 to 0."""
        squares_K = self.values_K.square()
        tail_K = squares_K.flip(0).cumsum(0).flip(0)
        return torch.cat([tail_K, tail_K.new_zeros(1)]) / tail_K[0].clamp_min(1e-300)


def spectrum(weight_OI: Tensor, metric: Tensor | None = None) -> Spectrum:
    """Take a matrix apart by W S = U diag(s) V^T, so that W = U diag(s) (V^T S^-1).

    Cut to its first R parts it is the matrix of rank R with the least ||(W - W_R) S||^2, and that is the sum of the
    other s^2.

    Args:
        weight_OI: the matrix.
        metric: none, S = I: the error of the weights; (I,), S = diag(metric), above 0; or (I, I), X^T X of the inputs X
            as products: S is a root of it, S S^T = X^T X, and the error that of the outputs, ||(W - W_R) X^T||^2.

    Source: Wang et al. 2024, SVD-LLM, section 3.1 (S a Cholesky factor).
    """
    weight_OI = weight_OI.detach().double()
    if metric is None:
        return Spectrum(*torch.linalg.svd(weight_OI, full_matrices=False))
    metric = metric.to(weight_OI)
    if metric.dim() == 1:
        left_OK, values_K, right_KI = torch.linalg.svd(weight_OI * metric, full_matrices=False)
        return Spectrum(left_OK, values_K, right_KI / metric)
    inverse_II = factor_of_inverse(metric, RIDGE)  # the inverse of S, upper triangular
    scaled_OI = torch.linalg.solve_triangular(inverse_II, weight_OI, upper=True, left=False)
    left_OK, values_K, right_KI = torch.linalg.svd(scaled_OI, full_matrices=False)
    return Spectrum(left_OK, values_K, right_KI @ inverse_II)


def by_fisher(fisher_OI: Tensor) -> Tensor:
    """Return the metric (I,) of "fisher": the root of the sum of each input's Fisher information.

    Source: Hsu et al. 2022, Language model compression with weighted low-rank factorization, section 3 (there the
    matrix has a row for each input).
    """
    importance_I = fisher_OI.double().sum(dim=0).sqrt()
    return importance_I.clamp_min(max(1e-6 * float(importance_I.max()), 1e-30))


def by_size(squares_I: Tensor) -> Tensor:
    """Return the metric (I,) of "asvd": the size of each input to the power of 0.5.

    Source: Yuan et al. 2023, ASVD, section 3.2 (there the size is the mean of |x|, here the root of its mean square).
    """
    size_I = squares_I.double().sqrt()
    return (size_I / size_I.mean().clamp_min(1e-30)).clamp_min(1e-6) ** EXPONENT


def refitted(weight_OI: Tensor, inner_RI: Tensor, outer_OR: Tensor, products_II: Tensor, cross_II: Tensor) -> Tensor:
    """Return the outer matrix (O, R) that gives best, of the inputs as they have become, the outputs as they were.

    min over B of ||Z W^T - X A^T B^T||^2 + ridge ||B - outer||^2, with A the inner matrix, Z the inputs before anything
    was cut, and X those now.

    Args:
        weight_OI: W, the whole matrix.
        inner_RI: A, as the matrix was cut.
        outer_OR: B, as the matrix was cut.
        products_II: X^T X.
        cross_II: Z^T X.

    Source: Wang et al. 2024, SVD-LLM, section 3.2 (there Z is X).
    """
    inner_RI, outer_OR = inner_RI.double(), outer_OR.double()
    seen_RR = inner_RI @ products_II.double() @ inner_RI.T
    wanted_OR = weight_OI.detach().double() @ cross_II.double() @ inner_RI.T
    ridge = RIDGE * seen_RR.diagonal().mean().clamp_min(1e-30)
    damped_RR = seen_RR + ridge * torch.eye(len(seen_RR), dtype=seen_RR.dtype, device=seen_RR.device)
    solved_OR: Tensor = torch.linalg.solve(damped_RR, wanted_OR + ridge * outer_OR, left=False)
    return solved_OR.float()


def narrow_table(table_VD: Tensor, counts_V: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return a table (V, R) and what widens its rows, (D, R), with the least sum of counts * ||E_v - A_v B||^2.

    B are the R directions in which the rows, each as often as it is read, are longest (eigenvectors of E^T diag(f) E),
    and the best A given B is E B^T whatever the counts.

    Args:
        table_VD: the whole table E.
        counts_V: how often each row is read, above 0.
        rank: 1 to D.

    Returns:
        The two, and the share of that sum's value at rank 0 that is lost.
    """
    table = table_VD.detach().double()
    gram_DD = table.T @ (table * counts_V.to(table)[:, None])
    values_D, vectors_DD = torch.linalg.eigh(gram_DD)  # ascending
    outer_DR = vectors_DD[:, -rank:].flip(1)
    lost = float(values_D[:-rank].clamp_min(0.0).sum() / values_D.sum().clamp_min(1e-300))
    return (table @ outer_DR).float(), outer_DR.float().contiguous(), lost
