"""What `auto` means for classification: settings chosen from the data, the weights and the device.

Every rule is a line that names the setting, the value and the reason in words for the user. The
rules for small data come from the experiments in LOG.md, those for large data are the paper's.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from convnext.recipe import IMAGENET_MEAN, IMAGENET_STD, Recipe, change_recipe, flatten
from convnext.tasks.classification.data import DataFacts

# A data set this large takes the paper's recipe as it stands.
LARGE = 300_000
# Mean and standard deviation of the luminance of ImageNet's images.
GREY_MEAN, GREY_STD = (0.449,), (0.226,)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One setting that `auto` chose."""

    setting: str
    value: Any
    reason: str


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What the rules look at beside the recipe and the data."""

    device: str
    """"cpu", "cuda" or "mps"."""
    has_bf16: bool
    """Whether the device computes in bf16 faster than in fp32."""
    weights_size: int | None = None
    """Image size that the pretrained weights were made for."""
    weights_crop_pct: float | None = None


class _Chooser:
    """Fills the settings that read `auto`, and remembers why."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.choices: list[Choice] = []

    def __getitem__(self, setting: str) -> Any:
        return dict(flatten(self.recipe))[setting]

    def choose(self, setting: str, value: Any, reason: str) -> Any:
        """Set `setting` if it reads `auto`; return what it is now."""
        if self[setting] == "auto":
            self.recipe = change_recipe(self.recipe, {setting: value})
            self.choices.append(Choice(setting=setting, value=value, reason=reason))
        return self[setting]


def resolve(
    recipe: Recipe, facts: DataFacts, where: Circumstances
) -> tuple[Recipe, tuple[Choice, ...]]:
    """Return the recipe without any `auto`, and what was chosen and why."""
    c = _Chooser(recipe)
    n, scratch, on_cpu = facts.num_train, recipe.weights == "none", where.device == "cpu"
    short_side = min(facts.image_height, facts.image_width)
    tiny_images = short_side <= 64
    large = n >= LARGE

    if on_cpu:
        c.choose("model", "convnext_atto", "the smallest of the family, since there is no GPU")
    else:
        c.choose("model", "convnext_tiny", "the smallest network of the paper")
    ours = not c["model"].startswith("timm/")
    _choose_input(c, facts, where, short_side)
    size = c["input.image_size"]

    if ours:
        if scratch and size <= 64:
            stride = 1 if size <= 16 else 2
            c.choose("network.stem_stride", stride, f"a stride of 4 leaves too little of {size} px")
        c.choose("network.stem_stride", 4, "the paper's stem")
        if scratch and not large:
            c.choose("network.layer_scale_init", 0.0, "a layer scale of 1e-6 wakes up too slowly")
        c.choose("network.layer_scale_init", 1e-6, "the paper's")
        c.choose("network.head_init_scale", 1.0 if scratch else 0.001, "the paper's")

    batch = _choose_batch(c, n, scratch, on_cpu)
    epochs = _choose_epochs(c, n, scratch)
    steps_per_epoch = max(1, n // batch)
    num_steps = epochs * steps_per_epoch

    if scratch:
        peak = 4e-3 if large else min(4e-3, 2e-3 * math.sqrt(batch / 32))
        c.choose("optim.lr", _round(peak), f"for a batch of {batch}, from scratch")
        c.choose("optim.weight_decay", 0.05, "the paper's")
        c.choose("optim.layer_decay", 1.0, "every layer is new")
        warmup = max(epochs / 15, min(epochs / 4, 100 / steps_per_epoch))
        c.choose("schedule.warmup_epochs", _round(warmup), "a fifteenth of the run, as in the paper")
    else:
        c.choose(
            "optim.lr", _round(5e-5 * math.sqrt(512 / batch) * 2), "fine-tuning starts gently"
        )
        c.choose("optim.weight_decay", 1e-8, "the paper's for fine-tuning")
        c.choose("optim.layer_decay", 0.8, "early layers are good already")
        c.choose("schedule.warmup_epochs", _round(epochs / 15), "lets the new head settle")
    c.choose("optim.clip_grad", 0.0 if large else 1.0, "steadies small batches" if not large else "")

    _choose_regularisation(c, facts, scratch=scratch, large=large, epochs=epochs, tiny=tiny_images)
    _choose_ema(c, num_steps, scratch)
    _choose_execution(c, where, epochs, large=large)
    return c.recipe, tuple(c.choices)


def _choose_input(c: _Chooser, facts: DataFacts, where: Circumstances, short_side: int) -> None:
    grey = facts.greyscale and c["weights"] == "none"
    chans = c.choose("input.in_chans", 1 if grey else 3, "greyscale" if grey else "colour")
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if chans == 3 else (GREY_MEAN, GREY_STD)
    c.choose("input.mean", mean * (chans if chans not in (1, 3) else 1), "of ImageNet")
    c.choose("input.std", std * (chans if chans not in (1, 3) else 1), "of ImageNet")
    if where.weights_size:
        size = c.choose("input.image_size", where.weights_size, "what the weights were made for")
    elif short_side <= 64:
        size = c.choose("input.image_size", _at_least(short_side, 8), "the images' own size")
    else:
        limit = 96 if where.device == "cpu" else 224
        size = min(limit, short_side // 32 * 32)
        size = c.choose(
            "input.image_size", size, "affordable on a CPU" if limit == 96 else "as in the paper"
        )
    if where.weights_crop_pct:
        c.choose("input.crop_pct", where.weights_crop_pct, "what the weights were made for")
    whole = size >= 384 or size <= 64
    c.choose("input.crop_pct", 1.0 if whole else 0.875, "as in the paper" if not whole else "whole")


def _choose_batch(c: _Chooser, n: int, scratch: bool, on_cpu: bool) -> int:
    if n >= LARGE:
        batch = c.choose("optim.batch_size", 4096 if scratch else 512, "the paper's")
    else:
        batch = 32 if n < 5_000 else 64 if n < 50_000 else 256
        batch = c.choose(
            "optim.batch_size", min(batch, n), "small enough for many steps per epoch"
        )
    micro = min(batch, 64 if on_cpu else 128)
    while batch % micro:
        micro -= 1
    c.choose("optim.micro_batch_size", micro, "fits in memory")
    return int(batch)


def _choose_epochs(c: _Chooser, n: int, scratch: bool) -> int:
    if n >= LARGE:
        return int(c.choose("schedule.epochs", 300 if scratch else 30, "the paper's"))
    images = 150_000 if scratch else 30_000
    epochs = max(20 if scratch else 5, min(300 if scratch else 30, round(images / n)))
    return int(c.choose("schedule.epochs", epochs, f"about {epochs * n:,} images in all"))


def _choose_regularisation(
    c: _Chooser, facts: DataFacts, *, scratch: bool, large: bool, epochs: int, tiny: bool
) -> None:
    glyphs = facts.greyscale and tiny
    if large:
        c.choose("augment.rand_augment", "rand-m9-mstd0.5-inc1", "the paper's")
        c.choose("augment.color_jitter", 0.4, "the paper's")
        c.choose("augment.erasing", 0.25, "the paper's")
        c.choose("augment.scale", (0.08, 1.0), "the paper's")
    c.choose("augment.rand_augment", "none", "too strong for a short run")
    c.choose("augment.color_jitter", 0.0 if glyphs else 0.3, "moderate")
    c.choose("augment.erasing", 0.0, "too strong for a short run")
    c.choose("augment.scale", (0.7, 1.0) if glyphs else (0.35, 1.0), "milder than the paper's 0.08")
    c.choose("augment.hflip", 0.0 if glyphs else 0.5, "glyphs have a side" if glyphs else "usual")
    mixed = large and scratch
    c.choose("augment.mixup", 0.8 if mixed else 0.0, "the paper's" if mixed else "needs long runs")
    c.choose("augment.cutmix", 1.0 if mixed else 0.0, "the paper's" if mixed else "needs long runs")
    c.choose("loss.label_smoothing", 0.1, "the paper's")
    rate = 0.1 if large or epochs >= 100 else 0.0
    c.choose("network.drop_path_rate", rate, "as ConvNeXt-T" if rate else "a short run underfits")


def _choose_ema(c: _Chooser, num_steps: int, scratch: bool) -> None:
    if num_steps >= 100_000 and scratch:
        c.choose("ema.decay", 0.9999, "the paper's")
    if num_steps < 200:
        c.choose("ema.decay", 0.0, f"{num_steps} steps are too few to average over")
    horizon = max(10, num_steps // 20)
    c.choose("ema.decay", round(1 - 1 / horizon, 5), f"averages the last {horizon} steps or so")


def _choose_execution(c: _Chooser, where: Circumstances, epochs: int, *, large: bool) -> None:
    c.choose("run.eval_every", max(1, round(epochs / 20)), "about 20 evaluations")
    c.choose("loader.cache", not large, "if they fit" if not large else "too many images")
    if where.device == "cpu":
        workers = 0
        reason = "the network needs every core"
    else:
        workers = min(16, max(2, (os.cpu_count() or 2) - 1))
        reason = "the cores beside the GPU"
    c.choose("loader.workers", workers, reason)
    precision = "bf16" if where.has_bf16 else "fp32"
    c.choose("run.precision", precision, f"the fastest safe one on this {where.device}")


def warnings(recipe: Recipe, facts: DataFacts) -> tuple[str, ...]:
    """Return what cannot work in a resolved recipe, each with what to do about it."""
    r = dict(flatten(recipe))
    steps = r["schedule.epochs"] * max(1, facts.num_train // r["optim.batch_size"])
    found = []
    decay = r["ema.decay"]
    if decay and 1 / (1 - decay) > steps:
        found.append(
            f"the moving average looks back {1 / (1 - decay):,.0f} steps, but the run has only "
            f"{steps:,}: it will hold on to the random start. Try --ema.decay auto"
        )
    size, stem = r["input.image_size"], _stem(r)
    if stem > 1 and size < 16 * stem and not r["model"].startswith("timm/"):
        found.append(
            f"a stem of stride {stem} leaves {size // stem} x {size // stem} positions of an image "
            f"of {size} pixels. Try --network.stem_stride {max(1, stem // 2)}"
        )
    usual = 4e-3 * math.sqrt(r["optim.batch_size"] / 4096)
    if r["optim.lr"] > 16 * usual:
        found.append(
            f"a learning rate of {r['optim.lr']:g} is far above the paper's 4e-3 at batch 4096 for "
            f"a batch of {r['optim.batch_size']}. Try --optim.lr {_round(4 * usual):g}"
        )
    if r["weights"] == "none" and 0 < _scale(r) <= 1e-4 and steps < 20_000:
        found.append(
            f"a layer scale that starts at {_scale(r):g} needs tens of thousands of steps to wake "
            f"up, the run has {steps:,}. Try --network.layer_scale_init 0"
        )
    if r["schedule.warmup_epochs"] >= r["schedule.epochs"]:
        found.append("the warm-up lasts as long as the run. Try --schedule.warmup_epochs auto")
    imbalance = max(facts.class_counts) / max(min(facts.class_counts), 1)
    if imbalance > 20 and r["loader.sampling"] == "uniform":
        found.append(
            f"the largest class has {imbalance:.0f} times the images of the smallest. "
            "Consider --loader.sampling balanced"
        )
    return tuple(found)


def _stem(r: dict[str, Any]) -> int:
    stride = r["network.stem_stride"]
    return 4 if stride == "auto" else int(stride)


def _scale(r: dict[str, Any]) -> float:
    scale = r["network.layer_scale_init"]
    return 0.0 if scale == "auto" else float(scale)


def _at_least(value: int, multiple: int) -> int:
    """Round up to a multiple."""
    return -(-value // multiple) * multiple


def _round(value: float) -> float:
    """Keep two digits."""
    return float(f"{value:.2g}")
