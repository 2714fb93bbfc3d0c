"""From logits to probabilities and labels, for tasks with one label a text and for those with several.

With one label a text, gold labels are class indices (examples,), and `thresholds` is None. With several, they are a
matrix (examples, labels) of 0 and 1, and `thresholds` has the lowest probability at which each label is answered.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Thresholds = Sequence[float] | None
NO_LABEL = "(no label)"  # how a text without any label is shown


def probabilities_of(logits: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Return the probability of each label, (examples, labels): they sum to 1 unless a text may have several labels."""
    return softmax(logits) if thresholds is None else sigmoid(logits)


def answers_of(logits: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Return the class index of each example, (examples,); with thresholds 0 or 1 for each label, (examples, labels).

    A probability that equals its threshold is enough.
    """
    if thresholds is None:
        return logits.argmax(axis=1)
    least = np.asarray(thresholds, np.float64)
    return (logits >= np.log(least / (1 - least)).astype(np.float32)).astype(np.uint8)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of each row; with numpy alone, because whoever only wants answers need not install scipy."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the logistic function of each logit, without overflow."""
    powers = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1 / (1 + powers), powers / (1 + powers))


def are_equal(answers: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Say for each example whether two answers, or an answer and its gold labels, are the same; all labels count."""
    return answers == others if answers.ndim == 1 else (answers == others).all(axis=1)


def scores_of(answers: np.ndarray, gold_labels: np.ndarray) -> np.ndarray:
    """Return how right each answer is, (examples,), from 0 to 1.

    With one label a text that is 0 or 1. With several it is the F1 of the text's labels, 2 x right / (answered + gold),
    and 1 if there is nothing to answer and nothing is answered (Godbole and Sarawagi 2004).
    """
    if gold_labels.ndim == 1:
        return (answers == gold_labels).astype(np.float64)
    both = (answers.astype(bool) & gold_labels.astype(bool)).sum(axis=1)
    given = answers.astype(np.int64).sum(axis=1) + gold_labels.astype(np.int64).sum(axis=1)
    return np.where(given == 0, 1.0, 2 * both / np.maximum(given, 1))


def in_words(answer: np.ndarray | int, label_names: Sequence[str]) -> str:
    """Return the name of a class index, or the names in a row of 0 and 1, as one text."""
    if np.ndim(answer) == 0:
        return label_names[int(answer)]
    return ", ".join(label_names[index] for index in np.flatnonzero(answer)) or NO_LABEL


def as_two_classes(logits: np.ndarray, gold_labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (examples * labels, 2) and gold classes of the question "does it have the label?" for each label.

    Their softmax is the sigmoid of the logits, so what measures or calibrates two classes also does for labels. With
    one label a text, both come back as they are.
    """
    if gold_labels.ndim == 1:
        return logits, gold_labels
    flat = logits.reshape(-1)
    return np.stack([np.zeros_like(flat), flat], axis=1), gold_labels.reshape(-1).astype(np.int64)


def as_matrix(labels: np.ndarray, count: int) -> np.ndarray:
    """Return for each text and each of `count` labels whether it has the label: bool (examples, labels).

    `labels` are gold labels or answers of either kind.
    """
    return labels[:, None] == np.arange(count) if labels.ndim == 1 else labels.astype(bool)
