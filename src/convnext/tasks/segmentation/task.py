"""The segmentation task for training, runs, studies and reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Never

import torch
from rich.console import Console
from torch import Tensor, nn

from convnext.data.contents import hash_of_names
from convnext.data.formats.records import ReadOptions
from convnext.data.sampling import StepBatches, split_tensors
from convnext.data.tensors import normalize_batch
from convnext.names import count_noun
from convnext.recipes.recipe import flatten
from convnext.recipes.resolve import (
    Resolver,
    dense_preprocessing,
    planned_steps,
    warn_of_average,
    warn_of_batch,
    warn_of_channels,
)
from convnext.recipes.schema import Recipe, ResolvedRecipe
from convnext.tasks.base import Task, Workload, dense_workload
from convnext.tasks.segmentation.data import DataFacts, SegmentationData, facts, open_dataset
from convnext.tasks.segmentation.dataset import (
    Batch,
    EvalDataset,
    TrainDataset,
    TrainTransform,
    collate,
)
from convnext.tasks.segmentation.inference import infer
from convnext.tasks.segmentation.layout import annotation
from convnext.tasks.segmentation.metric import Metric
from convnext.tasks.segmentation.model import HardExamples, LossSettings, losses
from convnext.tasks.segmentation.recipe import PREFIX, SegmentationRecipe
from convnext.tasks.segmentation.scores import InferenceSettings, default_stride

# Crops are multiples of this: the stride of the coarsest map.
STRIDE = 32


class SegmentationTask(Task):
    """Semantic segmentation: a class for every pixel."""

    name = "segment"
    primary = "miou"
    primary_label = "mIoU"
    large = 10_000  # ADE20K has 20,210 images.
    others = ("accuracy",)
    prefixes = (PREFIX,)
    backbone = "backbone"

    recipe: SegmentationRecipe[Never]
    data: SegmentationData
    facts = staticmethod(facts)
    annotation = staticmethod(annotation)
    collate = staticmethod(collate)
    split = staticmethod(split_tensors)

    def set_up(self) -> None:
        """Set the preprocessing, the data sets and the sampler."""
        recipe, data, ranks = self.recipe, self.data, self.ranks
        self.preprocessing = dense_preprocessing(recipe.input)
        settings = recipe.segment
        self.train_set = TrainDataset(
            data.train,
            TrainTransform(
                crop=self.input_size,
                preprocessing=self.preprocessing,
                jitter=settings.jitter,
                max_class_share=settings.max_class_share,
                hflip=recipe.augment.hflip,
                vflip=recipe.augment.vflip,
                photometric=settings.photometric,
                ignore_index=data.ignore_index,
            ),
            seed=recipe.run.seed,
        )
        self.val_set = EvalDataset(data.val, self.preprocessing)
        self._loss = loss_settings(recipe, data, self.known)
        self._inference = inference_settings(recipe)
        self.sampler = StepBatches(
            [0] * len(data.train),
            recipe.optim.batch_size,
            seed=recipe.run.seed,
            rank=ranks.rank,
            num_ranks=ranks.count,
        )

    @classmethod
    def open_data(cls, recipe: Recipe, console: Console) -> SegmentationData:
        """Open pairs of images and masks."""
        assert isinstance(recipe, SegmentationRecipe)
        segment = recipe.segment
        return open_dataset(
            recipe.data,
            val_share=recipe.loader.val_share,
            images=segment.images,
            masks=segment.masks,
            reduce_zero_label=segment.reduce_zero_label,
            options=ReadOptions(
                layout=segment.layout,
                annotations=segment.annotations,
                exif=segment.exif,
                allow_outside=segment.allow_outside,
                group=recipe.loader.group,
            ),
        )

    @classmethod
    def describe(cls, known: DataFacts) -> str:
        """Return one line about a data set."""
        return (
            f"{known.images} with masks of {count_noun(known.num_classes, 'class', 'classes')}, "
            f"{known.size}"
        )

    @staticmethod
    def choose(c: Resolver, facts: DataFacts) -> None:
        """Choose a value for every setting that is `auto`."""
        c.choose_model(PREFIX)
        _choose_input(c, facts)
        _choose_network(c)
        c.choose_dense_batch(on_cpu=4, micro_batch_size=8)
        _choose_schedule(c, facts.num_train)
        c.choose_dense_rate(scratch_rate(c["optim.batch_size"]), layer_decay=0.9)
        c.choose_dense_execution(max(1, round(c.epochs / 10)))
        c.choose("augment.hflip", 0.5, "as in the paper")

    @staticmethod
    def warnings(recipe: ResolvedRecipe, facts: DataFacts) -> tuple[str, ...]:
        """Return warnings about settings that cannot work well, each with the fix."""
        r = dict(flatten(recipe))
        found = []
        if facts.num_classes == 1:
            found.append(
                "with a single class every prediction is right: add a class for the other pixels, "
                "such as background"
            )
        found += warn_of_average(r, planned_steps(r, facts.num_train))
        if r["segment.mode"] == "slide" and r["segment.stride"] > r["segment.window"]:
            found.append(
                f"a stride of {r['segment.stride']} leaves gaps between windows of "
                f"{r['segment.window']}. Try --segment.stride {default_stride(r['segment.window'])}"
            )
        colors = ["distortion of saturation and hue"] if r["segment.photometric"] else []
        found += warn_of_channels(r, colors)
        return (*found, *warn_of_batch(r, facts.num_train, 8))

    @property
    def input_size(self) -> int:
        """Side of the square training crop, in pixels."""
        return self.recipe.segment.crop

    def identity(self) -> str:
        """Return a hash of the image names, in order."""
        return hash_of_names(self.data.classes, self.data.train.names)

    def head_settings(self) -> dict[str, Any]:
        """Return the settings of UPerNet."""
        segment = self.recipe.segment
        return {
            "channels": segment.channels,
            "auxiliary": segment.auxiliary_weight > 0,
            "dropout": segment.dropout,
        }

    def losses(
        self,
        model: nn.Module,
        batch: Batch,
        step: int,
        part: int,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> dict[str, Tensor]:
        """Return the named losses of a micro batch."""
        images = normalize_batch(
            self.preprocessing, batch.pixels.to(self.device, non_blocking=True)
        )
        images = images.contiguous(memory_format=memory_format)
        masks = batch.masks.to(self.device, non_blocking=True)
        return losses(model(images, heads=True), masks, self._loss)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return mIoU, accuracy and loss on the validation set."""
        ignore_index, settings = self.data.ignore_index, self._inference
        metric = Metric(self.data.classes, ignore_index)
        options = self.inference_options() | {"settings": settings, "ignore_index": ignore_index}
        for found in infer(model, self.val_set, **options):
            metric.update(*found)
        metric.merge(self.ranks)
        e = metric.compute()
        scores = {"miou": e.miou, "accuracy": e.accuracy, "mean_accuracy": e.mean_accuracy}
        return scores | ({} if e.loss is None else {"loss": e.loss})

    def workload(self, model: nn.Module, batch_size: int) -> Workload:
        """Return the first batch of training with its losses, and inference on its crops."""

        def infer_crops(batch: Batch) -> None:
            images = normalize_batch(self.preprocessing, batch.pixels.to(self.device))
            model(images.contiguous(memory_format=torch.channels_last))

        return dense_workload(self, model, batch_size, infer_crops)


def loss_settings(
    recipe: SegmentationRecipe[Never], data: SegmentationData, known: DataFacts
) -> LossSettings:
    """Return the losses of a resolved recipe.

    Raises:
        ValueError: If the number of class weights is not the number of classes.
    """
    segment = recipe.segment
    weights = segment.class_weights
    if weights == "none":
        weights = ()
    elif weights == "balanced":
        weights = balanced(known.pixel_counts)
    elif len(weights) != len(data.classes):
        raise ValueError(
            f"segment.class_weights has {len(weights)} values for {len(data.classes)} classes"
        )
    return LossSettings(
        ignore_index=data.ignore_index,
        average=segment.average,
        auxiliary_weight=segment.auxiliary_weight,
        dice_weight=segment.dice,
        class_weights=tuple(float(w) for w in weights),
        ohem=HardExamples(threshold=segment.ohem) if segment.ohem else None,
    )


def balanced(counts: Sequence[int]) -> tuple[float, ...]:
    """Return a weight per class: the inverse root of its share of the pixels, with a mean of 1.

    The mean is over pixels, so the loss keeps its scale. A class without pixels gets the largest
    weight of the others.
    """
    total = sum(counts)
    roots = [math.sqrt(total / count) if count else 0.0 for count in counts]
    roots = [root or max(roots, default=1.0) for root in roots]
    mean = sum(root * count for root, count in zip(roots, counts, strict=True)) / max(total, 1)
    return tuple(root / mean for root in roots)


def inference_settings(recipe: SegmentationRecipe[Never]) -> InferenceSettings:
    """Return the inference settings of a resolved recipe."""
    segment = recipe.segment
    if segment.mode == "whole":
        return InferenceSettings()
    return InferenceSettings(window=segment.window, stride=segment.stride)


def _choose_input(c: Resolver, facts: DataFacts) -> None:
    c.choose_pixels(
        gray=facts.grayscale,
        range=facts.pixel_range,
        sample=facts.pixel_sample,
        bands=facts.bands,
        own=("in_chans", "mean", "std"),
    )
    c.choose("input.interpolation", "bilinear", "as in the paper")
    short = min(facts.image_height, facts.image_width)
    limit, why = (192, "what a CPU can afford") if c.on_cpu else (512, "as in the paper")
    size = c.choose("input.image_size", min(limit, _multiple(short)), why)
    if c.large and not c.on_cpu:
        c.choose("segment.crop", 512, "as in the paper")
    if c.on_cpu and size >= 6 * STRIDE:
        c.choose("segment.crop", _multiple(round(size * 5 / 6)), "faster, with more variety")
    c.choose("segment.crop", max(STRIDE, size or _multiple(short)), "the short side of the images")
    mild = c.on_cpu and not c.large and c.scratch
    reason = "mild, for a short run" if mild else "as in the paper"
    c.choose("segment.jitter", (0.75, 1.5) if mild else (0.5, 2.0), reason)
    reason = "as in the paper" if c.large else "faster"
    c.choose("segment.mode", "slide" if c.large else "whole", reason)
    window = c.choose("segment.window", c["segment.crop"], "the size of training")
    c.choose("segment.stride", default_stride(window), "two thirds of the window")
    c.choose("segment.reduce_zero_label", facts.reduce_zero_label, "by the layout of the masks")


def _choose_network(c: Resolver) -> None:
    c.choose_design()
    c.choose_as_weights("segment", "channels")
    if c.on_cpu and not c.large:
        c.choose("segment.channels", 64, "what a CPU can afford")
    c.choose("segment.channels", 512, "as in the paper")
    if c["model"].removeprefix(PREFIX).startswith("convnext_"):
        c.choose_backbone(0.4 if c.large else 0.1, "as in the paper" if c.large else "mild")


def _choose_schedule(c: Resolver, n: int) -> None:
    c.choose_by_steps()
    images = 160_000 * 16 if c.large else 12_000 if c.scratch else 8_000
    c.choose_length(min(400, max(8, round(images / n))))


def scratch_rate(batch_size: int) -> float:
    """Return the peak learning rate from scratch: 2e-3 at batch size 8 (LOG.md), at most 4e-3."""
    return min(4e-3, 2e-3 * math.sqrt(batch_size / 8))


def _multiple(pixels: int) -> int:
    """Round a size down to a multiple of the coarsest stride, which is also the minimum."""
    return max(STRIDE, pixels // STRIDE * STRIDE)
