"""Compare teachers and students with the baseline of the same texts, on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.measuring.metrics import compare_predictions
from distill.storage.contents import OF_BUDGET
from distill.storage.predictions import read_predictions
from distill.storage.run_folder import RunFolder


def compare_with_baseline(models: Sequence[Path], notes: list[str]) -> list[dict[str, Any]]:
    """Compare each teacher and student among the run folders `models` with the first baseline among them.

    Each entry has the folders of the `model` and the `baseline`, the model's `role`, and the figures of
    metrics.compare_paired. A model with other train or test texts than the baseline adds a note.
    """
    manifests = {model: run.read_manifest() for model in models if (run := RunFolder(model)).is_finished}
    baseline = next((model for model, manifest in manifests.items() if manifest["role"] == "baseline"), None)
    if baseline is None:
        return []
    of_baseline = read_predictions(RunFolder(baseline).predictions)
    its_data, found = manifests[baseline]["data"], []
    for model, manifest in manifests.items():
        if manifest["role"] not in ("teacher", "student"):
            continue
        of_model = read_predictions(RunFolder(model).predictions)
        differing = [name for name in ("train", "test") if manifest["data"].get(name) != its_data.get(name)]
        if differing or of_model.example_ids != of_baseline.example_ids:
            others = " and ".join(differing or ["test"])
            notes.append(f"{model} has other {others} texts than the baseline ({baseline}), so they are not compared.")
            continue
        compared = compare_predictions(of_model, of_baseline)
        found.append({"model": str(model), "role": manifest["role"], "baseline": str(baseline), **compared})
    return found


def baseline_beside(folder: Path) -> Path | None:
    """Return the folder `baseline` beside a run folder, if a finished baseline is there.

    That of a student of several budgets may be beside the folder of all of them.
    """
    own = folder.absolute()
    for beside in (own, own.parent) if OF_BUDGET.fullmatch(own.name) else (own,):
        run = RunFolder(beside.parent / "baseline")
        if run.is_finished and run.read_manifest()["role"] == "baseline":
            return run.path
    return None
