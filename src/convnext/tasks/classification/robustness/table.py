"""Printed tables of a robustness evaluation, and robustness.csv, the data of its figure."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from convnext.atomic import atomic_write, write_text
from convnext.tasks.classification.robustness.figure import draw_robustness, read_rows
from convnext.tasks.classification.robustness.measure import NAME
from convnext.tasks.classification.robustness.paper import SOURCE
from convnext.tasks.classification.robustness.run import RobustnessResult
from convnext.tasks.classification.robustness.score import ALEXNET_ERROR

COLUMNS = (
    *("benchmark", "source", "model", "corruption", "severity", "top1", "error", "num_images"),
    *("counted", "alexnet_error"),
)


def print_robustness(result: RobustnessResult, console: Console) -> None:
    """Print the error of every condition, and the metrics next to the paper's."""
    rows = result.summary.corruptions
    if any(level for row in rows for level in row.errors):
        console.print("top-1 error in percent, by severity:")
        console.print(_conditions(result))
    console.print(_figures(result))
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
    common = {"benchmark": header["title"], "source": header["source"], "model": header["model"]}
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

    paths = [folder / f"{NAME}.{form}" for form in ("json", "csv", "svg", "png")]
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
