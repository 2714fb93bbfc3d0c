"""Search better values of recipe keys with Trainer and Optuna; all trials share the same texts and teacher logits."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils.memory import should_reduce_batch_size
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from distill.data.encoding import truncation_of
from distill.data.splits import Splits
from distill.distillation.online_teacher import OnlineTeacher
from distill.distillation.student import (
    architectures,
    base_of,
    begin,
    check_student,
    made_of,
    new_student,
    online_teacher,
)
from distill.distillation.teachers import (
    Teacher,
    check_not_a_teacher,
    fingerprints_of,
    identify,
    logits_of,
    rows_with_logits,
    weights_of,
)
from distill.distillation.trainer import DistillationTrainer
from distill.errors import FolderError, RecipeError, TrainingError, UserError, one_line
from distill.machine.devices import Device
from distill.machine.packages import SWEEP_EXTRA
from distill.machine.provenance import now, versions
from distill.models.config import embeddings_of
from distill.models.loading import load_config
from distill.recipe.file import with_values
from distill.recipe.schema import Recipe, Stage
from distill.recipe.search_space import Space
from distill.recipe.training_fields import LOWER_IS_BETTER
from distill.report.tables import shown_value
from distill.storage.contents import manifest_of
from distill.storage.files import naming_full_disk, write_json
from distill.storage.lock import hold
from distill.storage.run_folder import SweepFolder
from distill.training.arguments import training_arguments
from distill.training.class_weights import class_weights_of
from distill.training.loop import make_trainer, shortcuts, throughput_of, watch
from distill.training.origin import base_fingerprint, origin_of
from distill.training.run import open_training
from distill.training.teacher import new_teacher
from distill.training.tokens import check_embedded, tokenise_split
from distill.training.trainer import ClassificationTrainer

log = logging.getLogger("distill")

TRIAL = {"save_strategy": "no", "load_best_model_at_end": False, "report_to": "none"}  # overrides for a trial
STUDY = "sweep"  # the name of the study in its storage

# From the settings of a stage, makes its model before training and the teacher that its loss runs beside it, if any.
Make = Callable[[Any], tuple[PreTrainedModel, OnlineTeacher | None]]


def run_search(
    recipe: Recipe,
    teachers: Sequence[str],
    folder: SweepFolder,
    *,
    cache: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Try the values of the recipe's `sweep` on validation; write the trials and the best trial's recipe to `folder`.

    Returns the content of sweep.json: stage, metric, direction ("maximize" or "minimize"), which evaluation of a trial
    counts, the keys with their spaces, and the trials with number, values, objective, epoch, seconds and error.

    The values of a trial depend only on the recipe and the results of earlier trials. So an interrupted search resumes
    with the same trials, as far as training is repeatable, and repeats the interrupted trial. A trial that fails is
    kept with its error. Raises `TrainingError` if all trials fail. The test split is not used, except that its texts
    are dropped from train.
    """
    assert recipe.sweep is not None
    optuna = import_optuna()
    stage = recipe.sweep.stage
    settings = getattr(recipe, stage)
    weights = weights_of(settings, teachers) if stage == "student" else ()
    check_not_a_teacher(folder, teachers)
    if stage == "student":
        models = architectures(settings, made_of(settings, teachers))
    else:
        models = [load_config(settings.model).model_type]
    training = open_training(
        recipe, stage, folder, models, parent=manifest_of(teachers[0]) if teachers else None,
        changed=lambda section: {**section, **TRIAL}, resume=resume, overwrite=overwrite, device=device,
    )  # fmt: skip
    folder = SweepFolder(training.folder.path)
    recipe, arguments, splits = training.recipe, training.arguments, training.splits
    resolved, settings = training.device, training.settings
    assert recipe.sweep is not None
    for key, space in recipe.sweep.keys.items():  # refuse bad values before the first trial
        for value in space.candidates().values():
            changed = with_values(recipe, {key: value})
            _arguments(getattr(changed, stage), folder, resolved, stage)
            if stage == "student":
                assert changed.student is not None
                check_student(changed, made_of(changed.student, teachers), device)
    known = identify(teachers, splits, recipe.data)
    if stage == "student":
        make, model, tokenizer = _students(recipe, teachers, known, splits, arguments.seed)
        origin = origin_of(splits, resolved, **fingerprints_of(known), **base_of(settings, tokenizer))
    else:
        make, model, tokenizer = _teachers(recipe, splits, arguments.seed)
        base = base_fingerprint(settings.model, tokenizer, pretrained=settings.pretrained)
        origin = origin_of(splits, resolved, **{"teacher.model": base})
    if resume:
        folder.check_origin(origin)
    truncation = training.truncation
    if stage == "student":
        answers = logits_of(known, splits, cache, device, bf16=arguments.bf16, force=force)
        rows = rows_with_logits(answers, splits, tokenizer, truncation)
    else:
        rows = tokenise_split("train", splits.train, tokenizer, truncation)
    validation_rows = tokenise_split("validation", splits.validation, tokenizer, truncation)
    for split in (rows, validation_rows):
        check_embedded(split, tokenizer, embeddings_of(model.config))
    log.info(
        "sweep: trials of the %s on %s; %s; %d training and %d validation texts",
        stage, resolved, training.precision, len(rows), len(validation_rows),
    )  # fmt: skip
    with hold(folder.final_path), naming_full_disk(folder.path):
        folder.start(recipe, origin, resume=resume, overwrite=overwrite)
        trials = _Search(optuna, recipe, folder, make, model, resolved, arguments)
        kind: Callable[..., ClassificationTrainer] = ClassificationTrainer
        if stage == "student":
            kind = functools.partial(DistillationTrainer, loss=settings.loss, teacher_weights=weights)
        kind = functools.partial(kind, class_weights=class_weights_of(settings.class_weights, splits, stage))
        trials.trainer = make_trainer(
            kind, tokenizer, rows, validation_rows, arguments, folder, padding=recipe.data.padding,
            max_tokens=truncation.max_tokens, stage=stage, model_type=model.config.model_type,
            model_init=trials.begin,
        )  # fmt: skip
        found = trials.run()
        if found["best"] is None:
            last = found["trials"][-1]["error"]
            raise TrainingError(
                f"sweep: all {len(found['trials'])} trials failed; the last: {last}",
                hint=f"use other keys or spaces; every trial is in {folder.results}",
            )
        values = found["trials"][found["best"] - 1]["values"]
        folder.finish_sweep(with_values(recipe, values))
    return found


def import_optuna() -> Any:
    """Return the module optuna, with its own log silenced; raise `UserError` if the extra is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise UserError("Optuna, which distill sweep needs, is not installed", hint=SWEEP_EXTRA) from error
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # distill logs the trials itself
    return optuna


class _Search:
    """Runs all trials with one Trainer; each trial gets its own arguments, loss and new model."""

    trainer: ClassificationTrainer

    def __init__(
        self,
        optuna: Any,
        recipe: Recipe,
        folder: SweepFolder,
        make: Make,
        model: PreTrainedModel,
        device: Device,
        arguments: TrainingArguments,
    ):
        assert recipe.sweep is not None
        self.optuna, self.recipe, self.folder, self.make, self.device = optuna, recipe, folder, make, device
        self.wanted, self.stage, self.seed = recipe.sweep, recipe.sweep.stage, arguments.seed
        self.first_model: PreTrainedModel | None = model
        training = getattr(recipe, self.stage).training
        self.metric = str(training.get("metric_for_best_model", "accuracy")).removeprefix("eval_")
        self.direction = "minimize" if self.metric in LOWER_IS_BETTER else "maximize"
        # As in a run of the best recipe: the best evaluation, or the last one if no checkpoint is loaded at the end.
        self.counts = "best" if training.get("load_best_model_at_end") else "last"
        self.storage = _storage(optuna, folder)
        self.study = optuna.create_study(**self._study())
        self.objective: float | None = None
        self.trial: Any = None
        self.title = ""
        self.within = contextlib.ExitStack()

    def run(self) -> dict[str, Any]:
        """Run the remaining trials; return the content of sweep.json."""
        states = self.optuna.trial.TrialState
        for killed in self.study.get_trials(states=(states.RUNNING,)):
            self.study.tell(killed.number, state=states.FAIL)
        found = self._found()
        if found["trials"]:
            more = len(self._left(found["trials"]))
            log.info("sweep: %d trials are done, %d are left", len(found["trials"]), more)
        while left := self._left(found["trials"]):
            if left[0] is not None and not self.study.get_trials(states=(states.WAITING,)):
                self.study.enqueue_trial({key: json.dumps(value) for key, value in left[0].items()})
            made = len(found["trials"])
            self._try(made + 1, made + len(left))
            found = self._found()
            write_json(self.folder.results, found)
            log.info("%s: %s", self.title, _sentence(found["trials"][-1], self.metric))
        write_json(self.folder.results, found)
        return found

    def _left(self, trials: Sequence[Mapping[str, Any]]) -> Sequence[dict[str, Any] | None]:
        """Return an entry for each remaining trial: its values if every combination is tried, else None."""
        every = self.wanted.combinations()
        if every is None:
            return [None] * (self.wanted.trials - len(trials))
        made = [trial["values"] for trial in trials]
        return [values for values in every if values not in made]

    def _try(self, number: int, total: int) -> None:
        """Run a trial through Trainer, with a new sampler, so that a resumed search draws the same values."""
        self.title = f"trial {number} of {total}"
        watching: list[Any] = [watch(self.trainer, self.title)]
        if patience := getattr(self.recipe, self.stage).early_stopping_patience:
            watching.append(EarlyStoppingCallback(patience))
            self.trainer.add_callback(watching[-1])
        sampler = self.optuna.samplers.TPESampler(seed=(self.recipe.data.seed + number) % 2**32)
        try:
            with contextlib.ExitStack() as self.within:
                self.trainer.hyperparameter_search(
                    hp_space=lambda _: {}, compute_objective=self.judge, n_trials=1, backend="optuna",
                    sampler=sampler, pruner=self.optuna.pruners.NopPruner(), **self._study(),
                )  # fmt: skip
        except (TrainingError, RecipeError) as error:  # it diverged, or its values do not fit together
            self._fail(str(error.problems[0]).partition("; ")[0])
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                raise
            self._fail("out of memory")
        finally:
            watching[0].close()
            for callback in watching:
                self.trainer.remove_callback(callback)

    def _fail(self, reason: str) -> None:
        self.study.set_user_attr(f"error of {self.trial.number}", reason)

    def begin(self, trial: Any = None) -> PreTrainedModel:
        """Draw the values of a trial, set them in the Trainer and return the trial's model (Trainer's `model_init`).

        `hp_space` does not set them, because Trainer would cast each value to the type of the one before (0.1 warm-up
        steps to 0).
        """
        if trial is None:  # Trainer asks for a model before the first trial
            model, self.first_model = self.first_model, None
            assert model is not None
            return model
        self.trial, self.objective = trial, None
        values = {key: _suggested(trial, key, space) for key, space in self.wanted.keys.items()}
        log.info("%s: %s", self.title, ", ".join(f"{key} {shown_value(value)}" for key, value in values.items()))
        settings = getattr(with_values(self.recipe, values), self.stage)
        arguments, _ = _arguments(settings, self.folder, self.device, self.stage)
        for name in (key.split(".")[2] for key in values if ".training." in key):
            setattr(self.trainer.args, name, getattr(arguments, name))
        model, online = self.make(settings)
        if isinstance(self.trainer, DistillationTrainer):
            self.trainer.set_loss(settings.loss, online)
            begin(settings, model, self.trainer.train_dataset, self.trainer.teacher_weights)
        self.trainer.throughput = throughput_of(model, self.trainer, self.device)
        self.within.enter_context(shortcuts(self.trainer, model))
        set_seed(self.seed)  # as Trainer does with a given model, so that a run of the recipe repeats the trial
        return model

    def judge(self, metrics: Mapping[str, float]) -> float:
        """Return the trial's objective so far, after an evaluation (Trainer's `compute_objective`)."""
        value = float(metrics[f"eval_{self.metric}"])
        sign = 1 if self.direction == "maximize" else -1
        if self.objective is None or self.counts == "last" or sign * value > sign * self.objective:
            self.objective = value
            self.trial.set_user_attr("epoch", self.trainer.state.epoch)
        return self.objective

    def _study(self) -> dict[str, Any]:
        return {
            "study_name": STUDY, "storage": self.storage, "direction": self.direction, "load_if_exists": True,
        }  # fmt: skip

    def _found(self) -> dict[str, Any]:
        """Return the content of sweep.json; a trial that failed without an error was interrupted and does not count."""
        errors = {name.rpartition(" ")[2]: text for name, text in self.study.user_attrs.items()}
        trials = []
        for trial in self.study.get_trials():
            error = errors.get(str(trial.number))
            if trial.state == self.optuna.trial.TrialState.COMPLETE or error:
                values = {key: _decoded(trial.params[key], space) for key, space in self.wanted.keys.items()}
                trials.append(
                    {
                        "number": len(trials) + 1,
                        "values": values,
                        "objective": None if error else trial.value,
                        "epoch": trial.user_attrs.get("epoch"),
                        "seconds": trial.duration.total_seconds(),
                        "error": error,
                    }
                )
        sign = -1 if self.direction == "maximize" else 1
        good = [trial for trial in trials if not trial["error"]]
        best = min(good, key=lambda trial: (sign * trial["objective"], trial["number"]), default=None)
        return {
            "stage": self.stage,
            "metric": self.metric,
            "direction": self.direction,
            "counts": self.counts,
            "keys": self.wanted.model_dump(mode="json")["keys"],
            "trials": trials,
            "best": best and best["number"],
            "device": self.device,
            "written": now(),
            "versions": {**versions(), "optuna": self.optuna.__version__},
        }


def _students(
    recipe: Recipe, teachers: Sequence[str], known: Sequence[Teacher], splits: Splits, seed: int
) -> tuple[Make, PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a function that makes a student before training, and the recipe's own student with its tokenizer."""

    def make(settings: Any) -> tuple[PreTrainedModel, OnlineTeacher | None]:
        model, tokenizer = new_student(settings, recipe, made_of(settings, teachers), splits, seed=seed)
        for teacher in known:
            teacher.check_unchanged()
        return model, online_teacher(settings, teachers, model, tokenizer, truncation_of(recipe, "student"))

    assert recipe.student is not None
    return make, *new_student(recipe.student, recipe, made_of(recipe.student, teachers), splits, seed=seed)


def _teachers(recipe: Recipe, splits: Splits, seed: int) -> tuple[Make, PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a function that makes a teacher before training, and the recipe's own teacher with its tokenizer."""

    def new(settings: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return new_teacher(settings, splits.label_names, splits.task, max_tokens=recipe.data.max_tokens, seed=seed)

    def make(settings: Any) -> tuple[PreTrainedModel, OnlineTeacher | None]:
        return new(settings)[0], None

    return make, *new(recipe.teacher)


def _arguments(settings: Stage, folder: SweepFolder, device: Device, stage: str) -> tuple[TrainingArguments, str]:
    """Return the TrainingArguments of a trial, which keeps no checkpoints and reports to no tracker."""
    return training_arguments({**settings.training, **TRIAL}, folder, device, stage=stage)


def _storage(optuna: Any, folder: SweepFolder) -> Any:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return optuna.storages.RDBStorage(f"sqlite:///{folder.study.absolute()}")
    except (SQLAlchemyError, RuntimeError) as error:  # RuntimeError: another version of Optuna wrote it
        raise FolderError(f"{folder.study}: cannot be read: {one_line(error)}", hint="--overwrite to restart") from None


def _suggested(trial: Any, key: str, space: Space) -> Any:
    """Draw a trial's value of a key; Optuna gets listed values as JSON, because it takes no lists or mappings."""
    if space.values is not None:
        return json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in space.values]))
    draw = trial.suggest_int if space.is_whole else trial.suggest_float
    return draw(key, space.low, space.high, log=space.log)


def _decoded(value: Any, space: Space) -> Any:
    return value if space.values is None else json.loads(value)


def _sentence(trial: Mapping[str, Any], metric: str) -> str:
    if trial["error"]:
        return f"failed: {trial['error']}"
    return f"validation {metric} {trial['objective']:.4f} at epoch {trial['epoch']:g}, in {trial['seconds']:.1f} s"
