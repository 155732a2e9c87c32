"""`predict` for classification: the classes of images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from convnext.atomic import write_together
from convnext.data.images import PICTURE, BadImage, Header, Mode
from convnext.data.samples import BadImages, Samples
from convnext.data.sources import Source
from convnext.data.tensors import normalize_batch
from convnext.data.threads import items_of
from convnext.deploy.fast import Fast
from convnext.hardware.devices import ALONE, Ranks, autocast
from convnext.hardware.system import leave_signals_to_parent
from convnext.names import csv_text, text_cell
from convnext.results import Classification
from convnext.tasks.classification.dataset import EvalDataset, collate
from convnext.tasks.classification.exported import classified
from convnext.tasks.predict import Predictor, Skip, bad_rows, print_bad
from convnext.tasks.trained import Opened

BATCH_SIZE = 64
# Sizes of the views for test-time augmentation, as fractions of the size of training. A classifier
# that trained on random crops sees larger objects in training than in the whole image.
SCALES = (1.0, 1.15, 1.3)


@dataclass(frozen=True, kw_only=True)
class Views:
    """The views of an image whose logits are averaged (test-time augmentation)."""

    scales: tuple[float, ...] = (1.0,)
    """Sizes, as fractions of the input size."""
    flip: bool = False
    """Whether each is also mirrored."""

    @property
    def count(self) -> int:
        """The number of views."""
        return len(self.scales) * (2 if self.flip else 1)

    def of(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the views of normalized images (N, C, H, W)."""
        for scale in self.scales:
            size = [max(1, round(side * scale)) for side in images.shape[2:]]
            view = images
            if size != list(images.shape[2:]):
                view = F.interpolate(images, size, mode="bilinear", antialias=True)
                view = view.contiguous(memory_format=torch.channels_last)
            yield view
            if self.flip:
                yield view.flip(-1).contiguous(memory_format=torch.channels_last)


ONE_VIEW = Views()


def views_of(*, flip: bool, multi_scale: bool) -> Views:
    """Return the views that the options of a verb ask for."""
    return Views(scales=SCALES if multi_scale else (1.0,), flip=flip)


def _mean_logits(model: nn.Module, images: Tensor, views: Views) -> Tensor:
    """Return the mean of the logits of all views; those of a single view are not changed."""
    first, *others = (_logits(model, view) for view in views.of(images))
    return first if not others else torch.stack([first, *others]).mean(0)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of images.

    Raises:
        ValueError: If the images are too small for the network.
    """
    try:
        logits: Tensor = model(images).float()
    except RuntimeError as error:
        if "Kernel size can't be greater" not in str(error):
            raise
        size = " x ".join(map(str, images.shape[2:]))
        raise ValueError(f"images of {size} pixels are too small for the network") from error
    return logits


def infer(
    model: nn.Module,
    dataset: EvalDataset,
    *,
    device: torch.device,
    precision: str,
    bad: BadImages,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    progress: Callable[[int], None] = lambda _: None,
    ranks: Ranks = ALONE,
    views: Views = ONE_VIEW,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield logits (N, num_classes), labels (N,) and positions (N,), batch by batch, in order.

    Images that cannot be read are left out and recorded in `bad`. `progress` is called with the
    number of images of each batch. With several processes each yields its own part of the batches.
    All of them run the same number of batches, since the network may be sharded over them.
    """
    model.eval()
    if getattr(dataset.preprocessing, "whole", False):
        batch_size = 1  # An exported file resizes images of any size itself.
    batches = [
        list(range(start, min(start + batch_size, len(dataset))))
        for start in range(0, len(dataset), batch_size)
    ]
    mine = batches[ranks.rank :: ranks.count]
    num_spare = math.ceil(len(batches) / ranks.count) - len(mine)
    loader = DataLoader(
        dataset,
        batch_sampler=[*mine, *batches[:num_spare]],
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=leave_signals_to_parent,
    )
    for b, batch in enumerate(items_of(loader, device)):
        if b < len(mine):
            bad.update(batch.bad)
        if len(batch.labels):
            images = normalize_batch(dataset.preprocessing, batch.pixels.to(device))
            images = images.contiguous(memory_format=torch.channels_last)
            # A sharded network cannot gather its parameters in inference mode.
            with (
                torch.inference_mode() if ranks.count == 1 else torch.no_grad(),
                autocast(device, precision),
            ):
                logits = _mean_logits(model, images, views)
            if b < len(mine):
                yield logits, batch.labels, batch.indices
        progress(len(batch.labels) + len(batch.bad))


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable classes of one image, best first."""

    source: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    labels: tuple[str, ...] | None = None
    """All labels of an image that may have several; None if it has one."""
    of_labels: tuple[float, ...] = ()
    """The probabilities of these labels."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        found = asdict(self)
        del found["of_labels"]
        if self.labels is None:
            del found["labels"]
        return found


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """The predictions of all images, in order, and the images that could not be read."""

    model: str
    predictions: tuple[Prediction, ...]
    bad_images: tuple[tuple[str, str], ...]
    wide: tuple[Classification, ...] = ()
    """All probabilities, for one row per image."""
    output: str = ""
    """The folder with the files, or "" if there are none."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return {
            "model": self.model,
            "predictions": [prediction.to_dict() for prediction in self.predictions],
            "bad_images": bad_rows(self.bad_images),
        }

    def write(self, folder: str | Path) -> tuple[Path, ...]:
        """Write `predictions.json` and `predictions.csv`.

        The table has one row per image if it is wide, or if images may have several labels.
        """
        is_multi = any(p.labels is not None for p in self.predictions)
        few = self._label_rows() if is_multi else self._long_rows()
        rows = wide_rows(self.wide) if self.wide else few
        text = json.dumps(self.to_dict(), indent=1) + "\n"
        others = {"predictions.csv": csv_text(rows)}
        return write_together(Path(folder) / "predictions.json", text, others)

    def _long_rows(self) -> Iterator[Sequence[Any]]:
        yield "image", "rank", "class", "probability"
        for prediction in self.predictions:
            ranked = zip(prediction.classes, prediction.probabilities, strict=True)
            for rank, (name, probability) in enumerate(ranked, start=1):
                image, name = text_cell(prediction.source), text_cell(name)
                yield image, rank, name, f"{probability:.6f}"

    def _label_rows(self) -> Iterator[Sequence[Any]]:
        yield "image", "labels", "probabilities"
        for p in self.predictions:
            values = "|".join(f"{value:.6f}" for value in p.of_labels)
            yield text_cell(p.source), joined(p.labels or ()), values

    def _print_labels(self, console: Console) -> None:
        table = Table(box=None, header_style="bold")
        table.add_column("image", overflow="fold")
        table.add_column("labels, with their probabilities in %", overflow="fold")
        for p in self.predictions:
            ranked = zip(p.labels or (), p.of_labels, strict=True)
            text = ", ".join(f"{name} {100 * value:.1f}" for name, value in ranked)
            table.add_row(escape(p.source), escape(text) or "none")
        console.print(table)

    def print(self, console: Console) -> None:
        """Print one line per image with its best classes and their probabilities."""
        if any(p.labels is not None for p in self.predictions):
            self._print_labels(console)
        else:
            self._print_classes(console)
        print_bad(self.bad_images, console)
        for name in ("predictions.json", "predictions.csv") if self.output else ():
            console.print(f"written: {Path(self.output) / name}", markup=False, soft_wrap=True)

    def _print_classes(self, console: Console) -> None:
        table = Table(box=None, header_style="bold")
        table.add_column("image", overflow="fold")
        table.add_column("class")
        table.add_column("probability", justify="right")
        table.add_column("next classes", style="dim", overflow="ellipsis", no_wrap=True)
        for p in self.predictions:
            others = zip(p.classes[1:3], p.probabilities[1:3], strict=True)
            table.add_row(
                escape(p.source),
                escape(p.classes[0]),
                f"{100 * p.probabilities[0]:.1f} %",
                escape(", ".join(f"{name} {100 * value:.1f}" for name, value in others)),
            )
        console.print(table)


def joined(labels: Sequence[str]) -> str:
    """Return the cell of several labels: `cat|dog`, or a list if a name has such a sign."""
    if any("|" in name for name in labels):
        return text_cell(json.dumps(list(labels), ensure_ascii=False))
    return text_cell("|".join(labels))


def wide_rows(results: Sequence[Classification]) -> Iterator[Sequence[Any]]:
    """Yield one row per image: its best class, all probabilities, and the true class if known.

    The true class is the name of the image's folder, if there is such a class. Images that may have
    several labels have these instead.
    """
    names = results[0].names
    if results[0].thresholds is not None:
        yield ["image", "labels", *map(text_cell, names)]
        for result in results:
            labels = joined([names[i] for i in result.labels.tolist()])
            values = (f"{value:.6f}" for value in result.probabilities)
            yield text_cell(result.source), labels, *values
        return
    truths = [true_class(result) for result in results]
    has_truth = any(truths)
    columns = ["image", *(["true class"] if has_truth else []), "class", "probability"]
    yield [*columns, *map(text_cell, names)]
    for result, truth in zip(results, truths, strict=True):
        best = result.top(1)[0]
        values = (f"{value:.6f}" for value in result.probabilities)
        own = [truth] if has_truth else []
        texts = map(text_cell, (result.source, *own, best.name))
        yield *texts, f"{best.probability:.6f}", *values


def true_class(result: Classification) -> str:
    """Return the name of an image's folder if it is a class, else ""."""
    folder = result.path.absolute().parent.name if result.path is not None else ""
    return folder if folder in result.names else ""


class ClassPredictor(Predictor[Classification]):
    """Predicts the classes of images, in batches."""

    def __init__(
        self,
        own: Opened,
        output: Path | None,
        *,
        topk: int = 5,
        batch_size: int = BATCH_SIZE,
        wide: bool = False,
        flip: bool = False,
        multi_scale: bool = False,
    ) -> None:
        super().__init__(own, output)
        self.views = views_of(flip=flip, multi_scale=multi_scale)
        if topk < 1:
            raise ValueError(f"--topk must be at least 1, not {topk}")
        if batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, not {batch_size}")
        self.topk, self.batch_size, self.wide = topk, batch_size, wide

    def results(
        self, sources: Iterable[Source], skip: Skip, done: Callable[[int], None]
    ) -> Iterator[tuple[Source, Image.Image | None, Classification]]:
        """Yield images and their classes, reading one batch at a time."""
        if isinstance(sources, list):
            yield from self._batches(sources, skip, done)
            return
        rest = iter(sources)
        while part := list(islice(rest, self.batch_size)):
            yield from self._batches(part, skip, done)

    def _batches(
        self, sources: Sequence[Source], skip: Skip, done: Callable[[int], None]
    ) -> Iterator[tuple[Source, Image.Image | None, Classification]]:
        samples = SourceSamples(sources)
        bad = BadImages(samples, max_share=1.0)
        num_reported = 0
        for logits, _, indices in infer(
            cast(Fast, self.network),
            EvalDataset(samples, self.own.card.preprocessing),
            device=self.own.device,
            precision=self.precision,
            bad=bad,
            batch_size=self.batch_size,
            progress=done,
            views=self.views,
        ):
            card = self.own.card
            shares = logits.sigmoid() if card.thresholds else logits.softmax(1)
            probabilities = shares.cpu().numpy()
            num_reported = _report(bad, num_reported, sources, skip)
            for index, values in zip(indices.tolist(), probabilities, strict=True):
                size, image = samples.opened.pop(index)
                common = self.common(sources[index], size, image)
                yield sources[index], image, classified(card, values, common)
        _report(bad, num_reported, sources, skip)

    def row(
        self,
        source: Source,
        image: Image.Image | None,
        result: Classification,
        name: str,
        index: int,
    ) -> tuple[Prediction, Classification | None]:
        """Return the best classes of an image."""
        best = result.top(self.topk)
        prediction = Prediction(
            source=source.name,
            classes=tuple(guess.name for guess in best),
            probabilities=tuple(guess.probability for guess in best),
        )
        if result.thresholds is not None:
            own = result.labels.tolist()
            prediction = replace(
                prediction,
                labels=tuple(result.names[i] for i in own),
                of_labels=tuple(float(result.probabilities[i]) for i in own),
            )
        return prediction, result if self.wide else None

    def summary(self, rows: Sequence[Any], bad: Sequence[tuple[str, str]]) -> PredictResult:
        """Return the predictions of all images."""
        return PredictResult(
            model=self.own.card.model,
            predictions=tuple(prediction for prediction, _ in rows),
            bad_images=tuple(bad),
            wide=tuple(result for _, result in rows if result is not None),
            output=str(self.output or ""),
        )


class SourceSamples(Samples):
    """Unlabeled images from the user, with their sizes."""

    is_open_to_threads = True

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.labels = [0] * len(sources)
        self.opened: dict[int, tuple[tuple[int, int], Image.Image | None]] = {}
        """Height and width of an image, and the image itself if it is not in a file."""

    def source(self, index: int) -> str:
        return self.sources[index].name

    def open(self, index: int, mode: Mode, *, at_least: int | None = None) -> Image.Image:
        source = self.sources[index]
        image = source.open(mode)
        kept = image if source.path is None else None
        self.opened[index] = ((image.height, image.width), kept)
        return image

    def header(self, index: int) -> Header:
        image = self.open(index, PICTURE)
        return Header(width=image.width, height=image.height, mode=image.mode, format="image")

    def num_bytes(self, index: int) -> int:
        path = self.sources[index].path
        return path.stat().st_size if path is not None and path.is_file() else 0


def _report(bad: BadImages, num_reported: int, sources: Sequence[Source], skip: Skip) -> int:
    """Report bad images beyond the first `num_reported`; return the number of bad images."""
    for index, error in list(bad.found.items())[num_reported:]:
        skip(sources[index], BadImage(sources[index].name, error.reason))
    return len(bad.found)


PREDICTOR = ClassPredictor
