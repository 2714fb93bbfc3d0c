"""Evaluate one classifier on one split: accuracy, every class, and how many texts a second it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.data.pairs import texts_of
from distill.data.splits import Splits, gold_labels_of
from distill.errors import DataError
from distill.inference.classifier import load
from distill.inference.text_classifier import check_finite
from distill.machine.progress import progress_line
from distill.measuring.alignment import align
from distill.measuring.benchmark import timed_logits
from distill.measuring.metrics import by_class, confusion, faults_of_answers, figures


def evaluate(model: Path | str, splits: Splits, split: str, device: str) -> dict[str, Any]:
    """Return as JSON how well `model` (a run folder, an export, a cascade or any classifier) does on a split.

    The figures are those of metrics.json. `texts_per_second` includes tokenizing. Raises `DataError` if the recipe has
    no such labelled split, and `ModelError` if the model has other classes or is for another task. The
    confusion matrix is None if a text may have several labels.
    """
    rows = getattr(splits, split)
    if rows is None or "label" not in rows.column_names:
        raise DataError(f"--split: {split}: the recipe has no such split with labels")
    classifier = load(model, device)
    names = splits.label_names
    columns, thresholds = align(classifier, names, splits.label_map, task=splits.task, name=str(model))
    with progress_line(f"{Path(model).name}: {split}", len(rows), "text") as line:
        logits, rate = timed_logits(classifier, texts_of(rows), progress=line.update)
    check_finite(logits, str(model))
    logits, gold_labels = logits[:, columns], gold_labels_of(rows)
    return {
        "model": str(model),
        "format": classifier.format,
        "device": classifier.device,
        "split": split,
        "task": splits.task,
        **figures(logits, gold_labels, thresholds),
        "classes": by_class(logits, gold_labels, names, thresholds),
        "confusion": confusion(logits, gold_labels) if thresholds is None else None,
        "texts_per_second": rate,
        "warnings": faults_of_answers(logits, gold_labels, names, thresholds),
    }
