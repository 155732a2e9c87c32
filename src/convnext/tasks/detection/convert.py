"""Conversion of any layout to COCO JSON: `convnext data SOURCE --to coco --output DIR`.

DIR/instances_{train,val,test}.json    with the same categories in all, numbered from 1
DIR/images/{train,val,test}/           the images, as hard links where the file system supports them

The conversion writes what training reads: invalid lines are left out and reported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from rich.console import Console

from convnext.atomic import check_new_folder, whole_folder, write_text
from convnext.data.formats.coco_objects import UNUSED
from convnext.data.formats.records import ReadOptions, Record
from convnext.data.masks import Mask
from convnext.data.objects import FAULTS, DetectionData, open_dataset
from convnext.data.threads import place_files

NUM_EXAMPLES = 8
# pycocotools 2.0.9 and 2.0.10 end without these entries.
HEAD = {"info": {"description": "", "version": "1.0"}, "licenses": []}
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """Result of a conversion."""

    source: str
    kind: str
    """"Pascal VOC" or "YOLO"."""
    output: str
    classes: tuple[str, ...]
    num_images: dict[str, int]
    """Number of images by split; `num_objects` likewise."""
    num_objects: dict[str, int]
    linked: bool
    """Whether the images are hard links to those of the source."""
    faults: tuple[str, ...]
    """Faults, each with file and line."""
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return asdict(self)

    def print(self, console: Console) -> None:
        """Print a readable report with the next commands."""
        for note in self.notes:
            console.print(f"note: {note}", markup=False, soft_wrap=True)
        for split, images in self.num_images.items():
            console.print(
                f"{self.output}/instances_{split}.json: {images:,} images with "
                f"{self.num_objects[split]:,} objects",
                markup=False,
                soft_wrap=True,
            )
        how = "hard links: editing one file edits the other" if self.linked else "copies"
        console.print(f"{self.output}/images: {how}", markup=False, soft_wrap=True)
        if self.faults:
            console.print(f"\n[bold red]faults[/]: {len(self.faults):,}")
        for line in self.faults[:NUM_EXAMPLES]:
            console.print(f"  {line}", markup=False, soft_wrap=True)
        if len(self.faults) > NUM_EXAMPLES:
            more = len(self.faults) - NUM_EXAMPLES
            console.print(f"  and {more:,} more; --json lists them all")
        console.print(
            f"\nnext: convnext data {self.output} --contact-sheet sheet.png\n"
            f"      convnext train --task detect --data {self.output}",
            markup=False,
            soft_wrap=True,
        )


def to_coco(
    path: str | Path,
    output: str | Path,
    *,
    difficult: Literal["keep", "crowd", "drop"] = "keep",
    val_share: float = 0.2,
    options: ReadOptions | None = None,
    console: Console | None = None,
) -> ConvertReport:
    """Convert a data set to COCO's format.

    Args:
        path: A data set as for `open_dataset`.
        output: A new or empty folder.
        difficult: How to treat VOC's difficult objects: "keep", "crowd" (neither trained on nor
            counted) or "drop".
        val_share: Fraction of the images to hold out if the data has no split.
        options: What the user says about data that can be read in several ways.
        console: Console of the progress bar; None for no output.

    Raises:
        ValueError: If `path` is in no layout, it has no objects, or `output` is not empty.
        BusyError: If another process writes the same output.
    """
    root, target = Path(path), Path(output)
    check_new_folder(target)
    if not root.exists():
        raise ValueError(f"the folder {root} does not exist")
    options = replace(options or ReadOptions(), difficult=difficult)
    data = open_dataset(str(path), val_share=val_share, strict=False, options=options)
    if not any(len(r.objects) for images in data.parts.values() for r in images.records):
        shown = f"; the first fault: {data.faults[0]}" if data.faults else ""
        raise ValueError(f"{root} has no readable object{shown}")
    fatal = next((fault for fault in data.faults if fault.fatal), None)
    if fatal is not None:
        raise ValueError(str(fatal))
    with whole_folder(target) as draft:
        counts, linked = write_coco(data, draft, console=console)
    return ConvertReport(
        source=str(path),
        kind=data.understood.layout if data.understood else "",
        output=str(output),
        classes=data.classes,
        num_images={split: len(images) for split, images in data.parts.items()},
        num_objects=counts,
        linked=linked,
        faults=tuple(str(fault) for fault in data.faults if fault.kind != UNUSED),
        notes=tuple(note for note in data.notes if not note.startswith((FAULTS, "`convnext"))),
    )


def write_coco(
    data: DetectionData, target: Path, *, console: Console | None = None
) -> tuple[dict[str, int], bool]:
    """Write a data set with its images.

    Returns:
        The number of objects of each split, and whether all images are hard links.
    """
    linked, counts, contents = True, {}, {}
    for split, images in data.parts.items():
        paths = [Path(images.source(i)) for i in range(len(images))]
        present = [i for i, path in enumerate(paths) if path.is_file()]
        names = _names([paths[i] for i in present])
        content = content_of([images.records[i] for i in present], names, data.classes)
        contents[split], counts[split] = content, len(content["annotations"])
        pairs = [
            (paths[i], target / "images" / split / n) for i, n in zip(present, names, strict=True)
        ]
        (target / "images" / split).mkdir(parents=True, exist_ok=True)
        linked &= place_files(pairs, f"writing {split} images", console)
    for split, content in contents.items():
        write_text(target / f"instances_{split}.json", json.dumps(content, ensure_ascii=False))
    return counts, linked


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the names of images relative to the deepest folder that has all of them."""
    if not paths:
        return []
    base = os.path.commonpath([str(path.parent.absolute()) for path in paths])
    return [PurePosixPath(path.absolute().relative_to(base)).as_posix() for path in paths]


def content_of(records: Sequence[Record], names: Sequence[str], classes: Sequence[str]) -> Json:
    """Return the content of a JSON file for images of these names."""
    listed: list[Json] = []
    annotations: list[Json] = []
    for image_id, (record, name) in enumerate(zip(records, names, strict=True), 1):
        size = {"width": record.width, "height": record.height}
        listed.append({"id": image_id, "file_name": name, **size})
        found = record.objects
        for i in range(len(found)):
            x1, y1, x2, y2 = found.boxes[i].tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(found.labels[i]) + 1,
                    "bbox": [_short(value) for value in (x1, y1, x2 - x1, y2 - y1)],
                    "area": _short(float(found.areas[i])),
                    "iscrowd": int(found.crowd[i]),
                    "segmentation": _segmentation(found.masks[i]),
                    **(record.extras[i] if record.extras else {}),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    return {**HEAD, "images": listed, "annotations": annotations, "categories": categories}


def _short(value: float) -> float:
    """Return a number without the rounding errors of differences."""
    return round(value, 6)


def _segmentation(mask: Mask | None) -> Any:
    if mask is None:
        return []
    if isinstance(mask, Mapping):
        counts = mask["counts"]
        counts = counts if isinstance(counts, str) else np.asarray(counts).tolist()
        return {"size": list(mask["size"]), "counts": counts}
    assert isinstance(mask, Sequence)
    return [[_short(value) for value in np.asarray(ring).ravel().tolist()] for ring in mask]
