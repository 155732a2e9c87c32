"""Printed tables of a robustness evaluation, robustness.csv, and the figure drawn from its rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import blended_transform_factory
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from convnext.atomic import atomic_write, write_text
from convnext.names import text_cell
from convnext.tasks.classification.robustness.benchmarks import ALEXNET_ERROR, SOURCE
from convnext.tasks.classification.robustness.corruptions import CORRUPTIONS, KINDS
from convnext.tasks.classification.robustness.measure import NAME
from convnext.tasks.classification.robustness.run import RobustnessResult
from convnext.tasks.figures import ACCENT, GRID, INK, MISS, MUTED, figure_style, shorten

COLUMNS = (
    *("benchmark", "source", "model", "corruption", "severity", "top1", "error", "num_images"),
    *("counted", "alexnet_error", "split", "precision", "backend"),
)


def print_robustness(result: RobustnessResult, console: Console) -> None:
    """Print the error of every condition, and the metrics next to the paper's."""
    rows = result.summary.corruptions
    if any(level for row in rows for level in row.errors):
        console.print("top-1 error in percent, by severity:")
        console.print(_conditions(result))
    console.print(_figures(result))
    header, counts = result.state.header, {s.num_images for s in result.state.scores.values()}
    counted = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
    console.print(
        f"each on {counted} images, split: {header['split']}, in {header['precision']}, "
        f"{header['backend']}",
        markup=False,
    )
    for note in result.notes:
        console.print(f"note: {note}", markup=False)
    if result.summary.mce_withheld:
        console.print(f"no mCE: {result.summary.mce_withheld}", markup=False)
    for source, reason in result.bad_images.items():
        console.print(f"skipped: {source}: {reason}", markup=False)


def to_csv(result: RobustnessResult) -> str:
    """Return one row per condition, including `clean` if its accuracy is known."""
    counted = {row.corruption: row.counted for row in result.summary.corruptions}
    header = result.state.header
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    common = {"benchmark": header["title"]}
    common |= {name: text_cell(header[name]) for name in ("source", "model")}
    # Robustness files of earlier versions lack these.
    common |= {name: header.get(name, "") for name in ("split", "precision", "backend")}
    clean = result.summary.clean_top1
    if clean is not None and ("clean", 0) not in result.state.scores:
        writer.writerow(
            common
            | {"corruption": "clean", "severity": 0, "top1": f"{clean:.4f}", "counted": 0}
            | {"error": f"{100 - clean:.4f}"}
        )
    for score in result.state.scores.values():
        alexnet = ALEXNET_ERROR.get(score.corruption) if result.kind == "imagenet-c" else None
        writer.writerow(
            common
            | {
                "corruption": score.corruption,
                "severity": score.severity,
                "top1": f"{score.top1:.4f}",
                "error": f"{score.error:.4f}",
                "num_images": score.num_images,
                "counted": int(counted.get(score.corruption, False)),
                "alexnet_error": "" if alexnet is None else alexnet,
            }
        )
    return text.getvalue()


def write_robustness(result: RobustnessResult, folder: Path) -> list[Path]:
    """Write robustness.json, .csv, .svg and .png into a folder, and return their paths."""
    from convnext.tasks.figures import save_bytes

    paths = [folder / f"{NAME}.{file_type}" for file_type in ("json", "csv", "svg", "png")]
    result.state.folder = folder
    result.state.write(result.to_dict())
    write_text(paths[1], to_csv(result))
    figure = draw_robustness(read_rows(paths[1]))
    for path in paths[2:]:
        with atomic_write(path) as temporary:
            temporary.write_bytes(save_bytes(figure, path.suffix[1:]))
    return paths


def _conditions(result: RobustnessResult) -> Table:
    summary = result.summary
    levels = sorted({level for row in summary.corruptions for level in row.errors})
    has_ce = any(row.ce is not None for row in summary.corruptions)
    table = Table(box=None, header_style="bold")
    table.add_column("corruption")
    for level in levels:
        table.add_column(str(level), justify="right")
    table.add_column("mean", justify="right")
    if summary.clean_top1:
        table.add_column("top-1 lost", justify="right")
    if has_ce:
        table.add_column("CE", justify="right")
    for row in summary.corruptions:
        cells = [f"{row.errors[n]:.1f}" if n in row.errors else "-" for n in levels]
        cells.append(f"{row.mean_error:.1f}")
        if summary.clean_top1:
            lost = 100 * (summary.clean_top1 - 100 + row.mean_error) / summary.clean_top1
            cells.append(f"{lost:.0f} %")
        if has_ce:
            cells.append("-" if row.ce is None else f"{row.ce:.1f}")
        name = row.corruption if row.counted else f"{row.corruption} (not counted)"
        table.add_row(name, *cells, style=None if row.counted else "dim")
    return table


def _figures(result: RobustnessResult) -> Table:
    summary, kind = result.summary, result.kind
    table = Table(box=None, header_style="bold")
    table.add_column(escape(str(result.state.header["title"])))
    table.add_column("here", justify="right")
    paper = result.paper or {}
    if paper:
        table.add_column(f"paper ({SOURCE})", justify="right")

    def add(what: str, value: float, unit: str, published: float | None = None) -> None:
        beside = ["-" if published is None else f"{published:.1f}{unit}"] if paper else []
        table.add_row(what, f"{value:.2f}{unit}", *beside)

    if summary.clean_top1 is not None:
        where = "" if result.clean_from == "measured" else f" ({result.clean_from})"
        # The paper's accuracy is for all classes, this one for the benchmark's 200.
        same = kind not in ("imagenet-a", "imagenet-r", "corrupt")
        add(f"clean top-1{where}", summary.clean_top1, " %", paper.get("clean") if same else None)
    published = paper.get(kind)
    is_error = kind in ("corrupt", "imagenet-c", "imagenet-c-bar")
    add(
        "top-1" if not is_error else "mean top-1",
        summary.mean_top1,
        " %",
        None if is_error else published,
    )
    if summary.relative_drop is not None:
        add("relative loss of top-1", summary.relative_drop, " %")
    if is_error:
        add("mean error", summary.mean_error, " %", published if kind == "imagenet-c-bar" else None)
    if kind == "imagenet-c":
        if summary.mce is not None:
            add("mCE", summary.mce, " %", published)
        elif published is not None:
            table.add_row("mCE", "-", f"{published:.1f} %")
    return table


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
