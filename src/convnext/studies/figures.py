"""Draw the figures of a study from its results.csv, as SVG and PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext.atomic import atomic_write
from convnext.studies.compare import Result, read_results
from convnext.studies.roadmap_figure import GROUPS
from convnext.studies.staircase import color_of, staircase
from convnext.studies.statistics import Summary, summarize
from convnext.tasks.figures import save_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_figures(root: Path) -> Mapping[str, str]:
    """Draw all figures for which the table has numbers, into `figures/`.

    Returns:
        The SVG of each figure by name: "staircase", and the keys of `COSTS`.

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


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A cost on the horizontal axis of a figure."""

    column: str
    label: str
    unit: float = 1.0
    bubbles: bool = False
    """Whether the area of a mark grows with the parameters."""


COSTS = {
    "top1_macs": Cost(column="macs", label="10⁶ MACs per image", unit=1e6, bubbles=True),
    "top1_throughput": Cost(
        column="infer_images_per_s", label="images per second, inference, measured here"
    ),
    "top1_params": Cost(column="params", label="10⁶ parameters", unit=1e6),
}


def scatter(results: Sequence[Result], cost: Cost) -> Figure | None:
    """Draw mean accuracies against a cost; None if fewer than two networks have both.

    Args:
        results: The table of a study.
        cost: One of `COSTS`.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from convnext.tasks.figures import INK, figure_style

    shown = [
        s
        for s in summarize(results)
        if s.estimate is not None
        and getattr(s.first, cost.column) is not None
        and s.first.runs_as == s.first.entry
    ]
    if len(shown) < 2:
        return None
    with figure_style():
        fig = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = fig.subplots()
        sizes = _areas(shown) if cost.bubbles else [40.0] * len(shown)
        points = []
        for summary, area in zip(shown, sizes, strict=True):
            assert summary.estimate is not None
            x = getattr(summary.first, cost.column) / cost.unit
            color = color_of(summary)
            seeds = list(summary.scores.values())
            axes.plot([x] * len(seeds), seeds, "_", color=color, alpha=0.6, markersize=5)
            alpha = 0.55 if summary.first.kept or summary.first.study != "roadmap" else 0.2
            axes.scatter(
                [x], [summary.estimate.mean], s=area, color=color, alpha=alpha, edgecolors=color
            )
            points.append((x, summary.estimate.mean, summary.first.entry))
        axes.margins(0.1)
        axes.set_xlabel(cost.label)
        axes.set_ylabel(f"{shown[0].first.metric_label}, %, measured here")
        axes.grid(True, axis="both")
        _label(axes, fig, points, color=INK)
        groups = list(dict.fromkeys(s.first.group for s in shown))
        if len(groups) > 1:
            handles = [
                Line2D(
                    [],
                    [],
                    marker="o",
                    linestyle="",
                    color=GROUPS.get(g, GROUPS["other"])[1],
                    label=GROUPS.get(g, GROUPS["other"])[0],
                )
                for g in groups
            ]
            fig.legend(handles=handles, loc="outside upper center", ncols=min(4, len(groups)))
        if cost.bubbles:
            note = f"area grows with parameters, {_span(shown)}"
            axes.annotate(
                note, (1, 0.01), xycoords="axes fraction", ha="right", fontsize=8, color=INK
            )
    return fig


def _areas(summaries: Sequence[Summary]) -> list[float]:
    params = [s.first.params or 0 for s in summaries]
    return [40 + 380 * p / max(params) for p in params]


def _span(summaries: Sequence[Summary]) -> str:
    params = [(s.first.params or 0) / 1e6 for s in summaries]
    return f"{min(params):.2f} to {max(params):.2f} M"


def _label(
    axes: Axes, fig: Figure, points: Sequence[tuple[float, float, str]], **style: Any
) -> None:
    """Label every point without overlaps; a label that is moved away gets a short line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(fig)
    fig.draw_without_rendering()
    renderer = fig.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    taken = [_square(axes.transData.transform((x, y))) for x, y, _ in points]
    for x, y, name in points:
        best = None
        for dx, dy, ha in _OFFSETS:
            text = axes.annotate(
                name,
                (x, y),
                xytext=(dx, dy),
                textcoords="offset points",
                ha=ha,
                va="center",
                fontsize=7.5,
                annotation_clip=False,
                **style,
            )
            box = text.get_window_extent(renderer).padded(1)
            overlap = sum(_common(box, other) for other in taken)
            outside = box.width * box.height - _common(box, frame)
            score = overlap + 3 * outside
            if best is None or score < best[0]:
                if best is not None:
                    best[1].remove()
                best = (score, text, box, (dx, dy))
            else:
                text.remove()
            if best[0] == 0:
                break
        assert best is not None
        taken.append(best[2])
        if max(abs(best[3][0]), abs(best[3][1])) > 16:
            axes.annotate(
                "",
                (x, y),
                xytext=best[3],
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": "#667080", "linewidth": 0.6},
            )


# Offsets in points to try for a label, nearest first.
_OFFSETS = [
    (r * dx, r * dy, "left" if dx > 0 else "right" if dx < 0 else "center")
    for r in (9, 15, 24, 36, 50)
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 0.8), (-1, 0.8), (1, -0.8), (-1, -0.8))
]


def _square(center: Any) -> Any:
    from matplotlib.transforms import Bbox

    x, y = center
    return Bbox([[x - 6, y - 6], [x + 6, y + 6]])


def _common(a: Any, b: Any) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(0.0, width) * max(0.0, height))
