"""Labels as they were written to classes: one rule, whatever the file's format and the order of its rows.

A label is text. It belongs to the class of its name, without regard to case and white space. Only if all labels are
whole numbers, and no name is a number, are they indices into the names. Words are never indices.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

WHOLE = re.compile(r"(-?(?:0|[1-9]\d{0,15}))(?:\.0*)?")  # 1.0 is what pandas makes of 1; 007 is a name
NUMBER = re.compile(r"([+-]?\d{1,16})(?:\.0*)?")
FRACTION = re.compile(r"[+-]?(?:\d*\.\d+|\d+\.|\d+(?=e[+-]))(?:e[+-]?\d+)?|[+-]?(?:inf|infinity|nan)", re.IGNORECASE)
JOINERS = "\u200c\u200d"
VARIANTS = {chr(code) for code in range(0xFE00, 0xFE10)}  # which of its forms a sign is drawn in
SURELY_JOINED = re.compile(r"\s*[|;]\s*")
PERHAPS_JOINED = re.compile(r"\s*[|;,/+&]\s*")


class LabelError(ValueError):
    """A label that gives no class name; `label` is the one as it was written."""

    def __init__(self, label: str, problem: str):
        super().__init__(problem)
        self.label = label


def cleaned(label: str) -> str:
    """Return a label without the white space around it and what prints as nothing, and with single spaces within.

    Joiners stay: scripts and emoji are written with them.
    """
    seen = (one for one in unicodedata.normalize("NFC", label) if one in JOINERS or unicodedata.category(one) != "Cf")
    return " ".join("".join(seen).split())


def label_key(label: str) -> str:
    """Return what labels share that look alike: without case, spare white space and what prints as nothing.

    Nor do letters that are drawn as one (the ligature of f and i), or as text and as a picture, make a difference.
    """
    plain = unicodedata.normalize("NFKC", cleaned(label)).lower()
    return "".join(one for one in plain if unicodedata.category(one) != "Cf" and one not in VARIANTS)


def names_of(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the class names that labels give by themselves: sorted, whole numbers as numbers.

    Labels that differ only in white space are one class. Raises `LabelError` if two differ only in case, which may be
    meant or not, and for a number that is not whole.
    """
    labels = sorted(set(labels))
    whole = [WHOLE.fullmatch(cleaned(label)) for label in labels]
    if all(whole):
        return tuple(map(str, sorted({int(found[1]) for found in whole if found})))
    fraction = next((label for label in labels if FRACTION.fullmatch(cleaned(label))), None)
    if fraction and all(
        found or FRACTION.fullmatch(cleaned(label)) for label, found in zip(labels, whole, strict=True)
    ):
        raise LabelError(fraction, f"label {fraction!r} is neither a whole number nor a name")
    names: dict[str, str] = {}
    for label in labels:
        name = cleaned(label)
        known = names.setdefault(label_key(name), name)
        if known.lower() == name.lower() and known != name:
            problem = f"labels {known!r} and {name!r} differ only in case; write them alike, or name one of them"
            raise LabelError(label, problem)
    return tuple(sorted(names.values()))


def are_indices(labels: Collection[str], names: Sequence[str]) -> bool:
    """Say whether labels are numbers of classes, counted from 0: all are whole numbers, and no name is one.

    If a name is a number itself, labels are matched with the names alone: an index could not be told from a name.
    """
    return not any(map(_number_of, names)) and all(WHOLE.fullmatch(cleaned(label)) for label in labels)


def classes_of(labels: Iterable[str], names: Sequence[str], *, indices: bool) -> dict[str, int | None]:
    """Return for each label the index of its class among `names`, None if it has none.

    A label is the name that it is written like, else the one that looks like it, else the one that is the same number.
    Where two names look alike or are one number, that decides nothing.
    """
    if indices:
        whole = {label: WHOLE.fullmatch(cleaned(label)) for label in labels}
        return {
            label: int(found[1]) if found and 0 <= int(found[1]) < len(names) else None
            for label, found in whole.items()
        }
    exact = {name: index for index, name in enumerate(names)}
    alike, equal = _unique(map(label_key, names)), _unique(map(_number_of, names))
    return {label: exact.get(label, alike.get(label_key(label), equal.get(_number_of(label)))) for label in labels}


def _unique(keys: Iterable[Any]) -> dict[Any, int]:
    """The positions of keys, without those that stand there twice, and without None."""
    keys = list(keys)
    counts = Counter(keys)
    return {key: index for index, key in enumerate(keys) if key is not None and counts[key] == 1}


def _number_of(label: str) -> tuple[int, ...] | None:
    """The whole number that a label is, however it is written (1, 1.0, 01), in a tuple, which 0 is true in, or None."""
    found = NUMBER.fullmatch(cleaned(label))
    return (int(found[1]),) if found else None


def joined(names: Sequence[str]) -> list[str]:
    """Return the class names that look like several labels in one: "a|b", "a;b", or "a, b" beside a class "a"."""
    keys = {label_key(name) for name in names}

    def looks_joined(name: str) -> bool:
        surely, perhaps = ([part for part in kind.split(name) if part] for kind in (SURELY_JOINED, PERHAPS_JOINED))
        return len(surely) > 1 or (len(perhaps) > 1 and any(label_key(part) in keys for part in perhaps))

    return [name for name in names if looks_joined(name)]
