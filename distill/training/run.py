"""Train a model into a finished run folder: train it, calibrate it on validation, evaluate it once on test."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from scipy.special import expit
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from distill.data.encoding import Truncation, cut_in_words, cut_of, truncation_of
from distill.data.pairs import texts_of
from distill.data.splits import SPLITS, Splits, gold_labels_of, read_splits
from distill.decisions import Thresholds
from distill.inference.classifier import Classifier
from distill.inference.torch_session import TorchSession
from distill.machine.devices import Device, describe_hardware, resolve_device
from distill.machine.progress import progress_line
from distill.machine.provenance import now, versions
from distill.machine.timing import Clock
from distill.measuring.metrics import by_class, faults_of_answers, figures, in_a_line
from distill.measuring.training_log import early_stop_in_words, selected_step, training_curve
from distill.models.calibration import Calibration, calibrate
from distill.models.config import INPUTS, TOKEN_TYPES, embeddings_of, inputs_of
from distill.models.loading import classification_head, divide_logits, parameter_count
from distill.models.saving import save
from distill.models.thresholds import CONFIG_KEY as THRESHOLDS
from distill.models.thresholds import choose_thresholds
from distill.models.truncation import CONFIG_KEY as TRUNCATION_KEY
from distill.models.weights import weights_fingerprint
from distill.recipe.schema import Recipe, Stage, with_absolute_paths
from distill.report import plots
from distill.report.card import card
from distill.report.classes import tell_classes
from distill.storage.files import write_json, write_text
from distill.storage.lock import hold
from distill.storage.predictions import write_predictions
from distill.storage.run_folder import RunFolder
from distill.training.arguments import (
    as_settings,
    check_shared_memory,
    check_steps,
    in_fp32,
    settle_precision,
    training_arguments,
)
from distill.training.class_weights import class_weights_of
from distill.training.fsdp import gather_weights, set_wrapped_layers
from distill.training.loop import train
from distill.training.origin import repeatable
from distill.training.tokens import check_embedded, tokenise_split
from distill.training.trainer import ClassificationTrainer

log = logging.getLogger("distill")

Role = Literal["baseline", "teacher", "student", "control"]


def shared_splits(recipe: Recipe) -> Splits:
    """Return `read_splits` on every rank; on each machine one rank reads first, and the others find its cache."""
    with PartialState().local_main_process_first():
        return read_splits(recipe)


@dataclass(frozen=True)
class Training:
    """The settings and texts of a run, before it has a model; `open_training` makes it and `fit` uses it."""

    recipe: Recipe  # with absolute paths and its precision settled
    role: Role
    folder: RunFolder  # the folder that it works in
    arguments: TrainingArguments
    precision: str  # the precision of the arguments, and the reason for it
    device: Device
    resume: bool
    overwrite: bool
    splits: Splits
    clock: Clock  # times its parts

    @property
    def stage(self) -> Literal["teacher", "student"]:
        """The section of the recipe that sets it up."""
        return stage_of(self.role)

    @property
    def settings(self) -> Stage:
        """The settings in that section."""
        return getattr(self.recipe, self.stage)

    @property
    def truncation(self) -> Truncation:
        """What its model reads of a text."""
        return truncation_of(self.recipe, self.stage)


def stage_of(role: Role) -> Literal["teacher", "student"]:
    """Return the section of a recipe that sets up a run of this role; a control uses the student's."""
    return "teacher" if role == "teacher" else "student"


def open_training(
    recipe: Recipe,
    role: Role,
    folder: RunFolder,
    architectures: Sequence[str],
    *,
    parent: Mapping[str, Any] | None = None,
    changed: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda training: training,
    resume: bool,
    overwrite: bool,
    device: str,
) -> Training:
    """Settle how a run of `recipe` in `folder` trains, and read its texts; write nothing.

    `architectures` are those of the models that it runs. `parent` is the manifest of the run that it learns from or is
    compared with. `changed` maps the recipe's `training` section to the one to use. Raises `FolderError` if the run
    would overwrite something, and `RecipeError` if its settings do not fit together.
    """
    resolved, stage = resolve_device(device), stage_of(role)
    recipe = with_absolute_paths(recipe)
    folder = folder.prepare(recipe, resume=resume, overwrite=overwrite)
    recipe = folder.as_begun(recipe) if resume else recipe
    recipe, precision = settle_precision(in_fp32(recipe, stage, *architectures), stage, folder, resolved, parent)
    arguments, _ = training_arguments(changed(getattr(recipe, stage).training), folder, resolved, stage=stage)
    clock = Clock()
    with clock("data"):
        splits = shared_splits(recipe)
    return Training(recipe, role, folder, arguments, precision, resolved, resume, overwrite, splits, clock)


def fit(
    training: Training,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: Dataset,
    *,
    origin: Mapping[str, str],
    parents: dict[str, Any],
    pruning: Mapping[str, Any] | None = None,
    trainer: Callable[..., ClassificationTrainer] = ClassificationTrainer,
) -> RunFolder:
    """Train `model` on the tokenized `train_rows` and write the run folder, the manifest last; return it.

    Checkpoint and temperature are chosen on validation. Each rank trains on its share of the texts and classifies its
    share, rank 0 writes, and all ranks return together once the folder is complete. `origin` is what the run depends
    on (see `origin_of`) and `parents` what it was made from. `pruning` is kept beside a pruned student, so that a
    resumed run is not pruned otherwise. `trainer` takes the arguments of Trainer.
    """
    recipe, role, folder, splits, arguments = (
        training.recipe, training.role, training.folder, training.splits, training.arguments,
    )  # fmt: skip
    truncation, settings, device, clock = training.truncation, training.settings, training.device, training.clock
    check_steps(arguments, len(train_rows), training.stage)
    if settings.calibrate:
        classification_head(model)  # without one, a temperature could not be applied
    weights = class_weights_of(settings.class_weights, splits, training.stage)
    if weights:
        shown = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(splits.label_names, weights, strict=True))
        log.info("%s: class weights: %s", role, shown)
    transfer = f" and {len(train_rows) - len(splits.train)} transfer" if len(train_rows) > len(splits.train) else ""
    log.info(
        "%s: %.1f M parameters on %s; %s; %d train%s, %d validation, %d test texts",
        role, parameter_count(model) / 1e6, device, training.precision, len(splits.train), transfer,
        len(splits.validation), len(splits.test),
    )  # fmt: skip
    cut = cut_of(train_rows["uncut_length"][:], truncation.max_tokens)
    if cut.matters:
        log.info("%s: %s", role, cut_in_words(truncation, cut, "the training texts"))
    set_wrapped_layers(model, arguments, training.stage)
    check_shared_memory(arguments, min(truncation.max_tokens, max(train_rows["length"][:])), training.stage)
    with clock("tokenising"):
        validation_rows = tokenise_split("validation", splits.validation, tokenizer, truncation)
    for rows in (train_rows, validation_rows):
        check_embedded(rows, tokenizer, embeddings_of(model.config))
    _keep_truncation(truncation, model, tokenizer)
    state = PartialState()
    final = RunFolder(folder.final_path)
    with hold(final.path) if state.is_main_process else contextlib.nullcontext():
        with state.main_process_first():
            if state.is_main_process:
                # The folder changes only after all checks of the user's input.
                folder.start(recipe, origin, resume=training.resume, overwrite=training.overwrite)
                if pruning:
                    write_json(folder.pruning, pruning)
                if folder != final:
                    log.info("%s: the finished run in %s stays until this one has finished", role, final.path)
        checkpoint = _to_go_on_from(folder, role) if training.resume else None
        trained = train(
            functools.partial(trainer, class_weights=weights),
            model,
            tokenizer,
            train_rows,
            validation_rows,
            arguments,
            folder,
            padding=recipe.data.padding,
            max_tokens=truncation.max_tokens,
            device=device,
            early_stopping_patience=settings.early_stopping_patience,
            checkpoint=checkpoint,
            title=role,
        )
        trained["truncation"] = {
            "max_tokens": truncation.limit,
            "kept": truncation.kept,
            "texts_cut": cut.texts,
            "tokens_cut": cut.tokens,
        }
        model = gather_weights(model)
        _tell(trained, role)
        classifier = Classifier(
            TorchSession(model, device), tokenizer, splits.label_names, truncation,
            embeddings=embeddings_of(model.config),
        )  # fmt: skip
        calibration, thresholds = None, None
        if settings.calibrate or splits.task == "multi_label":
            with clock("calibration"):
                logits = _logits(classifier, splits.validation, f"{role}: calibration")
                gold_labels = gold_labels_of(splits.validation)
                calibration = calibrate(logits, gold_labels) if settings.calibrate else None
                if splits.task == "multi_label":
                    divisor = calibration.temperature if calibration else 1.0
                    thresholds = choose_thresholds(expit(logits / divisor), gold_labels)
        if calibration:
            divide_logits(model, calibration.temperature)
            log.log(logging.WARNING if calibration.refused else logging.INFO, "%s: %s", role, calibration)
        if thresholds:
            setattr(model.config, THRESHOLDS, list(thresholds))
        with clock("test"):
            test_logits = _logits(classifier, splits.test, f"{role}: test")
        if state.is_main_process:
            _write_run(training, model, tokenizer, trained, calibration, test_logits, thresholds, parents)
        state.wait_for_everyone()
    return final


def _keep_truncation(truncation: Truncation, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let later users of model and tokenizer cut texts as training does; transformers cannot keep head and tail."""
    setattr(model.config, TRUNCATION_KEY, truncation.kept)
    tokenizer.model_max_length = truncation.max_tokens
    tokenizer.truncation_side = "left" if truncation.kept == "tail" else "right"
    if truncation.kept == "longest_first":
        tokenizer.model_input_names = list(inputs_of(model.config, dict.fromkeys([*INPUTS, TOKEN_TYPES], True)))
    for name in ("truncation_side", "model_input_names"):  # transformers saves only these
        tokenizer.init_kwargs[name] = getattr(tokenizer, name)


def _tell(trained: Mapping[str, Any], role: Role) -> None:
    for warning in trained["warnings"]:
        log.warning("%s: %s", role, warning)
    if trained["stopped_early"]:
        log.info("%s: %s", role, early_stop_in_words(trained))
    if "teacher_seconds" in trained:
        share = 100 * trained["teacher_seconds"] / trained["seconds"]
        log.info("%s: the teacher took %.0f %% of the time", role, share)


def _write_run(
    training: Training,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    trained: Mapping[str, Any],
    calibration: Calibration | None,
    test_logits: np.ndarray,
    thresholds: Thresholds,
    parents: dict[str, Any],
) -> None:
    """Write the model, its figures, its card and, last, the manifest."""
    role, folder, splits = training.role, training.folder, training.splits
    gold_labels = gold_labels_of(splits.test)
    test = figures(test_logits, gold_labels, thresholds)
    faults = faults_of_answers(test_logits, gold_labels, splits.label_names, thresholds)
    save(model, tokenizer, folder.path)
    write_predictions(folder.predictions, splits.test["example_id"][:], gold_labels, test_logits, thresholds)
    classes = by_class(test_logits, gold_labels, splits.label_names, thresholds)
    metrics = {
        "test": test,
        "classes": classes,
        "warnings": faults,
        "training": {**trained, **training.clock.as_figures()},
        **({"calibration": calibration.as_figures()} if calibration else {}),
    }
    write_json(folder.metrics, metrics)
    curve = training_curve(role, folder.read_log(), selected_step(trained))
    plots.save_png(plots.learning_curves([curve]), folder.learning_curve)
    if folder.owns_card:
        sizes = {name: len(rows) for name in SPLITS if (rows := getattr(splits, name)) is not None}
        text = card(
            folder.final_path.absolute().name, role, training.recipe, metrics, architecture=type(model).__name__,
            parameters=parameter_count(model), label_names=splits.label_names, sizes=sizes, parents=parents,
        )  # fmt: skip
        write_text(folder.card, text)
    folder.finish(_manifest(training, parents))
    log.info("%s: test %s, on %d texts; saved in %s", role, in_a_line(test), test["examples"], folder.final_path)
    tell_classes(role, classes)
    for fault in faults:  # last, so that the user sees them
        log.warning("%s: %s", role, fault)


def _manifest(training: Training, parents: dict[str, Any]) -> dict[str, Any]:
    """Return the content of manifest.json for a run whose weights are written."""
    folder, splits, arguments = training.folder, training.splits, training.arguments
    settings = as_settings(arguments)
    return {
        "role": training.role,
        "finished": now(),
        "versions": versions(),
        "hardware": describe_hardware(),
        "device": training.device,
        "precision": training.precision,
        "repeatable": repeatable(training.device, folder.processors),
        "threads": torch.get_num_threads(),
        "processes": PartialState().num_processes,
        "sharded": bool(arguments.fsdp),
        "seed": arguments.seed,
        "labels": list(splits.label_names),
        "task": splits.task,
        "data": splits.fingerprints,
        "leaks_dropped": dict(splits.leaks),
        "weights": weights_fingerprint(str(folder.path)),
        "parents": parents,
        "training_arguments": {**settings, "output_dir": str(RunFolder(folder.final_path).checkpoints.absolute())},
    }


def _to_go_on_from(folder: RunFolder, role: str) -> Path | None:
    """Return the checkpoint that all ranks resume from, as rank 0 sees it; disks may differ in what they show."""
    checkpoint = None
    if PartialState().is_main_process:
        checkpoint = folder.last_checkpoint()
        if checkpoint:
            log.info("%s: goes on from %s", role, checkpoint.name)
        elif any(folder.checkpoints.glob("checkpoint-*")):
            log.warning("%s: no checkpoint is whole, so training starts from the beginning", role)
    (name,) = broadcast_object_list([checkpoint.name if checkpoint else None])
    return folder.checkpoints / name if name else None


def _logits(classifier: Classifier, rows: Dataset, title: str) -> np.ndarray:
    """Return the classifier's logits on `rows`, (texts, classes); ranks share the work, and each gets all of them."""
    state = PartialState()
    own = texts_of(rows)[state.process_index :: state.num_processes]
    with progress_line(title, len(own), "text") as bar:
        answers = classifier.logits(own, progress=bar.update)
    logits = np.empty((len(rows), answers.shape[1]), np.float32)
    for rank, part in enumerate(gather_object([answers])):
        logits[rank :: state.num_processes] = part
    return logits
