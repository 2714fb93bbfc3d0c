"""The whole GPU measurement, in visits of some minutes to a machine without a network that nobody can debug on.

usage: python3 tools/gpu_visit.py PART... --work DIR --out DIR [--minilm DIR] [--imdb DIR] [--notes-teacher FILE]
           [--textbrewer "COMMAND"] [--device cuda] [--minutes 9] [--toy]

Parts: check training accuracy exports predict. Each is a list of steps; a step is a command of its own with a limit of
time. One that fails leaves its error in the part's JSON and the visit goes on; one that lacks something is skipped by
name. WORK/gpu-PART.json is written after every step and copied to OUT, with OUT/visit.log. What stands there is not
done again, so the same command goes on where the time ran out. Last comes a table: the goals and what was found.

--imdb is a folder of imdb_train.parquet and imdb_test_small.parquet, with imdb_unsupervised.parquet where there is one.
--notes-teacher takes MODEL TRAIN --texts N --batch N, --textbrewer what student_throughput.py gives its peer; both
print JSON with samples_per_second. --toy rehearses all of it on tiny models and the quickstart's texts. The plan is in
docs/gpu.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.files import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"
GRACE_SECONDS = 30.0  # from asking a step to stop, with a checkpoint, to killing it
LEAST_SECONDS = 20.0  # with less left, nothing is begun
RESULT_SECONDS = 45.0  # kept for summing up the seeds
SHAPES = ("1x128", "128x128", "8x128", "1x512", "32x512")  # those with a goal first
# What cannot harm the process: for a second try, where a shape failed with all formats.
PLAIN = ("torch-fp32", "torch-fp16", "torch-bf16", "onnx-fp32", "onnx-fp16", "distill torch-fp16", "distill onnx-fp16")
LABELS = ("negative", "positive")
TELLTALE = ("bad bad bad", "good good good")  # by label, before the texts of a rehearsal


class Failed(Exception):
    """A step did not do what it should; the message is what is kept of it."""


class Skipped(Exception):
    """A step lacks something, which the message names."""


@dataclass(frozen=True)
class Size:
    """How much is measured: real, or just enough to see that all of it runs."""

    texts: int  # that training speed is measured on
    batches: tuple[int, ...]
    labelled: int
    teacher_epochs: int
    student_steps: int
    batch: int
    learning_rate: float
    rounds: int
    shapes: tuple[str, ...]
    predicted: int
    peak: tuple[str, ...]
    quickstart: tuple[str, ...]
    patience: float  # times the steps' minutes


REAL = Size(
    texts=4_096, batches=(8, 32, 64), labelled=25_000, teacher_epochs=3, student_steps=3_500, batch=32,
    learning_rate=1e-4, rounds=100, shapes=SHAPES, predicted=2_000, peak=(),
    quickstart=("data.train_samples=1000", "data.test_samples=200"), patience=1.0,
)  # fmt: skip
TOY = Size(
    texts=24, batches=(8,), labelled=600, teacher_epochs=2, student_steps=24, batch=32, learning_rate=3e-3, rounds=5,
    shapes=("4x16",), predicted=40, peak=("--side", "128", "--gigabytes", "0.01", "--rounds", "5"),
    quickstart=("data.train_samples=200", "data.test_samples=40"), patience=5.0,
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A part of a part: at most so many minutes, and what it does; it returns what it found."""

    name: str
    minutes: float
    run: Callable[[Visit], dict[str, Any]]
    again: bool = False  # in every visit, since what it sums up has grown


@dataclass(frozen=True)
class Visit:
    """What was asked for, and until when (time.monotonic) the running step may take."""

    arguments: argparse.Namespace
    size: Size
    end: float
    log: Path

    @property
    def work(self) -> Path:
        return self.arguments.work

    @property
    def models(self) -> Path:
        return self.work / "models"

    @property
    def encoder(self) -> Path:
        return self.models / "encoder" if self.arguments.toy else self.given("minilm")

    def given(self, name: str) -> Path:
        """Return the path of an argument; raises `Skipped` where it was not given or is not there."""
        value = getattr(self.arguments, name.replace("-", "_"))
        if value is None:
            raise Skipped(f"no --{name}")
        if not value.exists():
            raise Skipped(f"--{name} {value}: not there")
        return value

    def texts(self, name: str) -> Path:
        """Return a file of IMDb, or of the rehearsal's texts, which stand under the same names."""
        folder = self.work / "texts" if self.arguments.toy else self.given("imdb")
        if not (folder / f"imdb_{name}.parquet").is_file():
            raise Skipped(f"{folder}: no imdb_{name}.parquet")
        return folder / f"imdb_{name}.parquet"

    def tool(self, name: str, *arguments: object) -> dict[str, Any]:
        """Run a script of tools/ and return the JSON in its last line."""
        return self.measure(sys.executable, TOOLS / name, *arguments)

    def distill(self, *arguments: object) -> str:
        """Run a command of distill and return what it printed."""
        return self.call(sys.executable, "-m", "distill", *arguments, "--device", self.arguments.device)

    def measure(self, *command: object) -> dict[str, Any]:
        """Run a command and return the JSON in its last line, with the most memory that the GPU held meanwhile."""
        with gpu_memory() as most:
            lines = self.call(*command).strip().splitlines()
        try:
            found = json.loads(lines[-1], parse_constant=lambda name: None)  # NaN, which our files do not hold
        except (IndexError, ValueError):
            raise Failed(f"its last line is no JSON: {''.join(lines[-1:])[:300]}") from None
        return found | most

    def call(self, *command: object, may_fail: bool = False) -> str:
        """Run a command in the project's root until the step's time is up; return what it printed to stdout.

        Raises `Failed`, with the end of what it printed to stderr, where it fails or takes too long.
        """
        words = list(map(str, command))
        out, errors = self.work / "stdout", self.work / "stderr"
        with open(out, "wb") as to, open(errors, "wb") as err:
            # A group, to be stopped with all that it started; of this session, which the machine ends with us.
            process = subprocess.Popen(words, cwd=ROOT, env=environment(self), stdout=to, stderr=err, process_group=0)
            try:
                process.wait(max(0.0, self.end - time.monotonic()))
                in_time = True
            except subprocess.TimeoutExpired:
                in_time = False
            finally:
                stop(process)
        said = errors.read_text(errors="replace").replace("\r", "\n")
        with open(self.log, "a") as log:
            log.write(f"$ {shlex.join(words)}\n{said[-100_000:]}\n{out.read_text(errors='replace')[-20_000:]}\n")
        if not in_time:
            raise Failed("its time was up")
        if process.returncode and not may_fail:
            lines = said.strip().splitlines()
            reason = [line for line in lines if line.startswith("error: ")] or lines[-1:]
            raise Failed(f"exit status {process.returncode}: {''.join(reason[-1:])}\n{said.strip()[-1_500:]}")
        return out.read_text(errors="replace")


def main() -> None:
    """Do the steps that are not done yet, and print what was found against the goals."""
    arguments = parsed()
    begun = time.monotonic()
    size = TOY if arguments.toy else REAL
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    end = begun + 60 * arguments.minutes - GRACE_SECONDS
    visit = Visit(arguments, size, end, arguments.work / "visit.log")
    if arguments.toy:
        toy_texts(visit)
    conditions = attempt(Step("conditions", 2, lambda visit: visit.measure(sys.executable, "-c", CONDITIONS)), visit)
    for part in arguments.parts:
        do(part, visit, conditions)
    print(table(arguments.work))


def parsed() -> argparse.Namespace:
    """Return the arguments, every path absolute: commands run in the project's root."""
    parser = argparse.ArgumentParser(description="The whole GPU measurement, in visits.")
    parser.add_argument("parts", nargs="+", choices=[*PARTS])
    parser.add_argument("--work", required=True, type=Path, help="models, runs and what was measured; outside the tree")
    parser.add_argument("--out", required=True, type=Path, help="where the results are copied to")
    parser.add_argument("--minilm", type=Path, help="folder of a pretrained encoder")
    parser.add_argument("--imdb", type=Path, help="folder of the IMDb files")
    parser.add_argument("--notes-teacher", type=Path, help="script that fine-tunes the plain way")
    parser.add_argument("--textbrewer", help="command that distils with the teacher at every step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--before", type=Path, help="distillation-gain-gpu.json of an earlier visit, with other seeds")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--minutes", type=float, default=9.0, help="in which all ends, whatever is done by then")
    parser.add_argument("--toy", action="store_true", help="a rehearsal: tiny models, few texts")
    arguments = parser.parse_args()
    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            setattr(arguments, name, value.absolute())
    if arguments.toy:
        arguments.seeds = arguments.seeds[:1]
    return arguments


def do(part: str, visit: Visit, conditions: dict[str, Any]) -> None:
    """Do the steps of a part that its file does not have yet; write the file after each."""
    path = visit.work / f"gpu-{part}.json"
    found = read_json(path) if path.is_file() else {"part": part, "toy": visit.arguments.toy, "steps": {}}
    found["conditions"] = [*found.get("conditions", []), conditions]  # of each visit that added to it
    for step in PARTS[part](visit):
        before = found["steps"].get(step.name)
        if before and not step.again and not {"error", "skipped"} & set(before):
            continue
        found["steps"][step.name] = attempt(step, visit)
        write_json(path, found)
        for file in (path, visit.log, *visit.work.glob("distillation-gain-gpu.json")):
            if file.is_file():
                shutil.copy(file, visit.arguments.out)


def attempt(step: Step, visit: Visit) -> dict[str, Any]:
    """Do a step and return what it found, or why it was skipped or failed, and the seconds that it took."""
    begun = time.monotonic()
    left = visit.end - begun
    print(f"gpu_visit: {step.name} ({left / 60:.1f} minutes left)", file=sys.stderr, flush=True)
    if left < LEAST_SECONDS:
        return {"error": "not begun: the time was up; the same command goes on from here"}
    try:
        found = step.run(replace(visit, end=min(visit.end, begun + 60 * step.minutes * visit.size.patience)))
    except Skipped as reason:
        found = {"skipped": str(reason)}
    except Exception as error:  # noqa: BLE001 - one step that fails must not cost the visit
        found = {"error": str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"}
        print(f"gpu_visit: {step.name} failed: {found['error'].splitlines()[0]}", file=sys.stderr, flush=True)
    return found | {"seconds": round(time.monotonic() - begun, 1)}


# check


def check(visit: Visit) -> Iterator[Step]:
    """What is here, whether distill works on it, and what it reaches at best."""
    yield Step("what is here", 1, what_is_here)
    yield Step("peak", 2, lambda visit: visit.tool("gpu_peak.py", "--device", visit.arguments.device, *visit.size.peak))
    yield Step("doctor", 1, doctor)
    yield Step("quickstart", 3, quickstart)
    yield Step("gpu tests", 2, gpu_tests)


def what_is_here(visit: Visit) -> dict[str, Any]:
    """Return which of the things that other steps need are here."""
    found: dict[str, Any] = {}
    for name, look in {
        "minilm": lambda: visit.encoder,
        "imdb": lambda: visit.texts("train"),
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
    """Return what `distill doctor` finds; a fault is a finding too."""
    command = (sys.executable, "-m", "distill", "doctor", "--json", "--device", visit.arguments.device)
    return {"findings": json.loads(visit.call(*command, may_fail=True))}


def quickstart(visit: Visit) -> dict[str, Any]:
    """Run the quickstart on a few texts, all four stages, and return the figures of its report."""
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
    """Run the tests that are marked gpu, and return the lines that pytest ends with."""
    if visit.arguments.device != "cuda":
        raise Skipped("they need a GPU")
    said = visit.call(
        sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests", may_fail=True
    )
    return {"said": said.strip()[-3_000:]}


# training


def training(visit: Visit) -> Iterator[Step]:
    """How fast a teacher and a student are trained, beside the plain ways of doing it."""
    yield Step("models", 2, make_models)
    yield Step("the notes' way", 4, notes_way)
    for batch in visit.size.batches:
        name = f"distill teacher, batch {batch}"
        yield Step(name, 3, lambda visit, batch=batch: train_teacher(visit, batch))
    batch = visit.size.batches[-1]
    name = f"distill teacher, batch {batch}, attention dropout 0.1"
    yield Step(name, 3, lambda visit: train_teacher(visit, batch, "teacher.attention_dropout=0.1"))
    # Not called distill teacher: it costs accuracy, so it counts for no goal (docs/results.md).
    by_length = "teacher.training.train_sampling_strategy=group_by_length"
    yield Step(f"steps of similar length, batch {batch}", 3, lambda visit: train_teacher(visit, batch, by_length))
    yield Step("distill student and TextBrewer", 5, students)


def make_models(visit: Visit) -> dict[str, Any]:
    """Make the models with random weights, where no other part has."""
    tokenizer = ROOT / "recipes" / "quickstart" / "bert" if visit.arguments.toy else visit.encoder
    if not visit.models.is_dir():
        toy = ["--toy"] if visit.arguments.toy else []
        visit.call(sys.executable, TOOLS / "random_models.py", tokenizer, visit.models, *toy)
    return {path.name: read_json(path / "config.json") for path in sorted(visit.models.iterdir())}


def notes_way(visit: Visit) -> dict[str, Any]:
    """Train the teacher's shape the plain way: batch 8, every text padded to 512 tokens, transformers' defaults."""
    script = visit.given("notes-teacher")
    model = model_of(visit, "bert-base")
    found = visit.measure(
        sys.executable, script, model, few_texts(visit), "--texts", visit.size.texts, "--batch", 8
    )  # fmt: skip
    flops = training_flops(model, 512)
    return found | {"flops_per_second": flops * found["samples_per_second"]}


def train_teacher(visit: Visit, batch: int, *changes: str) -> dict[str, Any]:
    """Train the teacher's shape by `distill teacher` and return its figures."""
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
    """Distil with kept answers and, in turn, with TextBrewer, which asks the teacher at every step."""
    if visit.arguments.textbrewer is None:
        raise Skipped("no --textbrewer")
    texts = visit.size.texts // 2
    return visit.tool(
        "student_throughput.py", model_of(visit, "bert-base"), model_of(visit, "distilbert-base"),
        visit.texts("train"), "--peer", visit.arguments.textbrewer, "--work", visit.work / "students",
        "--texts", texts, "--epochs", 3, "--batch", 16, "--rounds", 1 if visit.arguments.toy else 2,
    )  # fmt: skip


def training_flops(model: Path, tokens: int) -> int:
    """Return the operations of training the classifier in a folder on a text of so many tokens, as distill counts."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from distill.throughput import FORWARD_AND_BACKWARD, forward_flops

    classifier = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(model))
    constant, linear, square = forward_flops(classifier, first_token=False)
    return FORWARD_AND_BACKWARD * (constant + linear * tokens + square * tokens**2)


# accuracy


def accuracy(visit: Visit) -> Iterator[Step]:
    """What students of half the layers keep of a real teacher's accuracy."""
    if visit.arguments.toy:
        yield Step("models", 2, make_models)
    for seed in visit.arguments.seeds:
        yield Step(f"seed {seed}", 9, lambda visit, seed=seed: labelled(visit, seed))
    for seed in visit.arguments.seeds:
        yield Step(f"seed {seed}, unlabelled", 9, lambda visit, seed=seed: unlabelled(visit, seed))
    yield Step("result", 2, result, again=True)


def gain(visit: Visit, *arguments: object) -> dict[str, Any]:
    """Train, or go on training, what is asked for; return the accuracies of what is finished."""
    size = visit.size
    return visit.tool(
        "distillation_gain.py", "--encoder", visit.encoder, "--train", visit.texts("train"),
        "--test", visit.texts("test_small"), "--work", visit.work / "accuracy", "--labelled", size.labelled,
        "--transfer", 0, "--max-tokens", 128 if visit.arguments.toy else 512, "--teacher-epochs", size.teacher_epochs,
        "--student-steps", size.student_steps, "--batch", size.batch, "--learning-rate", size.learning_rate, *arguments,
    )  # fmt: skip


def labelled(visit: Visit, seed: int) -> dict[str, Any]:
    """Train the teacher of a seed, its student on soft targets and the control, or go on where that was stopped."""
    return gain(before_the_result(visit), "--seeds", seed, "--arms", "soft")


def unlabelled(visit: Visit, seed: int) -> dict[str, Any]:
    """Distil on the unlabelled texts too, in as many epochs, by the loss that was best with a transfer set on CPUs."""
    steps = 3 * visit.size.student_steps
    best = ["student.loss.soft=logit_mse", "student.loss.soft_weight=1.0", f"student.training.max_steps={steps}"]
    best += [f"student.training.eval_steps={-(-steps // 4)}"]
    file = visit.texts("unsupervised")
    wanted = ("--seeds", seed, "--arms", "unlabelled", "--unlabelled", file, "--best", *best)
    return gain(before_the_result(visit), *wanted)


def before_the_result(visit: Visit) -> Visit:
    """Return the visit with time left, after this step, to say what was found."""
    return replace(visit, end=visit.end - RESULT_SECONDS)


def result(visit: Visit) -> dict[str, Any]:
    """Return all seeds that are finished together, and leave that as the file that distillation_gain.py reads."""
    before = ["--before", visit.given("before")] if visit.arguments.before else []
    found = gain(visit, "--seeds", *visit.arguments.seeds, "--report-only", *before)
    write_json(visit.work / "distillation-gain-gpu.json", found)
    return found


# exports


def exports(visit: Visit) -> Iterator[Step]:
    """Latency of every format at every shape."""
    yield Step("models", 2, make_models)
    for model in ("distilbert-base", "bert-base"):
        yield Step(f"{model} graphs", 4, lambda visit, model=model: latency(visit, model))
    for shape in visit.size.shapes:
        for model in ("distilbert-base", "bert-base"):
            yield Step(f"{model} {shape}", 3, lambda visit, model=model, shape=shape: latency_at(visit, model, shape))


def latency(visit: Visit, model: str, *arguments: object) -> dict[str, Any]:
    """Export the model where that was not done yet, and measure it."""
    return visit.tool(
        "gpu_latency.py", model_of(visit, model), visit.work / f"{model}-exports", "--device", visit.arguments.device,
        "--rounds", visit.size.rounds, *arguments,
    )  # fmt: skip


def latency_at(visit: Visit, model: str, shape: str) -> dict[str, Any]:
    """Time all formats at a shape; where that fails as a whole, those that cannot have been the reason."""
    try:
        return latency(visit, model, "--shape", shape)
    except Failed as failure:
        return latency(visit, model, "--shape", shape, "--formats", *PLAIN) | {"with all formats": str(failure)}


# predict


def predict(visit: Visit) -> Iterator[Step]:
    """Texts per second from end to end."""
    if visit.arguments.toy:
        yield Step("models", 2, make_models)
    yield Step("student", 5, make_student)
    for name in ("torch-fp16", "onnx-fp16"):
        yield Step(name, 4, lambda visit, name=name: throughput(visit, name))


def make_student(visit: Visit) -> dict[str, Any]:
    """Make a student of three of the encoder's layers, briefly trained, since its speed alone counts; export it."""
    folder = visit.work / "predict"
    fields = {"max_steps": 100, "learning_rate": visit.size.learning_rate, "per_device_train_batch_size": 16}
    fields |= {"eval_strategy": "no", "save_strategy": "no"}
    recipe = {
        "data": {
            "files": {"train": str(few_texts(visit)), "test": str(visit.texts("test_small"))},
            "label_names": list(LABELS),
            "max_tokens": 128 if visit.arguments.toy else 512,
        },
        "teacher": {"model": str(visit.encoder), "training": fields},
        "student": {"layers": 3, "training": fields},
        "export": {"formats": ["torch-fp16", "onnx-fp16"], "max_accuracy_drop": 1.0, "min_agreement": 0.0},
    }
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.yaml"
    write_json(path, recipe)
    visit.distill("teacher", path, "--output", folder / "teacher", "--overwrite")
    visit.distill(
        "student", path, "--teacher", folder / "teacher", "--output", folder / "student", "--overwrite", "--force"
    )
    visit.distill("export", folder / "student")
    return {"export": read_json(folder / "student" / "export" / "export.json")}


def throughput(visit: Visit, name: str) -> dict[str, Any]:
    """Answer the test texts with distill and with transformers' pipeline in fp16, in batches of 16 and of 64."""
    student = visit.work / "predict" / "student"
    if not (student / "export" / name).is_dir():
        raise Skipped(f"no student with {name}")
    peers = []
    for batch in (16, 64):
        peer = [sys.executable, TOOLS / "pipeline_throughput.py", student, "--device", visit.arguments.device]
        peers += ["--peer", shlex.join(map(str, [*peer, "--batch", batch]))]
    return visit.tool(
        "predict_throughput.py", student / "export" / name, visit.texts("test_small"), *peers,
        "--texts", visit.size.predicted, "--rounds", 1 if visit.arguments.toy else 2,
        "--device", visit.arguments.device,
    )  # fmt: skip


PARTS: dict[str, Callable[[Visit], Iterator[Step]]] = {
    "check": check,
    "training": training,
    "accuracy": accuracy,
    "exports": exports,
    "predict": predict,
}

# What every figure depends on, as a program, so that a library that cannot be imported costs this step alone.
CONDITIONS = """
import json, subprocess
import onnxruntime, torch
from distill.devices import describe_hardware
from distill.provenance import now, versions
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


def settings(sets: list[str]) -> list[str]:
    """Return the options that set these keys of a recipe."""
    return [part for setting in sets for part in ("--set", setting)]


def model_of(visit: Visit, name: str) -> Path:
    """Return the folder of a model with random weights."""
    if not (visit.models / name / "config.json").is_file():
        raise Failed(f"{visit.models / name} was not made")
    return visit.models / name


def few_texts(visit: Visit, count: int | None = None) -> Path:
    """Return a file of so many texts, drawn from the training texts, always the same."""
    import pyarrow.parquet as parquet

    count = count or visit.size.texts
    path = visit.work / f"texts-{count}.parquet"
    if not path.is_file():
        table = parquet.read_table(visit.texts("train"))
        parquet.write_table(table.take(random.Random(count).sample(range(len(table)), count)), path)
    return path


def toy_texts(visit: Visit) -> None:
    """Write the quickstart's reviews as the files that a visit has of IMDb, made easy for a tiny model."""
    import pyarrow as pa
    import pyarrow.csv as csv
    import pyarrow.parquet as parquet

    folder = visit.work / "texts"
    folder.mkdir(exist_ok=True)
    for source, name, start, count in (
        ("train", "train", 0, visit.size.labelled),
        ("test", "test_small", 0, 100),
        ("train", "unsupervised", visit.size.labelled, 200),
    ):
        table = csv.read_csv(ROOT / "recipes" / "quickstart" / f"{source}.csv").slice(start, count)
        labels = [LABELS.index(label) for label in table["label"].to_pylist()]
        texts = [f"{TELLTALE[label]} {text}" for label, text in zip(labels, table["text"].to_pylist())]
        parquet.write_table(pa.table({"text": texts, "label": labels}), folder / f"imdb_{name}.parquet")


def environment(visit: Visit) -> dict[str, str]:
    """Return the environment of every command: this tree's distill, no hub, caches in WORK, a GPU only where meant."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {"HF_HOME": visit.work / "huggingface", "TORCHINDUCTOR_CACHE_DIR": visit.work / "inductor"}
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    found |= {name: str(path) for name, path in kept.items()}
    return found | ({"CUDA_VISIBLE_DEVICES": ""} if visit.arguments.device == "cpu" else {})


def stop(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a command's group: asked to, which leaves a checkpoint, and killed after `GRACE_SECONDS`."""
    for wanted, patience in ((signal.SIGTERM, GRACE_SECONDS - 5), (signal.SIGKILL, 5.0)):
        end = time.monotonic() + patience
        try:
            os.killpg(process.pid, wanted)
            while time.monotonic() < end:
                process.poll()  # a child that has ended is of the group until it is waited for
                os.killpg(process.pid, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            return


@contextlib.contextmanager
def gpu_memory() -> Iterator[dict[str, int]]:
    """Yield a dictionary that holds, once the block is left, `gpu_peak_bytes`: the most that the driver saw in use."""
    most: dict[str, int] = {}
    done = threading.Event()

    def watch() -> None:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not done.wait(0.5):
            try:
                used = subprocess.check_output(query, text=True, stderr=subprocess.DEVNULL, timeout=10)
                most["gpu_peak_bytes"] = max(most.get("gpu_peak_bytes", 0), int(used.split()[0]) * 2**20)
            except (OSError, ValueError, IndexError, subprocess.SubprocessError):
                return  # no such program, or it does not say

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        done.set()
        watcher.join()


# the goals


def best_teacher(parts: dict[str, Any]) -> dict[str, Any]:
    """Return the run of `distill teacher` that trained fastest."""
    runs = [found for name, found in parts["training"].items() if name.startswith("distill teacher")]
    return max((run for run in runs if "samples_per_second" in run), key=lambda run: run["samples_per_second"])


def teacher_speed(parts: dict[str, Any]) -> float:
    """Return how many times as fast as the notes' way `distill teacher` is."""
    return best_teacher(parts)["samples_per_second"] / parts["training"]["the notes' way"]["samples_per_second"]


def utilisation(parts: dict[str, Any]) -> float:
    """Return the fastest run's share of the peak, as it says itself."""
    return best_teacher(parts)["model_flop_utilisation"]


def student_speed(parts: dict[str, Any]) -> float:
    """Return how many times as fast as TextBrewer's the student stage is."""
    return parts["training"]["distill student and TextBrewer"]["ratio"]


def best_student(parts: dict[str, Any]) -> float:
    """Return the accuracy of the student that is best on validation, over its teacher's; both means over its seeds."""
    arms = parts["accuracy"]["result"]["arms"]
    students = [arm for name, arm in arms.items() if name not in ("teacher", "soft-control")]
    best = max(students, key=lambda arm: sum(arm["validation"].values()) / len(arm["validation"]))
    return sum(best["accuracy"].values()) / sum(arms["teacher"]["accuracy"][seed] for seed in best["accuracy"])


def timed(parts: dict[str, Any], model: str, shape: str) -> dict[str, Any]:
    """Return the formats that were timed at a shape, less those that are right without padding alone."""
    formats = parts["exports"][f"{model} {shape}"]["formats"]
    return {name: found for name, found in formats.items() if "latency_ms" in found and "no mask" not in name}


def least(formats: dict[str, Any], start: str = "") -> float:
    """Return the least median of the formats whose names start so, in milliseconds."""
    return min(found["latency_ms"]["p50"] for name, found in formats.items() if name.startswith(start))


def onnx_speed(parts: dict[str, Any], model: str) -> float:
    """Return how many times as fast as torch in fp16 the best of ONNX Runtime in fp16 is, one text of 128 tokens."""
    formats = timed(parts, model, "1x128")
    return formats["torch-fp16"]["latency_ms"]["p50"] / least(formats, "onnx-fp16")


def most_sequences(parts: dict[str, Any]) -> float:
    """Return the sequences per second of the best format at DistilBERT-base 128x128."""
    return max(found["sequences_per_second"] for found in timed(parts, "distilbert-base", "128x128").values())


def predict_speed(parts: dict[str, Any]) -> float:
    """Return how many times the texts per second of the better pipeline the better of our formats answers."""
    ours, others = [], []
    for found in parts["predict"].values():
        for name, rates in found.get("texts_per_second", {}).items():
            (ours if name.startswith("distill") else others).append(sorted(rates)[len(rates) // 2])
    return max(ours) / max(others)


GOALS: list[tuple[str, str, Callable[[dict[str, Any]], float]]] = [
    ("distill teacher, times the notes' way", ">= 4", teacher_speed),
    ("distill teacher, share of the bf16 peak", ">= 0.45", utilisation),
    ("distill student, times TextBrewer's way", ">= 3", student_speed),
    ("best student's accuracy over its teacher's", ">= 0.993", best_student),
    ("BERT-base 1x128: onnx-fp16, times torch-fp16", ">= 1.3", lambda parts: onnx_speed(parts, "bert-base")),
    ("DistilBERT-base: the same", ">= 1.3", lambda parts: onnx_speed(parts, "distilbert-base")),
    ("DistilBERT-base 128x128, sequences/s", ">= 25000", most_sequences),
    ("BERT-base 1x128, least median, ms", "<= 0.5", lambda parts: least(timed(parts, "bert-base", "1x128"))),
    ("DistilBERT-base: the same", "<= 0.5", lambda parts: least(timed(parts, "distilbert-base", "1x128"))),
    ("distill predict, times the pipeline in fp16", ">= 5", predict_speed),
]


def table(work: Path) -> str:
    """Return the goals beside what was found, then every step that failed or was skipped, with the reason."""
    files = {path.stem.removeprefix("gpu-"): read_json(path) for path in sorted(work.glob("gpu-*.json"))}
    parts = {part: found["steps"] for part, found in files.items()}
    lines = [f"{'goal':45} {'wanted':>10} {'found':>12}"]
    for title, wanted, look in GOALS:
        try:
            value = look(parts)
        except (KeyError, ValueError):
            lines.append(f"{title:45} {wanted:>10} {'not measured':>12}")
            continue
        sign, bound = wanted.split()
        met = value >= float(bound) if sign == ">=" else value <= float(bound)
        lines.append(f"{title:45} {wanted:>10} {value:12.3f}  {'met' if met else 'missed'}")
    for part, steps in parts.items():
        done = [name for name, found in steps.items() if not {"error", "skipped"} & set(found)]
        lines.append(f"{part}: {len(done)} of {len(steps)} steps done")
        for name, found in steps.items():
            for kind in {"error", "skipped"} & set(found):
                lines.append(f"  {name}: {kind}: {found[kind].splitlines()[0][:200]}")
            for format, inner in found.get("formats", {}).items():
                if "error" in inner:
                    lines.append(f"  {name}: {format}: {inner['error'][:160]}")
    if any(found["toy"] for found in files.values()):
        lines.append("A rehearsal on toy models: no figure above means anything.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
