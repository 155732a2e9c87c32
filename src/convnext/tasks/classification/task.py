"""Classification as the training loop sees it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn
from torch.utils.data import DataLoader

from convnext.data.preprocessing import Preprocessing
from convnext.data.samples import BadImages
from convnext.data.sampling import StepBatches
from convnext.hardware.ranks import ALONE, Ranks
from convnext.hardware.signals import leave_signals_to_parent
from convnext.models.family import create_model
from convnext.models.init import init_fan_in
from convnext.recipes.plan import num_steps as num_steps_of
from convnext.recipes.recipe import Recipe, number, to_dict
from convnext.recipes.resolve import Choice, circumstances, print_choices
from convnext.tasks.classification.augment import BatchAugment
from convnext.tasks.classification.auto import resolve, warnings
from convnext.tasks.classification.data import ClassificationData, facts, open_dataset
from convnext.tasks.classification.dataset import Batch, EvalDataset, TrainDataset, collate
from convnext.tasks.classification.inference import infer
from convnext.tasks.classification.loss import losses
from convnext.tasks.classification.metric import Evaluation, Metric
from convnext.tasks.steps import InSteps
from convnext.weights.checkpoint import Card


class ClassificationTask(InSteps):
    """A resolved recipe and a data set: batches, losses, evaluation.

    Args:
        recipe: Without any `auto`, but for what a peer of timm does not have.
        data: The opened data set.
        device: Where the network runs.
        choices: What `auto` chose in the recipe.
        ranks: The processes that share the run.
    """

    primary = "top1"

    def __init__(
        self,
        recipe: Recipe,
        data: ClassificationData,
        device: torch.device,
        choices: tuple[Choice, ...] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        self.recipe, self.data, self.device, self.choices = recipe, data, device, choices
        self.ranks = ranks
        self.micro_batch_size = int(number(recipe.optim.micro_batch_size))
        self.memory_format = torch.channels_last
        self.preprocessing = preprocessing(recipe)
        share = recipe.loader.max_bad_share
        self.bad_train = BadImages(data.train, max_share=share)
        self.bad_val = BadImages(data.val, max_share=share)
        self._train = TrainDataset(
            data.train,
            augment=recipe.augment,
            preprocessing=self.preprocessing,
            seed=recipe.run.seed,
        )
        self._val = EvalDataset(data.val, self.preprocessing)
        self.tell: Callable[[str], None] = lambda text: None
        """Who hears of images that cannot be read; the loop lets the log hear of them."""
        self.evaluation: Evaluation | None = None
        """The last evaluation, whole."""
        self._augment = BatchAugment(
            recipe.augment,
            num_classes=len(data.classes),
            label_smoothing=number(recipe.loss.label_smoothing),
            preprocessing=self.preprocessing,
            seed=recipe.run.seed,
        )
        self._batches = StepBatches(
            data.train.labels,
            int(number(recipe.optim.batch_size)),
            seed=recipe.run.seed,
            sampling=recipe.loader.sampling,
            shard_sizes=data.train.shard_sizes,
            rank=ranks.rank,
            num_ranks=ranks.count,
        )

    def under(self, recipe: Recipe) -> ClassificationTask:
        """Return the task on the same data and device under another recipe, silently resolved."""
        recipe, where = circumstances(recipe, self.device)
        recipe, choices = resolve(recipe, facts(self.data), where)
        return ClassificationTask(recipe, self.data, self.device, choices, self.ranks)

    @property
    def input_size(self) -> int:
        """Side of the square that the network sees, in pixels."""
        return self.preprocessing.image_size

    def build_model(self) -> nn.Module:
        """Build the network of the recipe, with a head for the data's classes and its weights."""
        settings = to_dict(self.recipe)["network"]
        init, changes = settings.pop("init"), settings.pop("changes")
        changes = {k: v for k, v in settings.items() if v != "auto"} | changes
        weights = self.recipe.weights
        model = create_model(
            self.recipe.model,
            weights=None if weights == "none" else weights,
            num_classes=len(self.data.classes),
            in_chans=self.preprocessing.in_chans,
            **changes,
        )
        if init == "fan_in" and weights == "none":
            init_fan_in(model)
        return model

    @property
    def fingerprint(self) -> str:
        """The counts of the images, and a hash of the training labels in their order."""
        train = np.ascontiguousarray(self.data.train.labels, dtype=np.int64)
        found = hashlib.sha256("\n".join(self.data.classes).encode() + train.tobytes())
        return f"{len(train):,} + {len(self.data.val):,} images, {found.hexdigest()[:8]}"

    def prepare(self, console: Console) -> None:
        """Read the images into memory, where the recipe asks for it and they fit."""
        if self.recipe.loader.cache:
            workers = int(number(self.recipe.loader.workers))
            console.print(self._train.fill_cache(workers=workers, console=console))
            console.print(self._val.fill_cache(workers=workers, console=console))

    def batches(self, start_step: int) -> Iterator[Sequence[Batch]]:
        """Yield the micro batches of every step from `start_step` on."""
        workers = int(number(self.recipe.loader.workers))
        num_steps = num_steps_of(self.recipe.schedule, self.steps_per_epoch)
        progressive = bool(self.recipe.schedule.progressive)
        for phase in phases(self.preprocessing.image_size, num_steps, progressive=progressive):
            self._batches.start_step = max(start_step, phase.start)
            self._batches.num_steps = phase.stop
            if len(self._batches) == 0:
                continue
            loader = DataLoader(
                self._train.at_size(phase.image_size),
                batch_sampler=self._batches,
                num_workers=workers,
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
        return len(batch.labels)

    def losses(self, model: nn.Module, batch: Batch, step: int, part: int) -> dict[str, Tensor]:
        """Augment a micro batch on the device and return its named losses."""
        images, targets = self._augment(
            batch.pixels.to(self.device, non_blocking=True),
            batch.labels.to(self.device, non_blocking=True),
            step=step,
            part=part,
        )
        images = images.contiguous(memory_format=self.memory_format)
        return losses(model, images, targets)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return top-1, top-5 and loss on the validation set; keep the rest as `evaluation`."""
        metric = Metric(self.data.classes)
        for batch in infer(
            model,
            self._val,
            device=self.device,
            precision=self.recipe.run.precision,
            bad=self.bad_val,
            workers=int(number(self.recipe.loader.workers)),
            ranks=self.ranks,
        ):
            metric.update(*batch)
        metric.merge(self.ranks)
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

    def next_commands(self, folder: Path) -> tuple[str, str]:
        """Return the two commands that a user may want next."""
        samples, run = self.data.val, quote(str(folder))
        image = next(
            (s for s in map(samples.source, range(len(samples))) if Path(s).is_file()), None
        )
        if image is None:
            return f"convnext evaluate {run}", "convnext train --data YOUR_FOLDER"
        return f"convnext evaluate {run}", f"convnext predict {run} {quote(image)}"


@dataclass(frozen=True)
class Phase:
    """Steps that train on images of one size."""

    start: int
    stop: int
    image_size: int


# Share of the run at which a phase ends, and its share of the image size.
PROGRESSIVE = ((0.4, 1 / 2), (0.8, 2 / 3), (1.0, 1.0))


def phases(image_size: int, num_steps: int, *, progressive: bool) -> tuple[Phase, ...]:
    """Return the phases of a run: one, or with `progressive` three of growing image size.

    Sizes are multiples of 16 pixels, where the whole size is one.
    """
    found, start = [], 0
    for end, share in PROGRESSIVE if progressive else ((1.0, 1.0),):
        stop = round(num_steps * end)
        size = image_size if share == 1 else max(16, round(image_size * share / 16) * 16)
        found.append(Phase(start, stop, min(size, image_size)))
        start = stop
    return tuple(found)


def split(batch: Batch, count: int) -> list[Batch]:
    """Return a batch in `count` parts, whose sizes differ by one image at most."""
    tensors = (batch.pixels, batch.labels, batch.indices)
    parts = zip(*(tensor.tensor_split(count) for tensor in tensors), strict=True)
    return [Batch(pixels, labels, indices, ()) for pixels, labels, indices in parts]


def open_task(
    recipe: Recipe, device: torch.device, console: Console, ranks: Ranks = ALONE
) -> ClassificationTask:
    """Open the data, choose what the recipe leaves to `auto`, and say what was chosen and why."""
    data = open_dataset(
        recipe.data, val_share=recipe.loader.val_share, loader=recipe.loader, console=console
    )
    known = facts(data)
    recipe, where = circumstances(recipe, device)
    recipe, choices = resolve(recipe, known, where)
    console.print(
        f"[bold]{escape(recipe.data)}[/]  {known.num_train:,} training and {known.num_val:,} "
        f"validation images of {known.num_classes} classes, about {known.image_width} x "
        f"{known.image_height} pixels"
    )
    for note in data.notes:
        console.print(f"note: {note}", markup=False)
    print_choices(choices, console)
    for warning in warnings(recipe, known):
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    return ClassificationTask(recipe, data, device, choices, ranks)


def preprocessing(recipe: Recipe) -> Preprocessing:
    """Return the preprocessing that a resolved recipe asks for."""
    settings = recipe.input
    assert not isinstance(settings.mean, str)
    assert not isinstance(settings.std, str)
    assert settings.interpolation != "auto"
    return Preprocessing(
        image_size=int(number(settings.image_size)),
        crop_pct=number(settings.crop_pct),
        interpolation=settings.interpolation,
        mean=settings.mean,
        std=settings.std,
        in_chans=int(number(settings.in_chans)),
    )
