"""`predict`: the classes of images, with the preprocessing that the checkpoint carries."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from convnext.atomic import write_text
from convnext.data.images import image_files
from convnext.data.samples import BadImages, FolderSamples
from convnext.deploy.fast import Fast
from convnext.hardware.devices import pick_device
from convnext.progress import notes, progress_bar
from convnext.tasks.classification.dataset import EvalDataset
from convnext.tasks.classification.inference import BATCH_SIZE, infer
from convnext.tasks.trained import open_model
from convnext.weights.open import pick_precision


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable classes of one image, the best first."""

    source: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """The predictions of all images, in order, and the images that could not be read."""

    model: str
    predictions: tuple[Prediction, ...]
    bad_images: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return {
            "model": self.model,
            "predictions": [asdict(prediction) for prediction in self.predictions],
            "bad_images": [{"source": s, "reason": r} for s, r in self.bad_images],
        }

    def write(self, folder: str | Path) -> tuple[Path, Path]:
        """Write `predictions.json` and `predictions.csv` (one row per image and class)."""
        as_json, as_csv = Path(folder) / "predictions.json", Path(folder) / "predictions.csv"
        write_text(as_json, json.dumps(self.to_dict(), indent=1) + "\n")
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        writer.writerow(("image", "rank", "class", "probability"))
        for prediction in self.predictions:
            ranked = zip(prediction.classes, prediction.probabilities, strict=True)
            for rank, (name, probability) in enumerate(ranked, start=1):
                writer.writerow((prediction.source, rank, name, f"{probability:.6f}"))
        write_text(as_csv, rows.getvalue())
        return as_json, as_csv

    def print(self, console: Console) -> None:
        """Print a line per image: its best class and probability, and the runners-up."""
        table = Table(box=None, header_style="bold")
        table.add_column("image", overflow="fold")
        table.add_column("class")
        table.add_column("probability", justify="right")
        table.add_column("then", style="dim", overflow="ellipsis", no_wrap=True)
        for p in self.predictions:
            others = zip(p.classes[1:3], p.probabilities[1:3], strict=True)
            table.add_row(
                escape(p.source),
                escape(p.classes[0]),
                f"{100 * p.probabilities[0]:.1f} %",
                escape(", ".join(f"{name} {100 * value:.1f}" for name, value in others)),
            )
        console.print(table)
        for source, reason in self.bad_images:
            console.print(f"skipped: {source}: {reason}", markup=False)
        if self.bad_images:
            console.print(f"{len(self.bad_images)} of the images could not be read")


def predict(
    source: str,
    images: Iterable[str | Path],
    *,
    topk: int = 5,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    max_bad_share: float = 1.0,
    fast: bool = True,
    console: Console | None = None,
) -> PredictResult:
    """Predict the classes of image files, and of all images in folders.

    Args:
        source: A run folder, a file in any layout, or a hub id.
        images: Files and folders.
        topk: Classes per image.
        batch_size: Images at a time. The last bits of the logits may depend on it.
        device: `cpu`, `cuda`, `mps` or `auto`.
        precision: `fp32`, `bf16`, `fp16`, or `auto` for the one of training.
        max_bad_share: The largest share of images that may be unreadable.
        fast: Take the fastest form of the network where the work ahead is worth it; outputs then
            differ in their last bits.
        console: Where the progress bar goes; None for none.

    Raises:
        ValueError: If there is no image, or too many cannot be read.
    """
    if topk < 1:
        raise ValueError(f"--topk must be at least 1, not {topk}")
    paths = image_files(images)
    where = pick_device(device)
    model, card = open_model(source, where)
    samples = FolderSamples(Path(), [str(path) for path in paths], [0] * len(paths))
    bad = BadImages(samples, max_share=max_bad_share)
    executed = pick_precision(precision, card, where)
    network = Fast(
        model,
        device=where,
        precision=executed,
        num_images=len(paths),
        enabled=fast,
        note=notes(console),
    )
    predictions = []
    with progress_bar("predicting", len(paths), console) as advance:
        for logits, _, indices in infer(
            network,
            EvalDataset(samples, card.preprocessing),
            device=where,
            precision=executed,
            bad=bad,
            batch_size=batch_size or BATCH_SIZE,
            progress=network.watch(advance),
        ):
            top = logits.softmax(1).topk(min(topk, len(card.classes)), 1)
            for index, values, classes in zip(
                indices.tolist(), top.values.tolist(), top.indices.tolist(), strict=True
            ):
                predictions.append(
                    Prediction(
                        source=samples.source(index),
                        classes=tuple(card.classes[c] for c in classes),
                        probabilities=tuple(values),
                    )
                )
    if not predictions:
        first = next(iter(bad.found.values()))
        raise ValueError(f"none of the {len(paths)} images can be read: {first}")
    return PredictResult(
        model=card.model,
        predictions=tuple(predictions),
        bad_images=tuple((image.source, image.reason) for image in bad.found.values()),
    )
