"""The figures of a study, drawn from its table alone: results.csv in, SVG and PNG out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convnext.atomic import atomic_write
from convnext.studies.results import read_results
from convnext.studies.scatter import COSTS, scatter
from convnext.studies.staircase import staircase
from convnext.tasks.figures import save_bytes


def write_figures(root: Path) -> Mapping[str, str]:
    """Draw every figure that the table has the numbers for, into `figures/`.

    Returns:
        The SVG of each by name: "staircase", and those of `COSTS`.

    Raises:
        ValueError: If results.csv is not a table of results.
    """
    results = read_results(root / "results.csv")
    figures: dict[str, Any] = {"staircase": staircase(results)}
    figures |= {name: scatter(results, cost) for name, cost in COSTS.items()}
    drawn = {}
    for name, figure in figures.items():
        if figure is None:
            continue
        for form in ("svg", "png"):
            with atomic_write(root / "figures" / f"{name}.{form}") as path:
                content = save_bytes(figure, form)
                path.write_bytes(content)
            if form == "svg":
                drawn[name] = content.decode()
    return drawn
