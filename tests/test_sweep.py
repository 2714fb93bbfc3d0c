"""What `distill sweep` promises: trials as the recipe says, on validation, resumable, and a recipe of the best."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import LABELS, data_section, run

from distill import commands
from distill.distillation.trainer import DistillationTrainer
from distill.errors import FolderError, TrainingError, UserError
from distill.recipe.file import load_recipe
from distill.storage.contents import sweeps_in
from distill.storage.run_folder import SweepFolder
from distill.training import loop as training

TRAINING = {"num_train_epochs": 2, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "bf16": False}
KEYS = {
    "student.training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "student.training.warmup_steps": [0, 0.3],  # the second must not become 0
    "student.training.gradient_accumulation_steps": {"low": 1, "high": 3},
    "student.training.lr_scheduler_type": ["linear", "cosine"],
    "student.loss.temperature": [1.0, {"start": 4.0, "end": 1.0}],
    "student.loss.soft_weight": {"low": 0.3, "high": 1.0},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory, data, tiny_bert):
    """A folder with a trained teacher and a recipe that searches over a student's keys."""
    folder = tmp_path_factory.mktemp("sweep")
    recipe = {
        "data": data_section(data),
        "teacher": {
            "model": str(tiny_bert), "pretrained": False, "output": str(folder / "teacher"),
            "training": {**TRAINING, "num_train_epochs": 4},
        },
        "student": {
            "layers": 2, "output": str(folder / "student"),
            "training": {**TRAINING, "metric_for_best_model": "log_loss"},  # accuracy is 1 at once
        },
        "benchmark": {"shapes": ["1x8"], "rounds": 5, "threads": 1},
        "sweep": {"trials": 3, "keys": KEYS},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    commands.teacher(load_recipe(folder / "recipe.yaml"), device="cpu")
    return folder


def sweep(world, output, *overrides, teachers=None, **options):
    recipe = load_recipe(world / "recipe.yaml", overrides)
    return commands.sweep(recipe, world / "teacher" if teachers is None else teachers, output, device="cpu", **options)


def without_times(trials):
    return [{name: value for name, value in trial.items() if name != "seconds"} for trial in trials]


@pytest.fixture(scope="module")
def searched(world):
    """What a whole search found; it lies in world / "whole"."""
    return sweep(world, world / "whole")


def test_trials_stay_in_their_spaces_and_the_best_is_the_best(world, searched):
    assert [trial["number"] for trial in searched["trials"]] == [1, 2, 3]
    assert len({json.dumps(trial["values"]) for trial in searched["trials"]}) == 3
    for trial in searched["trials"]:
        assert list(trial["values"]) == list(KEYS) and trial["error"] is None and trial["seconds"] > 0
        for key, space in KEYS.items():
            value = trial["values"][key]
            assert value in space if isinstance(space, list) else space["low"] <= value <= space["high"]
        assert isinstance(trial["values"]["student.training.gradient_accumulation_steps"], int)
    best = searched["trials"][searched["best"] - 1]
    assert best["objective"] == min(trial["objective"] for trial in searched["trials"])
    assert (searched["metric"], searched["direction"], searched["counts"]) == ("log_loss", "minimize", "best")
    assert SweepFolder(world / "whole").read_results() == searched
    assert not (world / "whole" / "checkpoints").exists()


def test_a_run_of_the_recipe_that_is_left_repeats_the_best_trial(world, searched):
    """To the last bit, so all values reached the trial, also those of the loss, and nothing else did."""
    best = searched["trials"][searched["best"] - 1]
    recipe = load_recipe(world / "whole" / "recipe.yaml")
    assert recipe.sweep is None
    for key, value in best["values"].items():
        _, section, name = key.split(".")
        found = recipe.student.training if section == "training" else recipe.student.loss.model_dump()
        assert found[name] == value
    figures = commands.student(recipe, world / "teacher", world / "winner", device="cpu").read_metrics()["training"]
    assert figures["selected_at"] == best["objective"]


@pytest.mark.slow
def test_another_search_makes_the_same_trials_of_kept_answers_whatever_the_test_labels(
    world, searched, data, tmp_path, monkeypatch
):
    text = (data / "test.csv").read_text()
    first, second = LABELS
    turned = text.replace(first, "#").replace(second, first).replace("#", second)
    assert turned != text
    (tmp_path / "test.csv").write_text(turned)
    monkeypatch.setattr("distill.distillation.teachers.load", lambda *_, **__: pytest.fail("the teacher was loaded"))
    again = sweep(world, tmp_path / "again", f"data.files.test={tmp_path / 'test.csv'}")
    assert without_times(again["trials"]) == without_times(searched["trials"])


@pytest.mark.slow
def test_an_interrupted_search_goes_on_as_if_it_had_not_been_and_then_to_more_trials(
    world, searched, tmp_path, monkeypatch
):
    evaluations = itertools.count(1)

    def figures(*arguments):
        if next(evaluations) == 3:  # the first of the second trial
            raise KeyboardInterrupt
        return whole(*arguments)

    whole = training.validation_figures
    with monkeypatch.context() as patch:
        patch.setattr(training, "validation_figures", figures)
        with pytest.raises(KeyboardInterrupt):
            sweep(world, tmp_path / "s")
    folder = SweepFolder(tmp_path / "s")
    assert len(folder.read_results()["trials"]) == 1 and not folder.best.exists()
    with pytest.raises(FolderError, match=r"holds an unfinished run"):
        sweep(world, tmp_path / "s")
    with pytest.raises(FolderError, match=r"another recipe, so it cannot be resumed: data\.seed: 7 now, 42 then"):
        sweep(world, tmp_path / "s", "data.seed=7", resume=True)
    resumed = sweep(world, tmp_path / "s", resume=True)
    assert without_times(resumed["trials"]) == without_times(searched["trials"])
    with pytest.raises(FolderError, match="holds a finished run"):
        sweep(world, tmp_path / "s")
    longer = sweep(world, tmp_path / "s", "sweep.trials=4", resume=True)
    assert longer["trials"][:3] == resumed["trials"] and len(longer["trials"]) == 4 and folder.best.exists()


def test_a_search_of_which_nothing_comes_says_so_and_leaves_its_trials(world, tmp_path):
    rates = "sweep.keys={student.training.learning_rate: [1.0e+30, 2.0e+30]}"
    with pytest.raises(TrainingError, match="all 2 trials failed; the last: training diverged"):
        sweep(world, tmp_path / "s", rates, "student.training.logging_steps=1")
    folder = SweepFolder(tmp_path / "s")
    assert len(folder.read_results()["trials"]) == 2 and not folder.best.exists()


@pytest.mark.slow
def test_a_trial_for_which_memory_does_not_suffice_comes_to_nothing_and_the_search_goes_on(
    world, tmp_path, monkeypatch
):
    """Then, with more trials, it makes the choices that are left, and none twice."""

    def step(trainer, *arguments):
        if trainer.args.per_device_train_batch_size == 32:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return whole(trainer, *arguments)

    whole = DistillationTrainer.training_step
    monkeypatch.setattr(DistillationTrainer, "training_step", step)
    keys = "sweep.keys={student.training.per_device_train_batch_size: [32, 64, 16]}"
    shorter = sweep(world, tmp_path / "s", keys, "sweep.trials=2")
    found = sweep(world, tmp_path / "s", keys, "sweep.trials=3", resume=True)
    assert found["trials"][:2] == shorter["trials"]
    sizes = {
        trial["values"]["student.training.per_device_train_batch_size"]: trial["error"] for trial in found["trials"]
    }
    assert sizes == {32: "out of memory", 64: None, 16: None}


@pytest.mark.slow
def test_a_teacher_is_searched_over_by_the_figure_of_its_recipe(world, tmp_path):
    found = sweep(
        world, tmp_path / "s", "sweep.keys={teacher.training.learning_rate: [1.0e-6, 3.0e-3]}",
        "teacher.early_stopping_patience=2", teachers=(),
    )  # fmt: skip
    assert (found["stage"], found["metric"], found["direction"], found["best"]) == (
        "teacher", "accuracy", "maximize", 2,
    )  # fmt: skip
    worse, best = (trial["objective"] for trial in found["trials"])
    assert worse < 0.9 < best
    repeated = commands.teacher(load_recipe(tmp_path / "s" / "recipe.yaml"), tmp_path / "teacher", device="cpu")
    assert repeated.read_metrics()["training"]["selected_at"] == best


@pytest.mark.slow
def test_without_evaluations_the_last_state_counts(world, tmp_path):
    keys = "sweep.keys={student.loss.soft_weight: [0.0, 1.0]}"
    found = sweep(world, tmp_path / "s", keys, "student.training.eval_strategy=no")
    assert found["counts"] == "last" and [trial["epoch"] for trial in found["trials"]] == [2.0, 2.0]


@pytest.mark.slow
def test_the_teacher_may_run_beside_the_student_of_a_trial(world, tmp_path):
    keys = "sweep.keys={student.loss.hidden_states: [null, {weight: 2.0}]}"
    found = sweep(world, tmp_path / "s", keys)
    assert [trial["error"] for trial in found["trials"]] == [None, None]
    one, other = (trial["objective"] for trial in found["trials"])
    assert one != other  # they learn from other things, so only a teacher that was left out would make them equal


def test_the_trials_are_in_the_report(world, searched, tmp_path):
    with pytest.raises(FolderError, match="holds a sweep and no model to measure"):
        commands.report([world / "whole"], tmp_path / "report")
    report = commands.report([world / "whole", world / "teacher"], tmp_path / "report", device="cpu")
    assert report["sweeps"] == [{"folder": str(world / "whole"), **searched}]
    html, markdown = ((tmp_path / "report" / f"report.{kind}").read_text() for kind in ("html", "md"))
    best = searched["trials"][searched["best"] - 1]
    for text in (html, markdown):
        assert (
            "Sweep trials" in text
            and f"Trial {best['number']} of 3 was best" in text
            and "so this score is optimistic" in text
        )
        assert f"{best['objective']:.4f}" in text and "training.warmup_steps" in text
    assert html.count('<tr class="chosen">') == 1
    shutil.copytree(world / "whole", tmp_path / "run" / "sweep")  # as `distill run` finds it
    assert [found["folder"] for found in sweeps_in(tmp_path / "run")] == [str(tmp_path / "run" / "sweep")]


def test_without_optuna_there_is_one_line_and_its_cure(world, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="Optuna, which distill sweep needs, is not installed") as refused:
        sweep(world, tmp_path / "s")
    assert refused.value.hint == "pip install optuna" and not (tmp_path / "s").exists()


def test_the_command_tries_lists_once_each_goes_on_where_a_trial_diverges_and_says_what_follows(world, tmp_path):
    arguments = ["sweep", world / "recipe.yaml", "--teacher", world / "teacher", "--output", tmp_path / "s"]
    rates = "sweep.keys.student.training.learning_rate=[1.0e-4, 1.0e+30, 3.0e-3]"
    arguments += ["--set", "sweep.keys={}", "--set", rates, "--set", "student.training.logging_steps=1"]
    code, out, err = run(*arguments, "--set", "sweep.trials=20")
    assert code == 0, err
    found = SweepFolder(tmp_path / "s").read_results()
    assert [trial["values"]["student.training.learning_rate"] for trial in found["trials"]] == [1e-4, 1e30, 3e-3]
    assert "training diverged" in found["trials"][1]["error"] and found["trials"][1]["objective"] is None
    assert [trial["error"] for trial in found["trials"][::2]] == [None, None] and found["best"] == 3
    head, _, *rows = out.splitlines()[:5]
    assert head.split()[:4] == ["trial", "training.learning_rate", "validation", "log_loss"]
    assert [row.split()[0] for row in rows] == ["3", "1", "2"]
    assert rows[0].split()[-1] == "best" and "training diverged" in rows[2]
    assert out.splitlines()[-1] == f"distill student {tmp_path / 's' / 'recipe.yaml'} --teacher {world / 'teacher'}"
    assert "trial 2 of 3: failed: training diverged" in err and "Traceback" not in err and "[I " not in err
    code, out, _ = run(*arguments, "--set", "sweep.trials=20", "--resume", "--json")
    assert code == 0 and json.loads(out) == SweepFolder(tmp_path / "s").read_results()


@pytest.mark.slow
def test_damage_is_named_and_overwritten(world, searched, tmp_path):
    shutil.copytree(world / "whole", tmp_path / "s")
    folder = SweepFolder(tmp_path / "s")
    folder.results.write_text(folder.results.read_text().replace("0.", "0.9"))
    with pytest.raises(FolderError, match=r"sweep\.json is damaged"):
        commands.report([folder.path, world / "teacher"], tmp_path / "report")
    folder.study.write_bytes(b"no database" * 1_000)
    with pytest.raises(FolderError, match=r"trials\.db: cannot be read"):
        sweep(world, folder.path, resume=True)
    rates = "sweep.keys={student.training.learning_rate: [1.0e-3, 3.0e-3]}"
    assert len(sweep(world, folder.path, rates, overwrite=True)["trials"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_search_goes_on(world, searched, tmp_path, number):
    command = [sys.executable, "-m", "distill", "sweep", world / "recipe.yaml", "--teacher", world / "teacher"]
    command = [*map(str, command), "--device", "cpu", "--output", str(tmp_path / "s"), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        # A test run that a shell has put in the background ignores SIGINT, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (tmp_path / "s" / "sweep.json").exists() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode in (-number, 128 + number) and "Traceback" not in said, said
    assert not (tmp_path / "s" / "recipe.yaml").exists()
    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert without_times(json.loads(done.stdout)["trials"]) == without_times(searched["trials"])
