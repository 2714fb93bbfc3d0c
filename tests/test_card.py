"""The model card: readable by the Hub's own library, true to metrics.json, and without a word of where it was made."""

import json

import pytest
from conftest import make_classifier
from huggingface_hub import ModelCard
from ruamel.yaml import YAML

from distill import stages


@pytest.fixture(scope="module")
def world(tmp_path_factory, data):
    """A recipe, its teacher and a student of it."""
    folder = tmp_path_factory.mktemp("card")
    model = make_classifier(folder / "some-bert")
    training = {"num_train_epochs": 1, "learning_rate": 3e-3, "per_device_train_batch_size": 16}
    recipe = {
        "data": {"files": {"train": str(data / "train.csv"), "test": str(data / "test.csv")}, "max_tokens": 32},
        "teacher": {"model": str(model), "calibrate": True, "training": training},
        "student": {"layers": 2, "training": training, "calibrate": False},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    recipe = stages.check(folder / "recipe.yaml")
    teacher = stages.teacher(recipe, folder / "my-teacher")
    return folder, teacher, stages.student(recipe, teacher.path, folder / "my-student", force=True)


def test_the_hub_reads_it_and_its_figures_are_those_of_the_run(world):
    for run in world[1:]:
        found = ModelCard(run.card.read_text(encoding="utf-8"))
        metrics = json.loads(run.metrics.read_text())
        results = {result.metric_type: result.metric_value for result in found.data.eval_results}
        assert results == {name: metrics["test"][name] for name in ("accuracy", "macro_f1")}
        assert f"| {metrics['test']['accuracy']:.4f} |" in found.text
        assert found.data.pipeline_tag == "text-classification" and found.data.model_name == run.path.name


def test_it_says_what_was_made_of_what(world):
    _, teacher, student = world
    text = student.card.read_text()
    assert "It was distilled from `my-teacher`." in text and "some-bert" in teacher.card.read_text()
    assert "144 train, 16 validation, 40 test" in text and "train.csv, test.csv" in text
    assert "calibrated scores" in teacher.card.read_text() and "calibrated scores" not in text


def test_no_path_of_the_machine_is_in_it_and_its_recipe_is_one(world, tmp_path):
    folder, teacher, student = world
    for run in (teacher, student):
        text = run.card.read_text()
        assert str(folder.parent) not in text and ": /" not in text
        recipe = text.split("```yaml\n")[1].split("```")[0]
        assert YAML(typ="safe").load(recipe)["data"]["files"]["train"] == "train.csv"
        (tmp_path / "recipe.yaml").write_text(recipe)
        assert stages.check(tmp_path / "recipe.yaml").data.max_tokens == 32


def test_the_learning_curve_lies_beside_it(world):
    for run in world[1:]:
        assert run.learning_curve.read_bytes().startswith(b"\x89PNG") and "(learning_curve.png)" in run.card.read_text()


def test_an_export_has_a_card_with_the_figures_of_its_proof(world):
    teacher = world[1]
    proof = stages.export(teacher.path, ["onnx-fp32"])["onnx-fp32"]
    found = ModelCard((teacher.export / "onnx-fp32" / "README.md").read_text(encoding="utf-8"))
    assert found.data.library_name == "onnx" and found.data.tags == ["distill", "onnx-fp32"]
    assert f"| {proof['accuracy']:.4f} | {proof['accuracy_drop']:.4f} | {proof['agreement']:.4f} |" in found.text
    assert "On 16 validation texts" in found.text and "already divided by the calibration temperature" in found.text
    assert str(world[0]) not in found.text
