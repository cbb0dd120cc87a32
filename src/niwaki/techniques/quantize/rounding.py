"""Round one matrix: by the range, by the error of the weights, or by the error of what the matrix puts out."""

# O outputs, I inputs, G groups of a row, N inputs of a group

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from niwaki.errors import NiwakiError
from niwaki.grid import Grid, Rounded, fit, in_groups, nearest, spread, to_floats, to_integers
from niwaki.hessian import factor_of_inverse

#: Shares of a group's range that are tried.
SHRINKS = tuple(1.0 - 0.025 * index for index in range(25))
#: Share of a row's weights inside the range, by "percentile".
PERCENTILE = 0.999
#: Columns rounded before what is left of the matrix makes up for them.
BLOCK = 128
#: How often all columns are looked at again, after each had its turn.
SWEEPS = 4
#: Exponents of the inputs' size that are tried.
EXPONENTS = tuple(index / 20 for index in range(20))
#: Half-quadratic: norm of the error, how stiff at first, by how much stiffer each time, how often.
NORM, STIFFNESS, GROWTH, ITERATIONS = 0.7, 10.0, 1.01, 20


def mean_square(weight_OI: Tensor, grid: Grid, importance_I: Tensor | None = None) -> Rounded:
    """Round to the nearest step of the range that costs least: each group's own is shrunk to the least squared error.

    Args:
        weight_OI: the matrix.
        grid: what it is rounded to.
        importance_I: how much an input counts, as its mean square; none: all alike.

    Source: Nagel et al. 2021, A White Paper on Neural Network Quantization, section 3.1 (range by mean squared error).
    """
    best_OG: Tensor | None = None
    shrink_OG: Tensor | float = 1.0
    for shrink in SHRINKS:
        scale_OG, zero_OG = fit(weight_OI, grid, shrink)
        difference_OI = to_floats(to_integers(weight_OI, scale_OG, zero_OG, grid), scale_OG, zero_OG, grid) - weight_OI
        costs_OI = difference_OI.square() if importance_I is None else difference_OI.square() * importance_I.float()
        costs_OG = in_groups(costs_OI, grid).sum(dim=2)
        if grid.group == "tensor":
            costs_OG = costs_OG.sum().expand_as(costs_OG)
        if best_OG is None:
            best_OG, shrink_OG = costs_OG, torch.ones_like(costs_OG)
        better_OG = costs_OG < best_OG
        best_OG = torch.where(better_OG, costs_OG, best_OG)
        shrink_OG = torch.where(better_OG, shrink, shrink_OG)
    scale_OG, zero_OG = fit(weight_OI, grid, shrink_OG)
    return Rounded(to_integers(weight_OI, scale_OG, zero_OG, grid), scale_OG, zero_OG)


def percentile(weight_OI: Tensor, grid: Grid, share: float = PERCENTILE) -> Rounded:
    """Round to the nearest step of a range that holds this share of each row's weights; the others are clipped.

    Source: Wu et al. 2020, Integer Quantization for Deep Learning Inference, section 3.2 (percentile calibration).
    """
    flat_RI = weight_OI.detach().float().reshape(1, -1) if grid.group == "tensor" else weight_OI.detach().float()
    tail = max(1, round(flat_RI.shape[1] * (1.0 - share) / 2))
    low_R1, high_R1 = (flat_RI.kthvalue(k, dim=1, keepdim=True).values for k in (tail, flat_RI.shape[1] - tail + 1))
    clipped_OI = torch.minimum(torch.maximum(weight_OI.detach().float(), low_R1), high_R1)
    return nearest(clipped_OI, grid)


def gptq(weight_OI: Tensor, products_II: Tensor, grid: Grid, block: int = BLOCK) -> Rounded:
    """Round column by column, let the columns that are not rounded yet make up for the error, and look at all again.

    With H = X^T X of the inputs X and U the upper Cholesky factor of H^-1, rounding column j by e changes the columns k
    behind it best by -(e / U_jj) U_jk. Columns with the largest inputs come first; steps and zero points of each group
    are those of the matrix as it was, shrunk to the least error, so that the order changes nothing about groups.

    Args:
        weight_OI: the matrix.
        products_II: X^T X over real tokens.
        grid: what it is rounded to.
        block: columns rounded before what is left of the matrix follows.

    Raises:
        NiwakiError: H has no Cholesky factor, however damped: the inputs are not finite.

    References:
        Frantar et al. 2023, GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
        algorithm 1. The last looks: `swept`.
    """
    diagonal_I = products_II.diagonal()
    start = mean_square(weight_OI, grid, diagonal_I / diagonal_I.mean().clamp_min(1e-30))
    width = weight_OI.shape[1]
    order_I = diagonal_I.argsort(descending=True, stable=True)
    factor_II = factor_of_inverse(products_II.double()[order_I][:, order_I]).float()
    left_OI = weight_OI.detach().float()[:, order_I]
    left_OI[:, diagonal_I[order_I] == 0] = 0.0  # inputs that are always zero: their weights do nothing
    scale_OI = spread(start.scale, width, grid)[:, order_I]
    zero_OI = (
        torch.full_like(scale_OI, grid.middle)
        if start.zero is None
        else spread(start.zero.float(), width, grid)[:, order_I]
    )
    integers_OI = torch.empty_like(left_OI)
    for first in range(0, width, block):
        last = min(first + block, width)
        part_OC, factor_CC = left_OI[:, first:last], factor_II[first:last, first:last]
        errors_OC = torch.zeros_like(part_OC)
        for column in range(last - first):
            place = first + column
            scale_O, zero_O = scale_OI[:, place], zero_OI[:, place]
            rounded_O = (part_OC[:, column] / scale_O + zero_O).round().clamp(grid.lowest, grid.highest)
            integers_OI[:, place] = rounded_O
            errors_OC[:, column] = (part_OC[:, column] - (rounded_O - zero_O) * scale_O) / factor_CC[column, column]
            part_OC[:, column + 1 :] -= errors_OC[:, column, None] * factor_CC[column, None, column + 1 :]
        left_OI[:, last:] -= errors_OC @ factor_II[first:last, last:]
    back_I = order_I.argsort()
    rounded = Rounded(integers_OI[:, back_I].to(torch.uint8), start.scale, start.zero)
    for _ in range(SWEEPS):
        rounded = swept(weight_OI, products_II, rounded, grid, block)
    return rounded


def swept(weight_OI: Tensor, products_II: Tensor, rounded: Rounded, grid: Grid, block: int = BLOCK) -> Rounded:
    """Go through the columns once more and round each to what is best while all others stay as they are.

    The error trace(D H D^T), with D the difference of the matrices, never rises: in column j of D its gradient is
    (D H)_j, so the best weight is w_j - (D H)_j / H_jj, and the nearest step to it is taken.

    Source: Nair and Suggala 2024, CDQuant: Greedy Coordinate Descent for Accurate LLM Quantization (there the column
    that gains most comes first).
    """
    width = weight_OI.shape[1]
    scale_OI = spread(rounded.scale, width, grid).float()
    zero_OI = torch.full_like(scale_OI, grid.middle) if rounded.zero is None else spread(rounded.zero, width, grid)
    integers_OI = rounded.integers.float()
    products_II = (products_II / products_II.diagonal().mean().clamp_min(1e-30)).float()
    curvature_I = products_II.diagonal().clamp_min(1e-12)
    gradient_OI = ((integers_OI - zero_OI) * scale_OI - weight_OI.detach().float()) @ products_II
    for first in range(0, width, block):
        last = min(first + block, width)
        before_OC, part_CC = integers_OI[:, first:last].clone(), products_II[first:last, first:last]
        for column in range(first, last):
            step_O = gradient_OI[:, column] / (curvature_I[column] * scale_OI[:, column])
            best_O = (integers_OI[:, column] - step_O).round().clamp(grid.lowest, grid.highest)
            change_O = (best_O - integers_OI[:, column]) * scale_OI[:, column]
            gradient_OI[:, first:last] += change_O[:, None] * part_CC[column - first]
            integers_OI[:, column] = best_O
        moved_OC = (integers_OI[:, first:last] - before_OC) * scale_OI[:, first:last]
        gradient_OI[:, :first] += moved_OC @ products_II[first:last, :first]
        gradient_OI[:, last:] += moved_OC @ products_II[first:last, last:]
    return Rounded(integers_OI.to(torch.uint8), rounded.scale, rounded.zero, rounded.input_scale)


def awq(weight_OI: Tensor, products_II: Tensor, grid: Grid) -> Rounded:
    """Scale the inputs that carry most up in the weights before rounding, and down in front of the product.

    The factors are those of `awq_factors`. Ranges are then shrunk as by "mean-square".

    Args:
        weight_OI: the matrix.
        products_II: X^T X over real tokens.
        grid: what it is rounded to.
    """
    factors_I = awq_factors([weight_OI], products_II, [grid])
    rounded = behind_factors(weight_OI, products_II, grid, factors_I)
    return Rounded(rounded.integers, rounded.scale, rounded.zero, 1.0 / factors_I)


def awq_factors(
    weights: Sequence[Tensor], products_II: Tensor, grids: Sequence[Grid], size_I: Tensor | None = None
) -> Tensor:
    """Return what the columns of matrices that read the same inputs are best multiplied by before rounding, (I,).

    Input j is divided by s_j = x_j^a and its columns multiplied by it, where x_j is the root of its mean square and a
    the exponent, of 20 between 0 and 1, whose rounded matrices change the outputs least: the error of the outputs is
    trace(D H D^T) with D the difference of the matrices and H = X^T X.

    Args:
        weights: the matrices, (O, I) each.
        products_II: X^T X over real tokens.
        grids: what each matrix is rounded to.
        size_I: x_j, where inputs that are divided by one number have to have one size.

    Raises:
        NiwakiError: X^T X is not finite.

    References:
        Lin et al. 2024, AWQ: Activation-aware Weight Quantization, equations 4 and 5 (there x_j is the mean of |X_j|).
    """
    products_II = products_II.double()
    size_I = products_II.diagonal().sqrt() if size_I is None else size_I
    best_I, least = torch.ones(len(products_II)), float("inf")
    for exponent in EXPONENTS:
        factors_I = size_I.clamp_min(1e-12) ** exponent
        factors_I = (factors_I / (factors_I.max() * factors_I.min()).sqrt()).float().clamp(1e-4, 1e4)
        error = 0.0
        for weight_OI, grid in zip(weights, grids, strict=True):
            rounded = behind_factors(weight_OI, products_II, grid, factors_I)
            difference_OI = (rounded.floats(grid) / factors_I - weight_OI.detach().float()).double()
            error += float((difference_OI @ products_II * difference_OI).sum())
        if error < least:
            best_I, least = factors_I, error
    if least == float("inf"):
        raise NiwakiError("the products of the inputs are not finite", expected="finite activations")
    return best_I


def behind_factors(weight_OI: Tensor, products_II: Tensor, grid: Grid, factors_I: Tensor | float = 1.0) -> Rounded:
    """Round a matrix whose columns are multiplied by factors, the inputs divided by them; ranges of least error."""
    weight_OI = weight_OI.detach().float() * factors_I
    factors = factors_I if isinstance(factors_I, float) else factors_I.double()
    return mean_square(weight_OI, grid, products_II.double().diagonal() / factors**2)


def hqq(weight_OI: Tensor, grid: Grid) -> Rounded:
    """Move the zero points so that the error of the weights is small in a norm that forgives outliers; no data.

    In turns: the error E is what soft-thresholding with the exponent 0.7 leaves of W - Q, and the zero point is the
    mean over the group of q - (W - E) / s.

    Source: Badri and Shaji 2023, Half-Quadratic Quantization of Large Machine Learning Models.
    """
    weight_OI = weight_OI.detach().float()
    scale_OG, zero_OG = fit(weight_OI, grid)
    assert zero_OG is not None  # the technique gives a grid whose zero is a float
    width, stiffness, least = weight_OI.shape[1], STIFFNESS, float("inf")
    real_OGN = in_groups(torch.ones_like(weight_OI), grid)
    best_OG = zero_OG
    for _ in range(ITERATIONS):
        integers_OI = to_integers(weight_OI, scale_OG, zero_OG, grid)
        residual_OI = weight_OI - to_floats(integers_OI, scale_OG, zero_OG, grid)
        error = float(residual_OI.abs().mean())
        if error >= least:
            break
        best_OG, least = zero_OG, error
        size_OI = residual_OI.abs()
        threshold_OI = size_OI.clamp_min(1e-12) ** (NORM - 1.0) / stiffness
        error_OI = residual_OI.sign() * (size_OI - threshold_OI).clamp_min(0.0)
        wanted_OI = integers_OI.float() - (weight_OI - error_OI) / spread(scale_OG, width, grid)
        zero_OG = in_groups(wanted_OI, grid).sum(dim=2) / real_OGN.sum(dim=2)
        stiffness *= GROWTH
    return Rounded(to_integers(weight_OI, scale_OG, best_OG, grid), scale_OG, best_OG)
