"""Texts per second of `distill teacher` against another fine-tuning script, in turn on the same encoder and texts.

usage: python3 tools/teacher_throughput.py ENCODER_DIR TRAIN.parquet --peer "PYTHON SCRIPT" --work DIR
           [--texts 256] [--max-tokens 512] [--batch 8] [--rounds 2] [--set KEY=VALUE ...]

The peer is a command that takes ENCODER_DIR TRAIN --texts N --batch N, trains one epoch at 512 tokens and prints, as
its last line, JSON with samples_per_second, tokenising left out; so is ours counted. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from seeded_runs import distill

from distill.devices import describe_hardware
from distill.files import read_json
from distill.provenance import versions

HELD_OUT = 16  # texts that the finished teacher is judged on, for the run folder's sake


def main() -> None:
    """Run both in turn and print their throughput."""
    parser = argparse.ArgumentParser(description="Texts per second of the teacher stage against a peer's.")
    parser.add_argument("encoder")
    parser.add_argument("train")
    parser.add_argument("--peer", required=True, help="command of the other script")
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--labels", nargs="+", default=["negative", "positive"])
    parser.add_argument("--set", nargs="*", default=[], dest="sets")
    arguments = parser.parse_args()
    recipe = prepare(arguments)
    found: dict[str, list[float]] = {"peer": [], "distill": []}
    ours: list[dict[str, Any]] = []
    for _ in range(arguments.rounds):
        found["peer"].append(run_peer(arguments))
        ours.append(run_distill(arguments, recipe))
        found["distill"].append(ours[-1]["samples_per_second"])
        print(f"peer {found['peer'][-1]:.2f} texts/s, distill {found['distill'][-1]:.2f} texts/s", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in found.items()}
    ratio = medians["distill"] / medians["peer"]
    print(f"peer {medians['peer']:.2f} texts/s, distill {medians['distill']:.2f} texts/s, ratio {ratio:.2f}")
    shown = {name: str(value) for name, value in vars(arguments).items()}
    conditions = {"arguments": shown, "hardware": describe_hardware(), "versions": versions()}
    print(json.dumps({"texts_per_second": found, "ratio": ratio, "runs": ours} | conditions))


def prepare(arguments: argparse.Namespace) -> Path:
    """Write the texts that both train on and the recipe."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = Dataset.from_parquet(arguments.train).shuffle(seed=42)
    train, held_out = arguments.work / "train.parquet", arguments.work / "held_out.parquet"
    rows.select(range(arguments.texts)).to_parquet(train)
    rows.select(range(arguments.texts, arguments.texts + HELD_OUT)).to_parquet(held_out)
    recipe = {
        "data": {
            "files": {"train": str(train), "validation": str(held_out), "test": str(held_out)},
            "label_names": arguments.labels,
            "max_tokens": arguments.max_tokens,
        },
        "teacher": {
            "model": arguments.encoder,
            "training": {
                "num_train_epochs": 1,
                "per_device_train_batch_size": arguments.batch,
                "eval_strategy": "no",
                "save_strategy": "no",
            },
        },
    }
    path = arguments.work / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=2))  # JSON is YAML
    return path


def run_peer(arguments: argparse.Namespace) -> float:
    """Return the peer's samples per second."""
    command = [
        *shlex.split(arguments.peer), arguments.encoder, str(arguments.work / "train.parquet"),
        "--texts", str(arguments.texts), "--batch", str(arguments.batch),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["samples_per_second"]


def run_distill(arguments: argparse.Namespace, recipe: Path) -> dict[str, Any]:
    """Return the training figures of one teacher."""
    output = arguments.work / "teacher"
    sets = [part for setting in arguments.sets for part in ("--set", setting)]
    distill("teacher", recipe, "--output", output, "--overwrite", *sets)
    return read_json(output / "metrics.json")["training"]


if __name__ == "__main__":
    main()
