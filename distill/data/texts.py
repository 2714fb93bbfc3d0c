"""Read texts to classify, one by one: the lines of a file or of stdin, or a column of a table."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from distill.data.pairs import Text
from distill.data.tables import READERS, TableFile, check_columns, packed_with, text_lines
from distill.errors import DataError, one_line

log = logging.getLogger("distill")

# Matches a number, a date, a percentage, an amount or nothing; a column of only these does not hold texts.
WORDLESS = r"^[\d\s.,:/+%$€£()-]*(\de[+-]?\d+)?$|^\s*(nan|inf|none|null|n/a|na|true|false)\s*$"


def read_texts(path: str, *columns: str) -> Iterator[Text]:
    """Yield the texts of a file one at a time: the lines of .txt or of stdin ("-"), else a column, or two of pairs.

    Holds at most a few thousand rows in memory and writes no cache. A blank line of .txt is a text too, so that line
    numbers and answers match. A line of a pair has a tab between its texts. Raises `DataError` that names the file and
    the row if a value is not a text.
    """
    if path == "-" or Path(path).suffix.lower() == ".txt":
        yield from _lines(path) if len(columns) == 1 else _line_pairs(path)
        return
    check_file(path, path, also=(".txt", "- (stdin)"))
    table = TableFile(path, dict.fromkeys(columns, "--text-column"), path)
    row = 0
    for batch in table.batches():
        for name in columns if row == 0 else ():
            if complaint := not_texts(batch.column(name)):
                raise DataError(f"{path}: {name!r} {complaint}", hint="--text-column NAME names another")
        for texts in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
            if None in texts:
                check_columns(table.wanted, list(table.column_names), path)
                name = columns[texts.index(None)]
                raise DataError(f"{path}: row {row}: {name} is missing; give it a text, which may be empty")
            yield texts if len(columns) == 2 else texts[0]
            row += 1
    for note in table.notes:
        log.warning("%s", note)


def _lines(path: str) -> Iterator[str]:
    if path == "-" and sys.stdin is None:
        raise DataError("stdin: is closed, so there are no texts to read")
    name = "stdin" if path == "-" else path
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
            yield from text_lines(file, name)
    except OSError as error:
        raise DataError(f"{name}: {error.strerror}") from None


def _line_pairs(path: str) -> Iterator[Text]:
    for number, line in enumerate(_lines(path), 1):
        first, tab, second = line.partition("\t")
        if not tab or "\t" in second:
            raise DataError(f"{path}: line {number}: wants the two texts of a pair with one tab between them")
        yield first, second


def not_texts(column: pa.Array | pa.ChunkedArray) -> str | None:
    """Return in words what a column holds instead of texts; None if it holds texts."""
    if not is_string(column.type):
        return f"holds {column.type}, not text"
    if not len(column):
        return None
    wordless = pc.match_substring_regex(column, WORDLESS, ignore_case=True)
    blank = pc.match_substring_regex(column, r"^\s*$")
    if pc.all(wordless, skip_nulls=True).as_py() and not pc.all(blank, skip_nulls=True).as_py():
        return "holds numbers, not texts"
    return None


def is_string(kind: pa.DataType) -> bool:
    """Say whether a column of this type holds strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def check_file(path: str, place: str, *, also: Sequence[str] = ()) -> None:
    """Raise `DataError` if a file is missing, empty, packed or of an unsupported kind.

    `also` names what the caller reads besides tables, for the message.
    """
    try:
        if Path(path).is_dir():
            raise DataError(f"{place}: a folder, not a file")
        if Path(path).exists() and not Path(path).is_file():
            raise DataError(f"{place}: a device or a pipe, not a file")
        if not Path(path).is_file():
            raise DataError(f"{place}: no such file (relative paths start at the working directory)")
        if Path(path).stat().st_size == 0:
            raise DataError(f"{place}: the file is empty")
        if packed := packed_with(Path(path)):
            raise DataError(f"{place}: packed with {packed}; unpack it first")
    except (OSError, ValueError) as error:  # ValueError: a null in the name
        cause = getattr(error, "strerror", None) or one_line(error)
        raise DataError(f"{place}: cannot be read: {cause}") from None
    if Path(path).suffix.lower() not in READERS:
        raise DataError(f"{place}: not one of {', '.join((*READERS, *also))}")
