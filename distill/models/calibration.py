"""How far probabilities can be trusted (calibration), and temperature scaling, which corrects them after training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from distill.decisions import as_two_classes

CALIBRATION_BINS = 15  # Guo et al. 2017 and most papers since
BOUNDS = (0.05, 20.0)
FOLDS = 5
FEWEST = 50  # texts: with fewer than ten in a fold, the calibration error is mostly noise


@dataclass(frozen=True)
class Calibration:
    """The temperature to divide logits by, and its effect on texts that it was not fitted on.

    `fitted` is the temperature that all texts together give. If it is refused, `temperature` is 1 and `refused` says
    why; otherwise `refused` is None. The calibration errors (ECE) and log losses are before and after scaling, and None
    if there are too few texts.
    """

    temperature: float
    fitted: float
    refused: str | None = None
    ece_before: float | None = None
    ece: float | None = None
    log_loss_before: float | None = None
    log_loss: float | None = None

    def as_figures(self) -> dict[str, Any]:
        """Return the `calibration` section of metrics.json."""
        return {
            "temperature": self.temperature,
            "fitted_temperature": self.fitted,
            "refused": self.refused,
            "validation_ece_before": self.ece_before,
            "validation_ece": self.ece,
            "validation_log_loss_before": self.log_loss_before,
            "validation_log_loss": self.log_loss,
        }

    def __str__(self) -> str:
        if self.refused:
            return f"not calibrated: a temperature of {self.fitted:.2f} is not applied: {self.refused}"
        return (
            f"temperature {self.temperature:.2f} (on validation texts that it was not fitted on: log loss "
            f"{self.log_loss_before:.4f} -> {self.log_loss:.4f}; calibration error "
            f"{self.ece_before:.3f} -> {self.ece:.3f})"
        )


def calibrate(logits: np.ndarray, gold_labels: np.ndarray) -> Calibration:
    """Return the temperature that `fit_temperature` gives, or 1 if that does not make the probabilities better.

    `logits` is (examples, classes) and `gold_labels` (examples,), both of texts that the model was not trained on. If a
    text may have several labels, `gold_labels` is (examples, classes), and the figures are of the "yes" or "no" of each
    label (see decisions.as_two_classes). A temperature always looks good on the texts that it was fitted on. So
    cross-fitting judges it: each fifth of the texts is divided by the temperature of the other four fifths. The
    temperature is refused if it makes ECE or log loss worse there, or if there are fewer than 50 texts.
    """
    fitted, examples = fit_temperature(*as_two_classes(logits, gold_labels)), len(gold_labels)
    if examples < FEWEST:
        return Calibration(1.0, fitted, f"{examples} validation texts are too few to judge it (at least {FEWEST})")
    divisors = np.empty(examples)
    for fold in np.array_split(np.random.default_rng(0).permutation(examples), FOLDS):
        others = np.setdiff1d(np.arange(examples), fold)
        divisors[fold] = fit_temperature(*as_two_classes(logits[others], gold_labels[others]))
    scaled = [as_two_classes(one, gold_labels) for one in (logits.astype(np.float64), logits / divisors[:, None])]
    errors = [expected_calibration_error(softmax(one, axis=1), gold) for one, gold in scaled]
    losses = [_log_loss(one, gold) for one, gold in scaled]
    worse = [
        f"{name} from {before:.4f} to {after:.4f}"
        for name, (before, after) in (("calibration error", errors), ("log loss", losses))
        if after > before
    ]
    refused = f"it raises {' and '.join(worse)} on texts that it was not fitted on" if worse else None
    return Calibration(1.0 if refused else fitted, fitted, refused, *errors, *losses)


def fit_temperature(logits: np.ndarray, gold_labels: np.ndarray) -> float:
    """Return the T above 0 that minimizes the log loss of softmax(logits / T) (Guo et al. 2017, section 4.2).

    `logits` is (examples, classes) and `gold_labels` (examples,), both of examples that the model was not trained on.
    The log loss is convex in 1/T, so it has one minimum. If that lies outside the bounds 0.05 and 20, the nearer bound
    is returned. If every answer is right, the log loss falls without end as T goes to 0. That says nothing about how
    sure the model may be, so T is then 1.
    """
    if (logits.argmax(axis=1) == gold_labels).all():
        return 1.0
    logits = logits.astype(np.float64)

    def log_loss(log_temperature: float) -> float:
        return _log_loss(logits / np.exp(log_temperature), gold_labels)

    return float(np.exp(minimize_scalar(log_loss, bounds=np.log(BOUNDS), method="bounded").x))


def _log_loss(logits: np.ndarray, gold_labels: np.ndarray) -> float:
    return -float(log_softmax(logits, axis=1)[np.arange(len(gold_labels)), gold_labels].mean())


def expected_calibration_error(probabilities: np.ndarray, gold_labels: np.ndarray) -> float:
    """Return the mean gap between confidence and accuracy, weighted by bin size (Guo et al. 2017, equation 3).

    `probabilities` is (examples, classes). Confidences fall into 15 bins of equal width, each open on the left.
    """
    size, confidence, correct = _binned(probabilities, gold_labels)
    return float(np.abs(correct - confidence).sum() / size.sum())


def reliability(probabilities: np.ndarray, gold_labels: np.ndarray) -> list[dict[str, float]]:
    """Return the points of a reliability diagram: mean confidence, accuracy and number of examples of each bin.

    The bins are those of `expected_calibration_error`; empty ones are left out.
    """
    size, confidence, correct = _binned(probabilities, gold_labels)
    return [
        {"confidence": float(confidence[at] / size[at]), "accuracy": float(correct[at] / size[at]),
         "examples": int(size[at])}
        for at in np.flatnonzero(size)
    ]  # fmt: skip


def _binned(probabilities: np.ndarray, gold_labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return three values for each bin of confidence: examples, sum of confidences, number of right answers."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == gold_labels
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(int)
    size = np.bincount(bins, minlength=CALIBRATION_BINS + 1)
    return size, np.bincount(bins, confidence, len(size)), np.bincount(bins, right, len(size))
