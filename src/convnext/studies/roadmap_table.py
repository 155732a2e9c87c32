"""The roadmap as a table for the terminal.

Parameters and multiply-accumulates are counted here on the built networks; the accuracies are the
paper's (Tables 10 and 11), and nothing here was trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convnext.models.roadmap import kept_rungs, roadmap

if TYPE_CHECKING:
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
