"""Hints are given where a training went the way they say, and nowhere else."""

import json

import pytest

from distill.measuring.training_log import early_stop, early_stop_in_words, warnings_of


def log(losses, evaluations=(), rate=1e-4):
    """Losses logged every 10 steps; evaluations as (step, log loss)."""
    entries = [
        {"step": 10 * n, "epoch": 10 * n / 50, "loss": loss, "learning_rate": rate} for n, loss in enumerate(losses, 1)
    ]
    entries += [{"step": step, "epoch": step / 50, "eval_log_loss": loss} for step, loss in evaluations]
    return sorted(entries, key=lambda entry: entry["step"])


FALLING = [0.69, 0.66, 0.6, 0.52, 0.45, 0.41, 0.36, 0.33, 0.3, 0.28, 0.27, 0.25]


def test_a_training_that_went_well_is_left_alone():
    assert warnings_of(log(FALLING, [(50, 0.5), (100, 0.4), (120, 0.41)])) == []
    assert warnings_of([]) == [] and warnings_of(log([0.7])) == []


def test_losses_that_are_nearly_gone_may_jump():
    assert warnings_of(log([0.7, 0.4, 0.2, 0.05, 0.001, 0.03, 0.002, 0.04, 0.001, 0.02, 0.001, 0.03])) == []


@pytest.mark.parametrize("rate", [1e-9, 0.5])
def test_a_loss_that_stays_points_at_the_learning_rate(rate):
    (said,) = warnings_of(log([0.69, 0.7, 0.69, 0.7, 0.69, 0.69, 0.7, 0.69, 0.69], rate=rate))
    assert "hardly fell (0.693 at first, 0.693 at last)" in said and f"{rate:.1e}" in said


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9], "the training loss rose (0.500 at first, 0.900 at last): the "),
        ([0.69] * 6 + [0.72] * 3, "the training loss rose (0.690 at first, 0.720 at last): the learning rate (1.0e-04"),
        ([0.69] * 6 + [0.70] * 3, "the training loss did not fall (0.690 at first, 0.700 at last): the learning rate"),
        ([0.70] * 6 + [0.69] * 3, "the training loss hardly fell (0.700 at first, 0.690 at last): the learning rate"),
    ],
)
def test_a_loss_that_rose_is_not_said_to_have_hardly_fallen(losses, said):
    (found,) = warnings_of(log(losses))
    assert found.startswith(said)
    assert found.endswith("too high" if "rose" in said else "is probably too low, or far too high")


# Of each: step, planned steps, epoch, the checkpoint that is kept; what metrics.json and the log say.
STOPS = {
    "the best checkpoint": (
        (15, 250, 3.0, "checkpoint-5"),
        {"step": 15, "planned_steps": 250, "epoch": 3.0, "planned_epochs": 50.0, "kept": "checkpoint-5"},
        "stopped early, at step 15 of 250 (epoch 3 of 50); checkpoint-5 is kept, with the best validation "
        "log loss (0.4000)",
    ),
    "the last step": (
        (10, 20, 2.5, None),
        {"step": 10, "planned_steps": 20, "epoch": 2.5, "planned_epochs": 5.0, "kept": None},
        "stopped early, at step 10 of 20 (epoch 2.5 of 5); the last step is kept",
    ),
    "a training that went to its end": ((250, 250, 50.0, "checkpoint-5"), None, None),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_training_that_stopped_early_says_where_and_what_is_kept(name):
    arguments, expected, words = STOPS[name]
    found = early_stop(*arguments)
    assert found == expected
    if words:
        training = {"stopped_early": found, "selected_by": "eval_log_loss", "selected_at": 0.4}
        assert early_stop_in_words(training) == words


def test_of_a_loss_that_follows_a_schedule_nothing_is_said():
    stays, memorises = log([0.69] * 9), log(FALLING, [(50, 0.40), (100, 0.55), (120, 0.66)])
    assert warnings_of(stays, loss_is_scheduled=True) == warnings_of(memorises, loss_is_scheduled=True) == []


def test_a_loss_that_jumps_is_said():
    (said,) = warnings_of(log([1.2, 1.1, 1.0, 0.9, 0.2, 0.9, 0.1, 0.8, 0.2, 0.9, 0.1, 0.8]))
    assert "jumps by" in said


def test_overfitting_names_the_epoch_that_was_best():
    (said,) = warnings_of(log(FALLING, [(50, 0.40), (100, 0.55), (120, 0.66)]))
    assert "best at epoch 1.00 (0.400) and rose to 0.660" in said


def test_a_finished_run_says_it_and_keeps_it(recipe_path, tmp_path, caplog):
    from distill import commands

    still = ["teacher.training.learning_rate=1e-9", "teacher.training.logging_steps=1"]
    recipe = commands.check(recipe_path, [*still, "teacher.early_stopping_patience=1"])
    with caplog.at_level("INFO", logger="distill"):
        folder = commands.teacher(recipe, tmp_path / "teacher")
    training = json.loads(folder.metrics.read_text())["training"]
    (said,) = training["warnings"]
    assert "hardly fell" in said or "did not fall" in said
    assert f"teacher: {said}" in caplog.messages
    kept = {"epoch": 2.0, "kept": "checkpoint-9", "planned_epochs": 3.0, "planned_steps": 27, "step": 18}
    assert training["stopped_early"] == kept
    (stopped,) = [line for line in caplog.messages if "stopped early" in line]
    assert stopped.startswith("teacher: stopped early, at step 18 of 27 (epoch 2 of 3); checkpoint-9 is kept, with ")
