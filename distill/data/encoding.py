"""Turn texts into token ids, and cut those that are longer than the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from distill.recipe.schema import Recipe

Kept = Literal["head", "tail", "head_tail"]
HEAD_SHARE = 128 / 510  # of the tokens that "head_tail" keeps
AT_ONCE = 512  # texts: a tokenizer keeps each token's position until it is done with all of them
NO_LIMIT = 2**31 - 1  # tokens: more than this overflows in the tokenizers library; some folders say 1e30
MOST_LOST = 0.01  # share of the tokens: if more are cut off, it is worth a word


@dataclass(frozen=True)
class Truncation:
    """What a model reads of a long text: `max_tokens` tokens, special tokens included, from the part that is `kept`.

    "head" keeps the beginning, "tail" the end. "head_tail" keeps a quarter from the beginning and the rest from the
    end, as Sun et al. 2019 do (How to Fine-Tune BERT for Text Classification, section 5.3.1: 128 and 382 of 510).
    """

    max_tokens: int
    kept: Kept = "head"

    @property
    def limit(self) -> int | None:
        """The number of tokens that it reads at most; None if it reads all of a text."""
        return None if self.max_tokens >= NO_LIMIT else self.max_tokens

    def __str__(self) -> str:
        if self.limit is None:
            return "all of a text"
        return {
            "head": f"the first {self.max_tokens} tokens of a text",
            "tail": f"the last {self.max_tokens} tokens of a text",
            "head_tail": f"{self.max_tokens} tokens of a text, a quarter from its beginning and the rest from its end",
        }[self.kept]

    def ends(self, room: int) -> tuple[int, int]:
        """Return how many tokens it keeps from the beginning and from the end of a text longer than `room`."""
        head = {"head": room, "tail": 0, "head_tail": round(HEAD_SHARE * room)}[self.kept]
        return head, room - head

    def cut(self, tokens: list[int], room: int) -> list[int]:
        """Return the `tokens` of a text, or `room` of them if there are more."""
        if len(tokens) <= room:
            return tokens
        head, tail = self.ends(room)
        return tokens[:head] + tokens[len(tokens) - tail :]


@dataclass(frozen=True)
class Cut:
    """What is cut off some texts: the share of the `texts` that are cut, and of their `tokens` that are lost."""

    texts: float
    tokens: float

    @property
    def matters(self) -> bool:
        """Whether so much is cut off that it is worth a word."""
        return self.tokens > MOST_LOST


def cut_of(uncut_lengths: Sequence[int], max_tokens: int) -> Cut:
    """Return what is cut off texts of these lengths."""
    lengths = np.asarray(uncut_lengths)
    kept = np.minimum(lengths, max_tokens)
    return Cut(float((lengths > max_tokens).mean()), float(1 - kept.sum() / lengths.sum()))


def truncation_of(recipe: Recipe, stage: Literal["teacher", "student"]) -> Truncation:
    """Return what the model of a stage of a recipe reads of a text."""
    ngrams = recipe.student.ngrams if stage == "student" and recipe.student else None
    max_tokens = (ngrams.max_tokens or NO_LIMIT) if ngrams else recipe.data.max_tokens
    return Truncation(max_tokens, recipe.data.truncation)


def cut_in_words(truncation: Truncation, cut: Cut, texts: str, verb: str = "reads") -> str:
    """Return what a model reads, and how much of `texts` ("the test texts") is cut off."""
    return (
        f"{verb} {truncation}: {cut.texts:.0%} of {texts} are longer, and {cut.tokens:.0%} of all tokens are cut off; "
        "`distill inspect RECIPE` shows what a linear model loses by that"
    )


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], truncation: Truncation
) -> tuple[list[list[int]], list[int]]:
    """Return the ids of each text, cut and with special tokens, and how many ids it had before it was cut.

    Each text has at least one id, because a model needs one. A fast tokenizer uses all cores by itself. It is called
    directly: transformers also keeps each token's position and all that was cut off, and cannot keep both ends. Not
    for several threads at once, because a tokenizer has settings that may have to be changed first.
    """
    backend = _backend(tokenizer)
    ids: list[list[int]] = []
    lengths: list[int] = []
    for start in range(0, len(texts), AT_ONCE):
        encoded = backend.encode_batch_fast(list(texts[start : start + AT_ONCE]), add_special_tokens=False)
        before, after = _special_tokens(backend, max(encoded, key=len))
        room = truncation.max_tokens - len(before) - len(after)
        for tokens in (row.ids for row in encoded):
            ids.append(before + truncation.cut(tokens, room) + after or ids_of_empty_text(tokenizer))
            lengths.append(max(1, len(before) + len(tokens) + len(after)))
    return ids, lengths


def excerpts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], truncation: Truncation) -> list[str]:
    """Return the part of each text that a model reads, as text."""
    room = truncation.max_tokens - tokenizer.num_special_tokens_to_add()
    head, tail = truncation.ends(room)
    backend, parts = _backend(tokenizer), []
    for start in range(0, len(texts), AT_ONCE):
        some = list(texts[start : start + AT_ONCE])
        for text, found in zip(some, backend.encode_batch(some, add_special_tokens=False), strict=True):
            if len(found) > room:
                places = found.offsets
                beginning = text[: places[head - 1][1]] if head else ""
                text = f"{beginning} {text[places[-tail][0] :] if tail else ''}"
            parts.append(text)
    return parts


def _backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return what tokenizes for `tokenizer`, set to cut and pad nothing."""
    backend = tokenizer.backend_tokenizer
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if backend.encode_special_tokens != tokenizer.split_special_tokens:
        backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


def _special_tokens(backend: Any, encoded: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before and after a text, as it does for `encoded`."""
    whole = backend.post_process(encoded)
    if not len(encoded):
        return whole.ids, []
    start = whole.sequence_ids.index(0)  # special tokens belong to no sequence
    return whole.ids[:start], whole.ids[start + len(encoded) :]


def ids_of_empty_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids for a text that the tokenizer turns into no token at all, because a model needs at least one."""
    known: tuple[Any, ...] = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return [next(token for token in known if token is not None)]
