"""Statistics and problems of a detection data set: `convnext data PATH`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from convnext.data.doctor import (
    Scan,
    ScanOptions,
    class_table,
    list_sizes,
    open_and_scan,
    print_notes,
    print_numbered,
    with_alike,
)
from convnext.data.drawing import class_colors, crossed_out, fitted, sheet
from convnext.data.formats.located import UNCLEAR
from convnext.data.formats.records import ReadOptions
from convnext.data.images import BadImage, Mode
from convnext.data.objects import FAULTS, DetectionData, DetectionImages, open_dataset, table_of
from convnext.data.ranges import color_mode, pixel_notes
from convnext.data.samples import with_range
from convnext.names import count_noun
from convnext.tasks.detection.problems import (
    Inspected,
    Problem,
    find_problems,
    find_suggestions,
    parts,
    scan,
)
from convnext.tasks.detection.render import draw_objects

# COCO's limits between small, medium and large objects: sides of squares of the same area.
SMALL, LARGE = 32, 96


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Distribution of values."""

    low: float
    """10th percentile."""
    median: float
    high: float
    """90th percentile."""


@dataclass(frozen=True, kw_only=True)
class SplitCount:
    """Statistics of one split. Crowd regions count only as crowd."""

    images: int
    empty: int
    """Images without an object."""
    objects: int
    crowd: int
    masks: int
    """Objects with a mask."""
    small: int
    """Objects of less than 32 x 32 pixels."""
    medium: int
    large: int
    """Objects of 96 x 96 pixels and more."""
    per_image: float
    """Median number of objects per image."""
    most: int
    """Max number of objects in an image."""
    sides: Spread | None
    """Square root of the box area, in percent of the image's short side; None without objects."""
    aspects: Spread | None
    """Width / height; None without objects."""


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """How often a class occurs."""

    name: str
    train: int
    """Number of training objects; `val` likewise."""
    train_images: int
    val: int
    val_images: int
    test: int = 0
    test_images: int = 0


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """Report of `inspect`."""

    path: str
    classes: tuple[ClassCount, ...]
    splits: dict[str, SplitCount]
    """"train", "val", and "test" if the data has one."""
    sizes: dict[str, int]
    """Number of images by size in the JSON file, "640 x 480", most frequent first."""
    problems: tuple[Problem, ...]
    """Problems, worst first."""
    suggestions: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return asdict(self)

    def print(self, console: Console) -> None:
        """Print a readable report."""
        classes = count_noun(len(self.classes), "class", "classes")
        console.print(f"[bold]{escape(self.path)}[/], objects of {classes}")
        print_notes(self.notes, console)
        console.print(self._split_table())
        console.print(self._class_table())
        console.print(f"\nsizes: {list_sizes(self.sizes)}")
        if not self.problems:
            console.print("\n[green]no problems found[/]")
        else:
            console.print("\n[bold red]problems[/], worst first")
        for number, problem in enumerate(self.problems, 1):
            console.print(f" {number} {problem}", markup=False, soft_wrap=True)
            for example in problem.examples:
                console.print(f"     {example}", markup=False, soft_wrap=True, style="dim")
            if problem.count > len(problem.examples):
                left = problem.count - len(problem.examples)
                console.print(f"     and {left:,} more", style="dim")
        if self.suggestions:
            console.print("\n[bold]suggestions[/]")
        print_numbered(self.suggestions, console)

    def _split_table(self) -> Table:
        table = Table(box=None, header_style="dim", pad_edge=False)
        table.add_column("")
        for part in self.splits:
            table.add_column(TITLES[part], justify="right")
        both = list(self.splits.values())
        for name, values in {
            "images": [f"{s.images:,}" for s in both],
            "  without objects": [f"{s.empty:,}" for s in both],
            "objects": [f"{s.objects:,}" for s in both],
            "  with masks": [_share(s.masks, s.objects) for s in both],
            "  small (under 32 x 32)": [_share(s.small, s.objects) for s in both],
            "  medium": [_share(s.medium, s.objects) for s in both],
            "  large (from 96 x 96)": [_share(s.large, s.objects) for s in both],
            "crowd regions": [f"{s.crowd:,}" for s in both],
            "objects per image": [f"{s.per_image:g}, max {s.most:,}" for s in both],
            "side, % of the image": [_spread(s.sides, ".1f") for s in both],
            "width / height": [_spread(s.aspects, ".2f") for s in both],
        }.items():
            table.add_row(name, *values)
        return table

    def _class_table(self) -> Table:
        def cells(row: ClassCount) -> tuple[str, ...]:
            counts = (row.train, row.train_images, row.val, row.val_images)
            return tuple(f"{count:,}" for count in counts)

        return class_table(
            ("training", "images", "validation", "images"),
            [(row.name, row.train, cells(row)) for row in self.classes],
        )


def inspect(path: str, **how: Unpack[ScanOptions]) -> DataReport:
    """Read a data set and every image in full, and report; raises like `inspect_with_sheet`."""
    return inspect_with_sheet(path, **how)[0]


def inspect_with_sheet(
    path: str,
    options: Mapping[str, Any] | None = None,
    *,
    sheet: bool = False,
    range: Sequence[float] = (),
    **how: Unpack[ScanOptions],
) -> tuple[DataReport, Any]:
    """Read a data set and every image in full; return the report, and a contact sheet or None.

    Args:
        path: A data set as for `open_dataset`.
        options: How to read it, as the fields of `ReadOptions` say.
        sheet: Whether to draw a contact sheet.
        range: The range of 16-bit and float images that the user gives; () for none.
        **how: As the fields of `ScanOptions` say.

    Raises:
        ValueError: If there is no data set at `path`.
    """
    given = ReadOptions(**(options or {}))
    opening = partial(open_dataset, path, strict=False, options=given)
    data, found = open_and_scan(partial(with_range, opening, range), scan, **how)
    if not sheet:
        return report(data, found), None
    other = None
    if is_unclear(data):
        other = open_dataset(path, strict=False, options=replace(given, exif="unturned"))
    page = contact_sheet(data, unturned=other)
    mode = color_mode(data)
    return report(data, found), with_alike(page, found.alike, data.parts, mode, data.path)


def report(data: DetectionData, scan: Scan[Inspected]) -> DataReport:
    """Build the report."""
    counts = {part: _count_classes(images, len(data.classes)) for part, images in parts(data)}
    stated = [(r.width, r.height) for _, images in parts(data) for r in images.records]
    return DataReport(
        path=data.path,
        classes=tuple(
            ClassCount(
                name=name,
                train=int(counts["train"][0][c]),
                train_images=int(counts["train"][1][c]),
                val=int(counts["val"][0][c]),
                val_images=int(counts["val"][1][c]),
                test=int(counts["test"][0][c]) if "test" in counts else 0,
                test_images=int(counts["test"][1][c]) if "test" in counts else 0,
            )
            for c, name in enumerate(data.classes)
        ),
        splits={part: count(images) for part, images in parts(data)},
        sizes={f"{w} x {h}": number for (w, h), number in Counter(stated).most_common()},
        problems=find_problems(data, scan),
        suggestions=find_suggestions(data),
        # All faults are listed.
        notes=(
            *(note for note in data.notes if not note.startswith(FAULTS)),
            *pixel_notes(data),
            *scan.notes,
        ),
    )


def count(images: DetectionImages) -> SplitCount:
    """Compute the statistics of a split."""
    objects = [record.objects for record in images.records]
    table = table_of(images.records)
    per_image = np.bincount(table.images, minlength=len(objects))
    areas, extents = table.areas, table.extents
    small, large = areas < SMALL**2, areas >= LARGE**2
    return SplitCount(
        images=len(images),
        empty=sum(not len(found) for found in objects),
        objects=len(areas),
        crowd=sum(map(len, objects)) - len(areas),
        masks=sum(
            mask is not None and not crowd
            for found in objects
            for mask, crowd in zip(found.masks, found.crowd, strict=True)
        ),
        small=int(small.sum()),
        medium=int((~small & ~large).sum()),
        large=int(large.sum()),
        per_image=float(np.median(per_image)) if len(per_image) else 0.0,
        most=int(per_image.max(initial=0)),
        sides=_spread_of(100 * table.sides),
        aspects=_spread_of(extents[:, 0] / extents[:, 1]),
    )


def _count_classes(
    images: DetectionImages, num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of objects and of images per class, without crowd regions."""
    table = table_of(images.records)
    total = np.bincount(table.labels, minlength=num_classes)
    pairs = np.unique(table.images * num_classes + table.labels)
    return total, np.bincount(pairs % num_classes, minlength=num_classes)


def _spread_of(values: NDArray[np.float64]) -> Spread | None:
    if not len(values):
        return None
    low, median, high = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
    return Spread(low=low, median=median, high=high)


def _spread(spread: Spread | None, form: str) -> str:
    if spread is None:
        return "-"
    return f"{spread.median:{form}} ({spread.low:{form}} to {spread.high:{form}})"


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / whole:.0f} %)" if whole else "0"


TITLES = {"train": "training", "val": "validation", "test": "test"}


def is_unclear(data: DetectionData) -> bool:
    """Tell whether objects may have been drawn before or after the EXIF orientation was applied."""
    return any(fault.kind == UNCLEAR for fault in data.faults)


def contact_sheet(
    data: DetectionData,
    *,
    unturned: DetectionData | None = None,
    columns: int = 4,
    per_part: int = 8,
    width: int = 300,
) -> Image.Image:
    """Return a sheet with up to `per_part` images of each split, each `width` pixels wide.

    Unusable images are crossed out. With `unturned`, the same data read with `--exif unturned`, the
    images that the two readings differ in come first. The legend has the classes drawn, most
    frequent first.
    """
    colors = class_colors(len(data.classes))
    drawn: Counter[int] = Counter()
    mode = color_mode(data)
    sections = (
        {} if unturned is None else _both_readings(data, unturned, colors, per_part, width, mode)
    )
    for part, images in parts(data):
        if len(images):
            shown = images.some(per_part)
            title = f"{TITLES[part]}, {len(shown)} of {len(images):,}"
            sections[title] = [_tile(images, i, colors, width, mode) for i in shown]
            for i in shown:
                drawn.update(images.objects(i).labels.tolist())
    labels = [label for label, _ in drawn.most_common()]
    names = [data.classes[label] for label in labels]
    return sheet(sections, names, colors[labels], columns=columns, width=width)


def _both_readings(
    data: DetectionData,
    unturned: DetectionData,
    colors: NDArray[np.uint8],
    count: int,
    width: int,
    mode: Mode,
) -> dict[str, list[Image.Image]]:
    """Return the images whose objects depend on how the EXIF orientation is read, in both ways."""
    pairs = [
        (images, other, i)
        for images, other in zip(data.parts.values(), unturned.parts.values(), strict=True)
        for i in range(len(images))
        if not np.array_equal(images.objects(i).boxes, other.objects(i).boxes)
    ][:count]
    return {
        "objects drawn on turned photos (--exif turned)": [
            _tile(images, i, colors, width, mode) for images, _, i in pairs
        ],
        "objects drawn before turning (--exif unturned)": [
            _tile(other, i, colors, width, mode) for _, other, i in pairs
        ],
    }


def _tile(
    images: DetectionImages, index: int, colors: NDArray[np.uint8], width: int, mode: Mode
) -> Image.Image:
    try:
        image = images.open(index, mode)
    except BadImage:
        return crossed_out(width)
    size = fitted(image.size, width)
    # Small images are enlarged without smoothing, to show their pixels.
    few = size[0] > 2 * image.width
    resample = Image.Resampling.NEAREST if few else Image.Resampling.LANCZOS
    return draw_objects(
        image.resize(size, resample), images.objects(index), colors, source=image.size
    )
