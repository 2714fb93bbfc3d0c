"""What passing a student's least sure texts to its teacher does to accuracy and time."""

import numpy as np
import pytest
from scipy.special import softmax

from distill.measuring.escalation import cascade_curve
from distill.report.sentences import cascade_sentence

RNG = np.random.default_rng(0)
GOLD = RNG.integers(0, 3, 400)


def logits(skill):
    return RNG.normal(size=(len(GOLD), 3)) + skill * np.eye(3)[GOLD]


def curve(student, teacher):
    return cascade_curve(student, teacher, GOLD, student_ms=5.0, teacher_ms=40.0)


def test_its_ends_are_the_student_alone_and_the_teacher_on_every_text():
    student, teacher = logits(1.0), logits(3.0)
    found = curve(student, teacher)
    assert found[0]["accuracy"] == (student.argmax(1) == GOLD).mean() and found[0]["latency_ms"] == 5.0
    assert found[-1]["accuracy"] == (teacher.argmax(1) == GOLD).mean() and found[-1]["latency_ms"] == 45.0
    assert [point["latency_ms"] for point in found] == sorted(point["latency_ms"] for point in found)


def test_each_point_is_what_the_threshold_it_names_would_do():
    student, teacher = logits(1.0), logits(3.0)
    confidence = softmax(student, axis=1).max(axis=1)
    for point in curve(student, teacher)[:-1]:
        passed = confidence < point["below"]
        assert passed.mean() == pytest.approx(point["escalated"])
        answers = np.where(passed, teacher.argmax(axis=1), student.argmax(axis=1))
        assert (answers == GOLD).mean() == point["accuracy"]


def test_texts_of_equal_confidence_go_together():
    gold, sure = np.zeros(8, int), np.tile([5.0, 0.0], (8, 1))
    found = cascade_curve(sure, sure, gold, student_ms=1.0, teacher_ms=1.0)
    assert [(point["escalated"], point["below"] is None) for point in found] == [(0.0, False), (1.0, True)]


def test_a_teacher_that_answers_alike_changes_no_accuracy():
    student = logits(1.0)
    assert {point["accuracy"] for point in curve(student, student * 5)} == {(student.argmax(1) == GOLD).mean()}


def sentence(points, teacher_ms=40.0):
    names = ("below", "escalated", "accuracy", "latency_ms")
    made = [dict(zip(names, point, strict=True)) for point in points]
    return cascade_sentence({"student": "s", "teacher": "t", "teacher_ms": teacher_ms, "curve": made})


def test_the_sentence_says_what_is_won_or_that_nothing_is():
    gains = [(0.5, 0.0, 0.80, 5.0), (0.7, 0.25, 0.90, 15.0), (1.0, 1.0, 0.90, 45.0)]
    assert "passes on the 25% of texts that it classifies with a probability below 0.7" in sentence(gains)
    assert "15.0 ms per text on average, not 40.0" in sentence(gains)
    assert "A cascade gains nothing here" in sentence([(0.5, 0.0, 0.9, 5.0), (1.0, 1.0, 0.9, 45.0)])
    assert "A cascade does not pay here" in sentence(
        [(0.5, 0.0, 0.8, 5.0), (0.9, 0.9, 0.85, 41.0), (1.0, 1.0, 0.9, 45.0)]
    )
