"""A run folder among damage, kills and other runs: what is whole is used, what is not is named."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from distill.errors import FolderError
from distill.recipe.file import load_recipe
from distill.storage.checksums import SEAL, seal
from distill.storage.files import PARTIAL, REPLACED, recover
from distill.storage.lock import LOCK, NEXT, hold
from distill.storage.run_folder import RunFolder, SweepFolder
from distill.training.callbacks import SealCheckpoints


def checkpoint(folder, step, *, best=None, sealed=True):
    """A checkpoint as Trainer leaves it."""
    path = folder.checkpoints / f"checkpoint-{step}"
    path.mkdir(parents=True)
    state = {"best_model_checkpoint": best and f"/moved/since/checkpoint-{best}"}
    (path / "trainer_state.json").write_text(json.dumps(state))
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 16)
    (path / "optimizer.pt").write_bytes(bytes(reversed(range(256))) * 16)
    (path / "optimizer_0").mkdir()  # as torch writes shards
    for name in ("__0_0.distcp", "__1_0.distcp", ".metadata"):
        (path / "optimizer_0" / name).write_bytes(name.encode())
    if sealed:
        seal(path)
    return path


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a bit of a shard is flipped": lambda path: flip(path / "optimizer_0" / "__1_0.distcp"),
    "what says where the shards are is gone": lambda path: (path / "optimizer_0" / ".metadata").unlink(),
    "a bit of the weights is flipped": lambda path: flip(path / "model.safetensors"),
    "a bit of the optimiser's state is flipped": lambda path: flip(path / "optimizer.pt"),
    "a file is cut short": lambda path: (path / "model.safetensors").write_bytes(b"short"),
    "a file is gone": lambda path: (path / "optimizer.pt").unlink(),
    "a bit of the seal is flipped": lambda path: flip(path / SEAL),
    "the seal is cut short": lambda path: (path / SEAL).write_text("{"),
    "the seal is of another kind": lambda path: (path / SEAL).write_text("[1]"),
    "it was killed before the seal": lambda path: (path / SEAL).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_last_checkpoint_that_is_whole_is_the_one_to_go_on_from(tmp_path, caplog, damage, record_property):
    folder = RunFolder(tmp_path)
    checkpoint(folder, 9)
    whole, last = checkpoint(folder, 10), checkpoint(folder, 110)
    assert folder.last_checkpoint() == last and not caplog.records
    DAMAGE[damage](last)
    assert folder.last_checkpoint() == whole
    (said,) = caplog.messages
    assert said.startswith(str(last)) and "looking for an earlier one" in said
    record_property("damaged files named", 1)


def test_a_checkpoint_whose_best_one_is_damaged_is_no_place_to_go_on_from(tmp_path):
    folder = RunFolder(tmp_path)
    first = checkpoint(folder, 1, best=1)
    best = checkpoint(folder, 2, best=2)
    last = checkpoint(folder, 3, best=2)
    assert folder.last_checkpoint() == last
    flip(best / "model.safetensors")  # training would end with its weights
    assert folder.last_checkpoint() == first


def started(tmp_path, recipe_path, origin=None):
    """A folder in which a run has begun."""
    folder = RunFolder(tmp_path / "run")
    with hold(folder.path):
        folder.start(load_recipe(recipe_path), origin or {}, resume=False, overwrite=False)
    return folder


def own(folder, step):
    path = checkpoint(folder, step, sealed=False)
    folder.seal_checkpoint(path)
    return path


def test_a_checkpoint_of_another_run_is_not_resumed(tmp_path, recipe_path, caplog):
    folder = started(tmp_path, recipe_path)
    mine = own(folder, 5)
    other = started(tmp_path / "other", recipe_path)
    shutil.copytree(own(other, 9), folder.checkpoints / "checkpoint-9")
    shutil.copytree(checkpoint(other, 12), folder.checkpoints / "checkpoint-12")  # sealed, and of nobody
    odd = checkpoint(folder, 14, sealed=False)
    (odd / "run.json").write_text("[]")
    seal(odd)
    assert folder.last_checkpoint() == mine
    shutil.rmtree(odd)
    assert sum("is of another run" in message for message in caplog.messages) == 3
    folder.put_away_checkpoints(beyond=5)
    left = sorted(path.name.rpartition("-")[0] for path in folder.checkpoints.iterdir() if path != mine)
    assert left == ["unused-checkpoint-12", "unused-checkpoint-9"] and mine.exists()  # nothing of it was deleted


def test_a_run_does_not_end_with_another_runs_best_checkpoint(tmp_path, recipe_path, caplog):
    folder, other = started(tmp_path, recipe_path), started(tmp_path / "other", recipe_path)
    first = own(folder, 1)
    last = checkpoint(folder, 3, best=2, sealed=False)
    folder.seal_checkpoint(last)
    shutil.copytree(own(other, 2), folder.checkpoints / "checkpoint-2")
    assert folder.last_checkpoint() == first
    assert any("its best checkpoint, checkpoint-2, is of another run" in message for message in caplog.messages)


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"run": 1, "processors": [], "origin": {}}',
                                     '{"run": "a", "processors": [1], "origin": {}}',
                                     '{"run": "a", "processors": [], "origin": {"torch": 2}}', "{"])  # fmt: skip
def test_a_start_that_is_none_is_one_line(content, tmp_path, recipe_path):
    folder = started(tmp_path, recipe_path, ORIGIN)
    folder.started.write_text(content)
    with pytest.raises(FolderError, match=r"started\.json: "):
        folder.check_origin(ORIGIN)
    with pytest.raises(FolderError, match=r"started\.json: "), hold(folder.path):
        folder.start(load_recipe(recipe_path), ORIGIN, resume=True, overwrite=False)


def test_a_search_that_does_not_say_what_it_depends_on_is_not_resumed(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.check_origin(ORIGIN)
    folder.study.touch()
    with pytest.raises(FolderError, match="it does not say what it depends on"):
        folder.check_origin(ORIGIN)


def test_what_a_resumed_run_goes_past_is_put_away(tmp_path, recipe_path):
    folder = started(tmp_path, recipe_path)
    first, damaged, torn = own(folder, 3), own(folder, 6), checkpoint(folder, 9, sealed=False)
    flip(damaged / "model.safetensors")
    assert folder.last_checkpoint() == first
    folder.put_away_checkpoints(beyond=3)
    assert list(folder.checkpoints.iterdir()) == [first] and not torn.exists()


def test_a_clock_set_back_deletes_no_new_checkpoint(tmp_path, recipe_path):
    folder = started(tmp_path, recipe_path)
    arguments = SimpleNamespace(output_dir=str(folder.checkpoints.absolute()))
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()
    callback = SealCheckpoints(2, folder)
    for step in (1, 2, 3, 4):
        state.global_step = step
        path = checkpoint(folder, step, sealed=False)
        os.utime(path, (2e9 - 1e6 * step,) * 2)  # each older than the one before
        callback.on_save(arguments, state, control)
    assert {path.name for path in folder.checkpoints.iterdir()} == {"checkpoint-3", "checkpoint-4"}


ORIGIN = {"data.train": "a" * 64, "teacher 1": "b" * 64, "torch": "2.13.0", "threads": "2"}


@pytest.mark.parametrize("name", ORIGIN)
def test_what_a_run_depends_on_is_compared_by_name(name, tmp_path, recipe_path):
    folder = started(tmp_path, recipe_path, ORIGIN)
    folder.check_origin(ORIGIN)
    with pytest.raises(FolderError) as caught:
        folder.check_origin({**ORIGIN, name: "other"})
    (problem,) = caught.value.problems
    assert problem == f"{folder.path}: cannot be resumed: {name} differs: other now, {ORIGIN[name][:20]} when it began"
    with pytest.raises(FolderError, match=f"{name} differs: none now"):
        folder.check_origin({key: value for key, value in ORIGIN.items() if key != name})
    with hold(folder.path), pytest.raises(FolderError, match=f"{name} differs"):
        folder.start(load_recipe(recipe_path), {**ORIGIN, name: "other"}, resume=True, overwrite=False)


def test_a_checkpoint_of_another_step_than_its_name_says_is_passed_over(tmp_path, recipe_path):
    folder = started(tmp_path, recipe_path, ORIGIN)
    for step, name in ((20, 20), (10, 35)):
        path = checkpoint(folder, name, sealed=False)
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        folder.seal_checkpoint(path)
    assert folder.last_checkpoint() == folder.checkpoints / "checkpoint-20"


@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_a_start_that_cannot_be_read_says_what_to_do(content, tmp_path, recipe_path):
    folder = started(tmp_path, recipe_path, ORIGIN)
    folder.started.write_text(content)
    with pytest.raises(FolderError, match=r"started\.json: ") as caught:
        folder.check_origin(ORIGIN)
    assert "--overwrite" in caught.value.hint


def test_a_run_that_does_not_say_what_it_depends_on_is_not_resumed(tmp_path, recipe_path):
    folder = started(tmp_path, recipe_path, ORIGIN)
    folder.started.unlink()
    folder.check_origin(ORIGIN)  # killed before its first checkpoint
    checkpoint(folder, 3)
    with pytest.raises(FolderError, match="it does not say what it depends on"):
        folder.check_origin(ORIGIN)


def test_a_resumed_run_stays_the_same_run_and_notes_another_processor(tmp_path, recipe_path, monkeypatch):
    folder = started(tmp_path, recipe_path, ORIGIN)
    path = own(folder, 4)
    monkeypatch.setattr("distill.storage.run_folder.cpu_name", lambda: "another CPU")
    with hold(folder.path):
        folder.start(load_recipe(recipe_path), ORIGIN, resume=True, overwrite=False)
    assert folder.last_checkpoint() == path
    assert len(folder.processors) == 2 and folder.processors[1] == "another CPU"


@pytest.mark.parametrize("name", ["checkpoints", "export", "teacher_logits"])
def test_overwriting_follows_no_link(name, tmp_path, recipe_path):
    recipe, folder = load_recipe(recipe_path), started(tmp_path, recipe_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").write_text("mine")
    if name == "checkpoints":
        folder.checkpoints.rmdir()
    (folder.path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FolderError, match=f"{name}: a link, and distill does not delete"):
        folder.prepare(recipe, resume=False, overwrite=True)
    assert (tmp_path / "elsewhere" / "mine.txt").read_text() == "mine" and folder.recipe.is_file()


def test_what_cannot_be_removed_is_an_error(tmp_path, recipe_path, monkeypatch):
    folder = started(tmp_path, recipe_path)
    checkpoint(folder, 3)

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(FolderError, match=r"checkpoints: cannot be removed: Permission denied"):
        folder.start(load_recipe(recipe_path), {}, resume=False, overwrite=True)


def test_no_checkpoint_is_none(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.last_checkpoint() is None
    checkpoint(folder, 5, sealed=False)
    assert folder.last_checkpoint() is None


HOLD = """
import sys, time
from pathlib import Path
from distill.storage.files import PARTIAL
from distill.storage.lock import hold
with hold(Path(sys.argv[1])):
    Path(sys.argv[1], PARTIAL + 'x').mkdir()
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_until_the_first_is_gone_however_it_went(tmp_path, recipe_path):
    recipe, folder = load_recipe(recipe_path), RunFolder(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        for settings in ({"resume": False, "overwrite": False}, {"resume": True, "overwrite": False}):
            with pytest.raises(FolderError, match="another run is at work in it"):
                folder.prepare(recipe, **settings)
        with pytest.raises(FolderError, match="another run"), hold(folder.path):
            pass
        other.kill()
    folder.prepare(recipe, resume=False, overwrite=False)  # what is left is no run
    with hold(folder.path):
        assert [path.name for path in folder.path.iterdir()] == [LOCK]


def test_what_a_kill_left_in_a_checkpoint_that_was_just_sealed_is_cleared_away(tmp_path):
    folder = RunFolder(tmp_path)
    for run in (folder.path, folder.path / NEXT):
        (run / "checkpoints" / "checkpoint-1" / f"{PARTIAL}x").mkdir(parents=True)
    with hold(folder.path):
        assert not list(tmp_path.rglob(f"{PARTIAL}*"))


@pytest.mark.parametrize("killed", ["before the recipe", "before the checkpoints"])
def test_a_run_killed_at_its_start_can_be_resumed_and_started_anew(tmp_path, recipe_path, killed):
    recipe, folder = load_recipe(recipe_path), RunFolder(tmp_path / "run")
    with hold(folder.path):
        if killed == "before the recipe":
            (folder.path / f"{PARTIAL}x").mkdir()
        else:
            folder.start(recipe, {}, resume=False, overwrite=False)
            folder.checkpoints.rmdir()
    for settings in ({"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}):
        folder.prepare(recipe, **settings)


def test_in_a_folder_of_somebody_else_nothing_is_cleared_away(tmp_path, recipe_path):
    theirs = tmp_path / "theirs"
    (theirs / f"{PARTIAL}download").mkdir(parents=True)
    for name in (LOCK, "notes.txt", f"{PARTIAL}download/big.bin"):
        (theirs / name).write_text("mine")
    with pytest.raises(FolderError, match="nothing was touched"):
        RunFolder(theirs).prepare(load_recipe(recipe_path), resume=False, overwrite=False)
    assert (theirs / f"{PARTIAL}download" / "big.bin").read_text() == "mine"


def test_another_rank_waits_until_the_first_has_ended_what_a_kill_cut_in_two(tmp_path, monkeypatch):
    folder, partial = RunFolder(tmp_path), tmp_path / f"{PARTIAL}x"
    (partial / REPLACED).mkdir(parents=True)
    monkeypatch.setattr("distill.storage.run_folder.rank", lambda: 1)
    monkeypatch.setattr("distill.storage.run_folder.SETTLING_SECONDS", 0.3)
    with pytest.raises(FolderError, match="rank 0 does not clean up"):
        folder.recover()
    threading.Timer(0.2, lambda: recover(partial)).start()
    folder.recover()


def test_what_was_free_may_be_taken_by_the_time_it_is_used(tmp_path, recipe_path):
    recipe, folder = load_recipe(recipe_path), RunFolder(tmp_path / "run")
    folder.prepare(recipe, resume=False, overwrite=False)
    with hold(folder.path):  # another run, meanwhile
        folder.start(recipe, {}, resume=False, overwrite=False)
    with hold(folder.path), pytest.raises(FolderError, match="holds an unfinished run"):
        folder.start(recipe, {}, resume=False, overwrite=False)
