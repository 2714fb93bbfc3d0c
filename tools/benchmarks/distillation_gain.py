"""Compare ways of distilling: accuracy of a teacher, its students and their control over several seeds.

usage: python3 tools/benchmarks/distillation_gain.py --encoder DIR --train FILE --test FILE --work DIR
           [--unlabelled FILE] [--seeds 1 2 3] [--best KEY=VALUE ...] [--arms ARM ...] [--before RESULT.json]

The train file is split in two: `--labelled` texts keep their labels, and `--transfer` others become the transfer set
(0: no transfer set). Every student takes the same number of steps.

You can stop the script and start it again: it keeps finished runs in WORK and resumes interrupted ones. Seeds that were
trained elsewhere are read from --before. It prints a table; the last line is the whole result as JSON. There, `correct`
says for each run which test texts it answered correctly (packed bits, hexadecimal).
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from seeded_runs import distill, pooled_p_value

from distill.measuring.metrics import compare_paired, figures
from distill.storage.files import atomic_path, read_json
from distill.storage.predictions import read_predictions
from distill.storage.run_folder import RunFolder

FIGURES = ("accuracy", "ece", "brier", "validation", "seconds", "texts", "correct")  # of each arm, by seed


def main() -> None:
    """Train the runs that are missing and print the results."""
    parser = argparse.ArgumentParser(description="Compare ways of distilling over several seeds.")
    parser.add_argument("--encoder", required=True, help="folder of the pretrained encoder")
    parser.add_argument("--train", required=True, help="parquet file with text and label")
    parser.add_argument("--test", required=True)
    parser.add_argument("--unlabelled", help="parquet file with more texts, for the arm `unlabelled`")
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--labels", nargs="+", default=["negative", "positive"])
    parser.add_argument("--labelled", type=int, default=5_000)
    parser.add_argument("--transfer", type=int, default=20_000)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--teacher-epochs", type=int, default=3)
    parser.add_argument("--student-steps", type=int, default=1_530, help="training steps of every student")
    parser.add_argument("--batch", type=int, default=16, help="texts per step")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--best", nargs="*", default=[], help="settings of the arm `best`, chosen on validation")
    parser.add_argument("--arms", nargs="+", default=["soft", "transfer", "best"])
    parser.add_argument("--before", type=Path, help="a result of this script for other seeds and the same texts")
    parser.add_argument("--report-only", action="store_true", help="train nothing; report the finished runs")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if not arguments.report_only:
        prepare(arguments)
        for seed in arguments.seeds:
            train(arguments, seed)
    report(arguments)


def prepare(arguments: argparse.Namespace) -> None:
    """Split the train file in two and write the recipe that all runs share."""
    labelled, transfer = arguments.work / "labelled.parquet", arguments.work / "transfer.parquet"
    if not labelled.is_file():
        rows = Dataset.from_parquet(arguments.train).shuffle(seed=42)
        end = min(len(rows), arguments.labelled + arguments.transfer)
        if arguments.transfer:
            rows.select(range(arguments.labelled, end)).select_columns(["text"]).to_parquet(transfer)
        with atomic_path(labelled) as partial:  # written last: if it exists, this function is done
            rows.select(range(min(len(rows), arguments.labelled))).to_parquet(partial)
    training = {
        "learning_rate": arguments.learning_rate,
        "per_device_train_batch_size": arguments.batch,
        "warmup_steps": 0.1,
    }
    steps = arguments.student_steps
    recipe = {
        "data": {
            "files": {"train": str(labelled.absolute()), "test": str(Path(arguments.test).absolute())},
            "label_names": arguments.labels,
            "max_tokens": arguments.max_tokens,
        },
        "teacher": {
            "model": str(Path(arguments.encoder).absolute()),
            "attention_dropout": 0.0,
            "training": {**training, "num_train_epochs": arguments.teacher_epochs},
        },
        "student": {
            "layers": arguments.layers,
            "training": {**training, "max_steps": steps, "eval_strategy": "steps", "eval_steps": -(-steps // 4)},
        },
    }
    (arguments.work / "recipe.yaml").write_text(json.dumps(recipe, indent=2))  # JSON is YAML


def arm_settings(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Return the settings of each arm on top of the recipe."""
    file = (arguments.work / "transfer.parquet").absolute()
    transfer = [f"data.files.transfer={file}"] if arguments.transfer else []
    arms = {"soft": ["student.loss.soft_weight=0.5"]}
    if transfer:
        arms["transfer"] = [*transfer, "student.loss.soft_weight=0.9"]
    arms[controlled(arguments)].append("student.control=true")
    arms["best"] = [*transfer, *arguments.best]
    if arguments.unlabelled and "unlabelled" in arguments.arms:
        both = arguments.work / "both.parquet"
        if not both.is_file():
            files = [str(file), arguments.unlabelled] if transfer else [arguments.unlabelled]
            concatenate_datasets([Dataset.from_parquet(file).select_columns(["text"]) for file in files]).to_parquet(
                both
            )
        arms["unlabelled"] = [f"data.files.transfer={both.absolute()}", *arguments.best]
    return arms


def controlled(arguments: argparse.Namespace) -> str:
    """Return the arm whose control is trained; all arms share the labeled texts, so one control is enough."""
    return "transfer" if arguments.transfer else "soft"


def train(arguments: argparse.Namespace, seed: int) -> None:
    """Train the teacher and the student of every arm for a seed, except finished ones."""
    recipe, folder = arguments.work / "recipe.yaml", arguments.work / f"seed-{seed}"
    teacher = RunFolder(folder / "teacher")
    if not teacher.is_finished:
        distill("teacher", recipe, "--output", teacher.path, "--set", f"teacher.training.seed={seed}", "--resume")
    for arm, settings in arm_settings(arguments).items():
        student = RunFolder(folder / arm)
        has_control = arm != controlled(arguments) or RunFolder(folder / f"{arm}-control").is_finished
        finished = student.is_finished and has_control
        if arm in arguments.arms and not finished:
            sets = [part for setting in (*settings, f"student.training.seed={seed}") for part in ("--set", setting)]
            distill("student", recipe, "--teacher", teacher.path, "--output", student.path, "--resume", *sets)


def report(arguments: argparse.Namespace) -> None:
    """Print each arm's accuracies, their mean, and its gains over the control and over the teacher."""
    control = f"{controlled(arguments)}-control"
    names = ["teacher", control, "soft", "transfer", "best", "unlabelled"]
    before = read_json(arguments.before)["arms"] if arguments.before else {}
    result: dict[str, Any] = {"arguments": {k: str(v) for k, v in vars(arguments).items()}, "arms": {}}
    correct: dict[tuple[str, int], np.ndarray] = {}
    for name in names:
        entry: dict[str, Any] = {key: {} for key in FIGURES}
        for key, values in before.get(name, {}).items():
            if key in FIGURES:
                entry[key] |= {int(seed): value for seed, value in values.items()}
        for seed in arguments.seeds:
            run = RunFolder(arguments.work / f"seed-{seed}" / name)
            if not run.is_finished:
                continue
            _, gold_labels, logits, _ = read_predictions(run.predictions)
            metrics, found = read_json(run.metrics), figures(logits, gold_labels)
            for key in ("accuracy", "ece", "brier"):
                entry[key][seed] = found[key]
            entry["validation"][seed] = metrics["training"]["selected_at"]
            entry["seconds"][seed] = metrics["training"]["seconds"]
            entry["texts"][seed] = len(gold_labels)
            entry["correct"][seed] = np.packbits(logits.argmax(axis=1) == gold_labels).tobytes().hex()
        for seed, bits in entry["correct"].items():
            packed = np.frombuffer(bytes.fromhex(bits), np.uint8)
            correct[name, seed] = np.unpackbits(packed, count=entry["texts"][seed]).astype(bool)
        finished = sorted(entry["accuracy"])
        if not finished:
            continue
        entry["mean_accuracy"] = statistics.mean(entry["accuracy"].values())
        for other in (control, "teacher"):
            pairs = [seed for seed in finished if (other, seed) in correct and other != name]
            if pairs:
                own, its = ([correct[arm, seed] for seed in pairs] for arm in (name, other))
                entry[f"against_{other}"] = {
                    "per_seed": {seed: compare_paired(correct[name, seed], correct[other, seed]) for seed in pairs},
                    "mean_gain": float(np.mean(own) - np.mean(its)),
                    "p_value": pooled_p_value(own, its),
                }
        result["arms"][name] = entry
        shown = ", ".join(f"{value:.4f}" for value in entry["accuracy"].values())
        print(f"{name:18} {entry['mean_accuracy']:.4f} ({shown})")
        for other in (control, "teacher"):
            if against := entry.get(f"against_{other}"):
                print(f"{'':18} {100 * against['mean_gain']:+.2f} points over {other}, p = {against['p_value']:.2g}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
