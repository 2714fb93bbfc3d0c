"""Write and read a model's logits on the test split, as a Parquet file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distill.errors import FolderError, one_line
from distill.storage.checksums import check_whole
from distill.storage.files import atomic_path

MOST_LOGITS = 10**8  # in one file; a small damaged file can claim any number
LONGEST_ID = 1_000  # bytes; ours are a split's name and a number


def write_predictions(path: Path, example_ids: list[str], gold_labels: np.ndarray, logits: np.ndarray) -> None:
    """Write one row per test example: its id, its gold class and its logits (classes)."""
    table = pa.table(
        {
            "example_id": pa.array(example_ids, pa.string()),
            "gold_label": pa.array(gold_labels, pa.int64()),
            "logits": pa.FixedSizeListArray.from_arrays(
                pa.array(logits.astype(np.float32).ravel()), list_size=logits.shape[1]
            ),
        }
    )
    with atomic_path(path) as partial:
        pq.write_table(table, partial)


def read_predictions(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return example ids, gold classes (examples) and logits (examples, classes).

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
    return table["example_id"].to_pylist(), table["gold_label"].to_numpy(), logits


def _fault_of_layout(file: pq.ParquetFile) -> str | None:
    """What is wrong with the columns or the size of the file, before any row is read."""
    for name, is_right in (
        ("example_id", lambda kind: pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type)),
        ("gold_label", pa.types.is_int64),
        ("logits", lambda kind: pa.types.is_fixed_size_list(kind) and pa.types.is_float32(kind.value_type)),
    ):
        if file.schema_arrow.get_field_index(name) < 0 or not is_right(file.schema_arrow.field(name).type):
            return f"no column {name} of its type"
    rows, classes = file.metadata.num_rows, file.schema_arrow.field("logits").type.list_size
    return f"{rows} rows of {classes} logits" if rows * classes > MOST_LOGITS else None
