"""Problems of a detection data set, worst first, and suggested settings.

Every image is read in full.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from convnext.data import doctor
from convnext.data.doctor import Scan, alike_advice
from convnext.data.facts import FactsCache
from convnext.data.formats.coco_objects import FIX, UNUSED
from convnext.data.formats.instances import KIND
from convnext.data.formats.records import Fault, Record
from convnext.data.images import BadImage, readable_extensions, walk_files
from convnext.data.masks import Mask, bounds_of
from convnext.data.objects import DetectionData, DetectionImages, refusal, table_of

# Images whose masks are compared with their boxes at once.
NUM_AT_ONCE = 2_000
# Pixels by which a mask may extend beyond its box: boxes are often rounded.
LOOSE = 1.0


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """Findings about one image."""

    part: str
    source: str
    missing: bool = False
    reason: str = ""
    """Reason why the file cannot be read; empty if it can."""
    width: int = 0
    """Size of the file with its EXIF orientation applied; 0 if it cannot be read."""
    height: int = 0
    stated: tuple[int, int]
    """(width, height) in the JSON file."""
    digest: bytes = b""
    """Hash of the pixels."""
    sketch: bytes = b""
    """Similar for images that look alike; empty for small images."""
    is_blank: bool = False


def parts(data: DetectionData) -> tuple[tuple[str, DetectionImages], ...]:
    """Return the splits with their names."""
    return tuple(data.parts.items())


def scan(
    data: DetectionData,
    *,
    deep: bool = False,
    cache: bool = True,
    console: Console | None = None,
) -> Scan[Inspected]:
    """Read every image; the arguments are those of `doctor.scan`."""
    jobs = [(part, images, i) for part, images in parts(data) for i in range(len(images))]
    return doctor.scan(
        data.path,
        jobs,
        lambda job, facts: inspect_item(*job, facts),
        "reading images",
        deep=deep,
        cache=cache,
        console=console,
    )


def inspect_item(part: str, images: DetectionImages, index: int, cache: FactsCache) -> Inspected:
    """Read one image and compare it with the JSON file."""
    source, stated = images.source(index), images.size(index)
    try:
        facts = cache.read(source)
    except BadImage as error:
        return Inspected(
            part=part,
            source=source,
            missing=not os.path.exists(source),
            reason=error.reason,
            stated=stated,
        )
    return Inspected(
        part=part,
        source=source,
        width=facts.width,
        height=facts.height,
        stated=stated,
        digest=facts.digest,
        sketch=facts.sketch,
        is_blank=facts.is_blank,
    )


def unlisted(data: DetectionData) -> list[str]:
    """Return the image files in the splits' folders that no JSON file lists, sorted.

    Masks of instances are image files that belong to others.
    """
    if data.understood is not None and data.understood.layout == KIND:
        return []
    listed = {images.source(i) for _, images in parts(data) for i in range(len(images))}
    endings = readable_extensions()
    others = {
        os.path.join("" if str(root) == "." else root, name)
        for root in {images.root for _, images in parts(data)}
        for name in walk_files(root)
        if os.path.splitext(name)[1].lower() in endings
    }
    others -= listed
    # Links make one file of several names.
    real = {os.path.realpath(name) for name in listed} if others else set()
    return sorted(name for name in others if os.path.realpath(name) not in real)


def _loose(records: Sequence[Record]) -> Iterator[tuple[Record, str]]:
    """Yield the annotations whose masks extend beyond their boxes by more than `LOOSE` pixels."""
    for start in range(0, len(records), NUM_AT_ONCE):
        some = records[start : start + NUM_AT_ONCE]
        rows = [(record, row) for record in some for row in range(len(record.objects))]
        masks = [record.objects.masks[row] for record, row in rows]
        bounds = _bounds(masks)
        boxes = np.concatenate([np.zeros((0, 4)), *(record.objects.boxes for record in some)])
        by = np.maximum(boxes[:, :2] - bounds[:, :2], bounds[:, 2:] - boxes[:, 2:]).max(1)
        for position in np.flatnonzero(by > LOOSE).tolist():
            record, row = rows[position]
            yield record, f"annotation {record.objects.ids[row]} by {by[position]:.1f} pixels"


def _bounds(masks: Sequence[Mask | None]) -> NDArray[np.float64]:
    """Return x1 y1 x2 y2 of each mask; NaN where there is none, or an empty one."""
    found = np.full((len(masks), 4), np.nan)
    rows: list[int] = []
    rings: list[Any] = []
    for row, mask in enumerate(masks):
        if isinstance(mask, tuple):
            rows += [row] * len(mask)
            rings += mask
        elif mask is not None:
            found[row] = bounds_of(mask) or np.nan
    if rings:
        lengths = np.array([len(ring) // 2 for ring in rings])
        points = np.concatenate(rings).reshape(-1, 2)
        first = lengths.cumsum() - lengths
        low, high = np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        found[np.array(rows)[starts], :2] = np.minimum.reduceat(low, starts)
        found[np.array(rows)[starts], 2:] = np.maximum.reduceat(high, starts)
    return found


NUM_EXAMPLES = 3
# Classes with fewer training objects are reported.
FEW = 10


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One kind of fault."""

    kind: str
    """For example "box without area"."""
    count: int
    advice: str
    """How to fix it; empty if every example says it."""
    examples: tuple[str, ...]
    """The first few."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.count:,}" + (f"; {self.advice}" if self.advice else "")


def find_problems(data: DetectionData, scan: Scan[Inspected]) -> tuple[Problem, ...]:
    """Return one problem per kind, those that stop training first."""
    inspected = scan.inspected
    by_kind: dict[tuple[bool, str], list[Fault]] = {}
    for fault in data.faults:
        if fault.kind != UNUSED:  # Reported below for all files together.
            by_kind.setdefault((fault.fatal, fault.kind), []).append(fault)
    kinds = [
        Problem(
            kind=f"{kind}, which prevents training" if is_fatal else kind,
            count=sum(fault.count for fault in faults),
            advice="",
            examples=tuple(map(str, faults[:NUM_EXAMPLES])),
        )
        for (is_fatal, kind), faults in by_kind.items()
    ]
    ordered = sorted(kinds, key=lambda problem: -problem.count)
    fatal = [problem for problem in ordered if problem.kind.endswith("which prevents training")]
    rest = [problem for problem in ordered if problem not in fatal]
    reason = "" if fatal else refusal(data)
    if reason:
        kind = f"{reason}, which prevents training"
        fatal = [Problem(kind=kind, count=1, advice="", examples=())]
    of_files = [find(data, inspected) for find in _FINDERS]
    unmatched = _problem(
        "image files that no JSON file lists",
        [_short(data, source) for source in unlisted(data)],
        "they are not used",
    )
    alike = _problem(
        "held-out images that look like a training image",
        [f"{_short(data, b.source)} ~ {_short(data, a.source)}" for a, b in scan.alike.pairs],
        "perhaps the same ones saved again, or taken at one place; keep them in one split: "
        + alike_advice(has_val=data.has_val),
    )
    found = (*fatal, *of_files, alike, *rest, *_classes(data), unmatched)
    return tuple(problem for problem in found if problem.count)


def find_suggestions(data: DetectionData) -> tuple[str, ...]:
    """Return suggestions for this data, each with the setting to use."""
    lines = []
    max_objects = max(
        (len(r.objects) for _, images in parts(data) for r in images.records), default=0
    )
    if max_objects > 100:
        lines.append(
            f"an image has {max_objects:,} objects, but COCO's limit is 100 detections: train with "
            f"--detect.max_detections {_round_up(max_objects)}"
        )
    areas = table_of(data.train.records, crowds=True).areas
    areas = areas[areas > 0]
    if len(areas) and np.median(areas) < 32**2:
        lines.append(
            "most objects are small (less than 32 x 32 pixels): a larger image size finds more of "
            "them; an --input.image_size above the images' short side enlarges them"
        )
    sides = [min(record.width, record.height) for record in data.train.records]
    if sides and statistics.median(sides) > 2000:
        lines.append(
            "the images are large: cut them into tiles, since small objects vanish when images are "
            "resized"
        )
    return tuple(lines)


def _missing(data: DetectionData, inspected: Sequence[Inspected]) -> Problem:
    lines = [_short(data, item.source) for item in inspected if item.missing]
    advice = f"add them, or {FIX}removes them from the JSON file"
    return _problem("missing image files", lines, advice)


def _unreadable(data: DetectionData, inspected: Sequence[Inspected]) -> Problem:
    bad = [item for item in inspected if item.reason and not item.missing]
    lines = [f"{_short(data, item.source)}: {item.reason}" for item in bad]
    return _problem("images that cannot be read", lines, "replace them; training skips them")


def _sizes(data: DetectionData, inspected: Sequence[Inspected]) -> Problem:
    lines = []
    for item in inspected:
        if item.width and (item.width, item.height) != item.stated:
            width, height = item.stated
            turned = ", which is rotated" if (item.height, item.width) == item.stated else ""
            lines.append(
                f"{_short(data, item.source)} has {item.width} x {item.height} pixels, but "
                f"{width} x {height} in the JSON file{turned}"
            )
    advice = f"training skips them; {FIX}takes the size from the file where the boxes allow it"
    return _problem("images whose size differs from the JSON file", lines, advice)


def _leaks(data: DetectionData, inspected: Sequence[Inspected]) -> Problem:
    in_train = {item.digest: item for item in inspected if item.part == "train" and item.digest}
    lines = [
        f"{_short(data, item.source)} = {_short(data, in_train[item.digest].source)}"
        for item in inspected
        if item.part != "train" and item.digest in in_train
    ]
    return _problem(
        "validation images identical to a training image",
        lines,
        "scores are too high; remove them from one split",
    )


def _repeats(data: DetectionData, inspected: Sequence[Inspected]) -> Problem:
    first: dict[tuple[str, bytes], str] = {}
    lines = []
    for item in inspected:
        if item.digest:
            source = first.setdefault((item.part, item.digest), item.source)
            if source != item.source:
                lines.append(f"{_short(data, item.source)} = {_short(data, source)}")
    return _problem("duplicate images within a split", lines, "keep one of each")


def _loose_boxes(data: DetectionData, inspected: Sequence[Inspected]) -> Problem:
    lines = [
        f"{_short(data, str(images.root / record.file_name))}: {text}"
        for _, images in parts(data)
        for record, text in _loose(images.records)
    ]
    return _problem(
        "boxes that do not cover their masks", lines, "check that box and mask belong together"
    )


def _classes(data: DetectionData) -> list[Problem]:
    """Return the problems of class frequencies."""
    tables = {part: table_of(images.records, crowds=True) for part, images in parts(data)}
    size = len(data.classes)
    counts = {
        part: np.bincount(table.labels[~table.crowd], minlength=size).tolist()
        for part, table in tables.items()
    }
    train, val = counts["train"], counts["val"]
    labels = np.concatenate([table.labels for table in tables.values()])
    used = np.bincount(labels, minlength=size).tolist()
    every = list(enumerate(data.classes))
    return [
        _problem(
            "validation classes without a training object",
            [name for c, name in every if val[c] and not train[c]],
            "they cannot be learned; add some, or split the data again",
        ),
        _problem(
            f"classes with fewer than {FEW} training objects",
            [f"{name} ({train[c]:,})" for c, name in every if 0 < train[c] < FEW],
            "add some",
        ),
        _problem(
            "classes without a validation object",
            [name for c, name in every if train[c] and not val[c]],
            "their AP cannot be measured; add some, or split the data again",
        ),
        _problem(
            "unused categories",
            [name for c, name in every if not used[c]],
            "remove them if they are a mistake",
        ),
        _problem(
            "classes of which all objects are crowd regions",
            [name for c, name in every if used[c] and not any(n[c] for n in counts.values())],
            "crowd regions are neither trained on nor scored; set iscrowd to 0 for single objects",
        ),
    ]


# Worst first.
_FINDERS: tuple[Callable[[DetectionData, Sequence[Inspected]], Problem], ...] = (
    _missing,
    _unreadable,
    _sizes,
    _leaks,
    _repeats,
    _loose_boxes,
)


def _problem(kind: str, lines: Iterable[str], advice: str = "") -> Problem:
    lines = list(lines)
    return Problem(kind=kind, count=len(lines), advice=advice, examples=tuple(lines[:NUM_EXAMPLES]))


def _short(data: DetectionData, source: str) -> str:
    """Return the path of an image relative to the data set."""
    return source.removeprefix(data.path).lstrip("/\\") or source


def _round_up(count: int) -> int:
    """Return the next multiple of 100."""
    return -(-count // 100) * 100
