"""The part `base`: what students keep of a teacher of BERT-base's size that reads whole reviews of IMDb and Yelp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inputs import make_models
from steps import Skipped, Step, Visit

from distill.storage.files import read_json, write_json
from distill.storage.run_folder import RunFolder

SETS = ("imdb", "yelp")
STUDENTS = ("half the layers", "small encoder")


def base(visit: Visit) -> Iterator[Step]:
    """Train, on each set, the baseline, the teacher, and both students with their controls, and compare them."""
    if visit.arguments.toy:
        yield Step("models", 2, make_models)
    for data in SETS:
        yield Step(f"{data} baseline", 4, lambda visit, data=data: baseline(visit, data))
        yield Step(f"{data} teacher", 9, lambda visit, data=data: teacher(visit, data))
        for name in STUDENTS:
            yield Step(f"{data} {name}", 9, lambda visit, data=data, name=name: student(visit, data, name))
        yield Step(f"{data} result", 2, lambda visit, data=data: result(visit, data), again=True)


def recipe_of(visit: Visit, data: str, student: dict[str, Any] | None = None) -> Path:
    """Write the recipe of a set, with this student, and return its path."""
    size = visit.size
    common = {"warmup_steps": 0.1, "seed": 1}
    recipe = {
        "data": {
            "files": {"train": str(visit.texts("train", data)), "test": str(visit.texts("test_small", data))},
            "train_samples": size.labelled,
            "max_tokens": 128 if visit.arguments.toy else 512,
        },
        "teacher": {
            "model": str(visit.base),
            "training": common
            | {
                "num_train_epochs": size.base_epochs,
                "per_device_train_batch_size": 16,
                "learning_rate": size.base_rate,
            },
        },
    }
    if student:
        training = {"num_train_epochs": 3, "per_device_train_batch_size": 32}
        training |= {"learning_rate": size.learning_rate}
        loss = {"soft": "logit_mse", "soft_weight": 1.0}
        recipe["student"] = {"control": True, "loss": loss, "training": common | training} | student
    folder = folder_of(visit, data)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    write_json(path, recipe)  # JSON is YAML
    return path


def folder_of(visit: Visit, data: str) -> Path:
    """Return the folder of the runs of a set."""
    return visit.work / "base" / data


def baseline(visit: Visit, data: str) -> dict[str, Any]:
    """Train the baseline, on the CPU, unless it is there."""
    folder = folder_of(visit, data) / "baseline"
    visit.distill("baseline", recipe_of(visit, data), "--output", folder, "--resume", on_device=False)
    return read_json(RunFolder(folder).metrics)["test"]


def teacher(visit: Visit, data: str) -> dict[str, Any]:
    """Train the teacher, or go on from its last checkpoint."""
    folder = folder_of(visit, data) / "teacher"
    visit.distill("teacher", recipe_of(visit, data), "--output", folder, "--resume")
    found = read_json(RunFolder(folder).metrics)
    return {"test": found["test"], "training": found["training"]}


def student(visit: Visit, data: str, name: str) -> dict[str, Any]:
    """Distill a student and train its control, or go on where they stopped."""
    layers = read_json(visit.base / "config.json")["num_hidden_layers"]
    origin = {"layers": layers // 2} if name == STUDENTS[0] else {"model": str(visit.encoder)}
    folder = folder_of(visit, data)
    if not RunFolder(folder / "teacher").is_finished:
        raise Skipped(f"{data} has no finished teacher")
    output = folder / name
    recipe = recipe_of(visit, data, origin)
    visit.distill("student", recipe, "--teacher", folder / "teacher", "--output", output, "--resume", "--force")
    found = read_json(RunFolder(output).metrics)
    return {"test": found["test"], "training": found["training"]}


def result(visit: Visit, data: str) -> dict[str, Any]:
    """Return the accuracy of every finished run, and its gain over the others on the same test texts."""
    from distill.measuring.metrics import compare_paired
    from distill.storage.predictions import read_predictions

    names = ["baseline", "teacher", *(f"{name}{kind}" for name in STUDENTS for kind in ("", "-control"))]
    runs = {name: RunFolder(folder_of(visit, data) / name) for name in names}
    correct = {}
    for name, run in runs.items():
        if run.is_finished:
            predictions = read_predictions(run.predictions)
            correct[name] = predictions.logits.argmax(axis=1) == predictions.gold_labels
    found = {name: {"accuracy": float(right.mean()), "texts": len(right)} for name, right in correct.items()}
    for name, right in correct.items():
        others = [other for other in ("baseline", "teacher", f"{name}-control") if other in correct and other != name]
        found[name] |= {f"against {other}": compare_paired(right, correct[other]) for other in others}
    return {"runs": found}
