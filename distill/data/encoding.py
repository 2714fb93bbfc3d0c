"""Turn texts into token ids, and cut those that are longer than the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from distill.data.pairs import is_pair, parts_of
from distill.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from distill.recipe.schema import Recipe

Kept = Literal["head", "tail", "head_tail", "longest_first"]  # the last one is for pairs of texts
HEAD_SHARE = 128 / 510  # of the tokens that "head_tail" keeps
AT_ONCE = 512  # texts: a tokenizer keeps each token's position until it is done with all of them
NO_LIMIT = 2**31 - 1  # tokens: more than this overflows in the tokenizers library; some folders say 1e30
MOST_LOST = 0.01  # share of the tokens: if more are cut off, it is worth a word


@dataclass(frozen=True)
class Truncation:
    """What a model reads of a long text: `max_tokens` tokens, special tokens included, from the part that is `kept`.

    "head" keeps the beginning, "tail" the end. "head_tail" keeps a quarter from the beginning and the rest from the
    end, as Sun et al. 2019 do (How to Fine-Tune BERT for Text Classification, section 5.3.1: 128 and 382 of 510). Of a
    pair, "longest_first" cuts the end of the longer text, until both are equally long.
    """

    max_tokens: int
    kept: Kept = "head"

    @property
    def limit(self) -> int | None:
        """The number of tokens that it reads at most; None if it reads all of a text."""
        return None if self.max_tokens >= NO_LIMIT else self.max_tokens

    def __str__(self) -> str:
        if self.limit is None:
            return "all of a pair of texts" if self.kept == "longest_first" else "all of a text"
        return {
            "head": f"the first {self.max_tokens} tokens of a text",
            "tail": f"the last {self.max_tokens} tokens of a text",
            "head_tail": f"{self.max_tokens} tokens of a text, a quarter from its beginning and the rest from its end",
            "longest_first": f"{self.max_tokens} tokens of a pair of texts, of which the longer one is cut first",
        }[self.kept]

    def ends(self, room: int) -> tuple[int, int]:
        """Return how many tokens it keeps from the beginning and from the end of a text longer than `room`."""
        head = {"tail": 0, "head_tail": round(HEAD_SHARE * room)}.get(self.kept, room)
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
    return Truncation(max_tokens, "longest_first" if recipe.data.has_pairs else recipe.data.truncation)


def cut_in_words(truncation: Truncation, cut: Cut, texts: str, verb: str = "reads") -> str:
    """Return what a model reads, and how much of `texts` ("the test texts") is cut off."""
    found = (
        f"{verb} {truncation}: {cut.texts:.0%} of {texts} are longer, and {cut.tokens:.0%} of all tokens are cut off"
    )
    if truncation.kept == "longest_first":
        return found
    return f"{found}; `distill inspect RECIPE` shows what a linear model loses by that"


class Encoded(NamedTuple):
    """The ids of each text, and how many ids it had before it was cut.

    `types` are the token types of pairs, 0 or 1 for each id as the tokenizer numbers them; None without pairs.
    """

    ids: list[list[int]]
    lengths: list[int]
    types: list[list[int]] | None = None


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], truncation: Truncation) -> Encoded:
    """Return the ids of each text, cut and with special tokens. The texts are all pairs (see pairs.py), or none is.

    Each text has at least one id, because a model needs one. A fast tokenizer uses all cores by itself. It is called
    directly: transformers also keeps each token's position and all that was cut off, and cannot keep both ends. Not
    for several threads at once, because a tokenizer has settings that may have to be changed first.
    """
    backend = _backend(tokenizer)
    if texts and is_pair(texts[0]):
        return _encode_pairs(tokenizer, backend, texts, truncation.max_tokens)
    ids: list[list[int]] = []
    lengths: list[int] = []
    for start in range(0, len(texts), AT_ONCE):
        encoded = backend.encode_batch_fast(list(texts[start : start + AT_ONCE]), add_special_tokens=False)
        before, after = _special_tokens(backend, max(encoded, key=len))
        room = truncation.max_tokens - len(before) - len(after)
        for tokens in (row.ids for row in encoded):
            ids.append(before + truncation.cut(tokens, room) + after or ids_of_empty_text(tokenizer))
            lengths.append(max(1, len(before) + len(tokens) + len(after)))
    return Encoded(ids, lengths)


def _encode_pairs(tokenizer: PreTrainedTokenizerBase, backend: Any, texts: Sequence[str], max_tokens: int) -> Encoded:
    ids: list[list[int]] = []
    lengths: list[int] = []
    types: list[list[int]] = []
    template = None
    for start in range(0, len(texts), AT_ONCE):
        pairs = [parts_of(text) for text in texts[start : start + AT_ONCE]]
        firsts, seconds = (
            [row.ids for row in backend.encode_batch_fast(list(some), add_special_tokens=False)]
            for some in zip(*pairs, strict=True)
        )
        if template is None:  # of two texts that have tokens; some tokenizers drop what they do not know
            whole = next((at for at, both in enumerate(zip(firsts, seconds, strict=True)) if all(both)), None)
            template = _PairTemplate(backend, *(pairs[whole] if whole is not None else _two_words(backend)))
            if max_tokens < template.added + 2:
                raise DataError(
                    f"data.max_tokens: {max_tokens} leaves no room for two texts: the tokenizer adds {template.added} "
                    "tokens to a pair"
                )
        for first, second in zip(firsts, seconds, strict=True):
            lengths.append(len(first) + len(second) + template.added)
            first, second = _longest_first(first, second, max_tokens - template.added)
            row, kinds = template.fill(first, second)
            ids.append(row or ids_of_empty_text(tokenizer))
            types.append(kinds or [0])
    return Encoded(ids, lengths, types)


def _two_words(backend: Any) -> tuple[str, str]:
    """Return a text that has tokens, twice."""
    for word in ("a", *backend.get_vocab()):
        if len(backend.encode(word, add_special_tokens=False)):
            return word, word
    raise DataError("the tokenizer makes no token of any text")


def _longest_first(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    """Cut the end of the longer text, until both fit into `room`, as the tokenizers library does."""
    is_swapped = len(first) > len(second)
    short, long = (len(second), len(first)) if is_swapped else (len(first), len(second))
    if short + long > room:
        long = max(short, room - short)
        if short + long > room:
            short, long = room // 2, room - room // 2
    return (first[:long], second[:short]) if is_swapped else (first[:short], second[:long])


class _PairTemplate:
    """The special tokens that a tokenizer puts before, between and after the texts of a pair, with all token types."""

    def __init__(self, backend: Any, first: str, second: str):
        whole = backend.encode(first, second)
        sequences, self.types = whole.sequence_ids, whole.type_ids
        begins = [sequences.index(text) for text in (0, 1)]
        ends = [len(sequences) - sequences[::-1].index(text) for text in (0, 1)]
        self.spans = [(0, begins[0]), (ends[0], begins[1]), (ends[1], len(sequences))]
        self.special = [whole.ids[start:end] for start, end in self.spans]
        self.of_text = [whole.type_ids[begin] for begin in begins]
        self.added = sum(map(len, self.special))

    def fill(self, first: list[int], second: list[int]) -> tuple[list[int], list[int]]:
        """Return ids and token types of a pair."""
        before, between, after = self.special
        kinds = [self.types[start:end] for start, end in self.spans]
        types = [*kinds[0], *[self.of_text[0]] * len(first), *kinds[1], *[self.of_text[1]] * len(second), *kinds[2]]
        return before + first + between + second + after, types


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


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before and after a text."""
    backend = _backend(tokenizer)
    return _special_tokens(backend, backend.encode(_two_words(backend)[0], add_special_tokens=False))


def ids_of_empty_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids for a text that the tokenizer turns into no token at all, because a model needs at least one."""
    known: tuple[Any, ...] = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return [next(token for token in known if token is not None)]


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, *, added: bool = True) -> int:
    """Return how many embeddings a model needs for the tokenizer: its highest id plus 1.

    Without the `added` tokens, only those count that any text may have: pieces, and the special tokens around them.
    Some tokenizers have more added tokens than their model has embeddings, which does no harm until a text uses one.
    """
    if added:
        return max(tokenizer.get_vocab().values(), default=-1) + 1
    backend: Any = tokenizer.backend_tokenizer
    pieces, around = backend.get_vocab(with_added_tokens=False).values(), backend.encode("").ids
    used: tuple[Any, ...] = (*pieces, *around, tokenizer.unk_token_id, tokenizer.pad_token_id)
    return max((token for token in used if token is not None), default=-1) + 1
