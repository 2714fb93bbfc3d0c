"""A finished run that is resumed with more epochs goes on from its last checkpoint."""

import json
import shutil

import pytest
from conftest import LABELS, write_reviews

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
    assert steps(folder) == 32 and not (folder / ".next").exists()


def student(world, folder, *settings, **options):
    """Distill a student that keeps its last checkpoint, so that a longer run has other weights."""
    last = ["student.training.load_best_model_at_end=false", "student.training.metric_for_best_model=null"]
    recipe = load_recipe(world / "recipe.yaml", [*last, *settings])
    return commands.student(recipe, world / "teacher", folder, force=True, device="cpu", **options)


def test_a_student_goes_on_with_its_control(world, tmp_path, caplog):
    folder, control = tmp_path / "student", tmp_path / "student-control"
    student(world, folder, "student.training.num_train_epochs=1")
    assert (steps(folder), steps(control)) == (8, 8)
    before = json.loads((folder / "manifest.json").read_text())["weights"]
    student(world, folder, "student.training.num_train_epochs=3", resume=True)
    assert (steps(folder), steps(control)) == (24, 24)
    weights = json.loads((folder / "manifest.json").read_text())["weights"]
    assert weights != before
    assert json.loads((control / "manifest.json").read_text())["parents"]["student_weights"] == weights
    assert "student: goes on from checkpoint-8" in caplog.text and "control: goes on from checkpoint-8" in caplog.text
    student(world, folder, "student.training.num_train_epochs=3", resume=True)  # nothing is left to do


def test_what_stops_between_student_and_control_goes_on(world, tmp_path, monkeypatch):
    folder, control = tmp_path / "student", tmp_path / "student-control"
    student(world, folder, "student.training.num_train_epochs=1")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(commands, "train_control", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        patched.setattr(commands, "go_on_longer", only_student(commands.go_on_longer))
        student(world, folder, "student.training.num_train_epochs=2", resume=True)
    assert (steps(folder), steps(control)) == (16, 8)
    student(world, folder, "student.training.num_train_epochs=2", resume=True)
    assert (steps(folder), steps(control)) == (16, 16)


def only_student(go_on):
    return lambda folder, recipe, role, *rest: go_on(folder, recipe, role, *rest) if role == "student" else None


@pytest.mark.parametrize("change", ["teacher", "control without checkpoints", "no control"])
def test_a_refused_or_partial_request_leaves_no_plan(world, tmp_path, change):
    folder, control = tmp_path / "student", tmp_path / "student-control"
    student(world, folder, "student.training.num_train_epochs=1")
    recipe = load_recipe(
        world / "recipe.yaml",
        ["student.training.load_best_model_at_end=false", "student.training.metric_for_best_model=null",
         "student.training.num_train_epochs=2", f"student.control={str(change != 'no control').lower()}"],
    )  # fmt: skip
    teacher = world / "teacher"
    if change == "teacher":
        teacher = commands.teacher(epochs(world, "teacher", 1), tmp_path / "other", device="cpu").path
    if change == "control without checkpoints":
        shutil.rmtree(control / "checkpoints")
    if change == "no control":
        commands.student(recipe, teacher, folder, resume=True, force=True, device="cpu")
        assert (steps(folder), steps(control)) == (16, 8)
    else:
        with pytest.raises(FolderError, match=r"another teacher|no checkpoint left"):
            commands.student(recipe, teacher, folder, resume=True, force=True, device="cpu")
    assert not (folder / ".next").exists() and not (control / ".next").exists()


def test_a_run_that_stopped_early_does_not_go_on(world, tmp_path):
    stopping = ["teacher.early_stopping_patience=1", "teacher.training.learning_rate=0.0"]
    short = load_recipe(world / "recipe.yaml", [*stopping, "teacher.training.num_train_epochs=6"])
    commands.teacher(short, tmp_path / "teacher", device="cpu")
    assert steps(tmp_path / "teacher") < 48
    longer = load_recipe(world / "recipe.yaml", [*stopping, "teacher.training.num_train_epochs=9"])
    with pytest.raises(FolderError, match="stopped early"):
        commands.teacher(longer, tmp_path / "teacher", resume=True, device="cpu")


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(world, tmp_path):
    shutil.copytree(world / "teacher", tmp_path / "teacher")
    shutil.rmtree(tmp_path / "teacher" / "checkpoints")
    with pytest.raises(FolderError, match="has no checkpoint left to go on from"):
        commands.teacher(epochs(world, "teacher", 3), tmp_path / "teacher", resume=True, device="cpu")
    assert (tmp_path / "teacher" / "manifest.json").is_file()
