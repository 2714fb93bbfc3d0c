"""The line and the table that a person watches."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from distill.storage.checksums import damage_of
from distill.storage.run_folder import RunFolder
from distill.training.callbacks import ProgressLine, SealCheckpoints


def watch(logs, *, is_first_rank=True, figures=dict):
    """Play a training that logs `logs` to a progress line; the loss of each step is its number. Return the line."""
    state = TrainerState(max_steps=8, is_world_process_zero=is_first_rank)
    watched = ProgressLine("teacher", figures, lambda: float(sum(range(state.global_step + 1))))
    arguments, control = SimpleNamespace(), TrainerControl()
    watched.on_train_begin(arguments, state, control)
    for step, entry in logs:
        state.global_step = step
        watched.on_step_end(arguments, state, control)
        watched.on_log(arguments, state, control, logs=entry)
    watched.on_train_end(arguments, state, control)
    return watched


def evaluation(epoch, log_loss):
    return {"epoch": epoch, "eval_log_loss": log_loss, "eval_accuracy": 0.5, "eval_macro_f1": 0.25}


LOGS = [
    (2, {"loss": 0.8}),
    (4, {"loss": 0.6}),
    (4, evaluation(1.0, 0.65)),
    (8, evaluation(2.0, 0.55)),
    (8, evaluation(2.0, 0.55)),
]


def test_evaluations_are_a_table_with_the_mean_loss_of_all_steps_since_the_one_before(capsys):
    watch(LOGS)
    header, *rows = [line for line in capsys.readouterr().err.splitlines() if "%" not in line and line.strip()]
    columns = [header.index(name) + len(name) for name in ("epoch", "step", "training loss", "accuracy", "macro-F1")]
    assert len(rows) == 3 and all(len(row) == len(header) for row in rows)
    assert [row[:end].split()[-1] for row in rows for end in columns] == [
        *("1.00", "4", "2.5000", "0.5000", "0.2500"),
        *("2.00", "8", "6.5000", "0.5000", "0.2500"),
        *("2.00", "8", "-", "0.5000", "0.2500"),
    ]


def test_the_line_shows_the_loss_and_the_figures_asked_for_when_it_is_logged(capsys):
    asked = []

    def figures():
        asked.append(1)
        return {"padding": "7 %"}

    watch(LOGS, figures=figures)
    assert len(asked) == 2  # once a logged loss: not at every step
    assert "padding=7 %" in capsys.readouterr().err


def test_other_ranks_are_silent(capsys):
    watch(LOGS, is_first_rank=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("limit", "left"), [(1, {2}), (2, {2, 8}), (None, {2, 4, 6, 8})])
def test_the_best_checkpoint_is_kept_also_under_a_relative_path(tmp_path, monkeypatch, limit, left):
    """As `training.train` uses it: the folder absolute, as Trainer names the best one."""
    monkeypatch.chdir(tmp_path)
    arguments = SimpleNamespace(output_dir=str(Path("run/checkpoints").absolute()))
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()
    callback = SealCheckpoints(limit, RunFolder(Path("run")))
    for step in (2, 4, 6, 8):
        folder = Path(arguments.output_dir, f"checkpoint-{step}")
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes([step]))
        state.global_step = step
        state.best_model_checkpoint = str(folder.with_name("checkpoint-2"))
        callback.on_save(arguments, state, control)
        assert damage_of(folder) is None
    callback.on_train_end(arguments, state, control)
    assert {int(path.name.split("-")[1]) for path in Path("run/checkpoints").iterdir()} == left
