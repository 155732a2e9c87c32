"""The roadmap as a table for the terminal, and as a figure: the steps of the paper's Figure 2.

Parameters and multiply-accumulates are counted here on the built networks; the accuracies of the
table are the paper's (Tables 10 and 11), and nothing here was trained. The figure is drawn from a
CSV beside it. What the other study figures share is here: the groups, their colors, the step line.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext.atomic import atomic_write, write_text
from convnext.models.roadmap import kept_rungs, roadmap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class RoadmapRow:
    """One step: its change, its counted costs, and the paper's figures."""

    regime: str
    rung: str
    group: str
    what: str
    departs_from: str
    kept: bool
    """Whether the next step builds on this one; false for kernels 9 and 11."""
    image_size: int
    """Side in pixels for which `macs` is counted; the stem's stride depends on it."""
    params: int
    macs: int
    paper_top1: float
    paper_top1_std: float | None
    paper_gmacs: float | None
    paper_misprint: bool


@dataclass(frozen=True, kw_only=True)
class Regime:
    """The title of a regime, and the network it is compared with (paper, Tables 10 and 11)."""

    title: str
    runs: str
    rival: str = ""
    rival_top1: float = math.nan
    rival_gmacs: float = math.nan
    image_size: int = 224
    """Default side in pixels for which costs are counted."""


REGIME_FACTS = {
    "resnet50": Regime(
        title="From ResNet-50 to ConvNeXt-T",
        rival="Swin-T",
        rival_top1=81.30,
        rival_gmacs=4.50,
        runs="mean of three runs, bars ± one standard deviation",
    ),
    "resnet200": Regime(
        title="From ResNet-200 to ConvNeXt-B",
        rival="Swin-B",
        rival_top1=83.50,
        rival_gmacs=15.43,
        runs="one run each",
    ),
    "mini": Regime(
        title="From ResNet to ConvNeXt, mini",
        runs="of its ResNet-50 regime, mean of three runs, bars ± one standard deviation",
        image_size=32,
    ),
}
MISPRINT = (
    "Table 10 of the paper prints 4.46 and 4.49 GMACs at the last two steps. No consistent "
    "definition gives them: Figure 2 prints 4.2 and 4.5, Table 11 shows no change from batch to "
    "layer norm, and the released ConvNeXt-T counts 4.4555."
)


def roadmap_rows(regime: str = "resnet50", *, image_size: int = 0) -> list[RoadmapRow]:
    """Return the steps of a regime in order, with costs counted on the built networks.

    Args:
        regime: "resnet50", "resnet200" or "mini".
        image_size: Side in pixels of the counted image; 0 for 224, or 32 for `mini`. Below 65
            pixels the stem has the smaller stride that `auto` chooses.

    Raises:
        ValueError: If there is no such regime.
    """
    import torch

    from convnext.models.flops import cost
    from convnext.models.roadmap import stem_stride
    from convnext.tasks.factory import create_model

    rungs = roadmap(regime)
    size = image_size or REGIME_FACTS[regime].image_size
    kept = kept_rungs(rungs)
    rows = []
    for rung in rungs:
        # Counting needs only shapes, so no memory is allocated.
        with torch.device("meta"):
            name = f"roadmap/{regime}/{rung.name}"
            counted = cost(create_model(name, stem_stride=stem_stride(size)), size)
        rows.append(
            RoadmapRow(
                regime=regime,
                rung=rung.name,
                group=rung.group,
                what=rung.what,
                departs_from=rung.departs_from,
                kept=rung.name in kept,
                image_size=size,
                params=counted.params,
                macs=counted.macs,
                paper_top1=rung.paper_top1,
                paper_top1_std=rung.paper_top1_std,
                paper_gmacs=rung.paper_gmacs,
                paper_misprint=rung.paper_misprint,
            )
        )
    return rows


GIGA, MEGA = "GMACs", "MMACs"

# Header, the narrowest terminal that shows the column, alignment, and the cell of a row.
Column = tuple[str, int, Any, Callable[[RoadmapRow], str]]
COLUMNS: tuple[Column, ...] = (
    ("step", 0, "left", lambda row: row.rung if row.kept else f"{row.rung} (not kept)"),
    ("what changes", 72, "left", lambda row: row.what),
    ("params M", 60, "right", lambda row: f"{row.params / 1e6:.2f}"),
    (GIGA, 0, "right", lambda row: "" if is_small(row) else f"{row.macs / 1e9:.2f}"),
    (MEGA, 0, "right", lambda row: f"{row.macs / 1e6:.2f}" if is_small(row) else ""),
    ("paper", 48, "right", lambda row: _paper_gmacs(row)),
    ("top-1 %", 0, "right", lambda row: f"{row.paper_top1:.2f}"),
    ("±", 100, "right", lambda row: _std(row)),
)


def print_roadmap(rows: Sequence[RoadmapRow], console: Console) -> None:
    """Print the roadmap as a table, by group; narrow terminals get fewer columns."""
    from rich.table import Table

    facts = REGIME_FACTS[rows[0].regime]
    columns = [
        column
        for column in COLUMNS
        if column[1] <= console.width and any(column[3](row) for row in rows)
    ]
    shown = {header for header, *_ in columns}
    table = Table(
        title=f"{facts.title}, at {rows[0].image_size} px",
        title_style="bold",
        title_justify="left",
        box=None,
    )
    for header, _, justify, _ in columns:
        table.add_column(header, justify=justify, no_wrap=header != "what changes")
    group = rows[0].group
    for row in rows:
        if row.group != group:
            table.add_row()
        group = row.group
        cells = [cell(row) for _, _, _, cell in columns]
        table.add_row(*cells, style=None if row.kept else "dim")
    rival = {
        "step": f"{facts.rival}, for comparison",
        "paper": f"{facts.rival_gmacs:.2f}",
        "top-1 %": f"{facts.rival_top1:.2f}",
    }
    if facts.rival and rows[0].image_size == facts.image_size:
        table.add_row()
        table.add_row(*(rival.get(header, "") for header, *_ in columns), style="italic")
    console.print(table)
    unit = "MMACs (10^6" if is_small(rows[0]) else "GMACs (10^9"
    whose = "The accuracies are the paper's: "
    if "paper" in shown:
        whose = "The column paper and the accuracies are the paper's: "
    console.print(
        f"\n{unit} multiply-accumulates) are counted on the built networks. {whose}"
        f"{', '.join(facts.runs.split(', ')[:-1]) or facts.runs}; nothing was trained here.",
        style="dim",
    )
    if "paper" in shown and any(row.paper_misprint for row in rows):
        console.print(f"* {MISPRINT}", style="dim")


def is_small(row: RoadmapRow) -> bool:
    """Whether the costs of a regime are millions rather than 10^9."""
    return row.regime == "mini"


def _paper_gmacs(row: RoadmapRow) -> str:
    at_224 = row.image_size == REGIME_FACTS["resnet50"].image_size
    return "" if row.paper_gmacs is None or not at_224 else f"{row.paper_gmacs:.2f}{star(row)}"


def star(row: RoadmapRow) -> str:
    """Return the mark of a cost that the paper misprints."""
    return "*" if row.paper_misprint else ""


def _std(row: RoadmapRow) -> str:
    return "" if row.paper_top1_std is None else f"{row.paper_top1_std:.2f}"


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
