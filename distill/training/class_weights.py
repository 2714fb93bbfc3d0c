"""Weigh the classes in the cross-entropy on gold labels, so that rare classes are learned too."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from distill.data.splits import Splits, gold_labels_of
from distill.decisions import as_matrix
from distill.errors import RecipeError
from distill.recipe.labels import classes_of


def class_weights_of(wanted: str | Mapping[str, float] | None, splits: Splits, stage: str) -> tuple[float, ...] | None:
    """Return the weight of each class in the order of `splits`, with a mean of 1 over the training texts.

    So the loss keeps its scale, and its share beside soft targets. "balanced" gives each class the same total (King and
    Zeng 2001, as scikit-learn does). A map gives weights by name, in proportion; classes that it leaves out have 1.

    If a text may have several labels, a weight is that of the texts with the label against those without it, and keeps
    its scale; "balanced" gives both the same total. Raises `RecipeError` if a map names no class.
    """
    if wanted is None:
        return None
    gold_labels, several = gold_labels_of(splits.train), splits.task == "multi_label"
    counts = as_matrix(gold_labels, len(splits.label_names)).sum(axis=0)
    weights = np.ones(len(splits.label_names))
    if isinstance(wanted, str):
        weights = (len(gold_labels) - counts) / counts if several else 1 / counts
        weights[weights == 0] = 1.0  # a label that every text has
    else:
        for name, index in classes_of(wanted, splits.label_names, indices=False).items():
            if index is None:
                raise RecipeError(
                    f"{stage}.class_weights: {name!r} is not one of the classes: {', '.join(splits.label_names)}"
                )
            weights[index] = wanted[name]
    return tuple((weights if several else weights * counts.sum() / (weights * counts).sum()).tolist())
