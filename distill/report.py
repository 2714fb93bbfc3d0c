"""Measurements to report.json, report.md and a picture of accuracy against latency; never imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from distill.run_folder import atomic_path, write_json, write_text

REPORT_JSON = "report.json"
REPORT_MD = "report.md"
PICTURE = "accuracy_latency.png"
ROLE_COLOURS = {"teacher": "#b5442c", "student": "#1f6f8b", "control": "#7a7a7a", "other": "#6b4fa0"}
FORMAT_MARKERS = {
    "torch-fp32": "o",
    "torch-bf16": "P",
    "torch-fp16": "X",
    "onnx-fp32": "s",
    "onnx-fp16": "D",
    "onnx-int8": "^",
    "onnx": "v",
    "openvino-bf16": "p",
    "openvino-int8": "*",
    "openvino": "h",
}

SIGNIFICANT = 0.05  # below this p-value a difference is called a gain or a loss

Rows = Sequence[Mapping[str, Any]]


def write_report(
    folder: Path,
    measurements: Rows,
    environment: Mapping[str, Any],
    shapes: Sequence[str],
    notes: Sequence[str],
    *,
    comparisons: Rows = (),
) -> dict[str, Any]:
    """Write report.json, report.md and the picture into `folder`; return the contents of report.json.

    `measurements` are entries of report.json, `shapes` the shapes measured (the first is the one that decides), `notes`
    what a reader must know of rows that are missing, `comparisons` students against their controls (see
    metrics.compare_paired), each with the folder of its `student`.
    """
    decisive = next((shape for shape in shapes if all(shape in row["latency_ms"] for row in measurements)), None)
    report = {
        "environment": dict(environment),
        "measurements": list(measurements),
        "choice": choose(measurements, decisive),
        "controls": [{**comparison, "sentence": control_sentence(comparison)} for comparison in comparisons],
        "notes": list(notes),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if decisive:
        _draw(folder / PICTURE, measurements, decisive)
    write_text(folder / REPORT_MD, _markdown(report, shapes, picture=decisive is not None))
    write_json(folder / REPORT_JSON, report)
    return report


def choose(measurements: Rows, shape: str | None) -> dict[str, Any]:
    """Return the fastest student at `shape` and how it stands against the teacher's fastest torch.

    Every student format here passed its proof on validation, so nothing is chosen by test accuracy.
    """
    students = [row for row in measurements if row["role"] == "student"]
    teachers = [row for row in measurements if row["role"] == "teacher" and row["format"].startswith("torch")]
    if not students or not shape:
        return {"model": None, "reason": "no student was measured" if not students else "no shape fits every model"}
    best = min(students, key=lambda row: row["latency_ms"][shape]["p50"])
    chosen: dict[str, Any] = {name: best[name] for name in ("role", "model", "format", "device")} | {"shape": shape}
    text = f"{best['format']} on {best['device']}: {best['accuracy']:.2%} accuracy, {_megabytes(best):.1f} MB, "
    text += f"{best['latency_ms'][shape]['p50']:.1f} ms at {shape}, {best['texts_per_second']:.0f} texts/s"
    if teachers:
        teacher = min(teachers, key=lambda row: row["latency_ms"][shape]["p50"])
        chosen["accuracy_of_teacher"] = best["accuracy"] / teacher["accuracy"]
        chosen["speedup_over_teacher"] = teacher["latency_ms"][shape]["p50"] / best["latency_ms"][shape]["p50"]
        text += (
            f"; {chosen['accuracy_of_teacher']:.1%} of the teacher's accuracy ({teacher['accuracy']:.2%}) and "
            f"{chosen['speedup_over_teacher']:.1f} x its speed ({teacher['format']} on {teacher['device']})"
        )
    return chosen | {"reason": f"the fastest student at {shape} among the formats that passed their proof: {text}"}


def control_sentence(comparison: Mapping[str, Any]) -> str:
    """Return what distilling gained over training the same student on labels alone, or that it gained nothing.

    The interval has the sign of what is said: points lost where points were lost, else points above the control.
    """
    points, (low, high) = 100 * comparison["gain"], (100 * bound for bound in comparison["gain_ci95"])
    p_value = comparison["p_value"]
    control = "the same student trained on labels alone"
    if p_value < SIGNIFICANT and points < 0:
        points, low, high = -points, -high, -low
        found = f"Distilling lost {points:.1f} points of test accuracy against {control}"
    elif p_value < SIGNIFICANT:
        found = f"Distilling gained {points:.1f} points of test accuracy over {control}"
    else:
        side = f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"
        side = "level with" if f"{abs(points):.1f}" == "0.0" else side
        found = f"No gain was found: the distilled student is {side} {control}"
    return f"{found} (95 % interval {low:z.1f} to {high:z.1f}), {_shown_p(p_value)}."


def control_sentences(report: Mapping[str, Any]) -> list[str]:
    """Return the sentence of each control in report.json, with the student's folder where there are several."""
    several = len(report["controls"]) > 1
    return [
        f"{found['student']}: {found['sentence']}" if several else found["sentence"] for found in report["controls"]
    ]


def table(measurements: Rows, shapes: Sequence[str], *, style: str) -> str:
    """Return the measurements as a table in tabulate's `style` ("github", "simple")."""
    rows = [
        {
            "role": row["role"],
            "format": row["format"],
            "device": row["device"],
            "accuracy": f"{row['accuracy']:.4f}",
            "95 % interval": "{:.3f}-{:.3f}".format(*row["accuracy_ci95"]),
            "macro-F1": f"{row['macro_f1']:.4f}",
            "ECE": f"{row['ece']:.3f}",
            "Brier": f"{row['brier']:.3f}",
            "agreement": "-" if row["agreement"] is None else f"{row['agreement']:.4f}",
            **{f"{shape} p50 ms": _p50(row, shape) for shape in shapes},
            "texts/s": f"{row['texts_per_second']:.1f}",
            "MB": f"{_megabytes(row):.1f}",
            "load s": f"{row['load_seconds']:.2f}",
        }
        for row in measurements
    ]
    return tabulate(rows, headers="keys", tablefmt=style, disable_numparse=True)


def _markdown(report: Mapping[str, Any], shapes: Sequence[str], *, picture: bool) -> str:
    environment = report["environment"]
    parts = [
        "# Accuracy against latency",
        report["choice"]["reason"][0].upper() + report["choice"]["reason"][1:] + ".",
        "\n\n".join(control_sentences(report)),
        f"![accuracy against latency]({PICTURE})" if picture else "",
        table(report["measurements"], shapes, style="github"),
        "Accuracy with its Wilson 95 % interval, macro-F1, calibration error (ECE, 15 bins) and Brier score (squared "
        f"distance of the probabilities from the truth, 0 best, 2 worst) on {environment['test_examples']} test texts. "
        "Agreement: with the same model in torch fp32. Latency: the model alone, batch x tokens, median. texts/s: end "
        "to end on the test texts, tokenising included.",
        "\n".join(f"- {note}" for note in report["notes"]),
        "## Conditions",
        "\n".join(f"- {name}: {_shown(value)}" for name, value in environment.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _draw(path: Path, measurements: Rows, shape: str) -> None:
    """Accuracy with its interval against median latency at `shape`; colour tells the role, the marker the format."""
    import matplotlib

    matplotlib.use("Agg")  # no display is needed, or to be had on a server
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import PercentFormatter, ScalarFormatter

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for row in measurements:
        low, high = row["accuracy_ci95"]
        axes.errorbar(
            row["latency_ms"][shape]["p50"],
            row["accuracy"],
            yerr=[[row["accuracy"] - low], [high - row["accuracy"]]],
            color=ROLE_COLOURS[row["role"]],
            marker=FORMAT_MARKERS[row["format"]],
            fillstyle="full" if row["device"] == "cpu" else "none",
            markersize=9,
            elinewidth=0.8,
            capsize=2,
        )
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(ScalarFormatter())
    axes.tick_params(axis="x", which="minor", labelsize=7)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axes.set_xlabel(f"median latency at {shape} in ms (log scale; left is faster)")
    axes.set_ylabel("test accuracy with 95 % interval")
    axes.grid(alpha=0.25)
    roles = list(dict.fromkeys(row["role"] for row in measurements))
    formats = list(dict.fromkeys(row["format"] for row in measurements))
    handles = [Line2D([], [], color=ROLE_COLOURS[role], linewidth=4, label=role) for role in roles]
    handles += [
        Line2D([], [], color="#444444", marker=FORMAT_MARKERS[name], linestyle="", label=name) for name in formats
    ]
    if {row["device"] for row in measurements} == {"cpu", "cuda"}:
        handles.append(
            Line2D([], [], color="#444444", marker="o", fillstyle="none", linestyle="", label="hollow: cuda")
        )
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
    plt.close(figure)


def _p50(row: Mapping[str, Any], shape: str) -> str:
    return f"{row['latency_ms'][shape]['p50']:.1f}" if shape in row["latency_ms"] else "-"


def _shown_p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def _megabytes(row: Mapping[str, Any]) -> float:
    return row["size_bytes"] / 1e6


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
