"""Whether a student trains as stably on soft targets alone (soft weight 1) as on half of each.

usage: python3 tools/benchmarks/soft_weight_stability.py TEACHER_DIR TRAIN.parquet TEST.parquet --work DIR
           [--texts 1200] [--layers 3] [--learning-rate 1e-4] [--warmups 0] [--seeds 1 2 3]

A collapsed run answers one class, so its accuracy is that of the commonest. Finished runs in WORK are kept. Prints a
line per run; the last line is the whole result as JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from distill.storage.files import read_json
from distill.storage.run_folder import RunFolder


def main() -> None:
    """Train every combination and print its accuracy."""
    parser = argparse.ArgumentParser(description="Whether soft weight 1 trains as stably as 0.5.")
    parser.add_argument("teacher")
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--labels", nargs="+", default=["negative", "positive"])
    parser.add_argument("--texts", type=int, default=1_200)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--warmups", type=float, nargs="+", default=[0.0], help="shares of the steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    recipe = {
        "data": {
            "files": {"train": arguments.train, "test": arguments.test},
            "label_names": arguments.labels,
            "train_samples": arguments.texts,
            "test_samples": 500,
            "max_tokens": arguments.max_tokens,
        },
        "student": {
            "layers": arguments.layers,
            "training": {
                "learning_rate": arguments.learning_rate,
                "per_device_train_batch_size": 16,
                "num_train_epochs": 3,
                "eval_strategy": "no",
                "save_strategy": "no",
                "logging_steps": 10,
            },
        },
    }
    path = arguments.work / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    results = []
    for warmup in arguments.warmups:
        for weight in (0.5, 1.0):
            for seed in arguments.seeds:
                folder = RunFolder(arguments.work / f"warmup-{warmup}-weight-{weight}-seed-{seed}")
                if not folder.is_finished:
                    sets = {
                        "student.loss.soft_weight": weight,
                        "student.training.warmup_steps": warmup,
                        "student.training.seed": seed,
                    }
                    command = [sys.executable, "-m", "distill", "student", str(path), "--teacher", arguments.teacher]
                    command += ["--output", str(folder.path), "--overwrite"]
                    command += [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
                    subprocess.run(command, check=True, stdout=sys.stderr)
                log = [json.loads(line) for line in folder.metrics_log.read_text().splitlines()]
                found = {
                    "warmup": warmup,
                    "soft_weight": weight,
                    "seed": seed,
                    "accuracy": read_json(folder.metrics)["test"]["accuracy"],
                    "largest_grad_norm": max(entry["grad_norm"] for entry in log if "grad_norm" in entry),
                }
                results.append(found)
                print(
                    f"warm-up {warmup}, soft weight {weight}, seed {seed}: accuracy {found['accuracy']:.4f}", flush=True
                )
    print(json.dumps({"runs": results, "arguments": {key: str(value) for key, value in vars(arguments).items()}}))


if __name__ == "__main__":
    main()
