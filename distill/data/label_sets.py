"""Read the labels of texts that may have several, or none: lists, joined texts, or a column of 0 and 1 for each label.

Each row says what it has. A value that could be read in two ways is an error with its place, and nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.data.sources import Table
from distill.data.tables import is_list, value_text
from distill.data.texts import is_string
from distill.errors import DataError, one_line
from distill.recipe.labels import label_key

YES_OR_NO = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
BRACKETS = {"[": "]", "(": ")", "{": "}"}
SHOWN = 100  # characters of a value in an error


@dataclass(frozen=True)
class Written:
    """The labels of a split as they are written, and for each the row (from 0) of the text that has it, in order."""

    values: pa.ChunkedArray
    rows: np.ndarray


def read_label_sets(table: Table, columns: Sequence[str], separator: str | None, notes: list[str]) -> Written:
    """Return the labels in one column of lists or of texts, or the names of the columns that hold 1.

    A text holds a JSON list, or labels that `separator` joins. Adds a note if a text has a label twice. Raises
    `DataError` with the row, the rule and the value if a value is anything else.
    """
    if len(columns) > 1:
        return _marked(table, columns)
    lists = _lists(table, columns[0], separator)
    written = Written(pa.chunked_array([pc.list_flatten(lists)]), pc.list_parent_indices(lists).to_numpy())
    _check_values(written, lists, table)
    if repeating := _repeating(written):
        _check_not_marks(written, lists, table, columns[0])
        notes.append(f"{table.source}: {repeating} texts have a label twice; it counts once")
    return written


def _marked(table: Table, columns: Sequence[str]) -> Written:
    """Return the names of the columns that hold 1 in each row, in the order of the rows."""
    marks = np.stack([_marks(table, name) for name in columns], axis=1)
    rows, which = np.nonzero(marks)
    return Written(pa.chunked_array([pa.array(columns, pa.string()).take(pa.array(which))]), rows)


def _marks(table: Table, name: str) -> np.ndarray:
    """Return whether each row of a column of 0 and 1 holds 1; it may hold numbers, truth values or texts."""
    column = table.rows.data.column(name)
    if not _can_be_labels(column.type):
        raise DataError(f"{table.source}: data.label_column: {name!r} holds {column.type}, not 0 and 1")
    distinct = pc.unique(column)
    meant = [YES_OR_NO.get(str(value).strip().lower()) for value in distinct.to_pylist()]
    for value, means in zip(distinct.to_pylist(), meant, strict=True):
        if means is None:
            missing = value is None or value != value or not str(value).strip()
            what = "is empty" if missing else f"holds {shown_value(value)}"
            row = int(np.argmax(_equal(column, value)))
            raise DataError(
                f"{table.place(row)}: {name!r} {what}, but a column of label_column wants 0 or 1 in each row: 1 if the "
                "text has the label"
            )
    return np.array(meant, bool)[pc.index_in(column, distinct).to_numpy()]


def _equal(column: pa.ChunkedArray, value: Any) -> np.ndarray:
    """Return which rows hold a value, which may be null or NaN."""
    return np.array([one is value or one == value or (one != one and value != value) for one in column.to_pylist()])


def _lists(table: Table, name: str, separator: str | None) -> pa.Array:
    """Return a list of labels for each row; no list is null."""
    column = table.rows.data.column(name)
    kind = column.type
    if is_string(kind):
        return _lists_of_texts(column, table, separator)
    if not pa.types.is_null(kind) and not (is_list(kind) and _can_be_labels(kind.value_type)):
        raise DataError(
            f"{table.source}: data.label_column: {name!r} holds {kind}, not lists of names or numbers; data.task: "
            "single_label reads one label a text",
            hint="--set data.label_column=NAME names another; [NAME, NAME] names columns of 0 and 1",
        )
    if missing := column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise DataError(
            f"{table.place(row)}: the list of labels is missing ({missing} such row{'s' * (missing > 1)}); write [] if "
            "a text has no label"
        )
    if separator is not None:
        raise DataError(f"{table.source}: data.label_separator: {separator!r}, but {name!r} holds lists; leave it out")
    return column.combine_chunks()


def _can_be_labels(kind: pa.DataType) -> bool:
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return is_number or is_string(kind) or pa.types.is_null(kind)


def _lists_of_texts(column: pa.ChunkedArray, table: Table, separator: str | None) -> pa.Array:
    distinct, found = pc.unique(column), []
    for text in distinct.to_pylist():
        try:
            found.append(_labels_in(text, separator))
        except ValueError as error:
            row = pc.index(column, pa.scalar(text, column.type)).as_py() if text is not None else None
            row = pc.index(column.is_null(), True).as_py() if row is None else row
            raise DataError(f"{table.place(row)}: {one_line(error)}") from None
    at = pc.index_in(column, distinct).combine_chunks()
    return pa.array(found, pa.list_(pa.string())).take(at)


def _labels_in(text: str | None, separator: str | None) -> list[str]:
    """Return the labels in a text; raises `ValueError` with the rule and the value."""
    if text is None:
        empty = "[]" if separator is None else "an empty text"
        raise ValueError(f"the labels are missing; write {empty} if a text has no label")
    text = text.strip()
    if separator is None:
        return _listed(text)
    if not text:
        return []
    if _is_bracketed(text, separator):
        raise ValueError(
            f"{shown_value(text)} looks like a list, but data.label_separator is {separator!r}; leave that out for "
            "JSON lists, or write the labels without brackets and quotes"
        )
    parts = [part.strip() for part in text.split(separator)]
    if not all(map(label_key, parts)):
        raise ValueError(
            f"{shown_value(text)} has an empty label; write {separator!r} only between two labels, and nothing if a "
            "text has no label"
        )
    return parts


def _listed(text: str) -> list[str]:
    if not text:
        raise ValueError("the labels are missing; write [] if a text has no label")
    if not text.startswith("["):
        raise ValueError(
            f'label {shown_value(text)} is not a list; write a JSON list such as ["a", "b"], or set '
            "data.label_separator to what joins the labels of a text"
        )
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):  # ValueError: not JSON, or a number with thousands of digits
        raise ValueError(
            f'{shown_value(text)} is not a JSON list; write it as json.dumps does, with double quotes: ["a", "b"]'
        ) from None
    try:
        labels = [value_text(value, is_text=False) for value in values]
        json.dumps(labels, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text[:SHOWN]!a} holds half a character (a lone surrogate)") from None
    except ValueError as error:
        raise ValueError(f"{shown_value(text)} {error}; write one list of labels for each text") from None
    if not all(label is not None and label_key(label) for label in labels):
        raise ValueError(f"{shown_value(text)} has an empty label; leave it out, and write [] if a text has no label")
    return [label for label in labels if label is not None]


def _is_bracketed(text: str, separator: str) -> bool:
    """Say whether a text is a list, tuple or set as Python prints it, and not a label in brackets."""
    end = BRACKETS.get(text[0])
    if end is None or not text.endswith(end) or end in text[1:-1]:
        return False
    inner = text[1:-1].strip()
    return not inner or separator.strip() in inner or inner[0] in "'\""


def _check_values(written: Written, lists: pa.Array, table: Table) -> None:
    """Raise `DataError` if a list holds null, or a label without a character that is seen."""
    values = written.values
    blank = [one for one in pc.unique(values).to_pylist() if one is None or one != one or not label_key(str(one))]
    if blank:
        row = int(written.rows[np.argmax(_equal(values, blank[0]))])
        raise DataError(
            f"{table.place(row)}: {shown_value(lists[row].as_py())} has an empty label; leave it out, and write [] if "
            "a text has no label"
        )


def _repeating(written: Written) -> int:
    """Return how many texts have a label twice."""
    codes = pc.index_in(written.values, pc.unique(written.values)).to_numpy().astype(np.int64)
    keys, counts = np.unique(written.rows * (codes.max(initial=0) + 1) + codes, return_counts=True)
    return len(np.unique(keys[counts > 1] // (codes.max(initial=0) + 1)))


def _check_not_marks(written: Written, lists: pa.Array, table: Table, name: str) -> None:
    """Raise `DataError` if each list has a 0 or 1 for each label, rather than the labels themselves."""
    lengths = pc.list_value_length(lists)
    texts = {str(value).lower() for value in pc.unique(written.values).to_pylist()}
    if len(pc.unique(lengths)) == 1 and texts <= set(YES_OR_NO):
        raise DataError(
            f"{table.place(0)}: {name!r} holds {shown_value(lists[0].as_py())}, which looks like 0 or 1 for each "
            "label; write the names or numbers of the labels that the text has, or a column of 0 and 1 for each label"
        )


def shown_value(value: Any) -> str:
    """Return a value for an error, cut if it is long."""
    shown = repr(value)
    return shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 1]}…"
