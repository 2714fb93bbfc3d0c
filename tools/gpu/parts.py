"""The parts of the measurement on a GPU; each part is a list of steps."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from base_size import base
from inputs import LABELS, brief_recipe, few_texts, make_models, model_of, settings
from kinds import kinds
from steps import ROOT, TOOLS, Failed, Skipped, Step, Visit, gpu_memory

from distill.storage.files import read_json, write_json
from distill.storage.run_folder import RunFolder

RESULT_SECONDS = 45.0  # kept for summing up the seeds
SHAPED = ("distilbert-base", "bert-base", "modernbert-base")  # with random weights
# Formats that cannot crash the process: for a second try if a shape failed with all formats.
PLAIN = ("torch-fp32", "torch-fp16", "torch-bf16", "onnx-fp32", "onnx-fp16", "distill torch-fp16", "distill onnx-fp16")


# check


def check(visit: Visit) -> Iterator[Step]:
    """Look at the machine, try distill on it, and measure the machine's peaks."""
    yield Step("what is here", 1, what_is_here)
    yield Step("peak", 2, lambda visit: visit.tool("gpu/peak.py", "--device", visit.arguments.device, *visit.size.peak))
    yield Step("doctor", 1, doctor)
    yield Step("quickstart", 3, quickstart)
    yield Step("gpu tests", 2, gpu_tests)


def what_is_here(visit: Visit) -> dict[str, Any]:
    """Return which of the inputs that other steps need are present."""
    found: dict[str, Any] = {}
    for name, look in {
        "minilm": lambda: visit.encoder,
        "base": lambda: visit.base,
        "imdb": lambda: visit.texts("train"),
        "yelp": lambda: visit.texts("train", "yelp"),
        "unlabelled texts": lambda: visit.texts("unsupervised"),
        "notes_teacher": lambda: visit.given("notes-teacher"),
    }.items():
        try:
            look()
            found[name] = True
        except Skipped:
            found[name] = False
    return found | {"textbrewer": visit.arguments.textbrewer is not None}


def doctor(visit: Visit) -> dict[str, Any]:
    """Return what `distill doctor` finds, faults included."""
    command = (sys.executable, "-m", "distill", "doctor", "--json", "--device", visit.arguments.device)
    return {"findings": json.loads(visit.call(*command, may_fail=True))}


def quickstart(visit: Visit) -> dict[str, Any]:
    """Run all four stages of the quickstart on a few texts, and return the figures of its report."""
    sets = [*visit.size.quickstart, "teacher.training.num_train_epochs=1", "student.training.num_train_epochs=1"]
    sets += ["student.control=false", "export.max_accuracy_drop=1.0", "export.min_agreement=0.0"]
    sets += ["export.formats=[torch-fp16,onnx-fp32,onnx-fp16]", "benchmark.rounds=5"]
    output = visit.work / "quickstart"
    visit.distill("run", "recipes/quickstart.yaml", "--output", output, "--overwrite", "--force", *settings(sets))
    measured = read_json(output / "report" / "report.json")["measurements"]
    shown = ("role", "format", "device", "accuracy", "agreement", "texts_per_second")
    return {
        "measurements": [{name: row[name] for name in shown} for row in measured],
        "exports": read_json(output / "student" / "export" / "export.json"),
    }


def gpu_tests(visit: Visit) -> dict[str, Any]:
    """Run the tests marked gpu, and return the last lines of pytest."""
    if visit.arguments.device != "cuda":
        raise Skipped("they need a GPU")
    # Other tests may need packages that are not on this machine.
    files = [path for path in (ROOT / "tests").glob("test_*.py") if "@pytest.mark.gpu" in path.read_text()]
    said = visit.call(
        sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files, may_fail=True
    )
    return {"said": said.strip()[-3_000:]}


# training


def training(visit: Visit) -> Iterator[Step]:
    """Measure how fast a teacher and a student train, against a plain Trainer and TextBrewer."""
    yield Step("models", 2, make_models)
    yield Step("the notes' way", 4, notes_way)
    for batch in visit.size.batches:
        name = f"distill teacher, batch {batch}"
        yield Step(name, 3, lambda visit, batch=batch: train_teacher(visit, batch))
    batch = visit.size.batches[-1]
    name = f"distill teacher, batch {batch}, attention dropout 0.1"
    yield Step(name, 3, lambda visit: train_teacher(visit, batch, "teacher.attention_dropout=0.1"))
    yield Step("distill student and TextBrewer", 5, students)


def notes_way(visit: Visit) -> dict[str, Any]:
    """Train the teacher's shape with a plain Trainer: batch 8, texts padded to 512 tokens, transformers' defaults."""
    script = visit.given("notes-teacher")
    model = model_of(visit, "bert-base")
    found = visit.measure(
        sys.executable, script, model, few_texts(visit), "--texts", visit.size.texts, "--batch", 8
    )  # fmt: skip
    flops = training_flops(model, 512)
    return found | {"flops_per_second": flops * found["samples_per_second"]}


def train_teacher(visit: Visit, batch: int, *changes: str) -> dict[str, Any]:
    """Train the teacher's shape with `distill teacher` and return its figures."""
    model, train = model_of(visit, "bert-base"), few_texts(visit)
    recipe = {
        "data": {
            "files": {"train": str(train), "validation": str(few_texts(visit, 64)), "test": str(few_texts(visit, 64))},
            "label_names": list(LABELS),
            "max_tokens": 512,
        },
        "teacher": {
            "model": str(model),
            "calibrate": False,
            "training": {
                "num_train_epochs": 1,
                "per_device_train_batch_size": batch,
                "eval_strategy": "no",
                "save_strategy": "no",
            },
        },
    }
    path, output = visit.work / "teacher.yaml", visit.work / "teacher"
    write_json(path, recipe)  # JSON is YAML
    with gpu_memory() as most:
        visit.distill(
            "teacher",
            path,
            "--output",
            output,
            "--overwrite",
            *settings(list(changes)),
        )
    return read_json(output / "metrics.json")["training"] | most


def students(visit: Visit) -> dict[str, Any]:
    """Distill with kept logits and, in turn, with TextBrewer, which runs the teacher at every step."""
    if visit.arguments.textbrewer is None:
        raise Skipped("no --textbrewer")
    texts = visit.size.texts // 2
    return visit.tool(
        "benchmarks/student_throughput.py", model_of(visit, "bert-base"), model_of(visit, "distilbert-base"),
        visit.texts("train"), "--peer", visit.arguments.textbrewer, "--work", visit.work / "students",
        "--texts", texts, "--epochs", 3, "--batch", 16, "--rounds", 1 if visit.arguments.toy else 2,
    )  # fmt: skip


def training_flops(model: Path, tokens: int) -> int:
    """Return the operations of training a classifier on one text of `tokens` tokens, as distill counts them."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from distill.training.throughput import FORWARD_AND_BACKWARD, forward_flops

    classifier = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(model))
    counted = forward_flops(classifier, first_token=False)
    if counted is None:
        raise Failed("what a text costs cannot be counted")
    constant, linear, square = counted
    return FORWARD_AND_BACKWARD * (constant + linear * tokens + square * tokens**2)


# accuracy


def accuracy(visit: Visit) -> Iterator[Step]:
    """Measure how much of a pretrained teacher's accuracy students of three layers keep."""
    if visit.arguments.toy:
        yield Step("models", 2, make_models)
    for seed in visit.arguments.seeds:
        yield Step(f"seed {seed}", 9, lambda visit, seed=seed: labelled(visit, seed))
    for seed in visit.arguments.seeds:
        yield Step(f"seed {seed}, unlabelled", 9, lambda visit, seed=seed: unlabelled(visit, seed))
    yield Step("result", 2, result, again=True)


def gain(visit: Visit, *arguments: object) -> dict[str, Any]:
    """Train the requested arms or resume their training; return the accuracies of the finished runs."""
    size = visit.size
    return visit.tool(
        "benchmarks/distillation_gain.py", "--encoder", visit.encoder, "--train", visit.texts("train"),
        "--test", visit.texts("test_small"), "--work", visit.work / "accuracy", "--labelled", size.labelled,
        "--transfer", 0, "--max-tokens", 128 if visit.arguments.toy else 512, "--teacher-epochs", size.teacher_epochs,
        "--student-steps", size.student_steps, "--batch", size.batch, "--learning-rate", size.learning_rate, *arguments,
    )  # fmt: skip


def labelled(visit: Visit, seed: int) -> dict[str, Any]:
    """Train the teacher of a seed, its student on soft targets and the control, or resume where they stopped."""
    return gain(before_the_result(visit), "--seeds", seed, "--arms", "soft")


def unlabelled(visit: Visit, seed: int) -> dict[str, Any]:
    """Distill on the unlabeled texts too, for three times the steps, with the loss that was best on CPUs."""
    steps = 3 * visit.size.student_steps
    best = ["student.loss.soft=logit_mse", "student.loss.soft_weight=1.0", f"student.training.max_steps={steps}"]
    best += [f"student.training.eval_steps={-(-steps // 4)}"]
    file = visit.texts("unsupervised")
    wanted = ("--seeds", seed, "--arms", "unlabelled", "--unlabelled", file, "--best", *best)
    return gain(before_the_result(visit), *wanted)


def before_the_result(visit: Visit) -> Visit:
    """Return the visit with some time kept back, so that the step `result` can still run."""
    return replace(visit, end=visit.end - RESULT_SECONDS)


def result(visit: Visit) -> dict[str, Any]:
    """Return the result over all finished seeds, and write it to the file that distillation_gain.py reads."""
    before = ["--before", visit.given("before")] if visit.arguments.before else []
    found = gain(visit, "--seeds", *visit.arguments.seeds, "--report-only", *before)
    write_json(visit.work / "distillation-gain-gpu.json", found)
    return found


# exports


def exports(visit: Visit) -> Iterator[Step]:
    """Measure the latency of every format at every shape."""
    yield Step("models", 2, make_models)
    for model in SHAPED:
        yield Step(f"{model} graphs", 4, lambda visit, model=model: latency(visit, model))
    for shape in visit.size.shapes:
        for model in SHAPED:
            if model != "modernbert-base" or shape in (visit.size.shapes[0], visit.size.shapes[-1]):
                yield Step(
                    f"{model} {shape}", 3, lambda visit, model=model, shape=shape: latency_at(visit, model, shape)
                )


def latency(visit: Visit, model: str, *arguments: object) -> dict[str, Any]:
    """Export the model if that is not done yet, and measure it."""
    return visit.tool(
        "gpu/latency.py", model_of(visit, model), visit.work / f"{model}-exports", "--device", visit.arguments.device,
        "--rounds", visit.size.rounds, *arguments,
    )  # fmt: skip


def latency_at(visit: Visit, model: str, shape: str) -> dict[str, Any]:
    """Time all formats at a shape; if that fails as a whole, only the formats that cannot crash the process."""
    if visit.arguments.formats:
        return latency(visit, model, "--shape", shape, "--formats", *visit.arguments.formats)
    try:
        return latency(visit, model, "--shape", shape)
    except Failed as failure:
        return latency(visit, model, "--shape", shape, "--formats", *PLAIN) | {"with all formats": str(failure)}


# predict


def predict(visit: Visit) -> Iterator[Step]:
    """Measure texts per second from end to end."""
    if visit.arguments.toy:
        yield Step("models", 2, make_models)
    yield Step("student", 5, make_student)
    for name in ("torch-fp16", "onnx-fp16"):
        yield Step(name, 4, lambda visit, name=name: throughput(visit, name))
    yield Step("without padding", 3, without_padding)


def make_student(visit: Visit) -> dict[str, Any]:
    """Train a student of three of the encoder's layers briefly, since only its speed matters, and export it."""
    folder = visit.work / "predict"
    path = brief_recipe(visit, folder, ["torch-fp16", "onnx-fp16"], {"layers": 3})
    visit.distill("teacher", path, "--output", folder / "teacher", "--overwrite")
    visit.distill(
        "student", path, "--teacher", folder / "teacher", "--output", folder / "student", "--overwrite", "--force"
    )
    visit.distill("export", folder / "student")
    return {"export": read_json(folder / "student" / "export" / "export.json")}


def throughput(visit: Visit, name: str) -> dict[str, Any]:
    """Classify the test texts with distill and with transformers' pipeline in fp16, batches of 16 and 64."""
    student = visit.work / "predict" / "student"
    if not (student / "export" / name).is_dir():
        raise Skipped(f"no student with {name}")
    peers = []
    for batch in (16, 64):
        peer = [
            sys.executable,
            TOOLS / "benchmarks" / "pipeline_throughput.py",
            student,
            "--device",
            visit.arguments.device,
        ]
        peers += ["--peer", shlex.join(map(str, [*peer, "--batch", batch]))]
    return visit.tool(
        "benchmarks/predict_throughput.py", student / "export" / name, visit.texts("test_small"), *peers,
        "--texts", visit.size.predicted, "--rounds", 1 if visit.arguments.toy else 2,
        "--device", visit.arguments.device,
    )  # fmt: skip


def without_padding(visit: Visit) -> dict[str, Any]:
    """Classify the test texts in torch with padding and without, in fp16 and bf16."""
    student = visit.work / "predict" / "student"
    if not RunFolder(student).is_finished:
        raise Skipped("no student")
    return visit.tool(
        "gpu/throughput.py", student, visit.texts("test_small"), "--texts", visit.size.predicted,
        "--rounds", 1 if visit.arguments.toy else 3, "--device", visit.arguments.device,
    )  # fmt: skip


PARTS: dict[str, Callable[[Visit], Iterator[Step]]] = {
    "check": check,
    "training": training,
    "accuracy": accuracy,
    "base": base,
    "exports": exports,
    "predict": predict,
    "kinds": kinds,
}

# The conditions of every figure, as a program: a library that cannot be imported then fails only this step.
CONDITIONS = """
import json, subprocess
import onnxruntime, torch
from distill.machine.devices import describe_hardware
from distill.machine.provenance import now, versions
found = {"measured": now(), "versions": versions(), "hardware": describe_hardware(), "cuda": torch.version.cuda}
found["versions"]["onnxruntime that runs"] = onnxruntime.__version__
found["onnxruntime_providers"] = onnxruntime.get_available_providers()
if torch.cuda.is_available():
    gpu = torch.cuda.get_device_properties(0)
    found["gpu"] = {"name": gpu.name, "memory_bytes": gpu.total_memory, "capability": f"{gpu.major}.{gpu.minor}",
                    "multiprocessors": gpu.multi_processor_count, "cudnn": torch.backends.cudnn.version()}
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
        found["gpu"]["driver, clock, power"] = subprocess.check_output(query, text=True, timeout=20).strip()
    except (OSError, subprocess.SubprocessError) as error:
        found["gpu"]["driver, clock, power"] = f"not known: {error}"
print(json.dumps(found))
"""
