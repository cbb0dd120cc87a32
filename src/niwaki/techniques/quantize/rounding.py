"""Round one matrix: by the range, by the error of the weights, or by the error of what the matrix puts out."""

# O outputs, I inputs, G groups of a row, N inputs of a group

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from niwaki.errors import NiwakiError
from niwaki.grid import Grid, Rounded, fit, in_groups, limits, nearest, spread, steps, to_floats, to_integers
from niwaki.hessian import lower_factor

#: Shares of a group's range that are tried.
SHRINKS = tuple(1.0 - 0.025 * index for index in range(25))
#: Share of a row's weights inside the range, by "percentile".
PERCENTILE = 0.999
#: Numbers of a matrix that are looked at together where all ranges are tried: 256 KiB.
CACHED = 1 << 16
#: Columns rounded before what is left of the matrix makes up for them, and before the rest of these columns does.
BLOCK, INNER = 128, 16
#: How often all columns are looked at again, after each had its turn, in a matrix of fewer weights than this: in larger
#: ones each look takes as long as the rounding.
SWEEPS, SWEPT = 4, 1 << 22
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
    costs_SOG = torch.cat([_costs(part_RI, grid, importance_I, weight_OI) for part_RI in _row_parts(weight_OI)], dim=1)
    if grid.group == "tensor":
        costs_SOG = costs_SOG.sum(dim=1, keepdim=True).expand_as(costs_SOG)
    shrink_OG = torch.tensor(SHRINKS, device=weight_OI.device)[costs_SOG.argmin(dim=0)]
    scale_OG, zero_OG = fit(weight_OI, grid, shrink_OG)
    return Rounded(to_integers(weight_OI, scale_OG, zero_OG, grid), scale_OG, zero_OG)


def _row_parts(weight_OI: Tensor) -> tuple[Tensor, ...]:
    """Return the rows in parts that stay in a processor's cache while 25 ranges are tried on them."""
    parts: tuple[Tensor, ...] = weight_OI.detach().split(max(1, CACHED // weight_OI.shape[1]))
    return parts


def _costs(part_RI: Tensor, grid: Grid, importance_I: Tensor | None, weight_OI: Tensor) -> Tensor:
    """Return the squared error of some rows in each group, (S, R, G), by how much the range is shrunk."""
    part_RGN = in_groups(part_RI.float(), grid)
    important_GN = None if importance_I is None else in_groups(importance_I.float()[None], grid)[0]
    low_RG, high_RG = limits(weight_OI if grid.group == "tensor" else part_RI, grid)
    low_RG, high_RG = low_RG[: len(part_RI)], high_RG[: len(part_RI)]
    shrink_S11 = torch.tensor(SHRINKS, device=part_RI.device)[:, None, None]
    scale_SRG, zero_SRG = steps(low_RG * shrink_S11, high_RG * shrink_S11, grid)
    zero_SRG = torch.full_like(scale_SRG, grid.middle) if zero_SRG is None else zero_SRG.float()
    ends = [(limit - zero_SRG)[..., None].unbind() for limit in (grid.lowest, grid.highest)]
    tried_RGN, costs = torch.empty_like(part_RGN), []
    for scale_RG1, low_RG1, high_RG1 in zip(scale_SRG[..., None].unbind(), *ends, strict=True):
        torch.div(part_RGN, scale_RG1, out=tried_RGN).round_()
        # the two bounds one by one: a clamp between tensors is not vectorized
        torch.maximum(tried_RGN, low_RG1, out=tried_RGN)
        torch.minimum(tried_RGN, high_RG1, out=tried_RGN)
        error_RGN = tried_RGN.mul_(scale_RG1).sub_(part_RGN).square_()
        costs.append((error_RGN if important_GN is None else error_RGN.mul_(important_GN)).sum(dim=2))
    return torch.stack(costs)


def percentile(weight_OI: Tensor, grid: Grid, share: float = PERCENTILE) -> Rounded:
    """Round to the nearest step of a range that holds this share of each row's weights; the others are clipped.

    Source: Wu et al. 2020, Integer Quantization for Deep Learning Inference, section 3.2 (percentile calibration).
    """
    flat_RI = weight_OI.detach().float().reshape(1, -1) if grid.group == "tensor" else weight_OI.detach().float()
    tail = max(1, round(flat_RI.shape[1] * (1.0 - share) / 2))
    low_R1, high_R1 = (flat_RI.kthvalue(k, dim=1, keepdim=True).values for k in (tail, flat_RI.shape[1] - tail + 1))
    clipped_OI = torch.minimum(torch.maximum(weight_OI.detach().float(), low_R1), high_R1)
    return nearest(clipped_OI, grid)


def gptq(weight_OI: Tensor, products_II: Tensor, grid: Grid, block: int = BLOCK, sweeps: int | None = None) -> Rounded:
    """Round column by column, and let the columns that are not rounded yet make up for the error.

    With H = X^T X of the inputs X, U the upper Cholesky factor of H^-1 and R = U^-1, so that H = R R^T: rounding column
    j by e changes the columns k behind it best by -(e / U_jj) U_jk. As the errors e_j / U_jj of all columns are D R,
    with D the difference of the matrices so far, column j has become w_j + (D R)_j / R_jj when its turn comes; so one
    factor of H is enough, and no inverse. Columns with the largest inputs come first; steps and zero points of each
    group are those of the matrix as it was, shrunk to the least error, so that the order changes nothing about groups.

    Args:
        weight_OI: the matrix.
        products_II: X^T X over real tokens.
        grid: what it is rounded to.
        block: columns rounded before what is left of the matrix follows.
        sweeps: how often all columns are looked at again, after each had its turn (`swept`); by default `SWEEPS` times
            in a matrix that is small enough.

    Raises:
        NiwakiError: H has no Cholesky factor, however damped: the inputs are not finite.

    References:
        Frantar et al. 2023, GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
        algorithm 1. Chen et al. 2025, The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm (the
        factor of H).
    """
    products_II = _of_mean_one(products_II)
    start = mean_square(weight_OI, grid, products_II.diagonal())
    rounded = Rounded(_in_turn(weight_OI, products_II, start, grid, block), start.scale, start.zero)
    usual = SWEEPS if weight_OI.numel() < SWEPT else 0
    for _ in range(usual if sweeps is None else sweeps):
        rounded = swept(weight_OI, products_II, rounded, grid, block)
    return rounded


def _in_turn(weight_OI: Tensor, products_II: Tensor, start: Rounded, grid: Grid, block: int) -> Tensor:
    """Return the integers of `gptq`, uint8 (O, I).

    Columns stand in the order of their inputs' size, the smallest first, and are taken from the last to the first: then
    R is the lower Cholesky factor as it comes.
    """
    diagonal_I = products_II.diagonal()
    order_I = diagonal_I.argsort(stable=True)
    factor_II = lower_factor(products_II[order_I][:, order_I])
    # weights of inputs that are always zero do nothing
    turned = Turned(weight_OI.detach()[:, order_I] * (diagonal_I[order_I] != 0), start, grid, order_I)
    owed_IO = torch.zeros_like(turned.weight)  # (D R)^T, of the columns before
    pivots = factor_II.diagonal().tolist()
    for first, last in reversed(_stretches(0, len(order_I), block)):
        for begin, end in reversed(_stretches(first, last, INNER)):
            for column in reversed(range(begin, end)):
                turned.round(column, torch.add(turned.weights[column], owed_IO[column], alpha=1.0 / pivots[column]))
                owed_IO[begin:column].addr_(factor_II[column, begin:column], turned.differences[column])
            owed_IO[first:begin].addmm_(factor_II[begin:end, first:begin].T, turned.difference[begin:end])
        owed_IO[:first].addmm_(factor_II[first:last, :first].T, turned.difference[first:last])
    return turned.bytes()[:, order_I.argsort()]


def swept(weight_OI: Tensor, products_II: Tensor, rounded: Rounded, grid: Grid, block: int = BLOCK) -> Rounded:
    """Go through the columns once more and round each to what is best while all others stay as they are.

    The error trace(D H D^T), with D the difference of the matrices, never rises: in column j of D its gradient is
    (D H)_j, so the best weight is w_j - (D H)_j / H_jj, and the nearest step to it is taken.

    Source: Nair and Suggala 2024, CDQuant: Greedy Coordinate Descent for Accurate LLM Quantization (there the column
    that gains most comes first).
    """
    width = weight_OI.shape[1]
    products_II = products_II.float()
    diagonal_I = products_II.diagonal()
    curvature = torch.maximum(diagonal_I, 1e-12 * diagonal_I.mean().clamp_min(1e-18)).tolist()
    turned = Turned(weight_OI.detach(), rounded, grid, torch.arange(width, device=weight_OI.device))
    turned.start(rounded.integers)
    for first, last in _stretches(0, width, block):
        before_CO = turned.difference[first:last].clone()
        gradient_CO = products_II[first:last] @ turned.difference
        for begin, end in _stretches(first, last, INNER):
            for column in range(begin, end):
                turned.move(column, gradient_CO[column - first], 1.0 / curvature[column])
                change_O = turned.differences[column] - before_CO[column - first]
                gradient_CO[column - first + 1 : end - first].addr_(products_II[column, column + 1 : end], change_O)
            changes_NO = turned.difference[begin:end] - before_CO[begin - first : end - first]
            gradient_CO[end - first :].addmm_(products_II[end:last, begin:end], changes_NO)
    return Rounded(turned.bytes(), rounded.scale, rounded.zero, rounded.input_scale)


def _of_mean_one(products_II: Tensor) -> Tensor:
    """Return X^T X in 32 bits, divided by the mean of its diagonal."""
    return products_II.to(torch.float32, copy=True).div_(products_II.diagonal().mean().clamp_min(1e-30))


class Turned:
    """Hold a matrix and what it is rounded to with inputs as rows, so that what belongs to one input lies together.

    Args:
        weight_OI: the matrix.
        rounded: with its steps and zero points.
        grid: what it is rounded to.
        order_I: for each input of the matrix, the place it had when groups were made.

    Attributes:
        weight: (I, O) the matrix, as it was.
        integers: (I, O), as floats.
        difference: (I, O) weight less what the integers stand for.
    """

    def __init__(self, weight_OI: Tensor, rounded: Rounded, grid: Grid, order_I: Tensor) -> None:
        self.grid = grid
        self.weight = weight_OI.float().T.contiguous()
        self.integers, self.difference = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.groups: list[int] = (order_I // grid.columns(len(order_I))).tolist()
        scale_GO = rounded.scale.float().T.contiguous()
        zero_GO = (
            torch.full_like(scale_GO, grid.middle) if rounded.zero is None else rounded.zero.float().T.contiguous()
        )
        # rows as lists: to take one out of a tensor takes as long as to compute with it
        self.weights, self.differences = self.weight.unbind(), self.difference.unbind()
        self.scales, self.zeros = scale_GO.unbind(), zero_GO.unbind()

    def start(self, integers_OI: Tensor) -> None:
        """Begin with these integers."""
        self.integers = integers_OI.T.float().contiguous()
        for row in range(len(self.integers)):
            self._measure(row, self.scales[self.groups[row]], self.zeros[self.groups[row]])

    def round(self, row: int, wanted_O: Tensor) -> None:
        """Round the weights of an input as if they were those wanted; the difference is that to the weights."""
        scale_O, zero_O = self.scales[self.groups[row]], self.zeros[self.groups[row]]
        self._set(row, torch.addcdiv(zero_O, wanted_O, scale_O))
        self._measure(row, scale_O, zero_O)

    def move(self, row: int, by_O: Tensor, times: float) -> None:
        """Round the weights of an input anew, moved by so much."""
        scale_O, zero_O = self.scales[self.groups[row]], self.zeros[self.groups[row]]
        self._set(row, torch.addcdiv(self.integers[row], by_O, scale_O, value=times))
        self._measure(row, scale_O, zero_O)

    def bytes(self) -> Tensor:
        """Return the integers, uint8 (O, I)."""
        return self.integers.to(torch.uint8).T.contiguous()

    def _set(self, row: int, ideal_O: Tensor) -> None:
        torch.clamp(ideal_O.round_(), self.grid.lowest, self.grid.highest, out=self.integers[row])

    def _measure(self, row: int, scale_O: Tensor, zero_O: Tensor) -> None:
        gone_O = self.integers[row] - zero_O
        torch.addcmul(self.weights[row], gone_O, scale_O, value=-1.0, out=self.differences[row])


def _stretches(first: int, last: int, length: int) -> list[tuple[int, int]]:
    """Return the ends of stretches of this length, which cover all from first to last.

    >>> _stretches(0, 5, 2)
    [(0, 2), (2, 4), (4, 5)]
    """
    return [(begin, min(begin + length, last)) for begin in range(first, last, length)]


def awq(weight_OI: Tensor, products_II: Tensor, grid: Grid) -> Rounded:
    """Scale the inputs that carry most up in the weights before rounding, and down in front of the product.

    The factors are those of `awq_factors`. Ranges are then shrunk as by "mean-square".

    Args:
        weight_OI: the matrix.
        products_II: X^T X over real tokens.
        grid: what it is rounded to.
    """
    factors_I = awq_factors([weight_OI], products_II, [grid])
    rounded = behind_factors(weight_OI, products_II.diagonal(), grid, factors_I)
    return replace(rounded, input_scale=1.0 / factors_I)


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
    size_I = products_II.diagonal().double().sqrt() if size_I is None else size_I
    products_II = _of_mean_one(products_II)
    best_I, least = torch.ones(len(products_II)), float("inf")
    for exponent in EXPONENTS:
        factors_I = size_I.clamp_min(1e-12) ** exponent
        factors_I = (factors_I / (factors_I.max() * factors_I.min()).sqrt()).float().clamp(1e-4, 1e4)
        error = 0.0
        for weight_OI, grid in zip(weights, grids, strict=True):
            rounded = behind_factors(weight_OI, products_II.diagonal(), grid, factors_I)
            difference_OI = rounded.floats(grid).div_(factors_I).sub_(weight_OI.detach())
            error += float((difference_OI @ products_II).mul_(difference_OI).sum(dtype=torch.float64))
        if error < least:
            best_I, least = factors_I, error
    if least == float("inf"):
        raise NiwakiError("the products of the inputs are not finite", expected="finite activations")
    return best_I


def behind_factors(weight_OI: Tensor, squares_I: Tensor, grid: Grid, factors_I: Tensor) -> Rounded:
    """Round a matrix whose columns are multiplied by factors, the inputs divided by them; ranges of least error.

    Args:
        weight_OI: the matrix, as it was.
        squares_I: the sum of squares of each input, as they were.
        grid: what it is rounded to.
        factors_I: above 0.
    """
    return mean_square(weight_OI.detach().float() * factors_I, grid, squares_I / factors_I.square())


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
