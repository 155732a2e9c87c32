"""`predict` for segmentation: masks, overlays and class areas at the size of the images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape

from convnext.atomic import write_together
from convnext.data.drawing import class_colors, save_image
from convnext.data.sources import Source
from convnext.names import csv_text, text_cell
from convnext.results import Segmentation
from convnext.results.pictures import index_image
from convnext.tasks.predict import (
    OverlayFormat,
    Predictor,
    bad_rows,
    check_overlays,
    print_bad,
    summary_table,
)
from convnext.tasks.segmentation.inference import segment_labels
from convnext.tasks.segmentation.scores import choose_inference
from convnext.tasks.trained import Opened


@dataclass(frozen=True, kw_only=True)
class ClassArea:
    """The area of an image that one class covers."""

    name: str
    pixels: int
    percent: float


@dataclass(frozen=True, kw_only=True)
class ImageAreas:
    """One image: its source, the written files, and its classes, the largest area first."""

    source: str
    width: int
    height: int
    mask: str
    overlay: str
    """Empty if no file was requested."""
    areas: tuple[ClassArea, ...]


@dataclass(frozen=True, kw_only=True)
class SegmentationResult:
    """Areas in all images, in order, and the images that could not be read."""

    output: str
    classes: tuple[str, ...]
    predictions: tuple[ImageAreas, ...]
    bad_images: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return {
            "output": self.output,
            "classes": list(self.classes),
            "predictions": [asdict(prediction) for prediction in self.predictions],
            "bad_images": bad_rows(self.bad_images),
        }

    def write(self, folder: str | Path | None = None) -> tuple[Path, ...]:
        """Write `predictions.json` and `areas.csv` (one row per image and class)."""
        folder = Path(folder or self.output)
        rows = (
            (text_cell(p.source), text_cell(area.name), area.pixels, f"{area.percent:.4f}")
            for p in self.predictions
            for area in p.areas
        )
        table = csv_text([("image", "class", "pixels", "percent"), *rows])
        text = json.dumps(self.to_dict(), indent=1) + "\n"
        return write_together(folder / "predictions.json", text, {"areas.csv": table})

    def print(self, console: Console) -> None:
        """Print one line per image with its largest classes."""
        rows = (
            (
                p.source,
                f"{p.width} x {p.height}",
                ", ".join(f"{area.name} {area.percent:.1f} %" for area in p.areas[:4]),
            )
            for p in self.predictions
        )
        console.print(summary_table(("pixels>", "classes"), rows))
        print_bad(self.bad_images, console)
        if self.output:
            console.print(
                f"masks, overlays, areas.csv and predictions.json are in {escape(self.output)}"
            )


class PixelPredictor(Predictor[Segmentation]):
    """Predicts the class of every pixel, and writes masks and overlays.

    Args:
        own: The network.
        output: Folder for NAME_mask.png and NAME_overlay.png of each image; None for no files.
        window: Side of a sliding window; this and the next four are by default as in training.
        stride: Stride of the window.
        whole: Predict whole images.
        multi_scale: Average the predictions at six scales.
        flip: Average with the prediction for the mirrored image.
        overlays: Format of the overlays: "png", "jpg" (smaller), or "none".
        alpha: Opacity of the colors in the overlays, in [0, 1].

    Raises:
        ValueError: If an option is out of range.
    """

    title = "segmenting"
    default_folder = "predictions"

    def __init__(
        self,
        own: Opened,
        output: Path | None,
        *,
        window: int | None = None,
        stride: int | None = None,
        whole: bool = False,
        multi_scale: bool = False,
        flip: bool = False,
        overlays: OverlayFormat = "png",
        alpha: float = 0.55,
    ) -> None:
        super().__init__(own, output)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}, but must be between 0 and 1")
        self.overlays, self.alpha = check_overlays(overlays), alpha
        self.settings = choose_inference(
            own.card.recipe,
            window=window,
            stride=stride,
            whole=whole,
            multi_scale=multi_scale,
            flip=flip,
        )

    def files_of(self, name: str) -> tuple[str, ...]:
        """Return the names of an image's files."""
        mask = f"{name}_mask.png"
        return (mask,) if self.overlays == "none" else (mask, f"{name}_overlay.{self.overlays}")

    def result(self, source: Source, image: Image.Image) -> Segmentation:
        """Return the segmentation of an image."""
        labels = segment_labels(
            self.network,
            self.tensor(image),
            settings=self.settings,
            size=(image.height, image.width),
            device=self.own.device,
            precision=self.precision,
        ).numpy()
        return Segmentation(mask=labels, **self.common(source, labels.shape, image))

    def row(
        self, source: Source, image: Image.Image | None, result: Segmentation, name: str, index: int
    ) -> ImageAreas:
        """Write the mask and the overlay, and return the row of an image."""
        assert image is not None
        mask, shown = "", ""
        if self.output is not None:
            mask, shown = (*self.files_of(name), "")[:2]
            colors = class_colors(len(self.classes))
            save_image(index_image(result.mask, colors), self.output / mask)
            if shown:
                picture = result.plot(image=image.convert("RGB"), alpha=self.alpha)
                save_image(picture, self.output / shown)
        return ImageAreas(
            source=source.name,
            width=image.width,
            height=image.height,
            mask=mask,
            overlay=shown,
            areas=class_areas(result.mask, self.classes),
        )

    def summary(self, rows: Sequence[Any], bad: Sequence[tuple[str, str]]) -> SegmentationResult:
        """Return the areas in all images."""
        return SegmentationResult(
            output=str(self.output or ""),
            classes=self.classes,
            predictions=tuple(rows),
            bad_images=tuple(bad),
        )


def class_areas(labels: NDArray[Any], classes: Sequence[str]) -> tuple[ClassArea, ...]:
    """Return the area of every class that occurs in labels (H, W), largest first.

    Percentages are relative to all pixels with a class.
    """
    inside = labels[(labels >= 0) & (labels < len(classes))]
    counts = np.bincount(inside, minlength=len(classes))
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    return tuple(
        ClassArea(
            name=classes[c], pixels=int(counts[c]), percent=float(100 * counts[c] / len(inside))
        )
        for c in order
    )


PREDICTOR = PixelPredictor
