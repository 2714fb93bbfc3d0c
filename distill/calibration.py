"""Temperature scaling: one number that makes probabilities say how often they are right, and changes no answer."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

CONFIG_KEY = "calibration_temperature"  # in the model's config.json: what its logits are to be divided by
BOUNDS = (0.05, 20.0)


def fit_temperature(logits: np.ndarray, gold_labels: np.ndarray) -> float:
    """Return the T above 0 that minimises the log loss of softmax(logits / T) (Guo et al. 2017, section 4.2).

    `logits` is (examples, classes), `gold_labels` (examples,); they must be examples that the model was not trained on.
    The log loss is convex in 1/T, so the one minimum is found, or the nearer of the bounds 0.05 and 20. Where every
    example is right it falls for ever as T goes to 0, which says nothing about how sure the model may be: T is then 1.
    """
    if (logits.argmax(axis=1) == gold_labels).all():
        return 1.0
    logits, rows = logits.astype(np.float64), np.arange(len(gold_labels))

    def log_loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[rows, gold_labels].mean())

    return float(np.exp(minimize_scalar(log_loss, bounds=np.log(BOUNDS), method="bounded").x))
