"""Compute a teacher's logits on a split once, and keep them in shards under a key of all that they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, concatenate_datasets
from huggingface_hub.constants import HF_HOME

from distill.data.encoding import Truncation
from distill.data.pairs import texts_of
from distill.data.splits import text_fingerprint
from distill.decisions import Thresholds
from distill.errors import FolderError, ModelError
from distill.inference.classifier import identify
from distill.inference.text_classifier import TextClassifier
from distill.machine.progress import progress_line
from distill.models.config import align_labels, check_task, class_names, task_of
from distill.models.loading import config_fingerprint
from distill.models.thresholds import thresholds_of
from distill.models.weights import weights_fingerprint
from distill.recipe.labels import SAME_NAMES
from distill.recipe.schema import Task
from distill.storage.files import atomic_path, read_json, write_json
from distill.storage.run_folder import RunFolder
from distill.training.tokens import tokenizer_fingerprint

log = logging.getLogger("distill")

SHARD_ROWS = 4_096  # the most that an interruption loses; enough texts to sort by length
COLUMN = "teacher_logits"


@dataclass(frozen=True)
class TeacherIdentity:
    """The name of a classifier, and the fingerprints of all that its logits depend on besides the texts.

    `columns` puts its classes in the order of `label_names`, which `label_map` may rename. `truncation` is
    what it reads of a text. `thresholds` are in the order of `label_names`, and None if a text has one label.
    """

    name: str
    weights: str
    config: str
    tokenizer: str
    truncation: Truncation
    label_names: tuple[str, ...]
    columns: tuple[int, ...]
    label_map: Mapping[str, str] = field(default_factory=dict)
    thresholds: Thresholds = None

    @property
    def cache(self) -> Path:
        """The folder for its logits: in its own folder, or in HF_HOME if it comes from the Hub."""
        folder = Path(self.name)
        return RunFolder(folder).teacher_logits if folder.is_dir() else Path(HF_HOME) / "distill" / "teacher_logits"

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of all that its logits depend on; moving its folder does not change it."""
        own = [self.weights, self.config, self.tokenizer, astuple(self.truncation), self.label_names, self.columns]
        return hashlib.sha256(json.dumps(own).encode()).hexdigest()

    def answered(self, rows: Dataset) -> Dataset:
        """Return the rows whose texts it answers: all of them."""
        return rows

    def check_unchanged(self) -> None:
        """Raise `ModelError` if the classifier's files have changed since it was identified."""
        task: Task = "single_label" if self.thresholds is None else "multi_label"
        if identify_teacher(self.name, self.label_names, self.label_map, task) != self:
            raise ModelError(
                f"{self.name}: has changed while it was read; nothing of it was kept",
                hint="run the same command again once nothing else writes there",
            )


def identify_teacher(
    name: str,
    label_names: Sequence[str],
    label_map: Mapping[str, str] = SAME_NAMES,
    task: Task = "single_label",
) -> TeacherIdentity:
    """Return the classifier in a folder or on the Hub as a `TeacherIdentity`, without loading its weights.

    Raises `ModelError` if it is not a classifier, has no weights, has other classes, or is for another task.
    """
    config, tokenizer, truncation = identify(name)
    check_task(task_of(config, name), task, name)
    columns = tuple(align_labels(class_names(config, name), label_names, label_map, teacher=name))
    thresholds = thresholds_of(config)
    return TeacherIdentity(
        name=name,
        weights=weights_fingerprint(name),
        config=config_fingerprint(name),
        tokenizer=tokenizer_fingerprint(tokenizer),
        truncation=truncation,
        label_names=tuple(label_names),
        columns=columns,
        label_map=label_map,
        thresholds=None if thresholds is None else tuple(thresholds[column] for column in columns),
    )


class LogitCache:
    """A teacher's logits on `rows` (columns example_id and text) in the folder `cache` (default: the teacher's).

    The classifier of `load_teacher` computes in `dtype`. The logits are kept in shards of `SHARD_ROWS` rows. A shard is
    known by its first row, and any process that sees the folder can compute it. Raises `FolderError` if the folder
    holds other logits.
    """

    def __init__(
        self,
        teacher: TeacherIdentity,
        rows: Dataset,
        load_teacher: Callable[[], TextClassifier],
        *,
        dtype: str = "float32",
        cache: Path | None = None,
        title: str = "teacher logits",
    ):
        self.teacher, self.rows, self.load_teacher, self.title = teacher, rows, load_teacher, title
        self.origin = {
            "teacher_weights": teacher.weights,
            "config": teacher.config,
            "tokenizer": teacher.tokenizer,
            "texts": text_fingerprint(rows),
            "truncation": asdict(teacher.truncation),
            "dtype": dtype,
            "label_names": list(teacher.label_names),
            **({"columns": list(teacher.columns)} if teacher.label_map else {}),
        }
        key = hashlib.sha256(json.dumps(self.origin).encode()).hexdigest()[:16]
        self.folder = (cache or teacher.cache) / key
        _check_origin(self.folder, self.origin)
        self.starts = range(0, len(rows), SHARD_ROWS)
        self.found: dict[int, Dataset] = {}

    def missing(self) -> list[int]:
        """Return the shards that are missing or damaged, each by its first row."""
        for start in self.starts:
            if start not in self.found and (shard := _whole_shard(self.folder, start)) is not None:
                self.found[start] = shard
        return [start for start in self.starts if start not in self.found]

    def answer(self, starts: Sequence[int]) -> None:
        """Compute these shards and write them, one by one.

        Raises `ModelError` if a logit is not finite, and `FolderError` if the folder cannot be written.
        """
        with _writing(self.folder):
            write_json(self.folder / "origin.json", self.origin)
        classifier = self.load_teacher()
        self.teacher.check_unchanged()  # the logits are kept under its fingerprints
        parts = [self._rows(start) for start in starts]
        with progress_line(self.title, sum(map(len, parts)), "text") as bar:
            for start, part in zip(starts, parts, strict=True):
                logits = classifier.logits(texts_of(part), progress=bar.update)[:, list(self.teacher.columns)]
                ids = part["example_id"][:]
                if not np.isfinite(logits).all():
                    row = ids[int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])]
                    raise ModelError(f"teacher: its logits on row {row} are not finite; no student can learn from them")
                with _writing(self.folder):
                    _write_shard(self.folder, start, ids, logits)

    def read(self) -> Dataset:
        """Return columns example_id and teacher_logits, float32 (rows, classes), in the rows' order; memory-mapped.

        The classes are in the order of the teacher's `label_names`. Raises `FolderError` if a shard is missing.
        """
        missing = self.missing()
        if missing:
            problem = f"{self.folder}: shard {missing[0] // SHARD_ROWS} was written but is not there"
            raise FolderError(problem, hint="several ranks need a disk that all of them see")
        for start in self.starts:
            if self.found[start]["example_id"][:] != self._rows(start)["example_id"][:]:
                raise FolderError(
                    f"{self.folder}: shard {start // SHARD_ROWS} is of other rows", hint="delete the folder"
                )
        return concatenate_datasets([self.found[start] for start in self.starts])

    def _rows(self, start: int) -> Dataset:
        return self.rows.select(range(start, min(start + SHARD_ROWS, len(self.rows))))


def load_or_compute(cache: LogitCache) -> Dataset:
    """Compute the logits that are missing, shared among the ranks, and return all (see `LogitCache.read`).

    If nothing is missing, the teacher is not loaded.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    # Rank 0 decides for all what is missing, because other processes may be writing at the same time.
    (missing,) = broadcast_object_list([cache.missing()])
    if not missing:
        log.info("%s: %d texts were answered before (%s)", cache.title, len(cache.rows), cache.folder)
        return cache.read()
    if there := len(cache.starts) - len(missing):
        log.info("%s: continues, %d of %d shards are there (%s)", cache.title, there, len(cache.starts), cache.folder)
    if own := missing[state.process_index :: state.num_processes]:
        cache.answer(own)
    state.wait_for_everyone()
    return cache.read()


def with_teacher_logits(tokenised: Dataset, teachers: Sequence[Dataset]) -> Dataset:
    """Return `tokenised` with a column teacher_logits_K for each of `teachers`, row by row, still memory-mapped."""
    columns = [
        logits.select_columns([COLUMN]).rename_column(COLUMN, f"{COLUMN}_{index}")
        for index, logits in enumerate(teachers)
    ]
    return concatenate_datasets([tokenised, *columns], axis=1)


def _check_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    path = folder / "origin.json"
    if not path.is_file():
        return
    found = read_json(path)
    wrong = [name for name in origin if not isinstance(found, dict) or found.get(name) != origin[name]]
    if wrong:
        raise FolderError(
            f"{folder}: these teacher logits were made with another {', '.join(wrong)}", hint=f"delete {folder}"
        )


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"{folder}: cannot be written: {error.strerror or error}"
        raise FolderError(problem, hint="--teacher-logits DIR keeps them elsewhere") from None


def _write_shard(folder: Path, start: int, ids: list[str], logits: np.ndarray) -> None:
    values = pa.FixedSizeListArray.from_arrays(pa.array(logits.ravel(), pa.float32()), logits.shape[1])
    table = pa.table({"example_id": pa.array(ids, pa.string()), COLUMN: values})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue().to_pybytes()
    with atomic_path(folder / f"{_shard_name(start)}-{_checksum(content)}.arrow") as partial:
        partial.write_bytes(content)


def _whole_shard(folder: Path, start: int) -> Dataset | None:
    """Return the shard that starts at row `start`, memory-mapped; None if it is missing or damaged."""
    for path in filter(Path.is_file, folder.glob(f"{_shard_name(start)}-*.arrow")):
        if path.stem.rpartition("-")[2] == _checksum(path.read_bytes()):
            return Dataset.from_file(str(path))
        log.warning("%s: damaged, so its texts are answered again", path)
    return None


def _shard_name(start: int) -> str:
    return f"shard-{start // SHARD_ROWS:06d}"


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
