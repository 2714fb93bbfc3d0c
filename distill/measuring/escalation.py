"""A cascade: the student passes the texts it is least sure of to its teacher. Accuracy gained and latency added."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import softmax

SHARES = np.linspace(0, 1, 21)  # of the texts that go to the teacher


def cascade_curve(
    student_logits: np.ndarray,
    teacher_logits: np.ndarray,
    gold_labels: np.ndarray,
    *,
    student_ms: float,
    teacher_ms: float,
) -> list[dict[str, Any]]:
    """Return accuracy against mean latency as more of the student's least sure texts go to the teacher.

    Both logits are (texts, classes), of the same texts, and calibrated. `student_ms` and `teacher_ms` are the latencies
    of one text; a text that is passed on costs both. Each entry has `below`, the probability under which the student
    passes a text on (None: it passes on all texts), `escalated`, the share of texts passed on, `accuracy` and
    `latency_ms`. Texts of equal probability go together.
    """
    confidence = softmax(student_logits, axis=1).max(axis=1)
    order = np.argsort(confidence, kind="stable")
    ordered = confidence[order]
    wanted = [round(share * len(order)) for share in SHARES]
    counts = {int(np.searchsorted(ordered, ordered[count])) if count < len(order) else count for count in wanted}
    student_right = student_logits.argmax(axis=1) == gold_labels
    teacher_right = teacher_logits.argmax(axis=1) == gold_labels
    curve = []
    for count in sorted(counts):
        passed, kept = order[:count], order[count:]
        share = count / len(order)
        curve.append(
            {
                "below": float(ordered[count]) if count < len(order) else None,
                "escalated": share,
                "accuracy": float((teacher_right[passed].sum() + student_right[kept].sum()) / len(order)),
                "latency_ms": student_ms + share * teacher_ms,
            }
        )
    return curve
