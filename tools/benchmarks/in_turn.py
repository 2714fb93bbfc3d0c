"""Shared by the throughput comparisons: run a stage of distill and another script in turn, and compare texts/s."""

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

HELD_OUT = 16  # texts for validation and test, which a run needs but the comparison does not


def add_arguments(parser: argparse.ArgumentParser, *, batch: int) -> None:
    """Add the arguments that every such comparison takes, apart from its models."""
    parser.add_argument("train")
    parser.add_argument("--peer", required=True, help="command that runs the other script")
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--labels", nargs="+", default=["negative", "positive"])
    parser.add_argument("--set", nargs="*", default=[], dest="sets", metavar="KEY=VALUE")


def write_recipe(arguments: argparse.Namespace, stages: dict[str, Any]) -> Path:
    """Write the train texts of both scripts and a recipe with `stages`; return the recipe's path."""
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
    """Return the file with the train texts of both scripts."""
    return arguments.work / "train.parquet"


def sets_of(arguments: argparse.Namespace) -> list[str]:
    """Return the settings as --set options of distill."""
    return [part for setting in arguments.sets for part in ("--set", setting)]


def peer_rate(peer: str, *words: object) -> float:
    """Run the other script and return samples_per_second from the JSON in its last line."""
    done = subprocess.run(
        [*shlex.split(peer), *map(str, words)], check=True, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])["samples_per_second"]


def compare(
    peer: Callable[[], float], ours: Callable[[], tuple[float, dict[str, Any]]], arguments: argparse.Namespace
) -> None:
    """Run both in turn; print the medians and their ratio, then every figure as one line of JSON.

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
