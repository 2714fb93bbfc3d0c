"""Texts per second of the student stage against another distiller's, in turn on the same models and texts.

usage: python3 tools/student_throughput.py TEACHER_DIR STUDENT_DIR TRAIN.parquet --peer "PYTHON SCRIPT" --work DIR
           [--texts 256] [--epochs 3] [--max-tokens 512] [--rounds 2]

The peer is a command that takes TEACHER_DIR STUDENT_DIR TRAIN --texts N --batch N --max-tokens N and prints, as its
last line, JSON with samples_per_second. Ours is `distill student` from nothing: the teacher's logits are computed and
written, then `--epochs` over them; samples_per_second = epochs * texts / (logits + training), without reading the data,
imports and the final test. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset

from distill.files import read_json
from distill.provenance import versions


def main() -> None:
    """Run both in turn and print their throughput."""
    parser = argparse.ArgumentParser(description="Texts per second of the student stage against a peer's.")
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("train")
    parser.add_argument("--peer", required=True, help="command of the other distiller")
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--labels", nargs="+", default=["negative", "positive"])
    parser.add_argument("--set", nargs="*", default=["student.attention_dropout=0.0"], dest="sets")
    arguments = parser.parse_args()
    recipe = prepare(arguments)
    found: dict[str, list[float]] = {"peer": [], "distill": []}
    ours: list[dict[str, Any]] = []
    for _ in range(arguments.rounds):
        found["peer"].append(run_peer(arguments))
        ours.append(run_distill(arguments, recipe))
        seconds = ours[-1]["teacher_logits_seconds"] + ours[-1]["seconds"]
        found["distill"].append(arguments.epochs * ours[-1]["texts"] / seconds)
        print(f"peer {found['peer'][-1]:.2f} texts/s, distill {found['distill'][-1]:.2f} texts/s", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in found.items()}
    ratio = medians["distill"] / medians["peer"]
    print(f"peer {medians['peer']:.2f} texts/s, distill {medians['distill']:.2f} texts/s, ratio {ratio:.2f}")
    shown = {name: str(value) for name, value in vars(arguments).items()}
    print(json.dumps({"texts_per_second": found, "ratio": ratio, "runs": ours, "arguments": shown} | versions()))


def prepare(arguments: argparse.Namespace) -> Path:
    """Write the texts that both train on, the few that ours is judged on, and the recipe."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = Dataset.from_parquet(arguments.train).shuffle(seed=42)
    train, held_out = arguments.work / "train.parquet", arguments.work / "held_out.parquet"
    rows.select(range(arguments.texts)).to_parquet(train)
    rows.select(range(arguments.texts, arguments.texts + 16)).to_parquet(held_out)
    recipe = {
        "data": {
            "files": {"train": str(train), "validation": str(held_out), "test": str(held_out)},
            "label_names": arguments.labels,
            "max_tokens": arguments.max_tokens,
        },
        "student": {
            "model": arguments.student,
            "calibrate": False,
            "training": {
                "num_train_epochs": arguments.epochs,
                "per_device_train_batch_size": arguments.batch,
                "learning_rate": 5e-5,
                "eval_strategy": "no",
                "save_strategy": "no",
                "train_sampling_strategy": "group_by_length",
            },
        },
    }
    (arguments.work / "recipe.yaml").write_text(json.dumps(recipe, indent=2))
    return arguments.work / "recipe.yaml"


def run_peer(arguments: argparse.Namespace) -> float:
    """Return the peer's samples per second."""
    command = [
        *shlex.split(arguments.peer), arguments.teacher, arguments.student, str(arguments.work / "train.parquet"),
        "--texts", str(arguments.texts), "--batch", str(arguments.batch), "--max-tokens", str(arguments.max_tokens),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])["samples_per_second"]


def run_distill(arguments: argparse.Namespace, recipe: Path) -> dict[str, Any]:
    """Return the training figures of a student distilled with no logits kept from before."""
    output = arguments.work / "student"
    shutil.rmtree(arguments.work / "logits", ignore_errors=True)
    command = [sys.executable, "-m", "distill", "student", str(recipe), "--teacher", arguments.teacher]
    command += ["--output", str(output), "--overwrite", "--force", "--teacher-logits", str(arguments.work / "logits")]
    command += [part for setting in arguments.sets for part in ("--set", setting)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    training = read_json(output / "metrics.json")["training"]
    return training | {"texts": arguments.texts}


if __name__ == "__main__":
    main()
