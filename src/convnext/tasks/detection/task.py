"""The detection task: the interface for training, runs, studies and reports."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Never, cast

import torch
from rich.console import Console
from torch import Tensor, nn

from convnext.data.formats.records import ReadOptions
from convnext.data.objects import (
    DataFacts,
    DetectionData,
    DetectionImages,
    annotation,
    facts,
    open_dataset,
)
from convnext.data.tensors import normalize_batch
from convnext.hardware.devices import ALONE, Ranks
from convnext.names import count_noun
from convnext.recipes.resolve import Choice, dense_preprocessing
from convnext.recipes.schema import Recipe, ResolvedRecipe
from convnext.tasks.base import Task, Workload, dense_workload, hash_of_names
from convnext.tasks.detection import auto
from convnext.tasks.detection.data.dataset import (
    Batch,
    EvalDataset,
    GroupedBatches,
    LargeScaleJitter,
    MultiScale,
    Policy,
    TrainDataset,
    TrainTransform,
    collate,
    split,
)
from convnext.tasks.detection.inference import infer
from convnext.tasks.detection.metric import Metric
from convnext.tasks.detection.model.detector import CascadeMaskRCNN, MaskRCNN
from convnext.tasks.detection.recipe import DetectionRecipe
from convnext.weights.checkpoint import Card

# Boxes that lie in a crowd region by this fraction are not trained on.
IN_CROWD = 0.5


class DetectionTask(Task):
    """Detection of objects by boxes, and by masks where the data has them."""

    name = "detect"
    primary = "box_ap"
    primary_label = "box AP"
    others = ("box_ap50", "mask_ap", "mask_ap50")
    prefixes = (MaskRCNN.prefix, CascadeMaskRCNN.prefix)
    backbone = "backbone"

    recipe: DetectionRecipe[Never]
    data: DetectionData
    facts = staticmethod(facts)
    annotation = staticmethod(annotation)
    resolve = staticmethod(auto.resolve)
    warnings = staticmethod(auto.warnings)
    collate = staticmethod(collate)
    split = staticmethod(split)

    def __init__(
        self,
        recipe: DetectionRecipe[Never],
        data: DetectionData,
        known: DataFacts,
        device: torch.device,
        choices: tuple[Choice, ...] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        settings = recipe.detect
        train = with_objects(data.train) if settings.skip_empty else data.train
        super().__init__(recipe, data, known, device, choices, ranks, train=train)
        self.preprocessing = dense_preprocessing(recipe.input)
        self.train_set = TrainDataset(
            train,
            TrainTransform(
                preprocessing=self.preprocessing,
                policy=policy(recipe),
                hflip=recipe.augment.hflip,
                vflip=recipe.augment.vflip,
                photometric=settings.photometric,
                ignore_crowd=bool(settings.ignore_crowd),
            ),
            seed=recipe.run.seed,
        )
        self.val_set = EvalDataset(data.val, self.preprocessing)
        tall = [settings.group_by_aspect and r.height > r.width for r in train.records]
        self.sampler = GroupedBatches(
            tall,
            recipe.optim.batch_size,
            seed=recipe.run.seed,
            rank=ranks.rank,
            num_ranks=ranks.count,
        )

    @classmethod
    def open_data(cls, recipe: Recipe, console: Console) -> DetectionData:
        """Open a data set in COCO's format, or in one that is converted to it."""
        own = cast("DetectionRecipe[Any]", recipe).detect
        options = ReadOptions(
            layout=own.layout,
            annotations=own.annotations,
            images=own.images,
            exif=own.exif,
            boxes=own.boxes,
            allow_outside=own.allow_outside,
        )
        return open_dataset(recipe.data, val_share=recipe.loader.val_share, options=options)

    @classmethod
    def describe(cls, known: DataFacts) -> str:
        """Return one line about a data set."""
        masks = "with masks" if known.has_masks else "with boxes, but no masks,"
        return (
            f"{known.num_train:,} training and {known.num_val:,} validation images, about "
            f"{known.image_width} x {known.image_height} pixels; {known.num_objects:,} objects "
            f"{masks} in {count_noun(known.num_classes, 'class', 'classes')}"
        )

    @property
    def input_size(self) -> int:
        """Short side of the images that the network sees, in pixels."""
        return self.recipe.input.image_size

    def identity(self) -> str:
        """Return a hash of the image names in order."""
        return hash_of_names(self.data.classes, self.train.names)

    def head_settings(self) -> dict[str, Any]:
        """Return the settings of Mask R-CNN."""
        return detector_settings(self.recipe) | {"masks": self.data.train.has_masks}

    def losses(
        self,
        model: nn.Module,
        batch: Batch,
        step: int,
        part: int,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> dict[str, Tensor]:
        """Return the named losses of a micro batch.

        Seed, step and part alone determine the sampled boxes.
        """
        images = [
            normalize_batch(self.preprocessing, pixels[None].to(self.device, non_blocking=True))[0]
            for pixels in batch.pixels
        ]
        name = f"{self.recipe.run.seed} {step} {part}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        named: dict[str, Tensor] = model(images, batch.targets, seed)
        return named

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return AP of boxes and masks on the validation set."""
        metric = Metric(self.data.val, self.data.classes, self.recipe.detect.max_detections)
        for index, found in infer(model, self.val_set, **self.inference_options()):
            metric.update(index, found)
        metric.merge(self.ranks)
        return metric.compute().scores

    def workload(self, model: nn.Module, batch_size: int) -> Workload:
        """Return the first batch of training with its losses, and inference on its images."""

        def detect(batch: Batch) -> None:
            pixels = [pixels[None].to(self.device) for pixels in batch.pixels]
            model([normalize_batch(self.preprocessing, p)[0] for p in pixels])

        return dense_workload(self, model, batch_size, detect)

    def card(self, model: nn.Module, metrics: Mapping[str, Any], recipe: ResolvedRecipe) -> Card:
        """Return the card to save with the weights."""
        return replace(super().card(model, metrics, recipe), category_ids=self.data.category_ids)


def with_objects(images: DetectionImages) -> DetectionImages:
    """Return the images with at least one object; crowd regions do not count."""
    kept = [record for record in images.records if not record.objects.crowd.all()]
    return replace(images, records=kept)


def policy(recipe: DetectionRecipe[Never]) -> Policy:
    """Return the policy of a resolved recipe for resizing and cropping training images."""
    detect = recipe.detect
    if detect.policy == "large_scale_jitter":
        return LargeScaleJitter(crop=detect.crop, jitter=detect.jitter)
    return MultiScale(
        sides=detect.sides,
        max_size=recipe.input.max_size,
        crop_sides=detect.crop_sides,
        crop_range=detect.crop_range,
    )


def detector_settings(recipe: DetectionRecipe[Never]) -> dict[str, Any]:
    """Return the fields of `DetectorConfig` that a resolved recipe sets."""
    detect = recipe.detect
    return {
        "channels": detect.channels,
        "fc_dim": detect.fc_dim,
        "anchor_scale": detect.anchor_scale,
        "num_proposals": detect.num_proposals,
        "rpn_batch_size": detect.rpn_batch_size,
        "box_batch_size": detect.box_batch_size,
        "max_detections": detect.max_detections,
        "score_threshold": detect.score_threshold,
        "nms_threshold": detect.nms_threshold,
        "ignore_threshold": IN_CROWD if detect.ignore_crowd else None,
    }
