"""The report's page: one file that loads nothing else; whatever users wrote is escaped, above all the texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill.report import plots
from distill.report.choice import (
    ACCURACY,
    CANDIDATES,
    Row,
    decisive_shape,
    is_fit,
    pareto_front,
    reference_teacher,
    shown_amount,
)
from distill.report.classes import class_cells
from distill.report.naming import model_colours, model_names, row_names
from distill.report.page import inlined_script, render
from distill.report.sentences import cascade_sentence, sweep_sentence
from distill.report.tables import CLASS, LEGENDS, measurement_cells, step_cells, trial_cells
from distill.report.verdict import alerts, chosen_row, facts, headline, models_in_words, tiles, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_DIAGRAMS = 4  # more reliability diagrams would be too small to read
MANY_CLASSES = 20
RATE = "texts per second"
# Columns of the table of all models that are shown only if the reader wants them, by what they are about.
GROUPS = {
    "quality": ("micro-F1", "macro-F1", "mean AP", "ROC-AUC", "ECE", "Brier", "agreement"),
    "latency": ("p50 / p95 / p99",),
    "training": ("load s", "M parameters", "training min"),
}

Rows = Sequence[Mapping[str, Any]]


def dashboard(report: Mapping[str, Any], decisive: str | None) -> str:
    """Return the page of a report; `decisive` is the shape at which the models are compared."""
    measurements, chosen = report["measurements"], chosen_row(report)
    detailed = detailed_rows(report)
    names, colours = row_names(measurements), model_colours(measurements)
    their_names = [next(name for name, one in zip(names, measurements, strict=True) if one is row) for row in detailed]
    cells = _cells(report, decisive)
    columns = list(cells[0]) if cells else []
    fronts = {
        name: _drawn(lambda width, name=name: front_picture(report, name, width=width), f"front-{index}")
        for index, name in enumerate([decisive, *(s for s in report["shapes"] if s != decisive), RATE])
        if name
    }
    pictures = {
        "shapes": decisive
        and _drawn(lambda width: plots.latency_by_shape(measurements, report["shapes"], width=width), "shapes"),
        "learning": report["trainings"]
        and _drawn(lambda width: plots.learning_curves(_named(report), width=width), "learning"),
        "cascade": report["cascade"]
        and _drawn(lambda width: plots.cascade(report["cascade"]["curve"], width=width), "cascade"),
        "reliability": detailed
        and _drawn(
            lambda width: plots.reliability_diagrams(detailed, their_names, colours, width=width), "reliability"
        ),
    }
    found = headline(report)
    return render(
        "report.html",
        title=f"{found} - {report['data_name'] or 'distill report'}",
        script=inlined_script("report.js"),
        report=report,
        headline=found,
        verdict=verdict(report),
        alerts=alerts(report),
        tiles=tiles(report),
        facts=facts(report),
        models=models_in_words(report),
        chosen=chosen,
        fronts=fronts,
        pictures=pictures,
        columns=[(name, _group(name)) for name in columns],
        rows=[
            {"name": name, "cells": list(row.values()), "colour": colours[one["model"]], "is_chosen": one is chosen}
            for name, row, one in zip(names, cells, measurements, strict=True)
        ],
        data=script_data(report, decisive, names),
        names=model_names(measurements),
        accuracy=ACCURACY[report["task"]],
        kind=CLASS[report["task"]],
        kinds="classes" if report["task"] == "single_label" else "labels",
        legend=LEGENDS[report["task"]],
        cascades=[{**one, "rows": step_cells(one)} for one in report["cascades"]],
        cascade_sentence=report["cascade"] and cascade_sentence(report["cascade"]),
        searches=[
            {"folder": one["folder"], "sentence": sweep_sentence(one), "rows": trial_cells(one)}
            for one in report["sweeps"]
        ],
        detailed=[
            {
                **row,
                "name": name,
                "rows": class_cells(row["classes"]),
                # Large matrices are half a page's size; two of them are enough to compare.
                "confusion": row.get("confusion") if index < 2 or len(report["label_names"]) <= MANY_CLASSES else None,
            }
            for index, (row, name) in enumerate(zip(detailed, their_names, strict=True))
        ],
    )


def front_picture(report: Mapping[str, Any], measure: str, *, width: float = plots.WIDE) -> Figure:
    """Return the picture of accuracy against the latency at a shape, or against texts per second (`RATE`)."""
    chosen, budget = chosen_row(report), report["budget"] or {}
    rows: Rows = report["measurements"]
    shape = decisive_shape(rows, report["shapes"])
    teacher = reference_teacher(rows, shape) if shape else None
    cost, label = _rate, f"{RATE}, with tokenizing (log scale; right is faster)"
    if measure != RATE:
        cost, label = _latency_at(measure), f"median latency at {measure} in ms (log scale; left is faster)"
    able = [row for row in rows if cost(row) is not None]
    least = teacher["accuracy"] - budget["max_drop"] if teacher and budget.get("max_drop") is not None else None
    return plots.accuracy_against_cost(
        rows,
        cost,
        label,
        front=pareto_front(able, cost if measure != RATE else lambda row: -_rate(row)),
        chosen=chosen,
        most_cost=budget.get("max_latency_ms") if measure == shape else None,
        least_accuracy=least,
        width=width,
    )


def detailed_rows(report: Mapping[str, Any]) -> list[Row]:
    """Return the measurements that are shown in detail: of models as they were trained, and of the chosen one."""
    chosen = chosen_row(report)
    whole = [row for row in report["measurements"] if row["format"] == "torch-fp32" or row["role"] == "baseline"]
    rows = [*([chosen] if chosen else []), *(row for row in whole if row is not chosen)]
    rows.sort(key=lambda row: (row is not chosen, row["role"] != "teacher"))
    return [row for row in rows if row.get("reliability")][:MOST_DIAGRAMS]


def _cells(report: Mapping[str, Any], decisive: str | None) -> list[dict[str, str]]:
    """The cells of the table of all models, without those that name them."""
    runs = {run["model"]: run for run in report["runs"]}
    found = []
    for row, cells in zip(
        report["measurements"],
        measurement_cells(report["measurements"], report["shapes"], percentiles=("p50", "p95", "p99")),
        strict=True,
    ):
        run = runs.get(row["model"], {})
        shown = {name: cell for name, cell in cells.items() if name not in ("role", "model", "format", "device")}
        interval = shown.pop("95 % interval")
        accuracy = next(iter(shown))
        first = {accuracy: shown.pop(accuracy), "95 % interval": interval}
        if decisive:
            first[f"{decisive} ms"] = shown_amount(row["latency_ms"][decisive]["p50"])
        first |= {name: shown.pop(name) for name in ("texts/s", "MB")}
        parameters, seconds = run.get("parameters"), run.get("seconds")
        trained = {
            "M parameters": f"{parameters / 1e6:,.3g}" if parameters else "-",
            "training min": f"{seconds / 60:.1f}" if seconds else "-",
        }
        found.append(first | shown | trained)
    return found


def _group(column: str) -> str:
    return next((group for group, parts in GROUPS.items() if any(part in column for part in parts)), "main")


def script_data(report: Mapping[str, Any], decisive: str | None, names: Sequence[str]) -> dict[str, Any]:
    """Return what the script of the page needs to apply limits as choice.choose does."""
    teacher = reference_teacher(report["measurements"], decisive) if decisive else None
    return {
        "shape": decisive,
        "teacher": teacher["accuracy"] if teacher else None,
        "budget": report["budget"],
        "rows": [
            {
                "name": name,
                "role": row["role"],
                "may_ship": row["role"] in CANDIDATES and is_fit(row, report["choice"]["unfit"]),
                "accuracy": row["accuracy"],
                "size_mb": row["size_bytes"] / 1e6,
                "texts_per_second": row["texts_per_second"],
                "latency_ms": {shape: found["p50"] for shape, found in row["latency_ms"].items()},
            }
            for name, row in zip(names, report["measurements"], strict=True)
        ],
    }


def _named(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The learning curves, each with the name and the color of its model."""
    names, colours = model_names(report["measurements"]), model_colours(report["measurements"])
    return [
        run | {"name": names.get(run.get("model"), run["role"]), "colour": colours.get(run.get("model"), run["role"])}
        for run in report["trainings"]
    ]


def _drawn(draw: Callable[[float], Figure], name: str) -> dict[str, Any]:
    """A picture for screens and one for phones, each as an <svg> with the ranges of its first axes."""
    from markupsafe import Markup

    found = {}
    for kind, width in (("wide", plots.WIDE), ("narrow", plots.NARROW)):
        figure = draw(width)
        svg = Markup(plots.as_svg(figure, f"{name}-{kind}"))
        found[kind] = {"svg": svg, "x": figure.axes[0].get_xlim(), "y": figure.axes[0].get_ylim()}
    return found


def _rate(row: Row) -> float:
    return row["texts_per_second"]


def _latency_at(shape: str) -> Callable[[Row], float | None]:
    return lambda row: row["latency_ms"][shape]["p50"] if shape in row["latency_ms"] else None
