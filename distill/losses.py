"""Distillation losses: pure functions of tensors, one value per example, so that any reduction stays the caller's."""

from __future__ import annotations

import torch
from torch.nn import functional


def soft_target_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T^2 * KL(teacher_T || student_T) per example, shape (batch,), in nats; zero where both agree.

    Both arguments are (batch, classes). T^2 keeps the gradient's scale independent of T: Hinton, Vinyals and Dean 2015,
    "Distilling the Knowledge in a Neural Network", section 2. Computed in fp32, since the differences of nearly equal
    log-probabilities vanish in half precision.
    """
    student_log_probabilities = functional.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher_log_probabilities = functional.log_softmax(teacher_logits.float() / temperature, dim=-1)
    divergence = functional.kl_div(
        student_log_probabilities, teacher_log_probabilities, reduction="none", log_target=True
    )
    return divergence.sum(dim=-1) * temperature**2


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    gold_labels: torch.Tensor,
    *,
    temperature: float,
    soft_weight: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return soft_weight * soft-target loss + (1 - soft_weight) * cross-entropy per example, shape (batch,).

    Logits are (batch, classes), `gold_labels` (batch,). Source as in `soft_target_loss`, section 2.
    """
    soft = soft_target_loss(student_logits, teacher_logits, temperature)
    hard = functional.cross_entropy(
        student_logits.float(), gold_labels, reduction="none", label_smoothing=label_smoothing
    )
    return soft_weight * soft + (1 - soft_weight) * hard
