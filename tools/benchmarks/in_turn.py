"""Texts per second of a stage of distill against another script's, in turn on the same models and texts."""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from distill.machine.devices import describe_hardware
from distill.machine.provenance import versions

HELD_OUT = 16  # texts that the finished model is judged on, for the run folder's sake


def add_arguments(parser: argparse.ArgumentParser, *, batch: int) -> None:
    """Add what every such comparison takes beside its models."""
    parser.add_argument("train")
    parser.add_argument("--peer", required=True, help="command of the other script")
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--labels", nargs="+", default=["negative", "positive"])
    parser.add_argument("--set", nargs="*", default=[], dest="sets", metavar="KEY=VALUE")


def write_recipe(arguments: argparse.Namespace, stages: dict[str, Any]) -> Path:
    """Write the texts that both train on and the recipe of `stages`; return the recipe's path."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = Dataset.from_parquet(arguments.train).shuffle(seed=42)
    train, held_out = texts_of(arguments), arguments.work / "held_out.parquet"
    rows.select(range(arguments.texts)).to_parquet(train)
    rows.select(range(arguments.texts, arguments.texts + HELD_OUT)).to_parquet(held_out)
    data = {
        "files": {"train": str(train), "validation": str(held_out), "test": str(held_out)},
        "label_names": arguments.labels,
        "max_tokens": arguments.max_tokens,
    }
    path = arguments.work / "recipe.yaml"
    path.write_text(json.dumps({"data": data, **stages}, indent=2))  # JSON is YAML
    return path


def texts_of(arguments: argparse.Namespace) -> Path:
    """Return the file of the texts that both train on."""
    return arguments.work / "train.parquet"


def sets_of(arguments: argparse.Namespace) -> list[str]:
    """Return the command line's --set for each of the settings."""
    return [part for setting in arguments.sets for part in ("--set", setting)]


def peer_rate(peer: str, *words: object) -> float:
    """Run the other script and return the samples_per_second of the JSON in its last line."""
    done = subprocess.run(
        [*shlex.split(peer), *map(str, words)], check=True, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])["samples_per_second"]


def compare(
    peer: Callable[[], float], ours: Callable[[], tuple[float, dict[str, Any]]], arguments: argparse.Namespace
) -> None:
    """Run both, turn by turn; print the medians and their ratio, then all of it as one line of JSON.

    `ours` returns its texts per second and the figures that they come from.
    """
    found: dict[str, list[float]] = {"peer": [], "distill": []}
    runs: list[dict[str, Any]] = []
    for _ in range(arguments.rounds):
        found["peer"].append(peer())
        rate, figures = ours()
        found["distill"].append(rate)
        runs.append(figures)
        print(f"peer {found['peer'][-1]:.2f} texts/s, distill {rate:.2f} texts/s", file=sys.stderr)
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    ratio = medians["distill"] / medians["peer"]
    print(f"peer {medians['peer']:.2f} texts/s, distill {medians['distill']:.2f} texts/s, ratio {ratio:.2f}")
    shown = {name: str(value) for name, value in vars(arguments).items()}
    conditions = {"arguments": shown, "hardware": describe_hardware(), "versions": versions()}
    print(json.dumps({"texts_per_second": found, "ratio": ratio, "runs": runs} | conditions))
