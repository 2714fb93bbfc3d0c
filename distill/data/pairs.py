"""Pairs of texts, such as a premise and a hypothesis: in tables of texts, a pair is one string with a separator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

SEPARATOR = "\x1e"  # ASCII's record separator; texts of pairs that hold one get a space instead
Text = str | tuple[str, str]


def joined_texts(*texts: str) -> str:
    """Return a pair, or a single text, as one string."""
    return SEPARATOR.join(text.replace(SEPARATOR, " ") for text in texts)


def parts_of(text: str) -> tuple[str, ...]:
    """Return both texts of a pair, or the text alone."""
    return tuple(text.split(SEPARATOR, 1))


def is_pair(text: str) -> bool:
    """Say whether a string is a pair."""
    return SEPARATOR in text


def texts_of(rows: Dataset) -> list[Text]:
    """Return the texts of a split as a classifier takes them: strings, or pairs of strings."""
    texts: Sequence[str] = rows["text"][:]
    pairs = (parts_of(text) for text in texts)
    return [pair if len(pair) == 2 else pair[0] for pair in pairs]


def shown_text(text: str) -> str:
    """Return a text for people: both texts of a pair with a bar between them."""
    return " | ".join(parts_of(text))
