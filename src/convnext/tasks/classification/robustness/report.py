"""What a measurement of robustness shows: a table, a CSV, and the figure drawn from the CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from convnext.atomic import atomic_write, write_text
from convnext.tasks.classification.robustness.corruptions import SEVERITIES
from convnext.tasks.classification.robustness.measure import Robustness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Top-1 errors and accuracies of the paper's Table 8, ImageNet-1K at 224: mCE, C-bar error, A, R,
# Sketch.
PAPER = {
    "roadmap/resnet50/resnet_baseline": (76.7, 57.7, 0.0, 36.1, 24.1),
    "convnext_tiny": (53.2, 40.0, 24.2, 47.2, 33.8),
    "convnext_base": (46.8, 34.4, 36.7, 51.3, 38.2),
}


def print_robustness(result: Robustness, console: Console) -> None:
    """Print the error at every severity, and the means."""
    if result.kind == "pictures":
        console.print(
            f"[bold]top-1 {100 - result.mean_error:.2f} %[/] on {result.num_images:,} images of "
            f"{result.title}, chosen among {result.num_classes:,} classes"
        )
        _print_paper(result, console)
        return
    severities = sorted({s for score in result.scores for s in score.errors})
    table = Table(box=None, header_style="bold", title="top-1 error, %", title_justify="left")
    table.add_column("corruption")
    for severity in severities:
        table.add_column(f"severity {severity}" if severity else "", justify="right")
    table.add_column("mean", justify="right")
    has_ce = any(score.ce is not None for score in result.scores)
    if has_ce:
        table.add_column("CE", justify="right")
    for score in result.scores:
        cells = [f"{score.errors[s]:.1f}" if s in score.errors else "-" for s in severities]
        ce = [("-" if score.ce is None else f"{score.ce:.1f}")] if has_ce else []
        table.add_row(score.corruption, *cells, f"{score.mean_error:.1f}", *ce)
    console.print(table)
    clean = ""
    if result.clean is not None:
        clean = f"; without corruption {100 - result.clean:.2f} %"
    console.print(
        f"[bold]mean error {result.mean_error:.2f} %[/]{clean}, on {result.num_images:,} images"
    )
    if result.kind == "c":
        if result.mce is not None:
            console.print(f"[bold]mCE {result.mce:.2f}[/], relative to AlexNet")
        else:
            console.print("no mCE: it needs all five severities of all fifteen corruptions")
    if result.kind == "corrupt":
        console.print(
            "These corruptions were made here (frost from a drawn texture, lengths scaled to the "
            "image): compare them with each other, not with published figures of ImageNet-C.",
            style="dim",
        )
    _print_paper(result, console)


def _print_paper(result: Robustness, console: Console) -> None:
    paper = PAPER.get(result.model)
    names = {"c": 0, "c-bar": 1, "imagenet-a": 2, "imagenet-r": 3, "sketch": 4}
    place = names.get(result.kind, names.get(result.title.lower()))
    if paper is not None and place is not None:
        what = ("mCE", "error, %", "top-1, %", "top-1, %", "top-1, %")[place]
        console.print(
            f"The paper reports {paper[place]:.1f} ({what}) for this network trained on "
            "ImageNet-1K at 224.",
            style="dim",
        )


def write_robustness(result: Robustness, folder: Path) -> list[Path]:
    """Write robustness.json, .csv, and the figure as .svg and .png; return what was written."""
    from convnext.figures import save_bytes

    written = [folder / f"robustness.{form}" for form in ("json", "csv")]
    write_text(written[0], json.dumps(result.to_dict(), indent=1) + "\n")
    write_text(written[1], robustness_csv(result))
    figure = draw_robustness(read_rows(written[1]))
    if figure is None:
        return written
    for form in ("svg", "png"):
        with atomic_write(folder / f"robustness.{form}") as path:
            path.write_bytes(save_bytes(figure, form))
        written.append(folder / f"robustness.{form}")
    return written


def robustness_csv(result: Robustness) -> str:
    """Return a row per condition; the clean images have the severity 0."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["corruption", "severity", "top1_error", "ce", "num_images"])
    if result.clean is not None:
        writer.writerow(["clean", 0, f"{100 - result.clean:.4f}", "", result.num_images])
    for score in result.scores:
        for severity, error in score.errors.items():
            ce = "" if score.ce is None else f"{score.ce:.4f}"
            writer.writerow([score.corruption, severity, f"{error:.4f}", ce, result.num_images])
    return text.getvalue()


def read_rows(path: Path) -> list[Mapping[str, str]]:
    """Return the rows of robustness.csv."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def draw_robustness(rows: Sequence[Mapping[str, str]]) -> Figure | None:
    """Draw accuracy against severity, a small plot per corruption; None with one condition only.

    Args:
        rows: Those of robustness.csv.
    """
    import matplotlib.ticker as ticker
    from matplotlib.figure import Figure

    from convnext.figures import ACCENT, INK, MUTED, figure_style

    clean = next((100 - float(r["top1_error"]) for r in rows if r["severity"] == "0"), None)
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["severity"] != "0":
            point = (int(row["severity"]), 100 - float(row["top1_error"]))
            curves.setdefault(row["corruption"], []).append(point)
    if not curves:
        return None
    columns = min(5, len(curves))
    lines = -(-len(curves) // columns)
    with figure_style():
        size = (1.75 * columns + 0.4, 1.5 * lines + 0.6)
        fig = Figure(figsize=size, layout="constrained")
        grid: Any = fig.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes, (name, points) in zip(grid.flat, curves.items(), strict=False):
            x, y = zip(*sorted(points), strict=True)
            if clean is not None:
                axes.axhline(clean, color=MUTED, linewidth=1, linestyle="--")
            axes.plot(x, y, "o-", color=ACCENT, markersize=3.5)
            axes.set_title(name.replace("_", " "), fontsize=8.5, loc="left", color=INK)
            axes.annotate(
                f"{sum(y) / len(y):.1f}",
                (1, 1.02),
                xycoords="axes fraction",
                ha="right",
                va="bottom",
                fontsize=8,
                color=MUTED,
            )
            axes.xaxis.set_major_locator(ticker.FixedLocator(SEVERITIES))
            axes.set_xlim(0.6, 5.4)
        for axes in list(grid.flat)[len(curves) :]:
            axes.set_visible(False)
        grid[0, 0].set_ylim(bottom=0)
        fig.supxlabel("severity", fontsize=9, color=MUTED)
        label = "top-1, % (right: mean" + ("; dashed: clean)" if clean is not None else ")")
        fig.supylabel(label, fontsize=9, color=MUTED)
    return fig
