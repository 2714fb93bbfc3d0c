"""Show how well a model tells each class from the rest; the figures are from metrics.by_class."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from distill.report.page import as_code

log = logging.getLogger("distill")

MOST_SHOWN = 50  # classes in a table; more are hard to read
MOST_TOLD = 5  # in a terminal

Classes = Sequence[Mapping[str, Any]]


def hardest(classes: Classes, most: int) -> list[Mapping[str, Any]]:
    """Return all classes in order, or the `most` with the lowest F1 if there are more."""
    return list(classes) if len(classes) <= most else sorted(classes, key=lambda found: found["f1"])[:most]


def class_cells(classes: Classes) -> list[dict[str, str]]:
    """Return a row of cells for each class, or for the hardest ones; labels have average precision and threshold."""
    return [
        {
            "class": found["class"],
            "texts": str(found["examples"]),
            **{name: f"{found[name]:.4f}" for name in ("precision", "recall")},
            "F1": f"{found['f1']:.4f}",
            "ROC-AUC": shown_figure(found["roc_auc"]),
            **(
                {"AP": shown_figure(found["average_precision"]), "threshold": f"{found['threshold']:.4f}"}
                if "threshold" in found
                else {}
            ),
        }
        for found in hardest(classes, MOST_SHOWN)
    ]


def shown_figure(value: float | None) -> str:
    """Return a figure with four decimals, or a dash if there is none."""
    return "-" if value is None else f"{value:.4f}"


def class_table(classes: Classes) -> str:
    """Return `class_cells` as a table in Markdown; names are shown as code, whatever is in them."""
    rows = [{**cells, "class": as_code(cells["class"]).replace("|", "\\|")} for cells in class_cells(classes)]
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def tell_classes(role: str, classes: Classes) -> None:
    """Log the figures of each class, or of the hardest ones."""
    for found in hardest(classes, MOST_TOLD):
        auc = "" if found["roc_auc"] is None else f", ROC-AUC {found['roc_auc']:.4f}"
        auc += f", threshold {found['threshold']:.4f}" if "threshold" in found else ""
        log.info(
            "%s: %s: precision %.4f, recall %.4f, F1 %.4f%s (%d texts)",
            role, found["class"], found["precision"], found["recall"], found["f1"], auc, found["examples"],
        )  # fmt: skip
    if len(classes) > MOST_TOLD:
        log.info("%s: these are the %d hardest of %d classes; metrics.json has all", role, MOST_TOLD, len(classes))
