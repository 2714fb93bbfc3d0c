"""The report: report.json with every figure, and a Markdown file and a page made from it; never imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.machine.timing import SCATTERED
from distill.recipe.schema import Task
from distill.report import plots
from distill.report.choice import ACCURACY, Budget, baseline_sentence, choose, decisive_shape
from distill.report.classes import class_table
from distill.report.dashboard import dashboard, detailed_rows, front_picture
from distill.report.page import sentence, shown
from distill.report.sentences import control_sentence, promise_sentence, sentences_of, sweep_sentence
from distill.report.tables import CLASS, LEGENDS, cascade_table, difference_table, sweep_table, table
from distill.storage.files import atomic_files, write_json, write_text

REPORT_JSON = "report.json"
REPORT_MD = "report.md"
REPORT_HTML = "report.html"
PICTURE = "accuracy_latency.png"

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
    `runs`: how each model was trained (see runs.runs_of), and `differences` between their recipes.
    `trainings`: learning curves (see training_log).
    `mistakes`: texts that models classify wrongly (see mistakes.mistakes_of).
    `cascade`: an escalation.cascade_curve with its `student` and `teacher`.
    `cascades`: cascades that were made, on the test texts (see cascade.measure_cascade).
    `flipped`: the texts whose label a format changed.
    `sweeps`: searches (see search.sweep).
    `recipe`: the text of the recipe, and `data_name` what its data is called.
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
    data_name: str = ""
    runs: Rows = ()
    differences: Rows = ()
    mistakes: Rows = ()


def write_report(folder: Path, findings: Findings, budget: Budget | None = None) -> dict[str, Any]:
    """Write report.json, report.md, report.html and the picture into `folder`; return the contents of report.json.

    Every figure in the other files is also in report.json.
    """
    measurements, shapes = findings.measurements, findings.shapes
    decisive = decisive_shape(measurements, shapes)
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
        "data_name": findings.data_name,
        "environment": dict(findings.environment),
        "task": findings.task,
        "label_names": list(findings.label_names),
        "shapes": list(shapes),
        "measurements": list(measurements),
        "budget": asdict(budget) if budget else None,
        "choice": choice,
        "controls": [{**found, "sentence": control_sentence(found)} for found in findings.comparisons],
        "baselines": [{**found, "sentence": baseline_sentence(found)} for found in findings.baselines],
        # A model that is not fit to ship is not fit for a cascade either.
        "cascade": dict(findings.cascade) if findings.cascade and not choice["unfit"] else None,
        "cascades": [{**found, "sentence": promise_sentence(found)} for found in findings.cascades],
        "runs": list(findings.runs),
        "recipe_differences": list(findings.differences),
        "trainings": list(findings.trainings),
        "mistakes": list(findings.mistakes),
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
            plots.save_png(front_picture(report, decisive), made / PICTURE)
        write_text(made / REPORT_MD, _markdown(report, picture=decisive is not None))
        write_text(made / REPORT_HTML, dashboard(report, decisive))
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
            for row in detailed_rows(report)
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
        *(
            part
            for found in report["recipe_differences"]
            for part in ("## What differs between the recipes", difference_table(found))
        ),
        "## Conditions",
        "\n".join(f"- {name}: {shown(value)}" for name, value in environment.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
