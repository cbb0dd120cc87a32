"""SparseGPT: remove weights of one matrix column by column, and let the others of the row make up for it."""

# O outputs, I inputs, C columns of a block

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.hessian import factor_of_inverse
from niwaki.techniques.prune.masks import Rule, in_groups, strongest

#: Columns whose masks are chosen together.
BLOCK = 128


def solve(weight_OI: Tensor, products_II: Tensor, rule: Rule, block: int = BLOCK) -> Tensor:
    """Return the weight with the share that `rule` says, so that its outputs change least.

    With H = X^T X of the inputs X, removing weight j of a row costs w_j^2 / [H^-1]_jj, and what is left of the row
    changes best by -(w_j / [H^-1]_jj) [H^-1]_j,: (optimal brain surgeon). Columns are visited from left to right, and
    those passed by change no more, so that all rows share the inverses of H without the columns before j. These stand
    in the rows of one upper Cholesky factor U of H^-1: the first row of (H_j:)^-1 is U_jj U_j,j:. All in 64 bits.

    Args:
        weight_OI: the matrix.
        products_II: X^T X over real tokens.
        rule: share or pattern; each block of columns has the same share.
        block: columns whose masks are chosen together.

    Raises:
        NiwakiError: H has no Cholesky factor, however damped: the inputs are not finite.

    References:
        Frantar and Alistarh 2023, SparseGPT, algorithm 1; section 3.4 for N:M.
    """
    weight = weight_OI.detach().double().clone()
    products = products_II.double()
    idle_I = products.diagonal() == 0
    weight[:, idle_I] = 0  # inputs that are always zero: their weights do nothing
    factor_II = factor_of_inverse(products)
    rows, width = weight.shape
    if rule.pattern is not None:
        block = max(1, block // rule.pattern[1]) * rule.pattern[1]
    for first in range(0, width, block):
        last = min(first + block, width)
        part_OC, factor_CC = weight[:, first:last], factor_II[first:last, first:last]
        kept = round(rule.share * rows * last) - round(rule.share * rows * first)
        mask_OC = _mask(part_OC, factor_CC, rule, kept)
        errors_OC = torch.zeros_like(part_OC)
        for column in range(last - first):
            if rule.pattern is not None and column % rule.pattern[1] == 0:
                group = slice(column, column + rule.pattern[1])
                # chosen as late as can be: what stands there now has made up for what went before
                mask_OC[:, group] = _mask(part_OC[:, group], factor_CC[group, group], rule, 0)
            gone_O = part_OC[:, column].masked_fill(mask_OC[:, column], 0.0)
            errors_OC[:, column] = gone_O / factor_CC[column, column]
            part_OC[:, column:] -= errors_OC[:, column, None] * factor_CC[column, None, column:]
        part_OC.masked_fill_(~mask_OC, 0.0)  # exactly, not but for rounding
        weight[:, last:] -= errors_OC @ factor_II[first:last, last:]
    return weight.to(weight_OI.dtype)


def _mask(part_OC: Tensor, factor_CC: Tensor, rule: Rule, kept: int) -> Tensor:
    """Return which weights stay: those whose removal would cost most, w^2 / U_jj^2."""
    cost_OC = (part_OC / factor_CC.diagonal()).square()
    return strongest(cost_OC, kept) if rule.pattern is None else in_groups(cost_OC, rule.pattern)
