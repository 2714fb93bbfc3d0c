"""Nothing is sent anywhere unless it was asked for, and no token is left in what a run writes or says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import data_section

TOKEN = "hf_thisIsNoTokenOfAnybody"
# Every way of Python's to another machine, noted and refused. OpenVINO's and NNCF's telemetry go through it too.
WATCHED = """
import socket, sys
def refuse(kind):
    def call(*arguments, **_):
        where = arguments[1] if kind == "connect" else arguments[0]
        if not (kind == "connect" and isinstance(where, str)):  # a socket of this machine's own
            print(f"REACHED OUT: {kind} {where}", file=sys.stderr)
            raise OSError(101, "Network is unreachable")
    return call
socket.socket.connect = refuse("connect")
socket.socket.connect_ex = refuse("connect")
socket.getaddrinfo = refuse("getaddrinfo")
socket.gethostbyname = refuse("gethostbyname")
from distill.cli import main
sys.argv = ["distill", *sys.argv[1:]]
main()
"""


def watched(*arguments, **environment):
    """The command with a token set and every call to another machine noted."""
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    return subprocess.run(
        [sys.executable, "-c", WATCHED, *map(str, arguments)], capture_output=True, text=True, timeout=900,
        env=kept | {"OMP_NUM_THREADS": "1", "HF_TOKEN": TOKEN, **environment},
    )  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to count threads")
def test_onnx_runtime_reports_to_nobody():
    """Not seen in Python's sockets: it would report from a thread of its own, which is there or not."""
    count = "import onnxruntime, os, time; time.sleep(0.5); print(len(os.listdir('/proc/self/task')))"
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    silenced = subprocess.check_output([sys.executable, "-c", count], env=kept | {"ORT_DISABLE_TELEMETRY": "1"})
    assert subprocess.check_output([sys.executable, "-c", f"import distill; {count}"], env=kept) == silenced


@pytest.mark.slow  # processes of their own, and retries
def test_a_run_on_local_files_reaches_out_to_nobody_and_leaves_no_token(tmp_path, data, tiny_bert, record_property):
    """Also where the hub is not forbidden: models and data that lie here need nobody."""
    training = {"num_train_epochs": 1, "per_device_train_batch_size": 32, "report_to": "tensorboard"}
    formats = ["torch-fp16", "onnx-fp32", "onnx-fp16", "onnx-int8", "openvino-bf16", "openvino-int8"]
    recipe = {
        "data": data_section(data),
        "teacher": {"model": str(tiny_bert), "training": training},
        "student": {"layers": 2, "control": True, "training": training},
        "export": {"formats": formats, "max_accuracy_drop": 1.0, "min_agreement": 0.0},
        "benchmark": {"shapes": ["1x8"], "rounds": 5},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    out = tmp_path / "out"
    said = ""
    for arguments in (
        ("run", tmp_path / "recipe.yaml", "--output", out, "--force"),
        ("inspect", tmp_path / "recipe.yaml", "--output", tmp_path / "look"),
        ("predict", out / "student" / "export", "a good film"),
        ("check", tmp_path / "recipe.yaml"),
    ):
        done = watched(*arguments)
        assert done.returncode == 0, done.stderr[-3_000:]
        said += done.stdout + done.stderr
    assert "REACHED OUT" not in said and TOKEN not in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 50
    for path in files:
        assert TOKEN.encode() not in path.read_bytes(), path
    record_property("commands watched, none reached out", 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["--set=teacher.model=nobody/nothing", "--set=data.dataset=nobody/nothing"])
def test_offline_means_that_the_hub_is_not_asked(name, recipe_path, tmp_path):
    done = watched("teacher", recipe_path, name, "--output", tmp_path / "out", HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and "nobody/nothing" in done.stderr
    assert "REACHED OUT" not in done.stderr and TOKEN not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_line_without_the_token(recipe_path, tmp_path):
    done = watched("teacher", recipe_path, "--set", "teacher.model=nobody/nothing", "--output", tmp_path / "out")
    assert done.returncode == 2 and "Traceback" not in done.stderr and TOKEN not in done.stderr
    assert "REACHED OUT" in done.stderr  # the test sees what it is meant to see
