"""`evaluate` for segmentation: scores from the confusion matrix, and the worst images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.markup import escape
from torch import nn

from convnext.data.contents import held_names
from convnext.data.drawing import class_colors, data_uri, panel_size
from convnext.data.formats.mask_folders import is_mask_folder
from convnext.data.formats.records import Exif, ReadOptions
from convnext.data.tensors import image_of, normalize_batch
from convnext.results import Scores
from convnext.results.pictures import overlay
from convnext.tasks.evaluation import (
    EvaluationResult,
    EvaluationSettings,
    EvaluationSplit,
    Evaluator,
    choose_split,
    held_split,
    images_of_split,
    score_table,
    some_classes,
)
from convnext.tasks.segmentation.data import SegmentationData, open_dataset
from convnext.tasks.segmentation.dataset import EvalDataset
from convnext.tasks.segmentation.inference import Items, has_scores, infer, segment_labels
from convnext.tasks.segmentation.layout import Pairs, Relabeled, annotation, join
from convnext.tasks.segmentation.metric import Evaluation, Metric
from convnext.tasks.segmentation.scores import InferenceSettings, choose_inference, describe
from convnext.tasks.trained import Opened, opened
from convnext.weights.checkpoint import (
    Card,
    check_no_groups,
    data_of,
    is_address,
    is_own_data,
    setting_of,
    val_share_of,
)

Labels = NDArray[Any]
"""Class indices (H, W) of any integer type."""

# Unlabeled pixels are this gray; wrong pixels are this orange over a gray picture.
IGNORED, WRONG = (128, 128, 128), (232, 113, 10)
GAP, LINE = 6, 20
# Width of a panel in pixels that has room for its title.
MIN_PANEL = 64


@dataclass(frozen=True, kw_only=True)
class SegmentationEvaluation(EvaluationResult):
    """An evaluation, its inputs, and comparisons of the worst images with their masks."""

    evaluation: Evaluation
    inference: InferenceSettings

    def own_values(self) -> dict[str, Any]:
        """Return the inference settings in words."""
        return {"inference": describe(self.inference)}

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
            conditions=self.conditions,
            evaluation=self,
        )

    def print_scores(self, console: Console) -> None:
        """Print the scores, and a table of the classes."""
        e = self.evaluation
        rows = [
            (
                -1.0 if c.iou is None else c.iou,
                (
                    c.name,
                    f"{c.pixels:,}",
                    *(
                        "-" if value is None else f"{100 * value:.1f}"
                        for value in (c.accuracy, c.precision, c.iou)
                    ),
                ),
            )
            for c in e.per_class
        ]
        console.print(score_table(("pixels", "accuracy", "precision", "IoU"), rows, "IoU"))
        boundary = "" if e.boundary_f1 is None else f"  boundary F1 {e.boundary_f1:.2f} %"
        loss = "" if e.loss is None else f"  loss {e.loss:.4f}"
        console.print(
            f"[bold]mIoU {e.miou:.2f} %[/]  pixel accuracy {e.accuracy:.2f} %  mean class accuracy "
            f"{e.mean_accuracy:.2f} %{boundary}{loss}  on {escape(self.data)}: {self.conditions}, "
            f"{describe(self.inference)}",
            soft_wrap=True,
        )


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def evaluate(
    source: str | Opened,
    settings: EvaluationSettings | None = None,
    *,
    window: int | None = None,
    stride: int | None = None,
    whole: bool = False,
    multi_scale: bool = False,
    flip: bool = False,
    boundary: bool = False,
    **reading: Any,
) -> SegmentationEvaluation:
    """Evaluate a run, a checkpoint or published weights on images with masks.

    Args:
        source: A run folder, a file in any layout, a hub id, or an open network.
        settings: The settings of all tasks.
        window: Side of a sliding window; this and the next four are by default as in training.
        stride: Stride of the window.
        whole: Predict whole images.
        multi_scale: Average the predictions at six scales.
        flip: Average with the prediction for the mirrored image.
        boundary: Also measure the boundary F-score.
        **reading: How to read the data, as the fields of `ReadingOptions` say.

    Raises:
        ValueError: If source or data cannot be read, or their classes do not match.
    """
    settings = settings or EvaluationSettings()
    own = opened(source, settings.device)
    card = own.card
    inference = choose_inference(
        card.recipe, window=window, stride=stride, whole=whole, multi_scale=multi_scale, flip=flip
    )
    found = open_split(settings.data, settings.split, card, own.source, **reading)
    pairs = found.images
    evaluator = Evaluator(own, found, settings, partial(annotation, pairs, found.classes))
    dataset = EvalDataset(pairs, card.preprocessing)
    options: dict[str, Any] = {"settings": inference, "ignore_index": pairs.reader.ignore_index}
    metric = Metric(card.classes, pairs.reader.ignore_index, boundary)
    network = evaluator.fast(own)
    has_loss = has_scores(own.model)
    for labels, mask, index, loss in evaluator.outputs(infer, network, dataset, **options):
        metric.update(labels, mask, index, loss if has_loss else None)
    evaluation = metric.compute()
    worst = [score.index for score in evaluation.worst]
    pictures = draw_images(
        network,
        dataset,
        worst,
        num_classes=len(card.classes),
        device=own.device,
        precision=evaluator.precision,
        **options,
    )
    return SegmentationEvaluation(
        **evaluator.common(evaluation.num_images, network),
        evaluation=evaluation,
        inference=inference,
        pictures=tuple((pairs.source(i), p) for i, p in zip(worst, pictures, strict=True)),
    )


def open_split(
    data: str | None, split: str, card: Card, source: str, **reading: Any
) -> EvaluationSplit[Pairs]:
    """Return the pairs of a split, with the network's classes.

    What `reading` does not say is as in training for the data of the run. Other data is read by its
    own layout, or by the patterns of training if it has no known layout.

    Raises:
        ValueError: If there is no data, the network does not know its classes, or the card has
            patterns that lead out of the data folder.
    """
    own = setting_of(card.recipe, "data", str)
    path = data or data_of(source, card)
    same = is_own_data(path, card)
    given = {name: value for name, value in reading.items() if value not in ("", None, False)}
    is_other = bool(given.keys() & {"images", "masks", "layout", "annotations"})
    like_own = (same or not is_mask_folder(Path(path))) and not is_other
    reduced = setting_of(card.recipe, "segment.reduce_zero_label", bool, str) if like_own else None
    reduced = given.pop("reduce_zero_label", reduced)
    patterns = [
        given.pop(name, "") or (_pattern_of(card, name, source) if like_own else "")
        for name in ("images", "masks")
    ]
    opened = open_dataset(
        str(path),
        val_share=val_share_of(card),
        images=patterns[0],
        masks=patterns[1],
        reduce_zero_label=reduced if isinstance(reduced, bool) else "auto",
        options=replace(_options_of(card) if same else ReadOptions(), **given),
    )
    if same and not opened.has_val:
        opened = _as_held(opened, source, card, split)
    split = choose_split(
        split, opened.path, card, has_val=opened.has_val, has_test=opened.test is not None
    )
    parts = {"train": opened.train, "val": opened.val, "test": opened.test}
    pairs = images_of_split(parts, split, opened.path, join)
    # The class names of a file without a card are a guess.
    if own is not None or len(opened.classes) != len(card.classes):
        pairs = relabel(pairs, opened.classes, card.classes)
    is_relabeled = isinstance(pairs.reader, Relabeled)
    left_out = unknown_classes(opened.classes, card.classes) if is_relabeled else ()
    return EvaluationSplit(pairs, opened.path, split, opened.classes, left_out)


def _options_of(card: Card) -> ReadOptions:
    """Return how a run read its masks."""
    exif = setting_of(card.recipe, "segment.exif", str)
    return ReadOptions(
        layout=setting_of(card.recipe, "segment.layout", str) or "",
        annotations=setting_of(card.recipe, "segment.annotations", str) or "",
        exif=cast("Exif", exif if exif in get_args(Exif) else ""),
        allow_outside=bool(setting_of(card.recipe, "segment.allow_outside", bool)),
    )


def _as_held(opened: SegmentationData, source: str, card: Card, split: str) -> SegmentationData:
    """Return data with the images that a run held out, where it recorded them.

    Raises:
        ValueError: If it held out groups, but did not record them.
    """
    pairs = join([opened.train, opened.val])
    parts = held_split(pairs, held_names(source), opened.path)
    if parts is None:
        if split != "all":
            check_no_groups(card, source)
        return opened
    train, val = map(pairs.take, parts)
    return replace(opened, train=train, val=val)


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
            f"as {missing[0]!r}; it knows {some_classes(wanted)}: use these names in the data's "
            "classes.txt, in the order of the values in the masks"
        )
    table = tuple(known.get(name, -1) for name in classes)
    return replace(pairs, reader=Relabeled(pairs.reader, table, len(wanted)))


def unknown_classes(classes: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Return what is left out because the network does not know it."""
    missing = [name for name in classes if name not in wanted]
    if not missing:
        return ()
    return (
        f"pixels of {len(missing):,} classes are left out, because the network does not know them: "
        f"{some_classes(missing)}",
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
        image = image_of(item.pixels)
        yield data_uri(
            compare(
                image, mask, labels.numpy(), num_classes, ignore_index=ignore_index, width=width
            )
        )


def compare(
    image: Image.Image,
    mask: Labels,
    labels: Labels,
    num_classes: int,
    *,
    ignore_index: int = 255,
    width: int = 320,
) -> Image.Image:
    """Return image, truth, prediction and errors side by side, each at most `width` pixels wide.

    The image may have another size than the mask (H, W) and the labels (H, W).
    """
    least = min(width, MIN_PANEL)
    width, height = panel_size((mask.shape[1], mask.shape[0]), width)
    image = image.convert("RGB").resize((width, height))
    mask, labels = (_nearest(side, (width, height)) for side in (mask, labels))
    colors = class_colors(num_classes)
    panels = {
        "image": image,
        "truth": overlay(image, np.where(mask == ignore_index, -1, mask), colors),
        "prediction": overlay(image, labels, colors),
        "errors": error_image(image, labels, mask, ignore_index),
    }
    width = max(width, least)
    sheet = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height + LINE), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, (name, panel) in enumerate(panels.items()):
        left = column * (width + GAP)
        draw.text((left, 1), name, (90, 98, 110), font)
        sheet.paste(panel, (left, LINE))
    return sheet


def error_image(
    image: Image.Image, labels: Labels, mask: Labels, ignore_index: int = 255
) -> Image.Image:
    """Return an image in pale gray, with wrong pixels orange and unlabeled ones gray."""
    pale = np.asarray(image.convert("L"), np.uint16) // 3 + 170
    pixels = np.repeat(pale[..., None], 3, axis=2).astype(np.uint8)
    ignored = mask == ignore_index
    pixels[(labels != mask) & ~ignored] = WRONG
    pixels[ignored] = IGNORED
    return Image.fromarray(pixels)


def _nearest(labels: Labels, size: tuple[int, int]) -> Labels:
    """Resize labels to another (width, height) by nearest neighbors."""
    rows, columns = (
        (np.arange(to) * side // to) for to, side in zip(size[::-1], labels.shape, strict=True)
    )
    chosen: Labels = labels[rows[:, None], columns].astype(np.int32)
    return chosen
