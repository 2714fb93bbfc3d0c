"""Read a file of answers: texts, and for each text what somebody thinks of every class.

A file has one of these kinds of columns:

- one for each class, named like it, with its probability;
- `probabilities` or `logits`: an object with a value for each class name, or a list in the order of the classes;
- `top_logprobs`: the log-probabilities of some class names, as a language model returns them;
- `vote` or `votes`, or several columns `vote_...`: the label or labels that annotators chose.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import logit

from distill.data.pairs import joined_texts
from distill.data.splits import text_key
from distill.data.tables import LINE, TableFile
from distill.data.texts import check_file
from distill.errors import DataError, printable
from distill.recipe.labels import SAME_NAMES, are_indices, classes_of, renamed
from distill.recipe.schema import Task

log = logging.getLogger("distill")

LISTS = ("logits", "probabilities", "top_logprobs")
VOTES = re.compile(r"votes?|vote_.*")
KINDS = "one column for each class, or a column logits, probabilities, top_logprobs or votes"
LEAST = 1e-6  # the probability of a class that a file gives none, because a logit must be finite
NEAR_ONE = 0.01  # how far from 1 probabilities may add up to, because many files are rounded
SHOWN = 40  # characters of a text in an error


@dataclass
class Answers:
    """What a file says: logits, float32 (rows, classes), in the order of the class names, and the columns read.

    Probabilities p become log p, less its mean over the classes, so that the softmax of the logits is p again. If a
    text may have several labels, they become log p - log(1 - p), whose sigmoid is p again.
    """

    columns: tuple[str, ...]
    logits: np.ndarray
    rows: Mapping[bytes, int] = field(repr=False)  # of a text as it is written
    alike: Mapping[bytes, int | None] = field(repr=False)  # without case and white space; None if answers differ

    def row_of(self, text: str) -> int | None:
        """Return the row that answers a text: as it is written, else apart from case and white space; None if none."""
        exact = self.rows.get(text_key(text, exactly=True))
        return exact if exact is not None else self.alike.get(text_key(text))


def read_answers(
    path: str,
    text_columns: Sequence[str],
    label_names: Sequence[str],
    label_map: Mapping[str, str] = SAME_NAMES,
    *,
    is_ordered: bool = True,
    task: Task = "single_label",
) -> Answers:
    """Return the answers in a table of texts, or of pairs (csv, tsv, json, jsonl, parquet or arrow).

    The file may call classes otherwise, as `label_map` says. `is_ordered` says whether somebody chose the order of
    `label_names`, so that a list without names may follow it. Rows without a text are left out. Raises `DataError` with
    a line for each kind of fault, with the first row that has it: a value that is missing, negative or no number,
    probabilities that do not add up to 1, a label that is no class, a text with two answers. If a text may have several
    labels, each probability is that of a label, and they need not add up to 1.
    """
    check_file(path, f"--teacher: {path}")
    names = _Names(label_names, label_map, is_ordered=is_ordered)
    there = [name for name in TableFile(path, {}, path).names_there() if name not in text_columns]
    columns, parse = _columns(there, names, path, task)
    wanted = dict.fromkeys(text_columns, "data.text_column") | dict.fromkeys(columns, "--teacher")
    table = TableFile(path, wanted, path, free=columns)
    found = _Found(path)
    if parse is None:
        parse = _votes(table, columns, names)
    logits: list[np.ndarray] = []
    blank = 0
    for place, texts, values in _rows(table, text_columns, columns):
        try:
            if any(text is None or not str(text).strip() for text in texts):
                blank += 1
                continue
            if not all(isinstance(text, str) for text in texts):
                raise _Fault(f"texts that are not text: {_short(texts[0])}")
            text = joined_texts(*texts)
            answer = parse([_decoded(value) for value in values])
            with np.errstate(over="ignore"):
                answer = answer.astype(np.float32)
            if not np.isfinite(answer).all():
                raise _Fault("logits that are not finite in 32 bits")
        except _Fault as fault:
            found.fault(place, str(fault))
            continue
        found.add(text, answer, len(logits), place, logits)
        logits.append(answer)
    found.check()
    if not logits:
        raise DataError(f"{path}: has no rows")
    for note in [*table.notes, *([f"{path}: {blank} rows without a text are left out"] if blank else [])]:
        log.warning("%s", note)
    return Answers(columns, np.stack(logits), found.rows, found.alike)


def answers_in_words(file: Mapping[str, Any]) -> str:
    """Return in words what a manifest says of a file of answers (see AnswerFile.described)."""
    known = " and ".join(
        f"{found['accuracy']:.4f} on {found['examples']} {split} texts"
        for split in ("validation", "test")
        if (found := file[split])["examples"]
    )
    columns = f"column{'s' * (len(file['columns']) > 1)} {', '.join(file['columns'])}"
    accuracy = f"its accuracy is {known}" if known else "no labelled text has an answer, so its accuracy is unknown"
    return f"{file['name']} has answers for {file['texts']} texts ({columns}); {accuracy}"


class _Fault(ValueError):
    """What is wrong with a row. Faults of one kind begin alike, up to the first colon."""


class _Names:
    """The classes, and what a file may call them."""

    def __init__(self, label_names: Sequence[str], label_map: Mapping[str, str], *, is_ordered: bool):
        self.label_names, self.label_map, self.is_ordered = label_names, label_map, is_ordered
        self.seen: dict[str, int | None] = {}  # a file writes the same few names in each row

    def __len__(self) -> int:
        return len(self.label_names)

    def __str__(self) -> str:
        return ", ".join(self.label_names)

    def index_of(self, name: Any) -> int | None:
        name = name if isinstance(name, str) else _short(name)
        if name not in self.seen:
            called = renamed(name, self.label_map)
            self.seen[name] = classes_of([called], self.label_names, indices=False)[called]
        return self.seen[name]


class _Found:
    """The rows of each text, and the faults by kind."""

    def __init__(self, path: str):
        self.path = path
        self.rows: dict[bytes, int] = {}
        self.alike: dict[bytes, int | None] = {}
        self.places: list[str] = []
        self.faults: dict[str, tuple[str, int]] = {}

    def fault(self, place: str, problem: str) -> None:
        kind = problem.partition(":")[0]
        shown, count = self.faults.get(kind, (f"{self.path}: {place}: {problem}", 0))
        self.faults[kind] = shown, count + 1

    def add(self, text: str, answer: np.ndarray, row: int, place: str, logits: Sequence[np.ndarray]) -> None:
        """Note where a text is answered. A second answer must equal the first, or neither counts for texts alike."""
        self.places.append(place)
        known = self.rows.setdefault(text_key(text, exactly=True), row)
        if known != row and not np.array_equal(logits[known], answer):
            self.fault(place, f"a text with two answers: the other is in {self.places[known]}")
        alike = self.alike.setdefault(text_key(text), row)
        if alike is not None and alike != row and not np.array_equal(logits[alike], answer):
            self.alike[text_key(text)] = None

    def check(self) -> None:
        if self.faults:
            raise DataError(
                *(f"{shown} ({count} such rows)" if count > 1 else shown for shown, count in self.faults.values())
            )


def _columns(
    there: Sequence[str], names: _Names, path: str, task: Task
) -> tuple[tuple[str, ...], Callable[[Sequence[Any]], np.ndarray] | None]:
    """Return the columns with the answers, and what turns a row of their values into logits; None for votes."""
    of_class: dict[int, list[str]] = {}
    for name in there:
        if (index := names.index_of(name)) is not None:
            of_class.setdefault(index, []).append(name)
    of_classes = {name for found in of_class.values() for name in found}
    kinds: list[tuple[str, ...]] = [(name,) for name in LISTS if name in there]
    if votes := tuple(name for name in there if VOTES.fullmatch(name) and name not in of_classes):
        counts = [name for name in votes if names.index_of(name.partition("_")[2]) is not None]
        if counts:
            raise DataError(
                f"{path}: {', '.join(counts)}: votes of a class, but a column of votes holds the label that an "
                "annotator chose; give each class a column with its share of the votes"
            )
        kinds.append(votes)
    if len(of_class) == len(names):
        if twice := next((found for found in of_class.values() if len(found) > 1), None):
            raise DataError(f"{path}: columns {' and '.join(map(repr, twice))} are of one class; rename one of them")
        kinds.append(tuple(of_class[index][0] for index in range(len(names))))
    elif of_class and not kinds:
        absent = [name for index, name in enumerate(names.label_names) if index not in of_class]
        raise DataError(f"{path}: has columns of some classes, but none of {', '.join(map(repr, absent))}")
    if len(kinds) != 1:
        has = " and ".join(kind[0] for kind in kinds) or f"only {', '.join(there) or 'texts'}"
        raise DataError(f"{path}: has {has}; a file of answers wants {KINDS}")
    (columns,) = kinds
    if task == "multi_label" and columns in (votes, ("top_logprobs",)):
        raise DataError(
            f"{path}: {', '.join(columns)}: of one label a text, but data.task is multi_label; give each label a "
            "column with its probability, such as its share of the votes"
        )
    as_logits = _log if task == "single_label" else _log_odds
    if columns == votes:
        return columns, None
    parsers: dict[str, Callable[[Sequence[Any]], np.ndarray]] = {
        "logits": lambda values: _numbers(values[0], names, "logits"),
        "probabilities": lambda values: as_logits(_numbers(values[0], names, "probabilities")),
        "top_logprobs": lambda values: _log(_spread(values[0], names)),
    }
    if len(columns) == 1:
        return columns, parsers[columns[0]]
    return columns, lambda values: as_logits(np.array([_number(value, "probabilities") for value in values]))


def _rows(
    table: TableFile, text_columns: Sequence[str], columns: Sequence[str]
) -> Iterator[tuple[str, tuple[Any, ...], tuple[Any, ...]]]:
    """Yield the place of each row ("line 3"), its text or texts, and the values of `columns`."""
    row = 0
    for batch in table.batches():
        values = [batch.column(name).to_pylist() for name in columns]
        lines = batch.column(LINE).to_pylist() if LINE in batch.schema.names else None
        texts = zip(*(batch.column(name).to_pylist() for name in text_columns), strict=True)
        texts = texts if text_columns else itertools.repeat((), batch.num_rows)
        for index, (text, found) in enumerate(zip(texts, zip(*values, strict=True), strict=True)):
            yield f"line {lines[index]}" if lines else f"row {row}", text, found
            row += 1


def _decoded(value: Any) -> Any:
    """Return a value as it was meant: a list or an object if a text format has it as JSON, or Arrow as a map."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{", '"'):
        try:
            return json.loads(value, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            if isinstance(error, _Fault):
                raise
            return value  # a label that begins with a bracket
    if isinstance(value, list) and value and all(isinstance(one, tuple) and len(one) == 2 for one in value):
        return _object(value)
    return value


def _object(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Fault("an object with a name twice")
    return found


def _numbers(value: Any, names: _Names, what: str) -> np.ndarray:
    """Return a number for each class, float64 (classes,), from a list in their order or an object with their names."""
    if isinstance(value, Mapping):
        found: list[Any] = [None] * len(names)
        for name, one in value.items():
            if (index := names.index_of(name)) is None:
                raise _Fault(f"{what} of {_short(name)}: it is not one of {names}")
            if found[index] is not None:
                raise _Fault(f"{what} with two names for one class: {names.label_names[index]}")
            found[index] = one
        return np.array([_number(one, what) for one in found])
    if not isinstance(value, list | tuple):
        raise _Fault(f"{what} are missing" if value in (None, "") else f"{what} are not a list: {_short(value)}")
    if not names.is_ordered:
        raise _Fault(f"{what} without names: data.label_names must give their order, or write objects with class names")
    if len(value) != len(names):
        raise _Fault(f"{what} for another number of classes: {len(value)}, not {len(names)}")
    return np.array([_number(one, what) for one in value])


def _number(value: Any, what: str) -> float:
    if value is None or value == "":
        raise _Fault(f"{what} are missing")
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise _Fault(f"{what} that are not numbers: {_short(value)}") from None
    if not math.isfinite(number):
        raise _Fault(f"{what} that are not finite: {number}")
    return number


def _log(probabilities: np.ndarray) -> np.ndarray:
    """Return the logits of probabilities that may be rounded."""
    if (probabilities < 0).any():
        raise _Fault(f"a negative probability: {probabilities.min():g}")
    total = probabilities.sum()
    if not abs(total - 1) <= NEAR_ONE:
        raise _Fault(f"probabilities that do not add up to 1: {total:g}")
    logs = np.log(np.maximum(probabilities / total, LEAST))
    return logs - logs.mean()


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    """Return the logits of labels of which a text may have several, from the probability of each."""
    for wrong in probabilities[(probabilities < 0) | (probabilities > 1)]:
        raise _Fault(f"a probability that is not between 0 and 1: {wrong:g}")
    return logit(probabilities.clip(LEAST, 1 - LEAST))


def _spread(value: Any, names: _Names) -> np.ndarray:
    """Return a probability for each class from the log-probabilities of some names.

    What all names leave is spread evenly over the classes that are not named. Then the classes are scaled to 1, because
    other names (what a language model might have written instead) are no class.
    """
    if isinstance(value, list) and all(isinstance(one, Mapping) and {"token", "logprob"} <= set(one) for one in value):
        pairs = [(one["token"], one["logprob"]) for one in value]  # as chat APIs return them
    elif isinstance(value, Mapping):
        pairs = [(name, one) for name, one in value.items() if one is not None]  # Parquet gives each row all names
    else:
        raise _Fault(f"top_logprobs are no object of names and numbers: {_short(value)}")
    found, named, others = np.zeros(len(names)), np.zeros(len(names), bool), 0.0
    for name, logprob in pairs:
        number = _number(logprob, "top_logprobs")
        if number > 1e-6:
            raise _Fault(f"a log-probability above 0: {number:g}")
        if (index := names.index_of(name)) is None:
            others += math.exp(number)
        else:
            found[index] += math.exp(number)
            named[index] = True
    if not found.any():
        said = ", ".join(_short(name) for name, _ in pairs[:5])
        raise _Fault(f"top_logprobs without a class: {said or 'no names'}")
    rest = 1 - found.sum() - others
    if rest < -NEAR_ONE:
        raise _Fault(f"probabilities that do not add up to 1: {found.sum() + others:g}")
    if not named.all():
        found[~named] = max(0.0, rest) / (~named).sum()
    return found / found.sum()


def _votes(table: TableFile, columns: Sequence[str], names: _Names) -> Callable[[Sequence[Any]], np.ndarray]:
    """Return what turns the votes of a row into logits; whether they are numbers of classes is decided by all rows."""
    distinct: set[str] = set()
    for *_, values in _rows(table, (), columns):
        with contextlib.suppress(_Fault):  # which is reported with its place when the row is read for good
            distinct.update(_labels([_decoded(value) for value in values], columns, table))
    called = {label: renamed(label, names.label_map) for label in distinct}
    indices = are_indices(set(called.values()), names.label_names)
    classes = classes_of(called.values(), names.label_names, indices=indices)

    def parse(values: Sequence[Any]) -> np.ndarray:
        counts = np.zeros(len(names))
        for label in _labels(values, columns, table):
            if (index := classes[called[label]]) is None:
                raise _Fault(f"a vote that is no class: {_short(label)} is not one of {names}")
            counts[index] += 1
        if not counts.any():
            raise _Fault("votes are missing")
        return _log(counts / counts.sum())

    return parse


def _labels(values: Iterable[Any], columns: Sequence[str], table: TableFile) -> Iterator[str]:
    """Yield the labels that a row's columns of votes name; annotators may leave some empty.

    If the type of a column names its classes, a number stands for a name.
    """
    for column, value in zip(columns, values, strict=True):
        known = table.names.get(column, ())
        for label in value if isinstance(value, list) else [value]:
            if label is None or label != label or not str(label).strip():
                continue
            if isinstance(label, float) and label.is_integer():
                label = int(label)
            yield known[label] if isinstance(label, int) and 0 <= label < len(known) else str(label)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return printable(repr(text[:SHOWN]) if isinstance(value, str) else text[:SHOWN])
