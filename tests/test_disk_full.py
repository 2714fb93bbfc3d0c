"""A disk that fills up at any write: one line, nothing that looks finished, and --resume ends as if it never had."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys

import pytest
from conftest import data_section

UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]
STEPS = 8  # from a disk that holds nothing of the run to one that holds it all


def can_mount():
    """Whether this machine lets a process have a small disk of its own."""
    if not shutil.which("unshare"):
        return False
    command = [*UNSHARE, "sh", "-c", "mount -t tmpfs -o size=64k distill /mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def recipe(tmp_path, data, tiny_bert):
    training = {
        "num_train_epochs": 2, "learning_rate": 3e-3, "per_device_train_batch_size": 32, "logging_steps": 2,
    }  # fmt: skip
    recipe = {
        "data": data_section(data),
        "teacher": {"model": str(tiny_bert), "pretrained": False, "training": training},
        "student": {"layers": [0, 2], "training": training},
        "export": {"formats": ["onnx-fp32", "onnx-int8"], "max_accuracy_drop": 1.0, "min_agreement": 0.0},
        "benchmark": {"shapes": ["1x8"], "rounds": 5, "threads": 1},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def weights(output):
    names = ("teacher/model.safetensors", "student/model.safetensors", "student/predictions.parquet")
    names += tuple(f"student/export/{name}/model.onnx" for name in ("onnx-fp32", "onnx-int8"))
    return {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in names}


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="no small disk can be mounted here")
def test_a_full_disk_is_one_line_and_costs_nothing_but_the_time(recipe, tmp_path, record_property):
    """A run on a disk that is too small, made a little larger each time that the run says so."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = [sys.executable, "-m", "distill", "run", str(recipe), "--resume", "--force", "--output"]
    whole, log = tmp_path / "whole", tmp_path / "log"
    subprocess.run([*run, str(whole)], check=True, capture_output=True, env=environment, timeout=900)
    expected = weights(whole)
    size = int(subprocess.run(["du", "-sk", str(whole)], capture_output=True, text=True).stdout.split()[0])
    rng = random.Random(0)
    rooms = sorted(max(16, round(size * (step + rng.random()) / STEPS)) for step in range(STEPS))
    script = f"""
        mkdir {tmp_path}/disk {log} && mount -t tmpfs -o size=16k distill {tmp_path}/disk || exit 99
        for room in {" ".join(map(str, rooms))} 1000000; do
            mount -o remount,size=${{room}}k {tmp_path}/disk
            {" ".join(run)} {tmp_path}/disk/out > /dev/null 2> {log}/$room.err
            echo $? > {log}/$room.rc
            find {tmp_path}/disk -name manifest.json -printf '%P\\n' > {log}/$room.finished
        done
        cp -r {tmp_path}/disk/out {tmp_path}/out
    """
    done = subprocess.run([*UNSHARE, "sh", "-c", script], capture_output=True, env=environment, timeout=1_800)
    assert done.returncode == 0, done.stderr
    refused, finished = 0, set()
    for room in (*rooms, 1_000_000):
        code, err = int((log / f"{room}.rc").read_text()), (log / f"{room}.err").read_text()
        shown = f"{room} kB of {size}: exit {code}\n{err[-3_000:]}"
        assert "Traceback" not in err and code == (2 if "error: " in err else 0), shown
        if code:
            lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
            assert len(lines) == 1 and "No space left on device" in lines[0], shown
            refused += 1
        before, finished = finished, set((log / f"{room}.finished").read_text().split())
        assert before <= finished, shown  # what was finished stays so
    assert code == 0 and weights(tmp_path / "out") == expected
    assert refused > STEPS / 2
    record_property("full disks survived", refused)
