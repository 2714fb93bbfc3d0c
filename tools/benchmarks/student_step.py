"""Compare a student's training step with kept teacher logits and in plain fine-tuning, timed in turn.

usage: python3 tools/benchmarks/student_step.py MODEL_DIR TEXTS.parquet [--layers 3] [--batch 16] [--max-tokens 128]
           [--rounds 20]

A step is all that Trainer does: rows from disk, collating, forward, loss, backward, clipping, optimizer. The last line
of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from distill.data.encoding import Truncation
from distill.distillation.trainer import DistillationTrainer
from distill.machine.provenance import versions
from distill.machine.timing import time_in_turn
from distill.models.loading import load_classifier, load_tokenizer
from distill.models.students import build_from_layers
from distill.recipe.schema import Loss
from distill.storage.run_folder import RunFolder
from distill.training.arguments import training_arguments
from distill.training.micro_batches import Collator
from distill.training.throughput import Throughput
from distill.training.tokens import tokenise
from distill.training.trainer import ClassificationTrainer


def main() -> None:
    """Time both steps and print their medians and ratio."""
    parser = argparse.ArgumentParser(description="Measure what kept teacher logits cost per training step.")
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.model)
    rows = Dataset.from_parquet(arguments.texts).select(range(1_000)).select_columns(["text"])
    rows = rows.add_column("label", [index % 2 for index in range(len(rows))])
    tokens = tokenise(rows, tokenizer, Truncation(arguments.max_tokens))
    logits = np.random.default_rng(0).normal(size=(len(rows), 2)).astype(np.float32)
    whole = load_classifier(
        arguments.model,
        ["0", "1"],
        task="single_label",
        seed=0,
        max_tokens=arguments.max_tokens,
        vocabulary=len(tokenizer),
    )
    student = build_from_layers(whole, arguments.layers)
    collator = Collator(tokenizer, "longest", arguments.max_tokens)
    with tempfile.TemporaryDirectory() as work:
        training = {"per_device_train_batch_size": arguments.batch, "report_to": "none", "learning_rate": 1e-5}
        made, _ = training_arguments(training, RunFolder(Path(work)), "cpu", stage="student")
        plain = ClassificationTrainer(copy.deepcopy(student), made, collator, tokens)
        cached = tokens.add_column("teacher_logits_0", list(logits))
        distilled = DistillationTrainer(student, made, collator, cached, loss=Loss(), teacher_weights=(1.0,))
        times = time_in_turn({"plain": step(plain), "cached": step(distilled)}, arguments.rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "step_ms": medians,
        "ratio": medians["cached"] / medians["plain"],
        "raw_ms": times,
        "arguments": vars(arguments),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    print(f"plain {medians['plain']:.1f} ms, cached {medians['cached']:.1f} ms, ratio {result['ratio']:.3f}")
    print(json.dumps(result))


def step(trainer: Any) -> Callable[[], object]:
    """Return a call that does one training step on the next batch."""
    batches = cycle(trainer.get_train_dataloader())
    trainer.create_optimizer()
    trainer.throughput = Throughput("cpu", None, 1.0)  # which a step counts in
    trainer.state.max_steps = 1

    def call() -> None:
        batch = next(batches)
        trainer.training_step(trainer.model.train(), batch, num_items_in_batch=len(batch["labels"]))
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.model.zero_grad()

    return call


if __name__ == "__main__":
    main()
