"""A recipe's data section to labelled splits, each row with a stable example id; splits to token ids."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from distill.errors import DataError
from distill.recipe import Data
from distill.sources import column_of, load_tables

MOST = 2.0**53  # up to here whole numbers are themselves as floating-point ones
MOST_CLASSES_OF_ONE_TEXT = 100
SPLITS = ("train", "validation", "test", "transfer")


@dataclass(frozen=True)
class Splits:
    """Train, validation and test with columns example_id ("train/17"), text and label; class names in label order.

    `transfer` has texts without labels, for the teacher to label. `leaks` counts what was dropped from train and
    transfer because it stands in validation or test too.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    label_names: tuple[str, ...]
    transfer: Dataset | None = None
    leaks: Mapping[str, int] = field(default_factory=dict)

    def fingerprints(self) -> dict[str, str]:
        """Return a SHA-256 of the texts (and labels) of each split, for manifests."""
        labelled = {name: getattr(self, name) for name in ("train", "validation", "test")}
        prints = {name: _digest(rows, ["text", "label"]) for name, rows in labelled.items()}
        return prints | ({"transfer": _digest(self.transfer, ["text"])} if self.transfer is not None else {})


def load_splits(data: Data) -> Splits:
    """Return the splits that `data` describes: loaded, checked, sampled, and validation carved out where it is missing.

    A text that stands in validation or test too, but for case and white space, is dropped from train and transfer.
    Samples are taken as shuffle with the seed, then the first N; the validation split is then carved out of the sampled
    train rows, stratified by label, so `train_samples` is all the labelled text that a run may see besides test.
    Raises `DataError` naming the file or split, the rule and the value.
    """
    tables = load_tables(data)
    texts = {split: _texts(table, data, source) for split, (source, table) in tables.items()}
    labels = {split: _labels(source, table, data) for split, (source, table) in tables.items() if split != "transfer"}
    label_names = _label_names(labels["train"], tables["train"][1].features[data.label_column], data)
    if len(label_names) < 2:
        raise DataError(
            f"{tables['train'][0]}: one class only ({', '.join(map(repr, label_names))}); a classifier needs two"
        )
    numbers_are_names = _are_names(labels["train"], label_names)
    splits: dict[str, Dataset] = {}
    for split, rows in texts.items():
        source, table = tables[split]
        if split in labels:
            feature = table.features[data.label_column]
            codes = _encode(labels[split], feature, label_names, numbers_are_names, source)
            rows = rows.add_column("label", codes, feature=ClassLabel(names=list(label_names)))
        splits[split] = rows.add_column("example_id", [f"{split}/{index}" for index in range(len(rows))])
    for split in ("validation", "test"):
        splits |= _sampled(splits, split, data)
    leaks = _drop_leaks(splits, ("validation", "test"))
    for split in ("train", "transfer"):
        splits |= _sampled(splits, split, data)
    _check_every_class_is_trained(splits["train"], label_names, tables["train"][0])
    if "validation" not in splits:
        splits |= _carve_validation(splits["train"], label_names, data)
        for split, dropped in _drop_leaks(splits, ("validation",)).items():
            leaks[split] += dropped
    return Splits(**splits, label_names=label_names, leaks=leaks)


def text_fingerprint(rows: Dataset) -> str:
    """Return a SHA-256 of the texts and their example ids, in order."""
    return _digest(rows, ["example_id", "text"])


def _texts(table: Dataset, data: Data, source: str) -> Dataset:
    """The text column alone, checked: text, no nulls, nothing blank."""
    column = column_of(table, data.text_column, "data.text_column", source)
    if len(table) == 0:
        raise DataError(f"{source}: has no rows")
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"{source}: data.text_column: {data.text_column!r} holds {_kind(column.type)}, not text")
    blank = np.concatenate([_is_blank(chunk) for chunk in column.chunks])
    if blank.any():
        rows = np.flatnonzero(blank)
        raise DataError(f"{source}: row {rows[0]}: the text is empty ({len(rows)} such rows); remove them")
    texts = table.select_columns([data.text_column])
    return texts if data.text_column == "text" else texts.rename_column(data.text_column, "text")


def _is_blank(chunk: pa.Array) -> np.ndarray:
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(chunk)), 0)
    return pc.fill_null(blank, True).to_numpy(zero_copy_only=False)


def _labels(source: str, rows: Dataset, data: Data) -> pa.ChunkedArray:
    """The label column, checked: there, nothing missing, whole numbers, names or booleans."""
    column = column_of(rows, data.label_column, "data.label_column", source)
    missing = pc.is_null(column, nan_is_null=True)
    if _is_string(column.type):  # what csv makes of a missing label
        missing = pc.or_(missing, pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True))
    if pc.any(missing).as_py():
        row, count = pc.index(missing, pa.scalar(True)).as_py(), pc.sum(missing).as_py()
        raise DataError(f"{source}: row {row}: the label is empty ({count} such rows); remove them")
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        beyond = pc.greater(pc.abs(column.cast(pa.float64(), safe=False)), MOST)
        if pc.any(beyond).as_py():
            row = pc.index(beyond, pa.scalar(True)).as_py()
            raise DataError(f"{source}: row {row}: label {column[row].as_py()} is no number of a class")
    if pa.types.is_floating(kind) and pc.all(pc.equal(pc.floor(column), column)).as_py():
        return column.cast(pa.int64())  # what pandas makes of whole numbers
    if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_string(kind)):
        held = _kind(kind)
        raise DataError(f"{source}: data.label_column: {data.label_column!r} holds {held}, not numbers or names")
    return column


def _label_names(values: pa.ChunkedArray, feature: Any, data: Data) -> tuple[str, ...]:
    """Class names: the recipe's, else the data set's own, else the distinct train values in order."""
    if data.label_names:
        return data.label_names
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    return tuple(_shown(value) for value in sorted(pc.unique(values).to_pylist()))


def _are_names(values: pa.ChunkedArray, label_names: Sequence[str]) -> bool:
    """Whether these numbers or booleans are themselves names (stars 1 to 5), and not indices into the names."""
    return {_shown(value) for value in pc.unique(values).to_pylist()} <= set(label_names)


def _encode(
    values: pa.ChunkedArray, feature: Any, label_names: Sequence[str], numbers_are_names: bool, source: str
) -> np.ndarray:
    """Class indices of label values; a value that names no class is an error.

    A string is a name. A number is a name or an index, for every split what it is in train. A data set with class names
    of its own goes by those where they are the recipe's, in whatever order; else the recipe renames them one by one.
    """
    if isinstance(feature, ClassLabel):
        same = set(feature.names) == set(label_names)
        targets = [label_names.index(name) if same else index for index, name in enumerate(feature.names)]
        indices = pc.index_in(values, pa.array(range(len(targets)), values.type))  # null for -1, "no label"
        indices = pc.take(pa.array(targets, pa.int64()), indices)
        wrong = pc.or_(pc.is_null(indices), pc.fill_null(pc.greater_equal(indices, len(label_names)), True))
    elif _is_string(values.type) or numbers_are_names:
        names = values.cast(pa.string())
        indices = pc.index_in(names, pa.array(label_names, pa.string()))
        wrong = pc.is_null(indices)
    else:
        indices = values.cast(pa.int64())
        wrong = pc.or_(pc.less(indices, 0), pc.greater_equal(indices, len(label_names)))
    if pc.any(wrong).as_py():
        row = pc.index(wrong, pa.scalar(True)).as_py()
        shown, known = _shown(values[row].as_py()), ", ".join(label_names[:10])
        more = ", ..." if len(label_names) > 10 else ""
        raise DataError(
            f"{source}: row {row}: label {shown!r} is not one of {len(label_names)} classes: {known}{more}",
            hint="data.label_names: the names in your files, or null to take them from there",
        )
    return indices.to_numpy().astype(np.int64)


def _drop_leaks(splits: dict[str, Dataset], held_out_splits: Sequence[str]) -> dict[str, int]:
    """Drop what is held out too from train and transfer, in place; return how many rows each lost."""
    held_out: set[bytes] = set()
    for split in held_out_splits:
        if split in splits:
            held_out.update(text_keys(splits[split]))
    leaks = {}
    for split in ("train", "transfer"):
        if split in splits:
            kept = [row for row, key in enumerate(text_keys(splits[split])) if key not in held_out]
            leaks[split] = len(splits[split]) - len(kept)
            if not kept:
                raise DataError(f"data: every {split} text stands in validation or test too; give texts of its own")
            if leaks[split]:
                splits[split] = splits[split].select(kept)
    return leaks


def text_keys(rows: Dataset) -> Iterator[bytes]:
    """Yield a digest of each text without regard to case and white space: a set of them fits where texts do not."""
    for batch in rows.select_columns(["text"]).iter(batch_size=1_000):
        for text in batch["text"]:
            yield hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()


def _sampled(splits: dict[str, Dataset], split: str, data: Data) -> dict[str, Dataset]:
    samples = getattr(data, f"{split}_samples")
    return {split: _sample(splits[split], samples, data.seed)} if samples and split in splits else {}


def _sample(rows: Dataset, samples: int, seed: int) -> Dataset:
    return rows.shuffle(seed=seed).select(range(min(samples, len(rows))))


def _check_every_class_is_trained(train: Dataset, label_names: tuple[str, ...], source: str) -> None:
    counts = Counter(train["label"][:])
    if len(label_names) == len(train) > MOST_CLASSES_OF_ONE_TEXT:
        raise DataError(
            f"{source}: {len(label_names)} classes of one text each: data.label_column is probably not that of labels",
            hint="--set data.label_column=NAME names another",
        )
    if len(counts) == 1:
        raise DataError(f"{source}: one class only ({label_names[next(iter(counts))]!r}); a classifier needs two")
    absent = [name for index, name in enumerate(label_names) if not counts[index]]
    if absent:
        raise DataError(
            f"{source}: no training text of class {', '.join(map(repr, absent))}; take more rows or drop it from "
            "data.label_names"
        )


def _carve_validation(train: Dataset, label_names: tuple[str, ...], data: Data) -> dict[str, Dataset]:
    size = round(len(train) * data.validation_fraction)
    rarest, count = Counter(train["label"][:]).most_common()[-1]
    if size < len(label_names) or count < 2:
        raise DataError(
            f"data.validation_fraction: {data.validation_fraction} of {len(train)} train rows is too little for a "
            f"stratified validation split of {len(label_names)} classes (rarest: {label_names[rarest]!r}, {count}); "
            "take more rows, or give data.files.validation"
        )
    parts = train.train_test_split(test_size=size, seed=data.seed, stratify_by_column="label")
    validation = parts["test"]
    if data.validation_samples:
        validation = _sample(validation, data.validation_samples, data.seed)
    return {"train": parts["train"], "validation": validation}


def _kind(kind: pa.DataType) -> str:
    return "values of several types" if "arrow.json" in str(kind) else str(kind)


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _digest(rows: Dataset, columns: list[str]) -> str:
    digest = hashlib.sha256()
    for batch in rows.select_columns(columns).iter(batch_size=10_000):
        digest.update(json.dumps([batch[name] for name in columns]).encode())
    return digest.hexdigest()
