"""Texts to token ids, once, and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from distill.errors import DataError
from distill.inference.classifier import nothing
from distill.machine.progress import progress_line
from distill.models.loading import vocabulary_of

UNLABELLED = -1  # data sets on the Hub use -1 for "no label"
CHECKED_ROWS = 64  # rows on which tokenising is checked; a wrong tokenizer shows on the first few


def tokenise(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    *,
    progress: Callable[[int], object] = lambda done: None,
) -> Dataset:
    """Return `rows` with columns input_ids, attention_mask, length and labels, cut at `max_tokens`, not padded.

    A text without a label gets `UNLABELLED`. Tokenised once: the result is kept in datasets' cache under the texts, the
    tokenizer and `max_tokens`. The fast tokenizers work on all cores by themselves. `progress` is told how
    many texts each batch held.
    """

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        encoded = tokenizer(
            batch["text"], truncation=True, max_length=max_tokens, return_token_type_ids=False, return_length=True
        )
        progress(len(batch["text"]))
        for row, ids in enumerate(encoded["input_ids"]):
            if not ids:
                encoded["input_ids"][row], encoded["attention_mask"][row], encoded["length"][row] = (
                    nothing(tokenizer),
                    [1],
                    1,
                )
        return {**encoded, "labels": batch.get("label", [UNLABELLED] * len(batch["text"]))}

    key = json.dumps([rows._fingerprint, tokenizer_fingerprint(tokenizer), max_tokens])
    return rows.map(
        encode,
        batched=True,
        remove_columns=rows.column_names,
        # datasets would hash the tokenizer, whose state changes with its first call: never the same key twice
        new_fingerprint=hashlib.sha256(key.encode()).hexdigest()[:32],
    )


def check_tokenised(rows: Dataset, tokenised: Dataset, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
    """Raise `DataError` unless ids, masks and labels agree and decoding gives the text back, on the first rows.

    A text that the tokenizer cuts, or that holds unknown or special tokens of its own, cannot come back whole and is
    compared no further; more than half of the tokens unknown means that the tokenizer was made for other texts.
    """
    count = min(CHECKED_ROWS, len(rows))
    unknown = total = 0
    known = vocabulary_of(tokenizer)
    special, added = set(tokenizer.all_special_ids), tokenizer.num_special_tokens_to_add()
    for row, encoded in zip(rows.select(range(count)), tokenised.select(range(count)), strict=True):
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        place = f"row {row['example_id']}"
        if len(ids) != len(mask) or len(ids) != encoded["length"] or encoded["labels"] != row.get("label", UNLABELLED):
            raise DataError(f"{place}: ids, mask and label disagree after tokenising; delete datasets' cache and retry")
        if max(ids) >= known:
            raise DataError(f"{place}: token id {max(ids)}, but the tokenizer's largest is {known - 1}")
        total += len(ids)
        unknown += ids.count(tokenizer.unk_token_id)
        if len(ids) < max_tokens and sum(token in special for token in ids) == added:
            decoded = tokenizer.decode(ids, skip_special_tokens=True)
            if _comparable(decoded, None) != _comparable(row["text"], tokenizer):
                raise DataError(
                    f"{place}: decoding the tokens does not give the text: {decoded[:50]!r}, text {row['text'][:50]!r}"
                )
    if unknown > total / 2:
        raise DataError(f"{unknown / total:.0%} of the tokens are unknown to the tokenizer: made for other texts")


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a SHA-256 of all that decides which ids a text gets: vocabulary, normaliser, side that is cut off."""
    description = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation_side": tokenizer.truncation_side}
    for state in ("truncation", "padding"):  # set by the last call, no property of the tokenizer
        description.pop(state, None)
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _comparable(text: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """The text as the tokenizer normalises it (case, accents), without white space, which none keeps exactly."""
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer else None
    return "".join((normalizer.normalize_str(text) if normalizer else text).split())


def tokenised(split: str, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Dataset:
    """Return `rows` tokenised (see tokens.tokenise) and checked, with a progress line."""
    with PartialState().local_main_process_first(), progress_line(f"tokenising {split}", len(rows), "text") as bar:
        result = tokenise(rows, tokenizer, max_tokens, progress=bar.update)
        bar.update(len(rows) - bar.n)  # all at once where the cache had it
    check_tokenised(rows, result, tokenizer, max_tokens)
    return result
