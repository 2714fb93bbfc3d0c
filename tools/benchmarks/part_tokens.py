"""What cutting a training step into parts wins, by the size of a part, against padding it whole or drawing by length.

usage: python3 tools/benchmarks/part_tokens.py ENCODER_DIR TRAIN.parquet [--texts 32] [--batch 8] [--max-tokens 512]
           [--rounds 5]

Whole optimizer steps of a two-class teacher without attention dropout, in turn, texts per second of this process's CPU
time, which other processes hardly change, and of the clock's. Parts add to the embeddings' gradients row by row, as
training does; the other ways, and parts of 512 once more, table by table. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from distill.machine.devices import describe_hardware
from distill.machine.provenance import versions
from distill.models.first_token import first_token_only, last_layer
from distill.models.loading import with_attention_dropout
from distill.training.embeddings import summed_by_row
from distill.training.micro_batches import Collator, micro_batches_of

SIZES = (1, 256, 512, 1_024, 2_048)  # tokens; with 1 each text is a part


def main() -> None:
    """Time the ways in turn and print their medians."""
    parser = argparse.ArgumentParser(description="What cutting a training step into parts wins.")
    parser.add_argument("encoder")
    parser.add_argument("train")
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.encoder)
    config = with_attention_dropout(AutoConfig.from_pretrained(arguments.encoder), 0.0)
    model = AutoModelForSequenceClassification.from_pretrained(arguments.encoder, config=config).train()
    texts = Dataset.from_parquet(arguments.train).shuffle(seed=42).select(range(arguments.texts))["text"][:]
    encoded = tokenizer(texts, truncation=True, max_length=arguments.max_tokens)
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": index % 2}
        for index, (ids, mask) in enumerate(zip(encoded["input_ids"], encoded["attention_mask"], strict=True))
    ]
    by_length = sorted(rows, key=lambda row: len(row["input_ids"]))
    by_table: Callable[[Any], Any] = contextlib.nullcontext  # which torch does by itself
    ways = {"padded whole": (rows, None, by_table), "steps of similar length": (by_length, None, by_table)}
    ways |= {f"parts of {size}": (rows, size, summed_by_row) for size in SIZES}
    ways["parts of 512, summed by table"] = (rows, 512, by_table)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    with first_token_only(last_layer(model)):
        for _ in range(arguments.rounds + 1):
            for way, (order, size, summing) in ways.items():
                collate = Collator(tokenizer, "longest", arguments.max_tokens, size)
                start = time.process_time(), time.perf_counter()
                for first in range(0, len(order), arguments.batch):
                    step(model, optimizer, collate(order[first : first + arguments.batch]), summing)
                seconds[way].append((time.process_time() - start[0], time.perf_counter() - start[1]))
    rates = {
        clock: {way: [len(rows) / taken[index] for taken in found[1:]] for way, found in seconds.items()}
        for index, clock in enumerate(("cpu", "wall"))
    }  # the first warms up
    for way in ways:
        cpu, wall = (statistics.median(rates[clock][way]) for clock in ("cpu", "wall"))
        print(f"{way:30} {cpu:6.2f} texts per second of CPU time, {wall:6.2f} of the clock's")
    shown = {name: str(value) for name, value in vars(arguments).items()}
    conditions = {"arguments": shown, "threads": torch.get_num_threads(), "hardware": describe_hardware()}
    print(json.dumps({"texts_per_second": rates, **conditions, "versions": versions()}))


def step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, torch.Tensor],
    summing: Callable[[Any], Any],
) -> None:
    """Take one step as training does: gradients part by part, clipped, then the optimizer."""
    optimizer.zero_grad()
    with summing(model):
        for part in micro_batches_of(batch):
            logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
            functional.cross_entropy(logits, part["labels"], reduction="sum").div(len(batch["labels"])).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
    optimizer.step()


if __name__ == "__main__":
    main()
