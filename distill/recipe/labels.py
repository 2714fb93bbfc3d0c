"""From written labels to classes, by one rule that depends neither on the file format nor on the order of the rows.

A label is text. It belongs to the class with the same name; case and white space do not matter. If all labels are whole
numbers and no class name is a number, labels are indices into the class names. Words are never indices.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

WHOLE = re.compile(r"(-?(?:0|[1-9]\d{0,15}))(?:\.0*)?")  # pandas writes 1 as 1.0; 007 is a name
NUMBER = re.compile(r"([+-]?\d{1,16})(?:\.0*)?")
FRACTION = re.compile(r"[+-]?(?:\d*\.\d+|\d+\.|\d+(?=e[+-]))(?:e[+-]?\d+)?|[+-]?(?:inf|infinity|nan)", re.IGNORECASE)
SAME_NAMES: Mapping[str, str] = MappingProxyType({})  # a map of names that renames nothing
JOINERS = "\u200c\u200d"
VARIANTS = {chr(code) for code in range(0xFE00, 0xFE10)}  # variation selectors: how a character is drawn
SURELY_JOINED = re.compile(r"\s*[|;]\s*")
PERHAPS_JOINED = re.compile(r"\s*[|;,/+&]\s*")
LISTED = re.compile(r"""\s*\[\s*(|['"].*['"]|-?\d+(\s*,\s*-?\d+)*)\s*\]\s*""", re.DOTALL)  # of JSON or Python


class LabelError(ValueError):
    """A label that cannot be a class name; `label` is how it was written."""

    def __init__(self, label: str, problem: str):
        super().__init__(problem)
        self.label = label


def cleaned(label: str) -> str:
    """Return a label without outer white space and invisible characters, and with single spaces inside.

    Joiners stay, because some scripts and emoji need them.
    """
    seen = (one for one in unicodedata.normalize("NFC", label) if one in JOINERS or unicodedata.category(one) != "Cf")
    return " ".join("".join(seen).split())


def label_key(label: str) -> str:
    """Return a key that labels share if they look alike: without case, extra white space and invisible characters.

    Ligatures (of f and i) equal their letters, and a character equals its emoji form.
    """
    plain = unicodedata.normalize("NFKC", cleaned(label)).lower()
    return "".join(one for one in plain if unicodedata.category(one) != "Cf" and one not in VARIANTS)


def renamed(label: str, label_map: Mapping[str, str]) -> str:
    """Return what a label is called instead in `label_map`, whose keys match like class names; else the label."""
    former = list(label_map)
    found = classes_of([label], former, indices=False)[label] if former else None
    return label if found is None else label_map[former[found]]


def names_of(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the class names if no names are given: sorted, and whole numbers by value.

    Labels that differ only in white space are one class. Raises `LabelError` if two labels differ only in case, which
    may be a mistake, and if all labels are numbers but some are not whole.
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
            problem = f"labels {known!r} and {name!r} differ only in case; write them alike, or list the classes"
            raise LabelError(label, problem)
    return tuple(sorted(names.values()))


def are_indices(labels: Collection[str], names: Sequence[str]) -> bool:
    """Return whether labels are indices into `names`, from 0: all are whole numbers, and no name is a number.

    If a name is a number, labels are only compared with the names, because an index could also be a name.
    """
    return not any(map(_number_of, names)) and all(WHOLE.fullmatch(cleaned(label)) for label in labels)


def classes_of(labels: Iterable[str], names: Sequence[str], *, indices: bool) -> dict[str, int | None]:
    """Return the index of each label's class in `names`, or None if it has no class.

    The class is the name that is written the same, else the name that looks the same, else the name with the same
    number. The second and third rule do not count for names that look the same, or are the same number, as another.
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
    """Return the position of each key that occurs once; None is left out."""
    keys = list(keys)
    counts = Counter(keys)
    return {key: index for index, key in enumerate(keys) if key is not None and counts[key] == 1}


def _number_of(label: str) -> tuple[int, ...] | None:
    """Return the whole number of a label (also of 1.0 or 01), or None; in a tuple, because 0 is false."""
    found = NUMBER.fullmatch(cleaned(label))
    return (int(found[1]),) if found else None


def joined(names: Sequence[str]) -> list[str]:
    """Return the names that look like several labels in one: a list, "a|b", "a;b", or "a, b" if "a" is a name too."""
    keys = {label_key(name) for name in names}

    def looks_joined(name: str) -> bool:
        surely, perhaps = ([part for part in kind.split(name) if part] for kind in (SURELY_JOINED, PERHAPS_JOINED))
        is_list = LISTED.fullmatch(name) is not None
        return is_list or len(surely) > 1 or (len(perhaps) > 1 and any(label_key(part) in keys for part in perhaps))

    return [name for name in names if looks_joined(name)]


def separator_of(names: Sequence[str]) -> str | None:
    """Return the mark that joins labels in the most of the names that look joined; None if none does.

    `names` are from `joined`.
    """
    counts = {mark: sum(mark in name for name in names) for mark in "|;,/+&"}
    likely = max(counts, key=lambda mark: counts[mark])
    return likely if counts[likely] else None
