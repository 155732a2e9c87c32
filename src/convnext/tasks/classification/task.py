"""The classification task: the interface for training, runs, studies and reports."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any, ClassVar, Never

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from convnext.data.formats.tables import TableColumns
from convnext.data.preprocessing import Preprocessing
from convnext.data.sampling import StepBatches, split_tensors
from convnext.data.shards.remote import is_remote
from convnext.models.config import GIVEN, NetworkConfig, change
from convnext.models.factory import network_configs
from convnext.models.roadmap import stem_stride
from convnext.names import count_noun
from convnext.recipes.recipe import flatten
from convnext.recipes.resolve import (
    OPTIMIZERS,
    Resolver,
    planned_steps,
    two_digits,
    warn_of_average,
    warn_of_batch,
    warn_of_channels,
    warn_of_warmup,
)
from convnext.recipes.resolve import num_steps as num_steps_of
from convnext.recipes.schema import Recipe, ResolvedRecipe
from convnext.tasks.base import CachedDataset, Phase, Task, Workload
from convnext.tasks.classification.augment import (
    ASYMMETRIC,
    FOCAL,
    POS_WEIGHT,
    BatchAugment,
    Losses,
)
from convnext.tasks.classification.data import (
    ClassificationData,
    DataFacts,
    annotation,
    facts,
    open_dataset,
)
from convnext.tasks.classification.dataset import Batch, EvalDataset, TrainDataset, collate
from convnext.tasks.classification.metric import Metric, MultiLabelMetric, parse_thresholds
from convnext.tasks.classification.predict import infer
from convnext.tasks.classification.recipe import SEVERAL_LABELS, ClassificationRecipe
from convnext.weights.checkpoint import Card

# Up to this many epochs from scratch, strong augmentation lowers accuracy (LOG.md).
SHORT = 40


class ClassificationTask(Task):
    """Classification of images: one label per image, several, or probabilities of the classes."""

    name = "classify"
    primary = "top1"
    primary_label = "top-1"
    primaries: ClassVar[Mapping[str, str]] = {
        "top1": "top-1",
        "balanced_accuracy": "balanced accuracy",
        "macro_f1": "macro F1",
        "map": "mAP",
    }
    large = 300_000

    recipe: ClassificationRecipe[Never]
    data: ClassificationData
    train_set: TrainDataset
    facts = staticmethod(facts)
    annotation = staticmethod(annotation)
    collate = staticmethod(collate)
    split = staticmethod(split_tensors)

    def set_up(self) -> None:
        """Set the preprocessing, the data sets and the sampler."""
        recipe, data, ranks = self.recipe, self.data, self.ranks
        self.primary = recipe.run.primary
        self.primary_label = self.primaries[self.primary]
        self._thresholds: tuple[float, ...] = ()
        self._losses = Losses(
            recipe.loss, self.known.class_counts, self.known.num_train, self.device
        )
        self.preprocessing = Preprocessing(**asdict(recipe.input))
        self.train_set = TrainDataset(
            data.train,
            augment=recipe.augment,
            preprocessing=self.preprocessing,
            seed=recipe.run.seed,
        )
        self.val_set = EvalDataset(data.val, self.preprocessing)
        self._phase_set: EvalDataset | None = None
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
            sampling="balanced" if recipe.loss.balance == "sampler" else "uniform",
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
            columns=TableColumns.parse(loader.columns, loader.fold, loader.group),
            group=loader.group,
            console=console,
        )

    @classmethod
    def describe(cls, known: DataFacts) -> str:
        """Return one line about a data set."""
        labels = {
            "single": "",
            "soft": " with probabilities",
            "multi": f" (multi-label, {known.labels_per_image:.2g} labels an image on average)",
        }[known.kind]
        classes = count_noun(known.num_classes, "class", "classes")
        return f"{known.images} of {classes}{labels}, {known.size}"

    @classmethod
    def metric_of(cls, recipe: Mapping[str, Any]) -> tuple[str, str]:
        """Return the primary metric of a run by its saved recipe, and its label."""
        run, loss = recipe.get("run"), recipe.get("loss")
        asked = run.get("primary") if isinstance(run, Mapping) else None
        several = isinstance(loss, Mapping) and loss.get("name") in SEVERAL_LABELS
        usual = "map" if several else cls.primary
        name = next((name for name in cls.primaries if name == asked), usual)
        return name, cls.primaries[name]

    @staticmethod
    def choose(c: Resolver, facts: DataFacts) -> None:
        """Choose a value for every setting that is `auto`."""
        c.choose_model()
        _choose_loss(c, facts)
        _choose_balance(c, facts)
        _choose_input(c, facts)
        _choose_network(c)
        _choose_batch(c, facts.num_train)
        _choose_schedule(c, facts.num_train)
        _choose_rate(c)
        _choose_augmentation(c, facts)
        _choose_average(c)
        c.choose_execution(1 if c.large else max(1, round(c.epochs / 20)))

    @staticmethod
    def warnings(recipe: ResolvedRecipe, facts: DataFacts) -> tuple[str, ...]:
        """Return warnings about settings that cannot work well, each with the fix."""
        r = dict(flatten(recipe))
        steps = planned_steps(r, facts.num_train)
        found = warn_of_average(r, steps)
        size, stem = r["input.image_size"], _stem(r)
        own_stem = r["model"].startswith(("timm/", GIVEN))  # Its stride is not known.
        if stem > 1 and size < 16 * stem and not own_stem:
            found.append(
                f"a stem of stride {stem} leaves only {size // stem} x {size // stem} positions of "
                f"an image of {size} pixels. Try --network.stem_stride {max(1, stem // 2)}"
            )
        batch = r["optim.batch_size"]
        only_head = r["optim.freeze"] == "backbone" and not r["optim.unfreeze_at"]
        is_new = r["weights"] == "none" or only_head
        usual = scratch_rate(batch) if is_new else tuning_rate(batch)
        usual *= OPTIMIZERS[r["optim.name"]].rate
        if r["optim.lr"] > 1.3 * usual:
            paper = "" if r["optim.name"] != "adamw" else " (the paper's 4e-3 is for 4,096)"
            found.append(
                f"a learning rate of {r['optim.lr']:g} is high for a batch of {batch}{paper}. "
                f"Try --optim.lr {two_digits(usual):g}"
            )
        found += warn_of_batch(r, facts.num_train, 32)
        if r["weights"] == "none" and 0 < _scale(r) <= 1e-4 and steps < 20_000:
            found.append(
                f"a layer scale that starts at {_scale(r):g} needs tens of thousands of steps to "
                f"grow, but the run has {steps:,}. Try --network.layer_scale_init 0"
            )
        found += warn_of_warmup(r, facts.num_train)
        imbalance = max(facts.class_counts) / max(min(facts.class_counts), 1)
        one_label = facts.kind == "single"
        if imbalance > 20 and r["loss.balance"] == "none" and one_label:
            found.append(
                f"the largest class has {imbalance:.0f} times the images of the smallest. "
                "Consider --primary balanced_accuracy, or one of --balance logit, loss and sampler"
            )
        colors = [
            name
            for name, none in (("augment.rand_augment", "none"), ("augment.color_jitter", 0.0))
            if r[name] != none
        ]
        return (*found, *warn_of_channels(r, colors))

    @property
    def input_size(self) -> int:
        """Side of the square that the network sees, in pixels."""
        return int(self.preprocessing.image_size)

    def identity(self) -> str:
        """Return a hash of the classes and the training labels, in order."""
        train = np.ascontiguousarray(self.data.train.labels, dtype=np.int64)
        # The names of folders need not be UTF-8.
        names = "\n".join(self.data.classes).encode("utf-8", "surrogateescape")
        targets = self.data.train.targets
        rows = b"" if targets is None else np.ascontiguousarray(targets).tobytes()
        return hashlib.sha256(names + train.tobytes() + rows).hexdigest()

    def cached_sets(self) -> tuple[CachedDataset, ...]:
        """Return the datasets to cache in memory."""
        return (self.train_set, self.val_set)

    def phases(self, num_steps: int) -> Iterable[Phase]:
        """Return the phases of a run: one, or up to three of growing image size."""
        for start, stop, size in self._image_sizes(num_steps):
            yield Phase(start, stop, self.train_set.at_size(size))

    def _image_sizes(self, num_steps: int) -> tuple[tuple[int, int, int], ...]:
        if not self.recipe.schedule.progressive:
            return ((0, num_steps, self.input_size),)
        return progressive_sizes(self.input_size, num_steps, stride=self._stride)

    @cached_property
    def _stride(self) -> int:
        """Stride of the network's last stage; 32 for a network whose stages are not known."""
        name, settings = self.recipe.model, self.network_settings()
        if config := network_configs().get(name):
            known = {field.name for field in fields(NetworkConfig)}
            own = {key: value for key, value in settings.items() if key in known}
            return change(config, **own).strides[-1]
        return 32

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
        return self._losses(model, images.contiguous(memory_format=memory_format), targets)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return the scores on the validation set; for several labels, fit the thresholds to it."""
        scores, self._thresholds = self._validate(model, self.val_set)
        return scores

    def card(self, model: nn.Module, metrics: Mapping[str, Any], recipe: ResolvedRecipe) -> Card:
        """Return the card, for several labels with the thresholds of the weights.

        Weights that are saved without an evaluation have not been given any: theirs are 0.5.
        """
        card = super().card(model, metrics, recipe)
        if self.data.kind != "multi":
            return card
        usual = (0.5,) * len(self.data.classes)
        return replace(card, thresholds=self._thresholds if self.primary in metrics else usual)

    def validate_in_phase(self, model: nn.Module, step: int) -> tuple[int, dict[str, float]] | None:
        """Return the image size of a phase with smaller images, and the metrics at that size."""
        num_steps = num_steps_of(self.recipe.schedule, self.steps_per_epoch)
        sizes = self._image_sizes(num_steps)
        size = next((size for start, stop, size in sizes if start < step <= stop), self.input_size)
        if size == self.input_size:
            return None
        if self._phase_set is None or self._phase_set.preprocessing.image_size != size:
            preprocessing = replace(self.preprocessing, image_size=size)
            self._phase_set = EvalDataset(self.data.val, preprocessing)
            if self.val_set.cache is not None:
                self._phase_set.fill_cache(workers=self.recipe.loader.workers)
        return size, self._validate(model, self._phase_set)[0]

    def _validate(
        self, model: nn.Module, images: EvalDataset
    ) -> tuple[dict[str, float], tuple[float, ...]]:
        """Return the scores, and for several labels the thresholds that fit these images."""
        is_multi = self.data.kind == "multi"
        metric = MultiLabelMetric(self.data.classes) if is_multi else Metric(self.data.classes)
        for batch in infer(model, images, **self.inference_options()):
            metric.update(*batch)
        metric.merge(self.ranks)
        if not isinstance(metric, MultiLabelMetric):
            return metric.compute().scores(), ()
        thresholds = metric.fit(self.recipe.loss.thresholds)
        return metric.compute(thresholds).scores(), thresholds

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
# The last stage of a network has at least this many positions per side in every phase: on a map of
# 1 x 1, a 7 x 7 kernel trains nothing but its center, and validation at the full size reads chance.
MIN_POSITIONS = 2


def progressive_sizes(
    image_size: int, num_steps: int, *, stride: int
) -> tuple[tuple[int, int, int], ...]:
    """Return the first step, the end and the image size of up to three phases of growing size.

    Sizes are multiples of 16 pixels if the full size is. Phases of one size are a single phase.

    Args:
        image_size: The full size, in pixels.
        num_steps: Steps of the run.
        stride: Stride of the network's last stage, in pixels.
    """
    found: list[tuple[int, int, int]] = []
    start = 0
    for end, share in PROGRESSIVE:
        stop = round(num_steps * end)
        size = image_size if share == 1 else max(16, round(image_size * share / 16) * 16)
        size = min(max(size, MIN_POSITIONS * stride), image_size)
        if found and found[-1][2] == size:
            found[-1] = (found[-1][0], stop, size)
        else:
            found.append((start, stop, size))
        start = stop
    return tuple(found)


# From this ratio of the largest to the smallest class on, `auto` balances for a metric that counts
# classes equally.
UNEQUAL = 1.5


def _choose_balance(c: Resolver, facts: DataFacts) -> None:
    """Choose the primary metric, and how the loss or the sampler balances the classes.

    Raises:
        ValueError: If two settings contradict each other.
    """
    multi = facts.kind == "multi"
    primary = c.choose("run.primary", "map" if multi else "top1", "the usual metric of such labels")
    known = ("map", "macro_f1") if multi else ("top1", "balanced_accuracy", "macro_f1")
    if primary not in known:
        labels = "several labels" if multi else "one label each"
        raise ValueError(
            f"run.primary is {primary}, but the images have {labels}: use one of {', '.join(known)}"
        )
    balance = c["loss.balance"]
    if multi:
        if balance not in ("auto", "none"):
            raise ValueError(
                f"loss.balance is {balance}, but the images have several labels: leave it out, and "
                "weigh rare labels with --loss.pos_weight"
            )
        c.choose("loss.balance", "none", "not for several labels")
        return
    if c["loader.sampling"] == "balanced":
        if balance not in ("auto", "sampler"):
            raise ValueError(
                f"loader.sampling is balanced, which is loss.balance sampler, but loss.balance is "
                f"{balance}: leave one of them out"
            )
        c.choose("loss.balance", "sampler", "loader.sampling is balanced")
    counts = [count for count in facts.class_counts if count]
    ratio = max(counts) / min(counts)
    sizes = f"the largest class has {ratio:.3g} times the images of the smallest"
    if primary == "top1":
        reason = "top-1 counts every image, also of large classes"
        c.choose("loss.balance", "none", f"{reason}; {sizes}" if ratio > UNEQUAL else reason)
    elif ratio > UNEQUAL:
        c.choose("loss.balance", "logit", f"{primary} counts classes equally; {sizes}")
    c.choose("loss.balance", "none", "the classes have about equally many images")


def _choose_input(c: Resolver, facts: DataFacts) -> None:
    c.choose_pixels(
        gray=facts.grayscale,
        range=facts.pixel_range,
        sample=facts.pixel_sample,
        bands=facts.bands,
    )
    short_side = min(facts.image_height, facts.image_width)
    if c["weights"] != "none":
        c.choose("input.image_size", 224, "the usual size of published weights")
    elif c["model"].startswith("convnext_isotropic"):
        size = max(128, min(224, short_side // 32 * 32))
        c.choose("input.image_size", size, "its patches are 16 pixels wide")
    elif short_side <= 64:
        c.choose("input.image_size", max(8, -(-short_side // 8) * 8), "the size of the images")
    elif c.on_cpu:
        size = min(96, short_side // 32 * 32)
        c.choose("input.image_size", size, "what a CPU can afford")
    size = c.choose("input.image_size", min(224, short_side // 32 * 32), "as in the paper")
    c.choose("input.interpolation", "bicubic", "as in the paper")
    if size >= 384:
        c.choose("input.crop_pct", 1.0, "the whole image, as in the paper from 384 pixels up")
    if size <= 128:
        c.choose("input.crop_pct", 1.0, "no crop of small images")
    c.choose("input.crop_pct", 0.875, "as in the paper")


# Which losses take a setting.
_OF_LOSS = {
    "label_smoothing": ("cross_entropy",),
    "pos_weight": ("bce",),
    "gamma": ("focal", "asymmetric"),
    "alpha": ("focal",),
    "margin": ("asymmetric",),
}


def _choose_loss(c: Resolver, facts: DataFacts) -> None:
    """Choose the loss by the kind of labels.

    Raises:
        ValueError: If a setting does not fit the labels or the loss.
    """
    multi = facts.kind == "multi"
    why = {"single": "one label an image", "soft": "probabilities", "multi": "several labels"}
    name = c.choose("loss.name", "bce" if multi else "cross_entropy", why[facts.kind])
    if multi != (name in SEVERAL_LABELS):
        fix = (
            f"the images have several labels: use --loss.name {', '.join(SEVERAL_LABELS)}; a table "
            "is read with one label an image by --columns separator=none"
            if multi
            else "the images have one label each: leave it out; a table is read with several "
            "labels an image by --columns separator=SIGN"
        )
        raise ValueError(f"loss.name is {name}, but {fix}")
    if multi and c["loader.sampling"] == "balanced":
        raise ValueError(
            "loader.sampling is balanced, which draws images by their class, but images have "
            "several labels: leave it out, and weigh rare labels with --loss.pos_weight"
        )
    for setting, losses in _OF_LOSS.items():
        value = c[f"loss.{setting}"]
        if name not in losses and value != "auto" and (setting != "label_smoothing" or value):
            raise ValueError(
                f"loss.{setting} is {value}, but is only for the loss {' and '.join(losses)}, not "
                f"for {name}: leave it out"
            )
    parse_thresholds(c["loss.thresholds"])
    if multi:
        c.choose("loss.label_smoothing", 0.0, "not for several labels")
    elif c["loss.thresholds"] != "f1":
        raise ValueError(
            f"loss.thresholds is {c['loss.thresholds']}, but the images have one label each, "
            "and the most probable class is predicted: leave it out"
        )
    if name == "bce":
        c.choose("loss.pos_weight", POS_WEIGHT, "most images lack each label")
    for setting, value in {"focal": FOCAL, "asymmetric": ASYMMETRIC}.get(name, {}).items():
        c.choose(f"loss.{setting}", value, "as in its paper")


def _choose_network(c: Resolver) -> None:
    if not c["model"].startswith(("convnext_", "roadmap/")):
        return
    c.choose_design()
    if c["model"].startswith("roadmap/"):
        _choose_step(c)
        return
    if c["model"].startswith("convnext_isotropic"):
        c.choose("network.stem_stride", 16, "as in the paper")
        c.choose("network.stem", "patchify", "as in the paper")
    _choose_stride(c)
    conv_pool = c["network.stem_stride"] in ("auto", 1, 2, 4)
    reason = "as in the paper" if c.scratch else "the paper's fine-tuning setting"
    c.choose_backbone(0.1, reason, conv_pool=conv_pool)
    c.choose("network.head_init_scale", 1.0 if c.scratch else 0.001, "as in the paper")


def _choose_step(c: Resolver) -> None:
    """Choose the settings that a roadmap step does not fix, by the size of images and data."""
    _choose_stride(c)
    if c.scratch and not c.large:
        c.choose("network.init", "fan_in", "a std of 0.02 slows the first epochs")
        c.choose("network.drop_path_rate", 0.0, "small data trains faster without it")
    rate = 0.5 if c["model"].startswith("roadmap/resnet200/") else 0.1
    c.choose("network.drop_path_rate", rate, "as in the paper for this roadmap")


def _choose_stride(c: Resolver) -> None:
    size = c["input.image_size"]
    if c.scratch and stem_stride(size) < 4:
        reason = f"a stride of 4 is too large for {size} pixels"
        c.choose("network.stem_stride", stem_stride(size), reason)


def _choose_batch(c: Resolver, n: int) -> None:
    if c.large:
        c.choose("optim.batch_size", 4096 if c.scratch else 512, "as in the paper")
    size = 32 if n < 10_000 else 64 if n < 50_000 else 256
    batch = c.choose("optim.batch_size", min(size, n), "small data learns more from more steps")
    parts = math.ceil(batch / (64 if c.on_cpu else 128))
    c.choose("optim.micro_batch_size", math.ceil(batch / parts), "images per backward pass")


def _choose_schedule(c: Resolver, n: int) -> None:
    c.choose_by_steps()
    if c.large:
        c.choose("schedule.epochs", 300 if c.scratch else 30, "as in the paper")
        if not c.scratch:
            c.choose("schedule.warmup_epochs", 0, "as in the paper")
        elif c.epochs >= 100:
            c.choose("schedule.warmup_epochs", 20, "as in the paper")
        c.choose("schedule.progressive", False, "as in the paper")
    low, high, images = (20, 200, 60_000) if c.scratch else (5, 30, 30_000)
    if c.scratch and c["input.image_size"] <= 16:
        low, images = 15, 20_000  # Digits train faster.
    epochs = min(high, max(low, round(images / n)))
    c.choose_length(epochs)
    c.choose("schedule.progressive", False, "images of the full size from the start")


def _choose_rate(c: Resolver) -> None:
    batch = c["optim.batch_size"]
    if c.large and not c.only_head:
        c.choose_rate(4e-3 if c.scratch else 5e-5, "as in the paper")
        c.choose_decay(0.05 if c.scratch else 1e-8, "as in the paper")
        c.choose_clipping(0.0, "as in the paper")
    if c.scratch or c.only_head:
        rate = two_digits(scratch_rate(batch))
        c.choose_rate(rate, f"for {count_noun(batch, 'image')} per step")
        c.choose_decay(0.05, "as in the paper")
        reason = "every layer is new" if c.scratch else "every layer that trains is new"
        c.choose("optim.layer_decay", 1.0, reason)
    c.choose_rate(two_digits(tuning_rate(batch)), "low, to keep the pretrained layers")
    c.choose_decay(1e-8, "the paper's fine-tuning setting")
    c.choose("optim.layer_decay", 0.8, "the paper's fine-tuning setting")
    c.choose_clipping(1.0, "stabilizes small batches")


def _choose_augmentation(c: Resolver, facts: DataFacts) -> None:
    if max(facts.image_height, facts.image_width) <= 64 and facts.grayscale:
        c.choose("augment.hflip", 0.0, "small and gray: perhaps characters")
        c.choose("augment.scale", (0.7, 1.0), "characters fill the image")
        c.choose("augment.color_jitter", 0.0, "there are no colors")
    if c["input.in_chans"] not in (1, 3):
        c.choose("augment.color_jitter", 0.0, "only for RGB")
        c.choose("augment.rand_augment", "none", "only for RGB")
    c.choose("augment.hflip", 0.5, "as in the paper")
    if c.large:
        mixed = 1.0 if c.scratch else 0.0
        for name, value in (
            ("scale", (0.08, 1.0)),
            ("rand_augment", "rand-m9-mstd0.5-inc1"),
            ("color_jitter", 0.4),
            ("mixup", 0.8 * mixed),
            ("cutmix", 1.0 * mixed),
            ("erasing", 0.25),
        ):
            c.choose(f"augment.{name}", value, "as in the paper")
        c.choose("loss.label_smoothing", 0.1, "as in the paper")
    short = c.epochs <= SHORT
    epochs = count_noun(c.epochs, "epoch")
    strength = f"{'mild' if short else 'moderate'}, for {epochs}"
    c.choose("augment.scale", (0.6, 1.0) if short else (0.35, 1.0), strength)
    c.choose("augment.color_jitter", 0.1 if short else 0.3, strength)
    c.choose("loss.label_smoothing", 0.0 if short else 0.1, strength)
    for name, none in (("rand_augment", "none"), ("mixup", 0.0), ("cutmix", 0.0), ("erasing", 0.0)):
        c.choose(f"augment.{name}", none, "only for runs of hundreds of epochs")


def _choose_average(c: Resolver) -> None:
    if c.large and not c.scratch:
        c.choose("ema.decay", 0.0, "as in the paper")
    if c.num_steps >= 50_000:
        c.choose("ema.decay", 0.9999, "as in the paper")
    c.choose_average()


def _stem(r: dict[str, Any]) -> int:
    stride = r["network.stem_stride"]
    return 4 if stride == "auto" else int(stride)


def _scale(r: dict[str, Any]) -> float:
    scale = r["network.layer_scale_init"]
    return 0.0 if scale == "auto" else float(scale)


def scratch_rate(batch_size: int) -> float:
    """Return the peak learning rate from scratch: 2e-3 at batch size 32 (LOG.md), at most 4e-3."""
    return min(4e-3, 2e-3 * math.sqrt(batch_size / 32))


def tuning_rate(batch_size: int) -> float:
    """Return the peak learning rate for fine-tuning: 2e-4 at batch size 32, a judgment call."""
    return 2e-4 * math.sqrt(batch_size / 32)
