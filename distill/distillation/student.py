"""Make a student from a recipe, and distill one or more teachers into it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from distill.data.answers import answers_in_words
from distill.data.encoding import Truncation, truncation_of, vocabulary_of
from distill.data.splits import Splits
from distill.distillation.answer_file import AnswerFile
from distill.distillation.ngram_start import start_from_counts
from distill.distillation.online_teacher import OnlineTeacher, map_layers, relation_heads
from distill.distillation.pruned_student import check_prunable, plan_pruning, pruned, read_pruning, tell
from distill.distillation.student_vocabulary import trim_to_texts
from distill.distillation.teachers import (
    TEACHER_HINT,
    check_not_a_teacher,
    fingerprints_of,
    identify,
    logits_of,
    model_among,
    rows_with_logits,
    weights_of,
)
from distill.distillation.trainer import DistillationTrainer
from distill.errors import ModelError, RecipeError
from distill.export.formats import check_formats
from distill.inference.torch_session import load_torch
from distill.machine.devices import resolve_device
from distill.machine.ranks import world_size
from distill.models.config import (
    NGRAMS,
    align_labels,
    check_fit,
    check_task,
    class_names,
    is_classifier,
    name_classes,
    share_padding,
    task_of,
)
from distill.models.loading import (
    check_base,
    layer_count,
    load_classifier,
    load_config,
    load_tokenizer,
    parameter_count,
    reorder_classes,
    skeleton,
    with_attention_dropout,
)
from distill.models.names import named_by
from distill.models.ngram_config import NgramConfig
from distill.models.ngrams import NgramForSequenceClassification
from distill.models.students import build_from_config, build_from_layers, check_layers, choose_layers
from distill.models.truncation import kept_part, reads_of
from distill.models.untrusted import memory_limit
from distill.models.vocabulary import check_trimmable
from distill.recipe.schema import NGRAM_TRAINING, PRECISION, Loss, Ngrams, Recipe, Schedule, Student, Task
from distill.storage.contents import manifest_of
from distill.storage.run_folder import RunFolder
from distill.training.arguments import check_training, training_arguments
from distill.training.origin import base_fingerprint, origin_of
from distill.training.run import fit, open_training
from distill.training.tokens import tokenizer_fingerprint

log = logging.getLogger("distill")

LOW_NGRAM_RATE = 3e-3  # at 1e-3 the quickstart's n-gram student is 3 points worse than at 1e-2
COPIES = 4  # of each weight in training: itself, its gradient, and Adam's two moments


def check_student(recipe: Recipe, teacher: str, device: str) -> None:
    """Raise an error if the recipe's student or its export formats cannot be made, before any training.

    Only the configuration of `teacher` (see `made_of`) is read, so mistakes that only data or weights show are found
    later.
    """
    settings, resolved = student_of(recipe), resolve_device(device)
    check_training(settings.training, resolved, "student")
    if world_size() == 1:  # several processes join each other with the first arguments, which must be their stage's
        # A precision that is still to be measured changes nothing in what is refused.
        settled = {} if any(name in settings.training for name in PRECISION) else {"bf16": False}
        training = {**settings.training, **settled}
        training_arguments(training, RunFolder(Path(settings.output)), resolved, stage="student")
    if settings.ngrams and settings.ngrams.tokenizer:
        with named_by("student.ngrams.tokenizer"):
            load_tokenizer(settings.ngrams.tokenizer)
    if settings.prune and settings.prune.model:
        with named_by("student.prune.model"):
            _check_classifier(settings.prune.model)
    config = load_config(teacher)
    if settings.model is None:
        config = with_attention_dropout(config, settings.attention_dropout)
    if settings.layers is not None:
        student_config = check_layers(skeleton(teacher, config), settings.layers)
    elif settings.config is not None:
        student_config = build_from_config(config, settings.config, seed=0).config
        check_fit(student_config, "student.config", max_tokens=recipe.data.max_tokens, vocabulary=0)
    elif settings.ngrams is not None:
        student_config = ngram_config(settings.ngrams, load_tokenizer(teacher), recipe.data.label_names or ())
    elif settings.prune is not None:
        check_prunable(settings.prune, recipe.benchmark, teacher, trimmed=settings.vocabulary is not None)
        student_config = config
    else:
        assert settings.model is not None
        with named_by("student.model"):
            check_base(settings.model, recipe.data.label_names, recipe.data.task)
            student_config, tokenizer = load_config(settings.model), load_tokenizer(settings.model)
        with_attention_dropout(student_config, settings.attention_dropout)
        check_fit(
            student_config,
            settings.model,
            max_tokens=recipe.data.max_tokens,
            vocabulary=vocabulary_of(tokenizer, added=False),
        )
        if settings.loss.runs_teacher:
            _check_one_tokenizer(settings, tokenizer, load_tokenizer(teacher))
    if settings.vocabulary is not None:
        check_trimmable(load_tokenizer(settings.model or teacher))
    check_formats(recipe.export.formats, student_config)
    if settings.loss.hidden_states:
        map_layers(layer_count(config), layer_count(student_config), settings.loss.hidden_states.teacher_layers)
    if settings.loss.attention_relations:
        relation_heads(config, student_config, settings.loss.attention_relations.heads)


def train_student(
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
    """Distill the classifiers `teachers` into the recipe's student and return its run folder.

    A teacher that is no better than always predicting the commonest class raises `ModelError` unless `force` is set.
    `cache` is the folder for teacher logits (default: in each teacher's folder). A student that is made of layers gets
    the layers of the first teacher.
    """
    settings = student_of(recipe)
    weights = weights_of(settings, teachers)
    check_not_a_teacher(folder, teachers)
    teacher = made_of(settings, teachers)
    with named_by("--teacher", TEACHER_HINT):
        check_student(recipe, teacher, device)
    training = open_training(
        recipe, "student", folder, architectures(settings, teacher), parent=manifest_of(teachers[0]),
        resume=resume, overwrite=overwrite, device=device,
    )  # fmt: skip
    recipe, splits, arguments, clock = training.recipe, training.splits, training.arguments, training.clock
    settings = student_of(recipe)
    with clock("teacher_logits"):
        known = identify(teachers, splits, recipe.data)
    files = [one.described(splits) for one in known if isinstance(one, AnswerFile)]
    for file in files:
        log.info("student: %s", answers_in_words(file))
    model, tokenizer = new_student(settings, recipe, teacher, splits, seed=arguments.seed)
    log.info("student: %s; learns by %s", made_from(settings, teacher), loss_in_words(settings.loss))
    if settings.ngrams and arguments.learning_rate < LOW_NGRAM_RATE:
        log.warning(
            "student.training.learning_rate: %g suits a transformer; an n-gram student learns too slowly below %g "
            "(default: %g)", arguments.learning_rate, LOW_NGRAM_RATE, NGRAM_TRAINING["learning_rate"],
        )  # fmt: skip
    origin = origin_of(splits, training.device, **fingerprints_of(known), **base_of(settings, tokenizer))
    if resume:
        training.folder.check_origin(origin)  # before the teachers classify all texts
    pruning = None
    if settings.prune:
        begun = resume and training.folder.pruning.is_file()
        with clock("pruning"):
            pruning = read_pruning(training.folder) if begun else plan_pruning(
                model, tokenizer, splits, training.truncation, settings.prune, recipe.benchmark, seed=arguments.seed,
                device=training.device, fresh=overwrite,
            )  # fmt: skip
            tell(pruning)
            model = pruned(model, pruning)
    online = online_teacher(settings, teachers, model, tokenizer, training.truncation)
    if online and online.projects and arguments.ddp_find_unused_parameters is None:
        arguments.ddp_find_unused_parameters = False  # DDP does not see projections, used outside forward
    with clock("teacher_logits"):
        answers = logits_of(known, splits, cache, device, bf16=arguments.bf16, force=force)
        for one in known:  # its layers, hidden states and logits must come from the same files
            one.check_unchanged()
    with clock("tokenising"):
        rows = rows_with_logits(answers, splits, tokenizer, training.truncation)
    with clock("start"):
        begin(settings, model, rows, weights)
    parents = {str(Path(one.name).absolute() if Path(one.name).exists() else one.name): one.weights for one in known}
    return fit(
        training, model, tokenizer, rows, origin=origin,
        parents={"teachers": parents, "answer_files": files, "model": settings.model}, pruning=pruning,
        trainer=functools.partial(
            DistillationTrainer, loss=settings.loss, teacher_weights=weights, online=online
        ),
    )  # fmt: skip


def made_of(settings: Student, teachers: Sequence[str]) -> str:
    """Return the model that a student takes its layers, sizes or tokenizer from: the first teacher that is a model.

    If all teachers are files of answers, it is the recipe's own. Raises `RecipeError` if the recipe names none, or has
    a loss that a file cannot give.
    """
    if settings.ngrams and settings.ngrams.tokenizer:
        return settings.ngrams.tokenizer
    if settings.prune and settings.prune.model:
        return settings.prune.model
    if (teacher := model_among(teachers)) is not None:
        return teacher
    file = Path(teachers[0]).name
    if settings.ngrams:
        raise RecipeError(
            f"student.ngrams.tokenizer: missing; it names a model whose tokens to use, since {file} has none"
        )
    if settings.loss.runs_teacher:
        raise RecipeError(f"student.loss: {_online_losses(settings)} need a model as teacher, and {file} is a file")
    if settings.model is None:
        raise RecipeError(
            f"student: cannot be made of a teacher that is a file, {file}; give student.model, student.ngrams or "
            "student.prune.model"
        )
    return settings.model


def base_of(settings: Student, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the fingerprint of the student's pretrained base, by its recipe key; empty if it has none."""
    if settings.ngrams and settings.ngrams.tokenizer:
        return {"student.ngrams.tokenizer": tokenizer_fingerprint(tokenizer)}
    base = settings.prune.model if settings.prune else settings.model
    if base and settings.vocabulary is not None:
        tokenizer = load_tokenizer(base)  # the student's own is trimmed
    return {f"student.{'prune.' * bool(settings.prune)}model": base_fingerprint(base, tokenizer)} if base else {}


def student_of(recipe: Recipe) -> Student:
    """Return the recipe's `student` section; raise `RecipeError` if it has none."""
    if recipe.student is None:
        raise RecipeError("student: missing, but this command trains a student")
    return recipe.student


def new_student(
    settings: Student, recipe: Recipe, teacher: str, splits: Splits, *, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the student before training and its tokenizer: its own, or the teacher's if made from it.

    If the recipe says so, both have only the tokens that the texts of `splits` use. A student that is to be pruned is
    still whole (see pruned_student.py).
    """
    model, tokenizer = _whole_student(settings, recipe, teacher, splits.label_names, splits.task, seed=seed)
    if settings.vocabulary is None:
        return model, tokenizer
    return model, trim_to_texts(model, tokenizer, splits, truncation_of(recipe, "student"), settings.vocabulary)


def _whole_student(
    settings: Student, recipe: Recipe, teacher: str, label_names: Sequence[str], task: Task, *, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    max_tokens = recipe.data.max_tokens
    if settings.model is not None:
        with named_by("student.model"):
            tokenizer = load_tokenizer(settings.model)
            model = load_classifier(
                settings.model, label_names, task=task, seed=seed, max_tokens=max_tokens,
                vocabulary=vocabulary_of(tokenizer, added=False), attention_dropout=settings.attention_dropout,
            )  # fmt: skip
        share_padding(model.config, tokenizer)
        return model, tokenizer
    tokenizer, config = load_tokenizer(teacher), load_config(teacher)
    if settings.ngrams is not None:
        of_ngrams = ngram_config(settings.ngrams, tokenizer, label_names)
        name_classes(of_ngrams, label_names, task)
        set_seed(seed)
        return NgramForSequenceClassification(of_ngrams), tokenizer
    check_task(task_of(config, teacher), task, teacher)
    check_fit(config, teacher, max_tokens=max_tokens, vocabulary=vocabulary_of(tokenizer, added=False))
    share_padding(config, tokenizer)
    config = with_attention_dropout(config, settings.attention_dropout)
    if settings.config is not None:
        name_classes(config, label_names, task)
        model = build_from_config(config, settings.config, seed=seed)
        check_fit(
            model.config, "student.config", max_tokens=max_tokens, vocabulary=vocabulary_of(tokenizer, added=False)
        )
        return model, tokenizer
    whole = load_torch(teacher, config, "float32")
    columns = align_labels(class_names(config, teacher), label_names, recipe.data.label_map or {}, teacher=teacher)
    set_seed(seed)
    layers = settings.layers or layer_count(config)  # to be pruned, all of them
    return build_from_layers(reorder_classes(whole, columns, label_names), layers), tokenizer


def ngram_config(settings: Ngrams, tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str]) -> NgramConfig:
    """Return the configuration of a student on the n-grams of the tokenizer's tokens.

    Raises `RecipeError` if its rows have no room for a count of each class.
    """
    if settings.start == "counts" and settings.width < len(label_names):
        raise RecipeError(
            f"student.ngrams.width: wants at least {len(label_names)}, one for each class, got {settings.width}; or "
            "start: random"
        )
    vocabulary, memory = vocabulary_of(tokenizer), memory_limit()
    rows = vocabulary + (settings.table if settings.longest > 1 else 0)
    if rows * settings.width * COPIES > memory.numbers:
        raise RecipeError(
            f"student.ngrams: {rows} rows (one for each of {vocabulary} tokens, and the table) of {settings.width} are "
            f"{rows * settings.width} numbers, and training holds {COPIES} of each; {memory.source} {memory.numbers} "
            "in all"
        )
    sizes = settings.model_dump(include={"longest", "table", "width"})
    return NgramConfig(vocab_size=vocabulary, pad_token_id=tokenizer.pad_token_id, **sizes)


def begin(settings: Student, model: PreTrainedModel, rows: Dataset, teacher_weights: Sequence[float] = ()) -> None:
    """Let a new n-gram student start from the counts in its training `rows`, if the recipe says so."""
    if settings.ngrams and settings.ngrams.start == "counts":
        assert isinstance(model, NgramForSequenceClassification)
        start_from_counts(model, rows, teacher_weights)


def architectures(settings: Student, teacher: str) -> list[str]:
    """Return the architectures in a student's training: its own, and the teacher's if that runs beside it."""
    if settings.ngrams is not None:
        return [NGRAMS]
    runs_teacher = settings.model is None or settings.loss.runs_teacher
    names = [name for name in (settings.model, teacher if runs_teacher else None) if name]
    return [load_config(name).model_type for name in names]


def made_from(settings: Student, teacher: str) -> str:
    """Return in words what a student is made from."""
    if settings.layers is not None:
        count = layer_count(load_config(teacher))
        copied = ", ".join(map(str, choose_layers(count, settings.layers)))
        return f"made of layers {copied} of the teacher's {count} (0 to {count - 1})"
    if settings.config is not None:
        sizes = ", ".join(f"{key} {value}" for key, value in settings.config.items())
        return f"the teacher's shape with {sizes}, from random weights"
    if settings.prune is not None:
        return f"cut out of {settings.prune.model or 'the teacher'}, to {settings.prune.in_words}"
    if settings.ngrams is not None:
        grams = settings.ngrams
        reads = f"at most {grams.max_tokens} tokens" if grams.max_tokens else "whole texts"
        return f"averages n-grams of 1 to {grams.longest} tokens ({grams.table} rows of {grams.width}); reads {reads}"
    return f"pretrained, from {settings.model}"


def loss_in_words(loss: Loss) -> str:
    """Return in words the losses of a student, with temperature and weights; a schedule shows its start and end."""
    soft = loss.soft
    if soft != "logit_mse":  # it has no temperature
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


def online_teacher(
    settings: Student,
    teachers: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    truncation: Truncation,
) -> OnlineTeacher | None:
    """Return the teacher that the student's loss runs at every step; None if cached logits are enough.

    It reads the tokens of the student, cut by `truncation`. Raises `RecipeError` if there are several teachers, if the
    two models tokenize differently, or if the teacher was trained to read another part of a text.
    """
    hidden, relations = settings.loss.hidden_states, settings.loss.attention_relations
    if not settings.loss.runs_teacher:
        return None
    names = _online_losses(settings)
    if len(teachers) > 1:
        raise RecipeError(f"student.loss: {names} need exactly one teacher, got {len(teachers)}")
    theirs, config = load_tokenizer(teachers[0]), load_config(teachers[0])
    _check_one_tokenizer(settings, tokenizer, theirs)
    is_unknown = reads_of(config) is None and truncation.kept == "longest_first"
    if (kept := kept_part(config, theirs)) != truncation.kept and not is_unknown:
        raise RecipeError(
            f"data.truncation: {truncation.kept}, but {teachers[0]} reads {kept}, and {names} give it the student's "
            "tokens"
        )
    check_fit(config, teachers[0], max_tokens=truncation.max_tokens, vocabulary=vocabulary_of(tokenizer, added=False))
    share_padding(config, tokenizer)
    teacher = load_torch(teachers[0], config, "float32")
    log.info(
        "student: %s: the teacher (%.1f M parameters) runs at every step beside the student (%.1f M); "
        "the other losses need only its cached logits",
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


def _check_classifier(name: str) -> None:
    """Raise `ModelError` if the model to prune has no head: nothing would say which of its parts matter."""
    if not is_classifier(load_config(name)):
        raise ModelError(
            f"student.prune.model: {name} has no classification head, so nothing says which of its parts matter; train "
            "it first"
        )


def _online_losses(settings: Student) -> str:
    return " and ".join(name for name in ("hidden_states", "attention_relations") if getattr(settings.loss, name))


def _check_one_tokenizer(
    settings: Student, tokenizer: PreTrainedTokenizerBase, of_teacher: PreTrainedTokenizerBase
) -> None:
    if tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(of_teacher):
        names = _online_losses(settings)
        raise RecipeError(f"student.loss: {names} compare token by token, but teacher and student tokenize differently")
