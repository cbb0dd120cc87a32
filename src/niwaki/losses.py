"""Distillation losses: pure functions of tensors."""

# B batch, T tokens, D hidden, R relation heads, S width of a relation head, C classes, P tokens that are not padding

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def soft_targets(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(teacher/T) || softmax(student/T)), mean over the batch.

    The factor T^2 keeps the size of the gradient the same over temperatures (Hinton, Vinyals and Dean 2015, section 2).

    >>> same = torch.tensor([[1.0, -1.0]])
    >>> float(soft_targets(same, same, temperature=4.0))
    0.0
    """
    student = functional.log_softmax(student_BC.float() / temperature, dim=-1)
    teacher = functional.log_softmax(teacher_BC.float() / temperature, dim=-1)
    divergence: Tensor = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def reverse_divergence(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """Return KL(softmax(student) || softmax(teacher)), mean over the batch: it keeps off what the teacher rules out.

    Source: Liu et al. 2020, FastBERT, the loss of self-distillation.

    >>> even, sure = torch.zeros(1, 2), torch.tensor([[0.0, 2.0]])
    >>> float(reverse_divergence(even, even))
    0.0
    >>> round(float(reverse_divergence(even, sure)), 4)  # log 1/2 less the mean of -2.1269 and -0.1269
    0.4338
    """
    student = functional.log_softmax(student_BC.float(), dim=-1)
    teacher = functional.log_softmax(teacher_BC.float(), dim=-1)
    divergence: Tensor = functional.kl_div(teacher, student, reduction="batchmean", log_target=True)
    return divergence


def scaled_squares(student_PD: Tensor, teacher_PD: Tensor) -> Tensor:
    """Return the mean square of the difference over the teacher's variance: 0 when equal, about 2 when unrelated.

    Dividing by the variance makes one weight serve models of any scale.
    """
    teacher = teacher_PD.float()
    error: Tensor = functional.mse_loss(student_PD.float(), teacher)
    return error / teacher.var().clamp_min(1e-12)


def relations(states_BTD: Tensor, mask_BT: Tensor, relation_heads: int) -> Tensor:
    """Return log softmax(A A^T / sqrt(S)) for each relation head (B, R, T, T); padded columns get no weight.

    Source: Wang et al. 2021, MiniLMv2, equation 4.
    """
    batch, tokens, width = states_BTD.shape
    split_BRTS = states_BTD.float().view(batch, tokens, relation_heads, width // relation_heads).transpose(1, 2)
    with torch.autocast(states_BTD.device.type, enabled=False):  # in bf16 a large score is off by more than a nat
        scores_BRTT = split_BRTS @ split_BRTS.transpose(-1, -2) / (width // relation_heads) ** 0.5
    scores_BRTT = scores_BRTT.masked_fill(~mask_BT[:, None, None, :].bool(), torch.finfo(torch.float32).min)
    log_shares_BRTT: Tensor = scores_BRTT.log_softmax(dim=-1)
    return log_shares_BRTT


def relation_divergence(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor, relation_heads: int) -> Tensor:
    """Return the mean KL(teacher || student) of the relations, over relation heads and tokens that are not padding.

    The widths of student and teacher may differ; both are divisible by `relation_heads`.
    Source: Wang et al. 2021, MiniLMv2, equation 5.
    """
    student = relations(student_BTD, mask_BT, relation_heads)
    teacher = relations(teacher_BTD, mask_BT, relation_heads)
    divergence_BRT = (teacher.exp() * (teacher - student)).sum(dim=-1)
    rows_BRT = mask_BT[:, None, :].expand_as(divergence_BRT).float()
    return (divergence_BRT * rows_BRT).sum() / rows_BRT.sum()
