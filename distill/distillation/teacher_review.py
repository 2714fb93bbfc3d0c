"""Review a teacher's answers before a student learns from them: are they right, calibrated, and decided?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.special import softmax
from tabulate import tabulate

from distill.data.inspection import excerpt
from distill.data.pairs import shown_text
from distill.data.splits import Splits, gold_labels_of
from distill.decisions import Thresholds, answers_of, are_equal, as_two_classes, in_words, probabilities_of
from distill.distillation.teacher_logits import COLUMN
from distill.models.calibration import expected_calibration_error

NEARLY_EVEN = 0.1  # between the two likeliest classes
SUREST = "surest of the teacher's answers that contradict a label; one of the two is wrong"
EXCERPT = 160  # characters of a text
SHOWN = 5  # of the texts on which it is surest and wrong


def review(answers: Mapping[str, Dataset], splits: Splits, thresholds: Thresholds) -> dict[str, Any]:
    """Return as JSON how good a teacher's `answers` are, by split: columns example_id and teacher_logits.

    A split may lack answers to some of its texts. Of labelled splits there are accuracy and calibration error (15
    bins), and of train and validation the texts on which the teacher is surest and contradicts the label: one of the
    two is wrong. `nearly_even` is the share of answers whose two likeliest classes differ by less than `NEARLY_EVEN`.

    If a text may have several labels, `thresholds` are the teacher's, `nearly_even` is the share of labels whose "yes"
    and "no" differ by less, and the calibration error is that of each label.
    """
    surest: list[dict[str, Any]] = []
    by_split = {}
    for split, found in answers.items():
        rows = getattr(splits, split)
        rows = rows.select(_positions(rows, found["example_id"][:]))
        logits = np.asarray(found[COLUMN][:], np.float32).reshape(len(rows), len(splits.label_names))
        by_split[split] = _figures(rows, logits, splits.label_names, thresholds)
        if split in ("train", "validation"):
            surest += _contradictions(rows, logits, splits.label_names, thresholds)
    surest.sort(key=lambda one: -one["probability"])
    return {"splits": by_split, "contradictions": surest[:SHOWN]}


def concerns_of(found: Mapping[str, Any]) -> list[str]:
    """Return in words what may make the teacher's answers a bad lesson."""
    said = []
    for split, one in found["splits"].items():
        if not one["answered"]:
            said.append(f"the teacher answers no {split} text")
        if one["answered"] and one["nearly_even"] > 0.25:
            said.append(
                f"{one['nearly_even']:.0%} of the teacher's answers to {split} are nearly even: the probabilities of "
                f"the likeliest and the next differ by less than {NEARLY_EVEN:g}"
            )
        if one.get("calibration_error", 0) > 0.1:
            said.append(
                f"the teacher's probabilities on {split} are off by {one['calibration_error']:.2f} on average: "
                "soft targets then teach how sure it says it is, not how often it is right"
            )
    return said


def review_text(found: Mapping[str, Any]) -> str:
    """Return what `review` found as text for a terminal: a table, and the texts on which it is surest and wrong."""
    table = tabulate(review_rows(found), headers="keys", tablefmt="simple", disable_numparse=True)
    texts = "\n".join(
        f"{one['example_id']}: labelled {one['label']}, but the teacher says {one['teacher']} "
        f"({one['probability']:.4f}): {excerpt(one['text'], EXCERPT)}"
        for one in found["contradictions"]
    )
    return f"{table}\n\n{SUREST}:\n{texts}" if texts else table


def review_rows(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row of cells for each split."""
    return [
        {
            "the teacher on": split,
            "answers": str(one["answered"]),
            **{
                name: f"{one[key]:.4f}" if key in one else "-"
                for name, key in (("accuracy", "accuracy"), ("calibration error", "calibration_error"))
            },
            "nearly even": f"{one['nearly_even']:.1%}" if one["answered"] else "-",
            "classes": ", ".join(f"{name} {count}" for name, count in list(one.get("classes", {}).items())[:SHOWN]),
        }
        for split, one in found["splits"].items()
    ]


def _positions(rows: Dataset, ids: Sequence[str]) -> list[int]:
    place = {one: index for index, one in enumerate(rows["example_id"][:])}
    return [place[one] for one in ids]


def _figures(rows: Dataset, logits: np.ndarray, label_names: Sequence[str], thresholds: Thresholds) -> dict[str, Any]:
    if not len(rows):
        return {"answered": 0}
    answers = answers_of(logits, thresholds)
    if thresholds is None:
        answered = np.bincount(answers, minlength=len(label_names))
        second, first = np.sort(softmax(logits, axis=1), axis=1)[:, -2:].T
        gaps = first - second
    else:
        answered = answers.sum(axis=0, dtype=np.int64)
        gaps = np.abs(2 * probabilities_of(logits, thresholds) - 1)
    found = {
        "answered": len(rows),
        "nearly_even": float((gaps < NEARLY_EVEN).mean()),
        "classes": dict(zip(label_names, answered.tolist(), strict=True)),
    }
    if "label" in rows.column_names:
        gold_labels = gold_labels_of(rows)
        found["accuracy"] = float(are_equal(answers, gold_labels).mean())
        as_classes, gold = as_two_classes(logits, gold_labels)
        found["calibration_error"] = expected_calibration_error(softmax(as_classes, axis=1), gold)
    return found


def _contradictions(
    rows: Dataset, logits: np.ndarray, label_names: Sequence[str], thresholds: Thresholds
) -> list[dict[str, Any]]:
    """Return the rows that the teacher is surest of, and answers otherwise than they are labelled.

    If a text may have several labels, the teacher is as sure of a text as of the surest label that contradicts.
    """
    if not len(rows):
        return []
    probabilities, gold_labels = probabilities_of(logits, thresholds), gold_labels_of(rows)
    answers = answers_of(logits, thresholds)
    if thresholds is None:
        sureness = probabilities.max(axis=1)
    else:
        sureness = np.where(answers != gold_labels, np.maximum(probabilities, 1 - probabilities), 0).max(axis=1)
    wrong = np.flatnonzero(~are_equal(answers, gold_labels))
    return [
        {
            "example_id": rows[int(index)]["example_id"],
            "label": in_words(gold_labels[index], label_names),
            "teacher": in_words(answers[index], label_names),
            "probability": float(sureness[index]),
            "text": shown_text(rows[int(index)]["text"]),
        }
        for index in wrong[np.argsort(-sureness[wrong], kind="stable")][:SHOWN]
    ]
