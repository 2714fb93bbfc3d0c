"""Read texts and labels as tables, from files, folders or the Hub; refuse packed, damaged or unsafe ones."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import constants

from distill.data.folder import class_names_of, read_folder
from distill.data.tables import LINE, TableFile, check_columns
from distill.data.texts import check_file
from distill.errors import DataError, one_line
from distill.recipe.schema import Data
from distill.storage.files import PARTIAL, read_json, write_json
from distill.storage.hub import ask_hub

log = logging.getLogger("distill")

datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else it tells a server of each file that is read, even a local one
FORMAT = 1  # version of the cached tables; raise it if a reader reads a file differently
NO_AND_YES = (("0", "1"), ("false", "true"), ("no", "yes"))  # classes that 0 and 1 mean in a column of 0 and 1


@dataclass(frozen=True)
class Table:
    """A split as it was read: `rows` with the wanted columns under their own names, and the `source` for errors.

    `column_names` are all columns of the source. `class_names` are there if the type of the label column names its
    classes. `notes` say what may be wrong with rows that were read anyway.
    """

    source: str
    rows: Dataset
    column_names: tuple[str, ...]
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def place(self, row: int) -> str:
        """Return the place of a row for errors: its line if the file consists of lines, else its number from 0."""
        where = f"line {self.rows[row][LINE]}" if LINE in self.rows.column_names else f"row {row}"
        return f"{self.source}: {where}"


def load_tables(data: Data) -> dict[str, Table]:
    """Return the table of each split; raises `DataError` if one cannot be read or lacks a column."""
    if data.files is None:
        return _load_dataset(data)
    files = data.files.model_dump(exclude_none=True)
    return {
        split: _load_file(path, f"data.files.{split}: {path}", _wanted(data, split), _lists(data))
        for split, path in files.items()
    }


def _wanted(data: Data, split: str) -> dict[str, str]:
    labels = () if split == "transfer" else data.label_columns
    return dict.fromkeys(data.text_columns, "data.text_column") | dict.fromkeys(labels, "data.label_column")


def _lists(data: Data) -> tuple[str, ...]:
    """Return the column that may hold lists of labels, if there is one."""
    return data.label_columns if data.has_several_labels and len(data.label_columns) == 1 else ()


def _class_names(named: Mapping[str, Sequence[str]], wanted: Mapping[str, str], source: str) -> tuple[str, ...] | None:
    """Return the class names that belong to the label column, out of those of all columns whose type names classes.

    A column of 0 and 1 needs none. Raises `DataError` if its type gives 0 and 1 another meaning.
    """
    columns = [name for name, key in wanted.items() if key == "data.label_column"]
    if len(columns) == 1:
        return tuple(named[columns[0]]) if columns[0] in named else None
    for name in columns:
        if name in named and tuple(one.strip().lower() for one in named[name]) not in NO_AND_YES:
            raise DataError(
                f"{source}: data.label_column: the type of {name!r} calls its values {', '.join(named[name])}, not 0 "
                "and 1; save it as numbers, with 1 if a text has the label"
            )
    return None


def _load_file(path: str, place: str, wanted: dict[str, str], lists: Collection[str] = ()) -> Table:
    """Return the table in a file from a cache keyed by the file's content, since a name or a date can mislead.

    The columns in `lists` may hold lists.
    """
    check_file(path, place)
    file = TableFile(path, wanted, path, free=lists)
    digest = _digest(path)
    depends = [FORMAT, path, digest, list(wanted), *lists]  # the path, since the cached notes name it
    key = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:32]
    kept = Path(datasets.config.HF_DATASETS_CACHE) / "distill" / key
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=kept.parent) as work:
            (Path(work) / key).mkdir()
            _keep(file, Path(work) / key)
            if _digest(path) != digest:
                raise DataError(f"{place}: has changed while it was read; run this again once the file is complete")
            try:
                (Path(work) / key).rename(kept)
            except OSError:
                if not kept.is_dir():  # else another process was faster, and read the same content
                    raise
    found = read_json(kept / "table.json")
    rows = Dataset.from_file(str(kept / "rows.arrow"))
    rows._fingerprint = key  # datasets keys its caches of derived rows by this
    names = _class_names(found["names"], wanted, path)
    return Table(path, rows, tuple(found["column_names"]), names, tuple(found["notes"]))


def _digest(path: str) -> str:
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _keep(file: TableFile, folder: Path) -> None:
    batches = file.batches()
    first = next(batches, None)
    if first is None:
        raise DataError(f"{file.place}: has no rows")
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)
    found = {"column_names": list(file.column_names), "names": file.names, "notes": file.notes}
    write_json(folder / "table.json", found)


def _load_folder(folder: Path, data: Data) -> dict[str, Table]:
    found = read_folder(folder, data.subset)
    tables = {}
    for split, name in _split_names(data, found.files).items():
        wanted = _wanted(data, split)
        parts = [_load_file(str(path), f"data.dataset: {path}", wanted, _lists(data)) for path in found.files[name]]
        if len({part.class_names for part in parts}) > 1:
            raise DataError(
                f"data.dataset: {folder}: the files of {name} name their classes differently, so their labels mean "
                "different things; give data.files"
            )
        names = parts[0].class_names or _class_names(found.class_names, wanted, str(folder))
        tables[split] = replace(parts[0], class_names=names) if len(parts) == 1 else _joined(parts, folder, name, names)
    return tables


def _joined(parts: list[Table], folder: Path, split: str, names: tuple[str, ...] | None) -> Table:
    """Join the files of a split to one table, without line numbers, since those of different files would mix."""
    try:
        rows = concatenate_datasets([part.rows.select_columns([c for c in part.rows.column_names if c != LINE])
                                     for part in parts])  # fmt: skip
    except ValueError as error:  # columns of different types
        raise DataError(f"data.dataset: {folder}: the files of {split} do not match: {one_line(error)}") from None
    columns = tuple(dict.fromkeys(name for part in parts for name in part.column_names))
    return Table(f"{folder}[{split}]", rows, columns, names, tuple(note for part in parts for note in part.notes))


def _load_dataset(data: Data) -> dict[str, Table]:
    assert data.dataset is not None
    if Path(data.dataset).is_dir():
        return _load_folder(Path(data.dataset), data)
    ask_hub()
    if constants.is_offline_mode():
        datasets.config.HF_HUB_OFFLINE = True
    try:
        loaded = load_dataset(data.dataset, data.subset)
    except (DatasetsError, OSError, ValueError) as error:
        raise DataError(
            f"data.dataset: {data.dataset}: cannot be loaded: {one_line(error)}",
            hint="--set data.files.train=FILE --set data.files.test=FILE uses local files instead",
        ) from error
    return {
        split: _table_of(loaded[name], f"{data.dataset}[{name}]", _wanted(data, split))
        for split, name in _split_names(data, loaded).items()
    }


def _split_names(data: Data, there: Collection[str]) -> dict[str, str]:
    """Map each split of ours to its name in the dataset; raises `DataError` if the dataset lacks one."""
    names = data.splits.model_dump()
    if names["validation"] is None and "validation" in there:
        names["validation"] = "validation"
    for split, name in names.items():
        if name is not None and name not in there:
            raise DataError(f"data.splits.{split}: {data.dataset} has no split {name!r}, only {', '.join(there)}")
    return {split: name for split, name in names.items() if name is not None}


def _table_of(rows: Dataset, source: str, wanted: dict[str, str]) -> Table:
    check_columns(wanted, rows.column_names, source)
    named = {name: names for name in wanted if (names := class_names_of(rows.features[name]))}
    names = _class_names(named, wanted, source)
    return Table(source, rows.select_columns(list(wanted)), tuple(rows.column_names), names)
