"""The checks of `distill doctor`: each fault is found with its cure, and a machine without faults is fine."""

import importlib.metadata
import json
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections import namedtuple
from pathlib import Path

import onnxruntime
import pytest
from typer.testing import CliRunner

from distill import commands, doctor
from distill.cli import app
from distill.errors import GPU_EXTRA, GPU_LINES
from distill.inference import runtimes
from distill.machine import packages
from distill.machine.provenance import versions
from distill.storage import hub

ROOT = Path(__file__).parent.parent


def findings(tmp_path):
    return [*packages.examine_packages(), *doctor.examine(tmp_path)]


def faults(found):
    return [item for item in found if item.state == "fault"]


def test_versions_are_those_installed(tmp_path):
    found = {item.subject: item for item in findings(tmp_path)}
    assert found["torch"].found == importlib.metadata.version("torch") and found["torch"].state == "ok"
    assert all(item.cure for item in found.values() if item.state == "fault")


def test_a_package_that_is_missing_is_said_without_importing_it():
    code = """
import importlib.metadata, sys
sys.modules["accelerate"] = None  # importing it fails
real = importlib.metadata.version
def version(name):
    if name == "accelerate":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
sys.argv = ["distill", "doctor"]
from distill.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "fault  accelerate: not installed" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr


def only_for_gpus(installed, name):
    """The version of a package on a machine that has onnxruntime-gpu in place of onnxruntime."""
    if name == "onnxruntime":
        raise importlib.metadata.PackageNotFoundError(name)
    return installed("onnxruntime" if name == "onnxruntime-gpu" else name)


def test_onnxruntime_for_gpus_will_do(monkeypatch):
    installed = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: only_for_gpus(installed, name))
    (found,) = [item for item in packages.examine_packages() if item.subject == "onnxruntime"]
    assert found.state == "ok"


@pytest.mark.parametrize(("version", "said"), [("1.0", "1.0, tested with"), (None, "not installed")])
def test_a_package_that_does_not_fit_is_a_fault_with_the_command_that_mends_it(tmp_path, monkeypatch, version, said):
    installed = importlib.metadata.version

    def other(name):
        if name != "transformers":
            return installed(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", other)
    (fault,) = [item for item in faults(findings(tmp_path)) if item.subject == "transformers"]
    assert said in fault.found
    assert fault.cure.startswith('pip install "transformers') and "<6" in fault.cure


def test_packages_that_spoil_each_other_are_named(tmp_path, monkeypatch):
    Distribution = namedtuple("Distribution", "metadata")
    names = ["onnxruntime", "onnxruntime_gpu", "torch"]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: [Distribution({"Name": name}) for name in names])
    (fault,) = [item for item in faults(findings(tmp_path)) if " and " in item.subject]
    assert fault.subject == "onnxruntime and onnxruntime-gpu" and fault.cure == GPU_EXTRA


@pytest.mark.parametrize(
    ("providers", "said", "state", "found"),
    [
        (["CPUExecutionProvider"], "", "note", "no CUDA provider"),
        (["CUDAExecutionProvider"], "Failed to load libcublas.so.13\nPlease", "fault", "libcublas"),
        (["CUDAExecutionProvider"], "", None, ""),
    ],
)  # fmt: skip
def test_an_onnxruntime_that_cannot_use_the_gpu_is_named(monkeypatch, capsys, providers, said, state, found):
    monkeypatch.setattr(doctor, "resolve_device", lambda wanted: "cuda")
    monkeypatch.setattr(doctor, "training_precision", lambda device, training: ({}, "bf16"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print(said))
    runtimes.load_cuda_libraries.cache_clear()
    findings = [item for item in doctor._devices() if item.subject == "onnxruntime"]
    runtimes.load_cuda_libraries.cache_clear()
    assert [item.state for item in findings] == ([state] if state else [])
    assert all(found in item.found and item.cure == GPU_EXTRA for item in findings)
    assert capsys.readouterr().out == ""  # where only results may go


def test_the_pages_show_the_lines_that_the_errors_give():
    for page in ("README.md", "README.zh-CN.md", "docs/gpu.md"):
        assert "\n" + "\n".join(GPU_LINES) + "\n" in (ROOT / page).read_text(encoding="utf-8"), page
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert all(re.search(r"\[(\w+)\]", line)[1] in extras for line in GPU_LINES if "[" in line)


def test_versions_are_known_also_where_onnxruntime_is_the_one_for_gpus(monkeypatch):
    installed = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: only_for_gpus(installed, name))
    found = versions()
    assert found["onnxruntime-gpu"] == installed("onnxruntime") and "onnxruntime" not in found


class Session:
    def __init__(self, error=None):
        self.error, self.asked = error, []

    def head(self, url, timeout):
        self.asked.append(url)
        if isinstance(self.error, OSError):
            raise self.error
        return self

    def raise_for_status(self):
        if self.error:
            raise RuntimeError(self.error)


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (None, "ok", "answers"),
        (OSError("no route"), "note", "does not answer (no route)"),
        ("407 proxy", "note", "does not answer (407 proxy)"),
    ],
)
def test_the_hub_is_asked_once_and_only_where_it_may_be(tmp_path, monkeypatch, error, state, said):
    session = Session(error)
    hub._asked.cache_clear()
    monkeypatch.setattr(hub, "get_session", lambda: session)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)  # restored at the end, because a failed request sets it
    (found,) = [item for item in findings(tmp_path) if item.subject == "hub"]
    assert found.state == "note" and "offline" in found.found and session.asked == []  # tests run offline
    monkeypatch.setattr(doctor.constants, "is_offline_mode", lambda: False)
    (found,) = [item for item in findings(tmp_path) if item.subject == "hub"]
    hub._asked.cache_clear()
    assert found.state == state and said in found.found and len(session.asked) == 1


def test_a_full_disk_is_a_fault_also_where_the_folder_is_not_made_yet(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(100, 99, 1))
    (fault,) = [item for item in findings(tmp_path / "not" / "yet") if item.subject == "disk"]
    assert fault.state == "fault" and str(tmp_path) in fault.found and "--output" in fault.cure


def test_a_port_that_somebody_has_is_noted():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        assert doctor._port(port).state == "note"
    assert doctor._port(port).state == "ok"


def test_a_model_larger_than_the_memory_is_a_fault():
    assert doctor.examine_memory("m", 10**12, "cpu").state == "fault"
    assert doctor.examine_memory("m", 1_000, "cpu").state == "ok"


def test_a_recipe_that_the_disk_cannot_keep_is_a_fault(tmp_path):
    found = doctor.examine_disk(10**12, 2, 3, tmp_path / "not" / "yet")
    assert found.state == "fault" and str(tmp_path) in found.found and "--output DIR" in found.cure
    assert doctor.examine_disk(1_000, 2, 3, tmp_path).state == "ok"


def test_what_a_recipe_needs_is_tried(recipe_path, tmp_path):
    recipe = commands.check(recipe_path)
    found = {item.subject: item for item in commands.doctor(recipe, tmp_path)}
    assert found["data"].found == "144 train, 16 validation, 40 test texts"
    assert found["teacher.model"].state == found["disk for the recipe"].state == "ok"
    recipe = commands.check(recipe_path, ["teacher.model=nowhere/at-all", "data.files.train=gone.csv"])
    found = {item.subject: item for item in commands.doctor(recipe, tmp_path)}
    assert found["data"].state == found["teacher.model"].state == "fault"
    assert "gone.csv: no such file" in found["data"].found
    bare = shutil.copytree(recipe_model(recipe_path), tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    sets = [f"teacher.model={bare}", "teacher.pretrained={}"]
    for pretrained, state in (("true", "fault"), ("false", "ok")):
        recipe = commands.check(recipe_path, [item.format(pretrained) for item in sets])
        found = {item.subject: item for item in commands.doctor(recipe, tmp_path)}
        assert found["teacher.model"].state == state, found["teacher.model"]


def recipe_model(path):
    return commands.check(path).teacher.model


def test_a_fault_exits_2_and_json_is_the_whole_of_it(recipe_path):
    result = CliRunner().invoke(app, ["doctor", str(recipe_path), "--json"])
    states = {item["subject"]: item["state"] for item in json.loads(result.stdout.splitlines()[-1])}
    assert states["data"] == "ok" and result.exit_code == (2 if "fault" in states.values() else 0)
    result = CliRunner().invoke(app, ["doctor", str(recipe_path), "--set", "data.files.train=gone.csv"])
    assert result.exit_code == 2 and "fault  data: data.files.train: gone.csv: no such file" in result.stdout
