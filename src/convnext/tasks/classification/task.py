"""Classification as the training loop sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from convnext.checkpoint import Card
from convnext.family import create_model
from convnext.preprocess import Preprocessing
from convnext.recipe import Recipe, to_dict
from convnext.tasks.classification.augment import BatchAugment
from convnext.tasks.classification.data import (
    BadImages,
    Batch,
    ClassificationData,
    StepBatches,
    TrainDataset,
    collate,
)
from convnext.tasks.classification.inference import infer
from convnext.tasks.classification.loss import losses
from convnext.tasks.classification.metric import Evaluation, Metric


class ClassificationTask:
    """A resolved recipe and a data set: batches, losses, evaluation.

    Args:
        recipe: Without any `auto`, but for what a peer of timm does not have.
        data: The opened data set.
        device: Where the network runs.
    """

    primary = "top1"

    def __init__(self, recipe: Recipe, data: ClassificationData, device: torch.device) -> None:
        self.recipe, self.data, self.device = recipe, data, device
        self.preprocessing = preprocessing(recipe)
        self.bad = BadImages(len(data.train) + len(data.val), recipe.loader.max_bad_share)
        self.evaluation: Evaluation | None = None
        """The last evaluation, whole."""
        self._augment = BatchAugment(
            recipe.augment,
            num_classes=len(data.classes),
            label_smoothing=number(recipe.loss.label_smoothing),
            preprocessing=self.preprocessing,
            seed=recipe.run.seed,
        )
        self._sampler = StepBatches(
            data.train.labels,
            batch_size=int(number(recipe.optim.batch_size)),
            seed=recipe.run.seed,
            sampling=recipe.loader.sampling,
        )

    def build_model(self) -> nn.Module:
        """Build the network of the recipe, with a head for the data's classes and its weights."""
        settings = to_dict(self.recipe)["network"]
        changes = settings.pop("changes") | {k: v for k, v in settings.items() if v != "auto"}
        weights = self.recipe.weights
        return create_model(
            self.recipe.model,
            weights=None if weights == "none" else weights,
            num_classes=len(self.data.classes),
            in_chans=self.preprocessing.in_chans,
            **changes,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return self._sampler.steps_per_epoch

    def batches(self, start_step: int) -> Iterator[Sequence[Batch]]:
        """Yield the micro batches of every step from `start_step` on."""
        dataset = TrainDataset(
            self.data.train,
            augment=self.recipe.augment,
            preprocessing=self.preprocessing,
            seed=self.recipe.run.seed,
            cache=bool(self.recipe.loader.cache),
        )
        workers = int(number(self.recipe.loader.workers))
        loader = DataLoader(
            dataset,
            batch_sampler=self._sampler.starting_at(start_step),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
            persistent_workers=workers > 0,
        )
        micro = int(number(self.recipe.optim.micro_batch_size))
        for batch in loader:
            self.bad.add(self.data.train, batch.bad)
            yield batch.split(micro)

    def size(self, batch: Batch) -> int:
        """Return the number of images of a micro batch."""
        return len(batch.labels)

    def losses(self, model: nn.Module, batch: Batch, step: int, part: int) -> dict[str, Tensor]:
        """Augment a micro batch on the device and return its named losses."""
        images, targets = self._augment(
            batch.images.to(self.device, non_blocking=True),
            batch.labels.to(self.device, non_blocking=True),
            step=step,
            part=part,
        )
        images = images.contiguous(memory_format=torch.channels_last)
        return losses(model, images, targets)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return top-1, top-5 and loss on the validation set; keep the rest as `evaluation`."""
        metric = Metric(self.data.classes)
        for batch in infer(
            model,
            self.data.val,
            self.preprocessing,
            device=self.device,
            precision=self.recipe.run.precision,
            bad=self.bad,
            workers=int(number(self.recipe.loader.workers)),
        ):
            metric.update(*batch)
        self.evaluation = metric.compute()
        return {
            "top1": self.evaluation.top1,
            "top5": self.evaluation.top5,
            "loss": self.evaluation.loss,
        }

    def card(self, model: nn.Module, metrics: Mapping[str, Any]) -> Card:
        """Return what travels with the weights."""
        return Card(
            model=str(model.name),
            changes=dict(model.changes),  # type: ignore[arg-type]
            classes=self.data.classes,
            preprocessing=self.preprocessing,
            recipe=to_dict(self.recipe),
            metrics=metrics,
        )


def preprocessing(recipe: Recipe) -> Preprocessing:
    """Return the preprocessing that a resolved recipe asks for."""
    settings = recipe.input
    assert not isinstance(settings.mean, str)
    assert not isinstance(settings.std, str)
    return Preprocessing(
        image_size=int(number(settings.image_size)),
        crop_pct=number(settings.crop_pct),
        interpolation=settings.interpolation,
        mean=settings.mean,
        std=settings.std,
        in_chans=int(number(settings.in_chans)),
    )


def number(value: float | str) -> float:
    """Return a setting that is no longer `auto`."""
    assert not isinstance(value, str), "the recipe must be resolved first"
    return value
