"""Read tables of texts row by row, exactly as they are written: csv, tsv, json, jsonl, Parquet and Arrow.

Nothing is guessed: a label is read literally, and a row that does not fit its header is an error with its line.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distill.errors import DataError, one_line
from distill.recipe.labels import WHOLE, label_key

ROWS_AT_ONCE = 1_000
FEW_ROWS = 16  # instead, if a few bytes of the file can repeat a long text in each row (delta encoding)
# A column of a row group is refused if it unpacks to more bytes than this and to more than this many times its size
# in the file. Texts never do.
MOST_UNPACKED, UNPACKED_TIMES = 2**27, 100
BYTES_AT_ONCE = 2**24  # of texts; a batch of long texts has fewer rows
LONGEST_FIELD = 2**31 - 1  # characters; the csv module's default of 131,072 is too short for some texts
MANY_LINES = 20  # in one row: more than most texts have, so perhaps a stray quote has swallowed rows
MOST_KNOWN, LONGEST_EDGE = 10_000, 200  # to recognize a row: remembered values of a column, compared characters
SEPARATORS = {",": ".csv", "\t": ".tsv", ";": None, "|": None}
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
SURROGATE = re.compile("[\ud800-\udfff]")
# The first bytes of packed files, which are refused: unpacked, they could be anything.
PACKED = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"\x04\x22\x4d\x18": "lz4",
}  # fmt: skip
TEXT_KEYS = ("data.text_column", "--text-column")  # settings that name a column of texts
LISTS_ARE_LABELS = "data.task: multi_label reads a list as the labels of a text"
LINE = "distill.line"  # column with the line on which each row begins; only for files that consist of lines

Row = tuple[int, Sequence[Any]]  # the line on which it begins, and the value of each wanted column


@dataclass
class TableFile:
    """A file, the columns wanted from it, and what is found while it is read.

    `column_names` are all columns of the file. `names` has the class names of each column whose type names its classes.
    `notes` say what may be wrong with rows that were read anyway.
    """

    path: str
    wanted: Mapping[str, str]  # column to the setting that names it; first the texts, then perhaps the labels
    place: str  # the file, as errors name it
    unit: str = "line"  # what errors count: lines or rows
    separator: str = ","
    free: Collection[str] = ()  # columns that may hold anything; a text format gives lists and objects as JSON
    column_names: dict[str, None] = field(default_factory=dict)  # in order
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the wanted columns in batches of at most `ROWS_AT_ONCE` rows, with LINE if the file consists of lines.

        A batch of Parquet or Arrow also has at most about `BYTES_AT_ONCE` of texts. Text formats give strings (null for
        a missing value); the other formats give the types that they hold. Raises `DataError` with the line or row, the
        rule and the cure.
        """
        yield from READERS[Path(self.path).suffix.lower()](self)

    def names_there(self) -> list[str]:
        """Return the names of all columns; nothing has to be wanted. In json, any row may bring another one."""
        batches = self.batches()
        next(batches, None)
        if Path(self.path).suffix.lower() in (".json", ".jsonl"):
            for _ in batches:
                pass
        return list(self.column_names)


def check_columns(wanted: Mapping[str, str], there: Sequence[str], place: str) -> None:
    """Raise `DataError` if a wanted column is missing or is there twice."""
    for name, key in wanted.items():
        if name not in there:
            cure = f"--set {key}=NAME" if key.startswith("data.") else f"{key} NAME"
            raise DataError(f"{place}: {key}: no column {name!r}, only {_some(there)}", hint=f"{cure} names another")
        if there.count(name) > 1:
            raise DataError(f"{place}: {key}: column {name!r} is there twice; rename one of them")


def packed_with(path: Path) -> str | None:
    """Return what a file is packed with, judged by its first bytes; None if it is not packed."""
    with open(path, "rb") as file:
        beginning = file.read(8)
    return next((kind for magic, kind in PACKED.items() if beginning.startswith(magic)), None)


def text_lines(file: Iterable[bytes], name: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, without line ends and without a byte-order mark.

    Raises `DataError` with the line that is not UTF-8.
    """
    for number, line in enumerate(file, 1):
        if number == 1:
            _check_utf_8(line, name)
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise _not_utf_8(name, number, error) from None


def _read_csv(table: TableFile) -> Iterator[pa.RecordBatch]:
    with _decoded(table) as file:
        yield from _as_batches(_csv_rows(file, table), table)


def _read_tsv(table: TableFile) -> Iterator[pa.RecordBatch]:
    table.separator = "\t"
    yield from _read_csv(table)


def _csv_rows(file: IO[str], table: TableFile) -> Iterator[Row]:
    """Yield the rows of a csv file (RFC 4180), or of a tsv file with the same quoting."""
    csv.field_size_limit(LONGEST_FIELD)
    first_line = next(file, "")
    _check_separator(first_line, table)
    reader = csv.reader(itertools.chain([first_line], file), delimiter=table.separator, strict=True)
    header = next((row for _, row in _csv_records(reader, table) if row), [])
    while len(header) > 1 and not header[-1].strip():  # commas at the end of each line
        header.pop()
    table.column_names = dict.fromkeys(header)
    check_columns(table.wanted, header, table.place)
    at = [header.index(name) for name in table.wanted]
    labels = [header.index(name) for name, key in table.wanted.items() if key not in TEXT_KEYS]
    watch = _Swallowed(table, at[0], labels[0] if labels else None, len(header)) if at else None
    for line, row in _csv_records(reader, table):
        if not row or (len(row) == 1 < len(header) and not row[0].strip()):  # a blank line
            continue
        while len(row) > len(header) and not row[-1].strip():
            row.pop()
        _check_width(row, header, line, table)
        if watch:
            watch.see(row, line, lines=reader.line_num - line + 1)
        yield line, [row[index] for index in at]
    if watch:
        watch.end()


class _Swallowed:
    """Detects rows that a stray quote has swallowed: one quote opens a field, and another closes it some rows below.

    The lines of such a field are rows. So a line has, after its text (or before it, if the text is the last column), a
    label that other rows have too. If no label is read, or the label is on the other side, a line has known values in
    most of the columns on this side.
    """

    def __init__(self, table: TableFile, text: int, label: int | None, width: int):
        self.table, self.text = table, text
        self.is_last = text == width - 1
        self.others = range(text) if self.is_last else range(text + 1, width)
        self.label = label
        self.known: dict[int, set[str]] = {column: set() for column in self.others}
        self.written: dict[int, set[str]] = {column: set() for column in self.others}
        self.suspects: list[tuple[int, int, list[list[list[str]]]]] = []
        self.long: list[int] = []  # the first lines of rows of many lines

    def see(self, row: Sequence[str], line: int, lines: int) -> None:
        """Look at a row that begins on `line` and has so many `lines`."""
        if lines > MANY_LINES:
            self.long.append(line)
        if lines == 1:
            for column, written in self.written.items():
                if row[column] not in written and len(written) < MOST_KNOWN:
                    written.add(row[column])
                    self.known[column].add(_alike(row[column]))
            return
        inner = row[self.text].splitlines()
        inner = inner[1:] if self.is_last else inner[:-1]
        if readings := [self._values_of(one) for one in inner if one.strip()]:
            self.suspects.append((line, lines, readings))

    def end(self) -> None:
        """Raise `DataError` for the first field that holds rows; else note the rows of many lines."""
        for line, lines, readings in self.suspects:
            if 2 * sum(any(map(self._is_row, ways)) for ways in readings) >= len(readings):
                raise DataError(
                    f"{self.table.place}: line {line}: a quote opens a field here that runs on for {lines} lines and "
                    'swallows the rows below; put the text in quotes and write each quote within it twice ("")'
                )
        if self.long:
            self.table.notes.append(
                f"{self.table.place}: rows of more than {MANY_LINES} lines: {len(self.long)}, the first from "
                f"line {self.long[0]}; check whether a stray quote opens a field there and swallows the rows below"
            )

    def _values_of(self, line: str) -> list[list[str]]:
        """Return the values of the other columns if a line were a row: as it is, and without separators at its end."""
        separator, count = self.table.separator, len(self.others)
        found = []
        for one in {line, line.rstrip(separator + " ")}:
            parts = [part.strip('"') for part in one.split(separator)]
            if len(parts) > count > 0:
                found.append(parts[:count] if self.is_last else parts[-count:])
        return found

    def _is_row(self, values: Sequence[str]) -> bool:
        by_column = dict(zip(self.others, values, strict=True))
        if self.label in by_column:
            return self._is_known(self.label, by_column[self.label])
        return 2 * sum(self._is_known(*item) for item in by_column.items()) > len(values)

    def _is_known(self, column: int, value: str) -> bool:
        if not value.strip():
            return False
        # In prose a space follows a comma. So a value that begins with a space counts only if other rows have it too.
        return value in self.written[column] if value[0].isspace() else _alike(value) in self.known[column]


def _alike(value: str) -> str:
    """Return a key that is equal for spellings of one label (see recipe.labels), or if long values begin alike."""
    key = label_key(value[:LONGEST_EDGE])
    return found[1] if (found := WHOLE.fullmatch(key)) else key


def _csv_records(reader: Any, table: TableFile) -> Iterator[tuple[int, list[str]]]:
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                problem = "a quote opens a field here that is never closed"
            elif "expected after" in str(error):
                problem = (
                    f"a quote opens a field here, and text follows the quote that closes it (line {reader.line_num})"
                )
            else:
                raise DataError(f"{table.place}: line {line}: {error}") from None
            cure = 'put the text in quotes and write each quote within it twice ("")'
            raise DataError(f"{table.place}: line {line}: {problem}; {cure}") from None
        yield line, row


def _check_separator(first_line: str, table: TableFile) -> None:
    """Raise `DataError` if the first line is a header with the wanted columns, but with another separator."""
    if table.separator in first_line:
        return
    for separator, suffix in SEPARATORS.items():
        names = {name.strip().strip('"') for name in first_line.split(separator)}
        if separator in first_line and set(table.wanted) <= names:
            cure = f"name it {suffix}, or save it" if suffix else "save it"
            raise DataError(
                f"{table.place}: line 1: separated by {separator!r}, not {table.separator!r}; "
                f"{cure} with {'tabs' if table.separator == chr(9) else 'commas'}"
            )


def _check_width(row: list[str], header: list[str], line: int, table: TableFile) -> None:
    if len(row) == len(header):
        return
    has = f"{len(row)} field{'s' * (len(row) > 1)}, but the header has {len(header)} ({_some(header)})"
    what = "tabs" if table.separator == "\t" else "commas"
    if len(row) > len(header):
        cure = f"put a text that holds {what} in quotes, or name every column in the header"
    else:
        cure = "put a text that holds line breaks in quotes, or fill in what the row lacks"
    raise DataError(f"{table.place}: line {line}: {has}; {cure}")


def _read_json_lines(table: TableFile) -> Iterator[pa.RecordBatch]:
    with open(table.path, "rb") as file:
        lines = enumerate(text_lines(file, table.place), 1)
        objects = ((number, _parsed(line, f"{table.place}: line {number}")) for number, line in lines if line.strip())
        yield from _as_batches(_object_rows(objects, table), table)


def _read_json(table: TableFile) -> Iterator[pa.RecordBatch]:
    """Read a list of objects, or an object of lists of one length; a file of several objects is read as jsonl."""
    with _decoded(table) as file:
        text = file.read()
    try:
        found = _parsed(text, table.place)
    except _ExtraData:
        yield from _read_json_lines(table)
        return
    del text
    if isinstance(found, dict) and found and all(isinstance(column, list) for column in found.values()):
        if len({len(column) for column in found.values()}) > 1:
            raise DataError(f"{table.place}: its lists have different lengths, so they are not the columns of a table")
        found = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
    table.unit = "row"
    yield from _as_batches(_object_rows(enumerate(found if isinstance(found, list) else [found]), table), table)


def _object_rows(objects: Iterable[tuple[int, Any]], table: TableFile) -> Iterator[Row]:
    texts = {name for name, key in table.wanted.items() if key in TEXT_KEYS}
    for number, one in objects:
        place = f"{table.place}: {table.unit} {number}"
        if not isinstance(one, dict):
            raise DataError(f"{place}: {_kind(one)}, not an object with keys and values")
        table.column_names |= dict.fromkeys(one)
        row = []
        for name in table.wanted:
            value = one.get(name)
            try:
                if name in table.free and isinstance(value, dict | list):
                    value = json.dumps(value)
                row.append(value_text(value, is_text=name in texts and name not in table.free))
            except ValueError as error:
                is_label = isinstance(value, list) and table.wanted[name] == "data.label_column"
                cure = f"; {LISTS_ARE_LABELS}" if is_label else ""
                raise DataError(f"{place}: {name!r} {error}{cure}") from None
        yield number, row
    check_columns(table.wanted, list(table.column_names), table.place)


def value_text(value: Any, *, is_text: bool) -> str | None:
    """Return a JSON value as text; only a label may be a number or a truth value. Raises `ValueError`."""
    if value is None or isinstance(value, str):
        return value
    if is_text or not isinstance(value, bool | int | float):
        raise ValueError(f"holds {_kind(value)}, not {'text' if is_text else 'a number or a name'}")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return None if value != value else str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return str(value)


class _ExtraData(DataError):
    """More JSON follows the first value of a file, so it may be jsonl."""


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        kind = _ExtraData if error.msg == "Extra data" and "{" in text[error.pos : error.pos + 9] else DataError
        where = f"{place}: column {error.colno}" if error.lineno == 1 else f"{place}: line {error.lineno}"
        raise kind(f"{where}: not JSON: {error.msg}") from None
    except RecursionError:
        raise DataError(f"{place}: JSON that is nested too deeply") from None
    except ValueError as error:  # a key twice, thousands of digits
        raise DataError(f"{place}: {one_line(error)}") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise ValueError(f"an object has the key {twice!r} twice")
    return found


def _read_parquet(table: TableFile) -> Iterator[pa.RecordBatch]:
    with _reading(table, "parquet"):
        with pq.ParquetFile(table.path) as file:
            _check_footer(file, table)
            chunks = _chunks(file, table.wanted)
        _check_unpacked(chunks, table)
        rows = FEW_ROWS if _prefixed(chunks) else ROWS_AT_ONCE
        # Keep repeated texts as a dictionary, as in the file: a file of 300 bytes can hold 400 MB of texts.
        with pq.ParquetFile(table.path, read_dictionary=_repeated(chunks)) as file:
            _note_schema(file.schema_arrow, table)
            yield from _checked(file.iter_batches(rows, columns=list(table.wanted)), table)


def _read_arrow(table: TableFile) -> Iterator[pa.RecordBatch]:
    with _reading(table, "arrow"), pa.memory_map(table.path) as file:
        try:
            reader = pa.ipc.open_stream(file)
            batches: Iterable[pa.RecordBatch] = reader
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(file)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        _note_schema(reader.schema, table)
        small = (
            batch.select(list(table.wanted)).slice(start, ROWS_AT_ONCE)
            for batch in batches
            for start in range(0, batch.num_rows, ROWS_AT_ONCE)
        )
        yield from _checked(small, table)


class _NoPages(io.FileIO):
    """A Parquet file of which only the footer, from byte `pages` on, can be read; `Unread` is raised before."""

    class Unread(OSError): ...

    def __init__(self, path: str, pages: int) -> None:
        super().__init__(path)
        self.pages = pages

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() < self.pages:
            raise self.Unread
        return super().read(size)


def _check_footer(file: pq.ParquetFile, table: TableFile) -> None:
    """Raise `OSError` if the metadata on a wanted column is damaged.

    `row_group.column` would end the process then: pyarrow catches what its C++ code raises there only while it reads.
    So each column of each row group is read, up to its first page.
    """
    pages = Path(table.path).stat().st_size - file.metadata.serialized_size - 8
    with _NoPages(table.path, pages) as source, pq.ParquetFile(source, metadata=file.metadata) as footer:
        for group in range(file.num_row_groups):
            for name in set(table.wanted) & set(file.schema_arrow.names):
                with suppress(_NoPages.Unread):
                    next(footer.iter_batches(1, row_groups=[group], columns=[name]), None)


def _chunks(file: pq.ParquetFile, wanted: Collection[str]) -> list[Any]:
    """Return the file's metadata on each wanted column of each row group."""
    names = [file.schema.column(index).path.partition(".")[0] for index in range(len(file.schema))]
    groups = map(file.metadata.row_group, range(file.num_row_groups))
    return [group.column(index) for group in groups for index, name in enumerate(names) if name in wanted]


def _check_unpacked(chunks: Iterable[Any], table: TableFile) -> None:
    """Raise `DataError` if a small file unpacks to a huge one, since pyarrow unpacks a page as a whole."""
    for chunk in chunks:
        size, unpacked = max(1, chunk.total_compressed_size), chunk.total_uncompressed_size
        if unpacked > MOST_UNPACKED and unpacked > UNPACKED_TIMES * size:
            raise DataError(
                f"{table.place}: {chunk.path_in_schema!r} unpacks from {size} bytes to {unpacked}, which "
                "texts do not; if they are texts, save them without compression"
            )


def _repeated(chunks: Sequence[Any]) -> list[str]:
    """Return the columns that store a repeated value once (dictionary encoding)."""
    found = {chunk.path_in_schema for chunk in chunks if any("DICTIONARY" in name for name in chunk.encodings)}
    return sorted(found - set(_prefixed(chunks)))


def _prefixed(chunks: Iterable[Any]) -> list[str]:
    """Return the delta-encoded columns, which store what a value shares with the one before; pyarrow expands them."""
    return [chunk.path_in_schema for chunk in chunks if "DELTA_BYTE_ARRAY" in chunk.encodings]


def _note_schema(schema: pa.Schema, table: TableFile) -> None:
    table.column_names = dict.fromkeys(schema.names)
    check_columns(table.wanted, schema.names, table.place)
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        labels = {name: found for name in table.wanted if (found := _class_names(features[name]))}
    except (ValueError, LookupError, TypeError, RecursionError):  # not written by datasets, so there are no class names
        return
    table.names = {
        name: tuple(names) for name, names in labels.items()
        if isinstance(names, list) and all(isinstance(one, str) for one in names)
    }  # fmt: skip


def _class_names(feature: Any) -> Any:
    """Return the class names that a feature of datasets has, itself or in a list; None if it has none."""
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
        return feature["names"]
    return _class_names(feature["feature"]) if isinstance(feature, dict) and "feature" in feature else None


def _checked(batches: Iterable[pa.RecordBatch], table: TableFile) -> Iterator[pa.RecordBatch]:
    """Yield batches without dictionaries, after a check that strings are UTF-8; their files may hold any bytes."""
    for batch in (part for whole in batches for part in _parts(whole.select(list(table.wanted)))):
        columns = [_plain(batch.column(name)) for name in table.wanted]
        for name, column in zip(table.wanted, columns, strict=True):
            try:
                column.validate(full=True)
            except pa.ArrowException as error:
                raise DataError(f"{table.place}: {name!r} is damaged or not UTF-8: {one_line(error)}") from None
        yield pa.record_batch(columns, list(table.wanted))


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch into parts of about `BYTES_AT_ONCE`, or one row, as they are with the dictionaries expanded."""
    sizes = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and len(column.dictionary) and _is_text(column.type.value_type):
            lengths = pc.binary_length(column.dictionary.cast(pa.large_binary())).to_numpy(zero_copy_only=False)
            if not len(lengths) or np.nanmax(lengths) * batch.num_rows <= BYTES_AT_ONCE // len(batch.columns):
                continue
            sizes += np.nan_to_num(lengths)[column.indices.fill_null(0).to_numpy(zero_copy_only=False)].astype(np.int64)
    if sizes.sum() <= BYTES_AT_ONCE:
        yield batch
        return
    start, total = 0, 0
    for row, size in enumerate(sizes.tolist()):
        if total and total + size > BYTES_AT_ONCE:
            yield batch.slice(start, row - start)
            start, total = row, 0
        total += size
    if start < batch.num_rows:
        yield batch.slice(start)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _plain(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if is_list(column.type) and pa.types.is_dictionary(column.type.value_type):
        column = column.cast(pa.list_(column.type.value_type.value_type))
    return column.cast(pa.string()) if pa.types.is_string_view(column.type) else column


def is_list(kind: pa.DataType) -> bool:
    """Say whether a column of this type holds lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


@contextmanager
def _reading(table: TableFile, kind: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise DataError(f"{table.place}: cannot be read as {kind}: {one_line(error)}") from error


@contextmanager
def _decoded(table: TableFile) -> Iterator[IO[str]]:
    """Open a file as UTF-8 text; if it is not, raise `DataError` with the first line that is not."""
    with open(table.path, "rb") as raw:
        _check_utf_8(raw.read(400), table.place)
    with open(table.path, encoding="utf-8-sig", newline="") as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            with open(table.path, "rb") as raw:
                for _ in text_lines(raw, table.place):
                    pass
            raise _not_utf_8(table.place, 1, error) from None


def _check_utf_8(beginning: bytes, place: str) -> None:
    """Raise `DataError` if a file begins like UTF-16: with its byte-order mark, or with a null for each letter."""
    if beginning.startswith(UTF_16) or beginning.count(0) > max(4, len(beginning) / 3):
        raise DataError(f"{place}: line 1: UTF-16, not UTF-8; save the file as UTF-8")


def _not_utf_8(place: str, line: int, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start]
    return DataError(f"{place}: line {line}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8")


def _as_batches(rows: Iterator[Row], table: TableFile) -> Iterator[pa.RecordBatch]:
    while chunk := list(itertools.islice(rows, ROWS_AT_ONCE)):
        columns = [[row[index] for _, row in chunk] for index in range(len(table.wanted))]
        try:
            arrays = [pa.array(column, pa.string()) for column in columns]
        except (UnicodeEncodeError, pa.ArrowException):  # half of a surrogate pair, which JSON can express
            number = next(number for number, row in chunk if any(SURROGATE.search(value or "") for value in row))
            raise DataError(
                f"{table.place}: {table.unit} {number}: holds half a character (a lone surrogate)"
            ) from None
        names = list(table.wanted)
        if table.unit == "line":
            names, arrays = [*names, LINE], [*arrays, pa.array([number for number, _ in chunk], pa.int64())]
        yield pa.record_batch(arrays, names)


def _kind(value: Any) -> str:
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


def _some(names: Iterable[str], most: int = 10) -> str:
    shown = [name[:50] for name in itertools.islice(names, most + 1)]
    return ", ".join([*shown[:most], *(["..."] if len(shown) > most else [])])


READERS: dict[str, Callable[[TableFile], Iterator[pa.RecordBatch]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
