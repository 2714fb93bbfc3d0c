"""A step's texts cut by length into parts that are computed one after the other, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from distill.machine.devices import Device

# What a part may hold, padding and all. On a CPU a single long text keeps the cores busy (docs/results.md); a GPU wants
# more at once, how much has not been measured.
PART_TOKENS: dict[Device, int] = {"cpu": 512, "cuda": 8_192}
TOKENS = ("input_ids", "attention_mask")
PARTS = "parts"


@dataclass(frozen=True)
class Collator:
    """Rows of token ids to padded batches; `padding` is "longest" (of the batch) or "max_length" (max_tokens).

    With `part_tokens` the rows are put in order of length, the longest first, and the batch says under "parts" where to
    cut it (see `parts_of`).
    """

    tokenizer: PreTrainedTokenizerBase
    padding: str
    max_tokens: int
    part_tokens: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        parts = {}
        if self.part_tokens is not None:
            rows = sorted(rows, key=lambda row: len(row["input_ids"]), reverse=True)
            parts = {PARTS: cuts([len(row["input_ids"]) for row in rows], self.part_tokens)}
        tokens = {name: [row[name] for row in rows] for name in TOKENS}
        batch = self.tokenizer.pad(tokens, padding=self.padding, max_length=self.max_tokens, return_tensors="pt")
        tensors = {"labels": torch.tensor([row["labels"] for row in rows])}
        teachers = range(sum(name.startswith("teacher_logits_") for name in rows[0]))
        if teachers:  # (batch, teachers, classes)
            answers = [[row[f"teacher_logits_{teacher}"] for teacher in teachers] for row in rows]
            tensors["teacher_logits"] = torch.tensor(answers)
        return {**batch, **tensors, **parts}


def cuts(lengths: Sequence[int], part_tokens: int) -> list[tuple[int, int]]:
    """Return for each part how many texts it holds and how long the longest is, of `lengths` in falling order.

    A part holds at most `part_tokens` with its padding, or one text.
    """
    parts: list[tuple[int, int]] = []
    for length in lengths:
        count, longest = parts[-1] if parts else (0, length)
        if parts and (count + 1) * longest <= part_tokens:
            parts[-1] = count + 1, longest
        else:
            parts.append((1, length))
    return parts


def parts_of(batch: Mapping[str, Any]) -> list[dict[str, torch.Tensor]]:
    """Return the parts of a batch of a `Collator`, each cut to its longest text; the batch itself where it has none.

    Losses and gradients, summed over the parts, are those of the batch, but for rounding and for what dropout draws.
    The padding must be on the right: without some of what is on the left, a text would stand at other positions.
    """
    tensors = {name: value for name, value in batch.items() if name != PARTS}
    parts, start = [], 0
    for count, longest in batch.get(PARTS, ()):
        rows = slice(start, start + count)
        part = {name: value[rows, :longest] if name in TOKENS else value[rows] for name, value in tensors.items()}
        parts.append(part)
        start += count
    return parts or [tensors]
