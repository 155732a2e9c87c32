"""The detection task for training, runs, studies and reports."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Never, cast

import torch
from rich.console import Console
from torch import Tensor, nn

from convnext.data.contents import hash_of_names
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
from convnext.names import count_noun
from convnext.recipes.recipe import flatten
from convnext.recipes.resolve import (
    Resolver,
    dense_preprocessing,
    two_digits,
    warn_of_batch,
    warn_of_channels,
)
from convnext.recipes.schema import Recipe, ResolvedRecipe
from convnext.tasks.base import Task, Workload, dense_workload
from convnext.tasks.detection.dataset import (
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
from convnext.tasks.detection.model.boxes import SCALE
from convnext.tasks.detection.model.detector import CascadeMaskRCNN, MaskRCNN
from convnext.tasks.detection.recipe import DetectionRecipe
from convnext.tasks.factory import dense_prefix
from convnext.weights.checkpoint import Card

# Boxes that lie in a crowd region by this fraction are not trained on.
IN_CROWD = 0.5
STRIDE = 32
PAPER_SIDES = tuple(range(480, 801, 32))
# Strides of the maps with the smallest and the largest anchors.
FINEST, COARSEST = 4, 64


class DetectionTask(Task):
    """Detection of objects by boxes, and by masks where the data has them."""

    name = "detect"
    primary = "box_ap"
    primary_label = "box AP"
    large = 20_000  # COCO has 118,287 images.
    others = ("box_ap50", "mask_ap", "mask_ap50")
    prefixes = (MaskRCNN.prefix, CascadeMaskRCNN.prefix)
    backbone = "backbone"

    recipe: DetectionRecipe[Never]
    data: DetectionData
    facts = staticmethod(facts)
    annotation = staticmethod(annotation)
    collate = staticmethod(collate)
    split = staticmethod(split)

    def training_images(self) -> DetectionImages:
        """Return the images to train on: with `skip_empty` only those with objects."""
        images = self.data.train
        return with_objects(images) if self.recipe.detect.skip_empty else images

    def set_up(self) -> None:
        """Set the preprocessing, the data sets and the sampler."""
        recipe, ranks = self.recipe, self.ranks
        settings = recipe.detect
        self.preprocessing = dense_preprocessing(recipe.input)
        self.train_set = TrainDataset(
            self.train,
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
        self.val_set = EvalDataset(self.data.val, self.preprocessing)
        tall = [settings.group_by_aspect and r.height > r.width for r in self.train.records]
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
            group=recipe.loader.group,
        )
        return open_dataset(recipe.data, val_share=recipe.loader.val_share, options=options)

    @classmethod
    def describe(cls, known: DataFacts) -> str:
        """Return one line about a data set."""
        masks = "with masks" if known.has_masks else "with boxes, but no masks,"
        return (
            f"{known.images}, {known.size}; {known.num_objects:,} objects "
            f"{masks} in {count_noun(known.num_classes, 'class', 'classes')}"
        )

    @staticmethod
    def choose(c: Resolver, facts: DataFacts) -> None:
        """Choose a value for every setting that is `auto`."""
        c.choose_model(MaskRCNN.prefix)
        _choose_input(c, facts)
        _choose_heads(c, facts)
        c.choose_design()
        if c["model"].removeprefix(dense_prefix(c["model"]) or "").startswith("convnext_"):
            c.choose_backbone(0.4 if c.large else 0.1, "as in the paper" if c.large else "mild")
        c.choose_dense_batch(on_cpu=2, micro_batch_size=2)
        c.choose_by_steps()
        if c.large:
            c.choose("schedule.epochs", 36, "as in the paper")
        c.choose_length(min(300, max(8, round(6_000 / facts.num_train))))
        c.choose_dense_rate(scratch_rate(c["optim.batch_size"]), layer_decay=0.95)
        every = max(1, round(c.epochs / 5))
        c.choose("run.eval_every", every, "epochs between evaluations, which are slow")
        c.choose_dense_execution(every)
        c.choose("run.compile", False, "image sizes vary between batches")
        c.choose("augment.hflip", 0.5, "as in the paper")

    @staticmethod
    def warnings(recipe: ResolvedRecipe, facts: DataFacts) -> tuple[str, ...]:
        """Return warnings about settings that cannot work well, each with the fix."""
        r = dict(flatten(recipe))
        found = []
        size = r["input.image_size"] or _short(facts)
        smallest = FINEST * r["detect.anchor_scale"]
        middle = facts.object_sides[1] * size
        if middle < smallest / 2:
            better = two_digits(middle / FINEST)
            found.append(
                f"half of the objects are smaller than {middle:.0f} x {middle:.0f} pixels, but the "
                f"smallest anchor is {smallest:.0f} pixels wide: they will not be found. Try "
                f"--detect.anchor_scale {better} or a larger --input.image_size"
            )
        largest = 2 * COARSEST * r["detect.anchor_scale"]
        if facts.object_sides[2] * size > largest:
            found.append(
                f"10 % of the objects are larger than {facts.object_sides[2] * size:.0f} pixels, "
                f"but the largest anchor is {largest / 2:.0f} pixels wide. Try a larger "
                "--detect.anchor_scale or a smaller --input.image_size"
            )
        if facts.max_objects > r["detect.max_detections"]:
            found.append(
                f"an image has {facts.max_objects:,} objects, but at most "
                f"{r['detect.max_detections']:,} are reported. Try --detect.max_detections "
                f"{math.ceil(1.5 * facts.max_objects / 100) * 100}"
            )
        colors = ["distortion of saturation and hue"] if r["detect.photometric"] else []
        found += warn_of_channels(r, colors)
        return (*found, *warn_of_batch(r, facts.num_train, 4))

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


def _choose_input(c: Resolver, facts: DataFacts) -> None:
    c.choose_pixels(
        gray=facts.grayscale,
        range=facts.pixel_range,
        sample=facts.pixel_sample,
        bands=facts.bands,
        own=("in_chans", "mean", "std"),
    )
    c.choose("input.interpolation", "bilinear", "as in the paper")
    as_paper = c.large and not c.on_cpu
    if as_paper:
        c.choose("input.image_size", 800, "as in the paper")
        c.choose("detect.policy", "multi_scale", "as in the paper")
    limit, why = (256, "what a CPU can afford") if c.on_cpu else (800, "as in the paper")
    size = c.choose("input.image_size", min(limit, max(STRIDE, _short(facts))), why)
    c.choose("detect.policy", "large_scale_jitter", "variety, and batches of one size")
    sides = tuple(sorted({max(STRIDE, round(side * size / 800)) for side in PAPER_SIDES}))
    c.choose("detect.sides", sides, "60 to 100 % of the image size, as in the paper")
    long = max(facts.image_height, facts.image_width) * size / (_short(facts) or 1)
    crop = 1024 if as_paper else math.ceil(min(long, 4 * size) / STRIDE) * STRIDE
    c.choose("detect.crop", crop, "the long side of the resized images")
    reason = "the usual range" if c.large else "mild, for little data"
    c.choose("detect.jitter", (0.1, 2.0) if c.large else (0.6, 1.6), reason)


def _choose_heads(c: Resolver, facts: DataFacts) -> None:
    c.choose_as_weights("detect", "channels", "fc_dim", "anchor_scale")
    small = c.on_cpu and not c.large
    reason = "what a CPU can afford" if small else "as in the paper"
    c.choose("detect.channels", 64 if small else 256, reason)
    c.choose("detect.fc_dim", 256 if small else 1024, reason)
    scale, why = anchor_scale(facts.object_sides, c["input.image_size"] or _short(facts))
    if c.large:
        scale, why = SCALE, "as in the paper"
    c.choose("detect.anchor_scale", scale, why)
    many = facts.max_objects > 100
    limit = 100 if not many else math.ceil(1.5 * facts.max_objects / 100) * 100
    why = f"up to {facts.max_objects:,} objects per image" if many else "COCO's limit"
    limit = c.choose("detect.max_detections", limit, why)
    c.choose("detect.num_proposals", max(300, 2 * limit) if small else 1000, reason)
    c.choose("detect.rpn_batch_size", 256, "as in the paper")
    c.choose("detect.box_batch_size", 128 if small else 512, reason)
    why = "as in the paper" if c.large else "their objects have no labels"
    c.choose("detect.ignore_crowd", not c.large, why)


def anchor_scale(sides: tuple[float, float, float], size: int) -> tuple[float, str]:
    """Return the scale whose finest anchors fit small objects, and why.

    `sides` are the 10th, 50th and 90th percentiles of the objects' sides, as fractions of the
    image's short side, which the network sees at `size` pixels. An anchor matches objects of half
    to twice its area.
    """
    small = sides[0] * size
    for scale in (SCALE, SCALE / 2):
        if small >= 0.7 * FINEST * scale:
            break
    else:
        scale = SCALE / 4
    largest = COARSEST * scale
    reason = f"10 % of the objects are smaller than {small:.0f} x {small:.0f} pixels"
    if scale == SCALE:
        reason = f"anchors from {FINEST * scale:.0f} to {largest:.0f} pixels fit the objects"
    return scale, reason


def scratch_rate(batch_size: int) -> float:
    """Return the peak learning rate from scratch: 1e-3 at batch size 2 (LOG.md), at most 2e-3."""
    return min(2e-3, 1e-3 * math.sqrt(batch_size / 2))


def _short(facts: DataFacts) -> int:
    return min(facts.image_height, facts.image_width)
