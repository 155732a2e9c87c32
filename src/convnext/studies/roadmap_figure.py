"""The roadmap as a figure: the steps of the paper's Figure 2, drawn from a CSV beside it.

Also defines what the other study figures share: the groups, their colors and the step line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from convnext.atomic import atomic_write, write_text
from convnext.studies.roadmap_table import REGIME_FACTS, Regime, RoadmapRow, is_small, star

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The left edge of the step names, in axes widths.
NAMES = -1.28


def draw_staircase(rows: Sequence[RoadmapRow], path_stem: str | Path, regime: str) -> None:
    """Write the roadmap as a figure, `path_stem`.svg and .png, and its numbers as .csv."""
    from convnext.tasks.figures import save_bytes

    stem = Path(path_stem)
    fig = staircase(rows, REGIME_FACTS[regime])
    write_text(f"{stem}.csv", staircase_csv(rows, REGIME_FACTS[regime]))
    for form in ("svg", "png"):
        with atomic_write(f"{stem}.{form}") as path:
            # Outlined text looks the same on a machine without the font.
            path.write_bytes(save_bytes(fig, form, **{"svg.fonttype": "path"}))


def staircase_csv(rows: Sequence[RoadmapRow], facts: Regime) -> str:
    """Return the rows as CSV; the last line is the rival network, if any."""
    text = io.StringIO()
    names = [f.name for f in fields(RoadmapRow)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    if facts.rival:
        writer.writerow(
            {
                "regime": rows[0].regime,
                "rung": facts.rival,
                "group": "rival",
                "paper_top1": facts.rival_top1,
                "paper_gmacs": facts.rival_gmacs,
            }
        )
    return text.getvalue()


def staircase(rows: Sequence[RoadmapRow], facts: Regime) -> Figure:
    """Draw one row per step: the paper's top-1 as a dot, the counted MACs as a bar."""
    from matplotlib.figure import Figure

    from convnext.tasks.figures import INK, MUTED, figure_style

    heights, headings = places([row.group for row in rows])
    bottom = heights[-1] + (1.7 if facts.rival else 0)
    unit = 1e6 if is_small(rows[0]) else 1e9
    margins = {"left": 0.37, "right": 0.925, "top": 0.9, "bottom": 0.125, "wspace": 0.31}
    with figure_style():
        fig = Figure(figsize=(8.2, 7.2))
        dots, bars = fig.subplots(
            1, 2, sharey=True, gridspec_kw=margins | {"width_ratios": (1.35, 1)}
        )
        dots.set_ylim(bottom + 0.7, -1.5)
        _draw_top1(dots, rows, heights)
        _draw_macs(bars, rows, heights)
        for y, group in headings:
            label, color = GROUPS[group]
            beside(dots, label, y, x=NAMES, weight="bold", color=color)
        for row, y in zip(rows, heights, strict=True):
            ink = INK if row.kept else MUTED
            beside(dots, row.what + ("" if row.kept else ", not kept"), y, x=NAMES, color=ink)
            weight = "bold" if row is rows[-1] else "normal"
            beside(dots, f"{row.paper_top1:.2f}", y, color=ink, weight=weight)
            beside(bars, f"{aligned(row.macs / unit)}{star(row)}", y, color=ink, weight=weight)
        rival = ((dots, facts.rival_top1), (bars, facts.rival_gmacs)) if facts.rival else ()
        if rival:
            beside(dots, f"{facts.rival}, for comparison", bottom, x=NAMES, weight="bold")
        for axes, value in rival:
            axes.plot([value, value], [-0.9, bottom], "--", color=MUTED, linewidth=1, zorder=0.5)
            axes.plot([value], [bottom], "D", color=INK, markersize=5.5)
            beside(axes, aligned(value), bottom)
        fig.text(0.015, 0.956, _title(facts), fontsize=14, weight="bold")
        fig.text(
            0.015,
            0.926,
            "Accuracies are the paper's, nothing was trained here; costs are counted on the built "
            "networks.",
            color=MUTED,
        )
        fig.text(0.015, 0.015, _notes(rows, facts), fontsize=8, color=MUTED, linespacing=1.5)
    return fig


def _draw_top1(axes: Axes, rows: Sequence[RoadmapRow], places: Sequence[float]) -> None:
    from matplotlib.ticker import MultipleLocator

    from convnext.tasks.figures import GRID, PAPER

    kept = [(row.paper_top1, y) for row, y in zip(rows, places, strict=True) if row.kept]
    climb(axes, kept)
    for row, place in zip(rows, places, strict=True):
        color = GROUPS[row.group][1]
        axes.errorbar(
            row.paper_top1,
            place,
            xerr=row.paper_top1_std,
            fmt="o",
            color=color,
            markerfacecolor=color if row.kept else PAPER,
            markersize=5.5,
            elinewidth=1.4,
            capsize=2.5,
            zorder=3,
        )
    axes.set_xlabel("ImageNet-1K top-1, % (paper)")
    axes.xaxis.set_major_locator(MultipleLocator(1))
    axes.grid(True, axis="x", color=GRID)
    axes.grid(False, axis="y")
    axes.tick_params(labelleft=False)
    axes.margins(x=0.06)


def _draw_macs(axes: Axes, rows: Sequence[RoadmapRow], places: Sequence[float]) -> None:
    from convnext.tasks.figures import PAPER

    unit, name = (1e6, "10⁶") if is_small(rows[0]) else (1e9, "10⁹")
    for row, place in zip(rows, places, strict=True):
        color = GROUPS[row.group][1]
        axes.barh(
            place,
            row.macs / unit,
            height=0.6,
            color=color if row.kept else PAPER,
            edgecolor=color,
            hatch=None if row.kept else "/////",
            linewidth=0.8,
        )
    axes.set_xlabel(f"{name} MACs at {rows[0].image_size} px (counted)")
    axes.grid(False)


def _title(facts: Regime) -> str:
    return f"{facts.title}, one decision at a time" if facts.rival else facts.title


def _notes(rows: Sequence[RoadmapRow], facts: Regime) -> str:
    notes = f"Top-1: arXiv 2201.03545, {facts.runs}. Hollow, hatched: tried, not kept."
    if facts.rival:
        notes += f" {facts.rival}: the paper's figures."
    if any(row.paper_misprint for row in rows):
        notes += (
            "\n* Table 10 of the paper prints 4.46 and 4.49; its Figure 2 prints 4.2 and 4.5, "
            "and the released ConvNeXt-T counts 4.4555."
        )
    return notes


ROAD = ("start", "macro", "resnext", "inverted", "kernel", "micro")
# Okabe and Ito's colors, which remain distinct for every kind of color vision.
GROUPS = {
    "start": ("start", "#667080"),
    "macro": ("macro design", "#0072b2"),
    "resnext": ("ResNeXt-ify", "#c77b00"),
    "inverted": ("inverted bottleneck", "#009e73"),
    "kernel": ("large kernel", "#b8558a"),
    "micro": ("micro design", "#d55e00"),
    "variant": ("varied", "#1f66b5"),
    "ResNet": ("ResNet", "#667080"),
    "ResNeXt": ("ResNeXt", "#c77b00"),
    "Swin": ("Swin", "#009e73"),
    "ViT": ("ViT, DeiT", "#b8558a"),
    "ConvNeXt": ("ConvNeXt", "#0072b2"),
    "ConvNeXt (isotropic)": ("ConvNeXt, isotropic", "#56a5d8"),
    "other": ("other", "#8a6d3b"),
}
STAIRS = "#b4bcc7"


def places(groups: Sequence[str]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the vertical position of every row, and of each group's heading."""
    found: list[float] = []
    headings: list[tuple[float, str]] = []
    y = -1.0
    for i, group in enumerate(groups):
        if i == 0 or group != groups[i - 1]:
            headings.append((y + (0.35 if i else 0), group))
            y += 1.35 if i else 1.0
        found.append(y)
        y += 1
    return found, headings


def beside(axes: Axes, words: str, y: float, *, x: float = 1.0, **style: Any) -> None:
    """Write text beside the axes at a height in data units, in a left column or at the right."""
    axes.annotate(
        words,
        (x, y),
        xycoords=("axes fraction", "data"),
        xytext=(6 if x == 1 else 0, 0),
        textcoords="offset points",
        va="center",
        annotation_clip=False,
        **style,
    )


def aligned(value: float) -> str:
    """Format a number as wide as 15.01, padded with a figure space."""
    return f"{value:5.2f}".replace(" ", "\u2007")


def climb(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Draw a step line through (value, place): down to the next place, then across."""
    x = [value for value, _ in points for _ in range(2)][:-1]
    y = [place for _, place in points for _ in range(2)][1:]
    axes.plot(x, y, color=STAIRS, linewidth=1.4, zorder=2)
