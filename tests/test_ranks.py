"""Several processes under torchrun do what one does with the same global batch."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import data_section, make_classifier
from safetensors.numpy import load_file

from distill.run_folder import RunFolder, read_predictions

TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, data):
    """Nothing random but the order of the texts, which all ranks share: then one and two processes can agree."""
    folder = tmp_path_factory.mktemp("ranks")
    model = make_classifier(folder / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    training = {"num_train_epochs": 3, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "logging_steps": 1}
    recipe = {
        "data": data_section(data),
        "teacher": {"model": str(model), "pretrained": True, "training": training},
        "student": {
            "config": {"hidden_size": 16, "num_hidden_layers": 2},
            "control": True,
            "loss": {"hidden_states": {"distance": "mse", "weight": 0.5}, "attention_relations": {"weight": 0.5}},
            "training": training | {"train_sampling_strategy": "group_by_length"},
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def launch(launcher, *arguments):
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "distill", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def losses(folder):
    entries = [json.loads(line) for line in folder.metrics_log.read_text().splitlines()]
    return np.array([entry["loss"] for entry in entries if "loss" in entry])


@pytest.mark.slow
def test_two_ranks_train_as_one_does_with_the_same_global_batch(recipe, tmp_path):
    commands = [
        ("teacher", [recipe, "--set", "teacher.training.per_device_train_batch_size={}"]),
        ("student", [recipe, "--teacher", "{}/teacher", "--set", "student.training.per_device_train_batch_size={}"]),
    ]
    for name, launcher, batch in (("one", [], 16), ("two", TORCHRUN, 8)):
        for command, arguments in commands:
            filled = [str(part).replace("{}/", f"{tmp_path / name}/").format(batch) for part in arguments]
            done = launch(launcher, command, *filled, "--output", tmp_path / name / command)
            assert done.stdout.split() == [str(tmp_path / name / command)]  # said once
    for role in ("teacher", "student", "student-control"):
        one, two = (RunFolder(tmp_path / name / role) for name in ("one", "two"))
        assert two.is_finished
        np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)
        np.testing.assert_allclose(*(read_predictions(folder.predictions)[2] for folder in (one, two)), atol=1e-5)
        figures = [json.loads(folder.metrics.read_text())["training"] for folder in (one, two)]
        assert figures[0]["steps"] == figures[1]["steps"] == 27
        assert [round(found["seconds"] * found["samples_per_second"]) for found in figures] == [3 * 144] * 2  # of all


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 10])
def test_a_signal_to_one_rank_stops_all_at_one_step_and_resume_ends_as_if_nothing_had_been(recipe, tmp_path, step):
    """Step 10 ends an epoch, whose evaluation comes before the checkpoint."""
    whole, stopped = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    launch(TORCHRUN, "teacher", recipe, "--output", whole.path)
    code = f"""
import os, signal
import distill.training as training
done = training.ProgressLine.on_step_end
def on_step_end(self, args, state, control, **rest):
    if state.global_step == {step} - 1 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return done(self, args, state, control, **rest)
training.ProgressLine.on_step_end = on_step_end
from distill.cli import main
main()
"""
    (tmp_path / "stopped.py").write_text(code)
    command = [*TORCHRUN, tmp_path / "stopped.py", "teacher", recipe, "--output", stopped.path]
    ended = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300, env=ENVIRONMENT
    )
    assert ended.returncode != 0 and f"interrupted: stopped at step {step}" in ended.stderr, ended.stderr
    assert not stopped.is_finished and stopped.last_checkpoint().name == f"checkpoint-{step}"
    launch(TORCHRUN, "teacher", recipe, "--output", stopped.path, "--resume")
    assert_same(stopped, whole)


def assert_same(found, expected):
    weights = [load_file(folder.path / "model.safetensors") for folder in (found, expected)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert found.predictions.read_bytes() == expected.predictions.read_bytes()
    np.testing.assert_array_equal(losses(found), losses(expected))


@pytest.mark.slow
def test_a_whole_run_ends_on_one_rank_and_is_skipped_where_it_is_finished(recipe, tmp_path):
    sets = [part for name in ("teacher", "student") for part in ("--set", f"{name}.training.num_train_epochs=1")]
    sets += ["--set", "export.formats=[onnx-fp32]", "--set", "benchmark.rounds=5", "--set", "benchmark.shapes=[1x8]"]
    for _ in range(2):
        done = launch(TORCHRUN, "run", recipe, "--output", tmp_path / "run", "--force", *sets)
        assert done.stdout.count("report.html") == 1
        assert (tmp_path / "run" / "report" / "report.json").is_file()
        (tmp_path / "run" / "report" / "report.json").unlink()
    assert "teacher: finished before, skipped" in done.stderr


@pytest.mark.slow
def test_a_mistake_is_said_once(recipe, tmp_path):
    done = subprocess.run(
        [sys.executable, *TORCHRUN, "-m", "distill", "teacher", str(recipe), "--set", "teacher.training.fp17=true"],
        capture_output=True, text=True, timeout=300, env=ENVIRONMENT, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode != 0 and done.stderr.count("error: ") == 1, done.stderr
    assert "teacher.training.fp17: not a field" in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", [["export", "student"], ["report", "runs"], ["predict", "student", "a text"], ["sweep", "r"]]
)
def test_what_is_for_one_process_refuses_more(command):
    environment = ENVIRONMENT | {"RANK": "0", "WORLD_SIZE": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "distill", *command], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 2
    assert f"error: {command[0]}: runs in one process, and 2 were launched" in done.stderr
