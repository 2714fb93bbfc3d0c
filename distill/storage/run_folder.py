"""The folder of a run or of a search: its file names, its start and resume, its checkpoints, its manifest."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NotRequired, Self

from pydantic import Field
from typing_extensions import TypedDict

from distill.errors import FolderError
from distill.machine.cpu import cpu_name
from distill.machine.ranks import rank
from distill.recipe.file import dump_recipe, load_recipe
from distill.recipe.schema import Recipe, as_settled, differences
from distill.storage.checksums import ANSWERING, MODEL_FILES, SEAL, check_whole, damage_of, seal
from distill.storage.files import (
    as_json,
    link_or_copy,
    needs_recovery,
    read_json,
    remove,
    replace_contents,
    write_json,
    write_text,
)
from distill.storage.lock import LOCK, NEXT, hold, is_ours
from distill.storage.records import Number, checked, read_lines

RUN = "run.json"  # in a checkpoint: the id of the run that it belongs to
SETTLING_SECONDS = 60.0  # how long the other ranks wait for rank 0

log = logging.getLogger("distill")


class _Manifest(TypedDict):
    """The keys of manifest.json that distill reads; the others are for people."""

    role: Literal["baseline", "teacher", "student", "control"]
    weights: NotRequired[str]
    parents: dict[str, Any]
    hardware: NotRequired[dict[str, Any]]
    training_arguments: NotRequired[dict[str, Any]]


class _Started(TypedDict):
    """What started.json holds: the run's id, the processors it ran on, and what its result depends on."""

    run: str
    processors: list[str]
    origin: dict[str, str]


class _Training(TypedDict):
    best_checkpoint: NotRequired[Annotated[str, Field(pattern=r"-[0-9]+$")] | None]
    planned_steps: NotRequired[int]
    steps_per_epoch: NotRequired[Number | None]


class _Metrics(TypedDict):
    training: _Training


class _Logged(TypedDict):
    """An entry of metrics.jsonl."""

    step: int
    epoch: Number
    loss: NotRequired[Number]
    eval_log_loss: NotRequired[Number]
    eval_accuracy: NotRequired[Number]


class _Trial(TypedDict):
    number: int
    values: dict[str, Any]
    objective: Number | None
    epoch: Number | None
    seconds: Number
    error: str | None


class _Trials(TypedDict):
    stage: str
    metric: str
    direction: str
    best: int | None
    trials: list[_Trial]


class _Inside:
    """A path inside a folder: `folder.card` is `folder.path / "README.md"` if `card = _Inside("README.md")`."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, folder: RunFolder, kind: type) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class RunFolder:
    """The folder that `distill teacher` or `distill student` writes; transformers' from_pretrained loads it."""

    path: Path
    grows_by: ClassVar[tuple[str, ...]] = ()  # recipe keys that make a run longer, even a finished one

    recipe = _Inside("recipe.yaml")
    started = _Inside("started.json")  # what the run depends on; if that has changed, the run cannot be resumed
    metrics_log = _Inside("metrics.jsonl")
    learning_curve = _Inside("learning_curve.png")
    metrics = _Inside("metrics.json")
    predictions = _Inside("predictions.parquet")
    pruning = _Inside("pruning.json")  # of a pruned student: what it keeps of the model that it was cut out of
    checkpoints = _Inside("checkpoints")
    tensorboard = _Inside("tensorboard")
    card = _Inside("README.md")
    manifest = _Inside("manifest.json")  # written last
    teacher_logits = _Inside("teacher_logits")  # the logits that the model in this folder gave as a teacher
    export = _Inside("export")

    @property
    def replacement(self) -> Self:
        """The run that will replace the finished one in this folder; the finished model is used until then."""
        return type(self)(self.path / NEXT)

    @property
    def final_path(self) -> Path:
        """The final folder of the run: this one, or the parent if this is the `replacement` of a finished run."""
        return self.path.parent if self.path.name == NEXT else self.path

    @property
    def is_being_replaced(self) -> bool:
        """Whether a new run, begun or only planned, will replace the finished run in this folder."""
        return self.is_finished and self.replacement.recipe.is_file()

    @property
    def owns_card(self) -> bool:
        """Whether a model card may be written: there is none yet, or distill wrote the one that is there."""
        card = type(self)(self.final_path).card
        return not card.is_file() or "made with distill" in card.read_text(encoding="utf-8", errors="replace")

    @property
    def is_finished(self) -> bool:
        return self.manifest.is_file()

    def prepare(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> Self:
        """Return the folder that a run of `recipe` works in: this one or, if a finished run is replaced, `replacement`.

        Raises `FolderError` if the run would destroy something: a finished run, a started one (unless `resume` or
        `overwrite` says what to do with it), or files that are not distill's. It then leaves them untouched.
        """
        self.recover()
        names = [path.name for path in self.path.iterdir()] if self.path.is_dir() else []
        # Taking the lock cleans up; that must not happen in a folder that is not distill's.
        if rank() == 0 and LOCK in names and (self.recipe.is_file() or all(map(is_ours, names))):
            with hold(self.path):
                pass
        is_next = self.is_being_replaced if resume else self.is_finished and overwrite
        if is_next:
            self._check_links()
        work = self.replacement if is_next else self
        work._check(recipe, resume=resume, overwrite=overwrite)
        return work

    def recover(self) -> None:
        """Finish or undo what a kill interrupted; rank 0 does it, and the other ranks wait."""
        if rank():
            self._wait_until(lambda: not self._needs_recovery, "clean up after a run that was killed")
        if self._needs_recovery:
            with hold(self.path):
                if self.replacement.is_finished:
                    self.replacement._replace_finished()

    def _wait_until(self, is_done: Callable[[], bool], what: str) -> None:
        """Wait for rank 0, whose work on the folder the other ranks see; raise `FolderError` if it does not come."""
        until = time.monotonic() + SETTLING_SECONDS
        while not is_done():
            if time.monotonic() > until:
                raise FolderError(f"{self.path}: rank 0 does not {what}")
            time.sleep(0.1)

    @property
    def _needs_recovery(self) -> bool:
        return needs_recovery(self.path) or self.replacement.is_finished

    def mark_for_replacement(self, recipe: Recipe) -> None:
        """If a finished run is here, note that a run of `recipe` will replace it; with `resume` that run is made."""
        if self.is_finished and rank() == 0:
            with hold(self.path):
                self.replacement._clear()
                write_text(self.replacement.recipe, dump_recipe(recipe))

    def checkpoint_to_go_on_from(self) -> Path:
        """Return the checkpoint from which a finished run could go on; raises `FolderError` if none is left."""
        checkpoint = self.last_checkpoint()
        if checkpoint is None or not self.started.is_file():
            lacks = "checkpoint" if checkpoint is None else self.started.name
            raise FolderError(
                f"{self.path}: has no {lacks} left to go on from", hint="--overwrite to train from the beginning"
            )
        return checkpoint

    def plan_longer(self, recipe: Recipe, origin: Mapping[str, str]) -> Path:
        """Plan a longer run of `recipe`, which goes on where the finished one here ended; `resume` runs it.

        Returns the checkpoint that it goes on from. The finished run stays until the longer one has finished. `origin`
        replaces parts of what the run depends on. Raises `FolderError` if no checkpoint is left.
        """
        checkpoint = self.checkpoint_to_go_on_from()
        best = self.best_checkpoint(checkpoint)
        if rank():
            self._wait_until(lambda: self.is_being_replaced, "plan the longer run")
            return checkpoint
        with hold(self.path):
            self.replacement._clear()
            for path in {checkpoint, best or checkpoint}:  # their files are never changed, so links will do
                shutil.copytree(path, self.replacement.checkpoints / path.name, copy_function=link_or_copy)
            shutil.copy2(self.metrics_log, self.replacement.metrics_log)
            if self.pruning.is_file():
                shutil.copy2(self.pruning, self.replacement.pruning)
            begun = self._begun()
            write_json(self.replacement.started, {**begun, "origin": {**begun["origin"], **origin}})
            write_text(self.replacement.recipe, dump_recipe(recipe))  # last: it marks the run as planned
        return checkpoint

    def _check(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
        if resume and overwrite:
            raise FolderError("--resume and --overwrite exclude each other")
        if self.path.exists() and not self.path.is_dir():
            raise FolderError(f"{self.path}: a file, not a folder", hint="--output DIR")
        if self.path.is_symlink() and not self.path.exists():
            raise FolderError(f"{self.path}: a broken link", hint="--output DIR")
        if not self.path.exists() or all(is_ours(path.name) for path in self.path.iterdir()):
            return
        if overwrite and self.path != self.final_path:  # `replacement` is distill's own, whatever a kill left in it
            return
        # A run first takes the lock, then writes the recipe; the user may delete the checkpoints of a finished run.
        marks = (self.checkpoints, self.manifest, self.final_path / LOCK)
        if not (self.recipe.is_file() and any(mark.exists() for mark in marks)):
            raise FolderError(f"{self.path}: not empty and not a run folder; nothing was touched", hint="--output DIR")
        if overwrite:
            self._check_links()
            return
        if self.is_being_replaced:
            problem = f"{self.path}: holds a finished run, and an unfinished one that will replace it"
            keep = f"delete {self.replacement.path} to keep the finished run"
            raise FolderError(problem, hint=f"--resume to go on, --overwrite to restart, or {keep}")
        if self.is_finished and not (resume and self.grows_by):
            raise FolderError(f"{self.path}: holds a finished run", hint="--overwrite, or --output for another folder")
        if not resume:
            raise FolderError(f"{self.path}: holds an unfinished run", hint="--resume to go on, --overwrite to restart")
        begun = load_recipe(self.recipe)
        # Settle both: `mark_for_replacement` wrote the recipe as it was given.
        differing = differences(as_settled(recipe, begun), as_settled(begun, recipe))
        differing = {key: values for key, values in differing.items() if key not in self.grows_by}
        if differing:
            kept = f", or delete {self.path} to keep the finished run" if self.path != self.final_path else ""
            problem = f"{self.path}: was started with another recipe, so it cannot be resumed"
            raise FolderError(
                *(f"{problem}: {key}: {values}" for key, values in differing.items()),
                hint=f"--overwrite to restart, or --output for another folder{kept}",
            )

    def _check_links(self) -> None:
        for place in self._made_folders:
            if place.is_dir() and (os.path.ismount(place) or not os.access(place, os.W_OK)):
                raise FolderError(
                    f"{place}: cannot be moved away: it is a mount point or not writable", hint="--output DIR"
                )
            if place.is_symlink():
                problem = f"{place}: a link, and distill does not delete what a link points to"
                raise FolderError(problem, hint="remove the link, or --output DIR")

    def as_begun(self, recipe: Recipe) -> Recipe:
        """Return `recipe` with its open choices settled as the run in this folder settled them, if there is one."""
        return as_settled(recipe, load_recipe(self.recipe)) if self.recipe.is_file() else recipe

    def check_origin(self, origin: Mapping[str, str]) -> None:
        """Raise `FolderError`, with one line for each, if something that the started run depends on has changed.

        `origin` maps the name of a dependency (data, teacher, torch) to its present version, number or fingerprint.
        """
        if not self.started.is_file():
            if self._has_work:
                problem = f"{self.path}: cannot be resumed: it does not say what it depends on (no {self.started.name})"
                raise FolderError(problem, hint="--overwrite to restart, or --output for another folder")
            return
        begun = self._begun()["origin"]
        differing = [name for name in {**origin, **begun} if origin.get(name) != begun.get(name)]
        if differing:
            problem = f"{self.path}: cannot be resumed: {{}} differs: {{:.20}} now, {{:.20}} when it began"
            raise FolderError(
                *(problem.format(name, origin.get(name, "none"), begun.get(name, "none")) for name in differing),
                hint="restore it, --overwrite to restart, or --output for another folder",
            )

    def start(self, recipe: Recipe, origin: Mapping[str, str], *, resume: bool, overwrite: bool) -> None:
        """Begin or resume a run of `recipe` in this folder, which the caller holds the lock of.

        `origin` is what the run depends on (see `check_origin`). Checks again, since another process may have used
        the folder since `prepare`.
        """
        self._check(recipe, resume=resume, overwrite=overwrite)
        if overwrite:
            if self.is_finished and self.path == self.final_path:  # since `prepare`, which then returns `replacement`
                raise FolderError(f"{self.path}: holds a run that has finished in the meantime", hint="try again")
            self._clear()
        if resume:
            self.check_origin(origin)
        try:
            (self.path / SEAL).unlink(missing_ok=True)
            write_text(self.recipe, dump_recipe(recipe))
            begun = {"run": uuid.uuid4().hex, "processors": []} | (self._begun() if resume else {})
            processors = dict.fromkeys([*begun["processors"], cpu_name()])
            write_json(self.started, {**begun, "processors": list(processors), "origin": dict(origin)})
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FolderError(f"{self.path}: cannot be written: {error.strerror}", hint="--output DIR") from None

    @property
    def origin(self) -> dict[str, str]:
        """What the run in this folder depended on when it began (see `check_origin`); empty if it is not known."""
        return self._begun().get("origin", {})

    @property
    def processors(self) -> list[str]:
        """The kinds of processor that the run in this folder was started and resumed on."""
        return self._begun().get("processors", [])

    @property
    def _run(self) -> str | None:
        return self._begun().get("run")

    def _begun(self) -> dict[str, Any]:
        """What started.json holds, empty if there is none; raises `FolderError` if the file is damaged."""
        if not self.started.is_file():
            return {}
        try:
            return checked(_Started, read_json(self.started), str(self.started))
        except FolderError as error:
            raise FolderError(*error.problems, hint="--overwrite to restart, or --output for another folder") from None

    @property
    def _has_work(self) -> bool:
        """Whether there is anything that a resumed run could continue from."""
        return any(self.checkpoints.glob("checkpoint-*"))

    def seal_checkpoint(self, path: Path) -> None:
        """Mark a complete checkpoint as one of this run, and seal it."""
        write_json(path / RUN, {"run": self._run})
        seal(path)

    def put_away_checkpoints(self, *, beyond: int) -> None:
        """Take away the checkpoints that are in the way of training from the step `beyond`.

        Damaged ones after that step are deleted. Undamaged ones are renamed if they are after it or of another run.
        Training will write checkpoints of the same steps, and it counts all that are there when it deletes old ones.
        """
        for path in self._checkpoints():
            damage = damage_of(path)
            if damage and _step(path) > beyond:
                remove(path)
            elif not damage and (_step(path) > beyond or not self._is_own(path)):
                path.rename(path.with_name(f"unused-{path.name}-{uuid.uuid4().hex[:8]}"))

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Seal the folder and write its manifest; if this is the `replacement` of a finished run, replace that run."""
        text = as_json(manifest)
        seal(self.path, self.sealed, coming={self.manifest.name: text})
        write_text(self.manifest, text)
        self._replace_finished()

    def _replace_finished(self) -> None:
        if self.path != self.final_path:
            old = [path for path in type(self)(self.final_path)._made if path != self.path]
            replace_contents(self.path, self.final_path, old)

    @property
    def sealed(self) -> tuple[str, ...]:
        """Name patterns of the files that are sealed when the run has finished."""
        return (*ANSWERING, self.metrics.name, self.metrics_log.name, self.predictions.name, self.pruning.name)

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest of the finished run; raises `FolderError` if it is missing or damaged."""
        check_whole(self.path, (self.manifest.name,))
        return checked(_Manifest, read_json(self.manifest), str(self.manifest))

    def read_metrics(self) -> dict[str, Any]:
        """Return the final figures; raises `FolderError` if they are missing or damaged."""
        check_whole(self.path, (self.metrics.name,))
        return checked(_Metrics, read_json(self.metrics), str(self.metrics))

    def read_log(self) -> list[dict[str, Any]]:
        """Return the entries that Trainer logged; raises `FolderError` if the log is missing or damaged."""
        check_whole(self.path, (self.metrics_log.name,))
        return read_lines(self.metrics_log, _Logged)

    def last_checkpoint(self) -> Path | None:
        """Return the last undamaged checkpoint whose best checkpoint is undamaged too; None if there is none."""
        for path in reversed(self._checkpoints()):
            fault = self._fault_of(path)
            if fault is None:
                return path
            log.warning("%s: %s; looking for an earlier one", path, fault)
        return None

    def _fault_of(self, checkpoint: Path) -> str | None:
        """Why training cannot be resumed from a checkpoint; None if it can."""
        if damage := damage_of(checkpoint):
            return damage
        if not self._is_own(checkpoint):
            return "is of another run"
        try:
            best = self.best_checkpoint(checkpoint)  # training ends with its weights
            if best is None:
                return None
            if damage := damage_of(best):
                return damage
            return None if self._is_own(best) else f"its best checkpoint, {best.name}, is of another run"
        except FolderError as error:
            return str(error)

    def best_checkpoint(self, checkpoint: Path) -> Path | None:
        """Return the best checkpoint so far, as a checkpoint of this run recorded it; None if it recorded none.

        Raises `FolderError` if the recorded name is not a checkpoint's, or if the state is of another step.
        """
        state = read_json(checkpoint / "trainer_state.json")
        best = state.get("best_model_checkpoint") if isinstance(state, dict) else state
        if isinstance(state, dict) and state.get("global_step", _step(checkpoint)) != _step(checkpoint):
            raise FolderError(f"{checkpoint}: trainer_state.json: is of step {state['global_step']!r:.20}")
        if best is None:
            return None
        name = Path(best).name if isinstance(best, str) else ""
        if not re.fullmatch(r"checkpoint-\d+", name):
            raise FolderError(f"{checkpoint}: trainer_state.json: best_model_checkpoint: no checkpoint: {best!r:.100}")
        return self.checkpoints / name

    def _checkpoints(self) -> list[Path]:
        found = [path for path in self.checkpoints.glob("checkpoint-*") if path.name.split("-", 1)[1].isdigit()]
        return sorted(found, key=_step)

    def _is_own(self, checkpoint: Path) -> bool:
        run = self._run
        return run is None or ((checkpoint / RUN).is_file() and read_json(checkpoint / RUN) == {"run": run})

    @property
    def _made_folders(self) -> tuple[Path, ...]:
        return (self.checkpoints, self.tensorboard, self.export, self.teacher_logits, self.replacement.path)

    @property
    def _made(self) -> Iterator[Path]:
        """What the run wrote, and only that, since users may keep their own files here.

        The manifest comes first: if a kill interrupts the removal, the folder must not look finished.
        """
        yield self.manifest
        yield from (self.metrics, self.metrics_log, self.predictions, self.learning_curve, self.started, self.pruning)
        yield self.path / SEAL
        for pattern in MODEL_FILES:
            yield from self.path.glob(pattern)
        if self.owns_card:
            yield self.card
        yield from self._made_folders

    def _clear(self) -> None:
        if self.path != self.final_path:  # `replacement` holds nothing of the user's
            remove(self.path)
            return
        for path in list(self._made):
            if path.is_dir():
                remove(path)
            else:
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class SweepFolder(RunFolder):
    """The folder that `distill sweep` writes: its trials, and a recipe with the values of the best one."""

    grows_by: ClassVar[tuple[str, ...]] = ("sweep.trials",)

    recipe = _Inside("sweep.yaml")  # the recipe of the search itself
    study = _Inside("trials.db")  # Optuna's storage, a database; after a kill it holds only complete trials
    results = _Inside("sweep.json")  # all trials, for reports and for people
    best = _Inside("recipe.yaml")  # the recipe with the values of the best trial, written last

    @property
    def is_finished(self) -> bool:
        return self.best.is_file() and self.recipe.is_file()

    @property
    def _has_work(self) -> bool:
        return self.study.is_file()

    def start(self, recipe: Recipe, origin: Mapping[str, str], *, resume: bool, overwrite: bool) -> None:
        """Begin or resume a search of `recipe` in this folder; see RunFolder.start."""
        super().start(recipe, origin, resume=resume, overwrite=overwrite)
        self.best.unlink(missing_ok=True)  # more trials may find a better recipe

    def finish_sweep(self, best: Recipe) -> None:
        """Seal the trials, then write the recipe of the best one, which marks the search as finished."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)  # Trainer makes this folder, but trials keep nothing in it
        seal(self.path, (self.results.name,))
        write_text(self.best, dump_recipe(best))
        self._replace_finished()

    def read_results(self) -> dict[str, Any]:
        """Return the trials (see search.run_search); raises `FolderError` if they are damaged."""
        check_whole(self.path, (self.results.name,))
        return checked(_Trials, read_json(self.results), str(self.results))

    @property
    def _made(self) -> Iterator[Path]:
        yield from (self.best, self.results, self.started, self.path / SEAL)
        yield from self.path.glob(f"{self.study.name}*")
        yield from (self.checkpoints, self.replacement.path)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-", 1)[1])
