"""A finished run that is resumed with more epochs goes on from its last checkpoint."""

import json
import shutil

import pytest
from conftest import LABELS, run, write_reviews

from distill import commands
from distill.errors import FolderError
from distill.recipe.file import load_recipe

TRAINING = {
    "num_train_epochs": 2, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "logging_steps": 5,
    "eval_strategy": "epoch", "save_strategy": "epoch", "bf16": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_bert):
    folder = tmp_path_factory.mktemp("longer")
    files = {}
    for name, count, seed in (("train", 128, 0), ("test", 40, 1), ("validation", 40, 2)):
        write_reviews(folder / f"{name}.csv", count, seed=seed)
        files[name] = str(folder / f"{name}.csv")
    recipe = {
        "data": {"files": files, "label_names": LABELS, "max_tokens": 16},
        "teacher": {"model": str(tiny_bert), "pretrained": False, "training": TRAINING},
        "student": {"layers": 1, "control": True, "training": TRAINING},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    commands.teacher(load_recipe(folder / "recipe.yaml"), folder / "teacher", device="cpu")
    return folder


def epochs(world, stage, number):
    return load_recipe(world / "recipe.yaml", [f"{stage}.training.num_train_epochs={number}"])


def steps(folder):
    return json.loads((folder / "metrics.json").read_text())["training"]["steps"]


def test_a_teacher_goes_on_and_is_there_until_it_has(world, tmp_path, caplog):
    folder = tmp_path / "teacher"
    shutil.copytree(world / "teacher", folder)
    before = (folder / "manifest.json").read_text()
    with pytest.raises(FolderError, match="finished with another recipe"):  # fewer epochs are another run
        commands.teacher(epochs(world, "teacher", 1), folder, resume=True, device="cpu")
    with pytest.raises(FolderError, match="holds a finished run"):
        commands.teacher(epochs(world, "teacher", 4), folder, device="cpu")
    assert (folder / "manifest.json").read_text() == before
    commands.teacher(epochs(world, "teacher", 4), folder, resume=True, device="cpu")
    assert "with num_train_epochs 4 instead of 2; the learning rate follows the longer schedule" in caplog.text
    assert steps(folder) == 32 and load_recipe(folder / "recipe.yaml").teacher.training["num_train_epochs"] == 4
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [round(entry["epoch"]) for entry in log if "eval_accuracy" in entry] == [1, 2, 3, 4]
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry and entry["step"] > 16]
    assert rates and rates == sorted(rates, reverse=True) and rates[0] > 1e-3  # half of the longer schedule
    commands.teacher(epochs(world, "teacher", 4), folder, resume=True, device="cpu")  # nothing is left to do
    assert steps(folder) == 32 and not (folder / "next").exists()


def test_a_student_goes_on_with_its_control(world, tmp_path):
    folder, control = tmp_path / "student", tmp_path / "student-control"
    commands.student(epochs(world, "student", 1), world / "teacher", folder, force=True, device="cpu")
    assert (steps(folder), steps(control)) == (8, 8)
    code, _, errors = run(
        "student", world / "recipe.yaml", "--teacher", world / "teacher", "--output", folder, "--resume", "--force",
        "--set", "student.training.num_train_epochs=3", "--device", "cpu",
    )  # fmt: skip
    assert code == 0 and "student: goes on from checkpoint-8" in errors and "control: goes on from" in errors
    assert (steps(folder), steps(control)) == (24, 24)


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(world, tmp_path):
    shutil.copytree(world / "teacher", tmp_path / "teacher")
    shutil.rmtree(tmp_path / "teacher" / "checkpoints")
    with pytest.raises(FolderError, match="has no checkpoint left to go on from"):
        commands.teacher(epochs(world, "teacher", 3), tmp_path / "teacher", resume=True, device="cpu")
    assert (tmp_path / "teacher" / "manifest.json").is_file()
