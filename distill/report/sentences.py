"""What a report says in sentences: about students and controls, cascades and searches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from distill.report.choice import POINTS, SIGNIFICANT, is_above, shown_amount, shown_p
from distill.report.naming import model_names


def control_sentence(comparison: Mapping[str, Any]) -> str:
    """Return what distilling gained or lost against the same student trained on labels alone.

    If points were lost, the interval counts points lost; otherwise it counts points above the control.
    """
    points, (low, high) = 100 * comparison["gain"], (100 * bound for bound in comparison["gain_ci95"])
    p_value, unit = comparison["p_value"], POINTS[comparison["measure"]]
    test_unit = "points of test accuracy" if comparison["measure"] == "accuracy" else f"{unit} on test"
    control = "the same student trained on labels alone"
    if p_value < SIGNIFICANT and points < 0:
        points, low, high = -points, -high, -low
        found = f"Distilling lost {points:.1f} {test_unit} against {control}"
    elif p_value < SIGNIFICANT:
        found = f"Distilling gained {points:.1f} {test_unit} over {control}"
    else:
        side = f"{abs(points):.1f} {unit} {'above' if points > 0 else 'below'}"
        side = "level with" if f"{abs(points):.1f}" == "0.0" else side
        found = f"No gain was found: the distilled student is {side} {control}"
    return f"{found} (95 % interval {low:z.1f} to {high:z.1f}), {shown_p(p_value)}."


def control_sentences(report: Mapping[str, Any]) -> list[str]:
    """Return the sentence of each control in report.json, with the student's name if there are several."""
    several, names = len(report["controls"]) > 1, model_names(report["measurements"])
    return [
        f"{names.get(found['student'], found['student'])}: {found['sentence']}" if several else found["sentence"]
        for found in report["controls"]
    ]


def sentences_of(report: Mapping[str, Any]) -> list[str]:
    """Return the sentences after the choice: models above the baseline, then students against their controls.

    A model that is not above the baseline is a part of the choice (see choice.choose).
    """
    above = [found["sentence"] for found in report["baselines"] if is_above(found)]
    return [*above, *control_sentences(report)]


def cascade_sentence(cascade: Mapping[str, Any]) -> str:
    """Return in words what is won if the student passes the texts that it is least sure of to the teacher."""
    curve = cascade["curve"]
    alone, teacher = curve[0], curve[-1]
    pair = f"{cascade['student']} as student, {cascade['teacher']} as teacher"
    if alone["accuracy"] >= teacher["accuracy"]:
        return f"A cascade gains nothing here ({pair}): the student alone is as accurate as the teacher."
    enough = next(point for point in curve if point["accuracy"] >= teacher["accuracy"])
    if enough["latency_ms"] >= cascade["teacher_ms"]:
        return (
            f"A cascade does not pay here ({pair}): at the teacher's accuracy, the teacher alone is at least as fast."
        )
    # Passing on every text takes longer than the teacher alone, so `below` is a probability here.
    return (
        f"If the student passes on the {enough['escalated']:.0%} of texts that it classifies with a probability below "
        f"{enough['below']:.4g}, accuracy is {enough['accuracy']:.2%} (the teacher alone: {teacher['accuracy']:.2%}). "
        f"This takes {shown_amount(enough['latency_ms'])} ms per text on average, not "
        f"{shown_amount(cascade['teacher_ms'])} ({pair}). "
        "The probability was chosen on these test texts, so the accuracy is slightly optimistic."
    )


def promise_sentence(found: Mapping[str, Any]) -> str:
    """Return how a cascade does on the test texts, against what it promised; a broken promise comes first."""
    promise, (low, high) = found["promise"], found["agreement_ci95"]
    drop = found["last_accuracy"] - found["accuracy"]
    if promise["agree"] is not None:
        promised = f"it promised at least {100 * promise['agree']:.10g} %"
        broken = high < promise["agree"]
    else:
        promised = f"it promised to lose at most {100 * promise['accuracy_drop']:.10g} points"
        broken = drop > promise["accuracy_drop"] + 1.96 * math.sqrt((1 - found["agreement"]) / found["examples"])
    return (
        f"{'The cascade breaks its promise on the test texts: it' if broken else 'The cascade'} agrees with its last "
        f"classifier on {found['agreement']:.2%} of test texts (95 % interval {low:.1%} to {high:.1%}); {promised}. "
        f"Its accuracy is {found['accuracy']:.2%}, that of the last classifier {found['last_accuracy']:.2%}. It reads "
        f"{found['texts_per_second']:.0f} texts/s. A text that comes alone takes {shown_amount(found['mean_ms'])} ms "
        f"on average, and one of twenty takes more than {shown_amount(found['p95_ms'])} ms."
    )


def sweep_sentence(found: Mapping[str, Any]) -> str:
    """Return which trial of a search was best, and how far its figure can be trusted."""
    count, metric = len(found["trials"]), found["metric"]
    if found["best"] is None:
        return f"All trials failed ({count})."
    best = found["trials"][found["best"] - 1]
    tied = sum(trial["objective"] == best["objective"] for trial in found["trials"])
    shared = f", the first of {tied} that reached it" if tied > 1 else ""
    return (
        f"Trial {best['number']} of {count} was best, with a validation {metric} of {best['objective']:.4f}{shared}. "
        f"The trial was chosen on the validation texts, so this score is optimistic. For a fair one, train a "
        f"{found['stage']} with these values and use its test score."
    )
