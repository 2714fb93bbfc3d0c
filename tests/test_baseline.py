"""The baseline: what it computes, how it is kept, and that a model that is not above it is never praised."""

import json

import numpy as np
import pytest
from conftest import LABELS, check_refused, data_section, run
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from test_report import ENVIRONMENT, ROWS, row

import distill
from distill import commands
from distill.errors import FolderError, ModelError
from distill.inference.linear import BUCKETS, LinearClassifier, WordNgrams, counts
from distill.measuring.baselines import compare_with_baseline
from distill.recipe.file import load_recipe
from distill.report.choice import baseline_sentence, choose
from distill.report.document import Findings, write_report
from distill.storage.predictions import read_predictions

TEXTS = ["a good film", "a bad film", "good good good", "", "nothing known here", "ein guter Film \ud800"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(json.dumps({"data": data_section(data)}))
    return path


@pytest.fixture(scope="module")
def baseline(tmp_path_factory, recipe):
    return commands.baseline(load_recipe(recipe), tmp_path_factory.mktemp("run") / "baseline")


def test_it_learns_and_answers_the_same_once_it_is_read_back(baseline):
    metrics = baseline.read_metrics()
    assert metrics["test"]["accuracy"] > 0.8
    classifier = distill.load(baseline.path)
    ids, gold_labels, logits, _ = read_predictions(baseline.predictions)
    assert len(ids) == 40 and (logits.argmax(axis=1) == gold_labels).mean() == metrics["test"]["accuracy"]
    assert classifier.label_names == tuple(LABELS) and classifier.format == "linear"
    probabilities = classifier.probabilities(TEXTS)
    assert np.isfinite(probabilities).all() and probabilities.sum(axis=1) == pytest.approx(np.ones(len(TEXTS)))
    best = max(metrics["training"]["tried"], key=lambda one: one["validation_accuracy"])
    assert 0 < best["validation_accuracy"] <= 1


def test_its_strength_is_chosen_on_validation_alone(baseline, recipe, tmp_path, data):
    """Another test split, with all labels swapped, gives the same weights."""
    lines = (data / "test.csv").read_text().splitlines()
    swapped = [line.replace("negative", "#").replace("positive", "negative").replace("#", "positive") for line in lines]
    (tmp_path / "test.csv").write_text("\n".join(swapped) + "\n")
    other = commands.baseline(load_recipe(recipe, [f"data.files.test={tmp_path / 'test.csv'}"]), tmp_path / "b")
    assert other.read_manifest()["weights"] == baseline.read_manifest()["weights"]
    assert other.read_metrics()["test"]["accuracy"] == pytest.approx(1 - baseline.read_metrics()["test"]["accuracy"])


def test_its_features_are_those_of_scikit_learn():
    train = ["a good film", "a bad film", "a good good story", "bad bad"]
    vectorizer = HashingVectorizer(ngram_range=(1, 2), n_features=BUCKETS, alternate_sign=False, norm=None)
    found = vectorizer.transform(train)
    columns = np.unique(found.indices)
    transformer = TfidfTransformer(sublinear_tf=True).fit(found[:, columns])
    ours = WordNgrams(columns.astype(np.int32), transformer.idf_.astype(np.float32)).features(TEXTS)
    theirs = transformer.transform(
        vectorizer.transform([t.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for t in TEXTS])[
            :, columns
        ]
    )
    np.testing.assert_allclose(ours.toarray(), theirs.toarray(), atol=1e-6)


@given(st.permutations(range(len(TEXTS))))
def test_a_text_has_the_same_logits_among_any_others(order):
    columns = np.unique(counts(TEXTS[:3]).indices).astype(np.int32)
    rng = np.random.default_rng(0)
    classifier = LinearClassifier(
        WordNgrams(columns, np.ones(len(columns), np.float32)), rng.normal(size=(3, len(columns))).astype(np.float32),
        np.array([1, 2, 3], np.float32), ["a", "b", "c"],
    )  # fmt: skip
    logits = classifier.logits(TEXTS)
    np.testing.assert_array_equal(classifier.logits([TEXTS[index] for index in order]), logits[list(order)])
    np.testing.assert_array_equal(logits[3], [1, 2, 3])  # nothing known: the bias alone


@pytest.mark.parametrize(
    ("change", "error", "part"),
    [
        ({"weights": np.zeros((2, 3), np.float32)}, ModelError, "weights: wants"),
        ({"idf": np.zeros(1, np.float64)}, ModelError, "idf: wants"),
        ({"columns": None}, ModelError, "cannot be read"),
        (None, FolderError, "linear.safetensors"),
    ],
)
def test_a_damaged_baseline_does_not_answer(baseline, tmp_path, change, error, part):
    folder = tmp_path / "b"
    LinearClassifier.load(baseline.path).save(_made(folder))
    if change is None:  # sealed, and then changed
        from distill.storage.checksums import seal

        seal(folder)
        (folder / "linear.safetensors").write_bytes(b"x")
    else:
        arrays = load_file(folder / "linear.safetensors") | change
        save_file({name: array for name, array in arrays.items() if array is not None}, folder / "linear.safetensors")
    with pytest.raises(error, match=part):
        distill.load(folder)


def _made(folder):
    folder.mkdir()
    return folder


def test_a_baseline_is_no_teacher_no_base_model_and_is_not_exported(baseline, tmp_path, recipe):
    check_refused(tmp_path, ["is a baseline, not a transformer"], "export", baseline.path)
    said = run("student", recipe, "--teacher", baseline.path, "--set", "student.layers=1", "--output", tmp_path / "s")
    assert said[0] == 2 and "is a baseline, not a transformer" in said[2]


def comparison(gain, p_value, role="student"):
    return {
        "model": f"runs/{role}", "role": role, "baseline": "runs/baseline", "examples": 100,
        "measure": "accuracy", "gain": gain, "gain_ci95": [gain - 0.01, gain + 0.01], "p_value": p_value,
        "only_first_correct": 9, "only_second_correct": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("gain", "p_value", "said"),
    [
        (0.021, 0.001, "The student is 2.1 points above the baseline"),
        (0.021, 0.3, "The student is not better than the baseline"),
        (-0.021, 0.001, "it is 2.1 points below it"),
        (0.0, 1.0, "it is level with it"),
    ],
)
def test_the_sentence_says_how_far_a_model_is_above_the_baseline(gain, p_value, said):
    sentence = baseline_sentence(comparison(gain, p_value))
    assert said in sentence and sentence.endswith(".")
    assert ("not better" in sentence) == (gain <= 0 or p_value >= 0.05)


def test_what_is_not_above_the_baseline_is_said_first(tmp_path):
    rows = [row("baseline", "linear", 0.3, 0.89, agreement=None), *ROWS]
    poor = choose(rows, "1x128", commonest_share=0.4, baselines=[comparison(0.001, 0.9)])
    assert poor["reason"].startswith("the student is not better than the baseline") and poor["above_baseline"] is False
    assert "Try more tokens" in poor["reason"] and poor["format"] == "onnx-int8"  # said, and not hidden
    good = choose(rows, "1x128", commonest_share=0.4, baselines=[comparison(0.05, 0.001)])
    assert good["reason"].startswith("the fastest student") and good["above_baseline"] is True
    assert "above_baseline" not in choose(ROWS, "1x128", commonest_share=0.4)
    for found, headline in (
        (comparison(0.001, 0.9), "Not yet: not better than the baseline"),
        (comparison(0.05, 0.001), "Ship"),
    ):
        report = write_report(tmp_path, Findings(rows, ENVIRONMENT, ["1x128"], baselines=[found]))
        assert f"<h1>{headline}" in (tmp_path / "report.html").read_text()
        assert report["baselines"][0]["sentence"] == baseline_sentence(found)
        assert (tmp_path / "report.md").read_text().count("the baseline, a linear classifier") == 1
        page = (tmp_path / "report.html").read_text()  # on the first screen, where it is explained, and why
        assert page.index("the baseline, a linear classifier") < page.index("<main>")


def test_models_of_other_texts_are_not_compared(baseline, tmp_path, recipe, tiny_bert, data):
    """A note says so, since the figures of two test splits say nothing of each other."""
    settings = [f"teacher.model={tiny_bert}", "teacher.training.max_steps=1", "teacher.training.report_to=none"]
    same = commands.teacher(load_recipe(recipe, settings), tmp_path / "same", device="cpu")
    other = commands.teacher(load_recipe(recipe, [*settings, "data.test_samples=20"]), tmp_path / "other", device="cpu")
    notes = []
    found = compare_with_baseline([baseline.path, same.path, other.path], notes)
    assert [one["model"] for one in found] == [str(same.path)] and found[0]["role"] == "teacher"
    assert len(notes) == 1 and str(other.path) in notes[0]


def test_a_teacher_is_compared_with_the_baseline_beside_it(baseline, recipe, tiny_bert):
    sets = [f"teacher.model={tiny_bert}", "teacher.training.max_steps=1", "teacher.training.report_to=none"]
    words = [word for setting in sets for word in ("--set", setting)]
    code, _, err = run("teacher", recipe, "--output", baseline.path.parent / "teacher", "--device", "cpu", *words)
    assert code == 0 and "\nteacher: The teacher is not better than the baseline" in err


def test_a_finished_baseline_is_kept_and_another_recipe_is_refused(baseline, recipe, tmp_path):
    before = baseline.manifest.read_bytes()
    assert commands.baseline(load_recipe(recipe), baseline.path, resume=True) == baseline
    assert baseline.manifest.read_bytes() == before
    with pytest.raises(FolderError, match=r"finished with (other data|another recipe)"):
        commands.baseline(load_recipe(recipe, ["data.train_samples=50"]), baseline.path, resume=True)
    with pytest.raises(FolderError, match="holds a finished run"):
        commands.baseline(load_recipe(recipe), baseline.path)


def written(folder, texts_and_labels, **data):
    """A recipe for these texts, which are both train and, with a word more, test."""
    rows = {"train": texts_and_labels, "test": [(f"{text} x", label) for text, label in texts_and_labels[:20]]}
    for split, found in rows.items():
        lines = [json.dumps({"text": text, "label": label}) for text, label in found]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    files = {split: str(folder / f"{split}.jsonl") for split in rows}
    path = folder / "recipe.json"
    path.write_text(json.dumps({"data": {"files": files, "max_tokens": 16, **data}}))
    return load_recipe(path)


def test_a_script_without_spaces_is_read_by_its_characters(tmp_path):
    """Else each sentence would be one word that no other text has."""
    rng = np.random.default_rng(0)
    filler = [chr(code) for code in range(0x4E00, 0x4E40)]
    texts = [
        ("".join([*rng.permutation(filler)[:9], word, *rng.permutation(filler)[:9]]), label)
        for _ in range(100)
        for word, label in (("好看", "positive"), ("难看", "negative"))
    ]
    folder = commands.baseline(written(tmp_path, texts), tmp_path / "b")
    assert folder.read_metrics()["test"]["accuracy"] > 0.9
    assert set(counts(["手机iPhone 好"]).indices) > set(counts(["iPhone"]).indices)


def test_texts_that_share_no_word_give_the_commonest_class(tmp_path):
    texts = [("!" * (1 + index), "many" if index % 3 else "few") for index in range(60)]
    folder = commands.baseline(written(tmp_path, texts), tmp_path / "b")
    assert {answer["label"] for answer in distill.load(folder.path)(["good", "!?"])} == {"many"}


def test_of_many_texts_a_sample_is_read_and_a_class_that_it_lacks_keeps_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.training.baseline.MOST_TEXTS", 60)
    names = ("a", "rare", "z")
    texts = [(f"{names[2 * (index % 2)]}word of text {index}", names[2 * (index % 2)]) for index in range(400)]
    texts += [(f"rareword {index}", "rare") for index in range(3)]
    recipe = written(tmp_path, texts, label_names=names)
    monkeypatch.setattr("distill.training.baseline.drawn", lambda rows, count, seed: rows.select(
        [index for index, label in enumerate(rows["label"]) if label != 1][:count]
    ))  # fmt: skip
    folder = commands.baseline(recipe, tmp_path / "b")
    assert folder.read_metrics()["training"]["texts"] == 60
    assert [answer["label"] for answer in distill.load(folder.path)(["aword", "zword"])] == ["a", "z"]


def test_a_baseline_of_other_labels_is_no_yardstick(baseline, recipe, tiny_bert, tmp_path):
    settings = [f"teacher.model={tiny_bert}", "teacher.training.max_steps=1", "teacher.training.report_to=none"]
    fewer = commands.teacher(load_recipe(recipe, [*settings, "data.train_samples=60"]), tmp_path / "t", device="cpu")
    notes = []
    assert compare_with_baseline([baseline.path, fewer.path], notes) == [] and "other train texts" in notes[0]
