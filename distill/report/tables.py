"""The report's tables: of all measurements, of the steps of a cascade, and of the trials of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from distill.recipe.schema import Task
from distill.report.choice import accuracy_of, shown_amount
from distill.report.classes import shown_figure
from distill.report.page import as_code

Rows = Sequence[Mapping[str, Any]]

CLASS = {"single_label": "class", "multi_label": "label"}
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


def table(measurements: Rows, shapes: Sequence[str], *, style: str) -> str:
    """Return the measurements as a table in tabulate's `style` ("github", "simple")."""
    return tabulate(
        measurement_cells(measurements, shapes, percentiles=("p50",)),
        headers="keys",
        tablefmt=style,
        disable_numparse=True,
    )


def cascade_table(found: Mapping[str, Any], *, style: str) -> str:
    """Return the steps of a cascade, with the share of texts that each answered, in tabulate's `style`."""
    return tabulate(step_cells(found), headers="keys", tablefmt=style, disable_numparse=True)


def sweep_table(found: Mapping[str, Any], *, style: str) -> str:
    """Return the trials of a search (see search.run_search), best first, as a table in tabulate's `style`."""
    return tabulate(trial_cells(found), headers="keys", tablefmt=style, disable_numparse=True)


def difference_table(found: Mapping[str, Any]) -> str:
    """Return the recipe keys in which models differ (see runs.recipe_differences) as a table in Markdown."""
    rows = [
        {"recipe key": as_code(row["key"])}
        | {
            as_code(model): "-" if value is None else as_code(str(value))
            for model, value in zip(found["models"], row["values"], strict=True)
        }
        for row in found["keys"]
    ]
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def step_cells(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row of cells for each step of a cascade."""
    return [
        {
            "classifier": step["model"],
            "format": step["format"],
            "answers if sure of": "every text" if step["at_least"] is None else f"{step['at_least']:.4f}",
            "share of texts": f"{step['answered']:.1%}",
        }
        for step in found["steps"]
    ]


def trial_cells(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row of cells for each trial, best first, failed ones last."""
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


def shown_value(value: Any) -> str:
    """Return a recipe's value as a person would write it, floats with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measurement_cells(measurements: Rows, shapes: Sequence[str], percentiles: Sequence[str]) -> list[dict[str, str]]:
    """Return a row of cells for each measurement; the column `model` is there only if a role has several models."""
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
            "MB": shown_amount(row["size_bytes"] / 1e6),
            "load s": f"{row['load_seconds']:.2f}",
        }
        for row in measurements
    ]


def _latencies(row: Mapping[str, Any], shape: str, percentiles: Sequence[str]) -> str:
    found = row["latency_ms"].get(shape)
    return " / ".join(shown_amount(found[name]) for name in percentiles) if found else "-"
