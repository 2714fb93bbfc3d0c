"""Cascades: who answers what, the folder and what can go wrong with it, and the commands that make and take it."""

import json
import shutil

import numpy as np
import pandas
import pytest
from conftest import LABELS, run, write_reviews
from scipy.special import softmax

import distill
from distill import commands
from distill.errors import FolderError, ModelError, PromiseError
from distill.inference.cascade import Cascade
from distill.inference.text_classifier import TextClassifier
from distill.measuring import cascade as making
from distill.measuring.promise import Found, Steps
from distill.recipe.file import load_recipe
from distill.storage.cascades import read_cascade
from distill.storage.contents import find_recipe

NAMES = ["first", "second"]


class Fixed(TextClassifier):
    """A classifier that knows the logits of each text, and remembers which texts it was given."""

    format, device, max_tokens = "fixed", "cpu", None

    def __init__(self, logits, label_names=("a", "b")):
        self.known, self.label_names, self.asked = logits, tuple(label_names), []

    def logits(self, texts, *, progress=lambda done: None):
        self.asked += texts
        progress(len(texts))
        return np.array([self.known[text] for text in texts], np.float32).reshape(len(texts), -1)

    def warm_up(self):
        pass


def test_each_classifier_gets_only_the_texts_that_the_one_before_passed_on():
    first = Fixed({"x": [5, 0], "y": [0, 1], "z": [0.1, 0]})
    second = Fixed({"y": [0, 6], "z": [0, 0.1]})
    third = Fixed({"z": [0, -3]}, ("b", "a"))  # its classes have another order
    cascade = Cascade([first, second, third], [0.9, 0.9], ["first", "second", "third"], ["a", "b"])
    logits, answered_by = cascade.answers(["z", "x", "y"])
    assert answered_by.tolist() == [2, 0, 1]
    np.testing.assert_allclose(logits, [[-3, 0], [5, 0], [0, 6]])
    assert (first.asked, second.asked, third.asked) == (["z", "x", "y"], ["z", "y"], ["z"])
    assert [answer["label"] for answer in cascade(["x", "y", "z"])] == ["a", "b", "b"]
    assert cascade.logits([]).shape == (0, 2)


def test_a_probability_that_equals_the_threshold_is_sure_enough():
    first = Fixed({"x": [1, 0]})
    score = float(softmax(np.float32([1, 0])).max())
    assert Cascade([first, Fixed({"x": [0, 9]})], [score], NAMES, ["a", "b"]).answers(["x"])[1].tolist() == [0]


def test_logits_that_are_not_finite_do_not_pass_on_every_text_in_silence():
    cascade = Cascade([Fixed({"x": [np.nan, 0]}), Fixed({"x": [1, 0]})], [0.9], NAMES, ["a", "b"])
    with pytest.raises(ModelError, match="first: its logits on 1 of 1 texts are not finite"):
        cascade.logits(["x"])


def test_one_text_is_no_list_of_texts():
    texts = pandas.Series(["x", "y", "z"])[1:]  # whose first index is 1
    cascade = Cascade([Fixed({"y": [9, 0], "z": [9, 0]}), Fixed({})], [0.9], NAMES, ["a", "b"])
    assert cascade.logits(texts).tolist() == [[9, 0], [9, 0]]
    with pytest.raises(TypeError):
        Cascade([Fixed({}), Fixed({})], [0.9], NAMES, ["a", "b"]).logits("x")


def test_classes_without_names_have_the_order_of_the_data():
    """The first classifier names its classes in another order than the data; the last one names none."""
    first, last = Fixed({"x": [9, 0], "y": [0.1, 0]}, ("b", "a")), Fixed({"y": [0, 5]}, ("LABEL_0", "LABEL_1"))
    cascade = Cascade([first, last], [0.9], NAMES, ["a", "b"])
    assert [answer["label"] for answer in cascade(["x", "y"])] == ["b", "b"]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_bert):
    """A run of baseline, teacher and student, and a cascade of the three."""
    folder = tmp_path_factory.mktemp("cascade")
    write_reviews(folder / "train.csv", 600, seed=0, mislabelled=60)
    write_reviews(folder / "test.csv", 120, seed=1)
    training = {"num_train_epochs": 3, "per_device_train_batch_size": 16, "learning_rate": 3e-3}
    recipe = {
        "data": {
            "files": {name: str(folder / f"{name}.csv") for name in ("train", "test")}, "label_names": LABELS,
            "max_tokens": 32, "validation_fraction": 0.25,
        },
        "teacher": {"model": str(tiny_bert), "training": training},
        "student": {"layers": 1, "training": training},
        "export": {"formats": ["onnx-fp32"], "max_accuracy_drop": 1.0},
        "benchmark": {"shapes": ["1x16"], "rounds": 5},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    commands.run(load_recipe(folder / "recipe.yaml"), folder / "out", device="cpu", force=True)
    models = [folder / "out" / name for name in ("baseline", "student/export", "teacher")]
    commands.cascade(models, folder / "cascade", agree=0.9, device="cpu")
    return folder


@pytest.fixture
def copied(world, tmp_path):
    """The whole tree at another place, which a test may damage."""
    shutil.copytree(world, tmp_path / "moved")
    return tmp_path / "moved"


TEXTS = ["a lovely film", "dull and weak", "the plot was awful and fine", "music", ""]


def test_the_folder_loads_as_the_cascade_that_was_found(world):
    found = read_cascade(world / "cascade")
    models, thresholds, promise = found.models, found.thresholds, found.promise
    cascade = distill.load(world / "cascade", "cpu")
    assert [model.name for model in models] == ["baseline", "onnx-fp32", "teacher"]
    assert cascade.sure_from[:-1] == thresholds and cascade.label_names == tuple(LABELS)
    logits, answered_by = cascade.answers(TEXTS)
    for step, model in enumerate(models):
        alone = distill.load(model, "cpu").logits(TEXTS)
        rows = answered_by == step
        np.testing.assert_allclose(logits[rows], alone[rows], atol=1e-5)
    assert promise["agree"] == 0.9 and promise["texts"] + promise["ordering_texts"] == 150
    assert promise["agreement"] >= 0.9 and sum(promise["answered"]) == pytest.approx(1)


def test_it_can_be_moved_with_its_classifiers(copied):
    assert np.isfinite(distill.load(copied / "cascade", "cpu").logits(TEXTS)).all()


def forge(root, change=lambda steps: None, **others):
    """Change the steps or others in a cascade.json that a stranger may have written, so that no checksum tells."""
    (root / "cascade" / "checksums.json").unlink()
    content = json.loads((root / "cascade" / "cascade.json").read_text())
    change(content["steps"])
    content |= others
    (root / "cascade" / "cascade.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root / "out" / "teacher"), "teacher is not there"),
        (
            lambda root: shutil.copy(root / "out" / "student" / "config.json", root / "out" / "teacher"),
            "teacher has changed since, so the thresholds no longer fit it",
        ),
        (
            lambda root: (root / "cascade" / "cascade.json").write_text(
                (root / "cascade" / "cascade.json").read_text().replace("0.", "0.1", 1)
            ),
            "cascade.json is damaged",
        ),
        (
            lambda root: (
                (root / "cascade" / "checksums.json").unlink(),
                (root / "cascade" / "cascade.json").write_text('{"steps": [], "promise": {}}'),
            ),
            "label_names: field required",
        ),
        (lambda root: forge(root, lambda steps: steps[0].update(at_least=-7.0)), "at_least: input should be greater"),
        (lambda root: forge(root, lambda steps: steps[0].update(at_least=None)), "and a threshold for each but the"),
        (lambda root: forge(root, lambda steps: steps.extend(steps[:1] * 8)), "wants two to 8 steps"),
        (lambda root: forge(root, lambda steps: steps[0].update(model="/dev")), "wants a path relative to"),
        (lambda root: forge(root, lambda steps: steps[0].update(model=".")), "is itself a cascade"),
        (lambda root: forge(root, lambda steps: steps[0].update(model="a\0b")), "is no path of a folder"),
        (lambda root: forge(root, lambda steps: steps[0].update(model="\ud800")), "is no path of a folder"),
        (lambda root: forge(root, lambda steps: steps[0].update(model="x" * 5_000)), "is no path of a folder"),
        (lambda root: forge(root, label_names=[]), "label_names: list should have at least 2 items"),
    ],
)
def test_a_damaged_cascade_is_one_line(copied, damage, message):
    damage(copied)
    with pytest.raises(FolderError) as caught:
        distill.load(copied / "cascade", "cpu")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_link_to_it_loads_the_classifiers_that_were_checked(copied, tmp_path):
    """Beside the link stand other models under the same names."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cascade").symlink_to(copied / "cascade")
    shutil.copytree(copied / "out", tmp_path / "other" / "out")
    shutil.rmtree(tmp_path / "other" / "out" / "teacher")
    cascade = distill.load(tmp_path / "other" / "cascade", "cpu")
    assert cascade.names[-1] == str((copied / "out" / "teacher").resolve())


@pytest.mark.parametrize("place", ["out/student", "out/report", "out"])
def test_it_is_not_written_into_a_folder_of_something_else(copied, place):
    before = {path: path.stat().st_mtime_ns for path in (copied / place).rglob("*") if path.is_file()}
    models = [copied / "out" / "baseline", copied / "out" / "teacher"]
    with pytest.raises(FolderError, match="holds other files than a cascade's"):
        commands.cascade(models, copied / place, agree=0.9, device="cpu")
    assert before == {path: path.stat().st_mtime_ns for path in (copied / place).rglob("*") if path.is_file()}


def test_it_can_be_made_again_in_the_same_place(copied):
    models = [copied / "out" / "baseline", copied / "out" / "teacher"]
    commands.cascade(models, copied / "cascade", agree=0.8, device="cpu")
    assert len(read_cascade(copied / "cascade").models) == 2


def test_texts_that_a_classifier_was_trained_on_prove_nothing(world, tmp_path):
    """Another seed carves other validation texts, of which most were train texts."""
    models = [world / "out" / "baseline", world / "out" / "teacher"]
    recipe = load_recipe(world / "recipe.yaml", ["data.seed=7"])
    with pytest.raises(FolderError, match=r"was trained on \d+ of the 150 validation texts"):
        commands.cascade(models, tmp_path / "c", agree=0.9, recipe=recipe, device="cpu")
    write_reviews(tmp_path / "new.csv", 200, seed=11)
    fresh = load_recipe(world / "recipe.yaml", [f"data.files.validation={tmp_path / 'new.csv'}"])
    found = commands.cascade(models, tmp_path / "c", agree=0.8, recipe=fresh, device="cpu")
    assert found["promise"]["texts"] == 200


def test_what_nobody_knows_about_the_training_texts_is_said(world, tmp_path, caplog):
    shutil.copytree(world / "out" / "student" / "export" / "onnx-fp32", tmp_path / "downloaded")
    models = [tmp_path / "downloaded", world / "out" / "teacher"]
    commands.cascade(models, tmp_path / "c", agree=0.5, device="cpu")
    assert "downloaded: nothing says which texts it was trained on" in caplog.text
    caplog.clear()
    shutil.copytree(world / "out" / "teacher", tmp_path / "out" / "teacher")
    write_reviews(tmp_path / "other.csv", 600, seed=12)
    recipe = tmp_path / "out" / "teacher" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(world / "train.csv"), str(tmp_path / "other.csv")))
    models = [world / "out" / "baseline", tmp_path / "out" / "teacher"]
    write_reviews(tmp_path / "new.csv", 200, seed=11)
    fresh = load_recipe(world / "recipe.yaml", [f"data.files.validation={tmp_path / 'new.csv'}"])
    commands.cascade(models, tmp_path / "c", agree=0.8, recipe=fresh, device="cpu")
    assert "teacher: its training texts have changed since" in caplog.text and "baseline:" not in caplog.text


def test_copies_of_a_text_prove_no_more_than_the_text(world, tmp_path, caplog):
    models = [world / "out" / "baseline", world / "out" / "teacher"]
    rows = [f'"{text}",{label}' for text, label in write_reviews(tmp_path / "new.csv", 100, seed=11)]
    recipe = load_recipe(world / "recipe.yaml", [f"data.files.validation={tmp_path / 'new.csv'}"])
    (tmp_path / "new.csv").write_text("\n".join(["text,label", *rows[:1] * 300]) + "\n")
    with pytest.raises(PromiseError, match="takes at least 29 validation texts to prove, and there are 1 different"):
        commands.cascade(models, tmp_path / "c", agree=0.9, recipe=recipe, device="cpu")
    (tmp_path / "new.csv").write_text("\n".join(["text,label", *rows, *rows[:50]]) + "\n")
    commands.cascade(models, tmp_path / "c", agree=0.7, recipe=recipe, device="cpu")
    assert "50 of the 150 validation texts are copies of others" in caplog.text


def test_a_classifier_may_call_the_classes_otherwise(world, tmp_path):
    shutil.copytree(world / "out" / "teacher", tmp_path / "theirs")
    (tmp_path / "theirs" / "checksums.json").unlink()
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config |= {"id2label": {"0": "BAD!", "1": "GOOD!"}, "label2id": {"BAD!": 0, "GOOD!": 1}}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    models = [world / "out" / "baseline", tmp_path / "theirs"]
    recipe = load_recipe(world / "recipe.yaml", ["data.label_map={'BAD!': negative, 'GOOD!': positive}"])
    found = commands.cascade(models, tmp_path / "c", agree=0.8, recipe=recipe, device="cpu")
    assert found["promise"]["last_accuracy"] > 0.8
    labels = [answer["label"] for answer in distill.load(tmp_path / "c", "cpu")(TEXTS)]
    assert labels == [answer["label"] for answer in distill.load(world / "cascade", "cpu")(TEXTS)]


def test_if_no_classifier_should_answer_early_there_is_no_cascade(world, tmp_path, monkeypatch):
    """The mean of equal seconds may be rounded to less than each of them."""
    models = [world / "out" / name for name in ("baseline", "student/export", "teacher")]
    monkeypatch.setattr(making, "cheapest_cascade", lambda *_, **__: Found((np.inf, np.inf), np.arange(150)))
    monkeypatch.setattr(Steps, "mean_seconds", lambda steps, _: np.nextafter(steps.seconds[-1], 0))
    with pytest.raises(PromiseError, match="the fastest one that agrees"):
        commands.cascade(models, tmp_path / "c", agree=0.9, device="cpu")
    assert not (tmp_path / "c" / "cascade.json").exists()


def test_the_recipe_is_that_of_the_classifier_whose_answers_it_promises(world):
    assert find_recipe([world / "cascade"]) == (world / "out" / "teacher" / "recipe.yaml").resolve()


def test_predict_takes_it_and_says_who_answered(world):
    code, out, said = run("predict", world / "cascade", "--device", "cpu", *TEXTS[:4])
    assert code == 0 and len(out.splitlines()) == 4
    assert said.count(" of 4 texts") == 3 and "baseline answered" in said


def test_the_report_holds_the_cascade_against_its_promise(world, tmp_path):
    found = commands.report([world / "cascade"], tmp_path / "report", device="cpu")
    (entry,) = found["cascades"]
    assert {row["role"] for row in found["measurements"]} == {"baseline", "student", "teacher"}
    assert sum(step["answered"] for step in entry["steps"]) == pytest.approx(1)
    assert entry["mean_ms"] > 0 and entry["examples"] == 120
    for page in ("report.md", "report.html"):
        text = (tmp_path / "report" / page).read_text()
        assert "promised at least 90 %" in text and "answers if sure of" in text


def test_the_other_promise_is_about_accuracy(world, tmp_path):
    found = commands.cascade(
        [world / "out" / "baseline", world / "out" / "teacher"], tmp_path / "c", accuracy_drop=0.2, device="cpu"
    )
    assert found["promise"]["accuracy_drop"] == 0.2 and found["promise"]["ordering_texts"] == 0
    assert found["promise"]["accuracy"] > found["promise"]["last_accuracy"] - 0.2
    models = [world / "out" / "baseline", world / "out" / "teacher"]
    code, out, _ = run("cascade", *models, "--accuracy-drop", "0.2", "--output", tmp_path / "c", "--device", "cpu")
    assert code == 0 and f", and the last one {found['promise']['last_accuracy']:.4f}" in out.splitlines()[-1]


def test_too_few_validation_texts_are_one_line_with_the_number_it_takes(world, tmp_path):
    models = [world / "out" / "baseline", world / "out" / "teacher"]
    code, _, said = run("cascade", *models, "--agree", "0.99", "--output", tmp_path / "c")
    assert code == 2 and "takes at least 299 validation texts to prove, and there are 150" in said
    assert not (tmp_path / "c" / "cascade.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["teacher", "--agree", "0.9"], "wants 2 to 8 classifiers"),
        (["teacher", "teacher", "--agree", "0.9"], "is in the cascade twice"),
        (["baseline", "teacher"], "wants --agree F or --accuracy-drop F, one of the two"),
        (["baseline", "teacher", "--agree", "0.9", "--accuracy-drop", "0.1"], "one of the two"),
        (["baseline", "teacher", "--agree", "1"], "--agree: wants a share between 0 and 1, got 1"),
        (["baseline", "teacher", "--agree=nan"], "--agree: wants a share between 0 and 1, got nan"),
        (["baseline", "teacher", "--accuracy-drop", "1e-9"], "--accuracy-drop: wants a share from 0.0001 to below 1"),
        (["../cascade", "teacher", "--agree", "0.9"], "is itself a cascade"),
        (["nowhere", "teacher", "--agree", "0.9"], "nowhere: no such folder"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(world, tmp_path, arguments, message):
    named = [world / "out" / word if word[0] != "-" and not word[0].isdigit() else word for word in arguments]
    code, _, said = run("cascade", *named, "--output", tmp_path / "c")
    assert code == 2 and message in said and "Traceback" not in said and not (tmp_path / "c").exists()


def test_a_promise_that_nothing_keeps_is_not_made(world, tmp_path):
    """The first classifier answers by the opposite labels, as sure as before."""
    shutil.copytree(world / "out" / "baseline", tmp_path / "wrong")
    (tmp_path / "wrong" / "checksums.json").unlink()
    settings = json.loads((tmp_path / "wrong" / "linear.json").read_text())
    settings["label_names"] = settings["label_names"][::-1]
    (tmp_path / "wrong" / "linear.json").write_text(json.dumps(settings))
    with pytest.raises(PromiseError, match="no thresholds are sure to keep the promise"):
        commands.cascade([tmp_path / "wrong", world / "out" / "teacher"], tmp_path / "c", agree=0.97, device="cpu")
    assert not (tmp_path / "c" / "cascade.json").exists()
