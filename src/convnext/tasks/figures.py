"""Report sections of a task: figures, tables and pictures in one style.

Figures are pure functions from numbers to a matplotlib `Figure`. They use a few named colors on
white; the page of a report replaces these by its own.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from convnext.names import printable

PAPER, INK, MUTED, GRID, ACCENT = "#ffffff", "#1d2430", "#667080", "#e2e6eb", "#1f66b5"
# Blue and orange differ for every kind of color vision, and suit both dark and light text.
HIT, MISS = "#3b82d6", "#e8710a"

STYLE: dict[str, Any] = {
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.left": False,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 8.5,
    "text.color": INK,
    # A class may be called `$x_1$`, which is not a formula.
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "hatch.linewidth": 0.8,
    # Equal data gives equal files.
    "svg.hashsalt": "convnext",
    "svg.fonttype": "none",
}

NAMED_CLASSES = 30
NUMBERED_CLASSES = 12
MAX_CELLS = 50


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a plot."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = ACCENT
    dashed: bool = False
    """Thin and without points: a reference for the other curves."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure of a report, which is also saved next to the page."""

    name: str
    """Name of the files, without extension."""
    title: str
    alt: str
    """Alternative text."""
    figure: Figure


@dataclass(frozen=True, kw_only=True)
class Part:
    """Content for the template: `kind` is the name of a macro, `values` are its arguments."""

    kind: str
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page: a title, an introductory note, and its parts."""

    title: str
    parts: Sequence[Part] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ReportSections:
    """A task's report on an evaluation."""

    scores: Sequence[tuple[str, str]] = ()
    """The scores at the top of the page: label and text."""
    reliability: Sequence[str] = ()
    """Sentences about how far to trust the primary score."""
    sections: Sequence[Section] = ()

    @classmethod
    def of(
        cls,
        evaluation: Mapping[str, Any],
        primary: str,
        scores: Callable[[Mapping[str, Any]], Sequence[tuple[str, str]]],
        reliability: Callable[[Mapping[str, Any]], Sequence[str]],
        *makers: Callable[[Mapping[str, Any]], Section | None],
    ) -> ReportSections:
        """Return the report sections of an evaluation; an empty one has no scores.

        Args:
            evaluation: The contents of `evaluation.json`.
            primary: The key of the primary score.
            scores: Returns the scores at the top of the page.
            reliability: Returns the sentences about the primary score.
            makers: Return the sections, or None for a section without contents.
        """
        measured = primary in evaluation
        return cls(
            scores=scores(evaluation) if measured else (),
            reliability=reliability(evaluation) if measured else (),
            sections=[
                section
                for make in (*makers, bad_images)
                if (section := make(evaluation)) is not None
            ],
        )


def measured_on(evaluation: Mapping[str, Any]) -> str:
    """Return the images, split, precision and backend of an evaluation, as far as it names them."""
    split, precision, backend = (evaluation.get(k) for k in ("split", "precision", "backend"))
    count = evaluation["num_images"]
    images = f"{count:,} image{'s'[: count != 1]}"
    words = [images, *([f"split: {split}"] if split else [])]
    return ", ".join([*words, *([f"in {precision}", str(backend)] if precision else [])])


def table(
    columns: Sequence[tuple[str, str, str]],
    rows: Sequence[Mapping[str, Any]],
    *,
    sortable: bool = False,
) -> Part:
    """Return a table; a column has a heading, a key, and "", "code", "count" or "share"."""
    return Part(kind="table", values={"columns": columns, "rows": rows, "sortable": sortable})


def bad_images(evaluation: Mapping[str, Any]) -> Section | None:
    """List the images that could not be read."""
    found = evaluation.get("bad_images", [])
    if not found:
        return None
    columns = (("image", "source", "code"), ("reason", "reason", ""))
    title = f"{len(found)} validation image{'s'[: len(found) != 1]} could not be read"
    return Section(title=title, parts=[table(columns, found)])


@contextmanager
def figure_style(**changes: Any) -> Iterator[None]:
    """Draw and save in the common style, without warnings about glyphs that the font lacks."""
    settings: Any = STYLE | changes
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def draw_precision(curves: Sequence[Curve]) -> Figure:
    """Draw precision against recall, both in percent."""
    with figure_style():
        fig, (axes,) = new_figure(4.7, 3.4)
        for curve in curves:
            axes.plot(
                curve.x,
                curve.y,
                label=shorten(curve.label),
                color=curve.color,
                linestyle="--" if curve.dashed else "-",
                linewidth=1.2 if curve.dashed else 1.8,
            )
        if len(curves) > 1:
            axes.legend(loc="lower left", handlelength=1.6)
        axes.set_xlim(0, 101)
        axes.set_ylim(0, 103)
        axes.set_xlabel("recall, %")
        axes.set_ylabel("precision, %")
    return fig


def draw_bars(names: Sequence[str], values: Sequence[float], *, label: str) -> Figure:
    """Draw one bar per name, the first on top, labeled with its value in [0, 100].

    With more than 50 names, only the first and the last 25 are shown.
    """
    shown = list(zip(names, values, strict=True))
    if len(shown) > MAX_CELLS:
        half = MAX_CELLS // 2
        left_out = (f"… {len(shown) - MAX_CELLS} more …", float("nan"))
        shown = [*shown[:half], left_out, *shown[-half:]]
    rows = range(len(shown))
    style = {"axes.grid.axis": "x", "axes.spines.bottom": False, "xtick.bottom": False}
    with figure_style(**style):
        fig, (axes,) = new_figure(4.7, 0.75 + 0.24 * max(3, len(shown)))
        axes.barh(rows, [value for _, value in shown], height=0.72, color=ACCENT)
        for row, (_, value) in enumerate(shown):
            if np.isfinite(value):
                axes.text(value + 0.6, row, f"{value:.1f}", va="center", fontsize=8.5)
        axes.set_yticks(rows, [shorten(name, 24) for name, _ in shown])
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 25))
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel(label)
    return fig


def draw_confusion(
    confusion: NDArray[Any], classes: Sequence[str], *, percent: bool = False
) -> Figure:
    """Draw a confusion matrix (rows truth, columns prediction), normalized by row.

    Up to 30 classes are named, and up to 12 have counts in their cells. With more than 50,
    neighboring classes are merged, and colors are relative to the largest error. With `percent`,
    cells show percentages of the row instead of counts, which might not fit.
    """
    shares = normalize_rows(confusion)
    num_classes = len(classes)
    named = num_classes <= NAMED_CLASSES
    shrunk = shrink(shares)
    # The square root makes rare errors visible.
    strength = np.sqrt(shrunk if named else shrunk / max(shrunk.max(), 1e-9))
    pixels = np.empty((*shrunk.shape, 4))
    pixels[..., :3] = to_rgb(MISS)
    np.einsum("iij->ij", pixels)[:, :3] = to_rgb(HIT)
    pixels[..., 3] = 0.85 * strength
    side = min(6.4, 2.6 + 0.3 * num_classes) if named else 5.0
    with figure_style(**{"axes.grid": False}):
        fig, (axes,) = new_figure(side, side)
        axes.imshow(pixels, interpolation="none", aspect="equal")
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        for spine in axes.spines.values():
            spine.set_visible(True)
        if named:
            names = [shorten(name) for name in classes]
            upright = max(map(len, names), default=0) * num_classes > 48
            axes.set_xticks(range(num_classes), names, rotation=90 if upright else 0)
            axes.set_yticks(range(num_classes), names)
        else:
            axes.set_xticks([])
            axes.set_yticks([])
        if num_classes <= NUMBERED_CLASSES:
            for (truth, prediction), count in np.ndenumerate(np.asarray(confusion)):
                share = f"{100 * shares[truth, prediction]:.0f}"
                words = f"{count:,}" if not percent else share
                if words != "0":
                    axes.text(prediction, truth, words, ha="center", va="center", fontsize=8.5)
    return fig


def normalize_rows(confusion: NDArray[Any]) -> NDArray[np.float64]:
    """Return each row divided by its sum; a class without images has a row of zeros."""
    counts = np.asarray(confusion, dtype=np.float64)
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def shrink(shares: NDArray[np.float64], cells: int = MAX_CELLS) -> NDArray[np.float64]:
    """Average neighboring classes until the matrix has at most `cells` rows."""
    size = len(shares)
    if size <= cells:
        return shares
    edges = np.linspace(0, size, cells + 1).astype(int)
    sizes = np.diff(edges)
    blocks = np.add.reduceat(np.add.reduceat(shares, edges[:-1], 0), edges[:-1], 1)
    return np.asarray(blocks / np.outer(sizes, sizes))


def shorten(name: str, limit: int = 18) -> str:
    """Return a name on one line, short enough to label a plot."""
    name = printable(" ".join(name.split()))
    name = name if len(name) <= limit else f"{name[: limit - 1]}…"
    return name.replace("$", r"\$")  # Otherwise a formula.


def save_bytes(fig: Figure, form: str, **style: Any) -> bytes:
    """Return the bytes of a figure as "png" or "svg", with changes to the style."""
    from PIL import Image

    buffer = io.BytesIO()
    # Remove the date and the links to standards.
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type")) if form == "svg" else None
    with figure_style(**style):
        fig.savefig(buffer, format=form, dpi=180, metadata=metadata)
    if form == "svg":
        return buffer.getvalue()
    # Plots have few colors: a palette shrinks the file to a third without visible changes.
    small = io.BytesIO()
    palette = Image.open(buffer).convert("RGB").quantize(200, dither=Image.Dither.NONE)
    palette.save(small, "PNG", optimize=True)
    return small.getvalue()


def new_figure(
    width: float, height: float, heights: Sequence[float] = (1,)
) -> tuple[Figure, list[Axes]]:
    """Return a figure of a size in inches, and its axes from top to bottom."""
    fig = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(fig)
    grid = fig.subplots(len(heights), 1, squeeze=False, height_ratios=list(heights))
    return fig, list(grid[:, 0])


MAX_CONFUSED_PAIRS = 12


def confusion_section(
    evaluation: Mapping[str, Any],
    share: Callable[[int, int], str],
    columns: Sequence[tuple[str, str, str]],
    *,
    unit: str,
    title: str = "Confusion matrix",
    percent: bool = False,
) -> Section | None:
    """Return the confusion matrix, and the pairs of classes most often confused.

    Args:
        evaluation: The evaluation, with `confusion` (K, K) and `classes`.
        share: Returns the text of a pair's count among all of the true class.
        columns: Columns of the table of pairs after truth and prediction; see `table`.
        unit: What the matrix counts, after the share: "images".
        title: Title of the figure.
        percent: Whether the cells show percentages of the row.
    """
    if not evaluation.get("confusion"):
        return None
    matrix, names = np.asarray(evaluation["confusion"]), evaluation["classes"]
    off = matrix - np.diag(np.diagonal(matrix))
    worst = np.argsort(-off, axis=None, kind="stable")[:MAX_CONFUSED_PAIRS]
    pairs = [
        {
            "truth": names[t],
            "prediction": names[p],
            "count": int(off[t, p]),
            "share": share(int(off[t, p]), int(matrix[t].sum())),
        }
        for t, p in zip(*np.unravel_index(worst, off.shape), strict=True)
        if off[t, p]
    ]
    mistakes = "There are no mistakes."
    if pairs:
        first = pairs[0]
        mistakes = (
            f"The most frequent mistake is {first['prediction']} instead of {first['truth']}: "
            f"{first['share']} {unit}."
        )
    drawn = Drawing(
        name="confusion",
        title=title,
        alt=f"Confusion matrix of {len(names)} classes. {mistakes}",
        figure=draw_confusion(matrix, names, percent=percent),
    )
    parts = [Part(kind="matrix", values={"figure": drawn})]
    if pairs:
        head = (("truth", "truth", ""), ("prediction", "prediction", ""))
        parts.append(table((*head, *columns), pairs))
    return Section(
        title="Confusion matrix",
        note="Each row is a true class, each column a predicted class. Blue is right, orange is "
        "wrong; darker colors are larger fractions of the row.",
        parts=parts,
    )


def worst_section(
    evaluation: Mapping[str, Any],
    describe: Callable[[Mapping[str, Any]], tuple[str, str]],
    note: str,
) -> Section | None:
    """Return the images with the lowest scores, each as a strip of pictures.

    Args:
        evaluation: The evaluation, whose `worst` have a `picture` (a data URI) and a `source`.
        describe: Returns the alternative text and the title of an image.
        note: How the images are sorted and drawn.
    """
    strips = []
    for row in evaluation.get("worst", []):
        if "picture" in row:
            alt, title = describe(row)
            image, source = inline(row["picture"]), row.get("source", "")
            strips.append({"image": image, "alt": alt, "title": title, "source": source})
    if not strips:
        return None
    return Section(
        title="Worst images", note=note, parts=[Part(kind="strips", values={"strips": strips})]
    )


def inline(picture: Any) -> str:
    """Return a picture from `evaluation.json` if it is a data URI: pages load no other files."""
    return picture if str(picture).startswith("data:image/") else ""
