"""Hints are given where a training went the way they say, and nowhere else."""

import json

import pytest

from distill.training_log import warnings_of


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
    from distill import stages

    recipe = stages.check(recipe_path, ["teacher.training.learning_rate=1e-9", "teacher.training.logging_steps=1"])
    with caplog.at_level("WARNING", logger="distill"):
        folder = stages.teacher(recipe, tmp_path / "teacher")
    said = json.loads(folder.metrics.read_text())["training"]["warnings"]
    assert len(said) == 1 and "hardly fell" in said[0]
    assert f"teacher: {said[0]}" in caplog.messages
