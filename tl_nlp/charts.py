"""Curves for people who would rather look than read: as PNG and as text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Curve:
    """A line of points with one x marked; x is drawn on a logarithmic scale."""

    name: str
    x: list[float]
    y: list[float]
    marked: float


def write_png(path: Path, curves: list[Curve], x_label: str, y_label: str) -> None:
    """Draws the curves one beside the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(curves), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for place, curve in enumerate(curves, 1):
        axes = figure.add_subplot(1, len(curves), place)
        axes.plot(curve.x, curve.y, color="#2b5c8a", linewidth=2)
        axes.axvline(curve.marked, color="#c0392b", linestyle="--", label=f"suggested: {curve.marked:.1e}")
        axes.set(xscale="log", xlabel=x_label, ylabel=y_label, title=curve.name)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=120)


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
