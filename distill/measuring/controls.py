"""Compare students with their controls on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from distill.errors import FolderError
from distill.measuring.metrics import compare_predictions
from distill.storage.predictions import read_predictions
from distill.storage.records import checked
from distill.storage.run_folder import RunFolder


def compare_with_controls(models: Sequence[Path], notes: list[str]) -> list[dict[str, Any]]:
    """Compare each student with its control on the test split; one entry for each pair among the run folders `models`.

    A control without its student adds a note. Raises `FolderError` if the two were tested on different texts.
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
            student = manifest["parents"]["student"]
            notes.append(f"{model} is the control of a student that is not among these models ({student}).")
            continue
        of_student = read_predictions(RunFolder(students[0]).predictions)
        of_control = read_predictions(RunFolder(model).predictions)
        if (
            of_student.example_ids != of_control.example_ids
            or manifests[students[0]]["data"]["test"] != manifest["data"]["test"]
        ):
            raise FolderError(f"{model}: was tested on other texts than {students[0]}; train it again")
        compared = compare_predictions(of_student, of_control)
        found.append({"student": str(students[0]), "control": str(model), **compared})
    return found


class _OfAny(TypedDict):
    """The part of a manifest that says which model it is about."""

    weights: str


class _Student(TypedDict):
    student: str
    student_weights: str


class _OfControl(_OfAny):
    parents: _Student
