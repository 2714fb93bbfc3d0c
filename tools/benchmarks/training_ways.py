"""What faster ways of fine-tuning cost in accuracy: the same teacher trained in each, over several seeds.

usage: python3 tools/benchmarks/training_ways.py --encoder DIR --train FILE --test FILE --work DIR
           [--ways plain no-attention-dropout by-length bf16] [--seeds 1 2 3] [--report-only]

Every way takes the same texts, epochs and number of steps; there is no validation, so the last state is judged. `plain`
draws its texts at random and keeps the model's attention dropout, in fp32, as a Trainer does by itself: the same steps
of 8 texts, computed in parts, which differs in nothing but padding. Finished runs in WORK are kept, so the
script can be stopped and started again. Prints the table; the last line is JSON, with which test texts each run was
right on (`correct`, packed bits in hexadecimal).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from datasets import Dataset
from seeded_runs import correct_texts, distill, pooled_p_value

from distill.machine.provenance import versions
from distill.storage.files import read_json
from distill.storage.run_folder import RunFolder

HELD_OUT = 16  # texts as validation, which nothing is chosen on


def main() -> None:
    """Train what is missing and print what was found."""
    parser = argparse.ArgumentParser(description="What faster ways of fine-tuning cost in accuracy.")
    parser.add_argument("--encoder", required=True, help="folder of the pretrained encoder")
    parser.add_argument("--train", required=True, help="parquet file with text and label")
    parser.add_argument("--test", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--labels", nargs="+", default=["negative", "positive"])
    parser.add_argument("--texts", type=int, default=2_000)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="Trainer's own by default")
    parser.add_argument("--ways", nargs="+", default=["plain", "no-attention-dropout", "by-length"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--report-only", action="store_true", help="train nothing; say what the finished runs found")
    arguments = parser.parse_args()
    if not arguments.report_only:
        arguments.work.mkdir(parents=True, exist_ok=True)
        recipe = prepare(arguments)
        for seed in arguments.seeds:
            for way in arguments.ways:
                train(recipe, way, seed, arguments.work)
    report(arguments)


def prepare(arguments: argparse.Namespace) -> Path:
    """Write the texts and the recipe that all runs start from."""
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
    """Return what a way changes in the recipe."""
    training = "teacher.training."
    return {
        "plain": ["teacher.attention_dropout=0.1"],
        "no-attention-dropout": [],
        "bf16": [f"{training}bf16=true"],
    }[way]


def train(recipe: Path, way: str, seed: int, work: Path) -> None:
    """Train one way with one seed unless that is finished."""
    folder = RunFolder(work / f"seed-{seed}" / way)
    if not folder.is_finished:
        settings = [*settings_of(way), f"teacher.training.seed={seed}"]
        sets = [part for setting in settings for part in ("--set", setting)]
        distill("teacher", recipe, "--output", folder.path, "--overwrite", *sets)


def report(arguments: argparse.Namespace) -> None:
    """Print each way's accuracies and how it stands against the first way, over the seeds that both have."""
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
        print(f"{way:22} {entry['mean_accuracy']:.4f} ({shown}){against}")
        ways[way] = entry
    shown_arguments = {name: str(value) for name, value in vars(arguments).items()}
    print(json.dumps({"ways": ways, "arguments": shown_arguments, "versions": versions()}))


if __name__ == "__main__":
    main()
