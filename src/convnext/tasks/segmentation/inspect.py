"""Statistics and problems of a segmentation data set: `convnext data PATH`."""

from __future__ import annotations

import statistics
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

from convnext.data import doctor
from convnext.data.doctor import (
    Scan,
    ScanOptions,
    alike_advice,
    class_table,
    list_sizes,
    open_and_scan,
    print_notes,
    print_numbered,
    with_alike,
)
from convnext.data.drawing import class_colors, crossed_out, fitted, sheet
from convnext.data.facts import FactsCache
from convnext.data.formats.records import Exif
from convnext.data.images import BadImage, Mode
from convnext.data.ranges import color_mode, pixel_notes
from convnext.data.samples import with_range
from convnext.names import count_noun
from convnext.results.pictures import overlay
from convnext.tasks.segmentation.data import SegmentationData, arguments_of, open_dataset, refusal
from convnext.tasks.segmentation.layout import Drawing, Pairs

NUM_EXAMPLES = 5
# Classes with a smaller fraction of the labeled pixels are rarely learned without help.
RARE = 0.005


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """Findings about one pair."""

    part: str
    source: str
    reason: str = ""
    """Reason why the pair cannot be used; empty if it can."""
    width: int = 0
    height: int = 0
    counts: NDArray[np.int64]
    """Number of pixels per class."""
    num_pixels: int = 0
    digest: bytes = b""
    """Hash of the image's pixels."""
    sketch: bytes = b""
    """Similar for images that look alike; empty for small images."""
    is_blank: bool = False
    is_turned: bool = False
    """Whether the EXIF orientation turns or mirrors the image."""
    is_unturned: bool = False
    """Whether the mask has the size of the image before that."""


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """How often a class occurs."""

    name: str
    train_share: float
    """Fraction of the labeled training pixels."""
    train_images: int
    val_share: float
    val_images: int


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """Report of `inspect`."""

    path: str
    classes: tuple[ClassCount, ...]
    num_train: int
    num_val: int
    ignored_share: float
    """Fraction of all pixels."""
    sizes: dict[str, int]
    """Number of pairs by size, such as "480 x 360", most frequent first."""
    unusable: tuple[tuple[str, str], ...]
    """Pairs that cannot be used, each with the reason."""
    problems: tuple[str, ...]
    """Problems, worst first."""
    suggestions: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON; the classes by name, their rows in `per_class`."""
        names = [row.name for row in self.classes]
        return {
            **asdict(self),
            "classes": names,
            "per_class": [asdict(row) for row in self.classes],
        }

    def print(self, console: Console) -> None:
        """Print a readable report."""
        share = "less than 0.1" if self.ignored_share < 5e-4 else f"{100 * self.ignored_share:.1f}"
        unlabeled = f"; {share} % of the pixels have no label" if self.ignored_share else ""
        console.print(
            f"[bold]{escape(self.path)}[/]\n{self.num_train:,} training and {self.num_val:,} "
            f"validation images with masks of {count_noun(len(self.classes), 'class', 'classes')}"
            f"{unlabeled}"
        )
        print_notes(self.notes, console)
        console.print(self._table())
        console.print(f"sizes: {list_sizes(self.sizes)}")
        if not self.problems:
            console.print("\n[green]no problems found[/]")
        for title, lines in (
            ("problems, worst first", self.problems),
            ("suggestions", self.suggestions),
        ):
            if lines:
                console.print(f"\n[bold]{title}[/]")
            print_numbered(lines, console)

    def _table(self) -> Table:
        def cells(row: ClassCount) -> tuple[str, ...]:
            train, val = (f"{100 * share:.2f} %" for share in (row.train_share, row.val_share))
            return train, f"{row.train_images:,}", val, f"{row.val_images:,}"

        return class_table(
            ("train pixels", "images", "val pixels", "images"),
            [(row.name, row.train_share, cells(row)) for row in self.classes],
        )


def inspect(path: str, **how: Unpack[ScanOptions]) -> DataReport:
    """Read every image and mask in full, and report; raises like `inspect_with_sheet`."""
    return inspect_with_sheet(path, **how)[0]


def inspect_with_sheet(
    path: str,
    options: Mapping[str, Any] | None = None,
    *,
    sheet: bool = False,
    range: Sequence[float] = (),
    **how: Unpack[ScanOptions],
) -> tuple[DataReport, Any]:
    """Read every image and mask in full; return the report, and a contact sheet or None.

    Args:
        path: A data set as for `open_dataset`.
        options: How to read it, by the names of its arguments and of the fields of `ReadOptions`.
        sheet: Whether to draw a contact sheet.
        range: The range of 16-bit and float images that the user gives; () for none.
        **how: As the fields of `ScanOptions` say.

    Raises:
        ValueError: If there is no data set at `path`.
    """
    opening = partial(open_dataset, path, strict=False, **arguments_of(options or {}))
    data, found = open_and_scan(partial(with_range, opening, range), scan, **how)
    if not sheet:
        return report(data, found), None
    page = contact_sheet(data)
    mode = color_mode(data)
    return report(data, found), with_alike(page, found.alike, data.parts, mode, data.path)


def scan(data: SegmentationData, **how: Unpack[ScanOptions]) -> Scan[Inspected]:
    """Read every pair; the arguments are those of `doctor.scan`. Masks are always decoded."""
    jobs = [(part, pairs, i) for part, pairs in _parts(data) for i in range(len(pairs))]
    return doctor.scan(
        data.path,
        jobs,
        lambda job, facts: inspect_item(*job, len(data.classes), data.ignore_index, facts),
        "reading images and masks",
        **how,
    )


def inspect_item(
    part: str, pairs: Pairs, index: int, num_classes: int, ignore_index: int, cache: FactsCache
) -> Inspected:
    """Read one pair in full."""
    nothing = np.zeros(num_classes, dtype=np.int64)
    try:
        facts = cache.read(pairs.source(index))
        mask = pairs.mask(index, (facts.width, facts.height))
    except BadImage as error:
        return Inspected(part=part, source=error.source, reason=error.reason, counts=nothing)
    labeled = mask[mask != ignore_index]
    return Inspected(
        part=part,
        source=pairs.source(index),
        width=facts.width,
        height=facts.height,
        counts=np.bincount(labeled, minlength=num_classes),
        num_pixels=mask.size,
        digest=facts.digest,
        sketch=facts.sketch,
        is_blank=facts.is_blank,
        is_turned=facts.orientation != 1,
        is_unturned=facts.orientation != 1 and pairs.is_unturned(index),
    )


def report(data: SegmentationData, scan: Scan[Inspected]) -> DataReport:
    """Build the report."""
    inspected = scan.inspected
    good = [item for item in inspected if not item.reason]
    labeled = sum(int(item.counts.sum()) for item in good)
    total = sum(item.num_pixels for item in good)
    parts = {part: [item for item in good if item.part == part] for part in ("train", "val")}
    pixels = {part: _sum(found, len(data.classes)) for part, found in parts.items()}
    present = {
        part: np.sum([item.counts > 0 for item in found], axis=0)
        if found
        else np.zeros(len(data.classes), dtype=np.int64)
        for part, found in parts.items()
    }

    def share(part: str, c: int) -> float:
        return float(pixels[part][c] / max(int(pixels[part].sum()), 1))

    classes = tuple(
        ClassCount(
            name=name,
            train_share=share("train", c),
            train_images=int(present["train"][c]),
            val_share=share("val", c),
            val_images=int(present["val"][c]),
        )
        for c, name in enumerate(data.classes)
    )
    return DataReport(
        path=data.path,
        classes=classes,
        num_train=len(data.train),
        num_val=len(data.val),
        ignored_share=1 - labeled / total if total else 0.0,
        sizes=dict(Counter(f"{item.width} x {item.height}" for item in good).most_common()),
        unusable=tuple((item.source, item.reason) for item in inspected if item.reason),
        problems=tuple(find_problems(data, scan, classes)),
        suggestions=tuple(find_suggestions(good, classes)),
        notes=(
            *(note for note in data.notes if note not in data.faults),
            *pixel_notes(data),
            *scan.notes,
        ),
    )


def find_problems(
    data: SegmentationData, scan: Scan[Inspected], classes: Sequence[ClassCount]
) -> list[str]:
    """Return one line per kind of problem, worst first, with its count and examples."""
    inspected = scan.inspected
    reason = refusal(data)
    lines = [f"training is refused: {reason}"] if reason else []
    bad = [item for item in inspected if item.reason]
    good = [item for item in inspected if not item.reason]
    if bad:
        examples = _some([f"{item.source}: {item.reason}" for item in bad])
        lines.append(f"pairs that cannot be used: {len(bad):,} of {len(inspected):,} ({examples})")
    lines += data.faults
    train = {item.digest: item.source for item in good if item.part == "train"}
    for part, what in (("val", "validation"), ("test", "test")):
        copies = [item for item in good if item.part == part and item.digest in train]
        if copies:
            shown = _some([f"{item.source} = {train[item.digest]}" for item in copies])
            lines.append(
                f"{what} images identical to a training image, which makes {what} scores too "
                f"high: {len(copies):,} ({shown})"
            )
    if scan.alike.pairs:
        shown = _some([f"{b.source} ~ {a.source}" for a, b in scan.alike.pairs])
        lines.append(
            "held-out images that look like a training image, perhaps the same one saved again: "
            f"{len(scan.alike.pairs):,} ({shown}); {alike_advice(has_val=data.has_val)}"
        )
    turned = [item.source for item in good if item.is_turned]
    if turned:
        read = (
            "their masks are turned with them, as --exif unturned says"
            if data.train.exif == "unturned"
            else "their masks are read as drawn on the turned images, as --exif turned says"
            if data.train.exif
            else "check on the contact sheet that the masks were drawn on the turned images; "
            "--exif unturned reads them as drawn before"
        )
        by_size = [item.source for item in good if item.is_unturned]
        if by_size and not data.train.exif:
            read += (
                f"; {len(by_size):,} masks have the size of the image before it is turned and are "
                "turned with it"
            )
        lines.append(
            f"images that are turned by their EXIF orientation: {len(turned):,} ({_some(turned)}); "
            f"{read}"
        )
    empty = [item.source for item in good if not item.counts.any()]
    if empty:
        lines.append(f"images without a labeled pixel: {len(empty):,} ({_some(empty)})")
    for what, missing in (
        ("no training image", [row.name for row in classes if not row.train_images]),
        ("no validation image", [row.name for row in classes if not row.val_images]),
    ):
        if missing:
            lines.append(f"classes on {what}: {len(missing):,} ({_some(missing)})")
    return lines


def find_suggestions(good: Sequence[Inspected], classes: Sequence[ClassCount]) -> list[str]:
    """Return suggestions for this data, each with the setting to use."""
    lines = []
    rare = [row.name for row in classes if 0 < row.train_share < RARE]
    if rare:
        lines.append(
            f"classes with less than {100 * RARE:g} % of the pixels: {len(rare):,} "
            f"({_some(rare)}); consider --segment.class_weights balanced, or --segment.dice 1"
        )
    side = statistics.median(min(item.width, item.height) for item in good) if good else 0
    if side > 1000:
        lines.append(
            "the images are large: --segment.mode slide reads them in windows with bounded memory"
        )
    return lines


def _parts(data: SegmentationData) -> tuple[tuple[str, Pairs], ...]:
    parts = (("train", data.train), ("val", data.val))
    return parts if data.test is None else (*parts, ("test", data.test))


def _sum(inspected: Sequence[Inspected], num_classes: int) -> NDArray[np.int64]:
    total = np.zeros(num_classes, dtype=np.int64)
    for item in inspected:
        total += item.counts
    return total


def _some(lines: Sequence[str]) -> str:
    more = len(lines) - NUM_EXAMPLES
    return "; ".join(lines[:NUM_EXAMPLES]) + (f"; and {more:,} more" if more > 0 else "")


def contact_sheet(
    data: SegmentationData, *, columns: int = 4, per_part: int = 8, width: int = 220
) -> Image.Image:
    """Return a sheet with up to `per_part` images of each split, each `width` pixels wide.

    Pixels without a label keep their color. Unusable pairs are crossed out. Images that EXIF turns
    come first, with their masks read in both ways, unless the user says which one is right.
    """
    mode = color_mode(data)
    sections = {} if data.train.exif else _both_readings(data, per_part, width, mode)
    for title, pairs in (("training", data.train), ("validation", data.val)):
        if len(pairs):
            shown = pairs.some(per_part)
            tiles = [_tile(pairs, i, len(data.classes), width, mode) for i in shown]
            sections[f"{title}, {len(shown)} of {len(pairs):,}"] = tiles
    colors = class_colors(len(data.classes))
    return sheet(sections, data.classes, colors, columns=columns, width=width)


def _both_readings(
    data: SegmentationData, count: int, width: int, mode: Mode
) -> dict[str, list[Image.Image]]:
    """Return the images that EXIF turns with their masks drawn after turning, and before.

    Images whose mask is the same in both readings are left out.
    """
    shown: tuple[list[Image.Image], list[Image.Image]] = ([], [])
    readings: tuple[Exif, Exif] = ("turned", "unturned")
    for _, pairs in _parts(data):
        both = [replace(pairs, exif=exif) for exif in readings]
        for index in range(len(pairs)):
            if len(shown[0]) == count:
                break
            if not isinstance(pairs.masks[index], Drawing) and _is_unclear(both, index):
                for tiles, reading in zip(shown, both, strict=True):
                    tiles.append(_tile(reading, index, len(data.classes), width, mode))
    if not shown[0]:
        return {}
    return {
        "masks drawn on turned photos (--exif turned)": shown[0],
        "masks drawn before turning (--exif unturned)": shown[1],
    }


def _is_unclear(readings: Sequence[Pairs], index: int) -> bool:
    """Whether an image is turned by EXIF, and its mask differs between readings."""
    try:
        header = readings[0].header(index)
    except BadImage:
        return False
    if header.orientation == 1:
        return False
    masks = []
    for pairs in readings:
        try:
            masks.append(pairs.mask(index, header.size))
        except BadImage:  # It has the size of one reading only, and the other one is crossed out.
            return True
    return not np.array_equal(masks[0], masks[1])


def _tile(pairs: Pairs, index: int, num_classes: int, width: int, mode: Mode) -> Image.Image:
    try:
        image = pairs.open(index, mode)
        mask = pairs.mask(index, image.size)
    except BadImage:
        return crossed_out(width)
    # Limit the height to the width, so that a vertical panorama does not fill the sheet.
    size = fitted(image.size, width)
    labels = Image.fromarray(np.asarray(mask, np.int32)).resize(size, Image.Resampling.NEAREST)
    return overlay(image.resize(size), np.asarray(labels), class_colors(num_classes))
