"""The first screen of a report: ship or not in a headline and a sentence, and the facts that decide."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distill.report.choice import (
    LEAST_BLOCKS,
    TO_TRY,
    Row,
    accuracy_of,
    baseline_sentence,
    is_above,
    reference_teacher,
    shown_amount,
    shown_ratio,
    shown_speedup,
    speedup_in,
)
from distill.report.naming import model_names, row_names
from distill.report.page import sentence
from distill.report.sentences import control_sentence

IDENTITY = ("role", "model", "format", "device")


class Tile(NamedTuple):
    """A figure of the first screen: the number, what it is, and what to know beside it."""

    figure: str
    meaning: str
    detail: str


class Fact(NamedTuple):
    """An answer of the first screen, with the section that has more of it."""

    question: str
    answer: str
    section: str | None = None


def chosen_row(report: Mapping[str, Any]) -> Row | None:
    """Return the measurement of the recommended model, None if there is none."""
    choice = report["choice"]
    rows = (row for row in report["measurements"] if choice["model"] and all(row[k] == choice[k] for k in IDENTITY))
    return next(rows, None)


def headline(report: Mapping[str, Any]) -> str:
    """Return whether to ship, and which model."""
    choice, chosen = report["choice"], chosen_row(report)
    if choice.get("above_baseline") is False:
        return "Not yet: not better than the baseline"
    if chosen:
        return f"Ship {_name(chosen, report)}"
    if "nearest" in choice:
        return "Not yet: no model is within the limits"
    if choice["summary"]:
        return "No model can be chosen"
    return f"Do not ship: no {'model' if report['budget'] else 'student'} is fit"


def verdict(report: Mapping[str, Any]) -> str:
    """Return the recommendation in one or two plain sentences."""
    choice, chosen, shape = report["choice"], chosen_row(report), report["choice"].get("shape")
    if chosen is None:
        return sentence(choice["summary"]) if choice["summary"] else _unfit(choice["unfit"][0])
    if choice.get("above_baseline") is False:
        below = [baseline_sentence(one) for one in report["baselines"] if one["model"] == chosen["model"]]
        return " ".join([*below, TO_TRY])
    teacher = reference_teacher(report["measurements"], shape)
    if teacher is None or teacher is chosen:
        ms = shown_amount(chosen["latency_ms"][shape]["p50"])
        return f"It has {chosen['accuracy']:.1%} {accuracy_of(chosen)} and takes {ms} ms at {shape}."
    kept = (
        f"It keeps {choice['accuracy_of_teacher']:.1%} of the teacher's {accuracy_of(chosen)} "
        f"({chosen['accuracy']:.1%} against {teacher['accuracy']:.1%})"
        if "accuracy_of_teacher" in choice
        else f"It has {chosen['accuracy']:.1%} {accuracy_of(chosen)}"
    )
    return f"{kept}{_speed(choice)}."


def alerts(report: Mapping[str, Any]) -> list[str]:
    """Return what stands in the way of shipping and is not in the verdict, each with what to do."""
    choice, chosen = report["choice"], chosen_row(report)
    found = [_unfit(one) for one in choice["unfit"][0 if choice["summary"] else 1 :]]  # the verdict says the first
    below = [
        _about(one["model"], baseline_sentence(one), report)
        for one in report["baselines"]
        if not is_above(one) and (chosen is None or one["model"] != chosen["model"])
    ]
    if below and choice.get("above_baseline") is not False:
        below.append(TO_TRY)
    return found + below


def tiles(report: Mapping[str, Any]) -> list[Tile]:
    """Return the four figures that matter of the recommended model; none if there is no such model."""
    chosen, choice = chosen_row(report), report["choice"]
    if chosen is None:
        return []
    shape = choice["shape"]
    teacher = reference_teacher(report["measurements"], shape)
    teacher = None if teacher is chosen else teacher
    timed, low, high = chosen["latency_ms"][shape], *chosen["accuracy_ci95"]
    accuracy = f"{chosen['accuracy']:.1%}", f"{accuracy_of(chosen)} on test", f"95 % interval {low:.1%} to {high:.1%}"
    if "accuracy_of_teacher" in choice and chosen["role"] != "teacher":
        gain = chosen.get("against_teacher")
        points = "points" if chosen["thresholds"] is None else "points of F1 per text"
        between = (
            f"; {100 * gain['gain']:+z.1f} {points} (95 % interval {100 * gain['gain_ci95'][0]:+z.1f} to "
            f"{100 * gain['gain_ci95'][1]:+z.1f})"
            if gain and gain["gain_ci95"][0] < gain["gain_ci95"][1]  # without any difference, there is no interval
            else ""
        )
        accuracy = (
            f"{choice['accuracy_of_teacher']:.1%}",
            f"of the teacher's {accuracy_of(chosen)} kept",
            f"{chosen['accuracy']:.1%} against {teacher['accuracy']:.1%}{between}",
        )
    speed = f"{shown_amount(timed['p50'])} ms", f"at {shape}", f"99 of 100 calls within {shown_amount(timed['p99'])} ms"
    if teacher and choice.get("speedup_blocks", 0) >= LEAST_BLOCKS:
        over = speedup_in(choice)
        low, median, high = map(shown_ratio, (over.low, over.median, over.high))
        times = f"{low} to {high}x" if over.is_scattered else f"{median}x"
        spread = f"{over.blocks} blocks of calls"
        spread = f"the timings of {spread} vary" if over.is_scattered else f"{low} to {high} in {spread}"
        ours, its = (shown_amount(row["latency_ms"][shape]["p50"]) for row in (chosen, teacher))
        speed = (
            times,
            "as fast as the teacher",
            f"{ours} against {its} ms at {shape}; {spread}",
        )
    of_teacher = f"teacher: {teacher['texts_per_second']:,.0f}" if teacher else "with tokenizing"
    size = f"teacher: {teacher['size_bytes'] / 1e6:,.1f} MB" if teacher else f"loads in {chosen['load_seconds']:.2f} s"
    parameters = _parameters(chosen, report)
    return [
        Tile(*accuracy),
        Tile(*speed),
        Tile(f"{chosen['texts_per_second']:,.0f}", "texts per second, with tokenizing", of_teacher),
        Tile(f"{chosen['size_bytes'] / 1e6:,.1f} MB", "on disk", "; ".join(filter(None, [parameters, size]))),
    ]


def facts(report: Mapping[str, Any]) -> list[Fact]:
    """Return short answers to what a team asks first, about the recommended model; none if there is no such model."""
    chosen = chosen_row(report)
    if chosen is None:
        return []
    name = row_names(report["measurements"])[report["measurements"].index(chosen)]
    made = next((run["origin"] for run in report["runs"] if run["model"] == chosen["model"] and run["origin"]), None)
    found = [Fact("Which model is it?", f"{name} ({made})" if made else name)]
    above = [baseline_sentence(one) for one in report["baselines"] if one["model"] == chosen["model"] and is_above(one)]
    if above:
        found.append(Fact("Is it worth having?", above[0], "worth"))
    elif chosen["model"] not in {one["model"] for one in report["baselines"]}:
        found.append(Fact("Is it worth having?", "Not known: no baseline of the same texts is among these models."))
    if chosen["role"] == "student":
        its = [control_sentence(one) for one in report["controls"] if one["student"] == chosen["model"]]
        unknown = "Not known: this student has no control among these models (student.control: true trains one)."
        found.append(Fact("Did distilling help?", its[0], "worth") if its else Fact("Did distilling help?", unknown))
    found += [Fact("What does it get wrong?", errors, "errors") for errors in _errors(chosen, report)]
    command = f"distill predict {shlex.quote(chosen['folder'])} --file texts.csv"
    if chosen["format"] == "torch-bf16":  # a precision to load a model in, not an export
        command = f"distill.load({chosen['folder']!r}, dtype='bfloat16') in Python"
    found.append(Fact("How to run it?", command))
    return found


def _about(model: str, sentence: str, report: Mapping[str, Any]) -> str:
    """A sentence about a model, with its name before it if its role has several models."""
    name = model_names(report["measurements"]).get(model)
    roles = {row["model"]: row["role"] for row in report["measurements"]}
    return sentence if name in (None, roles.get(model)) else f"{name}: {sentence}"


def _unfit(found: Mapping[str, Any]) -> str:
    return f"The {found['role']} ({found['folder']}) is not fit to ship: {found['why']}. What to do: {found['cure']}."


def _errors(row: Row, report: Mapping[str, Any]) -> list[str]:
    """The most frequent confusion of a model, or its hardest label."""
    names, confusion = report["label_names"], row.get("confusion")
    wrong = f"{1 - row['accuracy']:.1%} of test texts"
    if confusion:
        counts = {
            (gold, answer): count
            for gold, line in enumerate(confusion)
            for answer, count in enumerate(line)
            if gold != answer and count
        }
        if not counts:
            return []
        gold, answer = max(counts, key=lambda pair: counts[pair])
        return [
            f"{wrong}; most often it answers {names[answer]!r} for {names[gold]!r} ({counts[gold, answer]} of "
            f"{sum(confusion[gold])} such texts)."
        ]
    if not row["classes"]:
        return []
    hardest = min((one for one in row["classes"] if one["examples"]), key=lambda one: one["f1"])
    return [f"{wrong}; it does worst on {hardest['class']!r} (F1 {hardest['f1']:.2f})."]


def models_in_words(report: Mapping[str, Any]) -> list[str]:
    """Return a line for each teacher and student: its name, what it is made from, and its parameters."""
    lines, names = [], model_names(report["measurements"])
    for run in report["runs"]:
        if run["role"] not in ("teacher", "student"):
            continue
        parameters = f"{run['parameters'] / 1e6:,.1f} M parameters" if run["parameters"] else None
        details = ", ".join(filter(None, [run["origin"], parameters]))
        name = names.get(run["model"], run["model"])
        name = name if name.startswith(run["role"]) else f"{run['role']} {name}"
        lines.append(f"{name} ({details})" if details else name)
    return lines


def _name(row: Row, report: Mapping[str, Any]) -> str:
    name = row_names(report["measurements"])[report["measurements"].index(row)]
    return f"the {name}" if name.startswith(row["role"]) else name


def _speed(choice: Mapping[str, Any]) -> str:
    if choice.get("speedup_blocks", 0) < LEAST_BLOCKS:
        return ""
    return f" and is {shown_speedup(speedup_in(choice), ' as fast').partition(' (')[0]}"


def _parameters(row: Row, report: Mapping[str, Any]) -> str | None:
    found: Sequence[Any] = [run["parameters"] for run in report["runs"] if run["model"] == row["model"]]
    return f"{found[0] / 1e6:,.1f} M parameters" if found and found[0] else None
