"""Tokenize texts, keep the result in the cache, and check it."""

from __future__ import annotations

import bisect
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from distill.data.encoding import Truncation, encode, vocabulary_of
from distill.data.pairs import parts_of
from distill.errors import DataError
from distill.machine.progress import progress_line
from distill.models.config import TOKEN_TYPES
from distill.recipe.schema import Task

UNLABELLED = -1  # datasets on the Hub use -1 for "no label"; of several labels, each is this
CHECKED_ROWS = 64  # a wrong tokenizer shows on the first few


def tokenise(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    truncation: Truncation,
    *,
    unlabelled: int | Sequence[int] = UNLABELLED,
    progress: Callable[[int], object] = lambda done: None,
) -> Dataset:
    """Return columns input_ids, attention_mask, length, uncut_length and labels for `rows`, not padded.

    Pairs also have token_type_ids. If the rows have no labels, each gets `unlabelled` (see `unlabelled_of`). The result
    stays in datasets' cache, and the same texts, tokenizer and `truncation` find it again. `progress` receives the
    number of texts in each batch.
    """

    def columns(batch: dict[str, list[str]]) -> dict[str, Any]:
        ids, uncut, types = encode(tokenizer, batch["text"], truncation)
        progress(len(ids))
        return {
            "input_ids": ids,
            **({} if types is None else {TOKEN_TYPES: types}),
            "attention_mask": [[1] * len(row) for row in ids],
            "length": [len(row) for row in ids],
            "uncut_length": uncut,
            "labels": batch.get("label", [unlabelled] * len(ids)),
        }

    depends = [rows._fingerprint, tokenizer_fingerprint(tokenizer), astuple(truncation)]
    has_labels = unlabelled == UNLABELLED or "label" in rows.column_names
    key = json.dumps(depends if has_labels else [*depends, unlabelled])
    return rows.map(
        columns,
        batched=True,
        remove_columns=rows.column_names,
        # datasets would hash the tokenizer, whose state changes with its first call, so the key would differ
        new_fingerprint=hashlib.sha256(key.encode()).hexdigest()[:32],
    )


def check_tokenised(rows: Dataset, tokenised: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `DataError` unless ids, masks and labels agree and decoding returns the text, on the first rows.

    A text that was cut, or that has unknown or special tokens, cannot come back whole, so it is not compared. If more
    than half of the words have an unknown token, the tokenizer was made for other texts.
    """
    count = min(CHECKED_ROWS, len(rows))
    unknown = total = 0
    known = vocabulary_of(tokenizer)
    special = set(tokenizer.all_special_ids)
    added = tokenizer.num_special_tokens_to_add(pair=TOKEN_TYPES in tokenised.column_names)
    for row, encoded in zip(rows.select(range(count)), tokenised.select(range(count)), strict=True):
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        place = f"row {row['example_id']}"
        labels = encoded["labels"]
        if len(ids) != len(mask) or len(ids) != encoded["length"] or labels != row.get("label", labels):
            raise DataError(f"{place}: ids, mask and label disagree after tokenizing; delete datasets' cache and retry")
        if max(ids) >= known:
            raise DataError(f"{place}: token id {max(ids)}, but the tokenizer's largest is {known - 1}")
        words, strange = _words(" ".join(parts_of(row["text"])), tokenizer)
        total += words
        unknown += strange
        if len(ids) == encoded["uncut_length"] and sum(token in special for token in ids) == added:
            decoded = tokenizer.decode(ids, skip_special_tokens=True)
            if _comparable(decoded, None) != _comparable(row["text"], tokenizer):
                raise DataError(
                    f"{place}: decoding the tokens does not give the text: {decoded[:50]!r}, text {row['text'][:50]!r}"
                )
    if unknown > total / 2:
        raise DataError(f"{unknown / total:.0%} of the words are unknown: the tokenizer was made for other texts")


def _words(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return how many words a text has, and how many of them have a token that is unknown.

    Tokens would not do: a tokenizer of pieces may give a strange word one unknown token and several known ones, such as
    the mark of its beginning.
    """
    words = [match.end() for match in re.finditer(r"\S+", text)]
    tokens = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    ends = (end for token, (_, end) in zip(tokens.ids, tokens.offsets, strict=True) if token == tokenizer.unk_token_id)
    return len(words), len({bisect.bisect_left(words, end) for end in ends})


def check_embedded(rows: Dataset, tokenizer: PreTrainedTokenizerBase, embeddings: float) -> None:
    """Raise `DataError` if one of the tokenized `rows` has a token that is beyond a model's table of `embeddings`."""
    if vocabulary_of(tokenizer) <= embeddings:
        return
    for ids in rows["input_ids"]:
        if (largest := max(ids)) >= embeddings:
            raise DataError(
                f"a text has the token {tokenizer.convert_ids_to_tokens(largest)!r} (id {largest}), but the model "
                f"embeds only {embeddings} tokens: {tokenizer.decode(ids)[:50]!r}",
                hint="remove that token from the texts or from the tokenizer, or resize the model's embeddings",
            )


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a SHA-256 of all that decides which ids a text gets before it is cut: vocabulary, normalizer."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # they are left by the last call
        description.pop(state, None)
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _comparable(text: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Return the text as the tokenizer normalizes it, without whitespace, which tokenizers do not keep exactly."""
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer else None
    return "".join((normalizer.normalize_str(text) if normalizer else text).split())


def unlabelled_of(label_names: Sequence[str], task: Task) -> int | list[int]:
    """Return what stands in the column `labels` for a text whose labels are unknown."""
    return UNLABELLED if task == "single_label" else [UNLABELLED] * len(label_names)


def tokenise_split(
    split: str,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    truncation: Truncation,
    *,
    unlabelled: int | Sequence[int] = UNLABELLED,
) -> Dataset:
    """Tokenize and check the `rows` of a split, with a progress line (see `tokenise` and `check_tokenised`)."""
    with PartialState().local_main_process_first(), progress_line(f"tokenising {split}", len(rows), "text") as bar:
        result = tokenise(rows, tokenizer, truncation, unlabelled=unlabelled, progress=bar.update)
        bar.update(len(rows) - bar.n)  # all at once if the cache had the result
    check_tokenised(rows, result, tokenizer)
    return result
