"""Where texts come from, as tables: files, folders, the Hub; what is packed, damaged or leads elsewhere is refused."""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from distill.errors import DataError, one_line
from distill.recipe import Data

datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it would tell a server of each file that is read, local ones too
READERS = {
    ".csv": ("csv", {"keep_default_na": False}),  # a review that says "NA" or "null" is a text, not a hole
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
}


# How files begin that hold others: read as they are they are no text, and unpacked they can be anything.
PACKED = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"\x04\x22\x4d\x18": "lz4",
}  # fmt: skip


def load_tables(data: Data) -> dict[str, tuple[str, Dataset]]:
    """Return each split's source, as errors name it, and its table; raises `DataError` where one cannot be read."""
    return _load_files(data) if data.files else _load_dataset(data)


def read_texts(path: str, text_column: str) -> Iterator[str]:
    """Yield the texts of a file, one at a time: lines of .txt or of stdin ("-"), else the column `text_column`.

    Holds a few thousand rows at once, whatever the size of the file. A blank line is a text too, so that answers and
    lines stay in step. Raises `DataError` naming the file and the row where something is no text.
    """
    if path == "-":
        try:
            yield from _lines(sys.stdin.buffer, "stdin")
        except OSError as error:
            raise DataError(f"stdin: {error.strerror}") from None
        return
    if Path(path).suffix.lower() == ".txt":
        try:
            with open(path, "rb") as file:
                yield from _lines(file, path)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None
        return
    rows = _read_file(path, "file")
    column_of(rows, text_column, "--text-column", path)
    row = 0
    for batch in rows.select_columns([text_column]).iter(batch_size=1_000):
        for text in batch[text_column]:
            if not isinstance(text, str):
                raise DataError(f"{path}: row {row}: {text_column} holds {text!r}, not a text")
            yield text
            row += 1


def _lines(file: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: line {number}: not UTF-8 ({error.reason})") from None


def column_of(table: Dataset, column: str, key: str, source: str) -> pa.ChunkedArray:
    """A column that is there and holds what its type says: a parquet file may hold any bytes for a string."""
    if column not in table.column_names:
        names = [name[:50] for name in table.column_names[:10]] + ["..."] * (len(table.column_names) > 10)
        cure = f"--set {key}=NAME" if key.startswith("data.") else f"{key} NAME"
        raise DataError(f"{source}: {key}: no column {column!r}, only {', '.join(names)}", hint=f"{cure} names another")
    found = table.data.column(column)
    try:
        found.validate(full=True)
    except pa.ArrowException as error:
        raise DataError(f"{source}: {key}: {column!r} is damaged or not UTF-8: {one_line(error)}") from None
    return found


def _load_files(data: Data) -> dict[str, tuple[str, Dataset]]:
    assert data.files is not None
    return {split: (path, _read_file(path, split)) for split, path in data.files.model_dump(exclude_none=True).items()}


def _read_file(path: str, split: str) -> Dataset:
    place = "" if split == "file" else f"data.files.{split}: "
    suffix = Path(path).suffix.lower()
    try:
        if not Path(path).is_file():
            raise DataError(f"{place}{path}: no such file (relative paths start at the working directory)")
        is_empty = Path(path).stat().st_size == 0
        packed = _packed(Path(path))
    except (OSError, ValueError) as error:  # the second: a name with a null in it
        cause = getattr(error, "strerror", None) or one_line(error)
        raise DataError(f"{place}{path}: cannot be read: {cause}") from None
    if is_empty:
        raise DataError(f"{place}{path}: the file is empty")
    if packed:
        raise DataError(f"{place}{path}: packed with {packed}; unpack it first")
    if suffix not in READERS:
        raise DataError(f"{place}{path}: not one of {', '.join(READERS)}")
    reader, options = READERS[suffix]
    try:
        # datasets takes a name with brackets or stars for a pattern of names.
        table = load_dataset(reader, data_files={split: glob.escape(path)}, split=split, **options)
    except (DatasetsError, OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        if "corresponds to no data" in str(error):
            raise DataError(f"{place}{path}: has no rows") from error
        cause = error.__cause__ or error
        raise DataError(f"{place}{path}: cannot be read as {suffix[1:]}: {one_line(cause)}") from error
    assert isinstance(table, Dataset)
    return table


def _load_dataset(data: Data) -> dict[str, tuple[str, Dataset]]:
    assert data.dataset is not None
    if Path(data.dataset).is_dir():
        _check_folder(Path(data.dataset))
    try:
        loaded = load_dataset(data.dataset, data.subset)
    except (DatasetsError, OSError, ValueError) as error:
        raise DataError(
            f"data.dataset: {data.dataset}: cannot be loaded: {one_line(error)}",
            hint="--set data.files.train=FILE --set data.files.test=FILE uses local files instead",
        ) from error
    names = data.splits.model_dump()
    if names["validation"] is None and "validation" in loaded:
        names["validation"] = "validation"
    for split, name in names.items():
        if name is not None and name not in loaded:
            raise DataError(f"data.splits.{split}: {data.dataset} has no split {name!r}, only {', '.join(loaded)}")
    return {split: (f"{data.dataset}[{name}]", loaded[name]) for split, name in names.items() if name is not None}


def _check_folder(folder: Path) -> None:
    """Refuse a folder of data that would make datasets read elsewhere, ask a server or unpack an archive."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if not path.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"data.dataset: {folder}: {inside} is a link to a place outside it; give data.files")
        if path.is_file() and _packed(path):
            raise DataError(f"data.dataset: {folder}: {inside} is packed with {_packed(path)}; unpack it first")
    for name in ("README.md", ".huggingface.yaml"):
        card = folder / name
        for place in _places(card) if card.is_file() else ():
            if re.match(r"[/~\\]|\w+:", place) or "::" in place or ".." in re.split(r"[/\\]", place):
                raise DataError(f"data.dataset: {folder}: its {name} names data outside it: {place}; give data.files")


def _places(card: Path) -> Iterator[str]:
    """The files and folders that a data set's card says it consists of."""
    text = card.read_text(encoding="utf-8", errors="replace")
    head = text.split("---")[1] if card.suffix == ".md" and text.startswith("---") else text
    try:
        inner = [YAML(typ="safe", pure=True).load(head) if card.suffix != ".md" or head is not text else None]
    except (YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"data.dataset: {card}: {one_line(error)}; give data.files") from None
    while inner:
        one = inner.pop()
        if isinstance(one, dict):
            for key, value in one.items():
                named = value if isinstance(value, list) else [value]
                if key in ("data_files", "data_dir", "path"):
                    yield from (place for place in named if isinstance(place, str))
                inner += [part for part in named if isinstance(part, dict | list)]
        elif isinstance(one, list):
            inner += one


def _packed(path: Path) -> str | None:
    with open(path, "rb") as file:
        beginning = file.read(8)
    return next((kind for magic, kind in PACKED.items() if beginning.startswith(magic)), None)
