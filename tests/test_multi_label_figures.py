"""Figures, proofs and reports of models that give a text several labels; scikit-learn and scipy are the reference."""

import contextlib
import io
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import permutation_test
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)
from test_page import ENVIRONMENT, SHAPES, row

from distill.data.encoding import Truncation
from distill.decisions import answers_of, as_two_classes, scores_of
from distill.errors import ModelError
from distill.export.card import export_card
from distill.export.ngram_graph import interface
from distill.export.proofs import Bounds, flips, prove
from distill.inference.classifier import load
from distill.measuring.alignment import align
from distill.measuring.benchmark import cascade_of
from distill.measuring.findings import _never_answered
from distill.measuring.metrics import (
    _sign_flip_p_value,
    agreement,
    by_class,
    chance_p_value,
    commonest_share,
    compare_paired,
    compare_predictions,
    constant_score,
    faults_of_answers,
    figures,
    in_a_line,
    validation_figures,
)
from distill.measuring.training_log import training_curve
from distill.models.ngram_config import NgramConfig
from distill.models.thresholds import thresholds_of
from distill.recipe.schema import Card, Recipe
from distill.report import plots
from distill.report.card import card
from distill.report.choice import Budget, choose
from distill.report.document import Findings, write_report
from distill.report.tables import table
from distill.storage.predictions import Predictions

NAMES = ["ads", "bugs", "cats", "dogs"]
STRICT = Bounds(max_accuracy_drop=0.0, min_agreement=1.0)


def world(seed, examples=200, labels=4, skill=2.0):
    """Logits, gold labels and thresholds of a model that learned something."""
    rng = np.random.default_rng(seed)
    gold = (rng.random((examples, labels)) < np.linspace(0.1, 0.6, labels)).astype(np.uint8)
    logits = (rng.normal(size=gold.shape) * 1.5 + skill * (gold - 0.5)).astype(np.float32)
    return logits, gold, tuple(rng.uniform(0.2, 0.8, labels))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_each_figure_is_scikit_learns(seed, labels):
    logits, gold, thresholds = world(seed, labels=labels)
    found, probabilities = figures(logits, gold, thresholds), expit(logits.astype(np.float64))
    answers = (probabilities >= np.array(thresholds)).astype(int)
    flat = [values.ravel() for values in (gold, probabilities)]
    assert found["examples"] == 200
    assert found["accuracy_ci95"][0] <= found["accuracy"] <= found["accuracy_ci95"][1]
    expected = {
        "accuracy": accuracy_score(gold, answers),
        "micro_f1": f1_score(gold, answers, average="micro", zero_division=0),
        "macro_f1": f1_score(gold, answers, average="macro", zero_division=0),
        "mean_average_precision": average_precision_score(gold, probabilities, average="macro"),
        "roc_auc": roc_auc_score(gold, probabilities, average="macro"),
        "log_loss": log_loss(*flat),
        "brier": 2 * brier_score_loss(*flat),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    rows = by_class(logits, gold, NAMES + ["e", "f"][: labels - 4] if labels > 4 else NAMES[:labels], thresholds)
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        wanted = [score(has, gave, zero_division=0) for has, gave in zip(gold.T, answers.T, strict=True)]
        assert [one[name] for one in rows] == pytest.approx(wanted)
    assert [one["threshold"] for one in rows] == list(thresholds)
    assert [one["examples"] for one in rows] == gold.sum(axis=0).tolist()


def test_a_label_that_no_text_or_every_text_has_does_not_count_in_what_ranks():
    logits, gold, thresholds = world(0)
    gold[:, 0], gold[:, 3] = 0, 1
    found = figures(logits, gold, thresholds)
    assert found["roc_auc"] == pytest.approx(roc_auc_score(gold[:, 1:3], logits[:, 1:3]))
    assert found["mean_average_precision"] == pytest.approx(average_precision_score(gold[:, 1:3], logits[:, 1:3]))
    rows = by_class(logits, gold, NAMES, thresholds)
    assert rows[0]["average_precision"] is rows[3]["roc_auc"] is None
    nothing = figures(logits, np.zeros_like(gold), thresholds)
    assert nothing["roc_auc"] is nothing["mean_average_precision"] is None and nothing["micro_f1"] == 0
    assert "roc_auc" not in validation_figures(logits, np.zeros_like(gold))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_one_label_is_what_two_classes_are(seed):
    """A single label with a threshold of 0.5 asks what a classifier of two classes does."""
    logits, gold, _ = world(seed, labels=1)
    one, two = figures(logits, gold, (0.5,)), figures(*as_two_classes(logits, gold))
    for name in ("examples", "accuracy", "accuracy_ci95", "roc_auc", "log_loss", "ece", "brier"):
        assert one[name] == pytest.approx(two[name], rel=1e-5)
    label, other = by_class(logits, gold, ["a"], (0.5,))[0], by_class(*as_two_classes(logits, gold), ["no", "a"])[1]
    for name in ("examples", "precision", "recall", "f1", "roc_auc"):
        assert label[name] == pytest.approx(other[name])
    assert one["micro_f1"] == one["macro_f1"] == label["f1"]
    answers = answers_of(logits, (0.5,))
    assert chance_p_value(answers, gold) == chance_p_value(answers[:, 0], gold[:, 0])


def test_an_evaluation_during_training_answers_at_one_half():
    logits, gold, _ = world(1)
    found = figures(logits, gold, (0.5,) * 4)
    del found["examples"], found["accuracy_ci95"]
    assert validation_figures(logits, gold.astype(np.float32)) == found  # as a Trainer hands them over
    assert "micro_f1" not in validation_figures(logits, gold.argmax(axis=1))


def test_large_logits_are_still_ranked():
    logits = np.array([[50.0, 0], [60, 0], [70, 1], [80, 1]], np.float32)  # whose sigmoids are all 1
    gold = np.array([[0, 0], [0, 0], [1, 1], [1, 1]], np.uint8)
    assert [one["roc_auc"] for one in by_class(logits, gold, ["a", "b"], (0.5, 0.5))] == [1, 1]


def test_the_line_of_a_log_names_exact_match():
    logits, gold, thresholds = world(1)
    found = figures(logits, gold, thresholds)
    assert in_a_line(found).startswith(f"exact match {found['accuracy']:.4f} (95 % interval ")
    assert f"micro-F1 {found['micro_f1']:.4f}, macro-F1" in in_a_line(found)
    assert in_a_line(figures(logits, gold.argmax(axis=1))).startswith("accuracy ")


def scores(seed, skill):
    logits, gold, thresholds = world(seed, skill=skill)
    return scores_of(answers_of(logits, thresholds), gold)


def test_equal_scores_gain_nothing_and_a_clear_gain_is_significant():
    good, poor = scores(0, 4.0), scores(0, 1.0)
    same = compare_paired(good, good, measure="f1")
    assert (same["p_value"], same["gain"], same["measure"]) == (1.0, 0.0, "f1")
    mixed = good.copy()
    mixed[0] -= 0.25
    mixed[1] += 0.25
    assert compare_paired(mixed, good, measure="f1")["p_value"] == 1.0
    clear = compare_paired(good, poor, measure="f1")
    assert clear["p_value"] == 1 / 10_000 and clear["gain"] == pytest.approx(good.mean() - poor.mean())
    assert clear["only_first_correct"] == (good > poor).sum() and clear["gain_ci95"][0] > 0
    swapped = compare_paired(poor, good, measure="f1")
    assert (swapped["p_value"], swapped["gain"]) == (clear["p_value"], -clear["gain"])
    assert swapped["gain_ci95"] == pytest.approx([-bound for bound in clear["gain_ci95"][::-1]])


@pytest.mark.parametrize("seed", range(3))
def test_the_p_value_is_that_of_scipys_permutation_test(seed):
    rng = np.random.default_rng(seed)
    first, second = (
        rng.choice([0, 0.4, 0.5, 2 / 3, 1], 300, p=weights) for weights in ([0.2] * 5, [0.28, *[0.18] * 4])
    )
    found = compare_paired(first, second, measure="f1")["p_value"]
    wanted = permutation_test(
        (first - second,), np.sum, permutation_type="samples", n_resamples=9_999, vectorized=True,
        rng=np.random.default_rng(9),
    ).pvalue  # fmt: skip
    assert found == pytest.approx(wanted, abs=4 * np.sqrt(wanted / 9_999) + 1e-3)
    assert compare_paired(second, first, measure="f1")["p_value"] == found


def test_where_nothing_differs_in_truth_p_values_are_even():
    rng = np.random.default_rng(0)
    values = [compare_paired(*rng.choice([0, 0.5, 2 / 3, 1], (2, 20)), measure="f1")["p_value"] for _ in range(100)]
    assert 0.4 < np.mean(values) < 0.65 and np.mean(np.array(values) < 0.1) < 0.2


def test_a_hundred_thousand_texts_take_no_longer_than_the_bootstrap():
    rng = np.random.default_rng(0)
    difference = rng.choice([-1, -2 / 3, -0.5, 0, 0.5, 2 / 3, 1], 100_000)
    start = time.perf_counter()
    assert 0 < _sign_flip_p_value(difference, rng) <= 1
    assert time.perf_counter() - start < 2


def test_predictions_are_compared_in_f1_per_text_or_in_accuracy():
    (logits, gold, thresholds), (others, _, _) = world(0, skill=4.0), world(1)
    first, second = (Predictions(["a"] * 200, gold, one, thresholds) for one in (logits, others))
    found = compare_predictions(first, second)
    scored = [scores_of(answers_of(one, thresholds), gold) for one in (logits, others)]
    assert found == compare_paired(*scored, measure="f1")
    of_one = [one._replace(gold_labels=gold.argmax(axis=1), thresholds=None) for one in (first, second)]
    assert compare_predictions(*of_one)["measure"] == "accuracy"


def test_chance_is_the_smallest_p_value_of_a_label_times_their_number():
    logits, gold, thresholds = world(0)
    answers = answers_of(logits, thresholds)
    each = [chance_p_value(given, has) for given, has in zip(answers.T, gold.T, strict=True)]
    assert chance_p_value(answers, gold) == pytest.approx(4 * min(each)) and min(each) < 1e-6
    assert chance_p_value(np.zeros_like(gold), gold) == 1.0
    rng = np.random.default_rng(0)
    values = [chance_p_value(rng.permutation(gold), gold) for _ in range(100)]
    assert np.mean(np.array(values) < 0.05) <= 0.1


def test_the_commonest_set_of_labels_has_its_share_and_score():
    gold = np.array([[1, 0], [0, 0], [0, 0], [1, 1]], np.uint8)
    assert commonest_share(gold) == 0.5
    assert constant_score(gold) == scores_of(np.zeros_like(gold), gold).mean() == 0.5
    assert constant_score(np.array([0, 1, 1])) == commonest_share(np.array([0, 1, 1]))


# Of each: gold labels, answers, and what is said of them.
A, B, AB, NONE = [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]
FAULTS = {
    "a good model": ([A, B, AB, NONE] * 5, [A, B, AB, NONE] * 4 + [A, B, A, NONE], []),
    "one answer": ([A, B, NONE], [AB] * 3, ["answers a, b for every one of 3 test texts"]),
    "never a label": ([A, B, NONE], [NONE] * 3, ["answers (no label) for every one of 3 test texts"]),
    "one set of labels in the test texts": (
        [AB] * 3, [AB, A, AB], ["was tested only on texts of a, b; nothing is known about the other labels"],
    ),
    "no better than the commonest set": (
        [AB, AB, A, NONE], [AB, A, B, A],
        ["is no better than the same labels for every text: F1 per text on test 0.4167, against 0.6667"],
    ),
    "a label that is never answered": (
        [A, AB, B, NONE] * 5, [A, A, NONE, NONE] * 5, ["never answers b (of 10 test texts)"],
    ),
    "too few to tell": (
        [A, B, NONE], [A, B, NONE], ["may answer by chance: not significant with 3 test texts (p = 1.00)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_with_the_answers_as_a_whole_is_said(name):
    gold, answers, expected = FAULTS[name]
    logits = 8 * np.array(answers, np.float32) - 4
    assert faults_of_answers(logits, np.array(gold, np.uint8), ["a", "b", "c"], (0.5,) * 3) == expected


def test_texts_agree_if_all_labels_do():
    logits, _, thresholds = world(0)
    other = logits.copy()
    other[:50, 2] = 30 * np.where(answers_of(logits, thresholds)[:50, 2], -1, 1)
    assert agreement(logits, other, thresholds) == 0.75 and agreement(logits, logits + 1e-6, thresholds) > 0.99


def test_thresholds_go_with_their_columns():
    model = SimpleNamespace(label_names=("b", "c", "a"), thresholds=(0.1, 0.2, 0.3))
    assert align(model, ["a", "b", "c"], task="multi_label", name="m") == ([2, 0, 1], (0.3, 0.1, 0.2))
    with pytest.raises(ModelError, match=r"m: gives a text any number of labels, but data\.task is single_label"):
        align(model, ["a", "b", "c"], task="single_label", name="m")
    model.thresholds = None
    assert align(model, ["a", "b", "c"], task="single_label", name="m") == ([2, 0, 1], None)
    with pytest.raises(ModelError, match=r"m: gives a text one label, but data\.task is multi_label"):
        align(model, ["a", "b", "c"], task="multi_label", name="m")


def proof(logits, reference, gold, thresholds, bounds=STRICT):
    return prove("onnx-int8", logits, reference, gold, NAMES, bounds, thresholds=thresholds, size_bytes=1, device="cpu")


def test_the_model_itself_passes_and_one_label_makes_a_text_disagree():
    logits, gold, thresholds = world(0, skill=30.0)
    found = proof(logits, logits, gold, thresholds)
    assert found.passed and (found.agreement, found.flipped, found.texts) == (1, 0, 200)
    assert found.accuracy == figures(logits, gold, thresholds)["accuracy"]
    assert found.ece == pytest.approx(figures(logits, gold, thresholds)["ece"], abs=1e-7)
    other, (row, label) = logits.copy(), np.argwhere(gold)[0]
    other[row, label] = logit(thresholds[label]) - 0.1 * np.sign(logits[row, label] - logit(thresholds[label]))
    found = proof(other, logits, gold, thresholds)
    assert not found.passed and found.flipped == 1 and found.agreement == 0.995
    assert "exact match on validation falls by 0.0050, more than export.max_accuracy_drop 0.0" in found.reason
    (flip,) = flips([f"text {index}" for index in range(200)], other, logits, gold, NAMES, thresholds)
    assert flip["text"] == f"text {row}" and flip["changed"] == [NAMES[label]]
    assert flip["model"] == flip["gold"] != flip["format"]
    assert flip["format_probabilities"] == pytest.approx(dict(zip(NAMES, expit(other[row]), strict=True)), abs=1e-4)


def test_a_rare_label_that_a_format_loses_fails_it_within_any_bounds():
    gold = np.zeros((300, 4), np.uint8)
    gold[:, 0], gold[:2, 3] = 1, 1
    gold[200:, 1] = 1
    reference = 8 * gold.astype(np.float32) - 4
    lost = reference.copy()
    lost[:, 3] = -4
    found = proof(lost, reference, gold, (0.5,) * 4, Bounds(1.0, 0.0))
    assert found.reason == "finds the label dogs on 0 of the 2 texts that have it, the model on 2"
    assert found.per_class["dogs"] == {"examples": 2, "accuracy": 0.0, "agreement": 0.0}
    assert found.per_class["ads"] == {"examples": 300, "accuracy": 1.0, "agreement": 1.0}
    lost[1, 3] = 4  # one of the two is left
    assert proof(lost, reference, gold, (0.5,) * 4, Bounds(1.0, 0.0)).passed
    silent = proof(np.full_like(lost, -4), reference, gold, (0.5,) * 4, Bounds(1.0, 0.0))
    assert silent.reason == "answers (no label) for every one of 300 texts"


def test_texts_without_any_label_are_flipped_in_words():
    gold = np.array([[0, 0, 0, 0], [1, 1, 0, 0]], np.uint8)
    reference = 8 * gold.astype(np.float32) - 4
    first, second = flips(["a", "b"], -reference, reference, gold, NAMES, (0.5,) * 4)
    assert {first["model"], second["model"]} == {"(no label)", "ads, bugs"} and first["changed"] == NAMES


def measured(role, format, p50, accuracy, **more):
    logits, gold, thresholds = world(3, skill=3.0)
    found = {
        **row(role, format, p50, accuracy), "thresholds": list(thresholds), "micro_f1": accuracy + 0.01,
        "f1_per_text": accuracy + 0.02,
        "mean_average_precision": None, "confusion": None, "classes": by_class(logits, gold, NAMES, thresholds),
    }  # fmt: skip
    return found | more


ROWS = [
    measured("teacher", "torch-fp32", 40.0, 0.70),
    measured("student", "torch-fp32", 20.0, 0.68),
    measured("student", "onnx-int8", 5.0, 0.67, mean_average_precision=0.8125),
]
GAIN = {
    "student": "runs/student", "control": "c", "examples": 100, "measure": "f1", "gain": 0.021,
    "gain_ci95": [0.01, 0.03], "p_value": 0.001, "only_first_correct": 5, "only_second_correct": 3,
}  # fmt: skip


def test_a_report_says_exact_match_and_shows_f1_precision_and_thresholds(tmp_path):
    logits, gold, thresholds = world(0)
    changed = list(flips(["<b>text</b>"] * 200, -logits, logits, gold, NAMES, thresholds))[:1]
    log = [{"epoch": 1.0, "step": 10, "eval_log_loss": 0.5, "eval_accuracy": 0.3, "eval_micro_f1": 0.6}]
    findings = Findings(
        ROWS, ENVIRONMENT, SHAPES, label_names=NAMES, task="multi_label", comparisons=[GAIN],
        baselines=[{**GAIN, "role": "student", "model": "runs/student"}],
        trainings=[training_curve("teacher", log, 10)],
        flipped=[{"model": "m", "format": "onnx-int8", "total": 1, "texts": changed}],
    )  # fmt: skip
    report = write_report(tmp_path, findings, Budget(max_latency_ms=25.0))
    assert report["task"] == "multi_label" and json.loads((tmp_path / "report.json").read_text()) == report
    text, html = ((tmp_path / name).read_text() for name in ("report.md", "report.html"))
    header = next(line for line in text.splitlines() if line.startswith("| role"))
    for column in ("exact match", "micro-F1", "macro-F1", "mean AP", "ROC-AUC"):
        assert f" {column} " in header and f">{column}</th>" in html
    assert " accuracy " not in header and "0.8125" in text and "0.6800" in text
    for page in (text, html):
        assert page.count("Exact match is the share of texts with exactly the right labels") == 1
        assert "68.00% exact match" in page and "97.1% of the teacher" in page and "s exact match (70.00%)" in page
        assert "Distilling gained 2.1 points of F1 per text on test over the same student" in page
        assert "The student is 2.1 points of F1 per text above the baseline" in page
        assert f"{ROWS[0]['thresholds'][0]:.4f}" in page
    assert "## Per label: teacher torch-fp32" in text and "<h3>Per label</h3>" in html
    assert "Confusion matrices" not in html and "<h2>Exact match against latency</h2>" in html
    assert "exact match on test" in html and "validation exact match" in html
    assert "&lt;b&gt;text" in html and "Changed: " in html and f"{changed[0]['changed'][0]} (" in html


def test_an_unfit_model_is_called_so_in_terms_of_labels():
    constant = [one | {"classes_answered": 1, "f1_per_text": 0.4} for one in ROWS[1:]]
    loss = GAIN | {"gain": -0.021, "p_value": 0.001}
    reason = choose([ROWS[0], *constant], "1x128", commonest_share=0.5, comparisons=[loss])["reason"]
    assert "it predicts the same labels for every test text (40.00% F1 per text; the same labels for" in reason
    assert "it is 2.1 points of F1 per text below its control" in reason
    drop = choose(ROWS, "1x128", Budget(max_drop=0.03), commonest_share=0.1)["reason"]
    assert "within 3 points of the teacher's exact match is the student as onnx-int8" in drop


def test_a_table_in_a_terminal_has_the_columns_of_the_task():
    assert "exact match" in table(ROWS, SHAPES, style="simple").splitlines()[0]
    assert "accuracy" in table([row("student", "torch-fp32", 5.0, 0.9)], SHAPES, style="simple").splitlines()[0]


def test_there_is_no_cascade_of_models_of_several_labels():
    _, gold, _ = world(0)
    assert cascade_of([], gold, "1x128") is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier of several labels, as distill saves it."""
    return make_classifier(
        tmp_path_factory.mktemp("several") / "model", id2label=dict(enumerate(NAMES)),
        label2id={name: index for index, name in enumerate(NAMES)}, problem_type="multi_label_classification",
        label_thresholds=[0.3, 0.5, 0.48, 0.505],
    )  # fmt: skip


def written_card():
    logits, gold, thresholds = world(0)
    recipe = Recipe.model_validate(
        {"data": {"files": {"train": "train.csv", "test": "test.csv"}}, "teacher": {"model": "some-model"}}
    )
    metrics = {
        "test": figures(logits, gold, thresholds), "classes": by_class(logits, gold, NAMES, thresholds), "warnings": [],
        "calibration": {"temperature": 1.7},
        "training": {
            "truncation": {"max_tokens": 32, "kept": "head", "texts_cut": 0, "tokens_cut": 0}, "warnings": [],
        },
    }  # fmt: skip
    text = card(
        "model", "teacher", recipe, metrics, architecture="Bert", parameters=1_000, label_names=NAMES,
        sizes={"train": 10}, parents={},
    )  # fmt: skip
    return text, metrics


def test_what_the_card_says_to_run_gives_the_labels_that_distill_gives(folder):
    text, metrics = written_card()
    assert "A text may have several of these 4 labels, or none: `ads`, `bugs`, `cats`, `dogs`." in text
    assert "average: micro" in text and "average: macro" not in text and "always predicts one" not in text
    assert f"| {metrics['test']['accuracy']:.4f} |" in text and f"{metrics['classes'][0]['threshold']:.4f}" in text
    code = text.split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder)).replace("a text", "good film")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    shown = eval(printed.getvalue())
    classifier = load(folder, "cpu")
    probabilities = classifier.probabilities(["good film"])[0]
    wanted = {NAMES[index]: probabilities[index] for index in np.flatnonzero(probabilities >= classifier.thresholds)}
    assert 0 < len(wanted) < 4
    assert {one["label"]: one["score"] for one in shown} == pytest.approx(wanted, abs=1e-4)


def test_the_card_of_an_export_gives_the_thresholds():
    logits, gold, thresholds = world(0, skill=30.0)
    found = proof(logits, logits, gold, thresholds)
    text = export_card(
        "m", found, architecture="bert", label_names=NAMES, thresholds=thresholds,
        truncation=Truncation(32, "head"), room=30, inputs=("input_ids", "attention_mask"), about=Card(),
    )  # fmt: skip
    assert "A text may have several of 4 labels, or none." in text and f"`ads` {thresholds[0]:.4g}, `bugs`" in text
    assert "On 200 validation texts" in text and "The sigmoid of a logit is the probability of a label." in text


def test_the_graph_of_an_ngram_model_keeps_the_thresholds():
    several = {"problem_type": "multi_label_classification", "id2label": dict(enumerate(NAMES))}
    config = NgramConfig(vocab_size=20, **several, label_thresholds=[0.3, 0.4, 0.5, 0.6])
    assert thresholds_of(interface(config)) == (0.3, 0.4, 0.5, 0.6)


def test_a_learning_curve_names_what_it_draws():
    entry = {"step": 1, "epoch": 1.0, "log_loss": 0.5, "accuracy": 0.9}
    run = {"role": "teacher", "steps": [], "selected_step": None}
    for more, label in (({}, "validation accuracy"), ({"micro_f1": 0.8}, "validation exact match")):
        figure = plots.learning_curves([run | {"evaluations": [entry | more]}])
        assert figure.axes[2].get_title() == f"teacher: {label}"


def test_a_report_names_the_classes_that_models_never_answer():
    gold = np.array([0, 1, 2, 2])
    all_but_c = SimpleNamespace(logits=np.eye(3)[[0, 1, 1, 0]], thresholds=None, role="teacher")
    good = SimpleNamespace(logits=np.eye(3)[gold], thresholds=None, role="control")
    items = [all_but_c, good, SimpleNamespace(**{**vars(all_but_c), "role": "student"})]
    said = "The teacher and the student never answer c (of 2 test texts)."
    assert _never_answered(items, gold, ["a", "b", "c"]) == [said]
    several = SimpleNamespace(logits=np.array([[9.0, -9, -9]] * 4), thresholds=(0.5, 0.5, 0.5), role="student")
    gold = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]])
    assert _never_answered([several], gold, ["a", "b", "c"]) == ["The student never answers b (of 1 test texts)."]
