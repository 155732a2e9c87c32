"""The figure of a robustness evaluation, drawn from the rows of robustness.csv alone."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import blended_transform_factory

from convnext.tasks.classification.robustness.corruptions import CORRUPTIONS, KINDS
from convnext.tasks.figures import ACCENT, GRID, INK, MISS, MUTED, figure_style, shorten

Row = Mapping[str, str]
GAP = 0.35
"""Gap between the kinds of corruptions, in rows."""


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of robustness.csv."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def draw_robustness(rows: Sequence[Row]) -> Figure:
    """Draw top-1 under every condition: a map of corruptions by severity, or bars.

    Args:
        rows: The rows of a robustness.csv.
    """
    clean = next((float(row["top1"]) for row in rows if row["corruption"] == "clean"), None)
    corrupted = [row for row in rows if row["corruption"] != "clean"]
    if any(int(row["severity"]) for row in corrupted):
        return _map(corrupted, clean)
    return _bars(corrupted, clean)


def _map(rows: Sequence[Row], clean: float | None) -> Figure:
    by_name: dict[str, dict[int, float]] = {}
    for row in rows:
        by_name.setdefault(row["corruption"], {})[int(row["severity"])] = float(row["top1"])
    levels = sorted({level for values in by_name.values() for level in values})
    counted = {row["corruption"] for row in rows if row["counted"] == "1"} or set(by_name)
    overall = fmean(fmean(by_name[name].values()) for name in by_name if name in counted)
    kinds = _kinds(list(by_name))
    height = len(by_name) + GAP * (len(kinds) - 1)
    mean_at = len(levels) + 0.2
    with figure_style(**{"axes.grid": False}):
        # Wide enough for the title.
        fig = Figure(figsize=(max(3.5 + 0.62 * len(levels), 5.6), 1.25 + 0.27 * height))
        FigureCanvasAgg(fig)
        inches = fig.get_size_inches()
        left = 0.12 / inches[0]
        axes = fig.subplots()
        axes.set_xlim(-0.05, mean_at + 1.05)
        axes.set_ylim(height + 0.05, -0.05)
        y = 0.0
        for kind, names in kinds:
            if kind:
                beside = blended_transform_factory(fig.transFigure, axes.transData)
                axes.text(left, y + 0.5, kind, transform=beside, color=MUTED, va="center")
            for name in names:
                label = name.replace("_", " ") + ("" if name in counted else "*")
                axes.text(-0.2, y + 0.5, label, ha="right", va="center", fontsize=9)
                for place, level in enumerate(levels):
                    _cell(axes, place, y, by_name[name].get(level), clean)
                _cell(axes, mean_at, y, fmean(by_name[name].values()), clean, bold=True)
                y += 1
            y += GAP
        for place, level in enumerate(levels):
            axes.text(place + 0.5, -0.3, str(level), ha="center", va="bottom", color=MUTED)
        axes.text(mean_at + 0.5, -0.3, "mean", ha="center", va="bottom", color=MUTED)
        axes.text(-0.2, -0.3, "severity", ha="right", va="bottom", color=MUTED)
        axes.set_axis_off()
        title = f"top-1, %, under {rows[0]['benchmark']}: mean {overall:.1f}"
        title += "" if clean is None else f", clean {clean:.1f}"
        fig.subplots_adjust(
            left=2.5 / inches[0],
            right=1 - 0.1 / inches[0],
            bottom=0.35 / inches[1],
            top=1 - 0.75 / inches[1],
        )
        fig.text(left, 1 - 0.24 / inches[1], title, fontsize=10.5, fontweight="bold")
        under = f"{rows[0]['model']}, {rows[0]['source']}"
        fig.text(left, 1 - 0.44 / inches[1], shorten(under, 70), color=MUTED)
        foot = "The deeper the orange, the more of the clean top-1 is lost."
        if clean is None:
            foot = "The deeper the orange, the higher the error."
        foot += "" if counted == set(by_name) else "   * not in the mean"
        fig.text(left, 0.12 / inches[1], foot, fontsize=8, color=MUTED)
    return fig


def _cell(
    axes: Axes, x: float, y: float, top1: float | None, clean: float | None, bold: bool = False
) -> None:
    """Draw one value; one that was not measured is a dash."""
    if top1 is None:
        axes.text(x + 0.5, y + 0.5, "-", ha="center", va="center", color=MUTED)
        return
    best = clean or 100.0
    lost = min(max((best - top1) / best, 0.0), 1.0)
    axes.add_patch(
        Rectangle((x + 0.03, y + 0.05), 0.94, 0.9, facecolor=MISS, alpha=0.03 + 0.82 * lost, lw=0)
    )
    weight = "bold" if bold else "normal"
    axes.text(
        x + 0.5, y + 0.5, f"{top1:.1f}", ha="center", va="center", fontsize=8.5, fontweight=weight
    )


def _kinds(names: list[str]) -> list[tuple[str, list[str]]]:
    """Return the names by the kind that the paper of ImageNet-C sorts them into, the rest last."""
    groups: list[tuple[str, list[str]]] = []
    known = list(CORRUPTIONS)
    for kind, count in KINDS.items():
        members, known = known[:count], known[count:]
        groups.append((kind, [name for name in names if name in members]))
    groups.append(("", [name for name in names if name not in CORRUPTIONS]))
    return [(kind, members) for kind, members in groups if members]


def _bars(rows: Sequence[Row], clean: float | None) -> Figure:
    """Draw the accuracy on a benchmark with one condition, below the clean accuracy."""
    bars = [(row["benchmark"], float(row["top1"]), ACCENT) for row in rows]
    if clean is not None:
        bars.insert(0, ("clean", clean, MUTED))
    with figure_style(**{"axes.grid": False}):
        fig = Figure(figsize=(5.2, 0.9 + 0.42 * len(bars)), layout="constrained")
        FigureCanvasAgg(fig)
        axes = fig.subplots()
        for y, (_, value, color) in enumerate(bars):
            axes.barh(y, 100, color=GRID, height=0.6, alpha=0.5)
            axes.barh(y, value, color=color, height=0.6)
            inside = value > 85
            axes.text(
                value + (-1.5 if inside else 1.5),
                y,
                f"{value:.1f}",
                ha="right" if inside else "left",
                va="center",
                fontweight="bold",
                color="white" if inside else INK,
            )
        axes.set_yticks(range(len(bars)), [label for label, _, _ in bars])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel(f"top-1, %, of {shorten(rows[0]['model'], 40)}")
    return fig
