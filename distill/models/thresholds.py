"""The lowest probability at which each label of a text is answered, if a text may have several labels."""

from __future__ import annotations

import numpy as np
from transformers import PretrainedConfig

from distill.errors import ModelError
from distill.recipe.schema import Task

CONFIG_KEY = "label_thresholds"  # in the model's config.json, in the order of its outputs
DEFAULT = 0.5
FEWEST = 10  # validation texts with and without a label: with fewer, the best threshold is mostly noise
SEVERAL = "multi_label_classification"  # the problem_type for which transformers' pipeline uses a sigmoid


def default_thresholds(task: Task, labels: int) -> tuple[float, ...] | None:
    """Return a threshold of 0.5 for each label; None if a text has one label."""
    return None if task == "single_label" else (DEFAULT,) * labels


def choose_thresholds(probabilities: np.ndarray, gold_labels: np.ndarray) -> tuple[float, ...]:
    """Return for each label the threshold with the highest F1 on texts that the model was not trained on.

    Both arguments are (examples, labels). It lies halfway between two probabilities that the model gave (Lipton et al.
    2014: the best one is about half the best F1). Of equals, the nearest to 0.5 is taken. A label that fewer than 10
    texts have, or fewer than 10 lack, keeps 0.5.
    """
    return tuple(map(_best_threshold, probabilities.T.astype(np.float64), gold_labels.T.astype(bool)))


def _best_threshold(probabilities: np.ndarray, has_label: np.ndarray) -> float:
    if min(has_label.sum(), (~has_label).sum()) < FEWEST:
        return DEFAULT
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    answered = np.arange(1, len(ranked) + 1)
    f1 = 2 * np.cumsum(has_label[order]) / (answered + has_label.sum())
    between = (ranked + np.append(ranked[1:], 0.0)) / 2
    # Texts of equal probability stay together, also those so close that no number lies between them.
    possible = (between > np.append(ranked[1:], 0.0)) & (between < 1)
    best = possible & (f1 >= f1[possible].max(initial=0.0) - 1e-12)
    if not best.any():
        return DEFAULT
    # The default itself is as good if no probability lies between it and one of the best.
    at_default = np.count_nonzero(ranked >= DEFAULT)
    if at_default and best[at_default - 1]:
        return DEFAULT
    return float(min(between[best], key=lambda value: abs(value - DEFAULT)))


def thresholds_of(config: PretrainedConfig) -> tuple[float, ...] | None:
    """Return the thresholds in a configuration, 0.5 for each label if it has none; None if a text has one label.

    Raises `ModelError` if they are not a number between 0 and 1 for each output.
    """
    found = getattr(config, CONFIG_KEY, None)
    if config.problem_type != SEVERAL:
        if found is not None:
            raise ModelError(
                f"{config.name_or_path}: config.json: {CONFIG_KEY}: is for models of several labels a text "
                f"(problem_type: {SEVERAL}), and problem_type is {config.problem_type}"
            )
        return None
    if found is None:
        return (DEFAULT,) * len(config.id2label)
    numbers = isinstance(found, list | tuple) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and 0 < one < 1 for one in found
    )
    if not numbers or len(found) != len(config.id2label):
        raise ModelError(
            f"{config.name_or_path}: config.json: {CONFIG_KEY}: wants {len(config.id2label)} numbers between 0 and 1, "
            f"got {found!r:.80}"
        )
    return tuple(map(float, found))
