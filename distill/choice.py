"""Which of the measured models to ship, and why: within what a user can afford, or simply the fastest student."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.errors import BudgetError

Row = Mapping[str, Any]  # an entry of report.json's measurements


@dataclass(frozen=True)
class Budget:
    """What a user can afford: median latency in ms at the first shape, and test accuracy lost against the teacher."""

    max_latency_ms: float | None = None
    max_drop: float | None = None

    def check(self, roles: Iterable[str]) -> None:
        """Raise `BudgetError` where models of these roles do not tell what is within it."""
        if self.max_drop is not None and "teacher" not in roles:
            raise BudgetError(
                "--max-drop: counts from the teacher, which is not among these models", hint="name it too"
            )

    def excess(self, row: Row, shape: str, teacher: Row | None) -> float:
        """Return how far a model is over the budget, 0 within it: the larger overrun, as a share of its limit."""
        overruns = [0.0]
        if self.max_latency_ms is not None:
            overruns.append(row["latency_ms"][shape]["p50"] / self.max_latency_ms - 1)
        if self.max_drop is not None and teacher is not None:
            over = round(teacher["accuracy"] - row["accuracy"] - self.max_drop, 9)  # 0.9 - 0.87 is more than 0.03
            overruns.append(over / (self.max_drop or 0.01))  # a limit of 0 has no share, so a point is as bad as one
        return max(overruns)


def choose(measurements: Sequence[Row], shape: str | None, budget: Budget | None = None) -> dict[str, Any]:
    """Return the model to ship, how it stands against the teacher's fastest torch, and the reason in words.

    Without a budget that is the student that is fastest at `shape`: its formats passed their proof on validation, so
    test accuracy chooses nothing. With one, test accuracy is held against the limit: of the teachers and students
    within it the fastest, or, where accuracy is not limited, the most accurate. Where none is, `model` is None and
    `nearest` the one least over it. Raises `BudgetError` where accuracy is limited and no teacher was measured.
    """
    torch_teachers = [row for row in measurements if row["role"] == "teacher" and row["format"].startswith("torch")]
    students = [row for row in measurements if row["role"] == "student"]
    if not shape:
        return {"model": None, "reason": "no shape fits every model"}
    teacher = min(torch_teachers, key=lambda row: _p50(row, shape), default=None)
    if budget is None:
        if not students:
            return {"model": None, "reason": "no student was measured"}
        best = min(students, key=lambda row: _p50(row, shape))
        reason = f"the fastest student at {shape} among the formats that passed their proof"
        found = _described(best, shape, teacher, measurements)
        return found | {"reason": f"{reason}: {_facts(best, found, teacher)}"}
    budget.check("teacher" for _ in torch_teachers)
    affordable = [row for row in measurements if row["role"] in ("teacher", "student")]
    if not affordable:
        return {"model": None, "reason": "no teacher and no student was measured"}
    within = [row for row in affordable if budget.excess(row, shape, teacher) <= 0]
    if not within:
        nearest = min(affordable, key=lambda row: budget.excess(row, shape, teacher))
        found = _described(nearest, shape, teacher, measurements)
        return {
            "model": None,
            "nearest": found,
            "reason": f"no model is within {_limits(budget, shape)}; the nearest is "
            + f"the {nearest['role']} as {_facts(nearest, found, teacher)}",
        }
    if budget.max_drop is not None:
        best, most = min(within, key=lambda row: _p50(row, shape)), "fastest"
    else:
        best, most = max(within, key=lambda row: (row["accuracy"], -_p50(row, shape))), "most accurate"
    reason = f"the {most} model within {_limits(budget, shape)} is the {best['role']}"
    found = _described(best, shape, teacher, measurements)
    return found | {"reason": f"{reason} as {_facts(best, found, teacher)}"}


def pareto_front(measurements: Sequence[Row], shape: str) -> list[Row]:
    """Return the models that no other beats in both median latency at `shape` and accuracy, fastest first."""
    front: list[Row] = []
    for row in sorted(measurements, key=lambda row: (_p50(row, shape), -row["accuracy"])):
        if not front or row["accuracy"] > front[-1]["accuracy"]:
            front.append(row)
    return front


def _described(row: Row, shape: str, teacher: Row | None, measurements: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {name: row[name] for name in ("role", "model", "folder", "format", "device")}
    found["shape"] = shape
    if teacher is not None:
        found["accuracy_of_teacher"] = row["accuracy"] / teacher["accuracy"]
        found["speedup_over_teacher"] = _p50(teacher, shape) / _p50(row, shape)
        like_teacher = {name: row[name] for name in ("role", "model")} | {n: teacher[n] for n in ("format", "device")}
        same = next((one for one in measurements if all(one[n] == value for n, value in like_teacher.items())), None)
        if row["role"] == "student" and same is not None and same is not row:
            # The rest is the runtime's and the format's, which the teacher could have had too.
            found["speedup_of_the_student_itself"] = _p50(teacher, shape) / _p50(same, shape)
    return found


def _facts(row: Row, found: Row, teacher: Row | None) -> str:
    shape = found["shape"]
    text = f"{row['format']} on {row['device']}: {row['accuracy']:.2%} accuracy, {row['size_bytes'] / 1e6:.1f} MB, "
    text += f"{_p50(row, shape):.1f} ms at {shape}, {row['texts_per_second']:.0f} texts/s"
    if teacher is not None and row is not teacher:
        text += (
            f"; {found['accuracy_of_teacher']:.1%} of the teacher's accuracy ({teacher['accuracy']:.2%}) and "
            f"{found['speedup_over_teacher']:.1f} x its speed ({teacher['format']} on {teacher['device']})"
        )
        if "speedup_of_the_student_itself" in found:
            text += (
                f", of which {found['speedup_of_the_student_itself']:.1f} x is the smaller model, the rest its export"
            )
    return text


def _limits(budget: Budget, shape: str) -> str:
    limits = []
    if budget.max_latency_ms is not None:
        limits.append(f"{budget.max_latency_ms:g} ms at {shape}")
    if budget.max_drop is not None:
        limits.append(f"{100 * budget.max_drop:g} points of the teacher's accuracy")
    return " and ".join(limits)


def _p50(row: Row, shape: str) -> float:
    return row["latency_ms"][shape]["p50"]
