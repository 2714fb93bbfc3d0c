"""Distillation losses: pure functions of tensors that return one value per example, for the caller to reduce."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from distill.training.losses import gold_loss


def soft_target_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T^2 * KL(teacher_T || student_T) per example, shape (batch,), in nats; zero if both agree.

    Both arguments are (batch, classes). T^2 keeps the gradient's scale independent of T: Hinton, Vinyals and Dean 2015,
    "Distilling the Knowledge in a Neural Network", section 2. Computed in fp32, because the difference of nearly equal
    log-probabilities vanishes in half precision.
    """
    student_log_probabilities = functional.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher_log_probabilities = functional.log_softmax(teacher_logits.float() / temperature, dim=-1)
    divergence = functional.kl_div(
        student_log_probabilities, teacher_log_probabilities, reduction="none", log_target=True
    )
    return divergence.sum(dim=-1) * temperature**2


def label_target_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T^2 * KL(teacher_T || student_T) of each label, their mean per example, shape (batch,), in nats.

    It is for texts with several labels: both arguments are (batch, labels), and the probability of a label is the
    sigmoid of its logit / T, so that each label is a `soft_target_loss` between "yes" and "no". Computed in fp32.
    """
    student, teacher = (
        torch.stack([torch.zeros_like(logits), logits], dim=-1).flatten(end_dim=-2)
        for logits in (student_logits.float(), teacher_logits.float())
    )
    return soft_target_loss(student, teacher, temperature).view_as(student_logits).mean(dim=-1)


def label_mse_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Return half the mean squared distance of the labels' logits per example, shape (batch,), in squared logits.

    It is `logit_mse_loss` for texts with several labels. Each logit has a meaning of its own, so none is centered, and
    the loss does not grow with the number of labels. Both arguments are (batch, labels). Computed in fp32.
    """
    return (student_logits.float() - teacher_logits.float()).square().mean(dim=-1) / 2


def logit_mse_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Return half the squared distance of centered logits per example, shape (batch,), in squared logits.

    Both arguments are (batch, classes). Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?", equation 1, on
    logits minus their mean over the classes. The loss grows with the number of classes, and one outlying logit can
    dominate it. Computed in fp32.
    """
    difference = student_logits.float() - teacher_logits.float()
    # Adding a constant to an example's logits changes no probability, so the student need not learn it.
    difference = difference - difference.mean(dim=-1, keepdim=True)
    return difference.square().sum(dim=-1) / 2


def decoupled_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    target_classes: torch.Tensor,
    temperature: float,
    *,
    target_weight: float = 1.0,
    other_weight: float | torch.Tensor = 8.0,
) -> torch.Tensor:
    """Return T^2 * (target_weight * TCKD + other_weight * NCKD) per example, shape (batch,), in nats.

    Logits are (batch, classes), and `target_classes` (batch,) holds class indices. TCKD is the divergence of the target
    class against the rest, NCKD the divergence among the other classes: Zhao et al. 2022, "Decoupled Knowledge
    Distillation", equation 7. `soft_target_loss` is the same with target_weight 1 and other_weight 1 - p(target), from
    the teacher at T, so a confident teacher's knowledge of the other classes counts little there. `other_weight` may be
    (batch,). With two classes NCKD is zero. Computed in fp32.
    """
    student_target, student_others = _split_target(student_logits.float() / temperature, target_classes)
    teacher_target, teacher_others = _split_target(teacher_logits.float() / temperature, target_classes)
    # All other classes together have the logit logsumexp; 1 - p(target) would round to zero for a confident model.
    target_divergence = soft_target_loss(
        torch.cat([student_target, student_others.logsumexp(dim=-1, keepdim=True)], dim=-1),
        torch.cat([teacher_target, teacher_others.logsumexp(dim=-1, keepdim=True)], dim=-1),
        temperature=1.0,
    )
    other_divergence = soft_target_loss(student_others, teacher_others, temperature=1.0)
    return (target_weight * target_divergence + other_weight * other_divergence) * temperature**2


def _split_target(logits: torch.Tensor, target_classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of the target class, (batch, 1), and of the other classes in order, (batch, classes - 1)."""
    target = target_classes.unsqueeze(-1)
    others = torch.arange(logits.shape[-1] - 1, device=logits.device)
    others = others + (others >= target)  # skips the target
    # gather instead of a mask of -inf, whose gradient would be NaN.
    return logits.gather(-1, target), logits.gather(-1, others)


def hidden_cosine_loss(
    student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Return the mean of 1 - cosine over an example's real tokens, shape (batch,), from 0 (same direction) to 2.

    Hidden states are (batch, tokens, width), `attention_mask` (batch, tokens), nonzero at real tokens. Sanh et al.
    2019, "DistilBERT, a distilled version of BERT", section 3. It ignores vector lengths. Both widths must be equal.
    Computed in fp32.
    """
    cosine = functional.cosine_similarity(
        _without_padding(student_hidden, attention_mask), _without_padding(teacher_hidden, attention_mask), dim=-1
    )
    return _mean_over_tokens(1 - cosine, attention_mask)


def hidden_mse_loss(
    student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Return the mean squared difference over an example's real tokens and the width, shape (batch,), squared units.

    Hidden states are (batch, tokens, width), `attention_mask` (batch, tokens), nonzero at real tokens. Jiao et al.
    2020, "TinyBERT", equation 8; the caller projects a narrower student. Computed in fp32.
    """
    difference = _without_padding(student_hidden, attention_mask) - _without_padding(teacher_hidden, attention_mask)
    return _mean_over_tokens(difference.square().mean(dim=-1), attention_mask)


def attention_relation_loss(
    student_heads: torch.Tensor, teacher_heads: torch.Tensor, attention_mask: torch.Tensor, relation_heads: int
) -> torch.Tensor:
    """Return KL(teacher || student) of token relations, mean over relation heads and real tokens, (batch,), in nats.

    The heads are the queries, the keys or the values, (batch, heads, tokens, head_size). `attention_mask` is (batch,
    tokens), nonzero at real tokens. Heads and widths of student and teacher may differ: the heads are concatenated and
    split into `relation_heads`. A token's relations are softmax(A A^T / sqrt(size)) over the real tokens. Wang et al.
    2021, "MiniLMv2", equations 3 to 5. Needs memory for batch * relation_heads * tokens^2 numbers per model. Computed
    in fp32. Raises ValueError if a width is not divisible by `relation_heads`.
    """
    student_relations = _relation_logits(student_heads, attention_mask, relation_heads, "student")
    teacher_relations = _relation_logits(teacher_heads, attention_mask, relation_heads, "teacher")
    divergence = soft_target_loss(student_relations, teacher_relations, temperature=1.0)
    return _mean_over_tokens(divergence.mean(dim=1), attention_mask)


def _relation_logits(heads: torch.Tensor, attention_mask: torch.Tensor, relation_heads: int, role: str) -> torch.Tensor:
    """Return A A^T / sqrt(size), (batch, relation_heads, tokens, tokens), with the lowest number in padding columns."""
    states = heads.transpose(1, 2).flatten(2)
    width = states.shape[-1]
    if width % relation_heads:
        raise ValueError(f"the {role}'s width {width} is not divisible by {relation_heads} relation heads")
    states = _without_padding(states, attention_mask).unflatten(2, (relation_heads, -1)).transpose(1, 2)
    with torch.autocast(states.device.type, enabled=False):  # autocast would multiply in half precision
        logits = states @ states.transpose(-1, -2) / math.sqrt(width // relation_heads)
    # Not -inf: the difference of two is NaN. The difference of two lowest numbers is zero, so padding has no weight.
    return logits.masked_fill(~attention_mask.bool()[:, None, None, :], torch.finfo(logits.dtype).min)


def _without_padding(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return (batch, tokens, width) in fp32 with zeros at padding, where attention may leave any value, even NaN."""
    return states.float().masked_fill(~attention_mask.bool().unsqueeze(-1), 0.0)


def _mean_over_tokens(values: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of (batch, tokens) over each example's real tokens; zero if there are none."""
    real = attention_mask.bool()
    return values.masked_fill(~real, 0.0).sum(dim=-1) / real.sum(dim=-1).clamp(min=1)


def mean_of_teachers(teacher_logits: torch.Tensor, weights: Sequence[float], *, several: bool = False) -> torch.Tensor:
    """Return logits, (batch, classes), whose softmax is the weighted mean of the teachers' probabilities.

    If a text may have `several` labels, it is their sigmoid. `teacher_logits` is (batch, teachers, classes). `weights`
    has one positive number per teacher, with any sum. This is the arithmetic mean of Hinton, Vinyals and Dean 2015,
    "Distilling the Knowledge in a Neural Network", section 1. A temperature that is applied later softens the mean, not
    each teacher. The logits of a single teacher come back unchanged; for several teachers the result is in fp32. Raises
    ValueError if the weights do not fit.
    """
    teachers = teacher_logits.shape[1]
    if len(weights) != teachers or min(weights) <= 0:
        raise ValueError(f"weights {list(weights)} are not {teachers} positive numbers, one per teacher")
    if teachers == 1:
        return teacher_logits[:, 0]
    shares = torch.tensor(weights, dtype=torch.float32, device=teacher_logits.device)
    log_weights = (shares / shares.sum()).log().unsqueeze(-1)
    logits = teacher_logits.float()
    if several:
        yes, no = ((functional.logsigmoid(one) + log_weights).logsumexp(dim=1) for one in (logits, -logits))
        return yes - no
    return (functional.log_softmax(logits, dim=-1) + log_weights).logsumexp(dim=1)


def distillation_loss(
    student_logits: torch.Tensor,
    soft_loss: torch.Tensor,
    gold_labels: torch.Tensor,
    labelled: torch.Tensor | None = None,
    *,
    soft_weight: float,
    label_smoothing: float = 0.0,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return soft_weight * soft_loss + (1 - soft_weight) * cross-entropy per example, shape (batch,).

    Logits are (batch, classes), and `soft_loss` (batch,) is one of the losses above. `gold_labels`, `label_smoothing`
    and `class_weights` are those of `gold_loss`. If `labelled` (batch,) is False for an example, its loss is
    soft_weight * soft_loss only. Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network",
    section 2. Computed in fp32.
    """
    hard = gold_loss(student_logits, gold_labels, label_smoothing=label_smoothing, class_weights=class_weights)
    if labelled is not None:
        hard = hard.where(labelled, 0)
    return soft_weight * soft_loss + (1 - soft_weight) * hard
