from math import comb

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from distill.measuring.metrics import (
    accuracy_interval,
    agreement,
    brier_score,
    by_class,
    chance_p_value,
    commonest_share,
    compare_paired,
    faults_of_answers,
    figures,
)
from distill.models.calibration import expected_calibration_error


def random_logits(examples=400, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(examples, classes)).astype(np.float32) * 2, rng.integers(0, classes, examples)


def test_figures_equal_scikit_learn():
    logits, gold = random_logits()
    found = figures(logits, gold)
    probabilities = softmax(logits.astype(float), axis=1)
    assert found["examples"] == 400
    assert found["accuracy"] == pytest.approx(accuracy_score(gold, logits.argmax(1)))
    assert found["log_loss"] == pytest.approx(log_loss(gold, probabilities), rel=1e-5)
    assert found["roc_auc"] == pytest.approx(roc_auc_score(gold, probabilities, multi_class="ovr"), rel=1e-5)


def test_a_perfect_classifier_gets_perfect_figures():
    gold = np.array([0, 1, 1, 0])
    found = figures(np.eye(2, dtype=np.float32)[gold] * 40, gold)
    assert (found["accuracy"], found["macro_f1"], found["roc_auc"]) == (1, 1, 1)
    assert found["ece"] == pytest.approx(0, abs=1e-9)
    assert found["brier"] == pytest.approx(0, abs=1e-9)
    assert found["accuracy_ci95"][1] == 1 and found["accuracy_ci95"][0] < 1  # four examples prove little


def test_macro_f1_counts_a_class_that_is_never_right_as_zero():
    gold = np.array([0, 0, 0, 1])
    assert figures(np.tile([5.0, 0.0], (4, 1)), gold)["macro_f1"] == pytest.approx((6 / 7 + 0) / 2)


def test_roc_auc_is_none_where_a_class_has_no_example():
    assert figures(np.random.default_rng(0).normal(size=(9, 2)), np.zeros(9, int))["roc_auc"] is None


def test_wilson_interval_of_the_textbook():
    assert accuracy_interval(15, 20) == pytest.approx([0.5313, 0.8881], abs=2e-4)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    probabilities = np.tile([0.9, 0.1], (10, 1))
    gold = np.array([0] * 6 + [1] * 4)  # 0.9 sure, 0.6 right
    assert expected_calibration_error(probabilities, gold) == pytest.approx(0.3)


def test_calibration_error_weighs_bins_by_size():
    probabilities = np.array([[0.95, 0.05]] * 3 + [[0.45, 0.55]])
    gold = np.array([0, 0, 0, 0])
    assert expected_calibration_error(probabilities, gold) == pytest.approx((3 * 0.05 + 0.55) / 4)


def test_brier_score_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]])
    assert brier_score(probabilities, np.array([0, 2])) == pytest.approx((0.3**2 + 0.2**2 + 0.1**2 + 2 * 0.25 + 1) / 2)


def test_brier_score_of_two_classes_is_twice_that_of_one():
    """The other convention, of scikit-learn and of weather forecasts, counts only the second class."""
    probabilities = softmax(random_logits(classes=2)[0].astype(float), axis=1)
    _, gold = random_logits(classes=2)
    assert brier_score(probabilities, gold) == pytest.approx(2 * np.mean((probabilities[:, 1] - gold) ** 2))


def test_sure_and_wrong_every_time_is_the_worst_brier_score():
    assert figures(np.tile([40.0, 0.0], (3, 1)), np.ones(3, int))["brier"] == pytest.approx(2)


def pairs(both, only_first, only_second, neither):
    """Who was right on each example, as two arrays."""
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return np.array(first), np.array(second)


def test_mcnemar_p_value_is_the_binomial_sum():
    found = compare_paired(*pairs(80, 9, 2, 9))
    assert (found["only_first_correct"], found["only_second_correct"], found["examples"]) == (9, 2, 100)
    assert found["gain"] == pytest.approx(0.07)
    assert found["p_value"] == pytest.approx(2 * sum(comb(11, k) for k in range(3)) / 2**11)


def test_swapping_the_two_negates_the_gain_and_keeps_the_p_value():
    first, second = pairs(400, 40, 25, 35)
    one, other = compare_paired(first, second), compare_paired(second, first)
    assert other["gain"] == -one["gain"]
    assert other["p_value"] == one["p_value"]
    assert other["gain_ci95"] == pytest.approx([-one["gain_ci95"][1], -one["gain_ci95"][0]])


def test_the_interval_is_about_as_wide_as_the_normal_one_and_always_the_same():
    first, second = pairs(400, 40, 25, 35)
    found = compare_paired(first, second)
    low, high = found["gain_ci95"]
    assert low < found["gain"] < high
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(first.astype(int) - second) / np.sqrt(500), rel=0.05)
    assert compare_paired(first, second) == found
    assert compare_paired(first, second, seed=1)["gain_ci95"] == pytest.approx([low, high], abs=0.003)


def test_the_pairing_counts():
    """Two classifiers of the same accuracies, independent or nearly the same: only the second pair differs for sure."""
    independent, alike = compare_paired(*pairs(380, 100, 80, 0)), compare_paired(*pairs(450, 22, 2, 86))
    assert independent["gain"] == pytest.approx(alike["gain"])
    assert independent["p_value"] > 0.1 > 0.001 > alike["p_value"]
    assert independent["gain_ci95"][0] < 0 < alike["gain_ci95"][0]


@pytest.mark.parametrize("examples", [1, 30])
def test_where_both_always_agree_nothing_was_gained(examples):
    found = compare_paired(*pairs(examples, 0, 0, 0))
    assert found["p_value"] == 1.0
    assert (found["gain"], found["gain_ci95"]) == (0, [0, 0])


def test_agreement_looks_at_labels_not_at_logits():
    logits, _ = random_logits()
    assert agreement(logits, logits * 3 + 1) == 1
    assert agreement(logits, -logits) < 0.5


# Of each: gold labels, answers, and what is said of them.
FAULTS = {
    "a good classifier": ([0, 1, 2] * 5, [0, 1, 2] * 4 + [0, 1, 1], []),
    "one answer": ([0, 1, 2, 0, 1, 2], [1] * 6, ["answers b for every one of 6 test texts"]),
    "one answer, the commonest": ([0] * 5 + [1], [0] * 6, ["answers a for every one of 6 test texts"]),
    "no better than the commonest class": (
        [0, 0, 0, 1, 2, 2], [0, 0, 1, 1, 2, 1][::-1],
        ["is no better than always answering the commonest class: test accuracy 0.1667, against 0.5000 for a"],
    ),
    "as good as the commonest class": (
        [0, 0, 1, 2], [0, 1, 1, 0],
        [
            "is no better than always answering the commonest class: test accuracy 0.5000, against 0.5000 for a",
            "never answers c (of 1 test texts)",
        ],
    ),
    "a class never answered": ([0, 1, 2, 0, 1] * 3, [0, 1, 1, 0, 1] * 3, ["never answers c (of 3 test texts)"]),
    "a class without test texts": ([0, 1] * 4, [0, 1] * 4, []),
    "too few to tell": (
        [0, 1, 0, 1], [0, 1, 0, 1], ["may answer by chance: not significant with 4 test texts (p = 0.33)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_with_the_answers_as_a_whole_is_said(name):
    gold, answers, expected = FAULTS[name]
    assert faults_of_answers(np.eye(3)[answers], np.array(gold), ["a", "b", "c"]) == expected


def test_of_many_classes_that_are_never_answered_the_commonest_are_named():
    gold = np.repeat(np.arange(10), np.arange(11, 1, -1))
    logits = np.eye(10)[np.minimum(gold, 1)]
    said = faults_of_answers(logits, gold, [f"class {index}" for index in range(10)])
    assert said == [
        "never answers class 2 (of 9 test texts), class 3 (of 8 test texts), class 4 (of 7 test texts), class 5 (of 6 "
        "test texts), class 6 (of 5 test texts) and 3 more classes"
    ]


def test_what_chance_answers_is_told_from_what_learned_a_rare_class():
    rng = np.random.default_rng(0)
    gold = (rng.random(1_000) < 0.02).astype(int)  # the commonest class alone has 98 %
    learned = np.where(rng.random(1_000) < 0.01, 1 - gold, gold)
    assert chance_p_value(learned, gold) < 1e-6
    balanced = rng.integers(0, 3, 900)
    values = [chance_p_value(rng.permutation(balanced), balanced) for _ in range(200)]
    assert 0.01 <= np.mean(np.array(values) < 0.05) <= 0.1  # as a p-value is where nothing was learned
    assert chance_p_value(balanced * 0, balanced) == chance_p_value(balanced, balanced * 0) == 1.0


def test_the_commonest_class_has_its_share():
    assert commonest_share(np.array([0, 1, 1, 2])) == 0.5 and commonest_share(np.array([3])) == 1.0


def test_the_figures_of_a_class_are_those_of_it_against_the_rest():
    rng = np.random.default_rng(0)
    gold, names = np.repeat([0, 1, 2], 40), ["a", "b", "never"]
    logits = rng.normal(size=(120, 3)) + np.eye(3)[gold]
    logits[:, 2] -= 100  # it is never answered
    found = by_class(logits, gold, names)
    assert [one["class"] for one in found] == names and [one["examples"] for one in found] == [40, 40, 40]
    for index, one in enumerate(found):
        is_class, is_answer = gold == index, logits.argmax(axis=1) == index
        both = (is_class & is_answer).sum()
        assert one["precision"] == pytest.approx(both / max(1, is_answer.sum()))
        assert one["recall"] == pytest.approx(both / 40)
        assert one["f1"] == pytest.approx(2 * both / (is_answer.sum() + 40))
        assert one["roc_auc"] == pytest.approx(roc_auc_score(is_class, softmax(logits, axis=1)[:, index]))
    assert by_class(logits[:40], gold[:40], names)[1]["roc_auc"] is None
