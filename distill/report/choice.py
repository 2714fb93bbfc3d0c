"""The model that a report recommends to ship, or the reasons why none is fit to ship."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.errors import BudgetError
from distill.machine.timing import Speedup, speedup

Row = Mapping[str, Any]  # an entry of report.json's measurements, or of its controls
LEAST_BLOCKS = 3  # of calls: with fewer, the spread of a speed-up is unknown
BASELINE = "the baseline, a linear classifier on words and word pairs"
TO_TRY = (
    "Try more tokens (data.max_tokens), another part of long texts (data.truncation), more epochs, more labeled texts "
    "or a better encoder."
)
ACCURACY = {"single_label": "accuracy", "multi_label": "exact match"}  # what it is called, by task
POINTS = {"accuracy": "points", "f1": "points of F1 per text"}  # of a gain, by its measure
CANDIDATES = ("teacher", "student")  # the roles that can be within a budget
SIGNIFICANT = 0.05  # below this p-value a difference is called a gain or a loss


@dataclass(frozen=True)
class Budget:
    """A user's limits: median latency in ms at the first shape, test accuracy lost against the teacher, and MB on disk.

    If a text may have several labels, accuracy is exact match: the share of texts with exactly the right labels.
    """

    max_latency_ms: float | None = None
    max_drop: float | None = None
    max_size_mb: float | None = None

    def check(self, roles: Iterable[str]) -> None:
        """Raise `BudgetError` if the budget cannot be applied to models of these roles."""
        if self.max_drop is not None and "teacher" not in roles:
            raise BudgetError(
                "--max-drop: counts from the teacher, which is not among these models", hint="name it too"
            )

    def excess(self, row: Row, shape: str, teacher: Row | None) -> float:
        """Return how far a model is over the budget, 0 within it: the larger overrun, as a share of its limit."""
        overruns = [0.0]
        if self.max_latency_ms is not None:
            overruns.append(row["latency_ms"][shape]["p50"] / self.max_latency_ms - 1)
        if self.max_size_mb is not None:
            overruns.append(row["size_bytes"] / 1e6 / self.max_size_mb - 1)
        if self.max_drop is not None and teacher is not None:
            over = round(teacher["accuracy"] - row["accuracy"] - self.max_drop, 9)  # 0.9 - 0.87 is more than 0.03
            overruns.append(over / (self.max_drop or 0.01))  # a limit of 0 has no share: one point over counts as 1
        return max(overruns)


def accuracy_of(row: Row) -> str:
    """Return what the accuracy of a measurement is called: exact match if a text may have several labels."""
    return ACCURACY["single_label" if row["thresholds"] is None else "multi_label"]


def choose(
    measurements: Sequence[Row],
    shape: str | None,
    budget: Budget | None = None,
    *,
    commonest_share: float,
    comparisons: Sequence[Row] = (),
    baselines: Sequence[Row] = (),
) -> dict[str, Any]:
    """Return the model to ship, its accuracy and speed-up against the fastest torch teacher, and the reason in words.

    `measurements` are entries of report.json. Latencies are compared at `shape`. `commonest_share` is what the same
    answer to every test text would score (see metrics.constant_score). `comparisons` are students against their
    controls (see metrics.compare_paired), each with the folders of its `student` and `control`. `baselines` are
    teachers and students against the baseline (see baselines.compare_with_baseline). `reason` begins with those that
    are not above it; its part about the choice is `summary`. If there are baselines, `above_baseline` says whether the
    chosen model is above them.

    Without a budget, the choice is the student that is fastest at `shape`. Its formats passed their proof on
    validation, so test accuracy decides nothing. With a budget, teachers and students are candidates, and their test
    accuracy is compared with the limit. The choice is the fastest one within the budget or, if accuracy is not limited,
    the most accurate one. If none is within it, `model` is None and `nearest` is the one least over it.

    Some models are never chosen, and are never `nearest`:
    - a teacher or student that predicts the same class for every test text, is not above `commonest_share`, or whose
      predictions may be chance;
    - a student that is significantly below its control;
    - every export of these.
    They are listed in `unfit`, each with `role`, `model`, `folder`, `why` and `cure`, and `reason` begins with them.

    The speed-up has its range over blocks of calls beside it (see timing.speedup). Raises `BudgetError` if accuracy is
    limited and no teacher was measured.
    """
    unfit = _unfit(measurements, commonest_share, comparisons)
    fit = [row for row in measurements if is_fit(row, unfit)]
    found = _choose(measurements, fit, shape, budget)
    below = [baseline_sentence(one).removesuffix(".") for one in baselines if not is_above(one)]
    below += [TO_TRY.removesuffix(".")] if below else []
    if baselines:
        found["above_baseline"] = {one["model"]: is_above(one) for one in baselines}.get(found["model"])
    parts = [*below, *(_verdict(one, measurements) for one in unfit), *filter(None, [found["reason"]])]
    # The first in lower case and the last without its full stop: the command line prints it after "error: report: ".
    reason = ". ".join([parts[0][0].lower() + parts[0][1:], *(part[0].upper() + part[1:] for part in parts[1:])])
    return found | {"summary": found["reason"], "reason": reason, "unfit": unfit}


def _choose(
    measurements: Sequence[Row], fit: Sequence[Row], shape: str | None, budget: Budget | None
) -> dict[str, Any]:
    """The choice among the rows that are `fit`; its reason is empty if there are candidates and none is fit."""
    if not shape:
        return {"model": None, "reason": "no shape fits every model"}
    teacher = reference_teacher(measurements, shape)
    roles = CANDIDATES if budget else ("student",)
    if budget:
        budget.check(["teacher"] if teacher else [])
    if not any(row["role"] in roles for row in measurements):
        return {"model": None, "reason": f"no {' and no '.join(roles)} was measured"}
    candidates = [row for row in fit if row["role"] in roles]
    if not candidates:
        return {"model": None, "reason": ""}
    within = [row for row in candidates if not budget or budget.excess(row, shape, teacher) <= 0]
    if budget and not within:
        nearest = min(candidates, key=lambda row: budget.excess(row, shape, teacher))
        found = _described(nearest, shape, teacher, measurements, fit)
        return {
            "model": None,
            "nearest": found,
            "reason": f"no model is within {_limits(budget, shape, accuracy_of(nearest))}; the nearest is "
            + f"the {nearest['role']} as {_facts(nearest, found, teacher)}",
        }
    if budget and budget.max_drop is None:
        best, most = max(within, key=lambda row: (row["accuracy"], -_p50(row, shape))), "most accurate"
    else:
        best, most = min(within, key=lambda row: _p50(row, shape)), "fastest"
    found = _described(best, shape, teacher, measurements, fit)
    if budget:
        subject = f"the {most} model within {_limits(budget, shape, accuracy_of(best))} is the {best['role']} as"
    else:
        subject = f"the fastest student at {shape} among the formats that passed validation is"
    return found | {"reason": f"{subject} {_facts(best, found, teacher)}"}


def decisive_shape(measurements: Sequence[Row], shapes: Sequence[str]) -> str | None:
    """Return the shape at which models are compared: the first one that every model can take."""
    return next((shape for shape in shapes if all(shape in row["latency_ms"] for row in measurements)), None)


def reference_teacher(measurements: Sequence[Row], shape: str) -> Row | None:
    """Return the teacher that others are compared with: in PyTorch, in the fastest precision that costs no accuracy.

    Half precision can change a model's answers, so one whose interval lies below another's is left out.
    """
    teachers = [row for row in measurements if row["role"] == "teacher" and row["format"].startswith("torch")]
    best_bound = max((row["accuracy_ci95"][0] for row in teachers), default=0.0)
    able = [row for row in teachers if row["accuracy_ci95"][1] >= best_bound]
    return min(able, key=lambda row: _p50(row, shape), default=None)


def _unfit(measurements: Sequence[Row], commonest_share: float, comparisons: Sequence[Row]) -> list[dict[str, Any]]:
    """The models that are not fit to ship, and the exports that are not although their model is; see `choose`."""
    below = {found["student"]: found for found in comparisons if found["gain"] < 0 and found["p_value"] < SIGNIFICANT}
    rows = [row for row in measurements if row["role"] in CANDIDATES]
    unfit: dict[str, dict[str, Any]] = {}
    # Models before their exports: a fault of a model is a fault of all its exports, and is reported once.
    for row in sorted(rows, key=lambda row: (row["role"] == "student", row["folder"] != row["model"])):
        if row["model"] in unfit or row["folder"] in unfit:
            continue
        control = below.get(row["model"]) if row["role"] == "student" else None
        whys = [*_faults(row, commonest_share), *([_loss(control)] if control else [])]
        if whys:
            found = {"role": row["role"], "model": row["model"], "folder": row["model"] if control else row["folder"]}
            cure = _cure(
                row,
                control["control"]
                if control and _has_no_fault(control["control"], measurements, commonest_share)
                else None,
                is_export=found["folder"] != row["model"],
                teacher_is_unfit=any(other["role"] == "teacher" for other in unfit.values()),
            )
            unfit[found["folder"]] = found | {"why": " and ".join(whys), "cure": cure}
    return list(unfit.values())


def is_fit(row: Row, unfit: Sequence[Row]) -> bool:
    """Say whether neither a measurement's folder nor its model is among those that `choose` found unfit."""
    return not {row["folder"], row["model"]} & {found["folder"] for found in unfit}


def _has_no_fault(model: str, measurements: Sequence[Row], commonest_share: float) -> bool:
    return not any(_faults(row, commonest_share) for row in measurements if row["model"] == model)


def _faults(row: Row, commonest_share: float) -> list[str]:
    if commonest_share == 1:  # test texts of one class cannot show a fault
        return []
    if row["thresholds"] is None:
        score, same, constant = row["accuracy"], "class", "always predicting the most common class"
        figures = f"{score:.2%} accuracy; the most common class alone gives {commonest_share:.2%}"
    else:
        score, same, constant = row["f1_per_text"], "labels", "predicting the same labels for every text"
        figures = f"{score:.2%} F1 per text; the same labels for every text give up to {commonest_share:.2%}"
    if row["classes_answered"] == 1:
        return [f"it predicts the same {same} for every test text ({figures})"]
    if score <= commonest_share:
        return [f"it is no better than {constant} ({figures})"]
    if row["chance_p_value"] >= SIGNIFICANT:
        return [f"its predictions may be chance ({figures}; {shown_p(row['chance_p_value'])})"]
    return []


def _loss(control: Row) -> str:
    return (
        f"it is {-100 * control['gain']:.1f} {POINTS[control['measure']]} below its control, the same model trained on "
        f"labels alone ({shown_p(control['p_value'])})"
    )


def _cure(row: Row, control: str | None, *, is_export: bool, teacher_is_unfit: bool) -> str:
    """What to do about a model that is not fit; `control` is the folder of a control that is better and fit."""
    if row["role"] == "teacher":
        return "train it longer, at another learning rate or on more texts, then distill again"
    if is_export:
        return "ship another format of it, or export it again"
    take = f"take the control instead (distill export {control}), or " if control else ""
    if teacher_is_unfit:
        return f"{take}fix its teacher first, then distill again"
    if control:
        return f"{take}distill with a lower student.loss.soft_weight or from a better teacher"
    return "distill it longer, at another learning rate or with more layers"


def _verdict(found: Row, measurements: Sequence[Row]) -> str:
    several = len({row["model"] for row in measurements if row["role"] == found["role"]}) > 1
    place = f" in {found['folder']}" if several or found["folder"] != found["model"] else ""
    return f"the {found['role']}{place} is not fit to ship: {found['why']}. What to do: {found['cure']}"


def pareto_front(measurements: Sequence[Row], cost: Callable[[Row], float]) -> list[Row]:
    """Return the models for which no other has both a lower `cost` and a higher accuracy, cheapest first.

    Of two models that are equal in one of the two figures, only the better one in the other is on the front.
    """
    front: list[Row] = []
    for row in sorted(measurements, key=lambda row: (cost(row), -row["accuracy"])):
        if not front or row["accuracy"] > front[-1]["accuracy"]:
            front.append(row)
    return front


def _described(
    row: Row, shape: str, teacher: Row | None, measurements: Sequence[Row], fit: Sequence[Row]
) -> dict[str, Any]:
    found: dict[str, Any] = {name: row[name] for name in ("role", "model", "folder", "format", "device")}
    found["shape"] = shape
    if teacher is not None:
        if teacher in fit and teacher["accuracy"]:  # a share of an unfit teacher's accuracy would say nothing
            found["accuracy_of_teacher"] = row["accuracy"] / teacher["accuracy"]
        found |= _named("speedup_over_teacher", speedup(_raw(teacher, shape), _raw(row, shape)))
        like_teacher = {name: row[name] for name in ("role", "model")} | {n: teacher[n] for n in ("format", "device")}
        same = next((one for one in measurements if all(one[n] == value for n, value in like_teacher.items())), None)
        if row["role"] == "student" and same is not None and same is not row:
            # The rest comes from the runtime and the format, which the teacher could use too.
            found |= _named("speedup_of_the_student_itself", speedup(_raw(teacher, shape), _raw(same, shape)))
    return found


def _named(name: str, found: Speedup) -> dict[str, Any]:
    return {name: found.median, f"{name}_range": [found.low, found.high], "speedup_blocks": found.blocks}


def speedup_in(choice: Row, name: str = "speedup_over_teacher") -> Speedup:
    """Return a speed-up that `choose` wrote into its choice, as a `Speedup`."""
    return Speedup(choice[name], *choice[f"{name}_range"], choice["speedup_blocks"])


def shown_speedup(found: Speedup, compared: str = "") -> str:
    """Return a speed-up with its range, or the range alone if blocks scatter; `compared` follows the number.

    For example "5.1x as fast as the teacher (range 4.8 to 5.6 over 6 blocks)", or "1.1x to 5.6x ... (6 blocks)".
    """
    low, median, high = map(shown_ratio, (found.low, found.median, found.high))
    if found.is_scattered:
        return f"{low}x to {high}x{compared} ({found.blocks} blocks)"
    return f"{median}x{compared} (range {low} to {high} over {found.blocks} blocks)"


def shown_ratio(ratio: float) -> str:
    """Return a ratio with one decimal, or none from 100 on."""
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"


def _facts(row: Row, found: Row, teacher: Row | None) -> str:
    shape = found["shape"]
    parts = [
        f"{row['format']} on {row['device']}: {row['accuracy']:.2%} {accuracy_of(row)}, "
        f"{row['size_bytes'] / 1e6:.1f} MB, {shown_amount(_p50(row, shape))} ms at {shape}, "
        f"{row['texts_per_second']:.0f} texts/s"
    ]
    if teacher is None or row is teacher:
        return parts[0]
    if "accuracy_of_teacher" in found:
        share, of_teacher = found["accuracy_of_teacher"], teacher["accuracy"]
        parts.append(f"It has {share:.1%} of the teacher's {accuracy_of(row)} ({of_teacher:.2%})")
    over = speedup_in(found)
    if over.blocks < LEAST_BLOCKS:
        return ". ".join([*parts, "To get its speed-up, set benchmark.rounds to 15 or more"])
    teacher_in_words = f"the teacher in {teacher['format']} on {teacher['device']}"
    parts.append(f"It is {shown_speedup(over, f' as fast as {teacher_in_words}')}")
    if over.is_scattered:
        parts.append("The timings vary too much to give a single number: measure again on a quiet machine")
    elif "speedup_of_the_student_itself" in found:
        itself = shown_speedup(speedup_in(found, "speedup_of_the_student_itself"))
        parts.append(f"The smaller model alone gives {itself}; the rest comes from the format")
    return ". ".join(parts)


def _limits(budget: Budget, shape: str, accuracy: str) -> str:
    limits = []
    if budget.max_latency_ms is not None:
        limits.append(f"{budget.max_latency_ms:g} ms at {shape}")
    if budget.max_size_mb is not None:
        limits.append(f"{budget.max_size_mb:g} MB")
    if budget.max_drop is not None:
        points = f"{100 * budget.max_drop:g}"
        limits.append(f"{points} point{'' if points == '1' else 's'} of the teacher's {accuracy}")
    return ", ".join([*limits[:-2], " and ".join(limits[-2:])])


def is_above(comparison: Row) -> bool:
    """Say whether a model is significantly above what it is compared with."""
    return comparison["gain"] > 0 and comparison["p_value"] < SIGNIFICANT


def baseline_sentence(comparison: Mapping[str, Any]) -> str:
    """Return how far a teacher or student is above the baseline, or that it is not (then see `TO_TRY`)."""
    points, (low, high) = 100 * comparison["gain"], (100 * bound for bound in comparison["gain_ci95"])
    side = f"{abs(points):.1f} {POINTS[comparison['measure']]} {'above' if points > 0 else 'below'}"
    side = "level with" if f"{abs(points):.1f}" == "0.0" else side
    figures = f"(95 % interval {low:z.1f} to {high:z.1f}), {shown_p(comparison['p_value'])}"
    if is_above(comparison):
        return f"The {comparison['role']} is {side} {BASELINE} {figures}."
    return f"The {comparison['role']} is not better than {BASELINE}: it is {side} it {figures}."


def shown_amount(value: float) -> str:
    """Return milliseconds or megabytes with one decimal, or two if there are so few that one would say nothing."""
    return f"{value:.1f}" if value >= 0.1 else f"{value:.2f}"


def shown_p(value: float) -> str:
    """Return a p-value as it is written in a sentence."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def _raw(row: Row, shape: str) -> Sequence[float]:
    return row["latency_ms"][shape]["raw"]


def _p50(row: Row, shape: str) -> float:
    return row["latency_ms"][shape]["p50"]
