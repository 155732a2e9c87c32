"""Statistics and problems of a classification data set: `convnext data PATH`."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Unpack

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from convnext.data.doctor import (
    Scan,
    ScanOptions,
    bar,
    open_and_scan,
    plain_table,
    print_notes,
    with_alike,
)
from convnext.data.images import BadImage, Mode
from convnext.data.ranges import color_mode, pixel_notes
from convnext.data.samples import Samples, with_range
from convnext.names import count_noun
from convnext.tasks.classification.data import (
    ClassificationData,
    Reading,
    class_counts,
    open_as,
    open_dataset,
)
from convnext.tasks.classification.problems import Inspected, find_problems, find_suggestions, scan

MARGIN, GAP, LINE = 16, 6, 22
PAPER, INK, PALE = (255, 255, 255), (20, 20, 20), (120, 120, 120)
MAX_SHEET_ROWS = 50


def contact_sheet(
    path: str | ClassificationData, *, per_class: int = 8, size: int = 96, layout: str = ""
) -> Image.Image:
    """Return a sheet with up to `per_class` training images of every class, `size` pixels each.

    With very many classes, an evenly spaced selection is shown. Unreadable images are crossed out.

    Raises:
        ValueError: Like `open_dataset`.
    """
    data = open_dataset(path, strict=False, layout=layout) if isinstance(path, str) else path
    step = -(-len(data.classes) // MAX_SHEET_ROWS)
    rows = range(0, len(data.classes), step)
    members: dict[int, list[int]] = {label: [] for label in rows}
    for label, indices in members.items():
        indices += members_of(data.train, label)
    width = 2 * MARGIN + per_class * (size + GAP) - GAP
    height = 2 * MARGIN + len(rows) * (LINE + size + 2 * GAP) - 2 * GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    mode = color_mode(data)
    top = MARGIN
    for label, indices in members.items():
        name, count = data.classes[label], f"{len(indices):,} training images"
        room = width - 2 * MARGIN - draw.textlength(count, font) - 12
        draw.text((MARGIN, top), _shorten(name, room, draw, font), INK, font)
        draw.text((width - MARGIN, top), count, PALE, font, anchor="ra")
        shown = min(per_class, len(indices))
        for column in range(shown):
            index = indices[column * len(indices) // shown]
            left = MARGIN + column * (size + GAP)
            sheet.paste(_thumbnail(data.train, index, size, mode), (left, top + LINE))
        top += LINE + size + 2 * GAP
    return sheet


def members_of(samples: Samples, label: int) -> list[int]:
    """Return the images of a class; of images with several labels, all that have it."""
    if samples.kind == "multi" and samples.targets is not None:
        return [int(i) for i in np.flatnonzero(samples.targets[:, label])]
    return [i for i, own in enumerate(samples.labels) if own == label]


def _thumbnail(samples: Samples, index: int, size: int, mode: Mode) -> Image.Image:
    """Return a square that shows the whole image."""
    tile = Image.new("RGB", (size, size), (238, 238, 238))
    try:
        image = samples.open(index, mode, at_least=2 * size)
    except BadImage:
        draw = ImageDraw.Draw(tile)
        draw.line((8, 8, size - 8, size - 8), (200, 60, 60), 3)
        draw.line((8, size - 8, size - 8, 8), (200, 60, 60), 3)
        return tile
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    # Small images are enlarged without smoothing, to show their pixels.
    resample = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
    tile.paste(image.resize((width, height), resample), ((size - width) // 2, (size - height) // 2))
    return tile


def _shorten(
    text: str,
    room: float,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> str:
    text = " ".join(text.split())  # The name of a class may have a line break.
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(f"{text}...", font) > room:
        text = text[:-1]
    return f"{text}..."


# Upper bounds of the histogram bins of sizes, in pixels.
SIZE_BINS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
MAX_ROWS = 30


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Min, median and max of some numbers."""

    min: int
    median: int
    max: int


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """Report of `inspect`."""

    path: str
    classes: tuple[str, ...]
    num_train: tuple[int, ...]
    """Number of training images per class, including unreadable ones; `num_val` likewise."""
    num_val: tuple[int, ...]
    num_bytes: int
    imbalance: float
    """Training images of the largest class divided by those of the smallest."""
    width: Spread | None
    """Widths of the readable images; None if there are none. `height` likewise."""
    height: Spread | None
    sizes: tuple[tuple[str, int], ...]
    """Number of images by short side, for example ("65-128", 12)."""
    modes: dict[str, int]
    """Number of images by Pillow mode, such as "RGB" or "L"."""
    formats: dict[str, int]
    unreadable: tuple[tuple[str, str], ...]
    """Images that cannot be read, each with the reason."""
    problems: tuple[str, ...]
    """Problems, worst first."""
    suggestions: tuple[str, ...]
    notes: tuple[str, ...]
    """Harmless notes about how the data was read."""
    num_images: int
    """Number of images in both parts; one with several labels counts for each of its classes."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return asdict(self)

    def print(self, console: Console) -> None:
        """Print a readable report."""
        console.print(
            f"[bold]{escape(self.path)}[/]\n{count_noun(self.num_images, 'image')} of "
            f"{count_noun(len(self.classes), 'class', 'classes')}, {_bytes(self.num_bytes)}"
        )
        print_notes(self.notes, console)
        console.print(_class_table(self))
        if len(self.classes) > MAX_ROWS:
            console.print(f"(the largest and smallest of {len(self.classes):,} classes)")
        if self.width and self.height:
            console.print(f"\nwidth {_spread(self.width)}, height {_spread(self.height)}")
            console.print(_size_table(self))
            for title, counts in (("formats", self.formats), ("modes", self.modes)):
                kinds = ", ".join(f"{name} {count:,}" for name, count in counts.items())
                console.print(f"{title}: {kinds}")
        if not self.problems:
            console.print("\n[green]no problems found[/]")
        else:
            console.print("\n[bold red]problems[/], worst first")
        for title, lines in (("", self.problems), ("suggestions", self.suggestions)):
            if title and lines:
                console.print(f"\n[bold]{title}[/]")
            console.print(_list_table(lines) if lines else "", end="")


def inspect(path: str, **how: Unpack[ScanOptions]) -> DataReport:
    """Read every image of a data set in full, and report; raises like `inspect_with_sheet`."""
    return inspect_with_sheet(path, **how)[0]


def inspect_with_sheet(
    path: str,
    options: Reading | None = None,
    *,
    sheet: bool = False,
    range: Sequence[float] = (),
    **how: Unpack[ScanOptions],
) -> tuple[DataReport, Any]:
    """Read every image of a data set; return the report, and a contact sheet or None.

    Args:
        path: A data set as for `open_dataset`.
        options: How to read it.
        sheet: Whether to draw a contact sheet.
        range: The range of 16-bit and float images that the user gives; () for none.
        **how: As the fields of `ScanOptions` say.

    Raises:
        ValueError: If there is no such data, layout, column or fold.
    """
    opening = partial(open_as, path, strict=False, **(options or {}))
    data, found = open_and_scan(partial(with_range, opening, range), scan, **how)
    if not sheet:
        return report(data, found), None
    page = contact_sheet(data)
    mode = color_mode(data)
    return report(data, found), with_alike(page, found.alike, data.parts, mode, data.path)


def report(data: ClassificationData, scan: Scan[Inspected]) -> DataReport:
    """Build the report."""
    inspected = scan.inspected
    good = [item for item in inspected if not item.reason]
    train, val = (
        tuple(class_counts(part, len(data.classes)).tolist()) for part in (data.train, data.val)
    )
    return DataReport(
        path=data.path,
        classes=data.classes,
        num_train=train,
        num_val=val,
        num_bytes=sum(item.num_bytes for item in inspected),
        imbalance=round(max(train) / max(1, min(n for n in train if n)), 2),
        width=_spread_of([item.width for item in good]),
        height=_spread_of([item.height for item in good]),
        sizes=_histogram([min(item.width, item.height) for item in good]),
        modes=dict(Counter(item.mode for item in good).most_common()),
        formats=dict(Counter(item.format for item in good).most_common()),
        unreadable=tuple((item.source, item.reason) for item in inspected if item.reason),
        problems=find_problems(data, scan),
        suggestions=find_suggestions(data, inspected),
        notes=(
            *(note for note in data.notes if note not in data.faults),
            *pixel_notes(data),
            *scan.notes,
        ),
        num_images=len(data.train) + len(data.val),
    )


def _spread_of(values: Sequence[int]) -> Spread | None:
    if not values:
        return None
    return Spread(min=min(values), median=int(statistics.median(values)), max=max(values))


def _histogram(sides: Sequence[int]) -> tuple[tuple[str, int], ...]:
    """Count sides per bin, from the first used bin to the last."""
    lows = (1, *(edge + 1 for edge in SIZE_BINS))
    names = [f"{low}-{high}" for low, high in zip(lows, SIZE_BINS, strict=False)]
    names.append(f"over {SIZE_BINS[-1]}")
    counts = Counter(sum(side > edge for edge in SIZE_BINS) for side in sides)
    used = range(min(counts), max(counts) + 1) if counts else range(0)
    return tuple((names[bin], counts[bin]) for bin in used)


def _class_table(report: DataReport) -> Table:
    rows = list(zip(report.classes, report.num_train, report.num_val, strict=True))
    if len(rows) > MAX_ROWS:
        ranked = sorted(rows, key=lambda row: -row[1])
        rows = [*ranked[: MAX_ROWS // 2], *ranked[-MAX_ROWS // 2 :]]
    table = plain_table("class", "train", "val")
    table.add_column("")
    largest = max(report.num_train)
    for name, train, val in rows:
        table.add_row(escape(name), f"{train:,}", f"{val:,}", bar(train, largest))
    return table


def _size_table(report: DataReport) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("short side", justify="right")
    table.add_column("images", justify="right")
    table.add_column("")
    largest = max(count for _, count in report.sizes)
    for name, count in report.sizes:
        table.add_row(name, f"{count:,}", bar(count, largest))
    return table


def _list_table(lines: Sequence[str]) -> Table:
    """Return a table of numbered lines with hanging indentation."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", style="dim")
    table.add_column(overflow="fold")
    for number, line in enumerate(lines, start=1):
        table.add_row(str(number), escape(line))
    return table


def _spread(spread: Spread) -> str:
    if spread.min == spread.max:
        return f"{spread.min:,} pixels"
    return f"{spread.min:,} to {spread.max:,} pixels (median {spread.median:,})"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
