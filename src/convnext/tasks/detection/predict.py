"""`predict` for detection: pictures of what is on images, and the same as COCO's results."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from convnext.atomic import write_text
from convnext.data.drawing import output_names, protect, save_image
from convnext.data.formats.coco import read_coco
from convnext.data.images import BadImage, decode
from convnext.data.tensors import normalize_batch
from convnext.deploy.fast import Fast
from convnext.hardware.devices import pick_device
from convnext.progress import counted, notes, progress_bar
from convnext.tasks.detection.inference import Detections, detect
from convnext.tasks.detection.looks import change_detector
from convnext.tasks.detection.metric import xywh
from convnext.tasks.detection.render import draw_detections
from convnext.tasks.trained import open_model
from convnext.weights.open import pick_precision

Form = Literal["png", "jpg", "none"]
SCORE = 0.5
"""Least score of what is shown: below it, boxes are more often wrong than right."""


@dataclass(frozen=True, kw_only=True)
class ImageObjects:
    """One image: where it came from, what was written, and what is on it, the surest first."""

    source: str
    picture: str
    """Empty where none was asked for."""
    found: Detections
    image_id: int
    """In COCO's results."""


@dataclass(frozen=True, kw_only=True)
class DetectionResult:
    """All images, in order, and those that could not be read."""

    output: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """Of each class, in the results."""
    predictions: tuple[ImageObjects, ...]
    bad_images: tuple[tuple[str, str], ...]

    def results(self) -> list[dict[str, Any]]:
        """Return the objects as COCO's results, with the image's file beside its number."""
        return [
            {
                "image_id": prediction.image_id,
                "file_name": prediction.source,
                "category_id": self.category_ids[label],
                "category": self.classes[label],
                "bbox": [round(value, 3) for value in xywh(box)],
                "score": round(float(score), 6),
                **({} if mask is None else {"segmentation": mask}),
            }
            for prediction in self.predictions
            for box, score, label, mask in zip(
                prediction.found.boxes,
                prediction.found.scores,
                prediction.found.labels.tolist(),
                prediction.found.masks,
                strict=True,
            )
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return {
            "output": self.output,
            "classes": list(self.classes),
            "images": [
                {
                    "id": prediction.image_id,
                    "source": prediction.source,
                    "height": prediction.found.size[0],
                    "width": prediction.found.size[1],
                    "picture": prediction.picture,
                    "num_objects": len(prediction.found),
                }
                for prediction in self.predictions
            ],
            "objects": self.results(),
            "bad_images": [{"source": s, "reason": r} for s, r in self.bad_images],
        }

    def write(self, folder: str | Path | None = None) -> tuple[Path, ...]:
        """Write `predictions.json`, COCO's `results.json`, and `objects.csv` (a row per object)."""
        folder = Path(folder or self.output)
        content = self.to_dict()
        write_text(folder / "predictions.json", json.dumps(content, indent=1) + "\n")
        write_text(folder / "results.json", json.dumps(content["objects"]) + "\n")
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        writer.writerow(("image", "class", "score", "x", "y", "width", "height"))
        for row in content["objects"]:
            box = (f"{value:.1f}" for value in row["bbox"])
            writer.writerow((row["file_name"], row["category"], f"{row['score']:.4f}", *box))
        write_text(folder / "objects.csv", rows.getvalue())
        return tuple(folder / n for n in ("predictions.json", "results.json", "objects.csv"))

    def print(self, console: Console) -> None:
        """Print a line per image: what is on it."""
        table = Table(box=None, header_style="bold")
        table.add_column("image", overflow="fold")
        table.add_column("objects", justify="right")
        table.add_column("of them", overflow="fold")
        for p in self.predictions:
            counts = Counter(p.found.labels.tolist())
            named = (f"{count:,} {self.classes[label]}" for label, count in counts.most_common(5))
            table.add_row(escape(p.source), f"{len(p.found):,}", escape(", ".join(named)))
        console.print(table)
        for source, reason in self.bad_images:
            console.print(f"skipped: {source}: {reason}", markup=False)
        if self.bad_images:
            console.print(f"{len(self.bad_images)} of the images could not be read")
        console.print(
            "pictures, objects.csv, predictions.json and results.json (COCO's format) are in "
            f"{escape(self.output)}"
        )


def predict(
    source: str,
    images: Iterable[str | Path],
    *,
    output: str | Path = "predictions",
    device: str = "auto",
    precision: str = "auto",
    score_threshold: float | None = None,
    nms_threshold: float | None = None,
    max_detections: int | None = None,
    overlays: Form = "png",
    names: bool = True,
    ids: str | Path | None = None,
    max_bad_share: float = 1.0,
    fast: bool = True,
    console: Console | None = None,
) -> DetectionResult:
    """Detect objects on image files, and write pictures and COCO's results into a folder.

    Args:
        source: A run folder, a file in any layout, or a hub id.
        images: The files.
        output: The folder.
        device: `cpu`, `cuda`, `mps` or `auto`.
        precision: `fp32`, `bf16`, `fp16`, or `auto` for the one of training.
        score_threshold: Least score of an object; 0.5 by default.
        nms_threshold: Overlap from which doubles are suppressed; by default that of training.
        max_detections: Most objects of an image; likewise.
        overlays: Form of the pictures: "png", "jpg" (smaller), or "none".
        names: Write names and scores into the pictures.
        ids: COCO's json that lists the images: the results have its ids of images and classes;
            without, images are numbered from 1 in their order.
        max_bad_share: The largest share of images that may be unreadable.
        fast: Take the fastest form of the network where the work ahead is worth it; outputs then
            differ in their last bits.
        console: Where the progress bar goes; None for none.

    Raises:
        ValueError: If no image can be read, too many cannot, a result would overwrite an image, or
            the json of `ids` does not list an image or a class.
    """
    if overlays not in get_args(Form):
        raise ValueError(f"overlays are {overlays!r}, but must be of {', '.join(get_args(Form))}")
    where = pick_device(device)
    model, card = open_model(source, where)
    detector = change_detector(
        model,
        score_threshold=SCORE if score_threshold is None else score_threshold,
        nms_threshold=nms_threshold,
        max_detections=max_detections,
    ).eval()
    executed = pick_precision(precision, card, where)
    files, folder = [Path(path) for path in images], Path(output)
    image_ids: Sequence[int] = range(1, len(files) + 1)
    category_ids = card.category_ids or tuple(range(1, len(card.classes) + 1))
    if ids is not None:
        image_ids, category_ids = read_ids(Path(ids), files, card.classes)
    results = [
        "" if overlays == "none" else f"{name}_objects.{overlays}" for name in output_names(files)
    ]
    protect(files, [folder / result for result in results if result])
    predictions: list[ImageObjects] = []
    bad: list[tuple[str, str]] = []
    network = Fast(
        detector,
        device=where,
        precision=executed,
        num_images=len(files),
        enabled=fast,
        note=notes(console),
    )
    with progress_bar("detecting", len(files), console) as advance:
        turns = zip(files, results, image_ids, strict=True)
        for path, result, image_id in counted(turns, network.watch(advance)):
            try:
                image = decode(path, mode=card.preprocessing.mode)
            except BadImage as error:
                bad.append((str(path), error.reason))
                if len(bad) > max_bad_share * len(files):
                    raise ValueError(
                        f"{len(bad):,} of {len(files):,} images cannot be read, such as {error}; "
                        "allow more with --max-bad-share"
                    ) from error
                continue
            pixels = torch.from_numpy(card.preprocessing.pixels(image))[None].to(where)
            with torch.inference_mode():
                found = detect(
                    network,
                    normalize_batch(card.preprocessing, pixels)[0],
                    (image.height, image.width),
                    device=where,
                    precision=executed,
                )
            if result:
                picture = draw_detections(image, found, card.classes, names=names)
                save_image(picture, folder / result)
            predictions.append(
                ImageObjects(source=str(path), picture=result, found=found, image_id=image_id)
            )
    if not predictions:
        first = f": {bad[0][0]}: {bad[0][1]}" if bad else ""
        raise ValueError(f"none of the {len(files)} images can be read{first}")
    done = DetectionResult(
        output=str(folder),
        classes=tuple(card.classes),
        category_ids=category_ids,
        predictions=tuple(predictions),
        bad_images=tuple(bad),
    )
    done.write()
    return done


def read_ids(
    path: Path, files: Sequence[Path], classes: Sequence[str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids of images and of classes in COCO's json.

    A file is the image whose `file_name` its path ends with.

    Raises:
        ValueError: If one is not listed.
    """
    content = read_coco(path)
    by_parts = {Path(record.file_name).parts: record.id for record in content.records}
    by_name = dict(zip(content.classes, content.category_ids, strict=True))
    found = []
    for file in files:
        ends = (file.parts[start:] for start in range(len(file.parts)))
        end = next((end for end in ends if end in by_parts), None)
        if end is None:
            raise ValueError(
                f"{path} lists no image {file.name}; leave it out, or go without --ids"
            )
        found.append(by_parts[end])
    missing = [name for name in classes if name not in by_name]
    if missing:
        raise ValueError(f"{path} has no category {missing[0]!r}, which the network finds")
    return tuple(found), tuple(by_name[name] for name in classes)
