"""Write a classifier's answers to a table, from which a student can learn (see data/answers.py)."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill.decisions import Thresholds, answers_of, in_words, probabilities_of
from distill.errors import FolderError
from distill.storage.files import atomic_path

ADDED = ("label", "score", "logits")  # columns beside the texts
Chunk = tuple[Sequence[str | tuple[str, str]], np.ndarray]  # texts or pairs and their logits, float32 (texts, classes)


def check_new_table(path: Path) -> None:
    """Raise `FolderError` if `path` is there, is in no folder, or is not of a kind that is written."""
    if path.suffix.lower() not in WRITERS:
        raise FolderError(f"--output: {path}: not one of {', '.join(WRITERS)}")
    if path.exists():
        raise FolderError(f"--output: {path}: is there already", hint="delete it, or name another file")
    if not path.absolute().parent.is_dir():
        raise FolderError(f"--output: {path}: no such folder {path.absolute().parent}")


def write_table(
    path: Path,
    text_columns: Sequence[str],
    label_names: Sequence[str],
    chunks: Iterable[Chunk],
    thresholds: Thresholds = None,
) -> int:
    """Write the columns of texts, label, score (the label's probability) and logits; return the number of rows.

    If a text may have several labels, which its `thresholds` say, `label` has all names, with a comma between them, and
    `score` is the probability of the likeliest label.
    Pairs have two columns of texts. Logits are an object with the name of each class. They keep every bit: as float32
    in Parquet, as the shortest decimal that gives them back in text formats. The file gets its name once it is
    complete. Raises `FolderError` if a column of texts has the name of another.
    """
    if taken := set(text_columns) & set(ADDED):
        raise FolderError(f"--text-column: {taken.pop()!r} is the name of a column that the answers add; rename it")
    counted = _Counted(chunks)
    with atomic_path(path) as partial:
        rows = _rows(counted, label_names, thresholds)
        WRITERS[path.suffix.lower()](partial, rows, [*text_columns, *ADDED], label_names)
    return counted.texts


class _Counted:
    def __init__(self, chunks: Iterable[Chunk]):
        self.chunks, self.texts = chunks, 0

    def __iter__(self) -> Iterator[Chunk]:
        for texts, logits in self.chunks:
            self.texts += len(texts)
            yield texts, logits


def _rows(
    chunks: Iterable[Chunk], label_names: Sequence[str], thresholds: Thresholds
) -> Iterator[list[tuple[Any, ...]]]:
    for texts, logits in chunks:
        labels = [in_words(answer, label_names) for answer in answers_of(logits, thresholds)]
        scores = probabilities_of(logits, thresholds).max(axis=1)
        # A float of Python's has the bits of the float32 that it came from, and more.
        named = (dict(zip(label_names, row, strict=True)) for row in logits.astype(np.float32).tolist())
        yield [
            (*((text,) if isinstance(text, str) else text), label, score, row)
            for text, label, score, row in zip(texts, labels, scores.tolist(), named, strict=True)
        ]


def _write_parquet(
    path: Path, chunks: Iterable[Sequence[Any]], names: Sequence[str], label_names: Sequence[str]
) -> None:
    logits = pa.struct([(name, pa.float32()) for name in label_names])
    kinds = [*[pa.string()] * (len(names) - 2), pa.float32(), logits]
    schema = pa.schema(zip(names, kinds, strict=True))
    with pq.ParquetWriter(path, schema) as writer:
        for rows in chunks:
            columns = [pa.array(*pair) for pair in zip(zip(*rows, strict=True), schema.types, strict=True)]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _write_csv(path: Path, chunks: Iterable[Sequence[Any]], names: Sequence[str], _: Sequence[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for rows in chunks:
            writer.writerows([*plain, json.dumps(logits, ensure_ascii=False)] for *plain, logits in rows)


def _write_json_lines(path: Path, chunks: Iterable[Sequence[Any]], names: Sequence[str], _: Sequence[str]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in (row for rows in chunks for row in rows):
            file.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n")


WRITERS: dict[str, Callable[[Path, Iterable[Sequence[Any]], Sequence[str], Sequence[str]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
    ".parquet": _write_parquet,
}
