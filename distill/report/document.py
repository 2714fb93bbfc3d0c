"""The report: report.json with every figure, and a Markdown file and a page made from it; never imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from distill.machine.timing import SCATTERED
from distill.recipe.schema import Task
from distill.report import plots
from distill.report.choice import (
    ACCURACY,
    LEAST_BLOCKS,
    POINTS,
    SIGNIFICANT,
    Budget,
    accuracy_of,
    baseline_sentence,
    choose,
    is_above,
    pareto_front,
    shown_ms,
    shown_p,
    shown_speedup,
    speedup_in,
)
from distill.report.classes import class_cells, class_table, shown_figure
from distill.report.page import render, sentence, shown
from distill.storage.files import atomic_files, write_json, write_text

REPORT_JSON = "report.json"
REPORT_MD = "report.md"
REPORT_HTML = "report.html"
PICTURE = "accuracy_latency.png"
MOST_DIAGRAMS = 4  # more reliability diagrams side by side would be too small to read

CLASS = {"single_label": "class", "multi_label": "label"}
IDENTITY = ("role", "model", "format", "device")
_CALIBRATION = (
    "ECE is the expected calibration error (15 bins). The Brier score is the squared distance of the probabilities "
    "from the truth: 0 is best and 2 is worst."
)
_TIMES = (
    "Latency is that of the model alone, without tokenizing; p50 is the median, and shapes are batch x tokens. texts/s "
    "is measured end to end, with tokenizing."
)
LEGENDS: dict[Task, str] = {
    "single_label": "Accuracy has a 95 % Wilson interval. With more than two classes, ROC-AUC is the mean of each "
    f"class against the rest. {_CALIBRATION} Agreement is the share of test texts for which the predicted class equals "
    f"that of the PyTorch fp32 model. {_TIMES}",
    "multi_label": "Exact match is the share of texts with exactly the right labels, no more and no less; it has a "
    "95 % Wilson interval. Micro-F1 counts every label of every text alike; macro-F1, mean AP (average precision) and "
    "ROC-AUC are means over the labels. F1 and exact match depend on the labels' thresholds, mean AP and ROC-AUC do "
    f"not. {_CALIBRATION} Both are about the question whether a text has a label. Agreement is the share of test texts "
    f"for which all predicted labels equal those of the PyTorch fp32 model. {_TIMES}",
}

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Findings:
    """What a report is made from.

    `measurements`: an entry for each model in a format on a device (see benchmark.Measurement).
    `environment`: the conditions, with the number of `test_examples` and the `commonest_class_share`
    (for several labels the highest F1 per text of one answer to all texts).
    `task`: whether a text has one label or may have several; the same for all measurements.
    `shapes`: "BATCHxTOKENS"; the first one that every model can take decides the choice.
    `notes`: which rows are missing, and why.
    `comparisons`: students against their controls (see metrics.compare_paired), each with the folder of its `student`.
    `trainings`: learning curves (see training_log).
    `cascade`: an escalation.cascade_curve with its `student` and `teacher`.
    `cascades`: cascades that were made, on the test texts (see cascade.measure_cascade).
    `flipped`: the texts whose label a format changed.
    `sweeps`: searches (see search.sweep).
    `recipe`: the text of the recipe.
    """

    measurements: Rows
    environment: Mapping[str, Any]
    shapes: Sequence[str]
    notes: Sequence[str] = ()
    label_names: Sequence[str] = ()
    task: Task = "single_label"
    comparisons: Rows = ()
    baselines: Rows = ()
    trainings: Rows = ()
    cascade: Mapping[str, Any] | None = None
    cascades: Rows = ()
    flipped: Rows = ()
    sweeps: Rows = ()
    recipe: str = ""


def write_report(folder: Path, findings: Findings, budget: Budget | None = None) -> dict[str, Any]:
    """Write report.json, report.md, report.html and the picture into `folder`; return the contents of report.json.

    Every figure in the other files is also in report.json.
    """
    measurements, shapes = findings.measurements, findings.shapes
    decisive = next((shape for shape in shapes if all(shape in row["latency_ms"] for row in measurements)), None)
    moved = [f"The limits apply to {decisive}, because not every model can take {shapes[0]}."]
    choice = choose(
        measurements,
        decisive,
        budget,
        commonest_share=findings.environment["commonest_class_share"],
        comparisons=findings.comparisons,
        baselines=findings.baselines,
    )
    report = {
        "environment": dict(findings.environment),
        "task": findings.task,
        "label_names": list(findings.label_names),
        "shapes": list(shapes),
        "measurements": list(measurements),
        "choice": choice,
        "controls": [{**found, "sentence": control_sentence(found)} for found in findings.comparisons],
        "baselines": [{**found, "sentence": baseline_sentence(found)} for found in findings.baselines],
        # A model that is not fit to ship is not fit for a cascade either.
        "cascade": dict(findings.cascade) if findings.cascade and not choice["unfit"] else None,
        "cascades": [{**found, "sentence": promise_sentence(found)} for found in findings.cascades],
        "trainings": list(findings.trainings),
        "flipped": list(findings.flipped),
        "sweeps": list(findings.sweeps),
        "notes": [
            *findings.notes,
            *(moved if budget and decisive and decisive != shapes[0] else []),
            *_disturbed(measurements, decisive),
        ],
        "recipe": findings.recipe,
    }
    with atomic_files(folder) as made:
        if decisive:
            front = pareto_front(measurements, decisive)
            plots.save_png(plots.accuracy_against_latency(measurements, front, decisive), made / PICTURE)
        write_text(made / REPORT_MD, _markdown(report, picture=decisive is not None))
        write_text(made / REPORT_HTML, _html(report, decisive))
        write_json(made / REPORT_JSON, report)
    return report


def _disturbed(measurements: Rows, shape: str | None) -> list[str]:
    """A note if latencies scatter as much as they do beside other work, else nothing."""
    ratios = [row["latency_ms"][shape]["p95"] / row["latency_ms"][shape]["p50"] for row in measurements if shape]
    if max(ratios, default=0) < SCATTERED:
        return []
    ratio, worst = max(ratios), measurements[ratios.index(max(ratios))]
    return [
        f"Other work disturbed the latencies (p95 is {ratio:.1f} times p50 for {worst['role']} {worst['format']} at "
        f"{shape}): measure again on a quiet machine before you rely on them."
    ]


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
        f"This takes {shown_ms(enough['latency_ms'])} ms per text on average, not {shown_ms(cascade['teacher_ms'])} "
        f"({pair}). "
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
        f"{found['texts_per_second']:.0f} texts/s. A text that comes alone takes {shown_ms(found['mean_ms'])} ms on "
        f"average, and one of twenty takes more than {shown_ms(found['p95_ms'])} ms."
    )


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
    """Return the sentence of each control in report.json, with the student's folder if there are several."""
    several = len(report["controls"]) > 1
    return [
        f"{found['student']}: {found['sentence']}" if several else found["sentence"] for found in report["controls"]
    ]


def sentences_of(report: Mapping[str, Any]) -> list[str]:
    """Return the sentences after the choice: models above the baseline, then students against their controls.

    A model that is not above the baseline is a part of the choice (see choice.choose).
    """
    above = [found["sentence"] for found in report["baselines"] if is_above(found)]
    return [*above, *control_sentences(report)]


def table(measurements: Rows, shapes: Sequence[str], *, style: str) -> str:
    """Return the measurements as a table in tabulate's `style` ("github", "simple")."""
    return tabulate(
        _cells(measurements, shapes, percentiles=("p50",)), headers="keys", tablefmt=style, disable_numparse=True
    )


def cascade_table(found: Mapping[str, Any], *, style: str) -> str:
    """Return the steps of a cascade, with the share of texts that each answered, in tabulate's `style`."""
    return tabulate(_steps(found), headers="keys", tablefmt=style, disable_numparse=True)


def _steps(found: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "classifier": step["model"],
            "format": step["format"],
            "answers if sure of": "every text" if step["at_least"] is None else f"{step['at_least']:.4f}",
            "share of texts": f"{step['answered']:.1%}",
        }
        for step in found["steps"]
    ]


def sweep_table(found: Mapping[str, Any], *, style: str) -> str:
    """Return the trials of a search (see search.run_search), best first, as a table in tabulate's `style`."""
    return tabulate(_trials(found), headers="keys", tablefmt=style, disable_numparse=True)


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


def shown_value(value: Any) -> str:
    """Return a recipe's value as a person would write it, floats with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _trials(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row of cells for each trial, best first, failed ones last."""
    sign = -1 if found["direction"] == "maximize" else 1
    trials = sorted(found["trials"], key=lambda t: (t["error"] is not None, sign * (t["objective"] or 0), t["number"]))
    figure = f"validation {found['metric']}"
    return [
        {
            "trial": str(trial["number"]),
            **{key.partition(".")[2]: shown_value(value) for key, value in trial["values"].items()},
            figure: "failed" if trial["error"] else f"{trial['objective']:.4f}",
            "epoch": "-" if trial["error"] else f"{trial['epoch']:g}",
            "seconds": f"{trial['seconds']:.1f}",
            "": trial["error"] or ("best" if trial["number"] == found["best"] else ""),
        }
        for trial in trials
    ]


def _cells(measurements: Rows, shapes: Sequence[str], percentiles: Sequence[str]) -> list[dict[str, str]]:
    """A row of cells for each measurement; the column `model` is there only if a role has several models."""
    models = {(row["role"], row["model"]) for row in measurements}
    is_ambiguous = len(models) > len({role for role, _ in models})
    return [
        {
            "role": row["role"],
            **({"model": row["model"]} if is_ambiguous else {}),
            "format": row["format"],
            "device": row["device"],
            accuracy_of(row): f"{row['accuracy']:.4f}",
            "95 % interval": "{:.3f}-{:.3f}".format(*row["accuracy_ci95"]),
            **({} if row["thresholds"] is None else {"micro-F1": f"{row['micro_f1']:.4f}"}),
            "macro-F1": f"{row['macro_f1']:.4f}",
            **({} if row["thresholds"] is None else {"mean AP": shown_figure(row["mean_average_precision"])}),
            "ROC-AUC": shown_figure(row["roc_auc"]),
            "ECE": f"{row['ece']:.3f}",
            "Brier": f"{row['brier']:.3f}",
            "agreement": shown_figure(row["agreement"]),
            **{f"{shape} {' / '.join(percentiles)} ms": _latencies(row, shape, percentiles) for shape in shapes},
            "texts/s": f"{row['texts_per_second']:.1f}",
            "MB": f"{row['size_bytes'] / 1e6:.1f}",
            "load s": f"{row['load_seconds']:.2f}",
        }
        for row in measurements
    ]


def _markdown(report: Mapping[str, Any], *, picture: bool) -> str:
    environment = report["environment"]
    parts = [
        f"# {ACCURACY[report['task']].capitalize()} against latency",
        sentence(report["choice"]["reason"]),
        "\n\n".join(sentences_of(report)),
        f"![{ACCURACY[report['task']]} against latency]({PICTURE})" if picture else "",
        table(report["measurements"], report["shapes"], style="github"),
        *(
            part
            for found in report["cascades"]
            for part in (f"## Cascade: {found['folder']}", found["sentence"], cascade_table(found, style="github"))
        ),
        f"Measured on {environment['test_examples']} test texts. {LEGENDS[report['task']]}",
        "\n".join(f"- {note}" for note in report["notes"]),
        *(
            part
            for row in _detailed(report)
            for part in (
                f"## Per {CLASS[report['task']]}: {row['role']} {row['format']}",
                class_table(row["classes"]),
            )
        ),
        *(
            part
            for found in report["sweeps"]
            for part in (
                f"## Sweep trials: {found['folder']}",
                sweep_sentence(found),
                sweep_table(found, style="github"),
            )
        ),
        "## Conditions",
        "\n".join(f"- {name}: {shown(value)}" for name, value in environment.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _html(report: Mapping[str, Any], decisive: str | None) -> str:
    """The page: one file that loads nothing else. Whatever users wrote is escaped, above all the texts."""
    from markupsafe import Markup

    measurements, choice = report["measurements"], report["choice"]
    chosen = _chosen(report)
    front = pareto_front(measurements, decisive) if decisive else []
    drawn = {
        "accuracy": decisive and plots.accuracy_against_latency(measurements, front, decisive),
        "shapes": len(report["shapes"]) > 1 and plots.latency_by_shape(measurements, report["shapes"]),
        "learning": report["trainings"] and plots.learning_curves(report["trainings"]),
        "cascade": report["cascade"] and plots.cascade(report["cascade"]["curve"]),
    }
    detailed = _detailed(report)
    drawn["reliability"] = detailed and plots.reliability_diagrams(detailed)
    cells = _cells(measurements, report["shapes"], percentiles=("p50", "p95", "p99"))
    columns = list(cells[0]) if cells else []
    rows = [
        {"cells": list(row.values()), "role": measured["role"], "is_chosen": measured in chosen}
        for row, measured in zip(cells, measurements, strict=True)
    ]
    return render(
        "report.html",
        title=f"{_headline(choice)} - distill report",
        report=report,
        headline=_headline(choice),
        sentences=sentences_of(report),
        chosen=chosen[0] if chosen else None,
        speed=shown_speedup(speedup_in(choice), " as fast as the teacher")
        if choice.get("speedup_blocks", 0) >= LEAST_BLOCKS
        else None,
        has_front=len(front) > 1,
        columns=columns,
        accuracy=ACCURACY[report["task"]],
        kind=CLASS[report["task"]],
        kinds="classes" if report["task"] == "single_label" else "labels",
        name_columns=columns.index(ACCURACY[report["task"]]) if columns else 0,
        legend=LEGENDS[report["task"]],
        rows=rows,
        pictures={name: Markup(plots.as_svg(figure, name)) if figure else None for name, figure in drawn.items()},
        cascades=[{**found, "rows": _steps(found)} for found in report["cascades"]],
        cascade_sentence=report["cascade"] and cascade_sentence(report["cascade"]),
        searches=[
            {"folder": found["folder"], "sentence": sweep_sentence(found), "rows": _trials(found)}
            for found in report["sweeps"]
        ],
        confusions=[row for row in detailed if row.get("confusion")],
        by_class=[{**row, "rows": class_cells(row["classes"])} for row in detailed],
    )


def _chosen(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choice = report["choice"]
    return [row for row in report["measurements"] if choice["model"] and all(row[k] == choice[k] for k in IDENTITY)]


def _detailed(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the measurements that are shown in detail: of models as they were trained, and of the chosen one."""
    whole = [row for row in report["measurements"] if row["format"] == "torch-fp32" or row["role"] == "baseline"]
    detailed = [*whole, *(row for row in _chosen(report) if row not in whole)]
    return [row for row in detailed if row.get("reliability")][:MOST_DIAGRAMS]


def _headline(choice: Mapping[str, Any]) -> str:
    if choice.get("above_baseline") is False:
        return "Not better than the baseline"
    if choice["model"]:
        return f"Ship {choice['format']}" + (" of the teacher" if choice["role"] == "teacher" else "")
    if "nearest" in choice:
        return "No model is within the limits"
    return "No model is fit to ship" if choice["unfit"] else "No model can be chosen"


def _latencies(row: Mapping[str, Any], shape: str, percentiles: Sequence[str]) -> str:
    found = row["latency_ms"].get(shape)
    return " / ".join(shown_ms(found[name]) for name in percentiles) if found else "-"
