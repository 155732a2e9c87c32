"""What the files of a detection data set hold, seen by reading every image in full."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rich.console import Console

from convnext.data.formats.coco import Objects
from convnext.data.images import BadImage, decode, readable_extensions
from convnext.data.masks import bounds_of
from convnext.data.threads import for_each
from convnext.tasks.detection.data.open import DetectionData
from convnext.tasks.detection.data.samples import DetectionImages

Part = Literal["train", "val"]
# Pixels by which a mask may leave its box: boxes are often rounded.
LOOSE = 1.0


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen of one image."""

    part: str
    source: str
    missing: bool = False
    reason: str = ""
    """Why the file cannot be read; empty if it can."""
    width: int = 0
    """Of the file, with its EXIF orientation applied; 0 if it cannot be read."""
    height: int = 0
    stated: tuple[int, int]
    """(width, height) in the json."""
    digest: bytes = b""
    """Of the pixels."""
    loose: tuple[str, ...] = ()
    """The annotations whose boxes do not cover their masks, and by how much."""


def parts(data: DetectionData) -> tuple[tuple[Part, DetectionImages], ...]:
    """Return the splits with their names."""
    return ("train", data.train), ("val", data.val)


def scan(data: DetectionData, *, console: Console | None = None) -> list[Look]:
    """Read every image by a few threads, with a progress bar on `console`."""
    jobs = [(part, images, i) for part, images in parts(data) for i in range(len(images))]
    found: list[Look | None] = [None] * len(jobs)

    def read(number: int) -> None:
        found[number] = look_at(*jobs[number])

    for_each(read, len(jobs), "reading images", console=console)
    return [look for look in found if look is not None]


def look_at(part: str, images: DetectionImages, index: int) -> Look:
    """Read one image and compare it with what the json says."""
    source = images.source(index)
    path, stated = images.root / images.records[index].file_name, images.size(index)
    loose = tuple(_loose(images.objects(index)))
    try:
        image = decode(path, mode="RGB")
    except BadImage as error:
        return Look(
            part=part,
            source=source,
            missing=not path.exists(),
            reason=error.reason,
            stated=stated,
            loose=loose,
        )
    return Look(
        part=part,
        source=source,
        width=image.width,
        height=image.height,
        stated=stated,
        digest=hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest(),
        loose=loose,
    )


def unlisted(data: DetectionData) -> list[str]:
    """Return the images in the folders of the splits that are in no json, sorted."""
    listed = {path.resolve() for _, images in parts(data) for path in images.images}
    endings = readable_extensions()
    found = set()
    for root in {images.root for _, images in parts(data)}:
        for path in root.rglob("*"):
            hidden = any(name.startswith(".") for name in path.relative_to(root).parts)
            if path.suffix.lower() in endings and not hidden and path.resolve() not in listed:
                found.add(str(path))
    return sorted(found)


def _loose(objects: Objects) -> Iterator[str]:
    """Yield the annotations whose masks leave their boxes by more than `LOOSE` pixels."""
    for key, box, mask in zip(objects.ids, objects.boxes.tolist(), objects.masks, strict=True):
        bounds = None if mask is None else bounds_of(mask)
        if bounds is None:
            continue
        x1, y1, x2, y2 = bounds
        by = max(box[0] - x1, box[1] - y1, x2 - box[2], y2 - box[3])
        if by > LOOSE:
            yield f"annotation {key} by {by:.1f} pixels"
