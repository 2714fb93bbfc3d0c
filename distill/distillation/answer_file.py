"""A file of answers as a teacher: of a language model, of annotators, or of any classifier."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from scipy.special import expit

from distill.data.answers import SHOWN, Answers, read_answers
from distill.data.pairs import shown_text
from distill.data.splits import SPLITS, Splits, gold_labels_of
from distill.data.tables import READERS
from distill.decisions import Thresholds, answers_of, are_equal
from distill.distillation.teacher_logits import COLUMN
from distill.errors import DataError
from distill.models.thresholds import choose_thresholds, default_thresholds
from distill.models.weights import teacher_digest
from distill.recipe.schema import Data


def is_answer_file(name: str) -> bool:
    """Say whether a teacher's name is that of a file of answers, which need not exist."""
    return Path(name).suffix.lower() in READERS and not Path(name).is_dir()


@dataclass(frozen=True)
class AnswerFile:
    """The answers in the file `name`; `weights` is the SHA-256 of its content."""

    name: str
    weights: str
    label_names: tuple[str, ...]
    answers: Answers
    thresholds: Thresholds = None  # None if a text has one label

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of all that its logits depend on; moving the file does not change it."""
        logits = hashlib.sha256(self.answers.logits.tobytes()).hexdigest()
        return hashlib.sha256(json.dumps([self.weights, self.label_names, logits]).encode()).hexdigest()

    @classmethod
    def read(cls, name: str, data: Data, splits: Splits) -> AnswerFile:
        """Read the file; raises `DataError` if it is not one of answers for these classes (see `read_answers`).

        If a text may have several labels, the thresholds are chosen on the validation texts that it answers.
        """
        label_names = splits.label_names
        digest = teacher_digest(name)
        answers = read_answers(
            name, data.text_columns, label_names, data.label_map or {}, is_ordered=data.label_names is not None,
            task=data.task,
        )  # fmt: skip
        file = cls(name, digest, label_names, answers, default_thresholds(data.task, len(label_names)))
        if len(rows := file.answered(splits.validation)) and file.thresholds is not None:
            found = expit(answers.logits[file._rows_of(rows)])
            file = replace(file, thresholds=choose_thresholds(found, gold_labels_of(rows)))
        file.check_unchanged()
        return file

    def check_unchanged(self) -> None:
        """Raise `DataError` if the file has changed since it was read."""
        if teacher_digest(self.name) != self.weights:
            raise DataError(f"{self.name}: has changed while it was read; run this again once it is complete")

    def logits_of(self, rows: Dataset, split: str) -> Dataset:
        """Return columns example_id and teacher_logits, float32 (rows, classes), in the order of `rows`.

        Raises `DataError` if the file has no answer for one of the texts.
        """
        found = self._rows_of(rows)
        if (found < 0).any():
            first = int(np.flatnonzero(found < 0)[0])
            row = rows[first]
            raise DataError(
                f"{self.name}: has no answer for {(found < 0).sum()} of {len(rows)} {split} texts, such as "
                f"{row['example_id']}: {shown_text(row['text'])[:SHOWN]!r}; answer them, or leave them out of {split}"
            )
        values = pa.FixedSizeListArray.from_arrays(
            pa.array(self.answers.logits[found].ravel(), pa.float32()), len(self.label_names)
        )
        return Dataset(pa.table({"example_id": pa.array(rows["example_id"][:], pa.string()), COLUMN: values}))

    def answered(self, rows: Dataset) -> Dataset:
        """Return the rows whose texts it answers."""
        return rows.select(np.flatnonzero(self._rows_of(rows) >= 0))

    def by_split(self, splits: Splits) -> dict[str, Dataset]:
        """Return the logits of the texts that it answers, by split (see `logits_of`)."""
        parts = {split: self.answered(rows) for split in SPLITS if (rows := getattr(splits, split)) is not None}
        return {split: self.logits_of(rows, split) for split, rows in parts.items()}

    def accuracy_on(self, rows: Dataset) -> dict[str, Any]:
        """Return how many of the labelled texts it answers, and how many of these right (None if it answers none)."""
        rows = self.answered(rows)
        answers = answers_of(self.answers.logits[self._rows_of(rows)], self.thresholds)
        right = are_equal(answers, gold_labels_of(rows))
        return {"examples": len(right), "accuracy": float(right.mean()) if len(right) else None}

    def described(self, splits: Splits) -> dict[str, Any]:
        """Return what manifest, card and report say of it; it has no path, so that it can be published."""
        return {
            "name": Path(self.name).name,
            "texts": len(self.answers.logits),
            "columns": list(self.answers.columns),
            **{split: self.accuracy_on(getattr(splits, split)) for split in ("validation", "test")},
        }

    def _rows_of(self, rows: Dataset) -> np.ndarray:
        """Return the row of the file that answers each text, int64 (rows,); -1 if there is none."""
        found = (self.answers.row_of(text) for batch in rows.iter(1_000) for text in batch["text"])
        return np.array([-1 if row is None else row for row in found], np.int64)
