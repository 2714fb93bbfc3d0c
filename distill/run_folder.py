"""A run folder: every file name stated once, writes that are whole or absent, the manifest last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from distill.errors import FolderError, one_line
from distill.ranks import rank
from distill.recipe import Recipe, differences
from distill.recipe_file import dump_recipe, load_recipe

EXPORT_PROOFS = "export.json"  # in an export folder: of each format that was tried, the proof
SEAL = "checksums.json"  # in a checkpoint: written last
PARTIAL = ".partial-"  # how the name of a folder begins in which something is being written
LOCK = ".lock"  # what it holds is nothing, the lock is the system's

log = logging.getLogger("distill")


@dataclass(frozen=True)
class RunFolder:
    """What `distill teacher` and `distill student` leave; the folder loads with transformers' from_pretrained."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def metrics_log(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def learning_curve(self) -> Path:
        return self.path / "learning_curve.png"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.parquet"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def card(self) -> Path:
        return self.path / "README.md"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def teacher_logits(self) -> Path:
        """What the model in this folder answered as a teacher."""
        return self.path / "teacher_logits"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def owns_card(self) -> bool:
        """Whether a card may be written: none is there, or one of ours."""
        return not self.card.is_file() or "made with distill" in self.card.read_text(encoding="utf-8", errors="replace")

    @property
    def is_finished(self) -> bool:
        return self.manifest.is_file()

    def check(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
        """Raise `FolderError` where a run of `recipe` here would lose something; touch nothing.

        That is a finished run, a started one (unless `resume` or `overwrite` says what to do with it), or files of
        somebody else.
        """
        if rank() == 0 and (self.path / LOCK).is_file():
            with hold(self.path):
                pass
        self._check(recipe, resume=resume, overwrite=overwrite)

    def _check(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
        if resume and overwrite:
            raise FolderError("--resume and --overwrite exclude each other")
        if self.path.exists() and not self.path.is_dir():
            raise FolderError(f"{self.path}: a file, not a folder", hint="--output DIR")
        if not self.path.exists() or all(path.name.startswith((LOCK, PARTIAL)) for path in self.path.iterdir()):
            return
        # A run writes the recipe under a lock, first of all; checkpoints may be deleted once it has finished.
        marks = (self.checkpoints, self.manifest, self.path / LOCK)
        if not (self.recipe.is_file() and any(mark.exists() for mark in marks)):
            raise FolderError(f"{self.path}: not empty and not a run folder; nothing was touched", hint="--output DIR")
        if overwrite:
            return
        if self.is_finished:
            raise FolderError(f"{self.path}: holds a finished run", hint="--overwrite, or --output for another folder")
        if not resume:
            raise FolderError(f"{self.path}: holds an unfinished run", hint="--resume to go on, --overwrite to restart")
        differing = differences(recipe, load_recipe(self.recipe))
        if differing:
            problem = f"{self.path}: was started with another recipe, so it cannot be resumed"
            raise FolderError(
                *(f"{problem}: {key}: {values}" for key, values in differing.items()),
                hint="--overwrite to restart, or --output for another folder",
            )

    def start(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
        """Make the folder, which is held, that of a run of `recipe`; what was free to use may have changed since."""
        self._check(recipe, resume=resume, overwrite=overwrite)
        if overwrite:
            self._clear()
        try:
            write_text(self.recipe, dump_recipe(recipe))
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FolderError(f"{self.path}: cannot be written: {error.strerror}", hint="--output DIR") from None

    def read_log(self) -> list[dict[str, Any]]:
        """Return the training log, an entry for each time that Trainer logged."""
        return [json.loads(line) for line in self.metrics_log.read_text(encoding="utf-8").splitlines()]

    def last_checkpoint(self) -> Path | None:
        """Return the last checkpoint that is whole, and whose best one is; None where there is none."""
        found = self.checkpoints.glob("checkpoint-*")
        for path in sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True):
            damage = damage_of(path)
            if damage is None:
                best = read_json(path / "trainer_state.json").get("best_model_checkpoint")
                damage = best and damage_of(self.checkpoints / Path(best).name)
            if damage is None:
                return path
            log.warning("%s: %s; an earlier one is looked for", path, damage)
        return None

    def _clear(self) -> None:
        """Remove what a run wrote and nothing else: a user may keep files of his own here."""
        self.manifest.unlink(missing_ok=True)  # first, so that no kill leaves a folder that looks finished
        weights = self.path / "model.safetensors"
        for file in (self.metrics, self.metrics_log, self.predictions, self.learning_curve, weights):
            file.unlink(missing_ok=True)
        if self.owns_card:
            self.card.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.tensorboard, self.export, self.teacher_logits):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a folder for this process, whose death lets go of it, and clear away what killed ones left half-written.

    Raises `FolderError` where another process has it, or where it cannot be written.
    """
    held = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except Timeout:
        raise FolderError(f"{folder}: another run is at work in it", hint="wait, or --output DIR") from None
    except (OSError, NotImplementedError) as error:  # the second: a file system that knows no locks
        raise FolderError(f"{folder}: cannot be written: {one_line(error)}", hint="--output DIR") from None
    try:
        for left in folder.glob(f"{PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        held.release()


def seal(folder: Path) -> None:
    """Write what is in a folder, file by file with its SHA-256, into it: a folder without that is not whole."""
    found = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != SEAL}
    write_json(folder / SEAL, found)


def damage_of(folder: Path) -> str | None:
    """Return what is wrong with a folder that was sealed; None where every file is as it was."""
    if not (folder / SEAL).is_file():
        return "was not written to its end"
    try:
        sealed = dict(read_json(folder / SEAL))
    except (FolderError, TypeError, ValueError):
        return f"{SEAL} is damaged"
    for name, digest in sealed.items():
        try:
            found = _sha256(folder / name)
        except OSError as error:  # it is gone, or the disk no longer gives it
            return f"{name} cannot be read ({error.strerror})"
        if found != digest:
            return f"{name} is damaged (its checksum has changed)"
    return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file that is whole or, whatever happens, unchanged."""
    with atomic_path(path) as partial:
        with open(partial, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write JSON (no NaN: not every reader takes it) that is whole or, whatever happens, unchanged."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the value in a JSON file; raises `FolderError` where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise FolderError(f"{path}: not JSON ({error})") from None


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
    """Return example ids, gold classes and logits (examples, classes); raises `FolderError` where they are missing."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise FolderError(f"{path}: cannot be read: {error}") from None
    gold_labels, logits = table["gold_label"].to_numpy(), np.stack(table["logits"].to_numpy())
    return table["example_id"].to_pylist(), gold_labels, logits


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` for a file or folder; it takes the place of `path` only if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent)) / path.name
    try:
        yield partial
        if path.is_dir() and not path.is_symlink():  # a folder cannot be replaced in one step
            os.replace(path, partial.parent / "old")
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial.parent, ignore_errors=True)
