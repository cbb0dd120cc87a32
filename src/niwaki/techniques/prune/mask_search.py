"""Fisher mask search: which units the loss misses least, looked at in pairs."""

# U units, R units that go, K units that stay

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def curves(fisher: Mapping[str, list[Tensor]]) -> dict[str, list[list[float]]]:
    """Return what the loss grows by when the least important 0, 1, 2, ... units of each block go: half the sum of F_uu.

    When the last one goes, no choice is left that could avoid a pair: 1/2 1^T F 1, where that is more.

    Source: Kwon et al. 2022, A Fast Post-Training Pruning Framework for Transformers, section 4.1.

    >>> curves({"heads": [Tensor([[4, 1], [1, 2]])]})
    {'heads': [[0.0, 1.0, 4.0]]}
    """
    return {kind: [_curve(block_UU.double()) for block_UU in blocks] for kind, blocks in fisher.items()}


def _curve(fisher_UU: Tensor) -> list[float]:
    costs: list[float] = [0.0, *(0.5 * fisher_UU.diagonal().sort().values.cumsum(dim=0)).tolist()]
    return [*costs[:-1], max(costs[-1], 0.5 * float(fisher_UU.sum()))]


def rearranged(fisher_UU: Tensor, stay: int) -> list[int]:
    """Return the units that stay, chosen so that 1/2 (1 - m)^T F (1 - m) is small: units that replace each other count.

    From the least diagonal on, the best swap of a unit that goes with one that stays is made until none helps.

    Source: Kwon et al. 2022, section 4.2 (mask rearrangement).

    >>> rearranged(Tensor([[1.0, 1.0, 0.0], [1.0, 1.1, 0.0], [0.0, 0.0, 1.2]]), stay=1)
    [1]
    """
    fisher_UU = fisher_UU.double()
    by_cost = fisher_UU.diagonal().argsort(stable=True)
    gone_R, kept_K = by_cost[: len(by_cost) - stay].clone(), by_cost[len(by_cost) - stay :].clone()
    own_U = fisher_UU.diagonal()
    with_gone_U = fisher_UU[:, gone_R].sum(dim=1)
    for _ in range(len(gone_R)):
        if not len(gone_R) or not stay:
            break
        back_R = own_U[gone_R] - 2.0 * with_gone_U[gone_R]
        out_K = own_U[kept_K] + 2.0 * with_gone_U[kept_K]
        change_RK = back_R[:, None] + out_K[None] - 2.0 * fisher_UU[gone_R[:, None], kept_K[None]]
        best = int(change_RK.argmin())
        row, column = divmod(best, change_RK.shape[1])
        if float(change_RK[row, column]) >= -1e-12 * float(own_U.sum()):
            break
        with_gone_U += fisher_UU[:, kept_K[column]] - fisher_UU[:, gone_R[row]]
        gone_R[row], kept_K[column] = kept_K[column].clone(), gone_R[row].clone()
    kept: list[int] = kept_K.sort().values.tolist()
    return kept
