"""The model card: the Hub's own library reads it, its figures are those of metrics.json, and it has no local paths."""

import json
import re

import pytest
from conftest import make_classifier, run, write_reviews
from huggingface_hub import ModelCard
from ruamel.yaml import YAML

from distill import commands
from distill.storage.run_folder import RunFolder


@pytest.fixture(scope="module")
def world(tmp_path_factory, data):
    """A folder with a recipe, the recipe's teacher and its student."""
    folder = tmp_path_factory.mktemp("card")
    model = make_classifier(folder / "some-bert")
    write_reviews(folder / "validation.csv", 100, seed=9, mislabelled=20)  # so that the fitted temperature is not 1
    training = {"num_train_epochs": 1, "learning_rate": 3e-3, "per_device_train_batch_size": 16}
    sure = training | {"num_train_epochs": 10, "load_best_model_at_end": False}
    idle = training | {"learning_rate": 1e-9}  # the student keeps its random weights
    files = {"train": data / "train.csv", "validation": folder / "validation.csv", "test": data / "test.csv"}
    files = {split: str(path) for split, path in files.items()}
    recipe = {
        "data": {"files": files, "max_tokens": 32},
        "teacher": {"model": str(model), "calibrate": True, "training": sure},
        "student": {"config": {"num_hidden_layers": 1}, "training": idle, "calibrate": False},
        "card": {"language": "en", "license": "apache-2.0"},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    recipe = commands.check(folder / "recipe.yaml")
    teacher = commands.teacher(recipe, folder / "my-teacher")
    student = RunFolder(folder / "my-student")
    code, _, err = run("student", folder / "recipe.yaml", "--teacher", teacher.path, "--output", student.path)
    assert code == 0, err
    (folder / "student.log").write_text(err)
    return folder, teacher, student


def test_the_hub_reads_it_and_its_figures_are_those_of_the_run(world):
    for made in world[1:]:
        found = ModelCard(made.card.read_text(encoding="utf-8"))
        metrics = json.loads(made.metrics.read_text())
        results = {result.metric_type: result for result in found.data.eval_results}
        assert {name: result.metric_value for name, result in results.items()} == {
            "accuracy": metrics["test"]["accuracy"], "f1": metrics["test"]["macro_f1"],
        }  # fmt: skip
        assert {result.dataset_split for result in results.values()} == {"test"}
        assert results["f1"].metric_args == {"average": "macro"}
        assert (found.data.language, found.data.license) == ("en", "apache-2.0")
        assert f"| {metrics['test']['accuracy']:.4f} |" in found.text
        assert found.data.pipeline_tag == "text-classification" and found.data.model_name == made.path.name


def test_it_names_the_teachers_and_the_data(world):
    _, teacher, student = world
    text = student.card.read_text()
    assert "It was distilled from `my-teacher`." in text and "some-bert" in teacher.card.read_text()
    assert "160 train, 100 validation, 40 test" in text and "train.csv, test.csv" in text
    said = "The scores are\ncalibrated: the weights of the classification head are divided by the temperature."
    assert said in teacher.card.read_text() and said not in text
    assert json.loads(teacher.metrics.read_text())["warnings"] == [] and "**It " not in teacher.card.read_text()


def test_a_student_that_learned_nothing_says_so_in_the_log_in_its_figures_and_on_its_card(world):
    (said,) = json.loads(world[2].metrics.read_text())["warnings"]
    assert re.fullmatch(r"answers (negative|positive) for every one of 40 test texts", said)
    assert f"- **It {said}.**\n" in world[2].card.read_text()
    assert (world[0] / "student.log").read_text().splitlines().count(f"student: {said}") == 1


def test_it_has_no_local_path_and_its_recipe_is_valid(world, tmp_path):
    folder, teacher, student = world
    for made in (teacher, student):
        text = made.card.read_text()
        assert str(folder.parent) not in text and ": /" not in text
        recipe = text.split("```yaml\n")[1].split("```")[0]
        assert YAML(typ="safe").load(recipe)["data"]["files"]["train"] == "train.csv"
        (tmp_path / "recipe.yaml").write_text(recipe)
        assert commands.check(tmp_path / "recipe.yaml").data.max_tokens == 32


def test_the_learning_curve_is_beside_it(world):
    for made in world[1:]:
        assert (
            made.learning_curve.read_bytes().startswith(b"\x89PNG") and "(learning_curve.png)" in made.card.read_text()
        )


def test_an_export_has_a_card_with_the_figures_of_its_proof(world):
    teacher = world[1]
    proof = commands.export(teacher.path, ["onnx-fp32"])["onnx-fp32"]
    found = ModelCard((teacher.export / "onnx-fp32" / "README.md").read_text(encoding="utf-8"))
    assert found.data.library_name == "onnx" and found.data.tags == ["distill", "onnx-fp32"]
    assert (found.data.language, found.data.license) == ("en", "apache-2.0")
    assert f"| {proof['accuracy']:.4f} | {proof['accuracy_drop']:.4f} | {proof['agreement']:.4f} |" in found.text
    assert "On 100 validation texts" in found.text
    assert str(world[0]) not in found.text
