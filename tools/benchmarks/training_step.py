"""Compare training steps on a CPU: transformers' plain way, distill's in fp32 and bf16, and without each shortcut.

usage: python3 tools/benchmarks/training_step.py MODEL_DIR TEXTS.parquet [--max-tokens 512] [--batch 8] [--rounds 8]

All ways train on the same batches, in turn, in one process. A step is forward, loss, backward, clipping and optimizer.
`plain` pads every text to --max-tokens and has BERT's attention dropout of 0.1, as the usual fine-tuning script does.
Utilisation is the share of the peak, in the precision used, that the matrix products of real tokens reach. The last
line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from distill.data.encoding import Truncation
from distill.machine.devices import describe_hardware
from distill.machine.provenance import versions
from distill.machine.timing import BLOCK_CALLS, WARMUP_CALLS, speedup, time_in_turn
from distill.models.first_token import first_token_only, last_layer
from distill.models.loading import load_classifier, load_tokenizer
from distill.models.unfused_attention import unfused_attention
from distill.storage.run_folder import RunFolder
from distill.training.arguments import training_arguments
from distill.training.dropout import fast_dropout
from distill.training.micro_batches import MICRO_BATCH_LIMITS, Collator, Limits
from distill.training.throughput import FORWARD_AND_BACKWARD, Throughput, forward_flops, peak_flops
from distill.training.tokens import tokenise
from distill.training.trainer import ClassificationTrainer

# All ways go through these batches again and again. A block of calls is one pass: the first ones warm up and the others
# are timed, so all ways are timed on the same texts.
BATCHES = WARMUP_CALLS + BLOCK_CALLS
LABELS = ("0", "1")
# Each way: its precision, and the shortcuts that it has.
SHORTCUTS = ("unfused attention", "fast dropout", "micro-batches by pairs")
WAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": ("fp32", ()),
    "distill fp32": ("fp32", SHORTCUTS[1:]),
    "distill bf16": ("bf16", SHORTCUTS),
    **{f"bf16 without {name}": ("bf16", tuple(one for one in SHORTCUTS if one != name)) for name in SHORTCUTS},
    "bf16 without all three": ("bf16", ()),
    "fp32 without all three": ("fp32", ()),
}


def main() -> None:
    """Time the ways in turn and print their medians."""
    parser = argparse.ArgumentParser(description="Compare training steps on a CPU.")
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.model)
    rows = Dataset.from_parquet(arguments.texts).shuffle(seed=42).select(range(BATCHES * arguments.batch))
    tokens = tokenise(rows.select_columns(["text", "label"]), tokenizer, Truncation(arguments.max_tokens))
    # The plain way keeps its own model, whose attention has dropout.
    models = {
        dropout: load_classifier(
            arguments.model, LABELS, task="single_label", seed=0, max_tokens=arguments.max_tokens,
            vocabulary=len(tokenizer),
            attention_dropout=dropout,
        )
        for dropout in ((0.0, 0.1) if "plain" in arguments.ways else (0.0,))
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        calls = {
            name: step(name, models[0.1 if name == "plain" else 0.0], tokenizer, tokens, arguments, Path(work))
            for name in arguments.ways
        }
        times = time_in_turn(calls, arguments.rounds * BLOCK_CALLS)
    constant, linear, square = forward_flops(models[0.0], first_token=True) or (0, 0, 0)
    timed = tokens["length"][WARMUP_CALLS * arguments.batch :]
    operations = FORWARD_AND_BACKWARD * statistics.mean(constant + linear * n + square * n * n for n in timed)
    peaks = {"fp32": peak_flops("cpu", torch.float32), "bf16": peak_flops("cpu", torch.bfloat16)}
    found: dict[str, Any] = {}
    first = arguments.ways[0]
    for name, latencies in times.items():
        blocks = [sum(latencies[start : start + BLOCK_CALLS]) for start in range(0, len(latencies), BLOCK_CALLS)]
        rate = 1_000 * BLOCK_CALLS * arguments.batch / statistics.median(blocks)
        ratio = speedup(times[first], latencies)
        share = rate * operations / peaks[WAYS[name][0]]
        figures = {"texts_per_second": rate, "ratio": ratio._asdict(), "utilisation": share, "raw_ms": latencies}
        found[name] = figures
        print(
            f"{name:40} {rate:6.2f} texts/s, {ratio.median:.2f} times {first} ({ratio.low:.2f} to {ratio.high:.2f}), "
            f"{100 * share:.0f} % of the peak"
        )
    result = {"ways": found, "peak_flops_per_second": peaks, "arguments": vars(arguments)}
    print(json.dumps({**result, "hardware": describe_hardware(), "versions": versions()}))


def step(
    name: str, model: Any, tokenizer: Any, tokens: Dataset, arguments: argparse.Namespace, work: Path
) -> Callable[[], object]:
    """Return a call that does one training step of this way on the next batch."""
    precision, shortcuts = WAYS[name]
    training = {"per_device_train_batch_size": arguments.batch, "report_to": "none", "learning_rate": 1e-5}
    made, _ = training_arguments(training, RunFolder(work), "cpu", stage="teacher")
    plain = name == "plain"
    limits = MICRO_BATCH_LIMITS["cpu"] if SHORTCUTS[2] in shortcuts else Limits(512)
    collator = Collator(
        tokenizer, "max_length" if plain else "longest", arguments.max_tokens, None if plain else limits
    )
    rows = [tokens[index] for index in range(len(tokens))]
    batches = [collator(rows[start : start + arguments.batch]) for start in range(0, len(rows), arguments.batch)]
    trainer = ClassificationTrainer(model, made, collator, tokens)
    trainer.throughput = Throughput("cpu", None, 1.0)
    trainer.create_optimizer()
    # accelerate has one precision for a process, that of the first Trainer.
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bf16")
    trainer.compute_loss_context_manager = autocast
    if plain:
        trainer._lookups = lambda inputs: contextlib.nullcontext()
    following = itertools.cycle(batches)

    def call() -> None:
        batch = next(following)
        with (
            unfused_attention(model) if SHORTCUTS[0] in shortcuts else contextlib.nullcontext(),
            fast_dropout(model) if SHORTCUTS[1] in shortcuts else contextlib.nullcontext(),
            first_token_only(None if plain else last_layer(model)),
        ):
            trainer.training_step(model.train(), batch, num_items_in_batch=torch.tensor(len(batch["labels"])))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            trainer.optimizer.step()
            model.zero_grad()

    return call


if __name__ == "__main__":
    main()
