"""Print a benchmark as a table, and draw it as a figure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from convnext.atomic import atomic_write, write_text
from convnext.benchmarking.measure import (
    KINDS,
    BenchmarkResult,
    NetworkResult,
    Timing,
    describe_limits,
)
from convnext.names import count_noun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def print_result(result: BenchmarkResult, console: Console) -> None:
    """Print a table of all backends, and the peak rates behind the utilizations."""
    table = Table(box=None, header_style="bold")
    for name in ("model", "batch", "backend"):
        table.add_column(name, no_wrap=name != "backend")
    for name in ("images/s", "ratio", "ms", "p90", "p99", "GB", "matmul", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for network in result.networks:
        for t in network.timings:
            table.add_row(network.model, str(t.batch), _name_of(t), *_numbers(t))
    console.print(table)
    console.print(
        f"ms: median of a batch over {result.rounds} rounds. ratio: speedup over the first backend "
        f"of each batch size. GB: peak memory of the process, including building. matmul, memory: "
        f"utilization of this machine's measured peak rates ({describe_limits(result.limits)}).",
        soft_wrap=True,
    )
    facts = result.environment
    console.print(
        f"{facts['cpu'] if facts['device'] == 'cpu' else facts['device']}, "
        f"{count_noun(facts['threads'], 'thread')}, torch {facts['torch']}, images of "
        + ", ".join(sorted({f"{h} x {w}" for h, w in (n.size for n in result.networks)})),
        style="dim",
        soft_wrap=True,
    )


def _name_of(t: Timing) -> str:
    return t.form if t.form == KINDS[t.kind] else f"{KINDS[t.kind]}: {t.form}"


def _numbers(t: Timing) -> list[str]:
    if t.failure or math.isnan(t.seconds):
        return [t.failure or "failed", *[""] * 7]
    tail = ["", ""] if t.latency_ms is None else [f"{t.latency_ms[p]:.1f}" for p in ("p90", "p99")]
    return [
        f"{t.images_per_s:,.1f}",
        "" if t.ratio is None else f"{t.ratio:.2f}",
        f"{1000 * t.seconds:,.1f}",
        *tail,
        f"{t.peak_gb:.2f}",
        "" if math.isnan(t.matrix_share) else _percent(t.matrix_share),
        _percent(t.memory_share),
    ]


def write_result(result: BenchmarkResult, folder: str | Path) -> list[Path]:
    """Write `benchmark.json`, and the figure as `benchmark.png` and `.svg`; return the paths."""
    from convnext.tasks.figures import save_bytes

    paths = [Path(folder) / f"benchmark.{ending}" for ending in ("json", "png", "svg")]
    write_text(paths[0], json.dumps(result.to_dict(), indent=1) + "\n")
    for path in paths[1:]:
        with atomic_write(path) as temporary:
            temporary.write_bytes(save_bytes(draw(result), path.suffix[1:]))
    return paths


def draw(result: BenchmarkResult) -> Figure:
    """Draw images per second of all backends, with a panel per network and the machine's limit."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from convnext.tasks.figures import figure_style

    fastest = max(result.limits.flops.values())
    heights = [len(n.timings) + 1.6 for n in result.networks]
    with figure_style(**{"axes.grid.axis": "x"}):
        figure = Figure(figsize=(7.2, 0.24 * sum(heights) + 0.7), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(
            len(result.networks), squeeze=False, gridspec_kw={"height_ratios": heights}
        )[:, 0]
        for axes, network in zip(panels, result.networks, strict=True):
            _draw_network(axes, network, fastest / network.demand.flops)
        panels[-1].set_xlabel("images per second; dashed: limit by this machine's matrix products")
    return figure


def _draw_network(axes: Axes, network: NetworkResult, limit: float) -> None:
    from convnext.tasks.figures import ACCENT, HIT, INK, MISS, MUTED

    colors = dict(zip(KINDS, (MUTED, HIT, ACCENT, MISS), strict=True))
    shown = [t for t in network.timings if not math.isnan(t.seconds)]
    for y, t in enumerate(shown):
        axes.barh(y, t.images_per_s, color=colors[t.kind], height=0.72)
        ratio = "" if t.ratio is None else f"  {t.ratio:.2f}x"
        label = f"{t.images_per_s:,.1f}{ratio}"
        axes.annotate(label, (t.images_per_s, y), (4, 0), textcoords="offset points", va="center")
    # A limit far away would leave no room for the bars.
    fastest = max((t.images_per_s for t in shown), default=limit)
    is_near = limit <= 4 * fastest
    if is_near:
        axes.axvline(limit, color=INK, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(shown)), [f"batch {t.batch}, {KINDS[t.kind]}" for t in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * max(limit, fastest) if is_near else 1.3 * fastest)
    beyond = "" if is_near else f"  (limit: {limit:,.0f} images/s)"
    axes.set_title(f"{network.model}{beyond}", loc="left", fontsize=10)


def _percent(share: float) -> str:
    """Return a fraction in percent, with one digit if it is below one percent."""
    return f"{100 * share:.1g} %" if share < 0.01 else f"{100 * share:.0f} %"
