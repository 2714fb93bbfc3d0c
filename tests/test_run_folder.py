"""A run folder among damage, kills and other runs: what is whole is used, what is not is named."""

import json
import subprocess
import sys

import pytest

from distill.checksums import SEAL, seal
from distill.errors import FolderError
from distill.files import PARTIAL
from distill.recipe_file import load_recipe
from distill.run_folder import LOCK, RunFolder, hold


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
    assert said.startswith(str(last)) and "an earlier one is looked for" in said
    record_property("damaged files named", 1)


def test_a_checkpoint_whose_best_one_is_damaged_is_no_place_to_go_on_from(tmp_path):
    folder = RunFolder(tmp_path)
    first = checkpoint(folder, 1, best=1)
    best = checkpoint(folder, 2, best=2)
    last = checkpoint(folder, 3, best=2)
    assert folder.last_checkpoint() == last
    flip(best / "model.safetensors")  # training would end with its weights
    assert folder.last_checkpoint() == first


def test_no_checkpoint_is_none(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.last_checkpoint() is None
    checkpoint(folder, 5, sealed=False)
    assert folder.last_checkpoint() is None


HOLD = """
import sys, time
from pathlib import Path
from distill.files import PARTIAL
from distill.run_folder import hold
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
                folder.check(recipe, **settings)
        with pytest.raises(FolderError, match="another run"), hold(folder.path):
            pass
        other.kill()
    folder.check(recipe, resume=False, overwrite=False)  # what is left is no run
    with hold(folder.path):
        assert [path.name for path in folder.path.iterdir()] == [LOCK]


@pytest.mark.parametrize("killed", ["before the recipe", "before the checkpoints"])
def test_a_run_killed_at_its_start_can_be_resumed_and_started_anew(tmp_path, recipe_path, killed):
    recipe, folder = load_recipe(recipe_path), RunFolder(tmp_path / "run")
    with hold(folder.path):
        if killed == "before the recipe":
            (folder.path / f"{PARTIAL}x").mkdir()
        else:
            folder.start(recipe, resume=False, overwrite=False)
            folder.checkpoints.rmdir()
    for settings in ({"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}):
        folder.check(recipe, **settings)


def test_what_was_free_may_be_taken_by_the_time_it_is_used(tmp_path, recipe_path):
    recipe, folder = load_recipe(recipe_path), RunFolder(tmp_path / "run")
    folder.check(recipe, resume=False, overwrite=False)
    with hold(folder.path):  # another run, meanwhile
        folder.start(recipe, resume=False, overwrite=False)
    with hold(folder.path), pytest.raises(FolderError, match="holds an unfinished run"):
        folder.start(recipe, resume=False, overwrite=False)
