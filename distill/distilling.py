"""One or more teachers to a student, and the control that tells whether they were worth it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from distill.data import Splits, tokenizer_fingerprint
from distill.devices import has_fast_bf16, resolve_device
from distill.errors import FolderError, ModelError, RecipeError
from distill.fitting import fit, read_splits, tokenised
from distill.hidden_states import OnlineTeacher
from distill.models import (
    align_labels,
    build_from_config,
    build_from_layers,
    check_fit,
    load_classifier,
    load_config,
    load_tokenizer,
    parameter_count,
    reorder_classes,
    weights_fingerprint,
    with_attention_dropout,
)
from distill.predictors import Classifier, load, load_torch
from distill.recipe import Recipe, Student, with_absolute_paths
from distill.run_folder import RunFolder, read_json
from distill.teacher_logits import teacher_logits, with_teacher_logits
from distill.training import DistillationTrainer, training_arguments

log = logging.getLogger("distill")


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
    resolved = resolve_device(device)
    recipe = with_absolute_paths(recipe)
    for name in teachers:
        if folder.path.resolve() == Path(name).resolve():
            raise FolderError(f"{folder.path}: the student would overwrite its teacher", hint="--output DIR")
    weights = settings.teacher_weights or (1.0,) * len(teachers)
    if len(weights) != len(teachers):
        raise RecipeError(
            f"student.teacher_weights: wants one for each of {len(teachers)} teachers, got {len(weights)}"
        )
    folder.check(recipe, resume=resume, overwrite=overwrite)
    arguments, precision = training_arguments(settings.training, folder, resolved, stage="student")
    splits = read_splits(recipe)
    if splits.transfer is not None and settings.loss.soft_weight.start == settings.loss.soft_weight.end == 0:
        raise RecipeError("student.loss.soft_weight: 0, but the transfer texts have nothing but the soft loss")
    model, tokenizer = _new_student(settings, recipe, teachers[0], splits.label_names, seed=arguments.seed)
    online = _online_teacher(settings, teachers, model, tokenizer)
    start = time.perf_counter()
    answers = [
        _answers(name, splits, cache, device=resolved, single=len(teachers) == 1, force=force) for name in teachers
    ]
    prepared = {"teacher_logits_seconds": time.perf_counter() - start}
    rows = []
    for split in answers[0]:
        part = tokenised(split, getattr(splits, split), tokenizer, recipe.data.max_tokens)
        rows.append(with_teacher_logits(part, [answer[split] for answer in answers]))
    parents = {
        str(Path(name).absolute() if Path(name).is_dir() else name): weights_fingerprint(name) for name in teachers
    }
    return fit(
        model, tokenizer, concatenate_datasets(rows), splits, recipe, settings, folder, arguments, precision,
        overwrite=overwrite, device=resolved, role="student", parents={"teachers": parents, "model": settings.model},
        prepared=prepared, trainer_class=DistillationTrainer, loss=settings.loss, teacher_weights=weights,
        online=online,
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
    resolved = resolve_device(device)
    recipe = with_absolute_paths(recipe)
    folder.check(recipe, resume=resume, overwrite=overwrite)
    steps = read_json(student.metrics)["training"]["planned_steps"]
    training = _for_as_many_steps(settings.training, steps)
    arguments, precision = training_arguments(training, folder, resolved, stage="student")
    splits = read_splits(recipe)
    model, tokenizer = _new_student(settings, recipe, teacher, splits.label_names, seed=arguments.seed)
    rows = tokenised("train", splits.train, tokenizer, recipe.data.max_tokens)
    return fit(
        model, tokenizer, rows, splits, recipe, settings, folder, arguments, precision,
        overwrite=overwrite, device=resolved, role="control",
        parents={"student": str(student.path.absolute()), "student_weights": read_json(student.manifest)["weights"],
                 "model": settings.model},
    )  # fmt: skip


def _student_of(recipe: Recipe) -> Student:
    if recipe.student is None:
        raise RecipeError("student: missing, and a student is to be distilled")
    return recipe.student


def _for_as_many_steps(training: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """`training` for exactly `steps`, with as many evaluations at the same steps however long its own epochs are."""
    changed = {**training, "max_steps": steps}
    if training["eval_strategy"] == "epoch":
        every = max(1, round(steps / training.get("num_train_epochs", 3)))
        changed |= {"eval_strategy": "steps", "eval_steps": every, "save_strategy": "steps", "save_steps": every}
    return changed


def _new_student(
    settings: Student, recipe: Recipe, teacher: str, label_names: Sequence[str], *, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The student before training, and its tokenizer: its own, or the teacher's where it is made from the teacher."""
    max_tokens = recipe.data.max_tokens
    if settings.model is not None:
        tokenizer = load_tokenizer(settings.model)
        model = load_classifier(
            settings.model, label_names, seed=seed, max_tokens=max_tokens, vocabulary=len(tokenizer),
            attention_dropout=settings.attention_dropout,
        )  # fmt: skip
        return model, tokenizer
    tokenizer, config = load_tokenizer(teacher), load_config(teacher)
    check_fit(config, teacher, max_tokens=max_tokens, vocabulary=len(tokenizer))
    if settings.attention_dropout is not None:
        config = with_attention_dropout(config, settings.attention_dropout)
    if settings.config is not None:
        config.id2label = dict(enumerate(label_names))
        config.label2id = {label: index for index, label in enumerate(label_names)}
        model = build_from_config(config, settings.config, seed=seed)
        check_fit(model.config, "student.config", max_tokens=max_tokens, vocabulary=len(tokenizer))
        return model, tokenizer
    assert settings.layers is not None
    whole = load_torch(teacher, config, "float32")
    columns = align_labels([config.id2label[index] for index in range(config.num_labels)], label_names, teacher=teacher)
    set_seed(seed)
    return build_from_layers(reorder_classes(whole, columns, label_names), settings.layers), tokenizer


def _answers(
    teacher: str, splits: Splits, cache: Path | None, *, device: str, single: bool, force: bool
) -> dict[str, Dataset]:
    """The teacher's logits on train and, where there is one, transfer; checked on validation to be worth learning."""
    loaded: list[Classifier] = []  # once for all splits, and not at all where every answer is kept already

    def load_once() -> Classifier:
        if not loaded:
            dtype = "bfloat16" if has_fast_bf16(resolve_device(device)) else None
            loaded.append(load(teacher, device, dtype=dtype))
        return loaded[0]

    title = "teacher" if single else Path(teacher).name
    answers = {
        split: teacher_logits(
            teacher, getattr(splits, split), splits.label_names, load_once, cache=cache, title=f"{title}: {split}"
        )
        for split in ("validation", "train", "transfer")
        if getattr(splits, split) is not None
    }
    _check_teacher(teacher, answers.pop("validation"), np.asarray(splits.validation["label"]), force=force)
    return answers


def _check_teacher(teacher: str, logits: Dataset, gold_labels: np.ndarray, *, force: bool) -> None:
    predicted = np.asarray(logits["teacher_logits"]).argmax(axis=1)
    accuracy = float((predicted == gold_labels).mean())
    majority = float(np.bincount(gold_labels).max() / len(gold_labels))
    log.info("%s: validation accuracy %.4f; the commonest class alone would give %.4f", teacher, accuracy, majority)
    if accuracy > majority:
        return
    problem = f"validation accuracy {accuracy:.4f} is no better than always answering the commonest class"
    problem = f"{teacher}: {problem} ({majority:.4f}): it has nothing to teach"
    if not force:
        raise ModelError(problem, hint="train the teacher longer or at another learning rate; --force distils anyway")
    log.warning("%s; distilled all the same (--force)", problem)


def _online_teacher(
    settings: Student, teachers: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> OnlineTeacher | None:
    hidden, relations = settings.loss.hidden_states, settings.loss.attention_relations
    if not settings.loss.runs_teacher:
        return None
    names = " and ".join(name for name in ("hidden_states", "attention_relations") if getattr(settings.loss, name))
    if len(teachers) > 1:
        raise RecipeError(f"student.loss: {names} match one teacher's layers, got {len(teachers)} teachers")
    if tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(load_tokenizer(teachers[0])):
        raise RecipeError(f"student.loss: {names} compare token by token, but teacher and student tokenise differently")
    teacher = load_torch(teachers[0], load_config(teachers[0]), "float32")
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
        relation_heads=relations.heads if relations else None,
    )
