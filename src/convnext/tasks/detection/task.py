"""Detection as the training loop sees it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn
from torch.utils.data import DataLoader

from convnext.data.samples import BadImages
from convnext.data.tensors import normalize_batch
from convnext.hardware.ranks import ALONE, Ranks
from convnext.hardware.signals import leave_signals_to_parent
from convnext.models.family import create_model
from convnext.models.init import init_fan_in
from convnext.recipes.plan import num_steps as num_steps_of
from convnext.recipes.recipe import Recipe, number, to_dict
from convnext.recipes.resolve import Choice, circumstances, dense_preprocessing, print_choices
from convnext.tasks.detection.auto import resolve, warnings
from convnext.tasks.detection.data.augment import (
    LargeScaleJitter,
    MultiScale,
    Policy,
    TrainTransform,
)
from convnext.tasks.detection.data.dataset import (
    Batch,
    EvalDataset,
    GroupedBatches,
    TrainDataset,
    collate,
    split,
)
from convnext.tasks.detection.data.open import DetectionData, facts, open_dataset
from convnext.tasks.detection.data.samples import DetectionImages
from convnext.tasks.detection.inference import infer
from convnext.tasks.detection.metric import Evaluation, Metric
from convnext.tasks.detection.model.detector import CascadeMaskRCNN, MaskRCNN
from convnext.tasks.steps import InSteps
from convnext.weights.checkpoint import Card

PREFIXES = (MaskRCNN.prefix, CascadeMaskRCNN.prefix)
# Share of a box in a crowd region from which it is not trained on.
IN_CROWD = 0.5


class DetectionTask(InSteps):
    """A resolved recipe and a data set: batches, losses, evaluation.

    Args:
        recipe: Without any `auto`, but for what a peer of timm does not have.
        data: The opened data set.
        device: Where the network runs.
        choices: What `auto` chose in the recipe.
        ranks: The processes that share the run.
    """

    primary = "box_ap"

    def __init__(
        self,
        recipe: Recipe,
        data: DetectionData,
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
        settings = recipe.detect
        train = with_objects(data.train) if settings.skip_empty else data.train
        self.bad_train = BadImages(train, max_share=share)
        self.bad_val = BadImages(data.val, max_share=share)
        self._train = TrainDataset(
            train,
            TrainTransform(
                preprocessing=self.preprocessing,
                policy=policy(recipe),
                hflip=number(recipe.augment.hflip),
                vflip=recipe.augment.vflip,
                photometric=settings.photometric,
                ignore_crowd=bool(settings.ignore_crowd),
            ),
            seed=recipe.run.seed,
        )
        self._val = EvalDataset(data.val, self.preprocessing)
        self.tell: Callable[[str], None] = lambda text: None
        """Who hears of images that cannot be read; the loop lets the log hear of them."""
        self.evaluation: Evaluation | None = None
        """The last evaluation, whole."""
        tall = [settings.group_by_aspect and r.height > r.width for r in train.records]
        self._batches = GroupedBatches(
            tall,
            int(number(recipe.optim.batch_size)),
            seed=recipe.run.seed,
            rank=ranks.rank,
            num_ranks=ranks.count,
        )

    def under(self, recipe: Recipe) -> DetectionTask:
        """Return the task on the same data and device under another recipe, silently resolved."""
        recipe, where = circumstances(recipe, self.device)
        recipe, choices = resolve(recipe, facts(self.data), where)
        return DetectionTask(recipe, self.data, self.device, choices, self.ranks)

    def look(self, model: nn.Module, batch: Batch) -> None:
        """Run the network on the images of a batch as inference does."""
        pixels = [pixels[None].to(self.device) for pixels in batch.pixels]
        model([normalize_batch(self.preprocessing, p)[0] for p in pixels])

    @property
    def input_size(self) -> int:
        """Short side of the images that the network sees, in pixels."""
        return int(number(self.recipe.input.image_size))

    def build_model(self) -> nn.Module:
        """Build the network of the recipe, with heads for the data's classes and its weights."""
        settings = to_dict(self.recipe)["network"]
        init, changes = settings.pop("init"), settings.pop("changes")
        settings.pop("head_init_scale")
        changes = {k: v for k, v in settings.items() if v != "auto"} | changes
        weights = self.recipe.weights
        model = create_model(
            self.recipe.model,
            weights=None if weights == "none" else weights,
            num_classes=len(self.data.classes),
            in_chans=self.preprocessing.in_chans,
            masks=self.data.train.has_masks,
            **detector_settings(self.recipe),
            **changes,
        )
        if init == "fan_in" and weights == "none":
            assert isinstance(model.backbone, nn.Module)
            init_fan_in(model.backbone)
        return model

    @property
    def fingerprint(self) -> str:
        """The counts of the images, and a hash of the names in their order."""
        names = "\n".join((*self.data.classes, "", *self._train.images.names))
        found = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        return f"{len(self._train):,} + {len(self.data.val):,} images, {found[:8]}"

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
        """Return the named losses of a micro batch.

        The boxes that they are taken on are drawn by seed, step and part alone.
        """
        images = [
            normalize_batch(self.preprocessing, pixels[None].to(self.device, non_blocking=True))[0]
            for pixels in batch.pixels
        ]
        name = f"{self.recipe.run.seed} {step} {part}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        named: dict[str, Tensor] = model(images, batch.targets, seed)
        return named

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return AP of boxes and masks on the validation set; keep the rest as `evaluation`."""
        most = int(number(self.recipe.detect.max_detections))
        metric = Metric(self.data.val, self.data.classes, most)
        for index, found in infer(
            model,
            self._val,
            device=self.device,
            precision=self.recipe.run.precision,
            bad=self.bad_val,
            workers=int(number(self.recipe.loader.workers)),
            ranks=self.ranks,
        ):
            metric.update(index, found)
        metric.merge(self.ranks)
        self.evaluation = metric.compute()
        return self.evaluation.scores

    def card(self, model: nn.Module, metrics: Mapping[str, Any]) -> Card:
        """Return what travels with the weights."""
        return Card(
            task="detect",
            model=str(model.name),
            changes=dict(model.changes),  # type: ignore[arg-type]
            classes=self.data.classes,
            preprocessing=self.preprocessing,
            recipe=to_dict(self.recipe),
            metrics=metrics,
            category_ids=self.data.category_ids,
        )

    def next_commands(self, folder: Path) -> tuple[str, str]:
        """Return the two commands that a user may want next."""
        run, image = quote(str(folder)), quote(self.data.val.source(0))
        return (
            f"convnext evaluate {run}",
            f"convnext predict {run} {image} --output {quote(str(folder / 'predictions'))}",
        )


def open_task(
    recipe: Recipe, device: torch.device, console: Console, ranks: Ranks = ALONE
) -> DetectionTask:
    """Open the data, choose what the recipe leaves to `auto`, and say what was chosen and why."""
    if recipe.model != "auto" and not recipe.model.startswith(PREFIXES):
        names = " or ".join(f"{prefix}{recipe.model}" for prefix in PREFIXES)
        raise ValueError(f"{recipe.model} does not detect; take --model {names}")
    data = open_dataset(recipe.data, val_share=recipe.loader.val_share)
    known = facts(data)
    recipe, where = circumstances(recipe, device)
    recipe, choices = resolve(recipe, known, where)
    masks = "with masks" if known.has_masks else "with boxes, but no masks,"
    console.print(
        f"[bold]{escape(recipe.data)}[/]  {known.num_train:,} training and {known.num_val:,} "
        f"validation images, about {known.image_width} x {known.image_height} pixels; "
        f"{known.num_objects:,} objects {masks} of {known.num_classes} classes"
    )
    for note in data.notes:
        console.print(f"note: {note}", markup=False)
    print_choices(choices, console)
    for warning in warnings(recipe, known):
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    return DetectionTask(recipe, data, device, choices, ranks)


def with_objects(images: DetectionImages) -> DetectionImages:
    """Return the images that have an object; crowd regions are none."""
    kept = [record for record in images.records if not record.objects.crowd.all()]
    return replace(images, records=kept)


def policy(recipe: Recipe) -> Policy:
    """Return how a resolved recipe resizes and cuts training images."""
    detect = recipe.detect
    if detect.policy == "large_scale_jitter":
        assert not isinstance(detect.jitter, str)
        return LargeScaleJitter(crop=int(number(detect.crop)), jitter=detect.jitter)
    assert not isinstance(detect.sides, str)
    return MultiScale(
        sides=detect.sides,
        max_size=recipe.input.max_size,
        crop_sides=detect.crop_sides,
        crop_range=detect.crop_range,
    )


def detector_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of `DetectorConfig` that a resolved recipe sets."""
    detect = recipe.detect
    return {
        "channels": int(number(detect.channels)),
        "fc_dim": int(number(detect.fc_dim)),
        "anchor_scale": float(number(detect.anchor_scale)),
        "num_proposals": int(number(detect.num_proposals)),
        "rpn_batch_size": int(number(detect.rpn_batch_size)),
        "box_batch_size": int(number(detect.box_batch_size)),
        "max_detections": int(number(detect.max_detections)),
        "score_threshold": detect.score_threshold,
        "nms_threshold": detect.nms_threshold,
        "ignore_threshold": IN_CROWD if detect.ignore_crowd else None,
    }
