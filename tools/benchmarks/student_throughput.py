"""Compare texts per second of `distill student` and another distillation script, in turn on the same models and texts.

usage: python3 tools/benchmarks/student_throughput.py TEACHER_DIR STUDENT_DIR TRAIN.parquet --peer "PYTHON SCRIPT"
           --work DIR [--texts 256] [--epochs 3] [--max-tokens 512] [--batch 16] [--rounds 2] [--set KEY=VALUE ...]

The peer is a command that takes TEACHER_DIR STUDENT_DIR TRAIN --texts N --batch N --max-tokens N. Its last line is JSON
with samples_per_second.

`distill student` starts without teacher logits: it computes and writes them, then trains for --epochs. Its figure is
epochs * texts / (seconds for the logits + seconds of training). Imports, reading the data and the final test do not
count. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import shutil
from typing import Any

from in_turn import add_arguments, compare, peer_rate, sets_of, texts_of, write_recipe
from seeded_runs import distill

from distill.storage.files import read_json


def main() -> None:
    """Run both in turn and print their throughput."""
    parser = argparse.ArgumentParser(description="Compare texts per second of `distill student` and a peer.")
    parser.add_argument("teacher")
    parser.add_argument("student")
    add_arguments(parser, batch=16)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    training = {
        "num_train_epochs": arguments.epochs, "per_device_train_batch_size": arguments.batch, "learning_rate": 5e-5,
        "eval_strategy": "no", "save_strategy": "no",
    }  # fmt: skip
    student = {"model": arguments.student, "calibrate": False, "training": training}
    recipe = write_recipe(arguments, {"student": student})

    def peer() -> float:
        counts = ("--texts", arguments.texts, "--batch", arguments.batch, "--max-tokens", arguments.max_tokens)
        return peer_rate(arguments.peer, arguments.teacher, arguments.student, texts_of(arguments), *counts)

    def ours() -> tuple[float, dict[str, Any]]:
        output, logits = arguments.work / "student", arguments.work / "logits"
        shutil.rmtree(logits, ignore_errors=True)
        distill(
            "student", recipe, "--teacher", arguments.teacher, "--output", output, "--overwrite", "--force",
            "--teacher-logits", logits, *sets_of(arguments),
        )  # fmt: skip
        figures = read_json(output / "metrics.json")["training"]
        seconds = figures["teacher_logits_seconds"] + figures["seconds"]
        return arguments.epochs * arguments.texts / seconds, figures

    compare(peer, ours, arguments)


if __name__ == "__main__":
    main()
