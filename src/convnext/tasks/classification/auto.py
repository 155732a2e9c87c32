"""What `auto` means for classification: settings chosen from the data, the weights and the device.

Every rule is a line that names the setting, the value and the reason in words for the user. The
rules for small data come from the experiments in LOG.md, those for large data are the paper's.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from typing import Any

from convnext.models.roadmap import stem_stride
from convnext.recipes.recipe import Recipe, check_ranges, flatten
from convnext.recipes.resolve import Choice, Chooser, Circumstances
from convnext.recipes.schema import IMAGENET_MEAN, IMAGENET_STD
from convnext.tasks.classification.data import DataFacts

# A data set this large takes the paper's recipe as it stands.
LARGE = 300_000
# Up to this many epochs from scratch, strong augmentation costs more than it brings (LOG.md).
SHORT = 40
CONVOLUTIONAL_PEERS = ("timm/resnet", "timm/resnext", "timm/convnext", "timm/regnet", "timm/swin_")
# Mean and standard deviation of the luminance of ImageNet's images.
GREY_MEAN, GREY_STD = (0.449,), (0.226,)


def resolve(
    recipe: Recipe, facts: DataFacts, where: Circumstances
) -> tuple[Recipe, tuple[Choice, ...]]:
    """Return the recipe without any `auto`, and what was chosen and why."""
    check_ranges(recipe)
    c = Chooser(recipe)
    if where.device == "cpu":
        c.choose("model", "convnext_atto", "the smallest of the family: there is no GPU")
    c.choose("model", "convnext_tiny", "the smallest network of the paper")
    scratch, large = recipe.weights == "none", facts.num_train >= LARGE
    _choose_input(c, facts, where)
    _choose_network(c, where, scratch=scratch, large=large)
    _choose_batch(c, facts.num_train, scratch=scratch, large=large, on_cpu=where.device == "cpu")
    _choose_schedule(c, facts.num_train, scratch=scratch, large=large)
    _choose_rate(c, scratch=scratch, large=large)
    _choose_augmentation(c, facts, scratch=scratch, large=large)
    _choose_ema(c, facts.num_train, scratch=scratch, large=large)
    _choose_execution(c, where, facts.num_train, large=large)
    return c.recipe, tuple(c.choices)


def _choose_input(c: Chooser, facts: DataFacts, where: Circumstances) -> None:
    known = where.preprocessing
    if known is not None:
        for name, value in asdict(known).items():
            c.choose(f"input.{name}", value, "as the weights were made for")
    grey = facts.greyscale and c["weights"] == "none"
    chans = c.choose(
        "input.in_chans", 1 if grey else 3, "no colour was seen" if grey else "colour images"
    )
    c.choose("input.mean", IMAGENET_MEAN if chans == 3 else GREY_MEAN, "of ImageNet")
    c.choose("input.std", IMAGENET_STD if chans == 3 else GREY_STD, "of ImageNet")
    short_side = min(facts.image_height, facts.image_width)
    if c["weights"] != "none":
        c.choose("input.image_size", 224, "the usual size of published weights")
    elif c["model"].startswith("convnext_isotropic"):
        size = max(128, min(224, short_side // 32 * 32))
        c.choose("input.image_size", size, "its patches are 16 pixels wide")
    elif short_side <= 64:
        c.choose("input.image_size", max(8, -(-short_side // 8) * 8), "the size of the images")
    elif where.device == "cpu":
        size = min(96, short_side // 32 * 32)
        c.choose("input.image_size", size, "what a CPU can afford")
    size = c.choose("input.image_size", min(224, short_side // 32 * 32), "as in the paper")
    c.choose("input.interpolation", "bicubic", "as in the paper")
    if size >= 384:
        c.choose("input.crop_pct", 1.0, "the whole image, as in the paper from 384 pixels up")
    if size <= 128:
        c.choose("input.crop_pct", 1.0, "small images have nothing to spare")
    c.choose("input.crop_pct", 0.875, "as in the paper")


def _choose_network(c: Chooser, where: Circumstances, *, scratch: bool, large: bool) -> None:
    if not c["model"].startswith(("convnext_", "roadmap/")):
        return
    for name in ("stem", "stem_stride", "norm", "layer_scale_init"):
        if name in where.weights_network:
            c.choose(f"network.{name}", where.weights_network[name], "as the weights have it")
    if c["model"].startswith("roadmap/"):
        _choose_rung(c, scratch=scratch, large=large)
        return
    size = c["input.image_size"]
    if c["model"].startswith("convnext_isotropic"):
        c.choose("network.stem_stride", 16, "the paper's")
        c.choose("network.stem", "patchify", "the paper's")
    if scratch and stem_stride(size) < 4:
        reason = f"a stride of 4 leaves too little of {size} pixels"
        c.choose("network.stem_stride", stem_stride(size), reason)
    c.choose("network.stem_stride", 4, "the paper's")
    if scratch and not large:
        c.choose("network.layer_scale_init", 0.0, "one of 1e-6 takes many epochs to wake up")
        c.choose("network.drop_path_rate", 0.0, "small data is learned faster without")
        c.choose("network.init", "fan_in", "a std of 0.02 takes many epochs to outgrow")
        c.choose("network.norm", "batch", "learns small data faster than layer norm")
        if c["network.stem_stride"] in ("auto", 1, 2, 4):
            c.choose("network.stem", "conv_pool", "learns small data faster than patches")
    c.choose("network.layer_scale_init", 1e-6, "the paper's")
    c.choose("network.drop_path_rate", 0.1, "the paper's for ConvNeXt-T")
    c.choose("network.norm", "layer", "the paper's")
    c.choose("network.stem", "patchify", "the paper's")
    c.choose("network.init", "paper", "the paper's" if scratch else "weights replace it")
    c.choose("network.head_init_scale", 1.0 if scratch else 0.001, "the paper's")


def _choose_rung(c: Chooser, *, scratch: bool, large: bool) -> None:
    """Leave the decisions of a rung as they are; the size of the images and the data decide."""
    stride = stem_stride(c["input.image_size"])
    if scratch and stride < 4:
        reason = f"a stride of 4 leaves too little of {c['input.image_size']} pixels"
        c.choose("network.stem_stride", stride, reason)
    if scratch and not large:
        c.choose("network.init", "fan_in", "a std of 0.02 takes many epochs to outgrow")
        c.choose("network.drop_path_rate", 0.0, "small data is learned faster without")
    rate = 0.5 if c["model"].startswith("roadmap/resnet200/") else 0.1
    c.choose("network.drop_path_rate", rate, "the paper's for this regime")


def _choose_batch(c: Chooser, n: int, *, scratch: bool, large: bool, on_cpu: bool) -> None:
    if large:
        c.choose("optim.batch_size", 4096 if scratch else 512, "the paper's")
    size = 32 if n < 10_000 else 64 if n < 50_000 else 256
    batch = c.choose("optim.batch_size", min(size, n), "many steps matter more than large ones")
    parts = math.ceil(batch / (64 if on_cpu else 128))
    c.choose("optim.micro_batch_size", math.ceil(batch / parts), "of one backward pass")


def _choose_schedule(c: Chooser, n: int, *, scratch: bool, large: bool) -> None:
    if large:
        c.choose("schedule.epochs", 300 if scratch else 30, "the paper's")
        if not scratch:
            c.choose("schedule.warmup_epochs", 0, "the paper's")
        elif c["schedule.epochs"] >= 100:
            c.choose("schedule.warmup_epochs", 20, "the paper's")
        c.choose("schedule.progressive", False, "the paper's")
    low, high, images = (20, 200, 60_000) if scratch else (5, 30, 30_000)
    if scratch and c["input.image_size"] <= 16:
        low, images = 15, 20_000  # Digits are learned sooner.
    epochs = min(high, max(low, round(images / n)))
    epochs = c.choose("schedule.epochs", epochs, f"{epochs * n:,} images in all")
    c.choose("schedule.warmup_epochs", _round(epochs / 20), "a twentieth of the run")
    # Networks of a fixed number of patches cannot take a smaller image.
    any_size = c["model"].startswith(("convnext_", "roadmap/", *CONVOLUTIONAL_PEERS))
    isotropic = c["model"].startswith("convnext_isotropic")
    progressive = scratch and any_size and not isotropic and c["input.image_size"] >= 96
    c.choose(
        "schedule.progressive",
        progressive,
        "twice the images in the same time" if progressive else "not for this network and size",
    )


def _choose_rate(c: Chooser, *, scratch: bool, large: bool) -> None:
    batch = c["optim.batch_size"]
    if large:
        c.choose("optim.lr", 4e-3 if scratch else 5e-5, "the paper's")
        c.choose("optim.weight_decay", 0.05 if scratch else 1e-8, "the paper's")
        c.choose("optim.clip_grad", 0.0, "the paper's")
    if scratch:
        c.choose("optim.lr", _round(scratch_rate(batch)), f"for {batch} images a step")
        c.choose("optim.weight_decay", 0.05, "the paper's")
        c.choose("optim.layer_decay", 1.0, "every layer is new")
    c.choose("optim.lr", _round(tuning_rate(batch)), "gentle: the layers are good already")
    c.choose("optim.weight_decay", 1e-8, "the paper's for fine-tuning")
    c.choose("optim.layer_decay", 0.8, "the paper's for fine-tuning")
    c.choose("optim.clip_grad", 1.0, "steadies small batches")


def _choose_augmentation(c: Chooser, facts: DataFacts, *, scratch: bool, large: bool) -> None:
    if max(facts.image_height, facts.image_width) <= 64 and facts.greyscale:
        c.choose("augment.hflip", 0.0, "small and grey: perhaps characters, which have a side")
        c.choose("augment.scale", (0.7, 1.0), "characters fill their image")
        c.choose("augment.color_jitter", 0.0, "there is no colour")
    c.choose("augment.hflip", 0.5, "as in the paper")
    if large:
        mixed = 1.0 if scratch else 0.0
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
    strength = f"{'mild' if short else 'moderate'}: {c['schedule.epochs']} epochs"
    c.choose("augment.scale", (0.6, 1.0) if short else (0.35, 1.0), strength)
    c.choose("augment.color_jitter", 0.1 if short else 0.3, strength)
    c.choose("loss.label_smoothing", 0.0 if short else 0.1, strength)
    for name, none in (("rand_augment", "none"), ("mixup", 0.0), ("cutmix", 0.0), ("erasing", 0.0)):
        c.choose(f"augment.{name}", none, "for runs of hundreds of epochs")


def _choose_ema(c: Chooser, n: int, *, scratch: bool, large: bool) -> None:
    num_steps = c["schedule.epochs"] * max(1, n // c["optim.batch_size"])
    if large and not scratch:
        c.choose("ema.decay", 0.0, "the paper's")
    if num_steps >= 50_000:
        c.choose("ema.decay", 0.9999, "the paper's")
    if num_steps < 200:
        c.choose("ema.decay", 0.0, f"{num_steps} steps are too few to average")
    horizon = max(10, num_steps // 20)
    c.choose("ema.decay", round(1 - 1 / horizon, 7), "looks back over a twentieth of the run")


def _choose_execution(c: Chooser, where: Circumstances, n: int, *, large: bool) -> None:
    every = max(1, round(c["schedule.epochs"] / 20))
    every = c.choose("run.eval_every", 1 if large else every, "epochs between evaluations")
    steps = max(1, round(every * max(1, n // c["optim.batch_size"])))
    c.choose("run.save_every", min(1000, steps), "steps that a crash can cost")
    c.choose("loader.cache", not large, "too many images" if large else "if the images fit")
    workers = 0 if where.device == "cpu" else min(16, max(2, (os.cpu_count() or 2) - 1))
    reason = "the network needs every core" if workers == 0 else "the cores beside the GPU"
    c.choose("loader.workers", workers, reason)
    precision = "bf16" if where.has_bf16 else "fp32"
    reason = "this device is fastest in it" if where.has_bf16 else "this device has no fast bf16"
    c.choose("run.precision", precision, reason)


def warnings(recipe: Recipe, facts: DataFacts) -> tuple[str, ...]:
    """Return what cannot work in a resolved recipe, each with what to do about it."""
    r = dict(flatten(recipe))
    steps = r["schedule.epochs"] * max(1, facts.num_train // r["optim.batch_size"])
    found = []
    decay = r["ema.decay"]
    if decay and 1 / (1 - decay) > steps:
        found.append(
            f"the moving average looks back {1 / (1 - decay):,.0f} steps, but the run has only "
            f"{steps:,}: it will lag behind the weights. Try --ema.decay auto"
        )
    size, stem = r["input.image_size"], _stem(r)
    if stem > 1 and size < 16 * stem and not r["model"].startswith("timm/"):
        found.append(
            f"a stem of stride {stem} leaves {size // stem} x {size // stem} positions of an image "
            f"of {size} pixels. Try --network.stem_stride {max(1, stem // 2)}"
        )
    batch = r["optim.batch_size"]
    usual = scratch_rate(batch) if r["weights"] == "none" else tuning_rate(batch)
    if r["optim.lr"] > 1.3 * usual:
        found.append(
            f"a learning rate of {r['optim.lr']:g} is high for a batch of {batch} (the paper's "
            f"4e-3 is for 4,096). Try --optim.lr {_round(usual):g}"
        )
    if batch > facts.num_train:
        found.append(
            f"a batch of {batch:,} is more than there are images: steps use {facts.num_train:,}. "
            f"Try --optim.batch_size {min(32, facts.num_train)}"
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


def scratch_rate(batch_size: int) -> float:
    """Return the peak rate from scratch: 2e-3 at 32 images (LOG.md), at most the paper's 4e-3."""
    return min(4e-3, 2e-3 * math.sqrt(batch_size / 32))


def tuning_rate(batch_size: int) -> float:
    """Return the peak rate for fine-tuning: 2e-4 at 32 images, a judgement."""
    return 2e-4 * math.sqrt(batch_size / 32)


def _round(value: float) -> float:
    """Keep two digits."""
    return float(f"{value:.2g}")
