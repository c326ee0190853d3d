"""Curves and scores for people who would rather look than read: as PNG, as SVG and as text.

Colours are of the palette of Okabe & Ito (2008), which colour-blind readers can tell apart; nothing is told by colour
alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#6b6b6b"


@dataclass(frozen=True)
class Curve:
    """A line of points with one x marked; x is drawn on a logarithmic scale."""

    name: str
    x: list[float]
    y: list[float]
    marked: float


def write_png(path: Path, curves: list[Curve], x_label: str, y_label: str) -> None:
    """Draws the curves one beside the other."""
    figure, axes = _figure(5.5 * len(curves), 3.8, len(curves))
    for place, curve in zip(axes, curves, strict=True):
        place.plot(curve.x, curve.y, color=BLUE, linewidth=2)
        place.axvline(curve.marked, color=ORANGE, linestyle="--", label=f"suggested: {curve.marked:.1e}")
        place.set(xscale="log", xlabel=x_label, ylabel=y_label, title=curve.name)
        place.legend(frameon=False)
    figure.savefig(path, dpi=120)


def write_growth_png(
    path: Path,
    points: Sequence[dict[str, float]],
    law: Callable[[float], dict[str, float]] | None,
    most: float,
    label: str,
) -> None:
    """Scores with intervals by number of rows, and the law through them drawn on to `most` rows."""
    figure, (axes,) = _figure(6.4, 4.2)
    x = [point["rows"] for point in points]
    low = [max(0.0, point["value"] - point.get("low", point["value"])) for point in points]
    high = [max(0.0, point.get("high", point["value"]) - point["value"]) for point in points]
    axes.errorbar(x, [point["value"] for point in points], [low, high], fmt="o", color=BLUE, capsize=3, label="trained")
    if law is not None:
        n_points = 60
        line = [x[0] * (most / x[0]) ** (place / (n_points - 1)) for place in range(n_points)]
        drawn = [law(n) for n in line]
        axes.plot(line, [one["value"] for one in drawn], "--", color=ORANGE, label="power law")
        axes.fill_between(line, [one["low"] for one in drawn], [one["high"] for one in drawn], color=ORANGE, alpha=0.15)
    axes.set(xscale="log", xlabel="training rows", ylabel=label)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)


def _figure(width: float, height: float, n_axes: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, n_axes, place) for place in range(1, n_axes + 1)]
    for place in axes:
        place.grid(alpha=0.25)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The drawing as an element of a page; the same drawing is the same text."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "tl_nlp", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = file.getvalue()
    return text[text.index("<svg") :].replace("<svg ", '<svg style="max-width: 100%; height: auto" ', 1)


def whiskers(
    names: Sequence[str],
    values: Sequence[dict[str, float]],
    label: str,
    marked: int | None = None,
    zero: bool = False,
) -> str:
    """Values with their intervals, one a line, the first on top, as SVG; the `marked` one stands out, and so does 0
    where it is what values should be."""
    figure, (axes,) = _figure(6.4, 0.9 + 0.36 * len(names))
    if zero:
        axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
    for place, one in enumerate(values):
        low, high = one.get("low", one["value"]), one.get("high", one["value"])
        is_marked = place == marked
        colour = ORANGE if is_marked else BLUE
        axes.plot([low, high], [place, place], color=colour, linewidth=4 if is_marked else 2.5, alpha=0.55)
        axes.plot([one["value"]], [place], "D" if is_marked else "o", color=colour, markersize=7)
        axes.annotate(
            f"{one['value']:.3g}", (one["value"], place), (0, 6), textcoords="offset points", ha="center", size=8
        )
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set(xlabel=label, ylim=(len(names) - 0.4, -0.7))
    return _svg(figure)


def heatmap(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A confusion matrix as SVG: a line for each reference, a column for each prediction, shaded by share of line."""
    size = max(3.4, min(12.0, 0.62 * len(names) + 1.6))
    figure, (axes,) = _figure(size, size * 0.85)
    shares = [[count / max(sum(line), 1) for count in line] for line in counts]
    axes.grid(False)
    axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1)  # drawn as shapes: a page may load no image
    axes.invert_yaxis()
    if len(names) <= 20:
        for row, line in enumerate(counts):
            for column, count in enumerate(line):
                colour = "white" if shares[row][column] > 0.55 else "black"
                axes.text(column + 0.5, row + 0.5, str(count), ha="center", va="center", color=colour, size=9)
    ticks = [_short(name, 14) for name in names]
    axes.set_xticks([n + 0.5 for n in range(len(names))], ticks, rotation=45, ha="right")
    axes.set_yticks([n + 0.5 for n in range(len(names))], ticks)
    axes.set(xlabel="prediction", ylabel="reference")
    return _svg(figure)


def reliability_curve(bins: Sequence[dict[str, Any]]) -> str:
    """How often answers are right for how sure they are, as SVG; points are the larger the more rows they stand for."""
    figure, (axes,) = _figure(4.2, 3.6)
    most = max(one["n_rows"] for one in bins)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect")
    axes.plot([one["confidence"] for one in bins], [one["accuracy"] for one in bins], color=BLUE, linewidth=1.5)
    sizes = [15 + 110 * one["n_rows"] / most for one in bins]
    axes.scatter([one["confidence"] for one in bins], [one["accuracy"] for one in bins], sizes, color=BLUE, label="bin")
    axes.set(xlabel="confidence", ylabel="share right", xlim=(0, 1.02), ylim=(0, 1.05))
    axes.legend(frameon=False, loc="upper left")
    return _svg(figure)


def lines(series: dict[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str) -> str:
    """Lines by name, each (x, y), as SVG."""
    figure, (axes,) = _figure(4.2, 3.2)
    for (name, (x, y)), colour, style in zip(series.items(), (BLUE, ORANGE, GREY), ("-", "--", ":"), strict=False):
        axes.plot(x, y, style, color=colour, linewidth=1.8, marker="o" if len(x) < 30 else "", markersize=4, label=name)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.ticklabel_format(useOffset=False)
    if len(series) > 1:
        axes.legend(frameon=False)
    return _svg(figure)


def bars(names: Sequence[str], counts: Sequence[float], marked: int, label: str) -> str:
    """Bars by name from left to right, as SVG; the `marked` one stands out."""
    figure, (axes,) = _figure(6.4, 2.6)
    axes.grid(False, axis="x")
    places = range(len(names))
    axes.bar(places, counts, color=[ORANGE if place == marked else BLUE for place in places], width=0.85)
    axes.annotate(
        "this text", (marked, counts[marked]), (0, 4), textcoords="offset points", ha="center", size=9, color=ORANGE
    )
    every = -(-len(names) // 16)  # names stay apart
    axes.set_xticks(places[::every], [_short(name, 14) for name in names[::every]])
    axes.set(xlabel=label, ylabel="texts", ylim=(0, max(1, max(counts)) * 1.15))
    return _svg(figure)


def _short(name: str, most: int = 28) -> str:
    """A name that fits, without what matplotlib would take for mathematics."""
    name = name if len(name) <= most else f"{name[: most - 1]}…"
    return name.replace("$", r"\$")


def as_text(curve: Curve, width: int = 64, height: int = 10) -> str:
    """The curve in characters: `*` for its points, `|` at the marked x."""
    lowest, highest = min(curve.y), max(curve.y)
    grid = [[" "] * width for _ in range(height)]

    def column(index: float) -> int:
        return round(index * (width - 1) / max(1, len(curve.x) - 1))

    marked = min(range(len(curve.x)), key=lambda index: abs(curve.x[index] - curve.marked))
    for line in grid:
        line[column(marked)] = "|"
    for index, value in enumerate(curve.y):
        row = round((highest - value) / ((highest - lowest) or 1) * (height - 1))
        grid[row][column(index)] = "*"
    labels = [f"{highest:8.3f} ", *["         "] * (height - 2), f"{lowest:8.3f} "]
    lines = [label + "".join(line).rstrip() for label, line in zip(labels, grid, strict=True)]
    ends = f"{curve.x[0]:.0e}".ljust(width - 5) + f"{curve.x[-1]:.0e}"
    return "\n".join([curve.name, *lines, f"         {ends}"])
