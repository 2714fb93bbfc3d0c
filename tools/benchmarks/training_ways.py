"""Compare the accuracy of ways of fine-tuning: the same teacher trained in each way, over several seeds.

usage: python3 tools/benchmarks/training_ways.py --encoder DIR --train FILE --test FILE --work DIR
           [--ways plain no-attention-dropout bf16] [--seeds 1 2 3] [--report-only]

All ways take the same texts, epochs and steps. Nothing is chosen on validation; the last step is tested. `plain` trains
in fp32 and keeps the model's attention dropout, as a Trainer does by default. It differs from a Trainer only in padding
(each step is computed in micro-batches). A way such as `head_tail-128` trains in bf16 on that part of each text, of so
many tokens (data.truncation, data.max_tokens).

You can stop the script and start it again: it keeps finished runs in WORK. It prints a table; the last line is JSON.
There, `correct` says for each run which test texts it answered correctly (packed bits, hexadecimal).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path

import numpy as np
from datasets import Dataset
from seeded_runs import correct_texts, distill, pooled_p_value

from distill.machine.provenance import versions
from distill.storage.files import read_json
from distill.storage.run_folder import RunFolder

HELD_OUT = 16  # validation texts, which a recipe needs; nothing is chosen on them


def main() -> None:
    """Train the runs that are missing and print the results."""
    parser = argparse.ArgumentParser(description="Compare the accuracy of ways of fine-tuning.")
    parser.add_argument("--encoder", required=True, help="folder of the pretrained encoder")
    parser.add_argument("--train", required=True, help="parquet file with text and label")
    parser.add_argument("--test", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--labels", nargs="+", default=["negative", "positive"])
    parser.add_argument("--texts", type=int, default=2_000)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="default: 5e-5, as in Trainer")
    parser.add_argument("--ways", nargs="+", default=["plain", "no-attention-dropout"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--report-only", action="store_true", help="train nothing; report the finished runs")
    arguments = parser.parse_args()
    if not arguments.report_only:
        arguments.work.mkdir(parents=True, exist_ok=True)
        recipe = prepare(arguments)
        for seed in arguments.seeds:
            for way in arguments.ways:
                train(recipe, way, seed, arguments.work)
    report(arguments)


def prepare(arguments: argparse.Namespace) -> Path:
    """Write the texts and the recipe that all runs share; return the recipe's path."""
    train, held_out = arguments.work / "train.parquet", arguments.work / "held_out.parquet"
    if not held_out.is_file():
        rows = Dataset.from_parquet(arguments.train).shuffle(seed=42)
        rows.select(range(arguments.texts)).to_parquet(train)
        rows.select(range(arguments.texts, arguments.texts + HELD_OUT)).to_parquet(held_out)
    files = {"train": train, "validation": held_out, "test": Path(arguments.test)}
    recipe = {
        "data": {
            "files": {split: str(path.absolute()) for split, path in files.items()},
            "label_names": arguments.labels,
            "max_tokens": arguments.max_tokens,
        },
        "teacher": {
            "model": str(Path(arguments.encoder).absolute()),
            "training": {
                "num_train_epochs": arguments.epochs,
                "per_device_train_batch_size": arguments.batch,
                "learning_rate": arguments.learning_rate,
                "eval_strategy": "no",
                "save_strategy": "no",
                "bf16": False,
            },
        },
    }
    path = arguments.work / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=2))  # JSON is YAML
    return path


def settings_of(way: str) -> list[str]:
    """Return the settings of a way on top of the recipe."""
    if cut := re.fullmatch(r"(head|tail|head_tail)-(\d+)", way):
        return [f"data.truncation={cut[1]}", f"data.max_tokens={cut[2]}", "teacher.training.bf16=true"]
    return {
        "plain": ["teacher.attention_dropout=0.1"],
        "no-attention-dropout": [],
        "bf16": ["teacher.training.bf16=true"],
    }[way]


def train(recipe: Path, way: str, seed: int, work: Path) -> None:
    """Train one way with one seed, unless that run is finished."""
    folder = RunFolder(work / f"seed-{seed}" / way)
    if not folder.is_finished:
        settings = [*settings_of(way), f"teacher.training.seed={seed}"]
        sets = [part for setting in settings for part in ("--set", setting)]
        distill("teacher", recipe, "--output", folder.path, "--overwrite", *sets)


def report(arguments: argparse.Namespace) -> None:
    """Print the accuracies of each way and its gain over the first way, for the seeds that both have."""
    runs = {
        way: {
            seed: run
            for seed in arguments.seeds
            if (run := RunFolder(arguments.work / f"seed-{seed}" / way)).is_finished
        }
        for way in arguments.ways
    }
    first = arguments.ways[0]
    ways = {}
    for way, by_seed in runs.items():
        correct = {seed: correct_texts(run) for seed, run in by_seed.items()}
        accuracies = {seed: float(right.mean()) for seed, right in correct.items()}
        if not accuracies:
            continue
        entry = {
            "accuracy": accuracies,
            "mean_accuracy": float(np.mean(list(accuracies.values()))),
            "training": {seed: read_json(run.metrics)["training"] for seed, run in by_seed.items()},
            "texts": len(next(iter(correct.values()))),
            "correct": {seed: np.packbits(right).tobytes().hex() for seed, right in correct.items()},
        }
        shown = ", ".join(f"{value:.4f}" for value in accuracies.values())
        against = ""
        if both := [seed for seed in correct if seed in runs[first] and way != first]:
            ours, theirs = [correct[seed] for seed in both], [correct_texts(runs[first][seed]) for seed in both]
            entry["gain"] = float(np.mean(ours) - np.mean(theirs))
            entry["p_value"] = pooled_p_value(ours, theirs)
            against = f"  {100 * entry['gain']:+.2f} points against {first}, p = {entry['p_value']:.2g}"
        rates = [training["samples_per_second"] for training in entry["training"].values()]
        speed = f"{statistics.median(rates):.1f} texts/s in training"
        print(f"{way:22} {entry['mean_accuracy']:.4f} ({shown}), {speed}{against}")
        ways[way] = entry
    shown_arguments = {name: str(value) for name, value in vars(arguments).items()}
    print(json.dumps({"ways": ways, "arguments": shown_arguments, "versions": versions()}))


if __name__ == "__main__":
    main()
