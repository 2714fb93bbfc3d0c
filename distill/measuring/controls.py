"""Students against their controls on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from distill.errors import FolderError
from distill.measuring.metrics import compare_paired
from distill.storage.predictions import read_predictions
from distill.storage.records import checked
from distill.storage.run_folder import RunFolder


def compare_with_controls(models: Sequence[Path], notes: list[str]) -> list[dict[str, Any]]:
    """Return how students stand against their controls on test, one entry for each pair among the run folders `models`.

    A control whose student is not among them becomes a note. Raises `FolderError` where the two saw other test texts.
    """
    manifests = {model: run.read_manifest() for model in models if (run := RunFolder(model)).is_finished}
    for model, manifest in manifests.items():
        kind = _OfControl if manifest["role"] == "control" else _OfAny
        checked(kind, manifest, str(RunFolder(model).manifest))
    found = []
    for model, manifest in manifests.items():
        if manifest["role"] != "control":
            continue
        students = [
            other for other, its in manifests.items() if its["weights"] == manifest["parents"]["student_weights"]
        ]
        if not students:
            notes.append(f"{model} is the control of a student that is not here ({manifest['parents']['student']}).")
            continue
        ids, gold_labels, student_logits = read_predictions(RunFolder(students[0]).predictions)
        control_ids, _, control_logits = read_predictions(RunFolder(model).predictions)
        if ids != control_ids or manifests[students[0]]["data"]["test"] != manifest["data"]["test"]:
            raise FolderError(f"{model}: was tested on other texts than {students[0]}; make it anew")
        correct = [logits.argmax(axis=1) == gold_labels for logits in (student_logits, control_logits)]
        found.append({"student": str(students[0]), "control": str(model), **compare_paired(*correct)})
    return found


class _OfAny(TypedDict):
    """What of a manifest says which model it is of."""

    weights: str


class _Student(TypedDict):
    student: str
    student_weights: str


class _OfControl(_OfAny):
    parents: _Student
