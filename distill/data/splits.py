"""Make the splits that a recipe's data section describes: labelled, sampled, without leaks, with stable example ids."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, List, Value

from distill.data.label_sets import Written, read_label_sets
from distill.data.pairs import SEPARATOR, joined_texts, parts_of
from distill.data.sources import Table, load_tables
from distill.data.tables import LISTS_ARE_LABELS, is_list
from distill.data.texts import is_string, not_texts
from distill.errors import DataError
from distill.recipe.labels import (
    WHOLE,
    LabelError,
    are_indices,
    classes_of,
    cleaned,
    joined,
    label_key,
    names_of,
    renamed,
)
from distill.recipe.schema import Data, Recipe, Task

log = logging.getLogger("distill")

MOST = 2.0**53  # up to this, floating-point numbers hold every whole number exactly
MOST_CLASSES_OF_ONE_TEXT = 100
FEW = 5  # rows without a text or label that can be left out; more mean that something else is wrong
SEVERAL = "data.task: multi_label reads several, data.label_separator says what joins them"
SPLITS = ("train", "validation", "test", "transfer")


@dataclass(frozen=True)
class Splits:
    """Train, validation and test with columns example_id ("train/17"), text and label; class names in label order.

    If `task` is multi_label, a label is a list with 0 or 1 for each name, else a class index (see `gold_labels_of`).
    `transfer` has texts without labels, which the teacher labels. `leaks` counts the texts that were dropped from train
    and transfer because they are also in validation or test. `notes` say what was not taken exactly as it is written.
    `unread` are the columns that were not read. `label_map` says what the classes of a model may be called instead.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    label_names: tuple[str, ...]
    transfer: Dataset | None = None
    leaks: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    label_map: Mapping[str, str] = field(default_factory=dict)
    task: Task = "single_label"

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Return the SHA-256 of the texts (and labels) of each split, for manifests."""
        labelled = {name: getattr(self, name) for name in ("train", "validation", "test")}
        prints = {name: _digest(rows, ["text", "label"]) for name, rows in labelled.items()}
        return prints | ({"transfer": _digest(self.transfer, ["text"])} if self.transfer is not None else {})


def gold_labels_of(rows: Dataset) -> np.ndarray:
    """Return the labels of a split: class indices (examples,), or if a text may have several, 0 and 1 of each label.

    The first are int64, the second a uint8 matrix (examples, labels).
    """
    column = rows.data.column("label").combine_chunks()
    if pa.types.is_fixed_size_list(column.type):
        labels = column.flatten().to_numpy().reshape(-1, column.type.list_size)
    else:
        labels = column.to_numpy().astype(np.int64)
    # datasets would gather shuffled rows one by one.
    return labels if rows._indices is None else labels[rows._indices.column(0).to_numpy()]


def label_counts(rows: Dataset, labels: int) -> np.ndarray:
    """Return the number of texts that have each label, (labels,)."""
    gold_labels = gold_labels_of(rows)
    return np.bincount(gold_labels, minlength=labels) if gold_labels.ndim == 1 else gold_labels.sum(0, dtype=np.int64)


def load_splits(data: Data) -> Splits:
    """Return the splits that `data` describes: loaded, checked and sampled.

    If a train or transfer text is also in validation or test, ignoring case and white space, it is dropped, and so is a
    transfer text that is also in train. A sample is the first N rows after a shuffle with the seed. If there is no test
    split, it is taken from train; if there is no validation split, it is taken from the sampled train rows. Both are
    stratified by label. So `train_samples` is all the labelled text that a run sees besides test. Raises `DataError`
    that names the file or split, the rule and the value.
    """
    tables = load_tables(data)
    texts = {split: _texts(table, data) for split, table in tables.items()}
    notes = [note for table in tables.values() for note in table.notes]
    written = {split: _written(table, data, notes) for split, table in tables.items() if split != "transfer"}
    labels = {split: _labels(found, tables[split], data, tables["train"]) for split, found in written.items()}
    label_names = _label_names(labels["train"], tables["train"], data)
    if len(label_names) < 2:
        raise DataError(
            f"{tables['train'].source}: one class only ({', '.join(map(repr, label_names))}); a classifier needs two"
        )
    if data.label_separator is not None:
        _check_separator(data.label_separator, labels["train"], tables["train"], label_names, notes)
    indices = are_indices(_distinct(labels["train"].values), label_names)
    codes = {split: _encode(found, tables[split], label_names, indices, notes) for split, found in labels.items()}
    splits: dict[str, Dataset] = {}
    for split, rows in texts.items():
        if split in codes and data.has_several_labels:
            codes[split] = _matrix(codes[split], labels[split].rows, len(rows), len(label_names))
            column = pa.FixedSizeListArray.from_arrays(pa.array(codes[split].reshape(-1)), len(label_names))
            rows = rows.add_column("label", column, feature=List(Value("uint8"), length=len(label_names)))
        elif split in codes:
            rows = rows.add_column("label", codes[split], feature=ClassLabel(names=list(label_names)))
        splits[split] = rows.add_column("example_id", [f"{split}/{index}" for index in range(len(rows))])
    _sample(splits, ("validation", "test"), data)
    leaks = _drop_leaks(splits, ("validation", "test"))
    if "test" not in splits:
        _check_every_class_is_trained(splits["train"], label_names, tables["train"], codes["train"])
        splits |= _carve("test", splits["train"], label_names, data, tables["train"])
        notes.append(f"{tables['train'].source}: {len(splits['test'])} of its texts are the test split")
        _note_absent(splits["test"], "test", label_names, data, notes)
        _sample(splits, ("test",), data)
        for split, dropped in _drop_leaks(splits, ("test",)).items():
            leaks[split] += dropped
    _sample(splits, ("train",), data)
    _check_every_class_is_trained(splits["train"], label_names, tables["train"], codes["train"])
    if "validation" not in splits:
        splits |= _carve("validation", splits["train"], label_names, data, tables["train"])
        _note_absent(splits["validation"], "validation", label_names, data, notes)
        _sample(splits, ("validation",), data)
        for split, dropped in _drop_leaks(splits, ("validation",)).items():
            leaks[split] += dropped
        _check_every_class_is_trained(splits["train"], label_names, tables["train"], codes["train"])
    if "transfer" in splits:
        _drop_trained(splits, tables["transfer"], notes)
        _sample(splits, ("transfer",), data)
    notes += _unused_names(data, labels, label_names)
    if data.has_several_labels:
        notes += _constant_labels(splits["train"], label_names, tables["train"])
    read = {*data.text_columns, *data.label_columns}
    unread = dict.fromkeys(name for table in tables.values() for name in table.column_names if name not in read)
    return Splits(
        **splits, label_names=label_names, leaks=leaks, notes=tuple(notes), unread=tuple(unread),
        label_map=data.label_map or {}, task=data.task,
    )  # fmt: skip


def _unused_names(data: Data, labels: Mapping[str, Written], label_names: Sequence[str]) -> Iterator[str]:
    """Yield a note for each name that `label_map` leads to and no label has, since its key may be misspelled."""
    there = {label_key(label) for written in labels.values() for label in _distinct(written.values)}
    there |= set(map(label_key, label_names)) if are_indices(there, label_names) else set()
    for former, name in (data.label_map or {}).items():
        if label_key(name) not in there:
            yield f"data.label_map: no label of the files becomes {name!r}; is {former!r} what they have?"


def _constant_labels(train: Dataset, label_names: Sequence[str], table: Table) -> Iterator[str]:
    """Yield a note if every train text has a label; raise `DataError` if it has all of them."""
    constant = [label_names[index] for index in np.flatnonzero(label_counts(train, len(label_names)) == len(train))]
    if len(constant) == len(label_names):
        raise DataError(f"{table.source}: every training text has all {len(constant)} labels; nothing is left to learn")
    if constant:
        yield f"{table.source}: every training text has the label {', '.join(constant)}, so nothing tells it apart"


def text_fingerprint(rows: Dataset) -> str:
    """Return the SHA-256 of the texts and their example ids, in order."""
    return _digest(rows, ["example_id", "text"])


def _texts(table: Table, data: Data) -> Dataset:
    """Return the column "text" alone, after checks that it holds texts, and no null or blank one.

    Two columns of pairs are joined to one (see pairs.py).
    """
    if len(table.rows) == 0:
        raise DataError(f"{table.source}: has no rows")
    for name in data.text_columns:
        column = table.rows.data.column(name)
        if complaint := not_texts(column):
            raise DataError(
                f"{table.source}: data.text_column: {name!r} {complaint}",
                hint="--set data.text_column=NAME names another",
            )
        blank = np.concatenate([_is_blank(chunk) for chunk in column.chunks])
        if blank.any():
            rows = np.flatnonzero(blank)
            raise DataError(f"{table.place(int(rows[0]))}: the text is empty ({_such(rows, table, 'text')}")
    texts = table.rows.select_columns(list(data.text_columns))
    if not data.has_pairs:
        (name,) = data.text_columns
        if not pc.any(pc.match_substring(table.rows.data.column(name), SEPARATOR)).as_py():
            return texts if name == "text" else texts.rename_column(name, "text")
    return texts.map(
        lambda batch: {"text": list(map(joined_texts, *(batch[name] for name in data.text_columns)))},
        batched=True,
        remove_columns=list(data.text_columns),
        new_fingerprint=hashlib.sha256(f"{table.rows._fingerprint} {data.text_columns}".encode()).hexdigest()[:32],
    )


def _is_blank(chunk: pa.Array) -> np.ndarray:
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(chunk)), 0)
    return pc.fill_null(blank, True).to_numpy(zero_copy_only=False)


def _such(rows: Sequence[int] | np.ndarray, table: Table, name: str) -> str:
    """Say how many rows lack a value, and the cure: leave out a few, but many mean that something else is wrong."""
    count = f"{len(rows)} such row{'s' * (len(rows) > 1)})"
    if len(rows) > max(FEW, 0.01 * len(table.rows)):
        return f"{count}; check that data.{name}_column names the right column"
    return f"{count}; fill in what is missing, or leave {'that row' if len(rows) == 1 else 'those rows'} out"


def _written(table: Table, data: Data, notes: list[str]) -> Written:
    """Return the labels as they are written: one for each row, or if a text may have several, see label_sets.py."""
    if not data.has_several_labels:
        (name,) = data.label_columns
        return Written(table.rows.data.column(name), np.arange(len(table.rows)))
    written = read_label_sets(table, data.label_columns, data.label_separator, notes)
    if not len(written.values):
        raise DataError(f"{table.source}: no text has a label; check that data.label_column names the right column")
    return written


def _check_separator(
    separator: str, train: Written, table: Table, label_names: Sequence[str], notes: list[str]
) -> None:
    """Raise `DataError` if the separator joins no labels of train, but something else seems to; else add a note."""
    if len(np.unique(train.rows)) < len(train.rows):
        return
    if looks := joined(label_names):
        raise DataError(
            f"{table.source}: data.label_separator: {separator!r} is in no label, but {looks[0]!r} looks like several "
            "labels; set it to what joins them"
        )
    notes.append(f"{table.source}: data.label_separator {separator!r} joins no labels there: no text has two")


def _matrix(codes: np.ndarray, rows: np.ndarray, texts: int, labels: int) -> np.ndarray:
    """Return 0 or 1 for each text and label, uint8 (texts, labels), from the class index and row of each label."""
    matrix = np.zeros((texts, labels), np.uint8)
    matrix[rows, codes] = 1
    return matrix


def _labels(written: Written, table: Table, data: Data, train: Table) -> Written:
    """Return the labels as text, after checks that none is missing and that their type can hold labels.

    If the type of an integer column names its classes, each integer becomes the name that it stands for; an integer
    without a name stays. If only train's column names them, the names also apply to the other splits' integers.
    """
    stored = _names_of_type(table, data) or _names_of_type(train, data)
    is_renamed = False
    column = written.values
    kind = column.type
    if pa.types.is_integer(kind) and stored:
        names = data.label_names or stored
        renames = not set(map(label_key, names)) & set(map(label_key, stored))  # else the recipe reorders them
        known = pa.array(names if renames else stored, pa.string())
        there = pc.index_in(column.cast(pa.int64(), safe=False), pa.array(range(len(known)), pa.int64()))
        column = pc.coalesce(pc.take(known, there), column.cast(pa.string()))
        is_renamed = True
    elif pa.types.is_floating(kind):
        column = pa.chunked_array([_float_texts(chunk) for chunk in column.chunks], pa.string())
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind) or is_string(kind) or pa.types.is_null(kind):
        column = column.cast(pa.string())
    else:
        lists = f"; {LISTS_ARE_LABELS}" if is_list(kind) else ""
        raise DataError(
            f"{table.source}: data.label_column: {data.label_column!r} holds {kind}, not numbers or names{lists}",
            hint="--set data.label_column=NAME names another",
        )
    nothing = [label for label in pc.unique(column).to_pylist() if label is None or not label_key(label)]
    missing = pc.is_in(column, pa.array(nothing, pa.string()))
    if pc.any(missing).as_py():
        rows = np.flatnonzero(missing.to_numpy())
        raise DataError(f"{table.place(int(written.rows[rows[0]]))}: the label is empty ({_such(rows, table, 'label')}")
    if data.label_map and not is_renamed:
        distinct = _distinct(column)
        names = pa.array([renamed(label, data.label_map) for label in distinct], pa.string())
        column = pc.take(names, pc.index_in(column, pa.array(distinct, pa.string())))
    return Written(column, written.rows)


def _names_of_type(table: Table, data: Data) -> tuple[str, ...] | None:
    """Return the class names that the type of the label column has, as the recipe renames them; several may be one."""
    if table.class_names is None:
        return None
    return tuple(renamed(name, data.label_map or {}) for name in table.class_names)


def _float_texts(values: pa.Array) -> pa.Array:
    """Return floating-point labels as text, whole ones without ".0": pandas makes 1.0 of 1 if a row has no label."""
    values = pc.if_else(pc.is_nan(values), None, values.cast(pa.float64()))
    whole = pc.and_(pc.equal(pc.floor(values), values), pc.less_equal(pc.abs(values), MOST))
    texts = pc.if_else(whole, values, None).cast(pa.int64()).cast(pa.string())
    return pc.coalesce(texts, values.cast(pa.string()))


def _label_names(labels: Written, table: Table, data: Data) -> tuple[str, ...]:
    """Return the class names: the recipe's, else the dataset's own, else the distinct train labels in order.

    Columns of 0 and 1 are classes in the order in which the recipe names them.
    """
    if named := data.label_names or _names_of_type(table, data):
        return tuple(dict.fromkeys(named))
    if len(data.label_columns) > 1:
        return tuple(dict.fromkeys(renamed(name, data.label_map or {}) for name in data.label_columns))
    try:
        return names_of(_distinct(labels.values))
    except LabelError as error:
        row = int(labels.rows[pc.index(labels.values, pa.scalar(error.label)).as_py()])
        hint = "--set data.label_names=[NAME, NAME] says which classes there are"
        raise DataError(f"{table.place(row)}: {error}", hint=hint) from None


def _distinct(labels: pa.ChunkedArray) -> list[str]:
    return pc.unique(labels).to_pylist()


def _encode(labels: Written, table: Table, label_names: Sequence[str], indices: bool, notes: list[str]) -> np.ndarray:
    """Return the class index of each label; `indices` says whether labels are numbers of classes, as in train.

    Raises `DataError` if a label names no class. If a label is not spelled as its class, adds a note.
    """
    distinct = _distinct(labels.values)
    found = classes_of(distinct, label_names, indices=indices)
    classes = np.array([-1 if found[label] is None else found[label] for label in distinct])
    positions = pc.index_in(labels.values, pa.array(distinct, pa.string())).to_numpy()
    codes = classes[positions].astype(np.int64)
    if (codes < 0).any():
        # Blame a word rather than a number: without the words, the numbers would be indices.
        words = np.array([found[label] is None and not WHOLE.fullmatch(cleaned(label)) for label in distinct])
        blamed = words[positions] if words.any() else codes < 0
        first = int(np.flatnonzero(blamed)[0])
        label = labels.values[first].as_py()
        more = ", ..." if len(label_names) > 10 else ""
        looks = f"; it looks like several labels in one ({SEVERAL})" if label in joined([*label_names, label]) else ""
        raise DataError(
            f"{table.place(int(labels.rows[first]))}: label {label!r} is not one of {len(label_names)} classes: "
            f"{', '.join(label_names[:10])}{more}{looks}",
            hint="data.label_names: the names in your files, or null to take them from there",
        )
    counts = np.bincount(positions, minlength=len(distinct))
    respelled = [
        index for index, label in enumerate(distinct)
        if not indices and label not in (name := label_names[classes[index]], f"{name}.0")
    ]  # fmt: skip
    if respelled:
        first = respelled[0]
        notes.append(
            f"{table.source}: {counts[respelled].sum()} labels are not spelled as their class and were matched to it, "
            f"such as {distinct[first]!r} for {label_names[classes[first]]!r}"
        )
    return codes


def _drop_leaks(splits: dict[str, Dataset], held_out_splits: Sequence[str]) -> dict[str, int]:
    """Drop from train and transfer, in place, the texts that are also held out; return how many each split lost."""
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
                raise DataError(f"data: every {split} text is also in validation or test; give other texts")
            if leaks[split]:
                splits[split] = splits[split].select(kept)
    return leaks


def _drop_trained(splits: dict[str, Dataset], table: Table, notes: list[str]) -> None:
    """Drop from transfer, in place, the texts that are also in train, where the teacher answers them too."""
    trained = set(text_keys(splits["train"]))
    kept = [row for row, key in enumerate(text_keys(splits["transfer"])) if key not in trained]
    if dropped := len(splits["transfer"]) - len(kept):
        if not kept:
            raise DataError(f"{table.source}: every transfer text is also in train; leave transfer out")
        notes.append(f"{table.source}: {dropped} transfer texts are also in train, and are not read twice")
        splits["transfer"] = splits["transfer"].select(kept)


def text_keys(rows: Dataset) -> Iterator[bytes]:
    """Yield the `text_key` of each text."""
    for batch in rows.select_columns(["text"]).iter(batch_size=1_000):
        yield from map(text_key, batch["text"])


def text_key(text: str, *, exactly: bool = False) -> bytes:
    """Return a digest of a text, ignoring case and white space unless `exactly`; it needs less memory than the text."""
    if not exactly:
        text = SEPARATOR.join(" ".join(part.casefold().split()) for part in parts_of(text))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def drawn(rows: Dataset, count: int, seed: int) -> Dataset:
    """Return `count` rows at random, or all of them in random order if there are fewer."""
    return rows.shuffle(seed=seed).select(range(min(count, len(rows))))


def _sample(splits: dict[str, Dataset], names: Sequence[str], data: Data) -> None:
    """Reduce splits, in place, to the numbers of rows that the recipe gives."""
    for split in names:
        samples = getattr(data, f"{split}_samples")
        if samples and split in splits:
            splits[split] = drawn(splits[split], samples, data.seed)


def _check_every_class_is_trained(
    train: Dataset, label_names: tuple[str, ...], table: Table, codes: np.ndarray
) -> None:
    """Raise `DataError` if a class has no text in `train`; `codes` are the classes of all train rows that were read."""
    counts, source = label_counts(train, len(label_names)), table.source
    if codes.ndim == 1 and len(label_names) == len(train) > MOST_CLASSES_OF_ONE_TEXT:
        raise DataError(
            f"{source}: {len(label_names)} classes of one text each: data.label_column probably names the wrong column",
            hint="--set data.label_column=NAME names another",
        )
    if codes.ndim == 1 and (counts > 0).sum() == 1:
        raise DataError(f"{source}: one class only ({label_names[counts.argmax()]!r}); a classifier needs two")
    absent = [name for index, name in enumerate(label_names) if not counts[index]]
    if not absent:
        return
    which = label_names.index(absent[0])
    read = np.flatnonzero(codes == which if codes.ndim == 1 else codes[:, which])
    if len(read):
        raise DataError(
            f"{table.place(int(read[0]))}: no training text of class {absent[0]!r} is left: its texts are also in "
            "validation or test, or were not sampled; correct the label, or give more texts of the class"
        )
    raise DataError(
        f"{source}: no training text of class {', '.join(map(repr, absent))}; take more rows or drop it from "
        "data.label_names"
    )


def _carve(split: str, train: Dataset, label_names: tuple[str, ...], data: Data, table: Table) -> dict[str, Dataset]:
    """Return train without the rows that become `split`, validation or test, and these, with the same class shares."""
    fraction = data.test_fraction if split == "test" else data.validation_fraction
    size = round(len(train) * fraction)
    gold_labels = gold_labels_of(train)
    if gold_labels.ndim == 2:
        kept, taken = _stratified(gold_labels, size, data.seed)
        if not len(taken):
            raise DataError(
                f"data.{split}_fraction: {fraction} of {len(train)} train rows leaves no text for {split}; take more "
                f"rows, or give data.files.{split}"
            )
        return {"train": train.select(kept), split: train.select(taken)}
    counts = np.bincount(gold_labels, minlength=len(label_names))
    if counts.min() < 2:
        label = int(counts.argmin())
        row = int(train[int(np.flatnonzero(gold_labels == label)[0])]["example_id"].partition("/")[2])
        raise DataError(
            f"{table.place(row)}: the only text of class {label_names[label]!r}, and {split} needs one too; correct "
            f"the label, add texts of its class, or give data.files.{split}"
        )
    if size < len(label_names) or len(train) - size < len(label_names):
        raise DataError(
            f"data.{split}_fraction: {fraction} of {len(train)} train rows does not make stratified train and {split} "
            f"splits of {len(label_names)} classes; take more rows, or give data.files.{split}"
        )
    parts = train.train_test_split(test_size=size, seed=data.seed, stratify_by_column="label")
    return {"train": parts["train"], split: parts["test"]}


def _stratified(gold_labels: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that stay in train, and `size` rows or a few less that leave it, both rising.

    `gold_labels` is (examples, labels). The strata are the rarest label of each text, because a common one is spread
    well anyway, and the texts without labels. Rows are taken at equal distances from the shuffled strata, one below the
    other. Each label stays in train.
    """
    counts = gold_labels.sum(0, dtype=np.int64)
    rising = np.argsort(counts, kind="stable")
    rarest = rising[gold_labels[:, rising].argmax(axis=1)]  # the first 1
    strata = np.where(gold_labels.any(axis=1), rarest, len(counts))
    shuffled = np.random.default_rng(seed).permutation(len(strata))
    below = shuffled[np.argsort(strata[shuffled], kind="stable")]
    is_taken = np.zeros(len(strata), bool)
    is_taken[below[((np.arange(size) + 0.5) * len(below) / size).astype(np.int64)]] = True
    for label in np.flatnonzero(gold_labels[is_taken].sum(0, dtype=np.int64) == counts):
        is_taken[np.argmax(gold_labels[:, label])] = False
    return np.flatnonzero(~is_taken), np.flatnonzero(is_taken)


def _note_absent(rows: Dataset, split: str, label_names: tuple[str, ...], data: Data, notes: list[str]) -> None:
    """Note the classes that a split taken from train has no text of, because they are too rare."""
    counts = label_counts(rows, len(label_names))
    if absent := [name for name, count in zip(label_names, counts, strict=True) if not count]:
        notes.append(
            f"{split}: has no text of {', '.join(absent)}, because so few are in train; give a larger "
            f"data.{split}_fraction, or data.files.{split}"
        )


def _digest(rows: Dataset, columns: list[str]) -> str:
    digest = hashlib.sha256()
    for batch in rows.select_columns(columns).iter(batch_size=10_000):
        digest.update(json.dumps([batch[name] for name in columns]).encode())
    return digest.hexdigest()


def read_splits(recipe: Recipe) -> Splits:
    """Return the recipe's splits; log what is read, what may be wrong, and how many texts were dropped as leaks."""
    files = recipe.data.files
    names = [Path(path).name for path in files.model_dump(exclude_none=True).values()] if files else []
    log.info("data: reading %s", recipe.data.dataset or ", ".join(names))
    splits = load_splits(recipe.data)
    for note in splits.notes:
        log.warning("data: %s", note)
    for split, dropped in splits.leaks.items():
        if dropped:
            log.info("data: %d %s texts dropped: they are also in validation or test", dropped, split)
    return splits
