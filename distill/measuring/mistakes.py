"""The texts that students and their teacher classify wrongly, the surest mistakes first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distill.data.pairs import shown_text
from distill.decisions import Thresholds, answers_of, are_equal, in_words, probabilities_of
from distill.measuring.benchmark import Measurement
from distill.report.page import shortened

SHOWN = 5  # texts of each model


def mistakes_of(
    measurements: Sequence[Measurement],
    example_ids: Sequence[str],
    texts: Sequence[str],
    gold_labels: np.ndarray,
    label_names: Sequence[str],
) -> list[dict[str, Any]]:
    """Return the mistakes of each student beside those of the teacher, or of each teacher if there is no student.

    Every model is taken in the first format that was measured, which for run folders is that of its weights. An entry
    has the counts of test texts that only `model`, only `teacher` or both got wrong, and the `surest` mistakes of each:
    texts with the answers and probabilities of both. `teacher` is None if there is no other model.
    """
    first: dict[str, Measurement] = {}
    for item in measurements:
        first.setdefault(item.model, item)
    teachers = [item for item in first.values() if item.role == "teacher"]
    students = [item for item in first.values() if item.role == "student"]
    found = []
    for item in students or teachers:
        pair = [item, *(teachers[:1] if students else [])]
        wrong = [~are_equal(answers_of(one.logits, one.thresholds), gold_labels) for one in pair]
        entry: dict[str, Any] = {"model": item.model, "teacher": pair[1].model if len(pair) > 1 else None}
        entry["examples"], entry["wrong"] = len(gold_labels), int(wrong[0].sum())
        if len(pair) > 1:
            entry |= {"teacher_wrong": int(wrong[1].sum()), "both_wrong": int((wrong[0] & wrong[1]).sum())}
        entry["surest"] = {}
        for one, its_wrong in zip(pair, wrong, strict=True):
            sureness = np.where(its_wrong, _sureness(one.logits, one.thresholds, gold_labels), -1.0)
            order = np.argsort(-sureness, kind="stable")[: min(SHOWN, int(its_wrong.sum()))]
            entry["surest"][one.model] = [
                {
                    "example_id": example_ids[index],
                    "text": shortened(shown_text(texts[index])),
                    "gold": in_words(gold_labels[index], label_names),
                    "answers": {other.model: _answer(other, int(index), label_names) for other in pair},
                }
                for index in order
            ]
        found.append(entry)
    return found


def _sureness(logits: np.ndarray, thresholds: Thresholds, gold_labels: np.ndarray) -> np.ndarray:
    """How sure a model is of its answers, (examples,); if a text may have several labels, of the surest wrong one."""
    probabilities = probabilities_of(logits, thresholds)
    if thresholds is None:
        return probabilities.max(axis=1)
    answers = answers_of(logits, thresholds)
    sureness = np.where(answers == 1, probabilities, 1 - probabilities)
    return np.where(answers != gold_labels, sureness, 0.0).max(axis=1)


def _answer(item: Measurement, index: int, label_names: Sequence[str]) -> dict[str, Any]:
    logits = item.logits[index : index + 1]
    answer, probabilities = answers_of(logits, item.thresholds)[0], probabilities_of(logits, item.thresholds)[0]
    words = in_words(answer, label_names)
    return {"answer": words, "probability": float(probabilities[answer]) if item.thresholds is None else None}
