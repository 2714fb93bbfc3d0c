"""The loss on gold labels: a pure function of tensors that returns one value per example, for the caller to reduce."""

from __future__ import annotations

import torch
from torch.nn import functional


def gold_loss(
    logits: torch.Tensor,
    gold_labels: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the cross-entropy of each example, shape (batch,), in nats.

    `logits` is (batch, classes). `gold_labels` holds class indices (batch,) or, if a text may have several labels, 0
    and 1 (batch, classes); the cross-entropy is then that of the sigmoid of each label, and their mean. `class_weights`
    (classes,) multiplies the loss of an example of a class, or that of a label which an example has. Label smoothing
    moves that share of the gold probability to all classes alike (Szegedy et al. 2016, section 7), of a label to "yes"
    and "no". Computed in fp32.
    """
    logits = logits.float()
    if gold_labels.ndim == 1:
        losses = functional.cross_entropy(logits, gold_labels, reduction="none", label_smoothing=label_smoothing)
        return losses if class_weights is None else losses * class_weights[gold_labels]
    targets = gold_labels.float() * (1 - label_smoothing) + label_smoothing / 2
    losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=class_weights)
    return losses.mean(dim=-1)
