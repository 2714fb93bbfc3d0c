"""The report's pictures, drawn by matplotlib: as PNG for Markdown, and as SVG that takes the colors of its page."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.report.naming import model_colours, row_names
from distill.storage.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# On a page, each color becomes the variable of that name, which is another one in the dark (see templates/page.html).
COLOURS = {
    "teacher": "#a8431f", "student": "#17687f", "student-2": "#2c7a3f", "student-3": "#a03a78", "student-4": "#7a6a10",
    "control": "#6d6d6e", "baseline": "#7155b3", "other": "#7156b4",
}  # fmt: skip
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

WIDE, NARROW = 11.0, 3.9  # inches: of a picture for a screen and for a phone, at text of the page's size
# A label's place beside its point: the shift in points, and which side of the label is there.
PLACES = [
    ((9, 0), "left", "center"), ((-9, 0), "right", "center"), ((0, 9), "center", "bottom"), ((0, -9), "center", "top"),
    ((7, 7), "left", "bottom"), ((7, -7), "left", "top"), ((-7, 7), "right", "bottom"), ((-7, -7), "right", "top"),
    ((7, 17), "left", "bottom"), ((7, -17), "left", "top"), ((-7, 17), "right", "bottom"), ((-7, -17), "right", "top"),
]  # fmt: skip

Row = Mapping[str, Any]
Rows = Sequence[Row]
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
def accuracy_against_cost(
    measurements: Rows,
    cost: Callable[[Row], float | None],
    label: str,
    *,
    front: Rows,
    chosen: Row | None = None,
    most_cost: float | None = None,
    least_accuracy: float | None = None,
    width: float = WIDE,
) -> Figure:
    """Draw accuracy with its interval against a cost on a log scale; a dotted line joins the Pareto front.

    `label` is what the cost is; a row without one is left out. `chosen` has a ring. The limits of a budget, `most_cost`
    and `least_accuracy`, are dashed lines. As many points have their names beside them as there is room for, `chosen`
    and `front` first. The point of row 3 has the id `row-3`; the ring, the limits and the plot's area have ids too.
    """
    from matplotlib.ticker import PercentFormatter

    figure, ((axes,),) = _figure(width, min(5.4, 0.9 * width))
    colours, names = model_colours(measurements), row_names(measurements)
    axes.plot([cost(row) for row in front], [row["accuracy"] for row in front], color=INK, linewidth=0.8, linestyle=":")
    bars = []
    for index, row in enumerate(measurements):
        if cost(row) is None:
            continue
        low, high = row["accuracy_ci95"]
        colour = COLOURS[colours[row["model"]]]
        bars.append(axes.plot([cost(row)] * 2, [low, high], color=colour, linewidth=0.9, alpha=0.6)[0])
        axes.plot(
            cost(row),
            row["accuracy"],
            color=colour,
            marker="o",
            fillstyle="full" if row["device"] == "cpu" else "none",
            markersize=7,
            gid=f"row-{index}",
            zorder=3,
        )
        if row is chosen:
            axes.plot(cost(row), row["accuracy"], color=INK, marker="o", fillstyle="none", markersize=13, gid="chosen")
    axes.set_xscale("log")
    axes.margins(x=0.12)
    _label_log(axes.xaxis)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel(label if width > NARROW else label.replace(" (", "\n("))
    axes.set_ylabel(f"{_accuracy_of(measurements)} on test")
    if most_cost is not None:
        axes.axvline(most_cost, color=INK, linewidth=1, linestyle="--", gid="limit")
    if least_accuracy is not None:
        axes.axhline(least_accuracy, color=INK, linewidth=1, linestyle="--", gid="limit")
    axes.patch.set_gid("area")
    first = [index for index, row in enumerate(measurements) if row is chosen]
    first += [index for index, row in enumerate(measurements) if row in front]
    first += [index for index, row in enumerate(measurements) if row["role"] in ("teacher", "baseline")]
    order = [
        index for index in dict.fromkeys([*first, *range(len(measurements))]) if cost(measurements[index]) is not None
    ]
    _name_points(
        axes,
        [(cost(measurements[index]), measurements[index]["accuracy"]) for index in order],
        [names[index] for index in order],
        [COLOURS[colours[measurements[index]["model"]]] for index in order],
        bars,
    )
    return figure


def _name_points(
    axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], colours: Sequence[str], bars: Sequence[Any]
) -> None:
    """Write each name beside its point where it covers no other name, point or border; leave it out if it must.

    Of the places that are left, the one that crosses the fewest intervals (`bars`) is taken.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    figure = axes.figure
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # names are within the axes, so drawing need not find the layout again
    area, pixel = axes.get_window_extent(), figure.dpi / 72
    centers = axes.transData.transform(points)
    taken = [Bbox.from_bounds(x - 5 * pixel, y - 5 * pixel, 10 * pixel, 10 * pixel) for x, y in centers]
    lines = [Bbox(axes.transData.transform(bar.get_xydata())).padded(pixel) for bar in bars]
    for point, name, colour in zip(points, names, colours, strict=True):
        best, fewest = None, len(lines) + 1
        for shift, horizontal, vertical in PLACES:
            text = axes.annotate(
                name, point, shift, textcoords="offset points", ha=horizontal, va=vertical, fontsize=9, color=colour
            )
            box = text.get_window_extent()
            text.remove()
            crossed = box.count_overlaps(lines)
            inside = area.x0 <= box.x0 and box.x1 <= area.x1 and area.y0 <= box.y0 and box.y1 <= area.y1
            if inside and not box.count_overlaps(taken) and crossed < fewest:
                best, fewest = (shift, horizontal, vertical, box), crossed
        if best:
            shift, horizontal, vertical, box = best
            axes.annotate(
                name, point, shift, textcoords="offset points", ha=horizontal, va=vertical, fontsize=9, color=colour
            )
            taken.append(box)


@_style()
def learning_curves(trainings: Rows, *, width: float = WIDE) -> Figure:
    """Draw training loss, validation log loss and validation accuracy over epochs, each on an axis of its own.

    A training may have a `name` and a `colour`; if not, its role stands for both. The checkpoint that was kept has a
    circle. If a text may have several labels, accuracy is the share of texts with exactly the right ones, at thresholds
    of 0.5.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    several = any("micro_f1" in entry for run in trainings for entry in run["evaluations"])
    curves = [
        ("steps", "loss", "training loss"),
        ("evaluations", "log_loss", "validation log loss"),
        ("evaluations", "accuracy", f"validation {'exact match' if several else 'accuracy'}"),
    ]
    cells = [(run, curve) for run in trainings for curve in curves]
    columns = 3 if width > NARROW else 1
    figure, grid = _figure(width, 1.9 * len(cells) / columns, rows=len(cells) // columns, columns=columns)
    for axes, (run, (entries, value, title)) in zip(grid.flat, cells, strict=True):
        colour = _colour(run.get("colour", run["role"]))
        _line(axes, run[entries], value, color=colour, marker="o" if entries == "evaluations" else "", markersize=3)
        kept = [entry for entry in run["evaluations"] if entry["step"] == run["selected_step"]]
        if entries == "evaluations":
            _line(axes, kept, value, color=INK, marker="o", markersize=9, fillstyle="none", linestyle="")
        axes.set_title(f"{run.get('name', run['role'])}: {title}", fontsize=9, color=colour)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        if value == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        if not axes.lines:
            axes.text(0.5, 0.5, "not evaluated", transform=axes.transAxes, ha="center", va="center", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    return figure


@_style()
def reliability_diagrams(
    measurements: Rows, names: Sequence[str], colours: Mapping[str, str], *, width: float = WIDE
) -> Figure:
    """Draw accuracy against confidence for each model, over bars of how many texts have that confidence.

    `colours` are the names of colors by model folder (see naming.model_colours). On the diagonal, confidence equals
    accuracy. If a text may have several labels, both are of the question whether a text has a label.
    """
    columns = max(1, min(len(measurements), 4 if width > NARROW else 2))
    rows = -(-len(measurements) // columns)
    figure, grid = _figure(width, 3.3 * rows, rows=2 * rows, columns=max(columns, 2), heights=[3, 1] * rows)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, (row, name) in enumerate(zip(measurements, names, strict=True)):
        top, below = (grid[2 * (index // columns) + part, index % columns] for part in (0, 1))
        points, colour = row["reliability"], COLOURS[colours[row["model"]]]
        top.set_axis_on()
        below.set_axis_on()
        top.plot([0, 1], [0, 1], color=INK, linewidth=0.6, linestyle=":")
        confidences = [point["confidence"] for point in points]
        top.plot(confidences, [point["accuracy"] for point in points], color=colour, marker="o", markersize=4)
        top.set_title(f"{name}\nECE {row['ece']:.3f}", fontsize=9)
        top.set(xlim=(0, 1.03), ylim=(0, 1.03))
        below.bar(confidences, [point["examples"] for point in points], width=0.04, color=colour)
        below.set(xlabel="confidence", xlim=(0, 1.03))
        if index % columns == 0:
            top.set_ylabel("accuracy")
            below.set_ylabel("count")
    return figure


@_style()
def latency_by_shape(measurements: Rows, shapes: Sequence[str], *, width: float = WIDE) -> Figure:
    """Draw a bar up to the median latency of each model at each shape that it takes, and a line to the 99th percentile.

    The scale is logarithmic and is that of one shape, so compare the bars of a shape.
    """
    names, colours = row_names(measurements), model_colours(measurements)
    across = len(shapes) if width > NARROW else 1
    down = len(shapes) // across
    figure, grid = _figure(width, (0.6 + 0.23 * len(measurements)) * down, rows=down, columns=across, share_y=True)
    places = range(len(measurements))
    for axes, shape in zip(grid.flat, shapes, strict=True):
        for place, row in zip(places, measurements, strict=True):
            timed = row["latency_ms"].get(shape)
            if timed is None:
                continue
            colour = COLOURS[colours[row["model"]]]
            axes.barh(place, timed["p50"], height=0.62, color=colour)
            axes.plot(
                [timed["p50"], timed["p99"]], [place, place], color=colour, linewidth=1.4, marker="|", markersize=6
            )
        axes.set_xscale("log")
        axes.set_title(f"{shape}, ms", fontsize=10)
        _label_log(axes.xaxis)
        axes.grid(visible=False, axis="y")
        axes.set_yticks(places, names, fontsize=9)
    grid.flat[0].invert_yaxis()
    return figure


@_style()
def cascade(curve: Rows, *, width: float = WIDE) -> Figure:
    """Draw accuracy against mean latency as the student passes more texts to the teacher."""
    from matplotlib.ticker import PercentFormatter

    figure, ((axes,),) = _figure(width, 3.0)
    axes.plot(
        [point["latency_ms"] for point in curve],
        [point["accuracy"] for point in curve],
        color=COLOURS["student"],
        marker="o",
        markersize=3,
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set(xlabel="mean latency per text in ms", ylabel="accuracy on test")
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
    for colour, value in COLOURS.items():
        svg = svg.replace(value, f"var(--{colour})")
    svg = re.sub(r"font-family: [^;]*; ?", "", svg)  # that of the page
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="(row-\d+|area|chosen|limit)"', r' data-part="\1"', svg)
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


def _figure(
    width: float,
    height: float,
    *,
    rows: int = 1,
    columns: int = 1,
    heights: Sequence[float] | None = None,
    share_y: bool = False,
) -> tuple[Figure, Any]:
    """A figure without a window, and the axes in it (rows, columns)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=share_y, height_ratios=heights)


def _label_log(axis: Any) -> None:
    """Label a log axis with plain numbers at 1, 2 and 5 of each decade, or at 1 alone if there are many decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_major_formatter(plain)
    axis.set_minor_formatter(plain if high / low < MOST_LABELLED else NullFormatter())


def _colour(role: str) -> str:
    return COLOURS.get(role, COLOURS["other"])


def _line(axes: Any, entries: Rows, value: str, **style: Any) -> None:
    found = [(entry["epoch"], entry[value]) for entry in entries if entry.get(value) is not None]
    if found:
        axes.plot(*zip(*found, strict=True), **style)


def _accuracy_of(measurements: Rows) -> str:
    return "exact match" if any(row["thresholds"] is not None for row in measurements) else "accuracy"
