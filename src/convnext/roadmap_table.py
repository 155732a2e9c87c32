"""The road as a table for the terminal and as a staircase for a paper.

Parameters and multiply-accumulates are counted here on the built networks; the accuracies are the
paper's (Tables 10 and 11), and nothing here was trained.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext.atomic import atomic_write, write_text
from convnext.road import Rung, roadmap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class RoadmapRow:
    """One rung: what it changes, what it costs by our count, and what the paper reports."""

    regime: str
    rung: str
    group: str
    what: str
    departs_from: str
    kept: bool
    """Whether the road goes on from here, as it does not from kernels 9 and 11."""
    params: int
    macs: int
    paper_top1: float
    paper_top1_std: float | None
    paper_gmacs: float
    paper_misprint: bool


@dataclass(frozen=True, kw_only=True)
class Regime:
    """What the rungs of a regime lead to and are compared with (paper, Tables 10 and 11)."""

    title: str
    rival: str
    rival_top1: float
    rival_gmacs: float
    runs: str


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
}
# Okabe and Ito's colours, which stay apart for every kind of colour vision.
GROUPS = {
    "start": ("start", "#667080"),
    "macro": ("macro design", "#0072b2"),
    "resnext": ("ResNeXt-ify", "#c77b00"),
    "inverted": ("inverted bottleneck", "#009e73"),
    "kernel": ("large kernel", "#b8558a"),
    "micro": ("micro design", "#d55e00"),
}
# Where the names of the rungs begin, in widths of the plot to the left of it.
NAMES = -1.28
MISPRINT = (
    "Table 10 of the paper prints 4.46 and 4.49 GMACs at the last two rungs. No consistent "
    "definition gives them: Figure 2 prints 4.2 and 4.5, Table 11 shows no change from batch to "
    "layer norm, and the released ConvNeXt-T counts 4.4555."
)


def roadmap_rows(regime: str = "resnet50") -> list[RoadmapRow]:
    """Return the rungs of a regime in order, each counted on the network as it is built.

    Raises:
        ValueError: If the regime is neither "resnet50" nor "resnet200".
    """
    import torch

    from convnext.costs import cost
    from convnext.family import create_model

    rungs = roadmap(regime)
    kept = _kept(rungs)
    rows = []
    for rung in rungs:
        # Shapes suffice for counting; no memory is touched.
        with torch.device("meta"):
            counted = cost(create_model(f"roadmap/{regime}/{rung.name}"))
        rows.append(
            RoadmapRow(
                regime=regime,
                rung=rung.name,
                group=rung.group,
                what=rung.what,
                departs_from=rung.departs_from,
                kept=rung.name in kept,
                params=counted.params,
                macs=counted.macs,
                paper_top1=rung.paper_top1,
                paper_top1_std=rung.paper_top1_std,
                paper_gmacs=rung.paper_gmacs,
                paper_misprint=rung.paper_misprint,
            )
        )
    return rows


# Header, the narrowest terminal that shows the column, alignment, and the cell of a row.
Column = tuple[str, int, Any, Callable[[RoadmapRow], str]]
COLUMNS: tuple[Column, ...] = (
    ("rung", 0, "left", lambda row: row.rung if row.kept else f"{row.rung} (not kept)"),
    ("what changes", 72, "left", lambda row: row.what),
    ("params M", 60, "right", lambda row: f"{row.params / 1e6:.2f}"),
    ("GMACs", 0, "right", lambda row: f"{row.macs / 1e9:.2f}"),
    ("paper", 48, "right", lambda row: f"{row.paper_gmacs:.2f}{_star(row)}"),
    ("top-1 %", 0, "right", lambda row: f"{row.paper_top1:.2f}"),
    ("±", 100, "right", lambda row: _std(row)),
)


def print_roadmap(rows: Sequence[RoadmapRow], console: Console) -> None:
    """Print the road as a table, a block per group; a narrow terminal sees fewer columns."""
    from rich.table import Table

    facts = REGIME_FACTS[rows[0].regime]
    columns = [
        column
        for column in COLUMNS
        if column[1] <= console.width and any(column[3](row) for row in rows)
    ]
    shown = {header for header, *_ in columns}
    table = Table(
        title=f"{facts.title} at 224 px", title_style="bold", title_justify="left", box=None
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
        "rung": f"{facts.rival}, to compare",
        "paper": f"{facts.rival_gmacs:.2f}",
        "top-1 %": f"{facts.rival_top1:.2f}",
    }
    table.add_row()
    table.add_row(*(rival.get(header, "") for header, *_ in columns), style="italic")
    console.print(table)
    console.print(
        "\nGMACs, 10^9 multiply-accumulates, are counted here on the built networks. The column "
        f"paper and the accuracies are the paper's: {facts.runs.split(',')[0]}, none trained here.",
        style="dim",
    )
    if "paper" in shown and any(row.paper_misprint for row in rows):
        console.print(f"* {MISPRINT}", style="dim")


def draw_staircase(rows: Sequence[RoadmapRow], path_stem: str | Path, regime: str) -> None:
    """Write the road as a figure, `path_stem`.svg and .png, and its numbers as .csv."""
    from convnext.figures import save_bytes

    stem = Path(path_stem)
    fig = staircase(rows, REGIME_FACTS[regime])
    write_text(f"{stem}.csv", staircase_csv(rows, REGIME_FACTS[regime]))
    for form in ("svg", "png"):
        with atomic_write(f"{stem}.{form}") as path:
            # Letters as outlines look the same on a machine without the font.
            path.write_bytes(save_bytes(fig, form, **{"svg.fonttype": "path"}))


def staircase_csv(rows: Sequence[RoadmapRow], facts: Regime) -> str:
    """Return the rows and, as the last line, the rival that the figure compares them with."""
    text = io.StringIO()
    names = [f.name for f in fields(RoadmapRow)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
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
    """Draw a line per rung from top to bottom: the paper's top-1 as a dot, our MACs as a bar."""
    from matplotlib.figure import Figure

    from convnext.figures import INK, MUTED, figure_style

    places, headings = _places(rows)
    bottom = places[-1] + 1.7
    margins = {"left": 0.37, "right": 0.925, "top": 0.9, "bottom": 0.125, "wspace": 0.31}
    with figure_style():
        fig = Figure(figsize=(8.2, 7.2))
        dots, bars = fig.subplots(
            1, 2, sharey=True, gridspec_kw=margins | {"width_ratios": (1.35, 1)}
        )
        dots.set_ylim(bottom + 0.7, -1.5)
        _draw_top1(dots, rows, places)
        _draw_macs(bars, rows, places)
        for y, group in headings:
            label, colour = GROUPS[group]
            _beside(dots, label, y, x=NAMES, weight="bold", color=colour)
        for row, y in zip(rows, places, strict=True):
            ink = INK if row.kept else MUTED
            _beside(dots, row.what + ("" if row.kept else ", not kept"), y, x=NAMES, color=ink)
            weight = "bold" if row is rows[-1] else "normal"
            _beside(dots, f"{row.paper_top1:.2f}", y, color=ink, weight=weight)
            _beside(bars, f"{_aligned(row.macs / 1e9)}{_star(row)}", y, color=ink, weight=weight)
        _beside(dots, f"{facts.rival}, for comparison", bottom, x=NAMES, weight="bold")
        for axes, value in ((dots, facts.rival_top1), (bars, facts.rival_gmacs)):
            axes.plot([value, value], [-0.9, bottom], "--", color=MUTED, linewidth=1, zorder=0.5)
            axes.plot([value], [bottom], "D", color=INK, markersize=5.5)
            _beside(axes, _aligned(value), bottom)
        fig.text(0.015, 0.956, f"{facts.title}, one decision at a time", fontsize=14, weight="bold")
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

    from convnext.figures import GRID, PAPER

    kept = [(row.paper_top1, y) for row, y in zip(rows, places, strict=True) if row.kept]
    # Down to the next rung, then across to its accuracy.
    x = [value for value, _ in kept for _ in range(2)][:-1]
    y = [place for _, place in kept for _ in range(2)][1:]
    axes.plot(x, y, color="#b4bcc7", linewidth=1.4, zorder=2)
    for row, place in zip(rows, places, strict=True):
        colour = GROUPS[row.group][1]
        axes.errorbar(
            row.paper_top1,
            place,
            xerr=row.paper_top1_std,
            fmt="o",
            color=colour,
            markerfacecolor=colour if row.kept else PAPER,
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
    from convnext.figures import PAPER

    for row, place in zip(rows, places, strict=True):
        colour = GROUPS[row.group][1]
        axes.barh(
            place,
            row.macs / 1e9,
            height=0.6,
            color=colour if row.kept else PAPER,
            edgecolor=colour,
            hatch=None if row.kept else "/////",
            linewidth=0.8,
        )
    axes.set_xlabel("10⁹ MACs at 224 px (counted)")
    axes.grid(False)


def _notes(rows: Sequence[RoadmapRow], facts: Regime) -> str:
    notes = f"Top-1: arXiv 2201.03545, {facts.runs}. Hollow, hatched: tried, not kept. "
    notes += f"{facts.rival}: the paper's figures."
    if any(row.paper_misprint for row in rows):
        notes += (
            "\n* Table 10 of the paper prints 4.46 and 4.49; its Figure 2 prints 4.2 and 4.5, "
            "and the released ConvNeXt-T counts 4.4555."
        )
    return notes


def _places(rows: Sequence[RoadmapRow]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the vertical place of every row, and of the heading above each group."""
    places: list[float] = []
    headings: list[tuple[float, str]] = []
    y = -1.0
    for i, row in enumerate(rows):
        if i == 0 or row.group != rows[i - 1].group:
            headings.append((y + (0.35 if i else 0), row.group))
            y += 1.35 if i else 1.0
        places.append(y)
        y += 1
    return places, headings


def _beside(axes: Axes, words: str, y: float, *, x: float = 1.0, **style: Any) -> None:
    """Write beside the axes at a height in data units: at a column on the left, or at the right."""
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


def _kept(rungs: Sequence[Rung]) -> set[str]:
    """Return the names on the way back from the last rung to the first."""
    before = {rung.name: rung.departs_from for rung in rungs}
    name, kept = rungs[-1].name, {rungs[0].name}
    while name not in kept:
        kept.add(name)
        name = before[name]
    return kept


def _aligned(value: float) -> str:
    """Return a number as wide as 15.01, the missing digit a space of a digit's width."""
    return f"{value:5.2f}".replace(" ", "\u2007")


def _star(row: RoadmapRow) -> str:
    return "*" if row.paper_misprint else ""


def _std(row: RoadmapRow) -> str:
    return "" if row.paper_top1_std is None else f"{row.paper_top1_std:.2f}"
