"""Check the teachers of a student, get their logits, and join these with the tokenized texts."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from distill.data.encoding import Truncation
from distill.data.splits import Splits, gold_labels_of
from distill.data.texts import check_file
from distill.decisions import answers_of, scores_of
from distill.distillation.answer_file import AnswerFile, is_answer_file
from distill.distillation.teacher_logits import (
    COLUMN,
    LogitCache,
    TeacherIdentity,
    identify_teacher,
    load_or_compute,
    with_teacher_logits,
)
from distill.errors import FolderError, ModelError, RecipeError
from distill.inference.classifier import load
from distill.inference.text_classifier import TextClassifier
from distill.machine.devices import resolve_device
from distill.measuring.metrics import constant_score
from distill.models.names import is_path
from distill.recipe.schema import Data, Student
from distill.storage.run_folder import RunFolder
from distill.training.tokens import tokenise_split, unlabelled_of

log = logging.getLogger("distill")

Teacher = TeacherIdentity | AnswerFile
TEACHER_HINT = "distill teacher RECIPE --output DIR makes one"


def check_teachers(names: Sequence[str]) -> None:
    """Raise `DataError` if a file of answers is not there, and `ModelError` if another path is not a folder."""
    for name in names:
        if is_answer_file(name) or Path(name).is_file():
            check_file(name, f"--teacher: {name}")
        elif is_path(name) and not Path(name).is_dir():
            raise ModelError(f"--teacher: {name}: no such folder", hint=TEACHER_HINT.replace("DIR", name))


def identify(names: Sequence[str], splits: Splits, data: Data) -> list[Teacher]:
    """Return what each teacher is; a file of answers is read, and of a model only its configuration and its files."""
    return [
        AnswerFile.read(name, data, splits)
        if is_answer_file(name)
        else identify_teacher(name, splits.label_names, splits.label_map, splits.task)
        for name in names
    ]


def model_among(names: Sequence[str]) -> str | None:
    """Return the first teacher that is a model, of which a student can be made; None if all are files of answers."""
    return next((name for name in names if not is_answer_file(name)), None)


def fingerprints_of(teachers: Sequence[Teacher]) -> dict[str, str]:
    """Return the fingerprints of a run's teachers by name, for its origin (see origin.origin_of)."""
    return {f"teacher {number}": teacher.fingerprint for number, teacher in enumerate(teachers, 1)}


def weights_of(settings: Student, teachers: Sequence[str]) -> tuple[float, ...]:
    """Return the weight of each of `teachers`; raise `RecipeError` if the recipe has more or fewer weights."""
    weights = settings.teacher_weights or (1.0,) * len(teachers)
    if len(weights) != len(teachers):
        raise RecipeError(
            f"student.teacher_weights: wants one for each of {len(teachers)} teachers, got {len(weights)}"
        )
    return weights


def check_not_a_teacher(folder: RunFolder, teachers: Sequence[str]) -> None:
    """Raise `FolderError` if `folder` is the folder of one of `teachers`."""
    for name in teachers:
        if os.path.realpath(folder.path) == os.path.realpath(name):
            raise FolderError(f"{folder.path}: the student would overwrite its teacher", hint="--output DIR")


def logit_caches(
    teacher: TeacherIdentity, splits: Splits, cache: Path | None, device: str, *, bf16: bool, title: str = "teacher"
) -> dict[str, LogitCache]:
    """Return a `LogitCache` of the teacher for each split that a student needs; nothing is computed yet.

    The logits are computed in bf16 if the student trains in it (`bf16`), so that a run has one precision. The splits
    share one classifier, which is loaded when the first logits are missing.
    """
    resolved = resolve_device(device)

    @functools.cache
    def load_teacher() -> TextClassifier:
        return load(teacher.name, resolved, dtype="bfloat16" if bf16 else None)

    dtype = "bfloat16" if bf16 else "float32"
    return {
        split: LogitCache(teacher, rows, load_teacher, dtype=dtype, cache=cache, title=f"{title}: {split}")
        for split in ("validation", "train", "transfer")
        if (rows := getattr(splits, split)) is not None
    }


def logits_of(
    teachers: Sequence[Teacher], splits: Splits, cache: Path | None, device: str, *, bf16: bool, force: bool
) -> list[dict[str, Dataset]]:
    """Return each teacher's logits on train and, if there is one, transfer; no teacher stays in memory.

    A model's are kept in `cache` (default: in each teacher's folder) and computed only if they are not there. Raises
    `ModelError` if a teacher is no better than always answering the commonest class, unless `force` is set, and
    `DataError` if a file lacks the answer to a text.
    """
    titles = [Path(teacher.name).name if len(teachers) > 1 else "teacher" for teacher in teachers]
    sources = [
        _sources(teacher, splits, cache, device, bf16=bf16, title=title)
        for teacher, title in zip(teachers, titles, strict=True)
    ]  # all of them, because a cache of other logits must be reported before a teacher computes
    for teacher, by_split, title in zip(teachers, sources, titles, strict=True):
        # All teachers are checked before the first one classifies the training texts, which may take hours.
        found, rows, split = by_split.pop("validation")(), teacher.answered(splits.validation), "validation"
        if not len(rows):  # a file need not answer these, but it answers the training texts
            found, rows, split = by_split["train"](), splits.train, "train"
        _check_teacher(teacher, found, rows, split, title, force=force)
    answers = []
    while sources:
        by_split = sources.pop(0)  # frees the classifier too
        answers.append({split: read() for split, read in by_split.items()})
    return answers


def _sources(
    teacher: Teacher, splits: Splits, cache: Path | None, device: str, *, bf16: bool, title: str
) -> dict[str, Callable[[], Dataset]]:
    """Return for each split what returns the teacher's logits on it: on validation, of the texts that it answers."""
    if isinstance(teacher, TeacherIdentity):
        caches = logit_caches(teacher, splits, cache, device, bf16=bf16, title=title)
        return {split: functools.partial(load_or_compute, found) for split, found in caches.items()}
    rows = {split: found for split in ("train", "transfer") if (found := getattr(splits, split)) is not None}
    rows["validation"] = teacher.answered(splits.validation)
    read = {split: teacher.logits_of(found, split) for split, found in rows.items()}
    return {split: functools.partial(lambda logits: logits, logits) for split, logits in read.items()}


def _check_teacher(teacher: Teacher, answers: Dataset, rows: Dataset, split: str, title: str, *, force: bool) -> None:
    """Raise `ModelError` if the teacher is no better on a split than always answering the commonest class.

    `answers` are its logits on the labelled `rows`. If a text may have several labels, their F1 on each text is
    compared with that of the commonest labels. With `force`, log a warning instead.
    """
    gold_labels = gold_labels_of(rows)
    found = answers_of(np.asarray(answers[COLUMN][:], np.float32), teacher.thresholds)
    score, majority = float(scores_of(found, gold_labels).mean()), constant_score(gold_labels)
    measure = "accuracy" if teacher.thresholds is None else "F1 per text"
    commonest = "the commonest class" if teacher.thresholds is None else "the commonest labels"
    log.info(
        "%s: %s %s %.4f (%d texts); %s alone would give %.4f",
        title, split, measure, score, len(rows), commonest, majority,
    )  # fmt: skip
    if score > majority:
        return
    problem = (
        f"{teacher.name}: {split} {measure} {score:.4f} is no better than always answering {commonest} "
        f"({majority:.4f}): it has nothing to teach"
    )
    if not force:
        raise ModelError(problem, hint="train the teacher longer or at another learning rate; --force distills anyway")
    log.warning("%s; distilled anyway (--force)", problem)


def rows_with_logits(
    answers: Sequence[Mapping[str, Dataset]], splits: Splits, tokenizer: PreTrainedTokenizerBase, truncation: Truncation
) -> Dataset:
    """Return the tokenized texts of all splits in `answers`, with a column of logits for each teacher."""
    rows, unlabelled = [], unlabelled_of(splits.label_names, splits.task)
    for split in answers[0]:
        part = tokenise_split(split, getattr(splits, split), tokenizer, truncation, unlabelled=unlabelled)
        rows.append(with_teacher_logits(part, [answer[split] for answer in answers]))
    return concatenate_datasets(rows)
