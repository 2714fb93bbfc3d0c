"""The report's pictures, drawn by matplotlib: as PNG for Markdown, and as SVG that takes the colors of its page."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.storage.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROLE_COLOURS = {"teacher": "#d1603d", "student": "#2e8fb0", "control": "#8a8a8a", "other": "#8a6fc8"}
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
INK = "#1d1d20"  # text and axes; on a page they take the color of its text, light or dark
STYLE = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False,
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "grid.color": INK, "text.parse_math": False,  # a name with dollars in it is not a formula
}  # fmt: skip
# Settings that matplotlib does not want reset. They concern its windows, and this module opens none.
NOT_STYLE = ("backend", "backend_fallback", "interactive", "toolbar", "timezone", "date.epoch", "webagg.port",
             "webagg.address", "webagg.port_retries", "webagg.open_in_browser", "tk.window_focus")  # fmt: skip

Rows = Sequence[Mapping[str, Any]]
MOST_LABELLED = 1_000  # on a log axis: if it spans more, only the decades have a label


@contextlib.contextmanager
def _style(**settings: Any) -> Iterator[None]:
    """Within the block, matplotlib's defaults and the report's style, whatever any matplotlibrc says.

    A matplotlibrc in the working directory may be a stranger's, and can make TeX run for every text.
    """
    if "matplotlib" not in sys.modules:
        _import_matplotlib()
    from matplotlib import rc_context, rcParamsDefault

    own = {key: value for key, value in rcParamsDefault.items() if key not in NOT_STYLE}
    with rc_context({**own, **STYLE, **settings}):
        yield


@_style()
def accuracy_against_latency(measurements: Rows, front: Rows, shape: str) -> Figure:
    """Draw accuracy with its interval against median latency at `shape`; the color is the role, the marker the format.

    A dotted line joins the models of `front`, the Pareto front.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import PercentFormatter

    figure, (axes,) = _figure(8, 4.8)
    axes.plot(
        [_p50(row, shape) for row in front], [row["accuracy"] for row in front], color=INK, linewidth=0.8, linestyle=":"
    )
    for row in measurements:
        low, high = row["accuracy_ci95"]
        axes.errorbar(
            _p50(row, shape),
            row["accuracy"],
            yerr=[[row["accuracy"] - low], [high - row["accuracy"]]],
            color=_colour(row["role"]),
            marker=FORMAT_MARKERS.get(row["format"], "d"),
            fillstyle="full" if row["device"] == "cpu" else "none",
            markersize=9,
            elinewidth=0.8,
            capsize=2,
        )
    axes.set_xscale("log")
    _label_log(axes.xaxis)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axes.set_xlabel(f"median latency at {shape} in ms (log scale; left is faster)")
    several = any(row["thresholds"] is not None for row in measurements)
    axes.set_ylabel(f"{'exact match on test texts' if several else 'test accuracy'} with 95 % interval")
    roles = list(dict.fromkeys(row["role"] for row in measurements))
    formats = list(dict.fromkeys(row["format"] for row in measurements))
    handles = [Line2D([], [], color=_colour(role), linewidth=4, label=role) for role in roles]
    handles += [
        Line2D([], [], color=INK, marker=FORMAT_MARKERS.get(name, "d"), linestyle="", label=name) for name in formats
    ]
    if {row["device"] for row in measurements} == {"cpu", "cuda"}:
        handles.append(Line2D([], [], color=INK, marker="o", fillstyle="none", linestyle="", label="hollow: cuda"))
    if len(front) > 1:
        handles.append(Line2D([], [], color=INK, linewidth=0.8, linestyle=":", label="Pareto front"))
    figure.legend(handles=handles, loc="outside right upper")
    return figure


@_style()
def learning_curves(trainings: Rows) -> Figure:
    """Draw training and validation loss, and beside them validation accuracy, over epochs; one color per role.

    If a text may have several labels, that is the share of texts with exactly the right ones, at thresholds of 0.5.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import PercentFormatter

    figure, (losses, accuracies) = _figure(8, 3.2, columns=2)
    for run in trainings:
        colour = _colour(run["role"])
        _line(losses, run["steps"], "loss", color=colour, linewidth=0.8, alpha=0.6)
        _line(losses, run["evaluations"], "log_loss", color=colour, marker="o", markersize=3)
        _line(accuracies, run["evaluations"], "accuracy", color=colour, marker="o", markersize=3)
        chosen = [entry for entry in run["evaluations"] if entry["step"] == run["selected_step"]]
        _line(accuracies, chosen, "accuracy", color=colour, marker="o", markersize=8, fillstyle="none")
    losses.set(xlabel="epoch", ylabel="loss (thin: training; dots: validation)")
    several = any("micro_f1" in entry for run in trainings for entry in run["evaluations"])
    accuracy = "exact match" if several else "accuracy"
    accuracies.set(xlabel="epoch", ylabel=f"validation {accuracy} (circle: selected)")
    accuracies.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    roles = dict.fromkeys(run["role"] for run in trainings)  # also of runs without evaluations
    handles = [Line2D([], [], color=_colour(role), marker="o", markersize=3, label=role) for role in roles]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


@_style()
def reliability_diagrams(measurements: Rows) -> Figure:
    """Draw accuracy against confidence for each model, with the diagonal on which they are equal.

    If a text may have several labels, both are of the question whether a text has a label.
    """
    figure, axes = _figure(8, 2.7, columns=max(2, len(measurements)), share=True)
    for axis, row in zip(axes, measurements, strict=False):
        axis.plot([0, 1], [0, 1], color=INK, linewidth=0.6, linestyle=":")
        points = row["reliability"]
        most = max(point["examples"] for point in points)
        axis.scatter(
            [point["confidence"] for point in points],
            [point["accuracy"] for point in points],
            s=[10 + 90 * point["examples"] / most for point in points],
            color=_colour(row["role"]),
        )
        axis.set_title(f"{row['role']} {row['format']}\nECE {row['ece']:.3f}", fontsize=9)
        axis.set(xlabel="confidence", aspect="equal", xlim=(0, 1.03), ylim=(0, 1.03))
    for axis in axes[len(measurements) :]:
        axis.set_axis_off()
    axes[0].set_ylabel("accuracy")
    return figure


@_style()
def latency_by_shape(measurements: Rows, shapes: Sequence[str]) -> Figure:
    """Draw the median latency of each model at each shape that it takes, on a log scale."""
    figure, (axes,) = _figure(8, 3.8)
    for row in measurements:
        at = [index for index, shape in enumerate(shapes) if shape in row["latency_ms"]]
        axes.plot(
            at,
            [_p50(row, shapes[index]) for index in at],
            color=_colour(row["role"]),
            marker=FORMAT_MARKERS.get(row["format"], "d"),
            linewidth=0.9,
            linestyle="-" if row["device"] == "cpu" else "--",
            label=f"{row['role']} {row['format']} {row['device']}",
        )
    axes.set_yscale("log")
    _label_log(axes.yaxis)
    axes.set_xticks(range(len(shapes)), shapes)
    axes.set(xlabel="batch x tokens", ylabel="median latency in ms (log scale)")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


@_style()
def cascade(curve: Rows) -> Figure:
    """Draw accuracy against mean latency as the student passes more texts to the teacher."""
    from matplotlib.ticker import PercentFormatter

    figure, (axes,) = _figure(8, 3.0)
    axes.plot(
        [point["latency_ms"] for point in curve],
        [point["accuracy"] for point in curve],
        color=ROLE_COLOURS["student"],
        marker="o",
        markersize=3,
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axes.set(xlabel="mean latency per text in ms", ylabel="test accuracy")
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write the picture as PNG with a white background."""
    with atomic_path(path) as partial, _style():
        figure.savefig(partial, dpi=150, format="png", facecolor="white")


def as_svg(figure: Figure, name: str) -> str:
    """Return the picture as an <svg> element; its text and axes take the color of the text around it.

    Pictures on the same page need different names, so that their ids differ.
    """
    with _style(**{"svg.hashsalt": name}):
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)  # the view box keeps the proportions at any width


def _import_matplotlib() -> None:
    """Import matplotlib from the folder of its own matplotlibrc, since it reads the one in the working directory.

    If that one is not text, the import would fail; if it is a pipe, the import would wait forever.
    """
    found = importlib.util.find_spec("matplotlib")
    with contextlib.chdir(Path(found.origin).parent / "mpl-data"):
        importlib.import_module("matplotlib")


def _figure(width: float, height: float, *, columns: int = 1, share: bool = False) -> tuple[Figure, Any]:
    """A figure without a window, and the row of `columns` axes in it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False, sharey=share)[0]


def _label_log(axis: Any) -> None:
    """Label a log axis with plain numbers at 1, 2 and 5 of each decade, or at 1 alone if there are many decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_major_formatter(plain)
    axis.set_minor_formatter(plain if high / low < MOST_LABELLED else NullFormatter())


def _colour(role: str) -> str:
    return ROLE_COLOURS.get(role, ROLE_COLOURS["other"])


def _line(axes: Any, entries: Rows, value: str, **style: Any) -> None:
    found = [(entry["epoch"], entry[value]) for entry in entries if entry.get(value) is not None]
    if found:
        axes.plot(*zip(*found, strict=True), **style)


def _p50(row: Mapping[str, Any], shape: str) -> float:
    return row["latency_ms"][shape]["p50"]
