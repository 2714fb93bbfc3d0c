"""Train the control: the same student, trained only on the labels, which shows what distillation gained."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from distill.distillation.answer_file import is_answer_file
from distill.distillation.pruned_student import pruned, read_pruning
from distill.distillation.student import architectures, base_of, begin, made_from, new_student, student_of
from distill.errors import FolderError
from distill.models.weights import weights_fingerprint
from distill.recipe.schema import Recipe
from distill.storage.run_folder import RunFolder
from distill.training.origin import origin_of
from distill.training.run import fit, open_training
from distill.training.tokens import tokenise_split

log = logging.getLogger("distill")


def train_control(
    recipe: Recipe,
    teacher: str,
    student: RunFolder,
    folder: RunFolder,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> RunFolder:
    """Train the same student only on the labels, with the same seed and number of steps; return its run folder.

    `student` is the finished run to compare with, and `teacher` what both are made of (see `made_of`). The control is
    evaluated as often as the student, so its checkpoint is chosen from as many. Raises `FolderError` if the teacher or
    the data are not those of `student`.
    """
    settings = student_of(recipe)
    manifest = student.read_manifest()
    taught_by = [digest for name, digest in manifest["parents"]["teachers"].items() if not is_answer_file(name)]
    others = (settings.model, settings.ngrams and settings.ngrams.tokenizer, settings.prune and settings.prune.model)
    is_made_of_teacher = not any(others)
    if is_made_of_teacher and weights_fingerprint(teacher) != taught_by[0]:
        raise FolderError(f"{teacher}: is not the teacher of {student.path}, so its control cannot be made from it")
    figures = student.read_metrics()["training"]
    training = open_training(
        recipe, "control", folder, architectures(settings, teacher), parent=manifest,
        changed=lambda section: _for_as_many_steps(section, figures["planned_steps"], figures["steps_per_epoch"]),
        resume=resume, overwrite=overwrite, device=device,
    )  # fmt: skip
    recipe, splits = training.recipe, training.splits
    settings = student_of(recipe)
    changed = [split for split, digest in splits.fingerprints.items() if manifest["data"].get(split) != digest]
    if changed:
        raise FolderError(
            f"{folder.path}: texts or labels of {' and '.join(changed)} have changed since {student.path} was trained, "
            "so a control could not be compared with it",
            hint="restore them, or distill the student again",
        )
    model, tokenizer = new_student(settings, recipe, teacher, splits, seed=training.arguments.seed)
    log.info("control: %s; learns from the labels alone", made_from(settings, teacher))
    pruning = read_pruning(student) if settings.prune else None
    if pruning:
        model = pruned(model, pruning)
    with training.clock("tokenising"):
        rows = tokenise_split("train", splits.train, tokenizer, training.truncation)
    with training.clock("start"):
        begin(settings, model, rows)
    origin = origin_of(splits, training.device, student=manifest["weights"], **base_of(settings, tokenizer))
    parents = {"student": str(student.path.absolute()), "student_weights": manifest["weights"]}
    parents["model"] = settings.model
    return fit(training, model, tokenizer, rows, origin=origin, parents=parents, pruning=pruning)


def _for_as_many_steps(training: Mapping[str, Any], steps: int, steps_per_epoch: float) -> dict[str, Any]:
    """Return the `training` section for exactly `steps`, evaluated at the student's steps, whatever its own epochs."""
    changed = {**training, "max_steps": steps}
    every = max(1, round(steps_per_epoch))
    if training["eval_strategy"] == "epoch":
        changed |= {"eval_strategy": "steps", "eval_steps": every}
        if training.get("eval_delay"):
            changed["eval_delay"] = round(training["eval_delay"] * steps_per_epoch)
    if training["save_strategy"] == "epoch":
        changed |= {"save_strategy": "steps", "save_steps": every}
    return changed
