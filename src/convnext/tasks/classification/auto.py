"""Rules of `auto` for classification: settings chosen from data, weights and device.

Each rule is one line: the setting, the value, and the reason that the user reads. The rules for
small data come from the experiments in LOG.md; those for large data are the paper's.
"""

from __future__ import annotations

import math
from typing import Any, Never, cast

from convnext.models.config import GIVEN
from convnext.models.roadmap import stem_stride
from convnext.names import count_noun
from convnext.recipes.recipe import flatten
from convnext.recipes.resolve import (
    Choice,
    ResolveContext,
    Resolver,
    two_digits,
    warn_of_average,
    warn_of_batch,
)
from convnext.recipes.schema import Recipe, ResolvedRecipe
from convnext.tasks.classification.data import DataFacts
from convnext.tasks.classification.recipe import ClassificationRecipe

# A data set of at least this size takes the paper's recipe unchanged.
LARGE = 300_000
# Up to this many epochs from scratch, strong augmentation lowers accuracy (LOG.md).
SHORT = 40
TIMM_CONVOLUTIONAL = ("timm/resnet", "timm/resnext", "timm/convnext", "timm/regnet", "timm/swin_")


def resolve(
    recipe: Recipe, facts: DataFacts, context: ResolveContext
) -> tuple[ClassificationRecipe[Never], tuple[Choice, ...]]:
    """Return the recipe without any `auto`, and the choices with their reasons."""
    c = Resolver(recipe, context, num_train=facts.num_train, large=LARGE)
    c.choose_model()
    _choose_input(c, facts)
    _choose_network(c)
    _choose_batch(c, facts.num_train)
    _choose_schedule(c, facts.num_train)
    _choose_rate(c)
    _choose_augmentation(c, facts)
    _choose_average(c, facts.num_train)
    c.choose_execution(1 if c.large else max(1, round(c["schedule.epochs"] / 20)))
    resolved, choices = c.finish()
    return cast("ClassificationRecipe[Never]", resolved), choices


def _choose_input(c: Resolver, facts: DataFacts) -> None:
    c.choose_pixels(gray=facts.grayscale, range=facts.pixel_range)
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


def _choose_network(c: Resolver) -> None:
    if not c["model"].startswith(("convnext_", "roadmap/")):
        return
    c.choose_design()
    if c["model"].startswith("roadmap/"):
        _choose_step(c)
        return
    if c["model"].startswith("convnext_isotropic"):
        c.choose("network.stem_stride", 16, "the paper's")
        c.choose("network.stem", "patchify", "the paper's")
    _choose_stride(c)
    conv_pool = c["network.stem_stride"] in ("auto", 1, 2, 4)
    c.choose_backbone(0.1, "the paper's for ConvNeXt-T", conv_pool=conv_pool)
    c.choose("network.head_init_scale", 1.0 if c.scratch else 0.001, "the paper's")


def _choose_step(c: Resolver) -> None:
    """Choose the settings that a roadmap step does not fix, by the size of images and data."""
    _choose_stride(c)
    if c.scratch and not c.large:
        c.choose("network.init", "fan_in", "a std of 0.02 slows the first epochs")
        c.choose("network.drop_path_rate", 0.0, "small data trains faster without it")
    rate = 0.5 if c["model"].startswith("roadmap/resnet200/") else 0.1
    c.choose("network.drop_path_rate", rate, "the paper's for this regime")


def _choose_stride(c: Resolver) -> None:
    size = c["input.image_size"]
    if c.scratch and stem_stride(size) < 4:
        reason = f"a stride of 4 is too large for {size} pixels"
        c.choose("network.stem_stride", stem_stride(size), reason)


def _choose_batch(c: Resolver, n: int) -> None:
    if c.large:
        c.choose("optim.batch_size", 4096 if c.scratch else 512, "the paper's")
    size = 32 if n < 10_000 else 64 if n < 50_000 else 256
    batch = c.choose("optim.batch_size", min(size, n), "many steps beat large ones")
    parts = math.ceil(batch / (64 if c.on_cpu else 128))
    c.choose("optim.micro_batch_size", math.ceil(batch / parts), "images per backward pass")


def _choose_schedule(c: Resolver, n: int) -> None:
    if c.large:
        c.choose("schedule.epochs", 300 if c.scratch else 30, "the paper's")
        if not c.scratch:
            c.choose("schedule.warmup_epochs", 0, "the paper's")
        elif c["schedule.epochs"] >= 100:
            c.choose("schedule.warmup_epochs", 20, "the paper's")
        c.choose("schedule.progressive", False, "the paper's")
    low, high, images = (20, 200, 60_000) if c.scratch else (5, 30, 30_000)
    if c.scratch and c["input.image_size"] <= 16:
        low, images = 15, 20_000  # Digits train faster.
    epochs = min(high, max(low, round(images / n)))
    c.choose_length(epochs)
    # Networks with a fixed number of patches cannot take smaller images.
    any_size = c["model"].startswith(("convnext_", "roadmap/", *TIMM_CONVOLUTIONAL))
    isotropic = c["model"].startswith("convnext_isotropic")
    progressive = c.scratch and any_size and not isotropic and c["input.image_size"] >= 96
    c.choose(
        "schedule.progressive",
        progressive,
        "twice as many images per second" if progressive else "not for this network and size",
    )


def _choose_rate(c: Resolver) -> None:
    batch = c["optim.batch_size"]
    if c.large:
        c.choose("optim.lr", 4e-3 if c.scratch else 5e-5, "the paper's")
        c.choose("optim.weight_decay", 0.05 if c.scratch else 1e-8, "the paper's")
        c.choose("optim.clip_grad", 0.0, "the paper's")
    if c.scratch:
        c.choose("optim.lr", two_digits(scratch_rate(batch)), f"for {batch} images per step")
        c.choose("optim.weight_decay", 0.05, "the paper's")
        c.choose("optim.layer_decay", 1.0, "every layer is new")
    c.choose("optim.lr", two_digits(tuning_rate(batch)), "low, to keep the pretrained layers")
    c.choose("optim.weight_decay", 1e-8, "the paper's for fine-tuning")
    c.choose("optim.layer_decay", 0.8, "the paper's for fine-tuning")
    c.choose("optim.clip_grad", 1.0, "stabilizes small batches")


def _choose_augmentation(c: Resolver, facts: DataFacts) -> None:
    if max(facts.image_height, facts.image_width) <= 64 and facts.grayscale:
        c.choose("augment.hflip", 0.0, "small and gray: perhaps characters")
        c.choose("augment.scale", (0.7, 1.0), "characters fill the image")
        c.choose("augment.color_jitter", 0.0, "there are no colors")
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
            c.choose(f"augment.{name}", value, "the paper's")
        c.choose("loss.label_smoothing", 0.1, "the paper's")
    short = c["schedule.epochs"] <= SHORT
    epochs = count_noun(c["schedule.epochs"], "epoch")
    strength = f"{'mild' if short else 'moderate'}: {epochs}"
    c.choose("augment.scale", (0.6, 1.0) if short else (0.35, 1.0), strength)
    c.choose("augment.color_jitter", 0.1 if short else 0.3, strength)
    c.choose("loss.label_smoothing", 0.0 if short else 0.1, strength)
    for name, none in (("rand_augment", "none"), ("mixup", 0.0), ("cutmix", 0.0), ("erasing", 0.0)):
        c.choose(f"augment.{name}", none, "only for runs of hundreds of epochs")


def _choose_average(c: Resolver, n: int) -> None:
    num_steps = c["schedule.epochs"] * max(1, n // c["optim.batch_size"])
    if c.large and not c.scratch:
        c.choose("ema.decay", 0.0, "the paper's")
    if num_steps >= 50_000:
        c.choose("ema.decay", 0.9999, "the paper's")
    c.choose_average()


def warnings(recipe: ResolvedRecipe, facts: DataFacts) -> tuple[str, ...]:
    """Return warnings about settings of a resolved recipe that cannot work well, with the fix."""
    r = dict(flatten(recipe))
    steps = r["schedule.epochs"] * max(1, facts.num_train // r["optim.batch_size"])
    found = warn_of_average(r, steps)
    size, stem = r["input.image_size"], _stem(r)
    own_stem = r["model"].startswith(("timm/", GIVEN))  # Its stride is not known.
    if stem > 1 and size < 16 * stem and not own_stem:
        found.append(
            f"a stem of stride {stem} leaves only {size // stem} x {size // stem} positions of an "
            f"image of {size} pixels. Try --network.stem_stride {max(1, stem // 2)}"
        )
    batch = r["optim.batch_size"]
    usual = scratch_rate(batch) if r["weights"] == "none" else tuning_rate(batch)
    if r["optim.lr"] > 1.3 * usual:
        found.append(
            f"a learning rate of {r['optim.lr']:g} is high for a batch of {batch} (the paper's "
            f"4e-3 is for 4,096). Try --optim.lr {two_digits(usual):g}"
        )
    found += warn_of_batch(r, facts.num_train, 32)
    if r["weights"] == "none" and 0 < _scale(r) <= 1e-4 and steps < 20_000:
        found.append(
            f"a layer scale that starts at {_scale(r):g} needs tens of thousands of steps to grow, "
            f"but the run has {steps:,}. Try --network.layer_scale_init 0"
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


def scratch_rate(batch_size: int) -> float:
    """Return the peak learning rate from scratch: 2e-3 at batch size 32 (LOG.md), at most 4e-3."""
    return min(4e-3, 2e-3 * math.sqrt(batch_size / 32))


def tuning_rate(batch_size: int) -> float:
    """Return the peak learning rate for fine-tuning: 2e-4 at batch size 32, a judgment call."""
    return 2e-4 * math.sqrt(batch_size / 32)
