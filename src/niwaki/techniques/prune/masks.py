"""Choose which single weights stay: pure functions from scores to masks of True for each weight that stays."""

# O outputs, I inputs, G groups of M weights in a row

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GONE = float("-inf")


@dataclass(frozen=True)
class Rule:
    """Say how many weights stay, and among which they compete.

    Attributes:
        keep: share of the weights that stays; not looked at where there is a pattern.
        pattern: (N, M): N of every M weights in a row of the matrix stay.
        even: the same share in every matrix; else the strongest weights of all matrices stay.
    """

    keep: float = 1.0
    pattern: tuple[int, int] | None = None
    even: bool = False

    @property
    def share(self) -> float:
        """Return the share of the weights that stays."""
        return self.pattern[0] / self.pattern[1] if self.pattern else self.keep


def read_pattern(text: str | None) -> tuple[int, int] | None:
    """Return N and M of "N:M".

    >>> read_pattern("2:4")
    (2, 4)
    """
    if text is None:
        return None
    kept, _, group = text.partition(":")
    return int(kept), int(group)


def strongest(scores: Tensor, count: int) -> Tensor:
    """Return the mask of exactly `count` highest scores, of any shape; of equal ones the first stay.

    >>> strongest(torch.tensor([[3.0, 1.0], [2.0, 2.0]]), 2).tolist()
    [[True, False], [True, False]]
    """
    flat = scores.reshape(-1)
    if count >= flat.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(flat.numel() - count + 1).values  # by selection: sorting ten million scores takes seconds
    mask = flat > threshold
    ties = (flat == threshold).nonzero()[: count - int(mask.sum()), 0]
    mask[ties] = True
    return mask.reshape(scores.shape)


def in_rows(scores_OI: Tensor, keep: float) -> Tensor:
    """Return the mask of the highest scores of each row, the same number in every row."""
    count = round(keep * scores_OI.shape[1])
    chosen = scores_OI.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(scores_OI, dtype=torch.bool).scatter_(1, chosen, True)


def in_groups(scores_OI: Tensor, pattern: tuple[int, int]) -> Tensor:
    """Return the mask of the N highest scores of every M in a row; M divides I.

    >>> in_groups(torch.tensor([[1.0, 4.0, 2.0, 3.0, 0.0, 0.0, 0.0, 9.0]]), (2, 4)).int().tolist()
    [[0, 1, 0, 1, 1, 0, 0, 1]]
    """
    kept, group = pattern
    return in_rows(scores_OI.reshape(-1, group), kept / group).reshape(scores_OI.shape)


def masks(scores: Sequence[Tensor], rule: Rule, done: float = 1.0) -> list[Tensor]:
    """Return the masks of all matrices when the share `done` of the pruning is done.

    Args:
        scores: (O, I) a matrix; what is gone for good has `GONE`.
        rule: what stays when all is done.
        done: in [0, 1].
    """
    if rule.pattern is None:
        keep = 1.0 - (1.0 - rule.keep) * done
        return _strongest_of_all(scores, keep, rule.even)
    last = [in_groups(one, rule.pattern) for one in scores]
    if done >= 1.0:
        return last
    # On the way to N:M the weakest go first, of those that N:M would take.
    safe = [one.masked_fill(mask, float("inf")) for one, mask in zip(scores, last, strict=True)]
    return _strongest_of_all(safe, 1.0 - (1.0 - rule.share) * done, rule.even)


def _strongest_of_all(scores: Sequence[Tensor], keep: float, even: bool) -> list[Tensor]:
    if even:
        return [strongest(one, round(keep * one.numel())) for one in scores]
    sizes = [one.numel() for one in scores]
    chosen = strongest(torch.cat([one.reshape(-1) for one in scores]), round(keep * sum(sizes)))
    return [part.reshape(one.shape) for part, one in zip(chosen.split(sizes), scores, strict=True)]
