import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from distill.metrics import accuracy_interval, agreement, expected_calibration_error, figures


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


def test_agreement_looks_at_labels_not_at_logits():
    logits, _ = random_logits()
    assert agreement(logits, logits * 3 + 1) == 1
    assert agreement(logits, -logits) < 0.5
