"""The chain in one table: texts a second and accuracy from plain transformers to the fastest student, step by step.

usage: python3 tools/benchmarks/chain.py RECIPE --teacher DIR [--student DIR] [--pruned DIR] [--ngrams DIR]
           [--cascade DIR] [--base DIR] [--base-tokens 512] [--plain-texts 20] [--texts 500] [--rounds 3]

It begins where FastFormers counts from (Kim and Awadalla 2020, table 1): the teacher in transformers alone, fp32, each
text padded to the most tokens, one at a time. Then come texts at their own length; the same model in distill, which
packs texts by length and gives each core batches of its own; the student; its onnx-int8; a pruned student's; one on
n-grams; and a cascade. DIR is a run folder with its exports. The steps that are not given are left out.

If --base names a model of another shape with random weights, such as BERT-base's, the first three steps are timed with
it too, at up to --base-tokens, which is what FastFormers pads to. Its answers mean nothing, so these rows have no
accuracy.

Each step classifies test texts of RECIPE, tokenization included: --texts in distill, and in transformers alone
--plain-texts of those, of all lengths. The steps take turns, and the best round counts. The last line of stdout is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from distill.data.pairs import texts_of
from distill.data.splits import gold_labels_of, read_splits
from distill.inference.classifier import load
from distill.machine.cpu import cores
from distill.machine.devices import describe_hardware
from distill.machine.provenance import versions
from distill.measuring.alignment import align
from distill.measuring.benchmark import timed_logits
from distill.recipe.file import load_recipe

Step = Callable[[Sequence[Any]], tuple[np.ndarray, float]]  # of texts: logits, and texts a second


def main() -> None:
    """Time each step in turn and print the table."""
    parser = argparse.ArgumentParser(description="Texts a second and accuracy, step by step.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--teacher", required=True, type=Path)
    parser.add_argument("--base", type=Path, help="a model with random weights, for time only")
    parser.add_argument("--base-tokens", type=int, default=512)
    for name in ("student", "pruned", "ngrams", "cascade"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--plain-texts", type=int, default=20)
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cores())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = load_recipe(arguments.recipe)
    splits = read_splits(recipe)
    rows = splits.test.shuffle(seed=0).select(range(min(arguments.texts, len(splits.test))))
    texts, gold_labels = texts_of(rows), gold_labels_of(rows)
    by_length = np.argsort([len(str(text)) for text in texts], kind="stable")
    few = [texts[row] for row in by_length[np.linspace(0, len(texts) - 1, arguments.plain_texts).astype(int)]]
    steps: dict[str, tuple[Step, Sequence[Any]]] = {}
    orders: dict[str, list[int]] = {}

    def add(name: str, folder: Path) -> None:
        classifier = load(folder, "cpu", threads=arguments.threads)
        orders[name], _ = align(classifier, splits.label_names, splits.label_map, task=splits.task, name=str(folder))
        steps[name] = (lambda some: timed_logits(classifier, some)), texts

    models = ("base", arguments.base, arguments.base_tokens), ("teacher", arguments.teacher, recipe.data.max_tokens)
    for title, folder, most in models:
        if folder:
            for padded in (True, False):
                name = f"{title}: transformers, {'padded' if padded else 'own lengths'}"
                steps[name] = plain(folder, most, padded=padded), few
            add(f"{title}: packed", folder)
    if arguments.student:
        add("student: torch", arguments.student)
    for title in ("student", "pruned", "ngrams"):
        if folder := getattr(arguments, title):
            add(f"{title}: onnx-int8", folder / "export" / "onnx-int8")
    if arguments.cascade:
        add("cascade", arguments.cascade)

    rates: dict[str, list[float]] = {name: [] for name in steps}
    accuracy: dict[str, float | None] = dict.fromkeys(steps)
    for _ in range(arguments.rounds):
        for name, (step, some) in steps.items():
            logits, rate = step(some)
            rates[name].append(rate)
            if name in orders and not name.startswith("base"):
                accuracy[name] = float((logits[:, orders[name]].argmax(axis=1) == gold_labels).mean())
    first = max(next(iter(rates.values())))
    table = {
        name: {
            "texts_per_second": max(found),
            "times_the_first": max(found) / first,
            "accuracy": accuracy[name],
            "raw": found,
        }
        for name, found in rates.items()
    }
    for name, row in table.items():
        shown = "" if row["accuracy"] is None else f"{row['accuracy']:.4f}"
        print(f"{name:34} {row['texts_per_second']:12.2f} texts/s  x{row['times_the_first']:<10.1f} {shown}")
    conditions = {name: str(value) for name, value in vars(arguments).items()}
    print(
        json.dumps({"arguments": conditions, "steps": table, "hardware": describe_hardware(), "versions": versions()})
    )


def plain(folder: Path, max_tokens: int, *, padded: bool) -> Step:
    """Return a step that classifies one text at a time with transformers alone, in fp32."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def step(texts: Sequence[Any]) -> tuple[np.ndarray, float]:
        answers = []
        with torch.inference_mode():
            start = time.perf_counter()
            for text in texts:
                encoded = tokenizer(
                    text, truncation=True, max_length=max_tokens, padding="max_length" if padded else False,
                    return_tensors="pt",
                )  # fmt: skip
                answers.append(model(**encoded).logits.numpy())
            seconds = time.perf_counter() - start
        return np.concatenate(answers), len(texts) / seconds

    return step


if __name__ == "__main__":
    main()
