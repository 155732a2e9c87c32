"""`predict` for segmentation: masks, overlays and areas of image files, at their own size."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from convnext.atomic import write_text
from convnext.data.drawing import output_names, protect, save_image
from convnext.data.images import BadImage, Mode, decode
from convnext.data.tensors import Preprocesses, normalize_batch
from convnext.deploy.fast import Fast
from convnext.hardware.devices import pick_device
from convnext.progress import counted, notes, progress_bar
from convnext.tasks.segmentation.inference import segment_labels
from convnext.tasks.segmentation.looks import inference_of
from convnext.tasks.segmentation.render import (
    ClassArea,
    class_areas,
    mask_image,
    overlay,
)
from convnext.tasks.segmentation.scores import InferenceSettings
from convnext.tasks.trained import open_model
from convnext.weights.open import pick_precision

Form = Literal["png", "jpg", "none"]


class Preprocessing(Preprocesses, Protocol):
    """What prediction needs of a preprocessing."""

    @property
    def mode(self) -> Mode: ...


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """One image: where it came from, what was written, and what is on it, the largest first."""

    source: str
    width: int
    height: int
    mask: str
    overlay: str
    """Empty where none was asked for."""
    areas: tuple[ClassArea, ...]


@dataclass(frozen=True, kw_only=True)
class SegmentationResult:
    """All images, in order, and those that could not be read."""

    output: str
    classes: tuple[str, ...]
    predictions: tuple[Segmentation, ...]
    bad_images: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return {
            "output": self.output,
            "classes": list(self.classes),
            "predictions": [asdict(prediction) for prediction in self.predictions],
            "bad_images": [{"source": s, "reason": r} for s, r in self.bad_images],
        }

    def write(self, folder: str | Path | None = None) -> tuple[Path, Path]:
        """Write `predictions.json` and `areas.csv` (one row per image and class)."""
        folder = Path(folder or self.output)
        as_json, as_csv = folder / "predictions.json", folder / "areas.csv"
        write_text(as_json, json.dumps(self.to_dict(), indent=1) + "\n")
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        writer.writerow(("image", "class", "pixels", "percent"))
        for prediction in self.predictions:
            for area in prediction.areas:
                writer.writerow((prediction.source, area.name, area.pixels, f"{area.percent:.4f}"))
        write_text(as_csv, rows.getvalue())
        return as_json, as_csv

    def print(self, console: Console) -> None:
        """Print a line per image: the classes that cover most of it."""
        table = Table(box=None, header_style="bold")
        table.add_column("image", overflow="fold")
        table.add_column("pixels", justify="right", no_wrap=True)
        table.add_column("covered by", overflow="fold")
        for p in self.predictions:
            table.add_row(
                escape(p.source),
                f"{p.width} x {p.height}",
                escape(", ".join(f"{area.name} {area.percent:.1f} %" for area in p.areas[:4])),
            )
        console.print(table)
        for source, reason in self.bad_images:
            console.print(f"skipped: {source}: {reason}", markup=False)
        if self.bad_images:
            console.print(f"{len(self.bad_images)} of the images could not be read")
        console.print(
            f"masks, overlays, areas.csv and predictions.json are in {escape(self.output)}"
        )


def predict(
    source: str,
    images: Iterable[str | Path],
    *,
    output: str | Path = "predictions",
    device: str = "auto",
    precision: str = "auto",
    inference: InferenceSettings | None = None,
    overlays: Form = "png",
    alpha: float = 0.55,
    max_bad_share: float = 1.0,
    fast: bool = True,
    console: Console | None = None,
) -> SegmentationResult:
    """Segment image files, and write masks, overlays and areas into a folder.

    Args:
        source: A run folder, a file in any layout, or a hub id.
        images: The files.
        output: The folder.
        device: `cpu`, `cuda`, `mps` or `auto`.
        precision: `fp32`, `bf16`, `fp16`, or `auto` for the one of training.
        inference: Windows, scales and flips; by default those of training.
        overlays: "png", "jpg" (smaller), or "none".
        alpha: How strong the colours of the overlays are, in [0, 1].
        max_bad_share: The largest share of images that may be unreadable.
        fast: Take the fastest form of the network where the work ahead is worth it; outputs then
            differ in their last bits.
        console: Where the progress bar goes; None for none.

    Raises:
        ValueError: If no image can be read, too many cannot, or a result would overwrite an image.
    """
    where = pick_device(device)
    model, card = open_model(source, where)
    return segment_files(
        model,
        card.classes,
        card.preprocessing,
        images,
        output=output,
        device=where,
        precision=pick_precision(precision, card, where),
        settings=inference or inference_of(card.recipe),
        overlays=overlays,
        alpha=alpha,
        max_bad_share=max_bad_share,
        fast=fast,
        console=console,
    )


def segment_files(
    model: nn.Module,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    paths: Iterable[str | Path],
    *,
    output: str | Path,
    device: torch.device,
    precision: str,
    settings: InferenceSettings | None = None,
    overlays: Form = "png",
    alpha: float = 0.55,
    max_bad_share: float = 1.0,
    fast: bool = True,
    console: Console | None = None,
) -> SegmentationResult:
    """Segment image files, and write NAME_mask.png and NAME_overlay.png of each into a folder.

    Args:
        model: A segmentor on `device`. If it is `fast` it is taken over, and may be folded.
        classes: Names, in the order of the indices.
        preprocessing: What the network was trained with.
        paths: The files.
        output: The folder; `predictions.json` and `areas.csv` are written there, too.
        device: Where the network runs.
        precision: "fp32", "bf16" or "fp16".
        settings: Windows, scales and flips.
        overlays: "png", "jpg" (smaller), or "none".
        alpha: How strong the colours of the overlays are, in [0, 1].
        max_bad_share: The largest share of images that may be unreadable.
        fast: Take the fastest form of the network where the work ahead is worth it; outputs then
            differ in their last bits.
        console: Where the progress bar goes; None for none.

    Raises:
        ValueError: If no image can be read, too many cannot, or a result would overwrite an image.
    """
    if overlays not in get_args(Form):
        raise ValueError(f"overlays are {overlays!r}, but must be of {', '.join(get_args(Form))}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, but must be from 0 to 1")
    files, folder = [Path(path) for path in paths], Path(output)
    names = output_names(files)
    written = {
        name: (f"{name}_mask.png", "" if overlays == "none" else f"{name}_overlay.{overlays}")
        for name in names
    }
    protect(files, [folder / file for pair in written.values() for file in pair if file])
    network = Fast(
        model.eval(),
        device=device,
        precision=precision,
        num_images=len(files),
        enabled=fast,
        note=notes(console),
    )
    predictions, bad = [], []
    with progress_bar("segmenting", len(files), console) as advance:
        for path, name in counted(zip(files, names, strict=True), network.watch(advance)):
            try:
                image = decode(path, mode=preprocessing.mode)
                pixels = torch.from_numpy(preprocessing.pixels(image))[None].to(device)
            except BadImage as error:
                bad.append((str(path), error.reason))
                if len(bad) > max_bad_share * len(files):
                    raise ValueError(
                        f"{len(bad):,} of {len(files):,} images cannot be read, such as {error}; "
                        "allow more with --max-bad-share"
                    ) from error
                continue
            labels = segment_labels(
                network,
                normalize_batch(preprocessing, pixels)[0],
                settings=settings,
                size=(image.height, image.width),
                device=device,
                precision=precision,
            ).numpy()
            mask, shown = written[name]
            save_image(mask_image(labels, len(classes)), folder / mask)
            if shown:
                save_image(overlay(image, labels, len(classes), alpha=alpha), folder / shown)
            predictions.append(
                Segmentation(
                    source=str(path),
                    width=image.width,
                    height=image.height,
                    mask=mask,
                    overlay=shown,
                    areas=class_areas(labels, classes),
                )
            )
    if not predictions:
        first = f": {bad[0][0]}: {bad[0][1]}" if bad else ""
        raise ValueError(f"none of the {len(files)} images can be read{first}")
    result = SegmentationResult(
        output=str(folder),
        classes=tuple(classes),
        predictions=tuple(predictions),
        bad_images=tuple(bad),
    )
    result.write()
    return result
