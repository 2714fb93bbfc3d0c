"""Class weights: what each class gets, and that a rare class is learned with them."""

import json

import numpy as np
import pytest
from conftest import BAD, FILLER, GOOD
from datasets import ClassLabel, Dataset

from distill import commands
from distill.data.splits import Splits
from distill.errors import RecipeError
from distill.recipe.file import load_recipe
from distill.storage.predictions import read_predictions
from distill.training.class_weights import class_weights_of

NAMES = ("bad", "fine", "good")
LABELS = [0] * 60 + [1] * 30 + [2] * 10


def splits(labels=LABELS):
    rows = Dataset.from_dict({"label": labels}).cast_column("label", ClassLabel(names=list(NAMES)))
    return Splits(rows, rows, rows, NAMES)


@pytest.mark.parametrize("wanted", ["balanced", {"good": 6.0}, {"BAD": 0.5, "good": 2}])
def test_the_mean_weight_of_a_training_text_is_one(wanted):
    weights = np.array(class_weights_of(wanted, splits(), "teacher"))
    assert weights[LABELS].mean() == pytest.approx(1)


def test_balanced_classes_have_the_same_total_and_a_map_its_ratios():
    balanced = np.array(class_weights_of("balanced", splits(), "teacher"))
    assert np.allclose(balanced * [60, 30, 10], 100 / 3)
    mapped = class_weights_of({"good": 6.0, " Bad ": 0.5}, splits(), "teacher")
    assert np.allclose(np.array(mapped) / mapped[1], [0.5, 1, 6])
    assert class_weights_of(None, splits(), "teacher") is None


def test_a_weight_of_no_class_is_refused():
    with pytest.raises(RecipeError, match=r"student\.class_weights: 'great' is not one of the classes: bad"):
        class_weights_of({"great": 2.0}, splits(), "student")


def test_a_rare_class_is_answered_oftener_with_weights(tmp_path, tiny_bert):
    """One text in twelve is good, and the words tell good from bad only three times in four."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 600), ("test", 300)):
        rows = []
        for index in range(count):
            is_good = index % 12 == 0
            word = rng.choice(GOOD if is_good == (rng.random() < 0.75) else BAD)
            rows.append(f"{' '.join(rng.choice(FILLER, 4))} {word} {index} {name},{'good' if is_good else 'bad'}\n")
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(rows))
    recipe = {
        "data": {"files": {name: str(tmp_path / f"{name}.csv") for name in ("train", "test")}, "max_tokens": 16},
        "teacher": {
            "model": str(tiny_bert), "pretrained": False,
            "training": {
                "learning_rate": 3e-3, "num_train_epochs": 2, "save_strategy": "no", "eval_strategy": "no",
                "load_best_model_at_end": False, "bf16": False,
            },
        },
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    answered = {}
    for weights in ("null", "balanced"):
        settings = load_recipe(tmp_path / "recipe.yaml", [f"teacher.class_weights={weights}"])
        run = commands.teacher(settings, tmp_path / weights, device="cpu")
        answered[weights] = (read_predictions(run.predictions).logits.argmax(axis=1) == 1).mean()
    assert answered["balanced"] > answered["null"] + 0.1
