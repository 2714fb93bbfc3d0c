"""Check whether a finished run was made from the same recipe, data and teachers, so that it can be kept."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.errors import FolderError, ModelError
from distill.models.loading import load_tokenizer
from distill.models.weights import teacher_digest
from distill.recipe.file import load_recipe
from distill.recipe.schema import Recipe, Stage, as_settled, differences, with_absolute_paths
from distill.storage.checksums import ANSWERING, check_whole
from distill.storage.run_folder import RunFolder
from distill.training.origin import base_fingerprint
from distill.training.run import Role, shared_splits, stage_of

log = logging.getLogger("distill")

LENGTH = {"num_train_epochs": 3, "max_steps": -1}  # what makes a run longer, with transformers' defaults


def already_finished(
    folder: RunFolder, recipe: Recipe, role: Role, teachers: Sequence[str] = (), *, student: RunFolder | None = None
) -> bool:
    """Say whether the run to resume in `folder` has finished with this recipe, these teachers and these texts.

    Raises `FolderError` with the differences if it finished with others, or if it has another `role`. `student` is the
    run that a control is compared with.
    """
    folder.recover()
    if not folder.is_finished or folder.is_being_replaced:
        return False
    manifest = folder.read_manifest()
    if manifest["role"] != role:
        raise FolderError(f"{folder.path}: holds a finished {manifest['role']}, not a {role}", hint="--output DIR")
    finished_with(folder, recipe, teachers, lambda: shared_splits(recipe).fingerprints, student=student)
    log.info("%s: has finished with this recipe, so there is nothing to resume (%s)", role, folder.path)
    return True


def goes_on_longer(folder: RunFolder, recipe: Recipe, role: Role, teachers: Sequence[str] = ()) -> bool:
    """Say whether the recipe makes a finished run only longer, with more epochs or steps; nothing is written.

    Raises `FolderError` if it does and the run cannot go on: it has other data or `teachers`, it stopped early, or no
    checkpoint is left. A control goes on whichever student it was for, because its own may have gone on before.
    """
    folder.recover()
    if not folder.is_finished or folder.is_being_replaced or folder.read_manifest()["role"] != role:
        return False
    found, stage = load_recipe(folder.recipe), stage_of(role)
    wanted = as_settled(with_absolute_paths(recipe), found)
    old, new = getattr(found, stage), getattr(wanted, stage)
    if old is None or differences(wanted.data, found.data) or _length(old, new) is None:
        return False
    if _what_matters(_as_long(old)) != _what_matters(_as_long(new)):
        return False
    finished_with(
        folder, wanted.model_copy(update={stage: old}), teachers, lambda: shared_splits(recipe).fingerprints,
        of_any_student=True,
    )  # fmt: skip
    if folder.read_metrics()["training"].get("stopped_early"):
        problem = f"{folder.path}: stopped early, so it would stop at once, and not go on"
        raise FolderError(problem, hint="--overwrite with another early_stopping_patience")
    folder.checkpoint_to_go_on_from()
    return True


def go_on_longer(folder: RunFolder, recipe: Recipe, role: Role, origin: Mapping[str, str] | None = None) -> None:
    """Plan the longer run that `goes_on_longer` has allowed; it is then one to resume.

    `origin` has what it depends on besides what the finished run did (see `RunFolder.check_origin`).
    """
    found, stage = load_recipe(folder.recipe), stage_of(role)
    wanted = as_settled(with_absolute_paths(recipe), found)
    length = _length(getattr(found, stage), getattr(wanted, stage))
    assert length is not None
    checkpoint = folder.plan_longer(wanted, origin or {})
    key, before, now = length
    log.warning(
        "%s: goes on from %s of the finished run, with %s %g instead of %g; the learning rate follows the longer "
        "schedule from here, so this is not the same as a run of %g from the beginning",
        role, checkpoint.name, key, now, before, now,
    )  # fmt: skip


def _length(old: Stage, new: Stage) -> tuple[str, float, float] | None:
    """Return the key that makes a run longer, with both values; None if it is no longer than before."""
    steps = [section.training.get("max_steps", LENGTH["max_steps"]) for section in (old, new)]
    key = "max_steps" if min(steps) > 0 else "num_train_epochs"
    before, now = (section.training.get(key, LENGTH[key]) for section in (old, new))
    return None if min(steps) <= 0 < max(steps) or now <= before else (key, before, now)


def _as_long(stage: Stage) -> Stage:
    """Return the section without what makes a run longer."""
    return stage.model_copy(update={"training": {**stage.training, **dict.fromkeys(LENGTH)}})


def finished_with(
    folder: RunFolder,
    recipe: Recipe,
    teachers: Sequence[str],
    data: Callable[[], Mapping[str, str]],
    *,
    student: RunFolder | None = None,
    of_any_student: bool = False,
) -> bool:
    """Return True if a finished run had the same data, settings and teachers, else raise `FolderError`.

    `data` returns the current fingerprints of the recipe's splits. `student` is the run that a control is compared
    with, by default the one beside it; that is not checked if a control `of_any_student` will do.
    """
    found, manifest = load_recipe(folder.recipe), folder.read_manifest()
    wanted = as_settled(with_absolute_paths(recipe), found)
    role, parents = manifest["role"], manifest["parents"]
    check_whole(folder.path, folder.sealed)
    for path in map(Path, teachers if role == "student" else ()):
        if not path.is_file():  # a file of answers, which has no checksums
            check_whole(path, ANSWERING)
    for section in ("data",) if role == "baseline" else ("data", stage_of(role)):
        differing = differences(*(_what_matters(getattr(one, section)) for one in (wanted, found)))
        if differing:
            problem = f"{folder.path}: finished with another recipe"
            raise FolderError(
                *(f"{problem}: {section}.{key}: {values}" for key, values in differing.items()),
                hint="--overwrite to redo it, or --output for another folder",
            )
    changed = [split for split, digest in data().items() if manifest["data"].get(split) != digest]
    if changed:
        raise FolderError(
            *(f"{folder.path}: finished with other data: texts or labels of {split} have changed" for split in changed),
            hint="--overwrite to redo it, or --output for another folder",
        )
    settings = None if role == "baseline" else getattr(wanted, stage_of(role))
    prune = getattr(settings, "prune", None)
    bases = {f"{stage_of(role)}.model": settings and settings.model, "student.prune.model": prune and prune.model}
    for key, base in bases.items():
        # A finished run no longer needs its base model, so one on the Hub, deleted or damaged is not checked.
        if key in folder.origin and Path(base).is_dir():
            current = folder.origin[key]
            with contextlib.suppress(ModelError):
                current = base_fingerprint(base, load_tokenizer(base), pretrained=getattr(settings, "pretrained", True))
            if current != folder.origin[key]:
                problem = f"{folder.path}: began with another {key}: {base} has changed since"
                raise FolderError(problem, hint="--overwrite to redo it")
    if role == "student" and list(parents["teachers"].values()) != [teacher_digest(name) for name in teachers]:
        raise FolderError(f"{folder.path}: was distilled from another teacher", hint="--overwrite to redo it")
    if role == "control" and not of_any_student:
        student = student or RunFolder(folder.path.parent / "student")
        if parents["student_weights"] != student.read_manifest()["weights"]:
            raise FolderError(f"{folder.path}: is the control of another student", hint="--overwrite to redo it")
    return True


def _what_matters(section: Any) -> Any:
    """The section without the keys that do not change the run itself: its folder, and whether a control follows."""
    return section.model_copy(update={"output": "", "control": False}) if isinstance(section, Stage) else section
