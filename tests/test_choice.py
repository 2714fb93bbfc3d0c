"""The model that is chosen, with and without a budget, and what the report says if none can be."""

import pytest
from test_page import ROWS

from distill.errors import BudgetError
from distill.report.choice import Budget, choose, pareto_front

FIVE_FOLD = [1.0, 1.0, 9.0, 1.0, 30.0]  # a block with two disturbed calls


def chosen(rows, shape="1x128", budget=None, comparisons=(), share=0.5):
    return choose(rows, shape, budget, commonest_share=share, comparisons=comparisons)


@pytest.mark.parametrize(
    ("budget", "role", "format", "why"),
    [
        (Budget(max_latency_ms=25.0), "student", "torch-fp32", "the most accurate model within 25 ms at 1x128 is"),
        (Budget(max_drop=0.03), "student", "onnx-int8", "the fastest model within 3 points of the teacher's accuracy"),
        (Budget(max_drop=0.025), "student", "torch-fp32", "the fastest model within 2.5 points"),
        (Budget(100.0, 0.01), "teacher", "torch-fp32", "the fastest model within 100 ms at 1x128 and 1 point of"),
        (Budget(5.0), "student", "onnx-int8", "within 5 ms"),  # a limit that is just met is met
    ],
)
def test_a_budget_chooses_and_says_why(budget, role, format, why):
    choice = chosen(ROWS, "1x128", budget)
    assert (choice["role"], choice["format"]) == (role, format)
    assert why in choice["reason"]


@pytest.mark.parametrize(
    ("budget", "nearest"),
    [
        (Budget(max_latency_ms=4.0), ("student", "onnx-int8")),
        (Budget(10.0, 0.014), ("student", "torch-fp32")),  # twice as slow; int8 loses twice the points, by more
        (Budget(4.9, 0.029), ("student", "onnx-int8")),
        (Budget(39.0, 0.001), ("teacher", "torch-fp32")),
    ],
)
def test_if_none_is_within_the_budget_the_one_least_over_is_named(budget, nearest):
    choice = chosen(ROWS, "1x128", budget)
    assert choice["model"] is None and "no model is within" in choice["reason"]
    assert (choice["nearest"]["role"], choice["nearest"]["format"]) == nearest


def test_a_control_is_never_chosen():
    assert chosen([ROWS[0], ROWS[3]], "1x128", Budget(25.0))["model"] is None


def test_a_drop_counts_from_a_teacher():
    with pytest.raises(BudgetError, match="counts from the teacher"):
        chosen(ROWS[1:3], "1x128", Budget(max_drop=0.01))


def test_on_the_front_no_other_is_faster_and_more_accurate():
    front = pareto_front(ROWS, lambda row: row["latency_ms"]["1x128"]["p50"])
    assert [(row["role"], row["format"]) for row in front] == [
        ("student", "onnx-int8"), ("student", "torch-fp32"), ("teacher", "torch-fp32"),
    ]  # fmt: skip
    for row in front:
        assert not any(
            other["accuracy"] >= row["accuracy"]
            and other["latency_ms"]["1x128"]["p50"] <= row["latency_ms"]["1x128"]["p50"]
            for other in ROWS
            if other is not row
        )


@pytest.mark.parametrize(
    ("rows", "shape", "reason"),
    [
        (ROWS, None, "no shape fits every model"),
        (ROWS[3:], "1x128", "no teacher and no student was measured"),
        ([{**ROWS[1], "role": "other"}], "1x128", "no teacher and no student was measured"),
    ],
)
def test_without_candidates_nothing_is_chosen(rows, shape, reason):
    assert chosen(rows, shape, Budget(5.0)) == {
        "model": None, "summary": reason, "reason": reason, "unfit": [],
    }  # fmt: skip


def like(role, format=None, **changes):
    """ROWS with `changes` in the rows of one role, or in one of its formats."""
    return [
        row | changes if row["role"] == role and format in (None, row["format"]) else row for row in ROWS
    ]  # fmt: skip


def both(rows, *others):
    """`rows`, each replaced by the row that one of `others` (see `like`) has changed."""
    return [next((other[at] for other in others if other[at] is not ROWS[at]), row) for at, row in enumerate(rows)]


def against_control(gain, p_value):
    found = {"measure": "accuracy", "gain": gain, "p_value": p_value}
    return [{"student": "runs/student", "control": "runs/control", **found}]


CONSTANT = {"classes_answered": 1, "accuracy": 0.5}
WORSE = against_control(-0.13, 0.0004)
ONE_ANSWER = "it predicts the same class for every test text (50.00% accuracy; the most common class alone gives"
NO_BETTER = "it is no better than always predicting the most common class (48.00% accuracy; the most common class"
BELOW = "it is 13.0 points below its control, the same model trained on labels alone (p < 0.001)"
# Each: rows, comparisons, budget; the role and format that are chosen; the model that the answer begins with, its fault
# and the cure.
UNFIT = {
    "a constant student": (
        like("student", **CONSTANT), (), None, None, "student", ONE_ANSWER, "distill it longer, at another learning",
    ),
    "a student below the most common class": (
        like("student", accuracy=0.48), (), None, None, "student", NO_BETTER, "distill it longer, at another learning",
    ),
    "a student at the most common class": (
        like("student", accuracy=0.5), (), None, None, "student", "it is no better than always", "distill it longer",
    ),
    "a student that may answer by chance": (
        like("student", chance_p_value=0.31), (), None, None, "student", "its predictions may be chance (",
        "distill it",
    ),
    "an export that luck put above": (
        like("student", "torch-fp32", accuracy=0.48), (), None, None, "student", NO_BETTER, "distill it longer",
    ),
    "a student below its control": (
        ROWS, WORSE, None, None, "student", BELOW, "take the control instead (distill export runs/control), or distill",
    ),
    "all at once": (
        both(ROWS, like("teacher", accuracy=0.48), like("student", **CONSTANT)), WORSE, None, None, "teacher",
        NO_BETTER, "train it longer, at another learning rate or on more texts, then distill again. The student is not "
        f"fit to ship: {ONE_ANSWER} 50.00%) and {BELOW}. What to do: take the control instead (distill export "
        "runs/control), or fix its teacher first, then distill again",
    ),
    "a control that is no better than the most common class either": (
        both(ROWS, like("control", accuracy=0.49), like("student", accuracy=0.36)), WORSE, None, None, "student",
        "it is no better than always", "distill it longer, at another learning rate",
    ),
    "one export alone": (
        like("student", "onnx-int8", **CONSTANT), (), None, ("student", "torch-fp32"), "student in runs/student/onnx",
        ONE_ANSWER, "ship another format of it, or export it again. The fastest student at 1x128",
    ),
    "a teacher alone": (
        like("teacher", accuracy=0.48), (), None, ("student", "onnx-int8"), "teacher", NO_BETTER, "train it longer",
    ),
    "one student of two": (
        [*like("student", **CONSTANT), ROWS[1] | {"model": "runs/b", "folder": "runs/b"}], (), None,
        ("student", "torch-fp32"), "student in runs/student", ONE_ANSWER, "distill it longer",
    ),
    "a budget that the teacher is within": (
        like("student", **CONSTANT), (), Budget(100.0, 0.5), ("teacher", "torch-fp32"), "student", ONE_ANSWER,
        "distill it longer, at another learning rate or with more layers. The fastest model within 100 ms at 1x128 and",
    ),
    "a budget that only unfit models are within": (
        both(ROWS, like("teacher", accuracy=0.48), like("student", **CONSTANT)), (), Budget(100.0, 0.5), None,
        "teacher", NO_BETTER, "train it longer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_an_unfit_model_is_not_shipped_and_the_answer_begins_with_it(name):
    rows, comparisons, budget, expected, who, why, cure = UNFIT[name]
    choice = chosen(rows, budget=budget, comparisons=comparisons)
    assert ((choice["role"], choice["format"]) if choice["model"] else None) == expected
    assert choice["reason"].startswith(f"the {who}")
    assert f" is not fit to ship: {why}" in choice["reason"] and f". What to do: {cure}" in choice["reason"]
    assert "nearest" not in choice and choice["unfit"]
    for found in choice["unfit"]:
        assert set(found) == {"role", "model", "folder", "why", "cure"}
    if not expected:
        assert "fastest" not in choice["reason"] and "accuracy (" not in choice["reason"]


@pytest.mark.parametrize(
    "comparisons",
    [(), against_control(-0.13, 0.05), against_control(-0.01, 0.6), against_control(0.13, 0.0004)],
)
def test_a_student_that_is_not_significantly_below_its_control_is_shipped(comparisons):
    choice = chosen(ROWS, comparisons=comparisons)
    assert choice["format"] == "onnx-int8" and choice["unfit"] == []
    assert choice["reason"].startswith("the fastest student")


def test_an_unfit_model_is_not_the_nearest_either():
    choice = chosen(like("student", "onnx-int8", **CONSTANT), budget=Budget(4.0))
    assert (choice["nearest"]["role"], choice["nearest"]["format"]) == ("student", "torch-fp32")
    assert choice["reason"].startswith("the student in runs/student/onnx-int8 is not fit to ship")


def test_no_accuracy_is_a_share_of_an_unfit_teachers():
    choice = chosen(like("teacher", accuracy=0.48))
    assert "accuracy_of_teacher" not in choice and "of the teacher's accuracy" not in choice["reason"]
    assert "8.0x as fast as the teacher" in choice["reason"]


def timed(*blocks):
    """Latencies as `time_in_turn` returns them: five calls for each block."""
    return {"1x128": {"p50": blocks[0], "p95": 0, "p99": 0, "raw": [ms * n for ms in blocks for n in FIVE_FOLD]}}


# Each: the teacher's and the student's milliseconds in each block, the speed-up with its range, and the words.
SPEEDS = {
    "a quiet machine": ([40, 42, 38], [10, 10, 10], (4.0, 3.8, 4.2), "4.0x as fast as the teacher in"),
    "both slow down together": ([40, 80, 40], [10, 20, 10], (4.0, 4.0, 4.0), "on cpu (range 4.0 to 4.0 over 3 blocks)"),
    "one block": (
        [40], [10], (4.0, 4.0, 4.0), "accuracy (90.00%). To get its speed-up, set benchmark.rounds to 15 or",
    ),
    "one disturbed block of five": (
        [40, 40, 70, 40, 40], [10] * 5, (4.0, 4.0, 7.0), "torch-fp32 on cpu (range 4.0 to 7.0 over 5 blocks)",
    ),
    "work that comes and goes": (
        [40, 1_000, 1_011, 1_020], [10, 10, 10, 10], (100.55, 4.0, 102.0),
        "4.0x to 102x as fast as the teacher in torch-fp32 on cpu (4 blocks). The timings vary too",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPEEDS)
def test_a_speed_up_has_its_spread_and_no_figure_if_blocks_scatter(name):
    teacher, student, (median, low, high), words = SPEEDS[name]
    rows = [ROWS[0] | {"latency_ms": timed(*teacher)}, ROWS[1] | {"latency_ms": timed(*student)}]
    choice = chosen(rows)
    assert choice["speedup_over_teacher"] == pytest.approx(median)
    assert choice["speedup_over_teacher_range"] == pytest.approx([low, high])
    assert choice["speedup_blocks"] == len(teacher) and words in choice["reason"]
    assert "100." not in choice["reason"]  # the median of blocks that scatter is not quoted


def test_the_speed_up_of_the_smaller_model_has_its_spread_too():
    rows = [row | {"latency_ms": timed(*blocks)} for row, blocks in zip(ROWS, ([40, 42, 44], [20] * 3, [5] * 3))]
    choice = chosen(rows)
    assert "It is 8.4x as fast as the teacher in torch-fp32 on cpu (range 8.0 to 8.8 over 3 blocks)" in choice["reason"]
    assert (
        "The smaller model alone gives 2.1x (range 2.0 to 2.2 over 3 blocks); the rest comes from the format"
        in choice["reason"]
    )
    assert choice["speedup_of_the_student_itself_range"] == pytest.approx([2.0, 2.2])
