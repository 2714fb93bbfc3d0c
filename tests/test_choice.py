"""Which model is chosen within a budget, and what is said where none is."""

import pytest
from test_page import ROWS

from distill.choice import Budget, choose, pareto_front
from distill.errors import BudgetError


@pytest.mark.parametrize(
    ("budget", "role", "format", "why"),
    [
        (Budget(max_latency_ms=25.0), "student", "torch-fp32", "the most accurate model within 25 ms at 1x128 is"),
        (Budget(max_drop=0.03), "student", "onnx-int8", "the fastest model within 3 points of the teacher's accuracy"),
        (Budget(max_drop=0.025), "student", "torch-fp32", "the fastest model within 2.5 points"),
        (Budget(100.0, 0.01), "teacher", "torch-fp32", "the fastest model within 100 ms at 1x128 and 1 points"),
        (Budget(5.0), "student", "onnx-int8", "within 5 ms"),  # a limit that is just met is met
    ],
)
def test_a_budget_chooses_and_says_why(budget, role, format, why):
    choice = choose(ROWS, "1x128", budget)
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
def test_where_none_fits_the_one_least_over_is_named(budget, nearest):
    choice = choose(ROWS, "1x128", budget)
    assert choice["model"] is None and "no model is within" in choice["reason"]
    assert (choice["nearest"]["role"], choice["nearest"]["format"]) == nearest


def test_a_control_is_never_chosen():
    assert choose([ROWS[0], ROWS[3]], "1x128", Budget(25.0))["model"] is None


def test_a_drop_counts_from_a_teacher():
    with pytest.raises(BudgetError, match="counts from the teacher"):
        choose(ROWS[1:3], "1x128", Budget(max_drop=0.01))


def test_the_front_is_what_none_beats_in_both():
    front = pareto_front(ROWS, "1x128")
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
def test_where_nothing_can_be_told_nothing_is_chosen(rows, shape, reason):
    assert choose(rows, shape, Budget(5.0)) == {"model": None, "reason": reason}
