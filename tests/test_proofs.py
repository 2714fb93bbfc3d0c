import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.export.proofs import Bounds, flips, prove

NAMES = ["bad", "fair", "good"]
STRICT = Bounds(max_accuracy_drop=0.0, min_agreement=1.0)
GOLD = np.array([0, 1, 2, 0, 1, 2])
REFERENCE = 4 * np.eye(3, dtype=np.float32)[GOLD]


def proof(logits, bounds=STRICT, **kwargs):
    return prove("onnx-int8", logits, REFERENCE, GOLD, NAMES, bounds, size_bytes=1, device="cpu", **kwargs)


def test_the_model_itself_passes_the_strictest_bounds():
    found = proof(REFERENCE)
    assert found.passed and found.reason is None
    assert (found.accuracy, found.accuracy_drop, found.agreement, found.flipped) == (1, 0, 1, 0)
    assert (found.max_logit_diff, found.mean_logit_diff) == (0, 0)
    assert list(flips(list("abcdef"), REFERENCE, REFERENCE, GOLD, NAMES)) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_figures_follow_from_the_labels(labels):
    logits = 4 * np.eye(3, dtype=np.float32)[labels]
    found = proof(logits, Bounds(1.0, 0.0))
    same = np.array(labels) == GOLD
    assert found.agreement == found.accuracy == pytest.approx(same.mean())
    assert found.flipped == 6 - same.sum()
    for index, name in enumerate(NAMES):
        share = same[index == GOLD].mean()
        assert found.per_class[name] == {"examples": 2, "accuracy": share, "agreement": share}
    assert found.passed == (set(labels) == {0, 1, 2} and all(same[index == GOLD].any() for index in range(3)))
    assert proof(logits).passed == bool(same.all())
    rows = list(flips(list("abcdef"), logits, REFERENCE, GOLD, NAMES))
    assert {row["text"] for row in rows} == {text for text, kept in zip("abcdef", same, strict=True) if not kept}
    assert all(row["model"] == row["gold"] != row["format"] for row in rows)


def test_each_bound_is_named_with_its_value():
    logits = REFERENCE.copy()
    logits[0] = [0, 4, 0]
    assert proof(logits, Bounds(0.17, 0.83)).passed
    assert proof(logits, Bounds(0.16, 0.83)).reason == (
        "validation accuracy falls by 0.1667, more than export.max_accuracy_drop 0.16"
    )
    assert proof(logits, Bounds(0.17, 0.84)).reason == (
        "agrees with the model on 0.8333 of the validation texts, less than export.min_agreement 0.84"
    )
    assert proof(np.roll(REFERENCE, 1, axis=1) * 0 + [1, 0, 0], Bounds(1, 0)).reason == (
        "answers bad for every one of 6 texts"
    )
    assert proof(REFERENCE, unfused="attention is one node in 0 of 4 places").reason == (
        "attention is one node in 0 of 4 places"
    )


def test_one_answer_is_no_fault_where_the_model_gives_one_too():
    one = np.tile(np.array([3, 1, 0], np.float32), (6, 1))
    assert prove("onnx-int8", one, one, GOLD, NAMES, STRICT, size_bytes=1, device="cpu").passed


def test_logits_that_are_not_finite_have_no_figures():
    logits = REFERENCE.copy()
    logits[2, 1] = np.nan
    found = proof(logits, Bounds(1, 0))
    assert not found.passed and found.accuracy is None
    assert found.reason == "logits of 1 of 6 texts are not finite"
    assert [row["text"] for row in flips(list("abcdef"), logits, REFERENCE, GOLD, NAMES)] == []


def test_the_surest_change_comes_first():
    logits = REFERENCE.copy()
    logits[1], logits[4] = [0.1, 0, 0], [9, 0, 0]
    assert [row["text"] for row in flips(list("abcdef"), logits, REFERENCE, GOLD, NAMES)] == ["e", "b"]


# Of each: the gold labels, what the model and then the format answers, and why it fails, if it does.
LOST = {
    "a rare class": (
        [0] * 8 + [2], [0] * 8 + [2], [0] * 7 + [1, 1],
        "gets 0 of 1 texts of class good right, the model 1",
    ),
    "one of the two that the model had": (
        [0, 0, 2, 2, 2], [0, 0, 2, 2, 1], [0, 0, 1, 1, 1],
        "gets 0 of 3 texts of class good right, the model 2",
    ),
    "two classes": (
        [0, 0, 1, 2], [0, 0, 1, 2], [0, 0, 2, 1],
        "gets 0 of 1 texts of class fair right, the model 1; "
        "gets 0 of 1 texts of class good right, the model 1",
    ),
    "a class that the model had none of either": ([0, 1, 2, 2], [0, 1, 1, 0], [0, 1, 0, 1], None),
    "a class without texts": ([0, 0, 1, 1], [0, 0, 1, 1], [0, 2, 1, 1], None),
    "a class of which one text is left": ([0, 2, 2, 2], [0, 2, 2, 2], [0, 1, 1, 2], None),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_a_class_that_a_format_loses_whole_fails_it_within_any_bounds(name):
    gold, model, answers, reason = LOST[name]
    logits, reference = (4 * np.eye(3, dtype=np.float32)[labels] for labels in (answers, model))
    found = prove("int8", logits, reference, np.array(gold), NAMES, Bounds(1.0, 0.0), size_bytes=1, device="cpu")
    assert (found.passed, found.reason) == (reason is None, reason)
