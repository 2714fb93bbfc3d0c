"""Cut a batch into micro-batches of texts of similar length, so that little padding is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from distill.inference.classifier import pack
from distill.machine.devices import Device
from distill.models.config import INPUTS, TOKEN_TYPES


class Limits(NamedTuple):
    """What a micro-batch holds at most, padding included: `tokens`, and `pairs` of tokens, each an attention score."""

    tokens: int
    pairs: float = math.inf


# On a CPU a single text of 512 tokens keeps all cores busy, and its attention scores fit into the cache
# (docs/results.md). On a GPU a pass costs the time that Python takes to launch it, so it should hold a whole batch: 32
# texts of 512 tokens take some 8 GB in BERT-base.
MICRO_BATCH_LIMITS: dict[Device, Limits] = {"cpu": Limits(1_024, 512**2), "cuda": Limits(16_384)}
NGRAM_LIMITS = Limits(16_384)  # an n-gram model computes so little that only padding costs anything
TOKENS = (*INPUTS, TOKEN_TYPES)
MICRO_BATCHES = "micro_batches"  # key in a batch: for each micro-batch, its number of texts and longest length


@dataclass(frozen=True)
class Collator:
    """Makes padded batches of rows of token ids; `padding` is "longest" (of the batch) or "max_length" (max_tokens).

    With `limits` the rows are sorted by length, the longest first, and the key `MICRO_BATCHES` of the batch
    says where to cut it (see `micro_batches_of`).
    """

    tokenizer: PreTrainedTokenizerBase
    padding: str
    max_tokens: int
    limits: Limits | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        cuts = {}
        if self.limits is not None:
            batches = list(pack([len(row["input_ids"]) for row in rows], *self.limits))
            cuts = {MICRO_BATCHES: [(len(batch), len(rows[batch[0]]["input_ids"])) for batch in batches]}
            rows = [rows[index] for batch in batches for index in batch]
        tokens = {name: [row[name] for row in rows] for name in TOKENS if name in rows[0]}
        batch = self.tokenizer.pad(tokens, padding=self.padding, max_length=self.max_tokens, return_tensors="pt")
        tensors = {"labels": torch.tensor([row["labels"] for row in rows])}
        teachers = range(sum(name.startswith("teacher_logits_") for name in rows[0]))
        if teachers:  # (batch, teachers, classes)
            answers = [[row[f"teacher_logits_{teacher}"] for teacher in teachers] for row in rows]
            tensors["teacher_logits"] = torch.tensor(answers)
        return {**batch, **tensors, **cuts}


def micro_batches_of(batch: Mapping[str, Any]) -> list[dict[str, torch.Tensor]]:
    """Return the micro-batches of a `Collator`'s batch, each cut to its longest text.

    A batch without cuts comes back as one micro-batch.
    Losses and gradients, summed over the micro-batches, equal those of the batch, except for rounding and dropout.
    The padding must be on the right: cutting it on the left would move each text to other positions.
    """
    tensors = {name: value for name, value in batch.items() if name != MICRO_BATCHES}
    micro_batches, start = [], 0
    for count, longest in batch.get(MICRO_BATCHES, ()):
        rows = slice(start, start + count)
        micro_batches.append(
            {name: value[rows, :longest] if name in TOKENS else value[rows] for name, value in tensors.items()}
        )
        start += count
    return micro_batches or [tensors]
