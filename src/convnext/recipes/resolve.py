"""Resolution of settings that are `auto`: shared rules, and the record of the choices.

The steps of a run and their learning rates follow from the resolved settings.

Each task adds its own rules in its `task.py`. A rule names the setting, the value, and the reason
that the user reads. The rules for small data come from the experiments in LOG.md; those for large
data are the paper's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, Never

import torch
from rich.console import Console
from rich.table import Table

from convnext.data.preprocessing import DensePreprocessing
from convnext.data.ranges import BandSample, PixelRange
from convnext.hardware.peak_rates import has_fast_bf16
from convnext.models.config import GIVEN
from convnext.names import count_noun
from convnext.recipes.recipe import (
    all_settings,
    as_resolved,
    change_recipe,
    check_ranges,
    flatten,
)
from convnext.recipes.schema import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DenseInputRecipe,
    OptimRecipe,
    Recipe,
    ResolvedRecipe,
    ScheduleRecipe,
)
from convnext.weights.checkpoint import Card

# Steps between log lines: reading the loss more often would stall a GPU.
LOG_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of a run and its learning rate."""

    num_steps: int
    warmup_steps: int
    eval_steps: int
    """Steps between evaluations; the last step is evaluated too."""
    save_steps: int
    steps_per_epoch: int
    peak: float
    """Peak learning rate."""
    schedule: ScheduleRecipe[Never]

    @classmethod
    def of(cls, recipe: ResolvedRecipe, steps_per_epoch: int) -> Plan:
        """Return the plan of a recipe."""
        eval_steps = max(1, round(recipe.run.eval_every * steps_per_epoch))
        return cls(
            num_steps=num_steps(recipe.schedule, steps_per_epoch),
            warmup_steps=recipe.schedule.warmup_steps
            or round(recipe.schedule.warmup_epochs * steps_per_epoch),
            eval_steps=eval_steps,
            save_steps=recipe.run.save_every,
            steps_per_epoch=steps_per_epoch,
            peak=recipe.optim.lr,
            schedule=recipe.schedule,
        )

    def rate(self, step: int, *, num_steps: int | None = None) -> float:
        """Return the learning rate after `step`, by default for the length of this run."""
        return learning_rate(
            step,
            peak=self.peak,
            num_steps=self.num_steps if num_steps is None else num_steps,
            warmup_steps=self.warmup_steps,
            schedule=self.schedule,
            milestones=tuple(round(m * self.steps_per_epoch) for m in self.schedule.milestones),
        )

    def logs_at(self, step: int) -> bool:
        """Whether a log line is due after `step`."""
        return step == 1 or step % LOG_EVERY == 0

    def evaluates_at(self, step: int) -> bool:
        """Whether an evaluation is due after `step`."""
        return step % self.eval_steps == 0 or step >= self.num_steps


def num_steps(schedule: ScheduleRecipe[Never], steps_per_epoch: int) -> int:
    """Return the number of optimizer steps of a run."""
    return schedule.steps or round(schedule.epochs * steps_per_epoch)


def learning_rate(
    step: int,
    *,
    peak: float,
    num_steps: int,
    warmup_steps: int,
    schedule: ScheduleRecipe[Never],
    milestones: tuple[int, ...] = (),
) -> float:
    """Return the learning rate of a step: linear warm-up to `peak`, then decay.

    Cosine decay starts after the warm-up (paper, appendix A). Polynomial and multistep decay start
    at step 0 and the warm-up scales them, as in the recipes of ADE20K and COCO; `milestones` are
    steps.
    """
    ratio, final = schedule.warmup_ratio, schedule.min_lr
    if schedule.shape == "cosine":
        if step < warmup_steps:
            # Like the authors' linspace(0, peak, warmup_steps), which ends with the peak.
            return peak * (ratio + (1 - ratio) * step / max(warmup_steps - 1, 1))
        share = (step - warmup_steps) / max(num_steps - warmup_steps, 1)
        return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * min(share, 1.0)))
    if schedule.shape == "polynomial":
        left = max(1 - step / max(num_steps, 1), 0.0)
        rate = final + (peak - final) * math.pow(left, schedule.power)
    else:
        rate = peak * math.pow(0.1, sum(step >= milestone for milestone in milestones))
    if step < warmup_steps:
        rate *= 1 - (1 - step / warmup_steps) * (1 - ratio)
    return rate


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The settings of an optimizer, and how its learning rate compares with AdamW's.

    A setting that it does not have is None.
    """

    betas: tuple[float, float] | None = (0.9, 0.999)
    eps: float | None = 1e-8
    momentum: float | None = None
    rate: float = 1.0
    """Factor on the learning rate that suits AdamW."""
    decay: float = 1.0
    """Factor on its weight decay: a step shrinks the weights as much as with AdamW."""
    clip_grad: float | None = None
    """Gradient norm of the optimizer's own recipe."""


# Lion: a tenth of the rate and ten times the decay (Chen et al. 2023). LAMB: the rate of "ResNet
# strikes back" beside AdamW's, with its decay of 0.02. SGD: rates are about 20 times larger; its
# decay goes through the momentum, which multiplies it by ten. timm scales Muon's update to the size
# of AdamW's, which updates what is not a matrix.
OPTIMIZERS: Mapping[str, Optimizer] = {
    "adamw": Optimizer(),
    "nadamw": Optimizer(),
    "laprop": Optimizer(eps=1e-15),
    "lamb": Optimizer(eps=1e-6, rate=2.5, decay=0.4, clip_grad=1.0),
    "lion": Optimizer(betas=(0.9, 0.99), eps=None, rate=0.1, decay=10.0),
    "muon": Optimizer(betas=(0.9, 0.95), eps=1e-7, momentum=0.95),
    "sgd": Optimizer(betas=None, eps=None, momentum=0.9, rate=20.0, decay=0.005),
}


def own_settings(optim: OptimRecipe[Any]) -> dict[str, Any]:
    """Return the settings of a recipe's optimizer: those that the recipe gives, else its own.

    Raises:
        ValueError: If it does not; the message names those that it has.
    """
    own = OPTIMIZERS[optim.name]
    usual = {name: getattr(own, name) for name in ("betas", "eps", "momentum")}
    having = [f"optim.{name}" for name, value in usual.items() if value is not None]
    given = {name: v for name in usual if (v := getattr(optim, name)) != "auto"}
    for name, value in given.items():
        if usual[name] is None:
            raise ValueError(
                f"{optim.name} has no {name}, but optim.{name} is {value}; set it to auto "
                f"({optim.name} has {' and '.join(having)})"
            )
    return {name: value for name, value in (usual | given).items() if value is not None}


def frozen_stages(freeze: str) -> int | None:
    """Return how many stages `optim.freeze` freezes: 0 for none, None for the whole backbone.

    Raises:
        ValueError: If it is neither `none`, nor `backbone`, nor `stages:K`.
    """
    if freeze in ("none", "backbone"):
        return 0 if freeze == "none" else None
    kind, _, count = freeze.partition(":")
    if kind == "stages" and count.isdecimal() and int(count) > 0:
        return int(count)
    raise ValueError(
        f"optim.freeze is {freeze!r}, but must be none, backbone, or stages:K such as stages:2"
    )


def check_freezing(recipe: Recipe) -> None:
    """Check what a recipe freezes, without knowing the network.

    Raises:
        ValueError: If it is not understood, or does not fit the other settings.
    """
    optim = recipe.optim
    is_frozen = frozen_stages(optim.freeze) != 0
    if optim.unfreeze_at and not is_frozen:
        raise ValueError(
            f"optim.unfreeze_at is {optim.unfreeze_at:g}, but nothing is frozen; add --freeze "
            "backbone or leave it out"
        )
    if is_frozen and recipe.run.strategy == "fsdp":
        raise ValueError("--freeze does not work with --run.strategy fsdp; use ddp")
    epochs = recipe.schedule.epochs
    if not recipe.schedule.steps and epochs != "auto" and optim.unfreeze_at >= epochs > 0:
        raise ValueError(
            f"optim.unfreeze_at is {optim.unfreeze_at:g}, but the run has {epochs} epochs; choose "
            "an earlier epoch, or leave it out to keep the parts frozen to the end"
        )


def warn_of_freezing(recipe: Recipe) -> tuple[str, ...]:
    """Return a warning if a recipe freezes random weights."""
    has_own = recipe.weights != "none" or recipe.model.startswith(GIVEN)
    if has_own or recipe.optim.freeze == "none":
        return ()
    return (
        f"--freeze {recipe.optim.freeze} keeps random weights, since --weights is none: name "
        "pretrained weights, or leave it out",
    )


# Mean and standard deviation of the luminance of ImageNet.
GRAY_MEAN, GRAY_STD = (0.449,), (0.226,)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One setting that `auto` chose."""

    setting: str
    value: Any
    reason: str


@dataclass(frozen=True, kw_only=True)
class ResolveContext:
    """Input of the rules besides the recipe and the data."""

    device: str
    """"cpu", "cuda" or "mps"."""
    has_bf16: bool
    """Whether the device is faster in bf16 than in fp32."""
    preprocessing: Any = None
    """Preprocessing of the pretrained weights, if known."""
    weights_network: Mapping[str, Any] = field(default_factory=dict)
    """Config fields of the network of the pretrained weights, if it is one of this package."""


class Resolver:
    """Replaces settings that are `auto`, and records the reasons.

    Args:
        recipe: The recipe to resolve.
        context: The device and the weights.
        num_train: Number of training images.
        large: Number of images from which a data set takes the paper's recipe unchanged.

    Raises:
        ValueError: If a number in the recipe is out of range.
    """

    def __init__(
        self, recipe: Recipe, context: ResolveContext, *, num_train: int, large: int
    ) -> None:
        check_ranges(recipe)
        check_freezing(recipe)
        recipe = replace(recipe, optim=replace(recipe.optim, **own_settings(recipe.optim)))
        self.context, self.num_train, self.large = context, num_train, num_train >= large
        self.on_cpu, self.scratch = context.device == "cpu", recipe.weights == "none"
        self.choices: list[Choice] = []
        self._recipe, self._values = recipe, dict(flatten(recipe))
        known = all_settings()
        self._explains = any(v == "auto" and known[n].resolves for n, v in self._values.items())

    def __getitem__(self, setting: str) -> Any:
        return self._values[setting]

    def choose(self, setting: str, value: Any, reason: str) -> Any:
        """Set `setting` if it is `auto`; return its value."""
        if self[setting] == "auto":
            self._set(setting, value, reason)
        return self[setting]

    def _set(self, setting: str, value: Any, reason: str) -> None:
        """Set `setting`, and record the reason."""
        self._values[setting] = value
        self.choices.append(Choice(setting=setting, value=value, reason=reason))

    def note(self, setting: str, reason: str) -> None:
        """Record a reason about a setting that stays.

        A recipe without `auto`, such as that of a resumed run, was explained when it was resolved.
        """
        if self._explains:
            self._set(setting, self[setting], reason)

    def finish(self) -> tuple[ResolvedRecipe, tuple[Choice, ...]]:
        """Return the resolved recipe, and the choices with their reasons."""
        chosen = {choice.setting: choice.value for choice in self.choices}
        recipe = change_recipe(self._recipe, chosen)
        check_freezing(recipe)  # Once more: now the length of the run is known.
        return as_resolved(recipe), tuple(self.choices)

    def choose_model(self, prefix: str = "") -> None:
        """Choose the network, with the `prefix` of the task's networks."""
        if self.on_cpu:
            reason = "the smallest of the family, since there is no GPU"
            self.choose("model", f"{prefix}convnext_atto", reason)
        self.choose("model", f"{prefix}convnext_tiny", "the smallest network of the paper")

    def choose_pixels(
        self,
        *,
        gray: bool,
        own: Sequence[str] = (),
        range: tuple[float, ...] = (),
        sample: PixelRange | None = None,
        bands: BandSample | None = None,
    ) -> None:
        """Choose the input channels and the statistics for normalization.

        Args:
            gray: Whether the data seems to have no color images.
            own: Settings to take from the pretrained weights; by default all that they have.
            range: The range of 16-bit and float images; () if there are none.
            sample: Values of such images.
            bands: Values of images with several bands; None if there are none.

        Raises:
            ValueError: If the images do not have the bands of the recipe.
        """
        given = getattr(self.context.preprocessing, "bands", ())
        if given and bands is not None and not self["input.bands"]:
            self._set("input.bands", given, "as in the weights")
        if bands is not None:
            self._choose_bands(bands)
        elif chosen := self["input.bands"]:
            self.choose("input.in_chans", len(chosen), "the bands that were chosen")
        if bands is None or not self["input.range"]:
            clips = sample.clipped_by if sample is not None else None
            self._choose_range(range, "the 16-bit or float training images", clips)
        if self.context.preprocessing is not None:
            for name, value in asdict(self.context.preprocessing).items():
                is_other = name in ("mean", "std") and len(value) != self["input.in_chans"]
                if f"input.{name}" in self._values and (not own or name in own) and not is_other:
                    self.choose(f"input.{name}", value, "as the weights expect")
        gray = gray and self.scratch
        reason = "no color images were found" if gray else "color images"
        chans = self.choose("input.in_chans", 1 if gray else 3, reason)
        self._note_stem(chans)
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if chans == 3 else (GRAY_MEAN, GRAY_STD)
        self.choose("input.mean", mean if len(mean) == chans else mean * chans, "as for ImageNet")
        self.choose("input.std", std if len(std) == chans else std * chans, "as for ImageNet")

    def _choose_range(
        self,
        measured: tuple[float, ...],
        images: str,
        clips: Callable[[Sequence[float]], float] | None = None,
    ) -> None:
        """Take a measured range if none is given, or tell of it.

        Args:
            measured: The range; () if there is none.
            images: What was measured.
            clips: Returns the fraction of the pixels that a range clips.
        """
        given = tuple(self["input.range"])
        if measured and not given:
            self._set("input.range", measured, f"the 0.1 and 99.9 percentiles of {images}")
        elif measured and given != measured:
            listed = ", ".join(f"{value:,g}" for value in measured)
            share = f", which clips {100 * clips(given):.2g} % of the pixels" if clips else ""
            reason = f"as given{share}; the 0.1 and 99.9 percentiles of {images}: {listed}"
            self.note("input.range", reason)

    def _note_stem(self, chans: int) -> None:
        """Record that the stem of pretrained weights for other channels is adapted."""
        own = getattr(self.context.preprocessing, "in_chans", chans)
        if own == chans:
            return
        how = "summed" if chans == 1 else f"repeated for {chans}, and scaled"
        reason = f"the {count_noun(own, 'channel')} of their stem are {how}"
        self.note("weights", reason)

    def _choose_bands(self, sample: BandSample) -> None:
        """Choose the channels of images with several bands, their ranges and statistics."""
        bands = self["input.bands"]
        count = sample.check(bands)
        reason = "the bands that were chosen" if bands else "the bands of the images"
        chans = self.choose("input.in_chans", count, reason)
        if chans != count:
            some = ",".join(map(str, bands or tuple(range(1, chans + 1))))
            raise ValueError(
                f"input.in_chans is {chans}, but there are {count_noun(count, 'band')}; choose "
                f"bands with --input.bands, such as --input.bands {some}"
            )
        clips = partial(sample.clipped, bands)
        self._choose_range(sample.ranges(bands), "each band of the training images", clips)
        mean, std = sample.statistics(bands, self["input.range"] if sample.is_wide else ())
        self.choose("input.mean", mean, "that of the training images")
        self.choose("input.std", std, "that of the training images")

    def choose_as_weights(self, section: str, *names: str) -> None:
        """Choose the values of the pretrained weights' network."""
        for name in names:
            if name in self.context.weights_network:
                value = self.context.weights_network[name]
                self.choose(f"{section}.{name}", value, "as in the weights")

    def choose_design(self) -> None:
        """Choose the backbone's design by the pretrained weights."""
        self.choose_as_weights("network", "stem", "stem_stride", "norm", "layer_scale_init")

    def choose_backbone(
        self, drop_path_rate: float, reason: str, *, conv_pool: bool = True
    ) -> None:
        """Choose the design of a ConvNeXt; the values for small data come from LOG.md."""
        self.choose("network.stem_stride", 4, "as in the paper")
        if self.scratch and not self.large:
            self.choose("network.layer_scale_init", 0.0, "1e-6 takes many epochs to grow")
            self.choose("network.drop_path_rate", 0.0, "small data trains faster without it")
            self.choose("network.init", "fan_in", "a std of 0.02 slows the first epochs")
            self.choose("network.norm", "batch", "trains faster on small data")
            if conv_pool:
                self.choose("network.stem", "conv_pool", "trains faster on small data")
        self.choose("network.layer_scale_init", 1e-6, "as in the paper")
        self.choose("network.drop_path_rate", drop_path_rate, reason)
        self.choose("network.norm", "layer", "as in the paper")
        self.choose("network.stem", "patchify", "as in the paper")
        self.choose(
            "network.init", "paper", "as in the paper" if self.scratch else "the weights replace it"
        )

    def choose_by_steps(self) -> None:
        """Choose the number of epochs and the warm-up of a run whose steps are given."""
        if not (steps := self["schedule.steps"]):
            return
        per_epoch = self._steps_per_epoch()
        self.choose("schedule.epochs", self.epochs, count_noun(steps, "step"))
        if warmup_steps := self["schedule.warmup_steps"]:
            warmup = two_digits(warmup_steps / per_epoch)
            self.choose("schedule.warmup_epochs", warmup, count_noun(warmup_steps, "step"))
        warmup = two_digits(steps / per_epoch / 20)
        self.choose("schedule.warmup_epochs", warmup, "5 % of the run")

    @property
    def num_steps(self) -> int:
        """The steps of the run, given its length and the batch size."""
        return planned_steps(self._values, self.num_train)

    @property
    def epochs(self) -> int:
        """The epochs of the run, rounded if its length is given in steps."""
        steps = self["schedule.steps"]
        if not steps:
            return int(self["schedule.epochs"])
        return max(1, round(int(steps) / self._steps_per_epoch()))

    def choose_length(self, epochs: int) -> None:
        """Choose the number of epochs for small data, and the warm-up."""
        reason = f"{epochs * self.num_train:,} images in total"
        epochs = self.choose("schedule.epochs", epochs, reason)
        warmup = two_digits(epochs / 20)
        self.choose("schedule.warmup_epochs", warmup, "5 % of the run")

    def choose_dense_batch(self, *, on_cpu: int, micro_batch_size: int) -> None:
        """Choose the batch size and micro batch size of a dense task."""
        size = 16 if self.large else on_cpu if self.on_cpu else 8
        reason = "as in the paper" if self.large else "small data learns more from more steps"
        batch = self.choose("optim.batch_size", min(size, self.num_train), reason)
        micro_batch_size = batch if self.on_cpu else min(batch, micro_batch_size)
        self.choose("optim.micro_batch_size", micro_batch_size, "images per backward pass")

    @property
    def optimizer(self) -> Optimizer:
        """The settings of the recipe's optimizer."""
        return OPTIMIZERS[self["optim.name"]]

    @property
    def only_head(self) -> bool:
        """Whether only layers train that are new: the backbone stays frozen to the end."""
        return self["optim.freeze"] == "backbone" and not self["optim.unfreeze_at"]

    def choose_rate(self, rate: float, reason: str) -> None:
        """Choose the learning rate: `rate` is the one for AdamW."""
        self._choose_scaled("optim.lr", rate, self.optimizer.rate, reason)

    def choose_decay(self, decay: float, reason: str) -> None:
        """Choose the weight decay: `decay` is the one for AdamW."""
        self._choose_scaled("optim.weight_decay", decay, self.optimizer.decay, reason)

    def _choose_scaled(self, setting: str, value: float, factor: float, reason: str) -> None:
        if factor != 1:
            value = two_digits(value * factor)
            reason = f"{reason}, x {factor:g} for {self['optim.name']} instead of adamw"
        self.choose(setting, value, reason)

    def choose_clipping(self, norm: float, reason: str) -> None:
        """Choose the maximum gradient norm, unless the optimizer has its own."""
        own = self.optimizer.clip_grad
        if own is not None:
            norm, reason = own, f"as usual for {self['optim.name']}"
        self.choose("optim.clip_grad", norm, reason)

    def choose_dense_rate(self, scratch_rate: float, layer_decay: float) -> None:
        """Choose the optimizer settings of a dense task."""
        batch = self["optim.batch_size"]
        if self.scratch or self.only_head:
            self.choose_rate(two_digits(scratch_rate), f"for {count_noun(batch, 'image')} per step")
            reason = "every layer is new" if self.scratch else "every layer that trains is new"
            self.choose("optim.layer_decay", 1.0, reason)
        rate = two_digits(1e-4 * math.sqrt(batch / 16))
        self.choose_rate(rate, "as in the paper, scaled by batch size")
        self.choose_decay(0.05, "as in the paper")
        self.choose("optim.layer_decay", layer_decay, "as in the paper")
        reason = "as in the paper" if self.large else "stabilizes small batches"
        self.choose_clipping(0.0 if self.large else 1.0, reason)

    def choose_average(self) -> None:
        """Choose the EMA decay by the number of steps."""
        num_steps = self.num_steps
        if num_steps < 200:
            self.choose("ema.decay", 0.0, f"too few to average: {count_noun(num_steps, 'step')}")
        horizon = max(10, num_steps // 20)
        reason = "averages over 5 % of the run"
        self.choose("ema.decay", round(1 - 1 / horizon, 7), reason)

    def choose_execution(self, eval_every: int) -> None:
        """Choose evaluation interval, cache, workers and precision, given the batch size."""
        every = self.choose("run.eval_every", eval_every, "epochs between evaluations")
        steps = max(1, round(every * self._steps_per_epoch()))
        self.choose("run.save_every", min(1000, steps), "a crash loses at most this many steps")
        reason = "too many images" if self.large else "if the images fit in memory"
        self.choose("loader.cache", not self.large, reason)
        workers = 0 if self.on_cpu else min(16, max(2, (os.cpu_count() or 2) - 1))
        reason = "the network needs every core" if workers == 0 else "the cores beside the GPU"
        self.choose("loader.workers", workers, reason)
        fast = self.context.has_bf16
        reason = "this device is faster in bf16" if fast else "this device has no fast bf16"
        self.choose("run.precision", "bf16" if fast else "fp32", reason)

    def choose_dense_execution(self, eval_every: int) -> None:
        """Choose the EMA and the execution settings of a dense task."""
        if self.large:
            self.choose("ema.decay", 0.0, "as in the paper")
        self.choose_average()
        self.choose_execution(eval_every)

    def _steps_per_epoch(self) -> int:
        return _steps_per_epoch(self._values, self.num_train)


CardOf = Callable[[str, str], Card | None]
"""Returns the card of weights before loading, by their source and the network's name."""


def context_of(
    recipe: Recipe, device: torch.device, card_of: CardOf
) -> tuple[Recipe, ResolveContext]:
    """Return the recipe for the network of its weights, and the context for resolving it."""
    recipe, card = _with_weights(recipe, card_of)
    return recipe, ResolveContext(
        device=device.type,
        has_bf16=has_fast_bf16(device),
        preprocessing=card.preprocessing if card else None,
        weights_network=card.changes if card else {},
    )


def _with_weights(recipe: Recipe, card_of: CardOf) -> tuple[Recipe, Card | None]:
    """Return the card of the weights that a recipe starts from, and the recipe for its network."""
    if recipe.weights == "none":
        return recipe, None
    card = card_of(recipe.weights, recipe.model)
    if card is None or recipe.model not in ("auto", card.model):
        return recipe, card
    kept = {"num_classes", "in_chans", "drop_path_rate", "auxiliary", "ignore_threshold", "masks"}
    # Settings of the recipe take precedence over those of the weights.
    common = {f.name for f in fields(Recipe)} - {"network"}
    kept |= {n.rpartition(".")[2] for n in all_settings() if n.partition(".")[0] not in common}
    changes = {name: value for name, value in card.changes.items() if name not in kept}
    network = replace(recipe.network, changes=changes | recipe.network.changes)
    return replace(recipe, model=card.model, network=network), card


def print_choices(choices: Sequence[Choice], console: Console) -> None:
    """Print the choices of `auto` with their reasons."""
    if not choices:
        return
    table = Table(box=None, header_style="dim", title="chosen by auto", title_justify="left")
    for name in ("setting", "value", "because"):
        table.add_column(name, overflow="fold")
    for choice in choices:
        value = choice.value
        shown = ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
        table.add_row(choice.setting, shown, choice.reason)
    console.print(table)


def dense_preprocessing(settings: DenseInputRecipe[Never]) -> DensePreprocessing:
    """Return the preprocessing for the input settings of a dense task."""
    return DensePreprocessing(**asdict(settings))


def warn_of_channels(r: Mapping[str, Any], colors: Sequence[str]) -> list[str]:
    """Return warnings about input channels other than red, green and blue.

    Args:
        r: The settings by their full names.
        colors: The augmentation in use that only RGB images can have.
    """
    chans, found = r["input.in_chans"], []
    if chans not in (1, 3) and colors:
        are = "are" if len(colors) > 1 else "is"
        found.append(f"{' and '.join(colors)} {are} left out, for images of {chans} bands")
    return found


def _steps_per_epoch(r: Mapping[str, Any], num_train: int) -> int:
    return max(1, num_train // int(r["optim.batch_size"]))


def planned_steps(r: Mapping[str, Any], num_train: int) -> int:
    """Return the number of optimizer steps of a run with these settings."""
    return int(r["schedule.steps"] or r["schedule.epochs"] * _steps_per_epoch(r, num_train))


def warn_of_warmup(r: Mapping[str, Any], num_train: int) -> list[str]:
    """Return a warning if the warm-up lasts as long as the run."""
    warmup = r["schedule.warmup_epochs"] * _steps_per_epoch(r, num_train)
    if (r["schedule.warmup_steps"] or warmup) < planned_steps(r, num_train):
        return []
    return ["the warm-up lasts as long as the run. Try --schedule.warmup_epochs auto"]


def warn_of_average(r: Mapping[str, Any], steps: int) -> list[str]:
    """Return a warning if the moving average spans more steps than the run has."""
    decay = r["ema.decay"]
    if not decay or 1 / (1 - decay) <= steps:
        return []
    return [
        f"the moving average spans {1 / (1 - decay):,.0f} steps, but the run has only {steps:,}: "
        "it will lag behind the weights. Try --ema.decay auto"
    ]


def warn_of_batch(r: Mapping[str, Any], num_train: int, usual: int) -> list[str]:
    """Return a warning if a batch has more images than the data."""
    batch = r["optim.batch_size"]
    if batch <= num_train:
        return []
    return [
        f"the batch size {batch:,} exceeds the number of images: steps use {num_train:,}. "
        f"Try --optim.batch_size {min(usual, num_train)}"
    ]


def two_digits(value: float) -> float:
    """Round to two significant digits."""
    return float(f"{value:.2g}")
