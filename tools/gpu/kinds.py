"""The part `kinds`: students of other kinds, from training to a report and a bundle, with the time of each step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inputs import brief_recipe, make_models, model_of
from steps import Skipped, Step, Visit

from distill.storage.files import read_json
from distill.storage.run_folder import RunFolder

FORMATS = ["torch-fp16", "onnx-fp32", "onnx-fp16"]
# Where each student comes from, by its name.
ORIGINS = {
    "3 layers": lambda visit: {"layers": 3},
    "n-grams": lambda visit: {"ngrams": {}},
    "modernbert": lambda visit: {"model": str(model_of(visit, "modernbert-base"))},
}
SHOWN = ("role", "model", "format", "device", "accuracy", "agreement", "texts_per_second", "latency_ms", "size_bytes")


def kinds(visit: Visit) -> Iterator[Step]:
    """Train a teacher and its students briefly, since only their speed matters; export, bundle and report them."""
    yield Step("models", 2, make_models)
    yield Step("teacher", 4, teacher)
    for name in ORIGINS:
        yield Step(f"student: {name}", 4, lambda visit, name=name: student(visit, name))
    for name in ORIGINS:
        yield Step(f"bundle: {name}", 3, lambda visit, name=name: bundle(visit, name))
    yield Step("report", 6, report)


def teacher(visit: Visit) -> dict[str, Any]:
    """Train the teacher and return the figures of its training."""
    folder = visit.work / "kinds"
    recipe = brief_recipe(visit, folder, FORMATS)
    visit.distill("teacher", recipe, "--output", folder / "teacher", "--overwrite")
    return read_json(RunFolder(folder / "teacher").metrics)["training"]


def student(visit: Visit, name: str) -> dict[str, Any]:
    """Distill a student and export it; return the figures of its training and the proofs."""
    folder = visit.work / "kinds"
    if not RunFolder(folder / "teacher").is_finished:
        raise Skipped("no finished teacher")
    recipe = brief_recipe(visit, folder, FORMATS, ORIGINS[name](visit))
    output = folder / name
    visit.distill("student", recipe, "--teacher", folder / "teacher", "--output", output, "--overwrite", "--force")
    visit.distill("export", output)
    run = RunFolder(output)
    return {"training": read_json(run.metrics)["training"], "export": read_json(run.export / "export.json")}


def bundle(visit: Visit, name: str) -> dict[str, Any]:
    """Bundle a student, and classify texts with the bundle as any program could."""
    run = RunFolder(exported(visit, name))
    output = visit.work / "kinds" / "bundles" / name.replace(" ", "-")
    output.parent.mkdir(exist_ok=True)
    visit.distill("bundle", run.path, "--output", output, "--overwrite", on_device=False)
    return visit.tool(
        "gpu/bundled.py", output, run.export / "onnx-fp16", visit.texts("test_small"),
        "--texts", visit.size.predicted, "--device", visit.arguments.device,
    )  # fmt: skip


def report(visit: Visit) -> dict[str, Any]:
    """Report teacher and students on the device, in fp32, fp16 and, where the device is fast in it, bf16."""
    models = [visit.work / "kinds" / "teacher", *(exported(visit, name) for name in ORIGINS)]
    output = visit.work / "kinds" / "report"
    visit.distill("report", *models, "--output", output)
    measured = read_json(output / "report.json")["measurements"]
    return {"measurements": [{name: row[name] for name in SHOWN} for row in measured]}


def exported(visit: Visit, name: str) -> Path:
    """Return the run folder of a student that has exports; raises `Skipped` if there is none."""
    folder = visit.work / "kinds" / name
    if not (RunFolder(folder).export / "export.json").is_file():
        raise Skipped(f"no exported student: {name}")
    return folder
