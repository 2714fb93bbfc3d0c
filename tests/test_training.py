import contextlib
import functools
import json
import os
import re
import signal
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import LABELS, check_refused, make_classifier, write_reviews
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, TrainerCallback

import distill
from distill import commands
from distill.data.encoding import Truncation
from distill.data.splits import load_splits
from distill.distillation.online_teacher import OnlineTeacher
from distill.distillation.trainer import DistillationTrainer
from distill.errors import Interrupted, RecipeError, TrainingError
from distill.inference.classifier import Classifier
from distill.inference.torch_session import TorchSession
from distill.machine import devices
from distill.machine.devices import training_precision
from distill.models.loading import load_tokenizer
from distill.recipe.file import load_recipe
from distill.recipe.schema import Data, Files, Loss
from distill.storage.predictions import read_predictions
from distill.storage.run_folder import RunFolder
from distill.training.arguments import in_fp32, settle_precision, training_arguments
from distill.training.embeddings import summed_by_row
from distill.training.loop import train
from distill.training.micro_batches import MICRO_BATCH_LIMITS, Limits
from distill.training.tokens import tokenise
from distill.training.trainer import ClassificationTrainer

FP32 = {"bf16": False}
DISTILLATION = {"loss": Loss(), "teacher_weights": (1.0,)}


@pytest.fixture
def splits(data):
    files = Files(train=str(data / "train.csv"), test=str(data / "test.csv"))
    return load_splits(Data(files=files, label_names=tuple(LABELS), max_tokens=32))


def rows_with_teacher(rows, tokenizer):
    tokenised = tokenise(rows, tokenizer, Truncation(32))
    logits = np.random.default_rng(0).normal(size=(len(rows), 2)).astype(np.float32) * 3
    return tokenised.add_column("teacher_logits_0", list(logits))


def without_dropout(folder):
    return AutoModelForSequenceClassification.from_pretrained(
        folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )


def run(folder, splits, model_folder, training, trainer=ClassificationTrainer, checkpoint=None, **settings):
    tokenizer = load_tokenizer(str(model_folder))
    arguments, _ = training_arguments({"report_to": "none", **FP32, **training}, folder, "cpu", stage="teacher")
    model = settings.pop("model", None) or without_dropout(model_folder)
    padding, rows, patience = (
        settings.pop("padding", "longest"),
        settings.pop("rows", None),
        settings.pop("patience", None),
    )
    title = settings.pop("title", "test")
    figures = train(
        functools.partial(trainer, **settings),
        model,
        tokenizer,
        rows_with_teacher(splits.train.select(range(rows or len(splits.train))), tokenizer),
        tokenise(splits.validation, tokenizer, Truncation(32)),
        arguments,
        folder,
        padding=padding,
        max_tokens=32,
        device="cpu",
        early_stopping_patience=patience,
        checkpoint=checkpoint,
        title=title,
    )
    return model, figures


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["labels", "smoothed labels", "distillation", "teacher beside"])
def test_a_batch_in_parts_gives_the_gradients_of_the_whole(
    tmp_path, splits, tiny_bert, kind, accumulation, monkeypatch
):
    models, padding = [], []
    for micro_batch_tokens in (40, 10_000):
        monkeypatch.setitem(MICRO_BATCH_LIMITS, "cpu", Limits(micro_batch_tokens))
        settings = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "optim": "sgd", "learning_rate": 0.1}
        settings |= {"gradient_accumulation_steps": accumulation, "save_strategy": "no", "max_grad_norm": 0.0}
        settings |= {"label_smoothing_factor": 0.2} if kind == "smoothed labels" else {}
        loss = {} if "labels" in kind else dict(DISTILLATION)
        if kind == "teacher beside":
            teacher, student = without_dropout(tiny_bert), without_dropout(tiny_bert)
            with torch.no_grad():
                teacher.get_input_embeddings().weight.mul_(1.5)
            sections = {"hidden_states": {"distance": "mse"}, "attention_relations": {}}
            loss["loss"] = Loss.model_validate(sections)
            loss |= {"online": OnlineTeacher(teacher, student, distance="mse", relations=True), "model": student}
        trainer = DistillationTrainer if loss else ClassificationTrainer
        # Parts sum the gradients of lookup tables by row, the whole as torch does.
        by_row = Mock(side_effect=summed_by_row if micro_batch_tokens == 40 else contextlib.nullcontext)
        monkeypatch.setattr("distill.training.trainer.summed_by_row", by_row)
        model, figures = run(
            RunFolder(tmp_path / f"{micro_batch_tokens}"), splits, tiny_bert, settings, trainer, **loss
        )
        models.append(model)
        padding.append(figures["padding_fraction"])
        assert by_row.called
    for parts, whole in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)
    assert padding[0] < 0.1 < padding[1]


@pytest.mark.parametrize("kind", ["labels", "distillation"])
def test_one_batch_of_sixteen_and_four_of_four_give_the_same_gradients(tmp_path, splits, tiny_bert, kind):
    """With texts of different lengths: what counts is the example, not the batch it is in."""
    models = []
    for batch, accumulation in ((16, 1), (4, 4)):
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        settings["num_train_epochs"] = 1  # nine steps, the last of 10 examples: one batch, or 4 + 4 + 2
        # SGD: a step is the gradient. Adam would turn rounding into steps of full size.
        settings |= {"optim": "sgd", "learning_rate": 0.1, "save_strategy": "no", "max_grad_norm": 0.0}
        loss = DISTILLATION if kind == "distillation" else {}
        trainer = DistillationTrainer if loss else ClassificationTrainer
        folder = RunFolder(tmp_path / f"{batch}")
        models.append(run(folder, splits, tiny_bert, settings, trainer, rows=138, **loss)[0])
    start = without_dropout(tiny_bert)
    for whole, parts in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-4)
    assert any(not torch.equal(a, b) for a, b in zip(whole_parameters(models[0]), whole_parameters(start), strict=True))


def whole_parameters(model):
    return list(model.parameters())


def test_the_student_follows_the_teacher_at_soft_weight_one_and_the_labels_at_zero(tmp_path, splits, tiny_bert):
    """Teachers that contradict the labels: what the student learns shows whom it listened to."""
    tokenizer = load_tokenizer(str(tiny_bert))
    tokenised = tokenise(splits.train, tokenizer, Truncation(32))
    contrary = [[6.0, -6.0] if label else [-6.0, 6.0] for label in tokenised["labels"]]
    training = {
        "num_train_epochs": 4, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "save_strategy": "no", **FP32,
    }  # fmt: skip
    agreement = {}
    for weight in (0.0, 1.0):
        folder = RunFolder(tmp_path / str(weight))
        arguments, _ = training_arguments({"report_to": "none", **training}, folder, "cpu", stage="student")
        model = without_dropout(tiny_bert)
        train(
            functools.partial(DistillationTrainer, loss=Loss(soft_weight=weight), teacher_weights=(1.0,)),
            model, tokenizer, tokenised.add_column("teacher_logits_0", contrary),
            tokenise(splits.validation, tokenizer, Truncation(32)), arguments, folder, padding="longest", max_tokens=32,
            device="cpu", early_stopping_patience=None, checkpoint=None, title="test",
        )  # fmt: skip
        classifier = Classifier(TorchSession(model, "cpu"), tokenizer, LABELS, Truncation(32))
        predicted = classifier.logits(splits.test["text"]).argmax(1)
        agreement[weight] = float((predicted == np.asarray(splits.test["label"])).mean())
    assert agreement[0.0] > 0.9 and agreement[1.0] < 0.1


def test_a_step_in_mixed_precision_is_the_fp32_step_but_for_rounding(tmp_path, splits, tiny_bert):
    """Under autocast the logits are bf16; the losses, which subtract nearly equal numbers, must not be."""
    settings = {"per_device_train_batch_size": 16, "max_steps": 1, "optim": "sgd", "learning_rate": 1.0}
    settings |= {"save_strategy": "no", "max_grad_norm": 0.0}
    loss = DISTILLATION
    steps = []
    for bf16 in (False, True):
        folder = RunFolder(tmp_path / str(bf16))
        model, _ = run(folder, splits, tiny_bert, settings | {"bf16": bf16}, DistillationTrainer, **loss)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        start = without_dropout(tiny_bert)
        pairs = zip(model.parameters(), start.parameters(), strict=True)
        steps.append(torch.cat([(after - before).flatten() for after, before in pairs]))
    exact, rounded = steps
    assert exact.norm() > 0
    assert (rounded - exact).norm() / exact.norm() < 0.05


class Stop(TrainerCallback):
    """Sends this process a signal at a step, as a user's Ctrl-C does."""

    def __init__(self, step, number):
        self.step, self.number = step, number

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


TIMES = ("runtime", "per_second")


def log_of(folder):
    """What a run has logged, without what a clock has said."""
    entries = [json.loads(line) for line in folder.metrics_log.read_text().splitlines()]
    return [{name: value for name, value in one.items() if not name.endswith(TIMES)} for one in entries]


@pytest.mark.parametrize(("step", "number"), [(13, signal.SIGINT), (9, signal.SIGTERM)])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path, splits, step, number):
    """With dropout, shuffling and a checkpoint between two evaluations, or at the end of an epoch, due for one."""
    model_folder = make_classifier(tmp_path / "model")

    def fresh():
        return AutoModelForSequenceClassification.from_pretrained(model_folder)

    training = {
        "num_train_epochs": 3, "learning_rate": 1e-3, "per_device_train_batch_size": 16, "eval_strategy": "epoch",
        "save_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "accuracy",
        "logging_steps": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    whole, figures = run(RunFolder(tmp_path / "whole"), splits, model_folder, training, model=fresh())

    folder = RunFolder(tmp_path / "stopped")

    class StoppedTrainer(ClassificationTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(Stop(step, number))

    torch.manual_seed(0)
    with pytest.raises(Interrupted) as caught:
        run(folder, splits, model_folder, training, StoppedTrainer, model=fresh())
    assert caught.value.exit_code == 128 + number
    assert f"step {step}; --resume" in str(caught.value)
    assert not folder.is_finished
    checkpoint = folder.checkpoints / f"checkpoint-{step}"
    assert checkpoint.is_dir()
    resumed, found = run(folder, splits, model_folder, training, model=fresh(), checkpoint=checkpoint)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert folder.metrics_log.read_text().count("eval_accuracy") == 3
    assert log_of(folder) == log_of(RunFolder(tmp_path / "whole"))
    assert found["padding_fraction"] == figures["padding_fraction"] and found["steps"] == figures["steps"]
    assert found["seconds"] > found["evaluation_seconds"] > 0


@pytest.mark.parametrize("ends_by", ["max_steps", "early stopping"])
def test_a_run_that_goes_on_from_its_last_checkpoint_trains_no_further(ends_by, tmp_path, splits, tiny_bert):
    """Killed while its best weights were read, or after: in the middle of an epoch, or where patience had run out."""
    training = {
        "learning_rate": 0.0 if ends_by == "early stopping" else 3e-3, "per_device_train_batch_size": 16,
        "lr_scheduler_type": "constant", "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4,
        "logging_steps": 3, "metric_for_best_model": "accuracy",
    }  # fmt: skip
    patience = 2 if ends_by == "early stopping" else None
    training |= {"load_best_model_at_end": bool(patience), "max_steps": 100 if patience else 12}
    folder = RunFolder(tmp_path)
    model, figures = run(folder, splits, tiny_bert, training, patience=patience)
    log, last = log_of(folder), folder.checkpoints / f"checkpoint-{figures['steps']}"
    resumed, found = run(folder, splits, tiny_bert, training, patience=patience, checkpoint=last)
    assert found["steps"] == figures["steps"] == 12 and log_of(folder) == log
    assert all(map(torch.equal, model.state_dict().values(), resumed.state_dict().values()))
    assert found["samples_per_second"] > 0 and found["stopped_early"] == figures["stopped_early"]


@pytest.mark.parametrize("step", [9, 27])  # at the end of the first epoch, and of the last
def test_an_epoch_is_evaluated_and_logged_before_the_checkpoint_of_its_last_step(step, tmp_path, splits, tiny_bert):
    """Where checkpoints follow steps: a run that goes on from that one would not come back to it."""
    training = {
        "num_train_epochs": 3, "per_device_train_batch_size": 16, "eval_strategy": "epoch", "logging_strategy": "epoch",
        "save_strategy": "steps", "save_steps": 9,
    }  # fmt: skip
    folder, logs = RunFolder(tmp_path), []
    run(folder, splits, tiny_bert, training)
    logs.append(log_of(folder))
    run(folder, splits, tiny_bert, training, checkpoint=folder.checkpoints / f"checkpoint-{step}")
    assert log_of(folder) == logs[0] and sum("eval_loss" in entry for entry in logs[0]) == 3


def test_a_signal_after_the_last_checkpoint_is_not_lost(tmp_path, splits, tiny_bert):
    class Late(TrainerCallback):
        def on_train_end(self, args, state, control, **_):
            os.kill(os.getpid(), signal.SIGTERM)

    class LateTrainer(ClassificationTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(Late())

    with pytest.raises(Interrupted, match="when training had ended") as caught:
        run(RunFolder(tmp_path / "run"), splits, tiny_bert, {"max_steps": 2, "save_strategy": "no"}, LateTrainer)
    assert caught.value.exit_code == 143


def test_the_best_checkpoint_is_the_one_that_is_left(tmp_path, splits, tiny_bert):
    training = {
        "num_train_epochs": 3, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "eval_strategy": "epoch",
        "save_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "accuracy",
        "save_total_limit": 2,
    }  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    model, figures = run(folder, splits, tiny_bert, training)
    assert figures["selected_at"] > 0.9 and figures["stopped_early"] is None
    kept = AutoModelForSequenceClassification.from_pretrained(folder.checkpoints / figures["best_checkpoint"])
    for ours, theirs in zip(model.parameters(), kept.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert len(list(folder.checkpoints.glob("checkpoint-*"))) <= 2


def test_a_best_checkpoint_that_was_not_loaded_is_not_called_selected(tmp_path, splits, tiny_bert):
    training = {
        "max_steps": 4, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "eval_strategy": "steps",
        "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": False,
        "metric_for_best_model": "loss",
    }  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    model, figures = run(folder, splits, tiny_bert, training)
    assert figures["best_checkpoint"] is figures["selected_by"] is figures["selected_at"] is None
    last = AutoModelForSequenceClassification.from_pretrained(folder.checkpoints / "checkpoint-4")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), last.parameters(), strict=True))


def test_early_stopping_ends_a_run_that_no_longer_improves(tmp_path, splits, tiny_bert):
    training = {
        "num_train_epochs": 50, "learning_rate": 0.0, "per_device_train_batch_size": 32, "eval_strategy": "epoch",
        "save_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "accuracy",
    }  # fmt: skip
    _, figures = run(RunFolder(tmp_path / "run"), splits, tiny_bert, training, patience=2)
    assert figures["steps"] == 3 * 5  # the first evaluation, then two that are no better
    assert figures["stopped_early"] == {
        "step": 15, "planned_steps": 250, "epoch": 3.0, "planned_epochs": 50.0, "kept": "checkpoint-5",
    }  # fmt: skip


def test_a_run_that_diverges_says_so(tmp_path, splits, tiny_bert):
    """The cure names a section of the recipe: a control has the student's."""
    training = {"num_train_epochs": 2, "learning_rate": 1e30, "eval_strategy": "epoch", "save_strategy": "no"}
    training |= {"optim": "sgd", "max_grad_norm": 0.0}
    with pytest.raises(TrainingError, match="diverged") as raised:
        run(RunFolder(tmp_path / "run"), splits, tiny_bert, training, title="control")
    assert "--set student.training.learning_rate=LOWER" in raised.value.hint


def test_padding_is_counted(tmp_path, splits, tiny_bert):
    training = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "save_strategy": "no"}
    fractions = {
        padding: run(RunFolder(tmp_path / padding), splits, tiny_bert, training, padding=padding)[1]["padding_fraction"]
        for padding in ("longest", "max_length")
    }
    tokenised = tokenise(splits.train, load_tokenizer(str(tiny_bert)), Truncation(32))
    assert fractions["max_length"] == pytest.approx(1 - sum(tokenised["length"]) / (len(tokenised) * 32))
    assert fractions["longest"] < fractions["max_length"]


def test_all_validation_texts_are_judged_also_where_training_drops_a_batch(tmp_path, splits, tiny_bert):
    training = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no"}
    training |= {"per_device_eval_batch_size": 24, "per_device_train_batch_size": 8}
    logs = {}
    for is_dropping in (False, True):  # 16 validation texts are less than a batch
        folder = RunFolder(tmp_path / str(is_dropping))
        run(folder, splits, tiny_bert, {**training, "dataloader_drop_last": is_dropping})
        logs[is_dropping] = [one["eval_loss"] for one in log_of(folder) if "eval_loss" in one]
    assert logs[True] == logs[False] != []


def test_tensorboard_writes_where_the_run_is(tmp_path, splits, tiny_bert):
    training = {"max_steps": 2, "save_strategy": "no", "report_to": "tensorboard", "logging_steps": 1}
    folder = RunFolder(tmp_path / "run")
    run(folder, splits, tiny_bert, training)
    assert list(folder.tensorboard.glob("events.*"))


def test_fields_that_do_not_go_together_are_one_clear_line(tmp_path):
    training = {"eval_strategy": "steps", "eval_steps": 7, "save_steps": 10, "load_best_model_at_end": True}
    with pytest.raises(RecipeError, match=r"student\.training: ") as caught:
        training_arguments(training, RunFolder(tmp_path), "cpu", stage="student")
    assert "\n" not in caught.value.problems[0]


@pytest.mark.parametrize(
    ("rate", "fields", "reason"),
    [
        (0.0, {"bf16": False}, "fp32: this CPU has neither"),
        (0.6, {"bf16": False}, "fp32: .* at 0.60 times"),
        (2.0, {"bf16": True}, "bf16: "),
    ],
)
def test_a_cpu_trains_in_bf16_only_where_that_is_faster(monkeypatch, rate, fields, reason):
    monkeypatch.setattr(devices, "bf16_rate", lambda: rate)
    assert training_precision("cpu", {})[0] == fields
    assert re.match(reason, training_precision("cpu", {})[1])


@pytest.mark.parametrize(
    ("readings", "rate"),
    [
        ([([4.0, 4.1, 4.0], [2.0, 2.0, 2.1])], 2.0),  # quiet: once is enough
        ([([9.0, 4.9, 8.0], [5.0, 9.0, 7.0]), ([4.0, 4.0, 4.1], [2.0, 2.0, 2.1]), ([4.0] * 3, [2.0] * 3)], 2.0),
        ([([9.0, 4.9, 8.0], [5.0, 9.0, 7.0]), ([9.0, 4.0, 8.0], [2.0, 9.0, 7.0])] * 3, 2.0),  # never quiet
    ],
)
def test_a_busy_machine_is_timed_until_its_timings_agree(monkeypatch, readings, rate):
    """The first reading of a busy machine says 0.98, which is what other work costs and not what bf16 is worth."""
    left = iter(readings)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(
        devices, "time_in_turn", lambda *_, **__: dict(zip((torch.float32, torch.bfloat16), next(left), strict=True))
    )
    devices.bf16_rate.cache_clear()
    try:
        assert devices.bf16_rate() == rate and next(left, None) is None
    finally:
        devices.bf16_rate.cache_clear()


def test_the_recipe_has_the_last_word_on_precision():
    assert training_precision("cpu", {"bf16": False}) == ({}, "fp32, as the recipe says")
    assert training_precision("cpu", {"bf16": True}) == ({}, "bf16, as the recipe says")


@pytest.mark.parametrize(
    "setting",
    [{"dataloader_prefetch_factor": 2}, {"dataloader_persistent_workers": True}],
    ids=lambda one: next(iter(one)),
)
def test_what_only_workers_can_do_wants_workers(setting, tmp_path):
    """Which are there by themselves beside a GPU."""
    folder = RunFolder(tmp_path)
    with pytest.raises(RecipeError, match=f"training.{next(iter(setting))}: wants dataloader_num_workers above 0"):
        training_arguments({**FP32, **setting}, folder, "cpu", stage="teacher")
    training_arguments({**FP32, **setting, "dataloader_num_workers": 1}, folder, "cpu", stage="teacher")


def test_fp16_on_a_cpu_is_refused_before_anything_is_done(recipe_path, tmp_path, tiny_bert):
    """Also the student's, before its teacher is trained, and the control's and a sweep's, which are the student's."""
    for stage, arguments in {
        "teacher": ("teacher", recipe_path),
        "student": ("student", recipe_path, "--teacher", tiny_bert),
    }.items():
        expected = f"{stage}.training.fp16: true, but a CPU trains in fp16 at a fraction of its speed in fp32"
        for command in (arguments, ("run", recipe_path, "--output", tmp_path / "run")):
            given = (*command, "--device", "cpu", "--set", f"{stage}.training.fp16=true")
            check_refused(tmp_path, [expected], *given)


def test_a_run_in_bf16_is_tested_as_its_saved_model_answers(recipe_path, data):
    """Autocast is for training alone. If it stayed, a run's figures would be those of another model than the saved."""
    folder = recipe_path.parent / "teacher"
    recipe = commands.check(recipe_path, ["teacher.training.bf16=true", "teacher.training.num_train_epochs=1"])
    commands.teacher(recipe, folder)
    logits = read_predictions(RunFolder(folder).predictions).logits
    texts = Dataset.from_csv(str(data / "test.csv"))["text"][:]
    np.testing.assert_allclose(distill.load(folder, "cpu").logits(texts), logits, atol=1e-5)


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (2.2, None),
        (
            0.6,
            "teacher: training.bf16: true, but this CPU multiplies in it at 0.60 times the rate of fp32: without it",
        ),
        (
            0.0,
            "teacher: training.bf16: true, but this CPU has neither AVX512-BF16 nor AMX: without it training is faster",
        ),
    ],
)
def test_bf16_on_a_cpu_that_is_slow_in_it_is_said_and_done(recipe_path, monkeypatch, caplog, rate, said):
    for module in ("machine.devices", "training.arguments"):
        monkeypatch.setattr(f"distill.{module}.bf16_rate", lambda: rate)
    with caplog.at_level("WARNING", logger="distill"):
        recipe, _ = settle_precision(
            load_recipe(recipe_path, ["teacher.training.bf16=true"]), "teacher", RunFolder(recipe_path.parent), "cpu"
        )
    assert recipe.teacher.training["bf16"] is True
    assert [line[: len(said or "")] for line in caplog.messages] == ([said] if said else [])


def test_reviews_of_the_tests_are_balanced(tmp_path):
    assert sum(label == "positive" for _, label in write_reviews(tmp_path / "a.csv", 50, seed=1)) == 25


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_for_a_gpu_are_made_beside_it(tmp_path, device, monkeypatch):
    """Where the recipe says nothing of it."""
    monkeypatch.setattr(
        "distill.training.arguments.training_precision", lambda *_: ({"bf16": False}, "as the test says")
    )
    workers = {}
    for name, given in (("default", {}), ("none", {"dataloader_num_workers": 0})):
        arguments, _ = training_arguments({"report_to": "none", **given}, RunFolder(tmp_path), device, stage="teacher")
        workers[name] = arguments.dataloader_num_workers
    assert bool(workers["default"]) == (device == "cuda") and workers["none"] == 0


def test_workers_without_room_for_their_batches_are_refused(recipe_path, monkeypatch, tmp_path):
    monkeypatch.setattr("distill.training.arguments.shutil.disk_usage", lambda path: SimpleNamespace(free=2**16))
    monkeypatch.setattr("distill.training.arguments.SHARED_MEMORY", tmp_path)
    setting = "teacher.training.dataloader_num_workers=2"
    expected = "teacher.training.dataloader_num_workers: 2 workers may need"
    check_refused(tmp_path, [expected], "teacher", recipe_path, "--set", setting)


def test_an_architecture_that_mixed_precision_breaks_trains_in_fp32(recipe_path):
    """DeBERTa's mask value is fp32's least number, which bf16 cannot hold."""
    recipe = load_recipe(recipe_path)
    assert in_fp32(recipe, "teacher", "bert") is recipe
    settled, _ = settle_precision(
        in_fp32(recipe, "teacher", "deberta"), "teacher", RunFolder(recipe_path.parent), "cpu"
    )
    assert settled.teacher.training["bf16"] is False
    asked = load_recipe(recipe_path, ["teacher.training.bf16=true"])
    with pytest.raises(RecipeError, match="bf16: deberta's attention mask overflows"):
        in_fp32(asked, "teacher", "deberta")
