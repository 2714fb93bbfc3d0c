"""Compare texts per second of `distill.load` and other commands, in turn on the same texts, with tokenizing.

usage: python3 tools/benchmarks/predict_throughput.py MODEL_OR_EXPORT_DIR TEXTS.parquet --peer "COMMAND"
           [--peer ...] [--rounds 2] [--texts N] [--device cpu]

A peer is a command. It is called with TEXTS and --texts N appended, and prints JSON with texts_per_second as its last
line. distill's own figure is one call on all texts after `distill.load`; like the peers, it leaves out loading. The
whole command `distill predict MODEL --file TEXTS` is timed too, from start to end. The last line of stdout is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from datasets import Dataset

import distill
from distill.machine.devices import describe_hardware
from distill.machine.provenance import versions
from distill.measuring.benchmark import timed_logits


def main() -> None:
    """Run distill and the peers in turn and print their texts per second."""
    parser = argparse.ArgumentParser(description="Compare texts per second of distill and other commands.")
    parser.add_argument("model")
    parser.add_argument("texts_file")
    parser.add_argument(
        "--peer", action="append", default=[], help="command to compare with, without the file of texts"
    )
    parser.add_argument("--texts", type=int)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    rows = Dataset.from_parquet(arguments.texts_file)
    count = arguments.texts or len(rows)
    texts = rows.select(range(count))["text"]
    classifier = distill.load(arguments.model, arguments.device)
    ours = f"distill, {classifier.session.format}"
    found: dict[str, list[float]] = {ours: [], **{peer: [] for peer in arguments.peer}}
    for _ in range(arguments.rounds):
        found[ours].append(timed_logits(classifier, texts)[1])
        for peer in arguments.peer:
            command = [*shlex.split(peer), arguments.texts_file, "--texts", str(count)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[peer].append(json.loads(done.stdout.splitlines()[-1])["texts_per_second"])
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    for name, rate in medians.items():
        print(f"{rate:8.1f} texts/s, distill is {medians[ours] / rate:.2f} times as fast  {name}")
    seconds = whole_command(arguments.model, rows.select(range(count)), arguments.device)
    print(f"the whole command, start to end: {seconds:.1f} s, {count / seconds:.1f} texts/s")
    conditions = {"arguments": vars(arguments), "hardware": describe_hardware(), "versions": versions()}
    print(json.dumps({"texts_per_second": found, "whole_command_seconds": seconds} | conditions))


def whole_command(model: str, rows: Dataset, device: str) -> float:
    """Return the seconds of `distill predict`, from its start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.parquet"
        rows.to_parquet(path)
        start = time.perf_counter()
        command = [sys.executable, "-m", "distill", "predict", model, "--file", str(path), "--device", device]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
