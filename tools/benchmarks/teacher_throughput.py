"""Compare texts per second of `distill teacher` and another fine-tuning script, in turn on the same encoder and texts.

usage: python3 tools/benchmarks/teacher_throughput.py ENCODER_DIR TRAIN.parquet --peer "PYTHON SCRIPT" --work DIR
           [--texts 256] [--max-tokens 512] [--batch 8] [--rounds 2] [--set KEY=VALUE ...]

The peer is a command that takes ENCODER_DIR TRAIN --texts N --batch N and trains one epoch at 512 tokens. Its last line
is JSON with samples_per_second. Both figures leave out tokenizing. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
from typing import Any

from in_turn import add_arguments, compare, peer_rate, sets_of, texts_of, write_recipe
from seeded_runs import distill

from distill.storage.files import read_json


def main() -> None:
    """Run both in turn and print their throughput."""
    parser = argparse.ArgumentParser(description="Compare texts per second of `distill teacher` and a peer.")
    parser.add_argument("encoder")
    add_arguments(parser, batch=8)
    arguments = parser.parse_args()
    training = {
        "num_train_epochs": 1, "per_device_train_batch_size": arguments.batch, "eval_strategy": "no",
        "save_strategy": "no",
    }  # fmt: skip
    recipe = write_recipe(arguments, {"teacher": {"model": arguments.encoder, "training": training}})

    def peer() -> float:
        counts = ("--texts", arguments.texts, "--batch", arguments.batch)
        return peer_rate(arguments.peer, arguments.encoder, texts_of(arguments), *counts)

    def ours() -> tuple[float, dict[str, Any]]:
        output = arguments.work / "teacher"
        distill("teacher", recipe, "--output", output, "--overwrite", *sets_of(arguments))
        figures = read_json(output / "metrics.json")["training"]
        return figures["samples_per_second"], figures

    compare(peer, ours, arguments)


if __name__ == "__main__":
    main()
