"""Several processes under torchrun do what one does with the same global batch."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import GLOO_MAY_CRASH, data_section, make_classifier
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification

from distill.storage.predictions import read_predictions
from distill.storage.run_folder import RunFolder

TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
# Parts so small that each rank has several of every step; with its own size, texts as short as ours fill but one.
SMALL_PARTS = """
from distill.training.micro_batches import MICRO_BATCH_LIMITS, Limits
MICRO_BATCH_LIMITS["cpu"] = Limits(64)
from distill.cli import main
main()
"""
# The second rank gets a signal after a step, once.
SIGNALLED = """
import os, signal
import distill.training.loop as training
done = training.ProgressLine.on_step_end
def on_step_end(self, args, state, control, **rest):
    rank, restarts = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
    if (state.global_step, rank, restarts) == ({step}, "1", "0"):
        os.kill(os.getpid(), signal.{signal})
    return done(self, args, state, control, **rest)
training.ProgressLine.on_step_end = on_step_end
from distill.cli import main
main()
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, data):
    """Nothing random but the order of the texts, which all ranks share: then one and two processes can agree."""
    folder = tmp_path_factory.mktemp("ranks")
    model = make_classifier(folder / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    training = {
        "num_train_epochs": 3, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "logging_steps": 1,
        "bf16": False,  # whose rounding sums of one and of two ranks would show
    }  # fmt: skip
    recipe = {
        "data": data_section(data),
        "teacher": {"model": str(model), "pretrained": True, "training": training},
        "student": {
            "config": {"hidden_size": 16, "num_hidden_layers": 2},
            "control": True,
            "loss": {"hidden_states": {"distance": "mse", "weight": 0.5}, "attention_relations": {"weight": 0.5}},
            "training": training,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def launch(launcher, *arguments, program=("-m", "distill"), **environment):
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, (*program, *arguments))],
        capture_output=True, text=True, timeout=300, env=ENVIRONMENT | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]  # which rank ended how comes last
    return done


def losses(folder):
    entries = [json.loads(line) for line in folder.metrics_log.read_text().splitlines()]
    return np.array([entry["loss"] for entry in entries if "loss" in entry])


@pytest.mark.slow
@GLOO_MAY_CRASH
def test_two_ranks_train_as_one_does_with_the_same_global_batch(recipe, tmp_path):
    (tmp_path / "small_parts.py").write_text(SMALL_PARTS)
    commands = [
        ("teacher", [recipe, "--set", "teacher.training.per_device_train_batch_size={}"]),
        ("student", [recipe, "--teacher", "{}/teacher", "--set", "student.training.per_device_train_batch_size={}"]),
    ]
    for name, launcher, batch in (("one", [], 16), ("two", TORCHRUN, 8), ("shards", TORCHRUN, 8)):
        for command, arguments in commands:
            filled = [str(part).replace("{}/", f"{tmp_path / name}/").format(batch) for part in arguments]
            if name == "shards":
                filled += ["--set", f"{command}.training.fsdp=true"]
            program = [tmp_path / "small_parts.py"]
            done = launch(launcher, command, *filled, "--output", tmp_path / name / command, program=program)
            assert done.stdout.split() == [str(tmp_path / name / command)]  # said once
    for role, other in itertools.product(("teacher", "student", "student-control"), ("two", "shards")):
        one, two = (RunFolder(tmp_path / name / role) for name in ("one", other))
        assert two.is_finished
        assert two.read_manifest()["sharded"] == (other == "shards")
        np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)
        np.testing.assert_allclose(*(read_predictions(folder.predictions).logits for folder in (one, two)), atol=1e-5)
        figures = [json.loads(folder.metrics.read_text())["training"] for folder in (one, two)]
        assert figures[0]["steps"] == figures[1]["steps"] == 27
        assert [round(found["seconds"] * found["samples_per_second"]) for found in figures] == [3 * 144] * 2  # of all
        assert figures[0]["best_checkpoint"] == figures[1]["best_checkpoint"]
        model, report = AutoModelForSequenceClassification.from_pretrained(two.path, output_loading_info=True)
        assert not any(report.values()) and not type(model).__name__.startswith("FSDP")
        best = load_file(two.checkpoints / figures[1]["best_checkpoint"] / "model.safetensors")
        weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        weights = {name: tensor for name, tensor in weights.items() if "classifier" not in name}  # divided: calibrated
        assert all(np.array_equal(best[name], tensor) for name, tensor in weights.items())


@pytest.mark.slow
@GLOO_MAY_CRASH
def test_two_ranks_learn_several_labels_a_text_as_one_does(tmp_path):
    """Texts of none, one or both labels, weighted, with a transfer set. All batches are full, in two ranks too."""
    model = make_classifier(
        tmp_path / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, id2label={0: "food", 1: "price"},
        problem_type="multi_label_classification",
    )  # fmt: skip
    for name, count in (("train", 80), ("test", 20), ("transfer", 24)):
        rows = [
            {"text": f"the film {'good' if row % 2 else 'was'} {'bad' if row % 3 else 'and'} {name} x{row}",
             "label": [label for label, there in (("food", row % 2), ("price", row % 3)) if there]}
            for row in range(count)
        ]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"num_train_epochs": 2, "learning_rate": 3e-3, "logging_steps": 1, "bf16": False}
    recipe = {
        "data": {"files": {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test", "transfer")},
                 "task": "multi_label", "label_names": ["food", "price"], "max_tokens": 16},
        "teacher": {"model": str(model), "training": training, "class_weights": "balanced"},
        "student": {"layers": 1, "loss": {"soft_weight": 0.5}, "training": training},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    for name, launcher, batch in (("one", [], 8), ("two", TORCHRUN, 4)):
        for command, more in (("teacher", ()), ("student", ("--teacher", tmp_path / name / "teacher"))):
            size = f"{command}.training.per_device_train_batch_size={batch}"
            output = tmp_path / name / command
            launch(launcher, command, tmp_path / "recipe.yaml", *more, "--set", size, "--output", output)
    for role in ("teacher", "student"):
        one, two = (RunFolder(tmp_path / name / role) for name in ("one", "two"))
        assert len(losses(one)) > 10
        np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)
        np.testing.assert_allclose(*(read_predictions(folder.predictions).logits for folder in (one, two)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "fsdp"),
    [
        (4, None),
        (10, None),
        pytest.param(4, {"state_dict_type": "FULL_STATE_DICT"}, marks=GLOO_MAY_CRASH),
        pytest.param(10, {"state_dict_type": "SHARDED_STATE_DICT"}, marks=GLOO_MAY_CRASH),
    ],
)
def test_a_signal_to_one_rank_stops_all_at_one_step_and_resume_ends_as_if_nothing_had_been(
    recipe, tmp_path, step, fsdp
):
    """Step 10 ends an epoch, whose evaluation comes before the checkpoint."""
    whole, stopped = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    sets = [f"teacher.training.fsdp={json.dumps(bool(fsdp))}", f"teacher.training.fsdp_config={json.dumps(fsdp)}"]
    sets = [part for value in sets for part in ("--set", value)]
    launch(TORCHRUN, "teacher", recipe, "--output", whole.path, *sets)
    (tmp_path / "stopped.py").write_text(SIGNALLED.format(step=step - 1, signal="SIGTERM"))
    command = [*TORCHRUN, tmp_path / "stopped.py", "teacher", recipe, "--output", stopped.path, *sets]
    ended = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300, env=ENVIRONMENT
    )
    assert ended.returncode != 0 and f"interrupted: stopped at step {step}" in ended.stderr, ended.stderr
    assert not stopped.is_finished and stopped.last_checkpoint().name == f"checkpoint-{step}"
    launch(TORCHRUN, "teacher", recipe, "--output", stopped.path, "--resume", *sets)
    assert_same(stopped, whole)
    figures = json.loads(whole.metrics.read_text())["training"]
    assert figures["best_checkpoint"] == "checkpoint-15"  # the last one, sharded or not


@GLOO_MAY_CRASH
@pytest.mark.slow
def test_a_rank_that_is_killed_comes_back_and_all_go_on_as_if_nothing_had_been(recipe, tmp_path):
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    launch(TORCHRUN, "teacher", recipe, "--output", whole.path)
    (tmp_path / "killed.py").write_text(SIGNALLED.format(step=8, signal="SIGKILL"))
    done = launch(
        [*TORCHRUN, "--max-restarts", "1"], "teacher", recipe, "--output", killed.path, "--resume",
        program=[tmp_path / "killed.py"], TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
    )  # fmt: skip
    assert "teacher: goes on from checkpoint-5" in done.stderr
    assert_same(killed, whole)


def assert_same(found, expected):
    weights = [load_file(folder.path / "model.safetensors") for folder in (found, expected)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert found.predictions.read_bytes() == expected.predictions.read_bytes()
    np.testing.assert_array_equal(losses(found), losses(expected))


@pytest.mark.slow
@GLOO_MAY_CRASH
def test_a_whole_run_ends_on_one_rank_and_is_skipped_where_it_is_finished(recipe, tmp_path):
    sets = [part for name in ("teacher", "student") for part in ("--set", f"{name}.training.num_train_epochs=1")]
    sets += ["--set", "teacher.training.fsdp=true"]  # and the student after it with DDP
    sets += ["--set", "export.formats=[onnx-fp32]", "--set", "benchmark.rounds=5", "--set", "benchmark.shapes=[1x8]"]
    for _ in range(2):
        done = launch(TORCHRUN, "run", recipe, "--output", tmp_path / "run", "--force", *sets)
        assert done.stdout.count("report.html") == 1
        assert (tmp_path / "run" / "report" / "report.json").is_file()
        (tmp_path / "run" / "report" / "report.json").unlink()
    assert "teacher: finished before, skipped" in done.stderr
    manifests = [RunFolder(tmp_path / "run" / name).read_manifest() for name in ("teacher", "student", "control")]
    assert [manifest["sharded"] for manifest in manifests] == [True, False, False]


@pytest.mark.slow
@GLOO_MAY_CRASH
def test_a_rank_holds_its_share_of_weights_gradients_and_optimizer_state(recipe, tmp_path):
    code = """
import json, os
from pathlib import Path
import distill.training.loop as training

class Measured(training.ProgressLine):
    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.gradients = [parameter.grad for parameter in model.parameters()]

    def on_step_end(self, args, state, control, model, optimizer, **_):
        super().on_step_end(args, state, control)
        states = [value for kept in optimizer.state.values() for value in kept.values() if value.ndim]
        found = {"weights": list(model.parameters()), "gradients": self.gradients, "optimizer": states}
        held = {name: sum(one.to_local().nbytes for one in tensors) for name, tensors in found.items()}
        total = {name: sum(one.nbytes for one in tensors) for name, tensors in found.items()}
        Path(__file__).with_name(os.environ["RANK"] + ".json").write_text(json.dumps([held, total]))

training.ProgressLine = Measured
from distill.cli import main
main()
"""
    (tmp_path / "measured.py").write_text(code)
    sets = ["--set", "teacher.training.fsdp=true", "--set", "teacher.training.max_steps=2"]
    command = ["teacher", recipe, "--output", tmp_path / "teacher", *sets]
    launch(TORCHRUN, *command, program=[tmp_path / "measured.py"])
    weights = sum(array.nbytes for array in load_file(tmp_path / "teacher" / "model.safetensors").values())
    for rank in range(2):
        held, total = json.loads((tmp_path / f"{rank}.json").read_text())
        assert total == {"weights": weights, "gradients": weights, "optimizer": 2 * weights}
        assert all(held[name] == pytest.approx(total[name] / 2, rel=0.02) for name in total)  # rows do not all divide


@pytest.mark.slow
def test_shards_that_are_not_finite_stop_all_ranks(tmp_path):
    code = """
import os, sys
from types import SimpleNamespace
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from distill.training.callbacks import StopOnDivergence
from distill.errors import TrainingError
distributed.init_process_group("gloo")
model = fully_shard(nn.Linear(4, 4))
folder, state = SimpleNamespace(last_checkpoint=lambda: None), SimpleNamespace(global_step=1)
arguments = SimpleNamespace(learning_rate=1.0)
StopOnDivergence(folder, "teacher").on_save(arguments, state, None, model)
if distributed.get_rank() == 1:
    model.weight.to_local().data[0, 0] = float("nan")
try:
    StopOnDivergence(folder, "teacher").on_save(arguments, state, None, model)
except TrainingError:
    open(sys.argv[1] + os.environ["RANK"], "w").close()
distributed.destroy_process_group()
"""
    (tmp_path / "diverged.py").write_text(code)
    command = [sys.executable, *TORCHRUN, tmp_path / "diverged.py", tmp_path / "stopped"]
    subprocess.run(list(map(str, command)), capture_output=True, timeout=300, env=ENVIRONMENT, check=True)
    assert {path.name for path in tmp_path.glob("stopped?")} == {"stopped0", "stopped1"}


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
    assert f"error: {command[0]}: runs in one process, but 2 were launched" in done.stderr
