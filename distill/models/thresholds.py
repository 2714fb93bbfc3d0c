"""The lowest probability at which each label of a text is answered, if a text may have several labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from distill.decisions import scores_of
from distill.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from distill.recipe.schema import Task

CONFIG_KEY = "label_thresholds"  # in the model's config.json, in the order of its outputs
DEFAULT = 0.5
FEWEST = 10  # validation texts with and without a label: with fewer, the best threshold is mostly noise
FOLDS = 5
MOST_PASSES = 10  # over the labels; two or three are usual
SEVERAL = "multi_label_classification"  # the problem_type for which transformers' pipeline uses a sigmoid


def default_thresholds(task: Task, labels: int) -> tuple[float, ...] | None:
    """Return a threshold of 0.5 for each label; None if a text has one label."""
    return None if task == "single_label" else (DEFAULT,) * labels


def choose_thresholds(probabilities: np.ndarray, gold_labels: np.ndarray) -> tuple[float, ...]:
    """Return the thresholds with the highest mean F1 of a text's labels, on texts that the model was not trained on.

    Both arguments are (examples, labels). Thresholds always look good on the texts that they were chosen on. So
    cross-fitting judges them, as it does a temperature: each fifth of the texts is answered with the thresholds of the
    other four fifths. If that is not better than 0.5 for each label, 0.5 it is. A label that fewer than 10 texts have,
    or fewer than 10 lack, keeps 0.5.

    They are not the thresholds with the highest F1 of each label by itself: if a label is hard to tell, these answer it
    for most texts (Lipton et al. 2014), and most texts then have a wrong label.
    """
    gold_labels, examples = gold_labels.astype(bool), len(gold_labels)
    found, default = _best(probabilities, gold_labels), np.full(probabilities.shape[1], DEFAULT)
    crossed = np.empty(probabilities.shape)
    for fold in np.array_split(np.random.default_rng(0).permutation(examples), FOLDS):
        others = np.setdiff1d(np.arange(examples), fold)
        crossed[fold] = _best(probabilities[others], gold_labels[others]) if len(others) else default
    scores = [scores_of(probabilities >= thresholds, gold_labels).mean() for thresholds in (crossed, default)]
    return tuple((found if scores[0] > scores[1] else default).tolist())


def _best(probabilities: np.ndarray, gold_labels: np.ndarray) -> np.ndarray:
    """Return the thresholds that no change of a single one improves, from 0.5 on, label by label."""
    thresholds = np.full(probabilities.shape[1], DEFAULT)
    having = gold_labels.sum(axis=0)
    able = np.flatnonzero(np.minimum(having, len(gold_labels) - having) >= FEWEST)
    answers, gold = probabilities >= thresholds, gold_labels.sum(axis=1)
    for _ in range(MOST_PASSES):
        before = thresholds.copy()
        for label in able:
            answers[:, label] = False
            right, given = (answers & gold_labels).sum(axis=1), answers.sum(axis=1) + gold
            without = np.where(given == 0, 1.0, 2 * right / np.maximum(given, 1))
            gains = 2 * (right + gold_labels[:, label]) / (given + 1) - without
            thresholds[label] = _best_threshold(probabilities[:, label].astype(np.float64), gains)
            answers[:, label] = probabilities[:, label] >= thresholds[label]
        if (thresholds == before).all():
            break
    return thresholds


def _best_threshold(probabilities: np.ndarray, gains: np.ndarray) -> float:
    """Return the threshold with the highest sum of the `gains` of the examples that reach it; of equals near 0.5."""
    order = np.argsort(-probabilities, kind="stable")
    ranked = np.concatenate([[1.0], probabilities[order], [0.0]])  # the first: that no example reaches it
    between = (ranked[1:] + ranked[:-1]) / 2
    sums = np.concatenate([[0.0], np.cumsum(gains[order])])
    # Texts of equal probability stay together, also those so close that no number lies between them.
    possible = (between > ranked[1:]) & (between < 1) & (between > 0)
    best = possible & (sums >= sums[possible].max(initial=-np.inf) - 1e-9)
    if not best.any() or best[np.count_nonzero(probabilities >= DEFAULT)]:
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
