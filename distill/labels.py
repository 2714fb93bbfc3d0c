"""Labels as they were written to classes: one rule, whatever the file's format and the order of its rows.

A label is text. It belongs to the class of its name, without regard to case and white space. Only if no label is a name
and all of them are whole numbers are they indices into the names. Words are never indices.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

WHOLE = re.compile(r"(-?(?:0|[1-9]\d{0,15}))(?:\.0*)?")  # 1.0 is what pandas makes of 1; 007 is a name
SURELY_JOINED = re.compile(r"\s*[|;]\s*")
PERHAPS_JOINED = re.compile(r"\s*[|;,/+&]\s*")


class LabelError(ValueError):
    """A label that gives no class name; `label` is the one as it was written."""

    def __init__(self, label: str, problem: str):
        super().__init__(problem)
        self.label = label


def cleaned(label: str) -> str:
    """Return a label without the white space around it, and with one space for what white space it holds."""
    return " ".join(unicodedata.normalize("NFC", label).split())


def label_key(label: str) -> str:
    """Return what labels share that look alike: without case, without spare white space and what prints as nothing."""
    return " ".join("".join(one for one in cleaned(label) if unicodedata.category(one) != "Cf").lower().split())


def names_of(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the class names that labels give by themselves: sorted, whole numbers as numbers.

    Labels that differ only in white space are one class. Raises `LabelError` if two differ only in case, which may be
    meant or not, and for a number that is not whole.
    """
    labels = sorted(set(labels))
    whole = [WHOLE.fullmatch(cleaned(label)) for label in labels]
    if all(whole):
        return tuple(map(str, sorted({int(found[1]) for found in whole if found})))
    if all(map(_is_number, labels)):
        fraction = next(label for label, found in zip(labels, whole, strict=True) if not found)
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
    """Say whether labels are numbers of classes, counted from 0, and not names: all are whole, and some is no name."""
    found = classes_of(labels, names, indices=False)
    return None in found.values() and all(WHOLE.fullmatch(cleaned(label)) for label in labels)


def classes_of(labels: Iterable[str], names: Sequence[str], *, indices: bool) -> dict[str, int | None]:
    """Return for each label the index of its class among `names`, None if it has none."""
    by_key = {label_key(name): index for index, name in enumerate(names)}
    found: dict[str, int | None] = {}
    for label in labels:
        whole = WHOLE.fullmatch(cleaned(label))
        if indices:
            index = int(whole[1]) if whole else -1
            found[label] = index if 0 <= index < len(names) else None
        else:
            found[label] = by_key.get(label_key(label), by_key.get(whole[1]) if whole else None)
    return found


def joined(names: Sequence[str]) -> list[str]:
    """Return the class names that look like several labels in one: "a|b", "a;b", or "a, b" beside a class "a"."""
    keys = {label_key(name) for name in names}

    def looks_joined(name: str) -> bool:
        surely, perhaps = ([part for part in kind.split(name) if part] for kind in (SURELY_JOINED, PERHAPS_JOINED))
        return len(surely) > 1 or (len(perhaps) > 1 and any(label_key(part) in keys for part in perhaps))

    return [name for name in names if looks_joined(name)]


def _is_number(label: str) -> bool:
    """Whether a label is a number to a computer; digits that begin with 0 are a code, and so a name."""
    try:
        float(label)
    except ValueError:
        return False
    return not re.fullmatch(r"0\d+", label.strip())
