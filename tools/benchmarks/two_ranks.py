"""How far two processes that share a global batch end from one process that has it alone, on real texts.

usage: python3 tools/benchmarks/two_ranks.py ENCODER_DIR TRAIN.parquet TEST.parquet --work DIR [--texts 512]
           [--max-tokens 128]

Without dropout, of which each rank would draw its own, the only difference is the order in which sums are rounded. Both
run on the CPU, over gloo. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from datasets import Dataset

from distill.machine.devices import describe_hardware
from distill.machine.provenance import versions
from distill.measuring.metrics import figures
from distill.storage.files import read_json, write_json
from distill.storage.predictions import read_predictions
from distill.storage.run_folder import RunFolder

LAUNCHERS = {"one": [], "two": ["-m", "torch.distributed.run", "--nproc-per-node", "2"]}
BATCH = 16
SPLITS = ("train", "validation", "test")


def main() -> None:
    """Train with one process and with two and print the differences."""
    parser = argparse.ArgumentParser(description="Two processes against one with the same global batch.")
    parser.add_argument("encoder", type=Path)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--test-texts", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--labels", nargs="+", default=["negative", "positive"])
    arguments = parser.parse_args()
    recipe = prepare(arguments)
    runs = {}
    for name, launcher in LAUNCHERS.items():
        runs[name] = RunFolder(arguments.work / name)
        batch = f"teacher.training.per_device_train_batch_size={BATCH // (1 + (name == 'two'))}"
        command = [sys.executable, *launcher, "-m", "distill", "teacher", str(recipe), "--set", batch]
        command += ["--output", str(runs[name].path), "--overwrite", "--device", "cpu"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    losses = {
        name: np.array([entry["loss"] for entry in run.read_log() if "loss" in entry]) for name, run in runs.items()
    }
    answers = {name: read_predictions(run.predictions) for name, run in runs.items()}
    found = {
        "steps": len(losses["one"]),
        "largest_loss_difference": float(np.abs(losses["one"] - losses["two"]).max()),
        "largest_relative_loss_difference": float(np.abs(losses["one"] / losses["two"] - 1).max()),
        "largest_logit_difference": float(np.abs(answers["one"][2] - answers["two"][2]).max()),
        "accuracy": {name: figures(logits, labels)["accuracy"] for name, (_, labels, logits) in answers.items()},
        "losses": {name: values.tolist() for name, values in losses.items()},
    }
    print({key: value for key, value in found.items() if key != "losses"})
    print(json.dumps({**found, "hardware": describe_hardware(), "versions": versions()}))


def prepare(arguments: argparse.Namespace) -> Path:
    """Write the texts, the encoder without dropout and the recipe."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    train = Dataset.from_parquet(arguments.train).shuffle(seed=42)
    texts = arguments.texts // BATCH * BATCH  # a launcher fills up a last step that is not whole
    train.select(range(texts)).to_parquet(arguments.work / "train.parquet")
    train.select(range(texts, texts + BATCH)).to_parquet(arguments.work / "validation.parquet")
    test = Dataset.from_parquet(arguments.test).shuffle(seed=42).select(range(arguments.test_texts))
    test.to_parquet(arguments.work / "test.parquet")
    model = arguments.work / "model"
    shutil.copytree(arguments.encoder, model, dirs_exist_ok=True)
    config = read_json(model / "config.json")
    write_json(model / "config.json", config | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    recipe = {
        "data": {
            "files": {split: str((arguments.work / f"{split}.parquet").absolute()) for split in SPLITS},
            "label_names": arguments.labels,
            "max_tokens": arguments.max_tokens,
        },
        "teacher": {
            "model": str(model.absolute()),
            "training": {"num_train_epochs": 1, "learning_rate": 5e-5, "logging_steps": 1, "bf16": False},
        },
    }
    path = arguments.work / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=2))  # JSON is YAML
    return path


if __name__ == "__main__":
    main()
