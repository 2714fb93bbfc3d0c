"""Match a classifier with data: its classes in the data's order, and its thresholds with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distill.decisions import Thresholds
from distill.inference.text_classifier import TextClassifier
from distill.models.config import align_labels, check_task
from distill.recipe.labels import SAME_NAMES
from distill.recipe.schema import Task


def align(
    classifier: TextClassifier,
    label_names: Sequence[str],
    label_map: Mapping[str, str] = SAME_NAMES,
    *,
    task: Task,
    name: str,
) -> tuple[list[int], Thresholds]:
    """Return for each of the data's `label_names` the classifier's column, and its threshold if labels have one.

    Both are in the order of `label_names`. `task` is the data's, and `name` the model's, for messages. Raises
    `ModelError` if the classifier is for the other task, or if its classes are not the data's (see align_labels).
    """
    check_task("single_label" if classifier.thresholds is None else "multi_label", task, name)
    columns = align_labels(classifier.label_names, label_names, label_map, teacher=name)
    if classifier.thresholds is None:
        return columns, None
    return columns, tuple(classifier.thresholds[column] for column in columns)
