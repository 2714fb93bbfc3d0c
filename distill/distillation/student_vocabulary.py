"""Trim a student's vocabulary to the texts that it learns from."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.data.encoding import Truncation, encode, vocabulary_of
from distill.data.splits import Splits
from distill.models.vocabulary import trim_embeddings, trim_tokenizer, unknown_share
from distill.training.tokens import tokenise_split

log = logging.getLogger("distill")
AT_ONCE = 10_000  # texts


def trim_to_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: Splits,
    truncation: Truncation,
    wanted: float,
) -> PreTrainedTokenizerBase:
    """Cut the model's embeddings down to the tokens that its training texts use; return the tokenizer for them.

    `wanted` is as in `most_used`. What is kept, saved and lost is logged: bytes, and unknown tokens in validation.
    """
    counts = np.zeros(vocabulary_of(tokenizer), np.int64)
    for split in ("train", "transfer"):
        if (rows := getattr(splits, split)) is not None:
            for batch in tokenise_split(split, rows, tokenizer, truncation).iter(AT_ONCE):
                counts += np.bincount(np.concatenate(batch["input_ids"]), minlength=len(counts))
    trimmed, former = trim_tokenizer(tokenizer, counts, wanted)
    before = _embedding_bytes(model)
    trim_embeddings(model, former)
    texts = splits.validation["text"][:]
    unknown = [unknown_share(one, encode(one, texts, truncation).ids) for one in (tokenizer, trimmed)]
    log.info(
        "student: keeps %d of %d tokens (%.2f %% of those in its texts): embeddings of %.1f "
        "instead of %.1f MB; unknown tokens in validation: %.2f %%, before %.2f %%",
        len(former), len(counts), 100 * counts[former].sum() / counts.sum(), _embedding_bytes(model) / 1e6,
        before / 1e6, 100 * unknown[1], 100 * unknown[0],
    )  # fmt: skip
    return trimmed


def _embedding_bytes(model: PreTrainedModel) -> int:
    table: Any = model.get_input_embeddings()
    return table.weight.nbytes
