"""The classification task: the interface for training, runs, studies and reports."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any, Never

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from convnext.data.preprocessing import Preprocessing
from convnext.data.sampling import StepBatches
from convnext.data.shards.remote import is_remote
from convnext.hardware.devices import ALONE, Ranks
from convnext.recipes.resolve import Choice
from convnext.recipes.schema import Recipe
from convnext.tasks.base import CachedDataset, Phase, Task, Workload, split_tensors
from convnext.tasks.classification import auto
from convnext.tasks.classification.augment import BatchAugment
from convnext.tasks.classification.data import (
    ClassificationData,
    DataFacts,
    annotation,
    facts,
    open_dataset,
)
from convnext.tasks.classification.dataset import Batch, EvalDataset, TrainDataset, collate
from convnext.tasks.classification.metric import Metric
from convnext.tasks.classification.mix import losses
from convnext.tasks.classification.predict import infer
from convnext.tasks.classification.recipe import ClassificationRecipe


class ClassificationTask(Task):
    """Classification of images: one label per image."""

    name = "classify"
    primary = "top1"
    primary_label = "top-1"

    recipe: ClassificationRecipe[Never]
    data: ClassificationData
    train_set: TrainDataset
    facts = staticmethod(facts)
    annotation = staticmethod(annotation)
    resolve = staticmethod(auto.resolve)
    warnings = staticmethod(auto.warnings)
    collate = staticmethod(collate)
    split = staticmethod(split_tensors)

    def __init__(
        self,
        recipe: ClassificationRecipe[Never],
        data: ClassificationData,
        known: DataFacts,
        device: torch.device,
        choices: tuple[Choice, ...] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(recipe, data, known, device, choices, ranks)
        self.preprocessing = Preprocessing(**asdict(recipe.input))
        self.train_set = TrainDataset(
            data.train,
            augment=recipe.augment,
            preprocessing=self.preprocessing,
            seed=recipe.run.seed,
        )
        self.val_set = EvalDataset(data.val, self.preprocessing)
        self._augment = BatchAugment(
            recipe.augment,
            num_classes=len(data.classes),
            label_smoothing=recipe.loss.label_smoothing,
            preprocessing=self.preprocessing,
            seed=recipe.run.seed,
        )
        self.sampler = StepBatches(
            data.train.labels,
            recipe.optim.batch_size,
            seed=recipe.run.seed,
            sampling=recipe.loader.sampling,
            shard_sizes=data.train.shard_sizes,
            rank=ranks.rank,
            num_ranks=ranks.count,
        )

    @classmethod
    def open_data(cls, recipe: Recipe, console: Console) -> ClassificationData:
        """Open folders, shards, or the built-in digits."""
        assert isinstance(recipe, ClassificationRecipe)
        loader = recipe.loader
        return open_dataset(
            recipe.data,
            val_share=loader.val_share,
            loader=loader,
            layout=loader.layout,
            console=console,
        )

    @classmethod
    def describe(cls, known: DataFacts) -> str:
        """Return one line about a data set."""
        return (
            f"{known.num_train:,} training and {known.num_val:,} validation images of "
            f"{known.num_classes} classes, about {known.image_width} x {known.image_height} pixels"
        )

    @property
    def input_size(self) -> int:
        """Side of the square that the network sees, in pixels."""
        return int(self.preprocessing.image_size)

    def identity(self) -> str:
        """Return a hash of the classes and the training labels, in order."""
        train = np.ascontiguousarray(self.data.train.labels, dtype=np.int64)
        # The names of folders need not be UTF-8.
        names = "\n".join(self.data.classes).encode("utf-8", "surrogateescape")
        return hashlib.sha256(names + train.tobytes()).hexdigest()

    def cached_sets(self) -> tuple[CachedDataset, ...]:
        """Return the datasets to cache in memory."""
        return (self.train_set, self.val_set)

    def phases(self, num_steps: int) -> Iterable[Phase]:
        """Return the phases of a run: one, or three of growing image size."""
        progressive = bool(self.recipe.schedule.progressive)
        for start, stop, size in image_sizes(self.input_size, num_steps, progressive=progressive):
            yield Phase(start, stop, self.train_set.at_size(size))

    def losses(
        self,
        model: nn.Module,
        batch: Batch,
        step: int,
        part: int,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> dict[str, Tensor]:
        """Augment a micro batch on the device and return its named losses."""
        images, targets = self._augment(
            batch.pixels.to(self.device, non_blocking=True),
            batch.labels.to(self.device, non_blocking=True),
            step=step,
            part=part,
        )
        return losses(model, images.contiguous(memory_format=memory_format), targets)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return top-1, top-5 and loss on the validation set."""
        metric = Metric(self.data.classes)
        for batch in infer(model, self.val_set, **self.inference_options()):
            metric.update(*batch)
        metric.merge(self.ranks)
        found = metric.compute()
        return {"top1": found.top1, "top5": found.top5, "loss": found.loss}

    def evaluation_data(self) -> str | None:
        """Return the address of remote data: the user gave it, but one in a run is not used."""
        data = self.recipe.data
        return data if is_remote(data) or data.endswith(".txt") else None

    def evaluation_options(self) -> dict[str, Any]:
        """Return how to fetch remote data."""
        return {} if self.evaluation_data() is None else {"loader": self.recipe.loader}

    def workload(self, model: nn.Module, batch_size: int) -> Workload:
        """Return a batch of random images of every class, with the plain cross-entropy."""
        size = self.input_size
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(
            (batch_size, self.preprocessing.in_chans, size, size), generator=generator
        )
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            classes = model(images[:2]).shape[1]
        labels = torch.arange(batch_size, device=self.device) % classes
        return Workload(
            loss=lambda: nn.functional.cross_entropy(model(images), labels),
            infer=lambda: model(images),
            tensors=(images, labels),
        )

    def next_commands(self, folder: Path) -> tuple[str, str]:
        """Return two commands to suggest next."""
        samples, run = self.data.val, quote(str(folder))
        image = next(
            (s for s in map(samples.source, range(len(samples))) if Path(s).is_file()), None
        )
        if image is None:
            return f"convnext evaluate {run}", "convnext train --data YOUR_FOLDER"
        return f"convnext evaluate {run}", f"convnext predict {run} {quote(image)}"


# End of each phase and its image size, as fractions of the run and of the full size.
PROGRESSIVE = ((0.4, 1 / 2), (0.8, 2 / 3), (1.0, 1.0))


def image_sizes(
    image_size: int, num_steps: int, *, progressive: bool
) -> tuple[tuple[int, int, int], ...]:
    """Return the first step, the end and the image size of the phases of a run.

    There is one phase, or with `progressive` three of growing image size. Sizes are multiples of 16
    pixels if the full size is.
    """
    found, start = [], 0
    for end, share in PROGRESSIVE if progressive else ((1.0, 1.0),):
        stop = round(num_steps * end)
        size = image_size if share == 1 else max(16, round(image_size * share / 16) * 16)
        found.append((start, stop, min(size, image_size)))
        start = stop
    return tuple(found)
