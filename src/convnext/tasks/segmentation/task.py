"""Segmentation as the training loop sees it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn
from torch.utils.data import DataLoader

from convnext.data.samples import BadImages
from convnext.data.sampling import StepBatches
from convnext.data.tensors import normalize_batch
from convnext.hardware.ranks import ALONE, Ranks
from convnext.hardware.signals import leave_signals_to_parent
from convnext.models.family import create_model
from convnext.models.init import init_fan_in
from convnext.recipes.plan import num_steps as num_steps_of
from convnext.recipes.recipe import Recipe, number, to_dict
from convnext.recipes.resolve import Choice, circumstances, dense_preprocessing, print_choices
from convnext.tasks.segmentation.augment import TrainTransform
from convnext.tasks.segmentation.auto import resolve, warnings
from convnext.tasks.segmentation.data import DataFacts, SegmentationData, facts, open_dataset
from convnext.tasks.segmentation.dataset import Batch, EvalDataset, TrainDataset, collate
from convnext.tasks.segmentation.inference import infer
from convnext.tasks.segmentation.loss import HardExamples, LossSettings, losses
from convnext.tasks.segmentation.metric import Evaluation, Metric
from convnext.tasks.segmentation.model import PREFIX
from convnext.tasks.segmentation.scores import InferenceSettings
from convnext.tasks.steps import InSteps
from convnext.weights.checkpoint import Card


class SegmentationTask(InSteps):
    """A resolved recipe and a data set: batches, losses, evaluation.

    Args:
        recipe: Without any `auto`, but for what a peer of timm does not have.
        data: The opened data set.
        known: What was seen of it.
        device: Where the network runs.
        choices: What `auto` chose in the recipe.
        ranks: The processes that share the run.
    """

    primary = "miou"

    def __init__(
        self,
        recipe: Recipe,
        data: SegmentationData,
        known: DataFacts,
        device: torch.device,
        choices: tuple[Choice, ...] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        self.recipe, self.data, self.device, self.choices = recipe, data, device, choices
        self.ranks = ranks
        self.micro_batch_size = int(number(recipe.optim.micro_batch_size))
        self.memory_format = torch.channels_last
        self.preprocessing = dense_preprocessing(recipe)
        share = recipe.loader.max_bad_share
        self.bad_train = BadImages(data.train, max_share=share)
        self.bad_val = BadImages(data.val, max_share=share)
        settings = recipe.segment
        assert not isinstance(settings.jitter, str)
        self._train = TrainDataset(
            data.train,
            TrainTransform(
                crop=self.input_size,
                preprocessing=self.preprocessing,
                jitter=settings.jitter,
                max_class_share=settings.max_class_share,
                hflip=number(recipe.augment.hflip),
                vflip=recipe.augment.vflip,
                photometric=settings.photometric,
                ignore_index=data.ignore_index,
            ),
            seed=recipe.run.seed,
        )
        self._val = EvalDataset(data.val, self.preprocessing)
        self.tell: Callable[[str], None] = lambda text: None
        """Who hears of pairs that cannot be read; the loop lets the log hear of them."""
        self.evaluation: Evaluation | None = None
        """The last evaluation, whole."""
        self._loss = loss_settings(recipe, data, known)
        self._inference = inference_settings(recipe)
        self._batches = StepBatches(
            [0] * len(data.train),
            int(number(recipe.optim.batch_size)),
            seed=recipe.run.seed,
            rank=ranks.rank,
            num_ranks=ranks.count,
        )

    def under(self, recipe: Recipe) -> SegmentationTask:
        """Return the task on the same data and device under another recipe, silently resolved."""
        recipe, where = circumstances(recipe, self.device)
        known = facts(self.data)
        recipe, choices = resolve(recipe, known, where)
        return SegmentationTask(recipe, self.data, known, self.device, choices, self.ranks)

    def look(self, model: nn.Module, batch: Batch) -> None:
        """Run the network on the images of a batch as inference does."""
        images = normalize_batch(self.preprocessing, batch.pixels.to(self.device))
        model(images.contiguous(memory_format=self.memory_format))

    @property
    def input_size(self) -> int:
        """Side of the square that training cuts out, in pixels."""
        return int(number(self.recipe.segment.crop))

    def build_model(self) -> nn.Module:
        """Build the network of the recipe, with heads for the data's classes and its weights."""
        settings = to_dict(self.recipe)["network"]
        init, changes = settings.pop("init"), settings.pop("changes")
        settings.pop("head_init_scale")
        changes = {k: v for k, v in settings.items() if v != "auto"} | changes
        weights = self.recipe.weights
        segment = self.recipe.segment
        model = create_model(
            self.recipe.model,
            weights=None if weights == "none" else weights,
            num_classes=len(self.data.classes),
            in_chans=self.preprocessing.in_chans,
            channels=int(number(segment.channels)),
            auxiliary=segment.auxiliary_weight > 0,
            dropout=segment.dropout,
            **changes,
        )
        if init == "fan_in" and weights == "none":
            assert isinstance(model.backbone, nn.Module)
            init_fan_in(model.backbone)
        return model

    @property
    def fingerprint(self) -> str:
        """The counts of the images, and a hash of the names in their order."""
        names = "\n".join((*self.data.classes, "", *self.data.train.names))
        found = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        return f"{len(self.data.train):,} + {len(self.data.val):,} images, {found[:8]}"

    def prepare(self, console: Console) -> None:
        """Read the images into memory, where the recipe asks for it and they fit."""
        if self.recipe.loader.cache:
            workers = int(number(self.recipe.loader.workers))
            console.print(self._train.fill_cache(workers=workers, console=console))

    def batches(self, start_step: int) -> Iterator[Sequence[Batch]]:
        """Yield the micro batches of every step from `start_step` on."""
        self._batches.start_step = start_step
        self._batches.num_steps = num_steps_of(self.recipe.schedule, self.steps_per_epoch)
        if len(self._batches) == 0:
            return
        loader = DataLoader(
            self._train,
            batch_sampler=self._batches,
            num_workers=int(number(self.recipe.loader.workers)),
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=leave_signals_to_parent,
        )
        for batch in loader:
            for bad in self.bad_train.update(batch.bad):
                self.tell(f"skipped: {bad}")
            yield split(batch, self.num_parts)

    def size(self, batch: Batch) -> int:
        """Return the number of images of a micro batch."""
        return len(batch.indices)

    def losses(self, model: nn.Module, batch: Batch, step: int, part: int) -> dict[str, Tensor]:
        """Return the named losses of a micro batch."""
        images = normalize_batch(
            self.preprocessing, batch.pixels.to(self.device, non_blocking=True)
        )
        images = images.contiguous(memory_format=self.memory_format)
        masks = batch.masks.to(self.device, non_blocking=True)
        return losses(model(images, heads=True), masks, self._loss)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return mIoU, accuracy and loss on the validation set; keep the rest as `evaluation`."""
        metric = Metric(self.data.classes, self.data.ignore_index)
        for found in infer(
            model,
            self._val,
            device=self.device,
            precision=self.recipe.run.precision,
            bad=self.bad_val,
            settings=self._inference,
            ignore_index=self.data.ignore_index,
            workers=int(number(self.recipe.loader.workers)),
            ranks=self.ranks,
        ):
            metric.update(*found)
        metric.merge(self.ranks)
        self.evaluation = e = metric.compute()
        scores = {"miou": e.miou, "accuracy": e.accuracy, "mean_accuracy": e.mean_accuracy}
        return scores | ({} if e.loss is None else {"loss": e.loss})

    def card(self, model: nn.Module, metrics: Mapping[str, Any]) -> Card:
        """Return what travels with the weights."""
        return Card(
            task="segment",
            model=str(model.name),
            changes=dict(model.changes),  # type: ignore[arg-type]
            classes=self.data.classes,
            preprocessing=self.preprocessing,
            recipe=to_dict(self.recipe),
            metrics=metrics,
        )

    def next_commands(self, folder: Path) -> tuple[str, str]:
        """Return the two commands that a user may want next."""
        run, image = quote(str(folder)), quote(self.data.val.source(0))
        return (
            f"convnext evaluate {run}",
            f"convnext predict {run} {image} --output {quote(str(folder / 'predictions'))}",
        )


def split(batch: Batch, count: int) -> list[Batch]:
    """Return a batch in `count` parts, whose sizes differ by one image at most."""
    tensors = (batch.pixels, batch.masks, batch.indices)
    parts = zip(*(tensor.tensor_split(count) for tensor in tensors), strict=True)
    return [Batch(pixels, masks, indices, ()) for pixels, masks, indices in parts]


def open_task(
    recipe: Recipe, device: torch.device, console: Console, ranks: Ranks = ALONE
) -> SegmentationTask:
    """Open the data, choose what the recipe leaves to `auto`, and say what was chosen and why."""
    if recipe.model != "auto" and not recipe.model.startswith(PREFIX):
        raise ValueError(f"{recipe.model} does not segment; take --model {PREFIX}{recipe.model}")
    segment = recipe.segment
    data = open_dataset(
        recipe.data,
        val_share=recipe.loader.val_share,
        images=segment.images,
        masks=segment.masks,
        reduce_zero_label=segment.reduce_zero_label,
    )
    known = facts(data)
    recipe, where = circumstances(recipe, device)
    recipe, choices = resolve(recipe, known, where)
    console.print(
        f"[bold]{escape(recipe.data)}[/]  {known.num_train:,} training and {known.num_val:,} "
        f"validation images with masks of {known.num_classes} classes, about {known.image_width} x "
        f"{known.image_height} pixels"
    )
    for note in data.notes:
        console.print(f"note: {note}", markup=False)
    print_choices(choices, console)
    for warning in warnings(recipe, known):
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    return SegmentationTask(recipe, data, known, device, choices, ranks)


def loss_settings(recipe: Recipe, data: SegmentationData, known: DataFacts) -> LossSettings:
    """Return the losses that a resolved recipe asks for.

    Raises:
        ValueError: If there are not as many class weights as classes.
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
    """Return a weight per class: the inverse root of its share of the pixels, 1 in the mean.

    The mean is over pixels, so that the loss as a whole keeps its size; a class that was not seen
    has the largest weight of those that were.
    """
    total = sum(counts)
    roots = [math.sqrt(total / count) if count else 0.0 for count in counts]
    roots = [root or max(roots, default=1.0) for root in roots]
    mean = sum(root * count for root, count in zip(roots, counts, strict=True)) / max(total, 1)
    return tuple(root / mean for root in roots)


def inference_settings(recipe: Recipe) -> InferenceSettings:
    """Return how a resolved recipe reads whole images."""
    segment = recipe.segment
    if segment.mode == "whole":
        return InferenceSettings()
    return InferenceSettings(window=int(number(segment.window)), stride=int(number(segment.stride)))
