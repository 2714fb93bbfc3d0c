"""Which test texts models get wrong, the surest mistakes first."""

from types import SimpleNamespace

import numpy as np
import pytest

from distill.measuring.mistakes import SHOWN, mistakes_of
from distill.report.page import LONGEST

NAMES = ("negative", "positive")


def model(name, role, logits, thresholds=None):
    return SimpleNamespace(model=name, role=role, logits=np.asarray(logits, np.float32), thresholds=thresholds)


def found_in(*models, gold, texts=None):
    gold = np.asarray(gold)
    texts = texts or [f"text {index}" for index in range(len(gold))]
    return mistakes_of(models, [f"test/{index}" for index in range(len(gold))], texts, gold, NAMES)


@pytest.mark.parametrize("seed", range(3))
def test_counts_and_order_are_those_of_the_answers(seed):
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 2, 60)
    student, teacher = rng.normal(size=(60, 2)), rng.normal(size=(60, 2)) + 2 * np.eye(2)[gold]
    # The second measurement of a model is an export: it is left out.
    models = [model("t", "teacher", teacher), model("s", "student", student), model("s", "student", -student)]
    (found,) = found_in(*models, gold=gold)
    wrong = {"s": student.argmax(1) != gold, "t": teacher.argmax(1) != gold}
    assert (found["model"], found["teacher"], found["examples"]) == ("s", "t", 60)
    assert (found["wrong"], found["teacher_wrong"]) == (wrong["s"].sum(), wrong["t"].sum())
    assert found["both_wrong"] == (wrong["s"] & wrong["t"]).sum()
    for name, texts in found["surest"].items():
        assert len(texts) == min(SHOWN, wrong[name].sum())
        places = [int(text["example_id"].removeprefix("test/")) for text in texts]
        assert all(wrong[name][place] for place in places)
        sure = [text["answers"][name]["probability"] for text in texts]
        assert sure == sorted(sure, reverse=True) and all(0.5 <= value <= 1 for value in sure)
        assert all(text["gold"] != text["answers"][name]["answer"] for text in texts)


def test_a_teacher_alone_has_its_own_mistakes_and_a_model_without_any_shows_no_text():
    (found,) = found_in(model("t", "teacher", [[1, 0], [1, 0]]), gold=[0, 0])
    assert found["teacher"] is None and found["wrong"] == 0 and found["surest"] == {"t": []}


def test_a_text_of_several_labels_is_wrong_if_any_label_is_and_a_long_one_is_cut():
    student = model("s", "student", [[9.0, -9.0], [9.0, 9.0], [-9.0, -9.0]], (0.5, 0.5))
    (found,) = found_in(student, gold=[[1, 0], [1, 0], [0, 0]], texts=["a", "b" * 5_000, "c"])
    (text,) = found["surest"]["s"]
    assert found["wrong"] == 1 and text["gold"] == "negative"
    assert text["answers"]["s"] == {"answer": "negative, positive", "probability": None}
    assert text["text"] == "b" * LONGEST + " ..."


def test_a_probability_just_above_a_low_threshold_is_no_sure_mistake():
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    logits = [[logit(0.11), -9.0], [logit(0.8), -9.0], [logit(0.02), -9.0]]
    (found,) = found_in(model("s", "student", logits, (0.1, 0.5)), gold=[[0, 0], [0, 0], [1, 0]])
    assert [text["example_id"] for text in found["surest"]["s"]] == ["test/2", "test/1", "test/0"]
