"""One or more teachers to a student, and the control that tells whether they were worth it."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from typing_extensions import TypedDict

from distill.data.splits import Splits
from distill.distillation.hidden_states import OnlineTeacher, map_layers, relation_heads
from distill.distillation.teacher_logits import (
    KeptLogits,
    Teacher,
    check_unchanged,
    identify_teacher,
    teacher_logits,
    with_teacher_logits,
)
from distill.distillation.trainer import DistillationTrainer
from distill.errors import FolderError, ModelError, RecipeError
from distill.export.formats import check_formats
from distill.inference.classifier import Classifier, load
from distill.inference.sessions import load_torch
from distill.machine.devices import resolve_device
from distill.machine.ranks import world_size
from distill.measuring.metrics import commonest_share, compare_paired
from distill.models.loading import (
    align_labels,
    check_base,
    check_fit,
    check_single_label,
    class_names,
    is_path,
    layer_count,
    load_classifier,
    load_config,
    load_tokenizer,
    name_classes,
    named_by,
    parameter_count,
    reorder_classes,
    share_padding,
    skeleton,
    vocabulary_of,
    weights_fingerprint,
    with_attention_dropout,
)
from distill.models.students import build_from_config, build_from_layers, check_layers, choose_layers
from distill.recipe.schema import PRECISION, Loss, Recipe, Schedule, Student
from distill.storage.run_folder import RunFolder, checked, read_predictions
from distill.training.arguments import check_training, training_arguments
from distill.training.run import base_fingerprint, fit, open_training, origin_of, tokenised
from distill.training.tokens import tokenizer_fingerprint

log = logging.getLogger("distill")

TEACHER_HINT = "distill teacher RECIPE --output DIR makes one"


def check_teachers(names: Sequence[str]) -> None:
    """Raise `ModelError` if one of `names` is the path of a folder that is not there."""
    for name in names:
        if is_path(name) and not Path(name).is_dir():
            raise ModelError(f"--teacher: {name}: no such folder", hint=TEACHER_HINT.replace("DIR", name))


def check_student(recipe: Recipe, teacher: str, device: str) -> None:
    """Raise what is wrong with the recipe's student and its formats before any training.

    Of `teacher` only the configuration is read. What data or weights alone can show is left for later.
    """
    settings, resolved = _student_of(recipe), resolve_device(device)
    check_training(settings.training, resolved, "student")
    if world_size() == 1:  # several processes join each other where the first arguments are made: those of their stage
        # Which precision is settled by a stopwatch has no part in what may be refused.
        settled = {} if any(name in settings.training for name in PRECISION) else {"bf16": False}
        training = {**settings.training, **settled}
        training_arguments(training, RunFolder(Path(settings.output)), resolved, stage="student")
    config = load_config(teacher)
    if settings.model is None:
        config = with_attention_dropout(config, settings.attention_dropout)
    if settings.layers is not None:
        student_config = check_layers(skeleton(teacher, config), settings.layers)
    elif settings.config is not None:
        student_config = build_from_config(config, settings.config, seed=0).config
        check_fit(student_config, "student.config", max_tokens=recipe.data.max_tokens, vocabulary=0)
    else:
        assert settings.model is not None
        with named_by("student.model"):
            check_base(settings.model, recipe.data.label_names)
            student_config, tokenizer = load_config(settings.model), load_tokenizer(settings.model)
        with_attention_dropout(student_config, settings.attention_dropout)
        check_fit(
            student_config, settings.model, max_tokens=recipe.data.max_tokens, vocabulary=vocabulary_of(tokenizer)
        )
        _check_one_tokenizer(settings, tokenizer, teacher)
    check_formats(recipe.export.formats, student_config.model_type)
    if settings.loss.hidden_states:
        map_layers(layer_count(config), layer_count(student_config), settings.loss.hidden_states.teacher_layers)
    if settings.loss.attention_relations:
        relation_heads(config, student_config, settings.loss.attention_relations.heads)


def distil(
    recipe: Recipe,
    teachers: Sequence[str],
    folder: RunFolder,
    *,
    cache: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    device: str = "auto",
) -> RunFolder:
    """Distil the recipe's student from the classifiers `teachers` and leave a run folder.

    A teacher that is no better than always answering the commonest class is an error unless `force`d. `cache` is where
    teacher logits are kept (default: in each teacher's folder). A student of layers is made of the first teacher's.
    """
    settings = _student_of(recipe)
    weights = weights_of(settings, teachers)
    check_spares(folder, teachers)
    with named_by("--teacher", TEACHER_HINT):
        check_student(recipe, teachers[0], device)
    training = open_training(
        recipe, "student", folder, architectures(settings, teachers[0]), parent=manifest_of(teachers[0]),
        resume=resume, overwrite=overwrite, device=device,
    )  # fmt: skip
    recipe, splits, arguments, clock = training.recipe, training.splits, training.arguments, training.clock
    settings = _student_of(recipe)
    with clock("teacher_logits"):
        known = [identify_teacher(name, splits.label_names) for name in teachers]
    model, tokenizer = new_student(settings, recipe, teachers[0], splits.label_names, seed=arguments.seed)
    log.info("student: %s; learns by %s", _origin(settings, teachers[0]), loss_in_words(settings.loss))
    origin = origin_of(splits, training.device, **fingerprints_of(known), **base_of(settings, tokenizer))
    if resume:
        training.folder.check_origin(origin)  # before hours go into a teacher's answers
    online = online_teacher(settings, teachers, model, tokenizer, max_tokens=recipe.data.max_tokens)
    if online and online.projects and arguments.ddp_find_unused_parameters is None:
        arguments.ddp_find_unused_parameters = False  # projections work outside forward, where DDP does not see them
    with clock("teacher_logits"):
        answers = answers_of(known, splits, cache, device, bf16=arguments.bf16, force=force)
        for teacher in known:  # layers, hidden states and answers were read from it, one after the other
            check_unchanged(teacher)
    with clock("tokenising"):
        rows = answered_rows(answers, splits, tokenizer, recipe.data.max_tokens)
    parents = {
        str(Path(teacher.name).absolute() if Path(teacher.name).is_dir() else teacher.name): teacher.weights
        for teacher in known
    }
    return fit(
        training, model, tokenizer, rows, origin=origin, parents={"teachers": parents, "model": settings.model},
        trainer=functools.partial(
            DistillationTrainer, loss=settings.loss, teacher_weights=weights, online=online
        ),
    )  # fmt: skip


def control(
    recipe: Recipe,
    teacher: str,
    student: RunFolder,
    folder: RunFolder,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> RunFolder:
    """Train the same student, with the same seed and number of steps, on the labels alone: what distilling is worth.

    `student` is the finished run to compare with. It is evaluated as often, so its checkpoint is chosen among as many.
    """
    settings = _student_of(recipe)
    manifest = student.read_manifest()
    taught_by = list(manifest["parents"]["teachers"].values())
    if settings.model is None and weights_fingerprint(teacher) != taught_by[0]:
        raise FolderError(
            f"{teacher}: is not the teacher that {student.path} was made from, so its control cannot be made from it"
        )
    figures = student.read_metrics()["training"]
    training = open_training(
        recipe, "control", folder, architectures(settings, teacher), parent=manifest,
        changed=lambda section: _for_as_many_steps(section, figures["planned_steps"], figures["steps_per_epoch"]),
        resume=resume, overwrite=overwrite, device=device,
    )  # fmt: skip
    recipe, splits = training.recipe, training.splits
    settings = _student_of(recipe)
    changed = [split for split, digest in splits.fingerprints.items() if manifest["data"].get(split) != digest]
    if changed:
        raise FolderError(
            f"{folder.path}: texts or labels of {' and '.join(changed)} have changed since {student.path} was trained, "
            "so its control cannot be compared with it",
            hint="put them back, or distil anew",
        )
    model, tokenizer = new_student(settings, recipe, teacher, splits.label_names, seed=training.arguments.seed)
    log.info("control: %s; learns by the labels alone", _origin(settings, teacher))
    with training.clock("tokenising"):
        rows = tokenised("train", splits.train, tokenizer, recipe.data.max_tokens)
    origin = origin_of(splits, training.device, student=manifest["weights"], **base_of(settings, tokenizer))
    parents = {"student": str(student.path.absolute()), "student_weights": manifest["weights"]}
    return fit(training, model, tokenizer, rows, origin=origin, parents={**parents, "model": settings.model})


def compare_with_controls(models: Sequence[Path], notes: list[str]) -> list[dict[str, Any]]:
    """Return how students stand against their controls on test, one entry for each pair among the run folders `models`.

    A control whose student is not among them becomes a note. Raises `FolderError` where the two saw other test texts.
    """
    manifests = {model: run.read_manifest() for model in models if (run := RunFolder(model)).is_finished}
    for model, manifest in manifests.items():
        kind = _OfControl if manifest["role"] == "control" else _OfAny
        checked(kind, manifest, str(RunFolder(model).manifest))
    found = []
    for model, manifest in manifests.items():
        if manifest["role"] != "control":
            continue
        students = [
            other for other, its in manifests.items() if its["weights"] == manifest["parents"]["student_weights"]
        ]
        if not students:
            notes.append(f"{model} is the control of a student that is not here ({manifest['parents']['student']}).")
            continue
        ids, gold_labels, student_logits = read_predictions(RunFolder(students[0]).predictions)
        control_ids, _, control_logits = read_predictions(RunFolder(model).predictions)
        if ids != control_ids or manifests[students[0]]["data"]["test"] != manifest["data"]["test"]:
            raise FolderError(f"{model}: was tested on other texts than {students[0]}; make it anew")
        correct = [logits.argmax(axis=1) == gold_labels for logits in (student_logits, control_logits)]
        found.append({"student": str(students[0]), "control": str(model), **compare_paired(*correct)})
    return found


class _OfAny(TypedDict):
    """What of a manifest says which model it is of."""

    weights: str


class _Student(TypedDict):
    student: str
    student_weights: str


class _OfControl(_OfAny):
    parents: _Student


def fingerprints_of(teachers: Sequence[Teacher]) -> dict[str, str]:
    """Return what a run depends on of its teachers, for its origin (see fitting.origin_of)."""
    return {f"teacher {number}": teacher.fingerprint for number, teacher in enumerate(teachers, 1)}


def base_of(settings: Student, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return what a run depends on of the pretrained model that its student begins with, if it begins with one."""
    return {"student.model": base_fingerprint(settings.model, tokenizer)} if settings.model else {}


def manifest_of(model: str) -> dict[str, Any] | None:
    """Return the manifest of a model that distill trained, None of any other, whatever a file of that name holds."""
    folder = RunFolder(Path(model))
    try:
        found = folder.read_manifest() if folder.is_finished else None
    except FolderError:  # what must be whole of a teacher is looked at where it is read
        return None
    return found if isinstance(found, dict) and "role" in found else None


def _student_of(recipe: Recipe) -> Student:
    if recipe.student is None:
        raise RecipeError("student: missing, and a student is to be distilled")
    return recipe.student


def weights_of(settings: Student, teachers: Sequence[str]) -> tuple[float, ...]:
    """Return how much each of `teachers` counts; raises `RecipeError` where the recipe weighs more or fewer."""
    weights = settings.teacher_weights or (1.0,) * len(teachers)
    if len(weights) != len(teachers):
        raise RecipeError(
            f"student.teacher_weights: wants one for each of {len(teachers)} teachers, got {len(weights)}"
        )
    return weights


def check_spares(folder: RunFolder, teachers: Sequence[str]) -> None:
    """Raise `FolderError` where what is written to `folder` would overwrite one of `teachers`."""
    for name in teachers:
        if os.path.realpath(folder.path) == os.path.realpath(name):
            raise FolderError(f"{folder.path}: the student would overwrite its teacher", hint="--output DIR")


def _for_as_many_steps(training: Mapping[str, Any], steps: int, steps_per_epoch: float) -> dict[str, Any]:
    """`training` for exactly `steps`, evaluated at the same steps as before however long its own epochs are."""
    changed = {**training, "max_steps": steps}
    every = max(1, round(steps_per_epoch))
    if training["eval_strategy"] == "epoch":
        changed |= {"eval_strategy": "steps", "eval_steps": every}
        if training.get("eval_delay"):
            changed["eval_delay"] = round(training["eval_delay"] * steps_per_epoch)
    if training["save_strategy"] == "epoch":
        changed |= {"save_strategy": "steps", "save_steps": every}
    return changed


def new_student(
    settings: Student, recipe: Recipe, teacher: str, label_names: Sequence[str], *, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the student before training, and its tokenizer: its own, or the teacher's where it is made from it."""
    max_tokens = recipe.data.max_tokens
    if settings.model is not None:
        with named_by("student.model"):
            tokenizer = load_tokenizer(settings.model)
            model = load_classifier(
                settings.model, label_names, seed=seed, max_tokens=max_tokens, vocabulary=vocabulary_of(tokenizer),
                attention_dropout=settings.attention_dropout,
            )  # fmt: skip
        share_padding(model.config, tokenizer)
        return model, tokenizer
    tokenizer, config = load_tokenizer(teacher), load_config(teacher)
    check_single_label(config, teacher)
    check_fit(config, teacher, max_tokens=max_tokens, vocabulary=vocabulary_of(tokenizer))
    share_padding(config, tokenizer)
    config = with_attention_dropout(config, settings.attention_dropout)
    if settings.config is not None:
        name_classes(config, label_names)
        model = build_from_config(config, settings.config, seed=seed)
        check_fit(model.config, "student.config", max_tokens=max_tokens, vocabulary=vocabulary_of(tokenizer))
        return model, tokenizer
    assert settings.layers is not None
    whole = load_torch(teacher, config, "float32")
    columns = align_labels(class_names(config, teacher), label_names, teacher=teacher)
    set_seed(seed)
    return build_from_layers(reorder_classes(whole, columns, label_names), settings.layers), tokenizer


def architectures(settings: Student, teacher: str) -> list[str]:
    """Return the architectures that a student's training runs: its own, and its teacher's if that runs beside it."""
    runs_teacher = settings.model is None or settings.loss.runs_teacher
    names = [name for name in (settings.model, teacher if runs_teacher else None) if name]
    return [load_config(name).model_type for name in names]


def _origin(settings: Student, teacher: str) -> str:
    """In words, what a student is made from."""
    if settings.layers is not None:
        count = layer_count(load_config(teacher))
        copied = ", ".join(map(str, choose_layers(count, settings.layers)))
        return f"made of layers {copied} of the teacher's {count} (0 to {count - 1})"
    if settings.config is not None:
        sizes = ", ".join(f"{key} {value}" for key, value in settings.config.items())
        return f"the teacher's shape with {sizes}, from random weights"
    return f"pretrained, from {settings.model}"


def loss_in_words(loss: Loss) -> str:
    """Return which losses a student learns by, with their temperature and weights; what changes, from start to end."""
    soft = loss.soft
    if soft != "logit_mse":  # which has no temperature
        soft += f" at temperature {_shown(loss.temperature)}"
    losses = [f"{soft} with soft weight {_shown(loss.soft_weight)} (the rest: cross-entropy on labels)"]
    if loss.hidden_states:
        losses.append(f"hidden_states ({loss.hidden_states.distance}, weight {_shown(loss.hidden_states.weight)})")
    if loss.attention_relations:
        losses.append(f"attention_relations (weight {_shown(loss.attention_relations.weight)})")
    return ", ".join(losses)


def _shown(schedule: Schedule) -> str:
    same = schedule.start == schedule.end
    return f"{schedule.start:g}" if same else f"{schedule.start:g} to {schedule.end:g}"


def kept_logits(
    teacher: Teacher, splits: Splits, cache: Path | None, device: str, *, bf16: bool, title: str = "teacher"
) -> dict[str, KeptLogits]:
    """Return the teacher's logits on each split that a student asks for, of which only the folders were looked at.

    They are computed in bf16 if the student trains in it (`bf16`): one decision for a run, and no stopwatch's. The
    splits share one classifier, loaded when the first of them has something to answer.
    """
    resolved = resolve_device(device)

    @functools.cache
    def load_teacher() -> Classifier:
        return load(teacher.name, resolved, dtype="bfloat16" if bf16 else None)

    dtype = "bfloat16" if bf16 else "float32"
    return {
        split: KeptLogits(teacher, rows, load_teacher, dtype=dtype, cache=cache, title=f"{title}: {split}")
        for split in ("validation", "train", "transfer")
        if (rows := getattr(splits, split)) is not None
    }


def answers_of(
    teachers: Sequence[Teacher], splits: Splits, cache: Path | None, device: str, *, bf16: bool, force: bool
) -> list[dict[str, Dataset]]:
    """Return each teacher's logits on train and, where there is one, transfer; no teacher stays in memory.

    They are kept in `cache` (default: in each teacher's folder), and what is there is not computed again. Raises
    `ModelError` for a teacher that is no better than always answering the commonest class, unless it is `force`d.
    """
    titles = [Path(teacher.name).name if len(teachers) > 1 else "teacher" for teacher in teachers]
    kept = [
        kept_logits(teacher, splits, cache, device, bf16=bf16, title=title)
        for teacher, title in zip(teachers, titles, strict=True)
    ]
    for teacher, by_split, title in zip(teachers, kept, titles, strict=True):
        # All of them, before hours go into the first one's answers.
        _check_teacher(teacher, teacher_logits(by_split.pop("validation")), splits.validation, title, force=force)
    answers = []
    while kept:
        by_split = kept.pop(0)  # and with it the classifier
        answers.append({split: teacher_logits(logits) for split, logits in by_split.items()})
    return answers


def _check_teacher(teacher: Teacher, answers: Dataset, validation: Dataset, title: str, *, force: bool) -> None:
    """Raise `ModelError` where the teacher is no better on validation than always answering the commonest class."""
    predicted = np.asarray(answers["teacher_logits"][:]).argmax(axis=1)
    gold_labels = np.asarray(validation["label"][:])
    accuracy = float((predicted == gold_labels).mean())
    majority = commonest_share(gold_labels)
    log.info("%s: validation accuracy %.4f; the commonest class alone would give %.4f", title, accuracy, majority)
    if accuracy > majority:
        return
    problem = f"validation accuracy {accuracy:.4f} is no better than always answering the commonest class"
    problem = f"{teacher.name}: {problem} ({majority:.4f}): it has nothing to teach"
    if not force:
        raise ModelError(problem, hint="train the teacher longer or at another learning rate; --force distils anyway")
    log.warning("%s; distilled all the same (--force)", problem)


def answered_rows(
    answers: Sequence[Mapping[str, Dataset]], splits: Splits, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> Dataset:
    """Return the texts that the teachers answered, tokenised, with each teacher's logits beside them."""
    rows = []
    for split in answers[0]:
        part = tokenised(split, getattr(splits, split), tokenizer, max_tokens)
        rows.append(with_teacher_logits(part, [answer[split] for answer in answers]))
    return concatenate_datasets(rows)


def online_teacher(
    settings: Student,
    teachers: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
) -> OnlineTeacher | None:
    """Return the teacher that the student's loss runs at every step; None where it needs cached logits alone."""
    hidden, relations = settings.loss.hidden_states, settings.loss.attention_relations
    if not settings.loss.runs_teacher:
        return None
    names = _online_losses(settings)
    if len(teachers) > 1:
        raise RecipeError(f"student.loss: {names} match one teacher's layers, got {len(teachers)} teachers")
    _check_one_tokenizer(settings, tokenizer, teachers[0])
    config = load_config(teachers[0])
    check_fit(config, teachers[0], max_tokens=max_tokens, vocabulary=vocabulary_of(tokenizer))
    share_padding(config, tokenizer)
    teacher = load_torch(teachers[0], config, "float32")
    log.info(
        "student: %s: the teacher (%.1f M parameters) runs at every step, beside a student of %.1f M; "
        "the other losses need its cached logits alone",
        names, parameter_count(teacher) / 1e6, parameter_count(model) / 1e6,
    )  # fmt: skip
    return OnlineTeacher(
        teacher,
        model,
        distance=hidden.distance if hidden else None,
        teacher_layers=hidden.teacher_layers if hidden else None,
        relations=relations is not None,
        heads=relations.heads if relations else None,
    )


def _online_losses(settings: Student) -> str:
    return " and ".join(name for name in ("hidden_states", "attention_relations") if getattr(settings.loss, name))


def _check_one_tokenizer(settings: Student, tokenizer: PreTrainedTokenizerBase, teacher: str) -> None:
    if not settings.loss.runs_teacher:
        return
    if tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(load_tokenizer(teacher)):
        names = _online_losses(settings)
        raise RecipeError(f"student.loss: {names} compare token by token, but teacher and student tokenise differently")
