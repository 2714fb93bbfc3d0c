"""Check how often a cascade keeps its promise: make it from many samples of the labeled texts, and test it on all.

usage: python3 tools/benchmarks/cascade_promise.py RECIPE MODEL MODEL ... [--agree 0.98 | --accuracy-drop 0.01]
           [--samples 100] [--texts N]

Each classifier answers the validation and test texts of the recipe once; together they stand for all new texts. Each
sample draws N of them (default: as many as there are in validation), with replacement, finds the thresholds on those,
and is tested on all. The promise has 95 % confidence, so at least 95 of 100 samples should keep it. The last line of
stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from distill.data.splits import read_splits
from distill.machine.devices import describe_hardware
from distill.machine.provenance import versions
from distill.measuring.cascade import classifiers_of, steps_of
from distill.measuring.promise import Promise, cheapest_cascade
from distill.recipe.file import load_recipe


def main() -> None:
    """Draw the samples and print how many kept the promise, and what the cascades cost."""
    parser = argparse.ArgumentParser(description="Check how often a cascade keeps its promise.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--agree", type=float)
    parser.add_argument("--accuracy-drop", type=float)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--texts", type=int)
    arguments = parser.parse_args()
    promise = Promise(arguments.agree, arguments.accuracy_drop)
    splits = read_splits(load_recipe(arguments.recipe))
    texts = [*splits.validation["text"][:], *splits.test["text"][:]]
    gold_labels = np.array([*splits.validation["label"][:], *splits.test["label"][:]])
    models = classifiers_of(arguments.models, "cpu")
    everything = steps_of(models, splits, texts, device="cpu")
    last = everything.answers[-1]
    count = arguments.texts or len(splits.validation)
    rng, samples = np.random.default_rng(0), []
    for _ in range(arguments.samples):
        drawn = rng.choice(len(texts), count)
        found = cheapest_cascade(everything.of(drawn), gold_labels[drawn], promise)
        thresholds = found.thresholds if found else (np.inf,) * (len(models) - 1)  # then it is the last one alone
        answers, answered_by = everything.answers_of(thresholds), everything.answered_by(thresholds)
        samples.append(
            {
                "thresholds": [float(value) for value in thresholds] if found else None,
                "agreement": float((answers == last).mean()),
                "accuracy": float((answers == gold_labels).mean()),
                "answered": [float((answered_by == step).mean()) for step in range(len(models))],
                "texts_per_second": 1 / everything.mean_seconds(thresholds),
            }
        )
    accuracy = float((last == gold_labels).mean())
    kept = sum(
        sample["agreement"] >= promise.agree
        if promise.agree is not None
        else accuracy - sample["accuracy"] <= (promise.accuracy_drop or 0)
        for sample in samples
    )
    rates = [sample["texts_per_second"] for sample in samples]
    print(
        f"{kept} of {len(samples)} samples of {count} texts keep the promise; "
        f"{np.median(rates):.0f} texts/s in the median ({min(rates):.0f} to {max(rates):.0f}), "
        f"alone {', '.join(f'{1 / one:.0f}' for one in everything.seconds)}"
    )
    shown = {name: str(value) for name, value in vars(arguments).items()}
    alone = [float((found == gold_labels).mean()) for found in everything.answers]
    conditions = {"arguments": shown, "hardware": describe_hardware(), "versions": versions()}
    print(json.dumps({"kept": kept, "accuracy_alone": alone, "samples": samples, **conditions}))


if __name__ == "__main__":
    main()
