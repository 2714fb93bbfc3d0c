"""SIGKILL at any moment of a run: --resume ends in the same bytes, and nothing ever looks finished that is not."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time

import pytest
from conftest import data_section

from distill.storage.files import PARTIAL

KILLS = int(os.environ.get("DISTILL_KILLS", "10"))  # tools/reliability.py wants more
# Moments at which something is being written: the name of what has just appeared.
SIGHTS = ("checkpoint-", "optimizer.pt", "shard-", PARTIAL, "model.safetensors", "onnx-int8", "predictions.parquet")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, data, tiny_bert):
    training = {
        "num_train_epochs": 2, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "eval_strategy": "steps",
        "eval_steps": 3, "logging_steps": 1,
    }  # fmt: skip
    recipe = {
        "data": data_section(data),
        "teacher": {
            "model": str(tiny_bert), "pretrained": False, "early_stopping_patience": 5, "training": training,
        },
        "student": {"layers": [0, 2], "control": True, "training": training},
        "export": {"formats": ["onnx-fp32", "onnx-int8"], "max_accuracy_drop": 1.0, "min_agreement": 0.0},
        "benchmark": {"shapes": ["1x8"], "rounds": 5, "threads": 1},
    }  # fmt: skip
    path = tmp_path_factory.mktemp("kills") / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def start(recipe, output):
    command = [sys.executable, "-m", "distill", "run", str(recipe), "--output", str(output), "--resume", "--force"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(output.with_suffix(".log"), "w") as log:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env=environment)


def results(output):
    """What a run is for, by file: bytes where they say nothing of time, figures elsewhere."""
    found = {}
    for stage in ("teacher", "student", "control"):
        for name in ("model.safetensors", "predictions.parquet", "config.json"):
            path = output / stage / name
            found[f"{stage}/{name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        found[f"{stage}/test"] = json.loads((output / stage / "metrics.json").read_text())["test"]
        log = [json.loads(line) for line in (output / stage / "metrics.jsonl").read_text().splitlines()]
        found[f"{stage}/losses"] = [entry["loss"] for entry in log if "loss" in entry]
    for name, proof in json.loads((output / "student" / "export" / "export.json").read_text()).items():
        assert proof["passed"]
        weights = output / "student" / "export" / name / "model.onnx"
        found[f"export/{name}"] = hashlib.sha256(weights.read_bytes()).hexdigest()
        found[f"export/{name}/accuracy"] = proof["accuracy"]
    return found


def check_nothing_looks_finished_that_is_not(output, reference):
    """A manifest says that a stage is done; then its results are those of the run that nobody stopped."""
    for stage in ("teacher", "student", "control"):
        if (output / stage / "manifest.json").is_file():
            weights = hashlib.sha256((output / stage / "model.safetensors").read_bytes()).hexdigest()
            assert weights == reference[f"{stage}/model.safetensors"], stage


def wait_for(sight, output, process, seconds):
    """Wait until a file or folder whose name begins so appears, or the time is over."""

    def seen():  # os.walk, unlike rglob, bears folders that go while it looks
        return {(at, name) for at, folders, files in os.walk(output) for name in (*folders, *files)}

    before, until = seen(), time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        if any(name.startswith(sight) for _, name in seen() - before):
            return
        time.sleep(0.005)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(recipe, tmp_path, record_property):
    whole = tmp_path / "whole"
    began = time.monotonic()
    process = start(recipe, whole)
    assert process.wait(900) == 0, whole.with_suffix(".log").read_text()
    seconds = time.monotonic() - began
    reference = results(whole)

    rng, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        runs += 1
        output = tmp_path / f"killed-{runs}"
        output.mkdir()
        while True:
            process = start(recipe, output)
            if kills >= KILLS:  # on a machine that is slower by now, no moment might come at which it is not killed
                process.wait(900)
            elif kills % 2:
                wait_for(rng.choice(SIGHTS), output, process, 0.5 * seconds)
                time.sleep(rng.uniform(0, 0.05))
            else:
                time.sleep(rng.uniform(0.1, 0.6) * seconds)
            if process.poll() is not None:
                break
            process.kill()
            process.wait(60)
            kills += 1
            check_nothing_looks_finished_that_is_not(output, reference)
        assert process.returncode == 0, output.with_suffix(".log").read_text()
        assert results(output) == reference
        left = [path for path in output.rglob(f"{PARTIAL}*") if "teacher_logits" not in path.parts]
        assert not left
    record_property("kills survived, results lost 0", kills)
