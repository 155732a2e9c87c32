"""`evaluate` for segmentation: scores from the confusion matrix, and the worst images."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from convnext.atomic import write_text
from convnext.data.contents import (
    Compared,
    compare_with_run,
    held_names,
    held_positions,
    split_to_evaluate,
)
from convnext.data.drawing import data_uri
from convnext.data.formats.mask_folders import is_mask_folder
from convnext.data.samples import BadImages
from convnext.data.tensors import normalize_batch
from convnext.progress import progress_bar
from convnext.results import Scores
from convnext.tasks.segmentation.data import SegmentationData, open_dataset
from convnext.tasks.segmentation.dataset import EvalDataset
from convnext.tasks.segmentation.inference import Items, infer, segment_labels
from convnext.tasks.segmentation.layout import Pairs, Relabeled, annotation, join
from convnext.tasks.segmentation.metric import Evaluation, Metric
from convnext.tasks.segmentation.render import compare
from convnext.tasks.segmentation.scores import InferenceSettings, choose_inference, describe
from convnext.tasks.trained import Opened, opened
from convnext.weights.checkpoint import (
    Card,
    data_of,
    is_address,
    is_own_data,
    setting_of,
    val_share_of,
)
from convnext.weights.open import pick_precision


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """An evaluation, its inputs, and pictures of the worst images."""

    source: str
    data: str
    card: Card
    evaluation: Evaluation
    inference: InferenceSettings
    pictures: tuple[tuple[str, str], ...]
    """The path of each of the worst images, and a comparison as a data URI."""
    bad_images: tuple[tuple[str, str], ...]
    """Pairs that could not be read, each with the reason."""
    left_out: tuple[str, ...] = ()
    """What was left out of the data, and why."""
    split: str = ""
    """The split of the data: "train", "val", "test" or "all"."""
    compared: Compared = field(default_factory=Compared)
    """Whether images were trained on, and what has changed since."""

    def to_dict(self, *, pictures: bool = False) -> dict[str, Any]:
        """Return nested plain values for JSON, with the pictures only on request."""
        result = self.evaluation.to_dict()
        for worst, (source, picture) in zip(result["worst"], self.pictures, strict=True):
            worst |= {"source": source} | ({"picture": picture} if pictures else {})
        return {
            "source": self.source,
            "data": self.data,
            "split": self.split,
            "model": self.card.model,
            "weights": self.card.metrics.get("weights", "model"),
            "step": self.card.metrics.get("step"),
            "inference": describe(self.inference),
            **result,
            "left_out": list(self.left_out),
            **self.compared.to_dict(),
            "bad_images": [{"source": s, "reason": r} for s, r in self.bad_images],
        }

    def scores(self) -> Scores:
        """Return the scores in percent and the loss, and the scores per class in [0, 1]."""
        e = self.evaluation
        values: dict[str, float | None]
        values = {"miou": e.miou, "accuracy": e.accuracy, "mean_accuracy": e.mean_accuracy}
        values |= {"boundary_f1": e.boundary_f1, "loss": e.loss}
        return Scores(
            scores={name: value for name, value in values.items() if value is not None},
            per_class={
                c.name: {
                    "iou": _or_nan(c.iou),
                    "accuracy": _or_nan(c.accuracy),
                    "precision": _or_nan(c.precision),
                    "f1": _or_nan(c.f1),
                }
                for c in e.per_class
            },
            evaluation=self,
        )

    def write(self, folder: str | Path) -> Path:
        """Write `evaluation.json` into a folder and return its path."""
        path = Path(folder) / "evaluation.json"
        write_text(path, json.dumps(self.to_dict(pictures=True)) + "\n")
        return path

    def print(self, console: Console) -> None:
        """Print the scores, and a table of the classes."""
        e = self.evaluation
        table = Table(box=None, header_style="bold")
        table.add_column("class")
        for name in ("pixels", "accuracy", "precision", "IoU"):
            table.add_column(name, justify="right")
        rows = sorted(e.per_class, key=lambda row: -1.0 if row.iou is None else row.iou)
        shown = e.per_class if len(rows) <= 30 else rows[:30]
        for row in shown:
            values = (row.accuracy, row.precision, row.iou)
            table.add_row(
                escape(row.name),
                f"{row.pixels:,}",
                *("-" if value is None else f"{100 * value:.1f}" for value in values),
            )
        if len(rows) > len(shown):
            console.print(f"the {len(shown)} classes with the lowest IoU, of {len(rows)}:")
        console.print(table)
        boundary = "" if e.boundary_f1 is None else f"  boundary F1 {e.boundary_f1:.2f} %"
        loss = "" if e.loss is None else f"  loss {e.loss:.4f}"
        console.print(
            f"[bold]mIoU {e.miou:.2f} %[/]  pixel accuracy {e.accuracy:.2f} %  mean class accuracy "
            f"{e.mean_accuracy:.2f} %{boundary}{loss}  on {e.num_images:,} images of "
            f"{escape(self.data)}, {describe(self.inference)}"
        )
        split = [f"split: {self.split}"] if self.split else []
        for line in (*split, *self.left_out, *self.compared.lines()):
            console.print(line, markup=False)
        for source, reason in self.bad_images:
            console.print(f"skipped: {source}: {reason}", markup=False)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def evaluate(
    source: str | Opened,
    *,
    data: str | None = None,
    split: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    max_bad_share: float = 0.01,
    window: int | None = None,
    stride: int | None = None,
    whole: bool = False,
    multi_scale: bool = False,
    flip: bool = False,
    boundary: bool = False,
    fast: bool = True,
    console: Console | None = None,
) -> EvaluationResult:
    """Evaluate a run, a checkpoint or published weights on images with masks.

    Args:
        source: A run folder, a file in any layout, a hub id, or an open network.
        data: The data set; by default the local one that the run was trained on.
        split: "auto", "train", "val", "test" or "all"; see `open_split`.
        device: `cpu`, `cuda`, `mps` or `auto`.
        precision: `fp32`, `bf16`, `fp16`, or `auto` for the precision of training.
        max_bad_share: Maximum fraction of images that may be unreadable.
        window: Side of a sliding window; this and the next four are by default as in training.
        stride: Stride of the window.
        whole: Predict whole images.
        multi_scale: Average the predictions at six scales.
        flip: Average with the prediction for the mirrored image.
        boundary: Also measure the boundary F-score.
        fast: Use the fastest backend if there are enough images to make up for the search; outputs
            then differ in their last bits.
        console: Console of the progress bar; None for no output.

    Raises:
        ValueError: If source or data cannot be read, or their classes do not match.
    """
    own = opened(source, device)
    source, card, where = own.source, own.card, own.device
    settings = choose_inference(
        card.recipe, window=window, stride=stride, whole=whole, multi_scale=multi_scale, flip=flip
    )
    found_data, pairs = open_split(data, split, card, source)
    is_relabeled = isinstance(pairs.reader, Relabeled)
    left_out = unknown_classes(found_data.classes, card.classes) if is_relabeled else ()
    split = _split_of(found_data, split, card)
    compared = compare_with_run(
        source,
        pairs,
        partial(annotation, pairs, found_data.classes),
        data=found_data.path,
        classes=found_data.classes,
        own_split=split if is_own_data(found_data.path, card) else "",
    )
    bad = BadImages(pairs, max_share=max_bad_share)
    dataset = EvalDataset(pairs, card.preprocessing)
    executed = pick_precision(precision, card, where)
    ignore_index = pairs.reader.ignore_index
    metric = Metric(card.classes, ignore_index, boundary)
    network = own.fast(precision=executed, num_images=len(pairs), enabled=fast, console=console)
    with progress_bar("evaluating", len(pairs), console) as advance:
        for found in infer(
            network,
            dataset,
            device=where,
            precision=executed,
            bad=bad,
            settings=settings,
            ignore_index=ignore_index,
            progress=network.watch(advance),
        ):
            metric.update(*found)
    evaluation = metric.compute()
    worst = [score.index for score in evaluation.worst]
    pictures = draw_images(
        network,
        dataset,
        worst,
        num_classes=len(card.classes),
        device=where,
        precision=executed,
        settings=settings,
        ignore_index=ignore_index,
    )
    return EvaluationResult(
        source=source,
        data=found_data.path,
        card=card,
        evaluation=evaluation,
        inference=settings,
        pictures=tuple((pairs.source(i), p) for i, p in zip(worst, pictures, strict=True)),
        bad_images=tuple((image.source, image.reason) for image in bad.found.values()),
        left_out=left_out,
        split=split,
        compared=compared,
    )


def open_split(
    data: str | None, split: str, card: Card, source: str
) -> tuple[SegmentationData, Pairs]:
    """Return the data set to evaluate on, and the split's pairs with the network's classes.

    `auto` takes the images that training held out; of other data its test split, else its
    validation split, else all images. The data of the run is read as in training. Other data is
    read by its own layout, or by the patterns of training if it has no known layout.

    Raises:
        ValueError: If there is no data, the network does not know its classes, or the card has
            patterns that lead out of the data folder.
    """
    own = setting_of(card.recipe, "data", str)
    path = data or data_of(source, card)
    same = is_own_data(path, card)
    like_own = same or not is_mask_folder(Path(path))
    reduced = setting_of(card.recipe, "segment.reduce_zero_label", bool, str) if like_own else None
    opened = open_dataset(
        str(path),
        val_share=val_share_of(card),
        images=_pattern_of(card, "images", source) if like_own else "",
        masks=_pattern_of(card, "masks", source) if like_own else "",
        reduce_zero_label=reduced if isinstance(reduced, bool) else "auto",
    )
    if same and not opened.has_val:
        opened = _as_held(opened, source)
    pairs = _pairs_of(opened, _split_of(opened, split, card))
    if own is None and len(opened.classes) == len(card.classes):
        return opened, pairs  # The class names of a file without a card are a guess.
    return opened, relabel(pairs, opened.classes, card.classes)


def _as_held(opened: SegmentationData, source: str) -> SegmentationData:
    """Return data with the images that a run held out, where it recorded them."""
    pairs = join([opened.train, opened.val])
    parts = held_positions(held_names(source), map(pairs.source, range(len(pairs))), opened.path)
    if parts is None:
        return opened
    train, val = map(pairs.take, parts)
    return replace(opened, train=train, val=val)


def _split_of(data: SegmentationData, split: str, card: Card) -> str:
    is_own, has_test = is_own_data(data.path, card), data.test is not None
    return split_to_evaluate(split, is_own=is_own, has_val=data.has_val, has_test=has_test)


def _pairs_of(opened: SegmentationData, split: str) -> Pairs:
    """Return the pairs of a split.

    Raises:
        ValueError: If there is no such split.
    """
    if split == "all":
        parts = [part for part in (opened.train, opened.val, opened.test) if part is not None]
        return join(parts)
    part = {"train": opened.train, "val": opened.val, "test": opened.test}[split]
    if part is None or not len(part):
        raise ValueError(f"{opened.path} has no {split} split; give another --split")
    return part


def _pattern_of(card: Card, name: str, source: str) -> str:
    """Return a pattern of training; only a run folder's may lead out of the data folder.

    Raises:
        ValueError: If another one does, or it names a host.
    """
    pattern = setting_of(card.recipe, f"segment.{name}", str) or ""
    parts = PureWindowsPath(pattern)  # Handles the separators of all systems.
    leads_out = bool(parts.anchor) or ".." in parts.parts
    if is_address(pattern) or (leads_out and not Path(source).is_dir()):
        raise ValueError(
            f"{source} was trained with --segment.{name} {pattern!r}, which leads out of the data "
            "folder; a checkpoint must not do that: move the files into the folder, or use the run "
            "folder instead of the file"
        )
    return pattern


def relabel(pairs: Pairs, classes: Sequence[str], wanted: Sequence[str]) -> Pairs:
    """Return pairs with class indices of the network; other classes have no label.

    Raises:
        ValueError: If the network knows none of the classes.
    """
    if tuple(classes) == tuple(wanted):
        return pairs
    known = {name: position for position, name in enumerate(wanted)}
    missing = [name for name in classes if name not in known]
    if len(missing) == len(classes):
        raise ValueError(
            f"the network does not know {len(missing)} of the data's {len(classes)} classes, such "
            f"as {missing[0]!r}; it knows {', '.join(wanted[:5])}"
            f"{', ...' if len(wanted) > 5 else ''}: use these names in the data's classes.txt, in "
            "the order of the values in the masks"
        )
    table = tuple(known.get(name, -1) for name in classes)
    return replace(pairs, reader=Relabeled(pairs.reader, table, len(wanted)))


def unknown_classes(classes: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Return what is left out because the network does not know it."""
    missing = [name for name in classes if name not in wanted]
    if not missing:
        return ()
    names = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
    return (
        f"pixels of {len(missing):,} classes are left out, because the network does not know them: "
        f"{names}",
    )


def draw_images(
    model: nn.Module,
    dataset: Items,
    indices: Sequence[int],
    *,
    num_classes: int,
    device: torch.device,
    precision: str,
    settings: InferenceSettings | None = None,
    ignore_index: int = 255,
    width: int = 320,
) -> Iterator[str]:
    """Yield a comparison of each image as a data URI, "" if it can no longer be read.

    The picture is the network's input before normalization; `width` is that of one panel.
    """
    model.eval()
    for index in indices:
        item = dataset[index]
        if item.bad:
            yield ""
            continue
        mask = np.asarray(item.mask)
        images = normalize_batch(dataset.preprocessing, item.pixels[None].to(device))
        labels = segment_labels(
            model,
            images[0],
            settings=settings,
            size=(mask.shape[0], mask.shape[1]),
            device=device,
            precision=precision,
        )
        pixels = np.moveaxis(item.pixels.numpy(), 0, -1)
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        yield data_uri(
            compare(
                image, mask, labels.numpy(), num_classes, ignore_index=ignore_index, width=width
            )
        )
