"""`distill evaluate`: the figures of a model on the data that one names."""

import json

import pytest
from conftest import LABELS, make_classifier, run, write_reviews

from distill import commands
from distill.recipe.file import load_recipe


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, data, tiny_bert):
    folder = tmp_path_factory.mktemp("evaluation")
    recipe = {
        "data": {
            "files": {name: str(data / f"{name}.csv") for name in ("train", "test")}, "label_names": LABELS,
            "max_tokens": 16,
        },
        "teacher": {
            "model": str(tiny_bert), "pretrained": False,
            "training": {
                "num_train_epochs": 2, "learning_rate": 3e-3, "save_strategy": "no", "eval_strategy": "no",
                "load_best_model_at_end": False,
            },
        },
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return commands.teacher(load_recipe(folder / "recipe.yaml"), folder / "teacher", device="cpu").path


def test_on_its_own_test_split_a_run_has_the_figures_it_was_finished_with(teacher):
    code, shown, _ = run("evaluate", teacher, "--json", "--device", "cpu")
    found, kept = json.loads(shown), json.loads((teacher / "metrics.json").read_text())
    assert code == 0
    for name in ("examples", "accuracy", "accuracy_ci95"):
        assert found[name] == kept["test"][name]
    for name in ("macro_f1", "roc_auc", "log_loss", "ece", "brier"):
        assert found[name] == pytest.approx(kept["test"][name], abs=1e-6)
    assert [one["class"] for one in found["classes"]] == LABELS


def test_other_data_and_other_splits_are_named_on_the_command_line(teacher, tmp_path):
    write_reviews(tmp_path / "other.csv", 40, seed=9)
    code, shown, _ = run("evaluate", teacher, "--set", f"data.files.test={tmp_path / 'other.csv'}")
    assert code == 0 and "40 test texts" in shown and "precision" in shown
    assert "validation texts" in run("evaluate", teacher, "--split", "validation")[1]
    assert "7 test texts" in run("evaluate", teacher, "--set", "data.test_samples=7")[1]


def test_a_model_of_other_classes_is_refused_unless_a_map_renames_them(teacher, tmp_path):
    stranger = make_classifier(tmp_path / "stranger", id2label={0: "NEG", 1: "POS"})
    recipe = ["--recipe", teacher / "recipe.yaml"]
    code, _, errors = run("evaluate", stranger, *recipe)
    assert code == 2 and "its classes (NEG, POS) are not the data's" in errors and "data.label_map" in errors
    code, shown, _ = run("evaluate", stranger, *recipe, "--set", "data.label_map={NEG: negative, POS: positive}")
    assert code == 0 and "accuracy" in shown
