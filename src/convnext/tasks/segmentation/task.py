"""The segmentation task for training, runs, studies and reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Never

import torch
from rich.console import Console
from torch import Tensor, nn

from convnext.data.sampling import StepBatches
from convnext.data.tensors import normalize_batch
from convnext.hardware.devices import ALONE, Ranks
from convnext.recipes.resolve import Choice, dense_preprocessing
from convnext.recipes.schema import Recipe
from convnext.tasks.base import Task, Workload, dense_workload, hash_of_names, split_tensors
from convnext.tasks.segmentation import auto
from convnext.tasks.segmentation.data import DataFacts, SegmentationData, facts, open_dataset
from convnext.tasks.segmentation.dataset import (
    Batch,
    EvalDataset,
    TrainDataset,
    TrainTransform,
    collate,
)
from convnext.tasks.segmentation.heads import PREFIX
from convnext.tasks.segmentation.inference import infer
from convnext.tasks.segmentation.layout import annotation
from convnext.tasks.segmentation.loss import HardExamples, LossSettings, losses
from convnext.tasks.segmentation.metric import Metric
from convnext.tasks.segmentation.recipe import SegmentationRecipe
from convnext.tasks.segmentation.scores import InferenceSettings


class SegmentationTask(Task):
    """Semantic segmentation: a class for every pixel."""

    name = "segment"
    primary = "miou"
    primary_label = "mIoU"
    others = ("accuracy",)
    prefixes = (PREFIX,)
    backbone = "backbone"

    recipe: SegmentationRecipe[Never]
    data: SegmentationData
    facts = staticmethod(facts)
    annotation = staticmethod(annotation)
    resolve = staticmethod(auto.resolve)
    warnings = staticmethod(auto.warnings)
    collate = staticmethod(collate)
    split = staticmethod(split_tensors)

    def __init__(
        self,
        recipe: SegmentationRecipe[Never],
        data: SegmentationData,
        known: DataFacts,
        device: torch.device,
        choices: tuple[Choice, ...] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(recipe, data, known, device, choices, ranks)
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
        self._loss = loss_settings(recipe, data, known)
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
        )

    @classmethod
    def describe(cls, known: DataFacts) -> str:
        """Return one line about a data set."""
        return (
            f"{known.num_train:,} training and {known.num_val:,} validation images with masks of "
            f"{known.num_classes} classes, about {known.image_width} x {known.image_height} pixels"
        )

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
