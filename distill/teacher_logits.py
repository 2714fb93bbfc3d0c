"""A teacher's logits on a split: computed once, kept in shards under what they depend on, read memory-mapped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from huggingface_hub.constants import HF_HOME

from distill.data import text_fingerprint
from distill.errors import FolderError, ModelError
from distill.files import atomic_path, read_json, write_json
from distill.models import align_labels, config_fingerprint, weights_fingerprint
from distill.predictors import Classifier, identify
from distill.predictors import label_names as classes_of
from distill.progress import progress_line
from distill.run_folder import RunFolder
from distill.tokens import tokenizer_fingerprint

log = logging.getLogger("distill")

SHARD_ROWS = 4_096  # what an interrupted pass may lose; enough texts to sort by length within
COLUMN = "teacher_logits"


@dataclass(frozen=True)
class Teacher:
    """A classifier and all that its logits depend on besides the texts: fingerprints of what it is made of, and order.

    `columns` puts its classes in the order of `label_names`. It reads `max_tokens` of a text, as it was made to.
    """

    name: str
    weights: str
    config: str
    tokenizer: str
    max_tokens: int
    label_names: tuple[str, ...]
    columns: tuple[int, ...]

    @property
    def cache(self) -> Path:
        """Where its logits are kept: in its folder, and for one from the Hub in HF_HOME."""
        folder = Path(self.name)
        return RunFolder(folder).teacher_logits if folder.is_dir() else Path(HF_HOME) / "distill" / "teacher_logits"


def identify_teacher(name: str, label_names: Sequence[str]) -> Teacher:
    """Return the classifier in a folder or on the Hub as a `Teacher` of `label_names`, without loading its weights.

    Raises `ModelError` where it is no classifier, has no weights, or its classes are not these.
    """
    config, tokenizer, max_tokens = identify(name)
    return Teacher(
        name=name,
        weights=weights_fingerprint(name),
        config=config_fingerprint(name),
        tokenizer=tokenizer_fingerprint(tokenizer),
        max_tokens=max_tokens,
        label_names=tuple(label_names),
        columns=tuple(align_labels(classes_of(config), label_names, teacher=name)),
    )


def teacher_logits(
    teacher: Teacher,
    rows: Dataset,
    load_teacher: Callable[[], Classifier],
    *,
    cache: Path | None = None,
    title: str = "teacher logits",
) -> Dataset:
    """Return the teacher's logits on `rows` (columns example_id and text): columns example_id and teacher_logits.

    teacher_logits is float32 (rows, classes), in the rows' order and that of the teacher's `label_names`; the result is
    memory-mapped. What `cache` (default: the teacher's) holds is not computed again, and then `load_teacher` is not
    called. Several ranks split the work. Raises `ModelError` where a logit is not finite, and `FolderError` where the
    cache is of something else or cannot be written.
    """
    origin = {
        "teacher_weights": teacher.weights,
        "config": teacher.config,
        "tokenizer": teacher.tokenizer,
        "texts": text_fingerprint(rows),
        "max_tokens": teacher.max_tokens,
        "label_names": list(teacher.label_names),
    }
    key = hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:16]
    folder = (cache or teacher.cache) / key
    _check_origin(folder, origin)
    starts = range(0, len(rows), SHARD_ROWS)
    found = {start: _whole_shard(folder, start) for start in starts}
    missing = [start for start in starts if found[start] is None]
    state = PartialState(cpu=not torch.cuda.is_available())
    state.wait_for_everyone()  # before anyone writes, so that all ranks found the same shards missing
    if missing:
        if len(missing) < len(starts):
            log.info(
                "%s: goes on, %d of %d shards are there (%s)", title, len(found) - len(missing), len(found), folder
            )
        own = missing[state.process_index :: state.num_processes]
        if own:
            with _writing(folder):
                write_json(folder / "origin.json", origin)
            _compute(folder, rows, own, teacher.columns, load_teacher(), title)
        state.wait_for_everyone()
        found |= {start: _whole_shard(folder, start) for start in missing}
    else:
        log.info("%s: %d texts were answered before (%s)", title, len(rows), folder)
    shards = []
    for start, shard in found.items():
        ids = rows.select(range(start, min(start + SHARD_ROWS, len(rows))))["example_id"]
        if shard is None:
            problem = f"{folder}: shard {start // SHARD_ROWS} was answered and is not there"
            raise FolderError(problem, hint="several ranks need one disk that all of them see")
        if shard["example_id"][:] != ids[:]:
            raise FolderError(f"{folder}: shard {start // SHARD_ROWS} is of other rows", hint="delete the folder")
        shards.append(shard)
    return concatenate_datasets(shards)


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


def _compute(
    folder: Path, rows: Dataset, starts: Sequence[int], columns: Sequence[int], classifier: Classifier, title: str
) -> None:
    parts = [rows.select(range(start, min(start + SHARD_ROWS, len(rows)))) for start in starts]
    with progress_line(title, sum(map(len, parts)), "text") as bar:
        for start, part in zip(starts, parts, strict=True):
            logits = classifier.logits(part["text"][:], progress=bar.update)[:, list(columns)]
            ids = part["example_id"][:]
            if not np.isfinite(logits).all():
                row = ids[int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])]
                raise ModelError(f"teacher: its logits on row {row} are not finite; nothing can be learned from them")
            with _writing(folder):
                _write_shard(folder, start, ids, logits)


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
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _whole_shard(folder: Path, start: int) -> Dataset | None:
    """The shard from row `start`, memory-mapped; None where it is missing or its bytes are not those once written."""
    for path in folder.glob(f"{_shard_name(start)}-*.arrow"):
        if path.stem.rpartition("-")[2] == _checksum(path.read_bytes()):
            return Dataset.from_file(str(path))
        log.warning("%s: damaged, so its texts are answered again", path)
    return None


def _shard_name(start: int) -> str:
    return f"shard-{start // SHARD_ROWS:06d}"


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
