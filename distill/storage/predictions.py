"""Write and read a model's logits on the test split, as a Parquet file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distill.decisions import Thresholds
from distill.errors import FolderError, one_line
from distill.storage.checksums import check_whole
from distill.storage.files import atomic_path

THRESHOLDS = b"label_thresholds"  # in the file's metadata
MOST_LOGITS = 10**8  # in one file; a small damaged file can claim any number
LONGEST_ID = 1_000  # bytes; ours are a split's name and a number


class Predictions(NamedTuple):
    """A model's predictions on the test split.

    `gold_labels` are classes (examples,) and `thresholds` None, or (examples, labels) of 0 and 1 and the probability
    from which on each label is answered; `logits` is float32 (examples, classes).
    """

    example_ids: list[str]
    gold_labels: np.ndarray
    logits: np.ndarray
    thresholds: tuple[float, ...] | None


def write_predictions(
    path: Path, example_ids: list[str], gold_labels: np.ndarray, logits: np.ndarray, thresholds: Thresholds = None
) -> None:
    """Write one row per test example: its id, its gold class (or labels) and its logits (see `Predictions`)."""
    gold = pa.array(gold_labels, pa.int64()) if thresholds is None else _lists(gold_labels.astype(np.int8))
    columns = {"example_id": pa.array(example_ids, pa.string()), "gold_label": gold}
    table = pa.table({**columns, "logits": _lists(logits.astype(np.float32))})
    if thresholds is not None:
        table = table.replace_schema_metadata({THRESHOLDS: json.dumps(list(map(float, thresholds)))})
    with atomic_path(path) as partial:
        pq.write_table(table, partial)


def _lists(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), list_size=values.shape[1])


def read_predictions(path: Path) -> Predictions:
    """Return what `write_predictions` wrote.

    Raises `FolderError` if the file is missing, is damaged, or is not as `write_predictions` leaves it.
    """
    check_whole(path.parent, (path.name,))
    if not path.is_file():
        raise FolderError(f"{path}: no such file, or not a regular file")
    not_ours = f"{path}: not as distill writes it"
    try:
        # As a dictionary: a small damaged file can repeat one huge id in every row.
        with pq.ParquetFile(path, read_dictionary=["example_id"]) as file:
            if fault := _fault_of_layout(file):
                raise FolderError(f"{not_ours}: {fault}")
            table = file.read(["example_id", "gold_label", "logits"])
            thresholds = _thresholds(file, not_ours)
    except KeyError:  # from read_dictionary
        raise FolderError(f"{not_ours}: no column example_id") from None
    except (OSError, pa.ArrowException) as error:
        raise FolderError(f"{path}: cannot be read: {one_line(error)}") from None
    lengths = (pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0 for chunk in table["example_id"].chunks)
    if max(lengths, default=0) > LONGEST_ID:
        raise FolderError(f"{not_ours}: an example_id that is too long")
    if any(table[name].null_count for name in table.column_names):
        raise FolderError(f"{not_ours}: an empty value")
    logits = np.stack(table["logits"].to_numpy()) if len(table) else np.zeros((0, 1), np.float32)
    gold = table["gold_label"]
    gold_labels = gold.to_numpy() if thresholds is None else np.stack([*gold.to_numpy()]).astype(np.uint8)
    return Predictions(table["example_id"].to_pylist(), gold_labels, logits, thresholds)


def _thresholds(file: pq.ParquetFile, not_ours: str) -> tuple[float, ...] | None:
    """Return the thresholds in the file's metadata; None if a text has one label."""
    classes = file.schema_arrow.field("logits").type.list_size
    if pa.types.is_int64(file.schema_arrow.field("gold_label").type):
        return None
    try:
        found = json.loads((file.schema_arrow.metadata or {})[THRESHOLDS])
        thresholds = tuple(map(float, found))
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
        raise FolderError(f"{not_ours}: no thresholds of its labels") from None
    if len(thresholds) != classes or not all(0 < one < 1 for one in thresholds) or not file.metadata.num_rows:
        raise FolderError(f"{not_ours}: thresholds that are not {classes} numbers between 0 and 1")
    return thresholds


def _fault_of_layout(file: pq.ParquetFile) -> str | None:
    """What is wrong with the columns or the size of the file, before any row is read."""
    for name, is_right in (
        ("example_id", lambda kind: pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type)),
        ("gold_label", lambda kind: pa.types.is_int64(kind) or _is_lists_of(kind, pa.int8())),
        ("logits", lambda kind: _is_lists_of(kind, pa.float32())),
    ):
        if file.schema_arrow.get_field_index(name) < 0 or not is_right(file.schema_arrow.field(name).type):
            return f"no column {name} of its type"
    gold = file.schema_arrow.field("gold_label").type
    rows, classes = file.metadata.num_rows, file.schema_arrow.field("logits").type.list_size
    if pa.types.is_fixed_size_list(gold) and gold.list_size != classes:
        return f"gold labels of {gold.list_size} classes, and logits of {classes}"
    return f"{rows} rows of {classes} logits" if rows * classes > MOST_LOGITS else None


def _is_lists_of(kind: pa.DataType, value: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind) and kind.value_type == value
