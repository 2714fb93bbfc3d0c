"""Files among kills and power cuts: what vouches for others comes to the disk after them, and old or new is whole."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from distill.recipe.file import load_recipe
from distill.storage.checksums import SEAL, damage_of, seal
from distill.storage.files import (
    COMING,
    PARTIAL,
    READY,
    REPLACED,
    atomic_files,
    atomic_path,
    recover,
    write_json,
    write_text,
)
from distill.storage.lock import LOCK, NEXT, hold
from distill.storage.predictions import write_predictions
from distill.storage.run_folder import RunFolder

KNOWS_FILES = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to tell what is synced")


@pytest.fixture
def disk(monkeypatch):
    """A disk that a power cut leaves with what was synced: names that a synced folder had, with synced contents."""
    synced, on_disk = {}, {}
    fsync = os.fsync

    def remember(opened):
        path = Path(f"/proc/self/fd/{opened}").readlink()
        if path.is_dir():
            for gone in [name for name in on_disk if name.parent == path]:
                del on_disk[gone]
            files = [inner for inner in path.iterdir() if inner.is_file()]
            on_disk.update({inner: synced.get(inner.stat().st_ino, b"") for inner in files})
        else:
            synced[path.stat().st_ino] = path.read_bytes()
        states.append(dict(on_disk))
        fsync(opened)

    states = []
    monkeypatch.setattr(os, "fsync", remember)
    return states


def vouched(state, folder):
    """Whether what the disk has of a sealed folder is as its seal says; None if there is no seal yet."""
    sealed = state.get(folder / SEAL)
    if not sealed:
        return None
    return all(
        hashlib.sha256(state.get(folder / name, b"")).hexdigest() == digest
        for name, digest in json.loads(sealed).items()
    )


@KNOWS_FILES
def test_a_power_cut_leaves_no_manifest_and_no_seal_before_what_they_vouch_for(tmp_path, recipe_path, disk):
    folder = RunFolder(tmp_path / "run")
    with hold(folder.path):
        folder.start(load_recipe(recipe_path), {}, resume=False, overwrite=False)
        checkpoint = folder.checkpoints / "checkpoint-1"
        checkpoint.mkdir()
        (checkpoint / "model.safetensors").write_bytes(b"weights")
        folder.seal_checkpoint(checkpoint)
        (folder.path / "model.safetensors").write_bytes(b"weights of the end")
        (folder.path / "config.json").write_text("{}")
        write_predictions(folder.predictions, ["test/0"], np.array([1]), np.zeros((1, 2), np.float32))
        write_json(folder.metrics, {"test": {}})
        write_text(folder.metrics_log, "{}\n")
        folder.finish({"role": "teacher"})
    for state in disk:
        assert vouched(state, checkpoint) is not False
        if state.get(folder.manifest):
            assert vouched(state, folder.path) is True
    assert disk[-1].get(folder.manifest) and vouched(disk[-1], checkpoint)


@KNOWS_FILES
def test_a_power_cut_leaves_the_old_text_or_the_new_one(tmp_path, disk):
    path = tmp_path / "a.json"
    write_text(path, "old")
    before = len(disk)
    write_text(path, "new")
    assert {state.get(path) for state in disk[before - 1 :]} == {b"old", b"new"}


def test_a_folder_that_was_moved_away_for_one_that_never_came_goes_back(tmp_path):
    partial = tmp_path / f"{PARTIAL}x"
    for name in ("kept", "replaced"):
        (partial / REPLACED / name).mkdir(parents=True)
        (partial / REPLACED / name / "old").touch()
    (tmp_path / "replaced").mkdir()
    recover(partial)
    assert (tmp_path / "kept" / "old").exists() and not (tmp_path / "replaced" / "old").exists()
    assert not partial.exists()


def test_a_folder_takes_the_place_of_another_or_leaves_it(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old").touch()
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "made") as partial:
        partial.mkdir()
        raise RuntimeError
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["old"]
    with atomic_path(tmp_path / "made") as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_files_come_together_or_not_at_all(tmp_path):
    def texts():
        return {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}

    def write(folder, text):
        for name in ("report.html", "report.json"):
            write_text(folder / name, text)

    with atomic_files(tmp_path) as made:
        write(made, "old")
    with pytest.raises(RuntimeError), atomic_files(tmp_path) as made:
        write(made, "new")
        raise RuntimeError
    assert texts() == {"report.html": "old", "report.json": "old"}
    partial = tmp_path / f"{PARTIAL}x"  # killed after one of two had moved
    (partial / COMING).mkdir(parents=True)
    (partial / READY).touch()
    (tmp_path / "report.html").write_text("new")
    (partial / COMING / "report.json").write_text("new")
    with hold(tmp_path):
        assert texts() | {".lock": ""} == {"report.html": "new", "report.json": "new", ".lock": ""}
    assert not partial.exists()
    partial.mkdir()  # killed while what had come was cleared away
    (partial / READY).touch()
    with hold(tmp_path):
        assert not partial.exists()


class Killed(BaseException):
    pass


def leave_run(folder, text):
    """A finished run of one model file and one of its own, both of which say `text`."""
    write_text(folder.path / f"model-{text}-of-2.safetensors", text)
    write_text(folder.path / "config.json", text)
    write_json(folder.metrics, text)
    write_text(folder.checkpoints / "checkpoint-1" / "model.safetensors", text)
    write_text(folder.card, f"{text}, made with distill")
    folder.finish({"role": text})


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (LOCK, "started.json")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if NEXT not in path.parts}


def test_a_run_that_is_replaced_is_the_old_or_the_new_whatever_is_killed(tmp_path, recipe_path, monkeypatch):
    recipe, replace, rmtree = load_recipe(recipe_path), os.replace, shutil.rmtree

    def one(name, killed_at):
        """Make a run and replace it, killed at the n-th step of the second's end; return the folder, old and end."""
        folder, steps = RunFolder(tmp_path / name), 0

        def step(act):
            def stepped(*arguments, **settings):
                nonlocal steps
                steps += 1
                if steps > killed_at:
                    raise Killed
                return act(*arguments, **settings)

            return stepped

        with hold(folder.path):
            folder.start(recipe, {}, resume=False, overwrite=False)
            leave_run(folder, "old")
        write_text(folder.path / "mine.txt", "mine")
        write_text(folder.export / "onnx-fp32" / "model.onnx", "old")
        old = contents(folder.path)
        work = folder.prepare(recipe, resume=False, overwrite=True)
        with hold(folder.path):
            work.start(recipe, {}, resume=False, overwrite=True)
            assert contents(folder.path) == old and damage_of(folder.path) is None
            with monkeypatch.context() as patched, contextlib.suppress(Killed):
                patched.setattr(os, "replace", step(replace))
                patched.setattr(shutil, "rmtree", step(rmtree))
                leave_run(work, "new")
        is_cut = not folder.is_finished or work.path.exists() or any(folder.path.glob(f"{PARTIAL}*"))
        assert is_cut or damage_of(folder.path) is None  # what looks finished is whole
        folder.recover()
        if work.path.exists():  # the new one has not finished, and can be resumed
            assert folder.prepare(recipe, resume=True, overwrite=False) == work
        return steps, old, contents(folder.path)

    def is_refused(name):
        """A step of the end that fails, and no kill: the old stays, the new goes on with the same command."""
        folder = RunFolder(tmp_path / name)
        with hold(folder.path):
            folder.start(recipe, {}, resume=False, overwrite=False)
            leave_run(folder, "old")
        write_text(folder.export / "model.onnx", "old")
        old, work = contents(folder.path), folder.prepare(recipe, resume=False, overwrite=True)

        def fail(source, target):
            if Path(source) == folder.export:
                raise PermissionError(errno.EACCES, "Permission denied", str(source))
            replace(source, target)

        with hold(folder.path):
            work.start(recipe, {}, resume=False, overwrite=True)
            with monkeypatch.context() as patched, pytest.raises(PermissionError):
                patched.setattr(os, "replace", fail)
                leave_run(work, "new")
        assert contents(folder.path) == old and damage_of(folder.path) is None
        folder.recover()
        assert b"new" in contents(folder.path)["manifest.json"]

    is_refused("refused")
    steps, _, new = one("whole", 1000)
    assert b"new" in new["manifest.json"] and "mine.txt" in new
    assert not [name for name in new if "old" in name or name.startswith("export")]
    found = set()
    for killed_at in range(steps):
        _, old, end = one(f"killed at {killed_at}", killed_at)
        assert end in (old, new), killed_at
        found.add(end == new)
    assert found == {False, True}


def test_files_that_belong_together_can_be_read_by_the_same_people(tmp_path):
    for name, mode in (("model.safetensors", 0o600), ("config.json", 0o644), ("tokenizer.json", 0o640)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    seal(tmp_path)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1 and damage_of(tmp_path) is None
