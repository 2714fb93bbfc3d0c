"""Logits and gold labels to figures, through evaluate's API and without a download."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import f1_score, log_loss, roc_auc_score

CALIBRATION_BINS = 15  # Guo et al. 2017 and most papers since


class ClassificationMetrics(evaluate.Metric):
    """Accuracy, macro-F1, ROC-AUC, log loss and calibration error of logits (examples, classes) against gold labels.

    A metric inside a package: `evaluate.load("accuracy")` would download its script.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Figures of a single-label classifier, computed from its logits.",
            citation="",
            inputs_description="predictions: logits (examples, classes); references: gold class indices (examples,).",
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float | None]:
        logits, gold = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        classes = logits.shape[1]
        probabilities = softmax(logits, axis=1)
        predicted = logits.argmax(axis=1)
        return {
            "accuracy": float((predicted == gold).mean()),
            "macro_f1": float(f1_score(gold, predicted, labels=range(classes), average="macro", zero_division=0)),
            "roc_auc": _roc_auc(probabilities, gold),
            "log_loss": float(log_loss(gold, probabilities, labels=range(classes))),
            "ece": expected_calibration_error(probabilities, gold),
        }


def figures(logits: np.ndarray, gold_labels: np.ndarray) -> dict[str, Any]:
    """Return the `test` section of metrics.json: number of examples and every figure, accuracy with its 95 % interval.

    `logits` is (examples, classes), `gold_labels` (examples,). ROC-AUC is None where a class has no example.
    """
    metric = ClassificationMetrics(keep_in_memory=True)
    values: Any = metric.compute(predictions=logits.astype(np.float32), references=gold_labels)
    interval = accuracy_interval(int((logits.argmax(axis=1) == gold_labels).sum()), len(gold_labels))
    return {
        "examples": len(gold_labels),
        "accuracy": values["accuracy"],
        "accuracy_ci95": interval,
        **{name: value for name, value in values.items() if name != "accuracy"},
    }


def accuracy_interval(correct: int, examples: int) -> list[float]:
    """Return the Wilson 95 % interval of `correct` out of `examples` as [low, high] (Wilson 1927; by scipy)."""
    interval = binomtest(correct, examples).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def expected_calibration_error(probabilities: np.ndarray, gold_labels: np.ndarray) -> float:
    """Return the mean gap between confidence and accuracy, weighted by bin (Guo et al. 2017, equation 3).

    `probabilities` is (examples, classes). Confidences fall into 15 bins of equal width, each open on the left.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == gold_labels
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(int)
    size = np.bincount(bins, minlength=CALIBRATION_BINS + 1)
    gap = np.bincount(bins, correct, len(size)) - np.bincount(bins, confidence, len(size))
    return float(np.abs(gap).sum() / len(gold_labels))


def agreement(logits: np.ndarray, reference_logits: np.ndarray) -> float:
    """Return the share of examples on which both give the same class; arguments are (examples, classes)."""
    return float((logits.argmax(axis=1) == reference_logits.argmax(axis=1)).mean())


def _roc_auc(probabilities: np.ndarray, gold: np.ndarray) -> float | None:
    """Area under the ROC curve: of the second class of two, else the macro mean of one against the rest."""
    classes = probabilities.shape[1]
    if len(np.unique(gold)) < classes:
        return None
    if classes == 2:
        return float(roc_auc_score(gold, probabilities[:, 1]))
    return float(roc_auc_score(gold, probabilities, multi_class="ovr", average="macro", labels=range(classes)))
