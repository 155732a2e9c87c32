"""The roadmap figure of a study: Figure 2 of the paper with measured accuracies.

Measured accuracies and those of the paper never share an axis, because the data sets differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convnext.studies.compare import FINISHED, Result
from convnext.studies.roadmap_figure import GROUPS, ROAD, beside, climb, places
from convnext.studies.statistics import Summary, correlate, summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches of a row, of the margins above and below the rows, of the names, and of a panel.
ROW, ABOVE, BELOW, NAMES, PANEL = 0.27, 0.95, 0.95, 3.0, 2.25
MAX_NAME = 40


def staircase(results: Sequence[Result], title: str = "") -> Figure:
    """Draw a line per network: its seeds, mean and interval; its MACs; and the paper's accuracy.

    Args:
        results: The table of a study of kind "roadmap", "ablate" or "compare".
        title: The headline; "" for the name of the roadmap.
    """
    from matplotlib.figure import Figure

    from convnext.tasks.figures import INK, MUTED, figure_style

    summaries = summarize(results)
    at, headings = places([s.first.group for s in summaries])
    panels = [_draw_scores, *([_draw_macs] if _all(summaries, "macs") else [])]
    panels += [_draw_paper] if any(s.first.paper_top1 is not None for s in summaries) else []
    height = ABOVE + BELOW + ROW * (at[-1] + 3)
    width = NAMES + PANEL * (len(panels) + 0.35) + 0.3 * len(panels)
    with figure_style():
        fig = Figure(figsize=(width, height))
        margins = {
            "left": NAMES / width,
            "right": 1 - 0.62 / width,
            "top": 1 - ABOVE / height,
            "bottom": BELOW / height,
            "wspace": 0.36,
        }
        ratios = [1.35, 1.0, 0.8][: len(panels)]
        if len(panels) == 2 and panels[1] is _draw_paper:
            ratios = [1.35, 0.8]
        axes = fig.subplots(
            1,
            len(panels),
            sharey=True,
            squeeze=False,
            gridspec_kw={"width_ratios": ratios, **margins},
        )[0]
        axes[0].set_ylim(at[-1] + 0.9, -1.6)
        for panel, draw in zip(axes, panels, strict=True):
            draw(panel, summaries, at)
            panel.tick_params(labelleft=False)
        x = -(NAMES - 0.15) / (axes[0].get_position().width * width)
        for y, group in headings:
            label, color = GROUPS.get(group, GROUPS["other"])
            beside(axes[0], label, y, x=x, weight="bold", color=color)
        for summary, y in zip(summaries, at, strict=True):
            beside(axes[0], _label(summary), y, x=x, color=INK if summary.first.kept else MUTED)
        fig.text(
            0.15 / width, 1 - 0.3 / height, title or _title(results), fontsize=13, weight="bold"
        )
        fig.text(0.15 / width, 1 - 0.53 / height, _subtitle(results), color=MUTED)
        fig.text(
            0.15 / width, 0.1 / height, _notes(summaries), fontsize=8, color=MUTED, linespacing=1.5
        )
    return fig


def _draw_scores(axes: Axes, summaries: Sequence[Summary], at: Sequence[float]) -> None:
    from convnext.tasks.figures import INK, MUTED

    is_roadmap = summaries[0].first.study == "roadmap"
    drawn = [
        (s.estimate.mean, y)
        for s, y in zip(summaries, at, strict=True)
        if s.estimate is not None and s.first.kept and s.first.group in ROAD
    ]
    if is_roadmap and drawn:
        climb(axes, drawn)
    for summary, y in zip(summaries, at, strict=True):
        color, estimate = color_of(summary), summary.estimate
        if estimate is None:
            beside(axes, _state(summary), y, color=MUTED)
            continue
        values = list(summary.scores.values())
        axes.plot(
            values, [y] * len(values), "o", color=color, alpha=0.35, markersize=3.6, zorder=2.5
        )
        spread = None
        if estimate.low is not None and estimate.high is not None:
            spread = [[estimate.mean - estimate.low], [estimate.high - estimate.mean]]
        kept = summary.first.kept
        _mark(axes, estimate.mean, y, spread, fmt="D", color=color, markersize=5.2, kept=kept)
        last = is_roadmap and summary is summaries[-1]
        beside(axes, f"{estimate.mean:.2f}", y, color=INK, weight="bold" if last else "normal")
    for summary in summaries:
        if is_roadmap and summary.first.group not in ROAD and summary.estimate is not None:
            axes.axvline(
                summary.estimate.mean, linestyle="--", color=MUTED, linewidth=1, zorder=0.5
            )
    was_cut = _cut_to_seeds(axes, summaries, at)
    metric = summaries[0].first.metric_label
    arrows = " (arrows: the interval continues)" * was_cut
    axes.set_xlabel(f"{metric}, %, measured here{arrows}")
    _grid(axes, 5)


def _mark(
    axes: Axes, value: float, y: float, spread: Any, *, color: str, kept: bool, **style: Any
) -> None:
    """Draw a value with its spread; it is hollow if the step was not kept."""
    from convnext.tasks.figures import PAPER

    fill = color if kept else PAPER
    style |= {"color": color, "markerfacecolor": fill, "elinewidth": 1.1, "capsize": 2, "zorder": 3}
    axes.errorbar(value, y, xerr=spread, **style)


def _grid(axes: Axes, num_ticks: int) -> None:
    from matplotlib.ticker import MaxNLocator

    from convnext.tasks.figures import GRID

    axes.xaxis.set_major_locator(MaxNLocator(num_ticks))
    axes.grid(True, axis="x", color=GRID)
    axes.grid(False, axis="y")


def _cut_to_seeds(axes: Axes, summaries: Sequence[Summary], at: Sequence[float]) -> bool:
    """Scale the axis to the seeds, mark intervals beyond it, and return whether there are any."""
    values = [value for s in summaries for value in s.scores.values()]
    if not values:
        axes.set_xlim(0, 1)
        return False
    room = 0.12 * max(max(values) - min(values), 0.5)
    left, right = min(values) - room, max(values) + room
    axes.set_xlim(left, right)
    was_cut = False
    for summary, y in zip(summaries, at, strict=True):
        estimate = summary.estimate
        low, high = (estimate.low, estimate.high) if estimate is not None else (None, None)
        for end, marker, beyond in (
            (left, "<", low is not None and low < left),
            (right, ">", high is not None and high > right),
        ):
            if beyond:
                was_cut = True
                axes.plot(end, y, marker, color=color_of(summary), markersize=4, clip_on=False)
    return was_cut


def _draw_macs(axes: Axes, summaries: Sequence[Summary], at: Sequence[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    from convnext.tasks.figures import INK, PAPER

    unit, name = _unit([s.first.macs or 0 for s in summaries])
    for summary, y in zip(summaries, at, strict=True):
        color, macs = color_of(summary), (summary.first.macs or 0) / unit
        kept = summary.first.kept
        axes.barh(
            y,
            macs,
            height=0.6,
            color=color if kept else PAPER,
            edgecolor=color,
            hatch=None if kept else "/////",
            linewidth=0.8,
        )
        beside(axes, f"{macs:.2f}", y, color=INK)
    axes.set_xlabel(f"{name} MACs at {summaries[0].first.image_size} px, counted")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(False)


def _draw_paper(axes: Axes, summaries: Sequence[Summary], at: Sequence[float]) -> None:
    from convnext.tasks.figures import INK, MUTED

    known = [
        (s.first.paper_top1, y, s)
        for s, y in zip(summaries, at, strict=True)
        if s.first.paper_top1 is not None
    ]
    if summaries[0].first.study == "roadmap":
        climb(axes, [(v, y) for v, y, s in known if s.first.kept and s.first.group in ROAD])
    for value, y, summary in known:
        std, kept = summary.first.paper_top1_std, summary.first.kept
        _mark(axes, value, y, std, fmt="o", color=MUTED, markersize=4.5, kept=kept)
        beside(axes, f"{value:.2f}", y, color=INK)
    axes.set_xlabel("the paper's, ImageNet-1K, %")
    axes.margins(x=0.12)
    _grid(axes, 4)


def color_of(summary: Summary) -> str:
    """Return the color of an entry's group."""
    return GROUPS.get(summary.first.group, GROUPS["other"])[1]


def _label(summary: Summary) -> str:
    first = summary.first
    text = first.what if first.group in ROAD and first.study == "roadmap" else first.entry
    if first.study == "ablate" and not first.departs_from:
        text = f"{first.entry}, unchanged"
    if first.study == "roadmap" and not first.kept:
        text += ", not kept"
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 1]}…"


def _state(summary: Summary) -> str:
    states = {state for state in summary.states.values() if state != FINISHED}
    return ", ".join(sorted(states)) or "nothing"


def _title(results: Sequence[Result]) -> str:
    first = results[0]
    if first.study == "roadmap":
        return f"Roadmap {first.regime}, one decision at a time"
    if first.study == "ablate":
        return f"One decision varied at {first.entry}"
    return "Networks under one recipe"


def _subtitle(results: Sequence[Result]) -> str:
    seeds = sorted({result.seed for result in results})
    epochs = {result.epochs for result in results if result.epochs is not None}
    said = f"{len(seeds)} seed{'s'[: len(seeds) != 1]} each, one recipe and data order"
    if len(epochs) == 1:
        (number,) = epochs
        said += f", {number:g} epoch{'s'[: number != 1]}"
    conditions = {result.conditions for result in results if result.conditions}
    return said + (f"; {conditions.pop()}" if len(conditions) == 1 else "")


def _notes(summaries: Sequence[Summary]) -> str:
    said = []
    if any(len(s.scores) > 1 for s in summaries):
        said.append("Dots: seeds. Diamonds: their mean, with 95 % intervals over seeds.")
    else:
        said.append("Diamonds: the one seed.")
    if summaries[0].first.study == "roadmap" and any(not s.first.kept for s in summaries):
        said.append("Hollow, hatched: tried, not kept.")
    found = correlate(summaries)
    if found is not None:
        said.append(f"\nRank correlation with the paper: Spearman {found.spearman:+.2f}.")
    if any(s.first.runs_as != s.first.entry for s in summaries):
        same = next(s for s in summaries if s.first.runs_as != s.first.entry)
        said.append(f"{same.first.entry} is the same run as {same.first.runs_as} here.")
    return " ".join(said)


def _unit(macs: Sequence[int]) -> tuple[float, str]:
    return (1e6, "10⁶") if max(macs) < 1e8 else (1e9, "10⁹")


def _all(summaries: Sequence[Summary], name: str) -> bool:
    return all(getattr(s.first, name) is not None for s in summaries)
