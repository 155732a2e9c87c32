"""What `auto` means for segmentation: settings chosen from the data, the weights and the device.

Every rule is a line that names the setting, the value and the reason in words for the user. The
rules for small data come from the experiments in LOG.md, those for large data are the paper's.
"""

from __future__ import annotations

import math

from convnext.recipes.recipe import Recipe, check_ranges, flatten
from convnext.recipes.resolve import (
    GREY_MEAN,
    GREY_STD,
    Choice,
    Chooser,
    Circumstances,
    choose_execution,
    two_digits,
)
from convnext.recipes.schema import IMAGENET_MEAN, IMAGENET_STD
from convnext.tasks.segmentation.data import DataFacts
from convnext.tasks.segmentation.scores import default_stride

# A data set this large takes the paper's recipe as it stands: ADE20K has 20,210 images.
LARGE = 10_000
# Augmentations and losses of classification, which mean nothing for masks.
UNUSED = {
    "augment.scale": (1.0, 1.0),
    "augment.rand_augment": "none",
    "augment.color_jitter": 0.0,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "augment.erasing": 0.0,
    "loss.label_smoothing": 0.0,
    "network.head_init_scale": 1.0,
    "input.crop_pct": 1.0,
    "schedule.progressive": False,
}
# Multiple of which crops are: the coarsest map's stride.
STRIDE = 32


def resolve(
    recipe: Recipe, facts: DataFacts, where: Circumstances
) -> tuple[Recipe, tuple[Choice, ...]]:
    """Return the recipe without any `auto`, and what was chosen and why."""
    check_ranges(recipe)
    c = Chooser(recipe)
    on_cpu = where.device == "cpu"
    if on_cpu:
        c.choose("model", "upernet_convnext_atto", "the smallest of the family: there is no GPU")
    c.choose("model", "upernet_convnext_tiny", "the smallest network of the paper")
    scratch, large = recipe.weights == "none", facts.num_train >= LARGE
    _choose_input(c, facts, where, on_cpu=on_cpu, large=large)
    _choose_network(c, where, scratch=scratch, large=large, on_cpu=on_cpu)
    _choose_batch(c, facts.num_train, large=large, on_cpu=on_cpu)
    _choose_schedule(c, facts.num_train, scratch=scratch, large=large)
    _choose_rate(c, scratch=scratch, large=large)
    choose_execution(c, where, facts.num_train, large=large)
    c.choose("augment.hflip", 0.5, "as in the paper")
    # Silently: nothing of segmentation reads them.
    settled = dict(flatten(c.recipe))
    for name, value in UNUSED.items():
        if settled[name] == "auto":
            c.set(name, value)
    return c.recipe, tuple(c.choices)


def _choose_input(
    c: Chooser, facts: DataFacts, where: Circumstances, *, on_cpu: bool, large: bool
) -> None:
    known = where.preprocessing
    if known is not None:
        for name in ("in_chans", "mean", "std"):
            c.choose(f"input.{name}", getattr(known, name), "as the weights were made for")
    grey = facts.greyscale and c["weights"] == "none"
    chans = c.choose(
        "input.in_chans", 1 if grey else 3, "no colour was seen" if grey else "colour images"
    )
    c.choose("input.mean", IMAGENET_MEAN if chans == 3 else GREY_MEAN, "of ImageNet")
    c.choose("input.std", IMAGENET_STD if chans == 3 else GREY_STD, "of ImageNet")
    c.choose("input.interpolation", "bilinear", "as in the paper")
    short = min(facts.image_height, facts.image_width)
    most, why = (192, "what a CPU can afford") if on_cpu else (512, "as in the paper")
    size = c.choose("input.image_size", min(most, _multiple(short)), why)
    if large and not on_cpu:
        c.choose("segment.crop", 512, "the paper's")
    if on_cpu and size >= 6 * STRIDE:
        c.choose("segment.crop", _multiple(round(size * 5 / 6)), "less to compute, more variety")
    c.choose("segment.crop", max(STRIDE, size or _multiple(short)), "the short side of the images")
    mild = on_cpu and not large and c["weights"] == "none"
    c.choose(
        "segment.jitter",
        (0.75, 1.5) if mild else (0.5, 2.0),
        "mild: short" if mild else "the paper's",
    )
    c.choose("segment.mode", "slide" if large else "whole", "the paper's" if large else "is faster")
    window = c.choose("segment.window", c["segment.crop"], "the size of training")
    c.choose("segment.stride", default_stride(window), "two thirds of the window")
    c.choose("segment.reduce_zero_label", facts.reduce_zero_label, "by the layout of the masks")


def _choose_network(
    c: Chooser, where: Circumstances, *, scratch: bool, large: bool, on_cpu: bool
) -> None:
    for name in ("stem", "stem_stride", "norm", "layer_scale_init"):
        if name in where.weights_network:
            c.choose(f"network.{name}", where.weights_network[name], "as the weights have it")
    if "channels" in where.weights_network:
        c.choose("segment.channels", where.weights_network["channels"], "as the weights have it")
    if on_cpu and not large:
        c.choose("segment.channels", 64, "what a CPU can afford")
    c.choose("segment.channels", 512, "the paper's")
    if not c["model"].removeprefix("upernet_").startswith("convnext_"):
        return
    c.choose("network.stem_stride", 4, "the paper's")
    if scratch and not large:
        c.choose("network.layer_scale_init", 0.0, "one of 1e-6 takes many epochs to wake up")
        c.choose("network.drop_path_rate", 0.0, "small data is learned faster without")
        c.choose("network.init", "fan_in", "a std of 0.02 takes many epochs to outgrow")
        c.choose("network.norm", "batch", "learns small data faster than layer norm")
        c.choose("network.stem", "conv_pool", "learns small data faster than patches")
    c.choose("network.layer_scale_init", 1e-6, "the paper's")
    c.choose("network.drop_path_rate", 0.4 if large else 0.1, "the paper's" if large else "mild")
    c.choose("network.norm", "layer", "the paper's")
    c.choose("network.stem", "patchify", "the paper's")
    c.choose("network.init", "paper", "the paper's" if scratch else "weights replace it")


def _choose_batch(c: Chooser, n: int, *, large: bool, on_cpu: bool) -> None:
    size = 16 if large else 4 if on_cpu else 8
    reason = "the paper's" if large else "many steps matter more than large ones"
    batch = c.choose("optim.batch_size", min(size, n), reason)
    c.choose("optim.micro_batch_size", batch if on_cpu else min(batch, 8), "of one backward pass")


def _choose_schedule(c: Chooser, n: int, *, scratch: bool, large: bool) -> None:
    if steps := c["schedule.steps"]:
        epochs = max(1, round(steps * c["optim.batch_size"] / n))
        c.choose("schedule.epochs", epochs, f"{steps:,} steps")
        if told := c["schedule.warmup_steps"]:
            warmup = two_digits(told * c["optim.batch_size"] / n)
            c.choose("schedule.warmup_epochs", warmup, f"{told:,} steps")
        c.choose("schedule.warmup_epochs", two_digits(epochs / 20), "a twentieth of the run")
        return
    images = 160_000 * 16 if large else 12_000 if scratch else 8_000
    epochs = min(400, max(8, round(images / n)))
    epochs = c.choose("schedule.epochs", epochs, f"{epochs * n:,} images in all")
    c.choose("schedule.warmup_epochs", two_digits(epochs / 20), "a twentieth of the run")


def _choose_rate(c: Chooser, *, scratch: bool, large: bool) -> None:
    batch = c["optim.batch_size"]
    if scratch:
        c.choose("optim.lr", two_digits(scratch_rate(batch)), f"for {batch} images a step")
        c.choose("optim.layer_decay", 1.0, "every layer is new")
    c.choose("optim.lr", two_digits(1e-4 * math.sqrt(batch / 16)), "the paper's, by the batch")
    c.choose("optim.weight_decay", 0.05, "the paper's")
    c.choose("optim.layer_decay", 0.9, "the paper's")
    c.choose("optim.clip_grad", 0.0 if large else 1.0, "the paper's" if large else "small batches")


def warnings(recipe: Recipe, facts: DataFacts) -> tuple[str, ...]:
    """Return what cannot work well in a resolved recipe, each with what to do about it."""
    r = dict(flatten(recipe))
    found = []
    if facts.num_classes == 1:
        found.append(
            "with one class alone every pixel is right, whatever the network does: give what is "
            "not it a class of its own, such as background"
        )
    steps = r["schedule.steps"] or r["schedule.epochs"] * max(
        1, facts.num_train // r["optim.batch_size"]
    )
    decay = r["ema.decay"]
    if decay and 1 / (1 - decay) > steps:
        found.append(
            f"the moving average looks back {1 / (1 - decay):,.0f} steps, but the run has only "
            f"{steps:,}: it will lag behind the weights. Try --ema.decay auto"
        )
    if r["segment.mode"] == "slide" and r["segment.stride"] > r["segment.window"]:
        found.append(
            f"a stride of {r['segment.stride']} leaves gaps between windows of "
            f"{r['segment.window']}. Try --segment.stride {default_stride(r['segment.window'])}"
        )
    unused = [name for name, value in UNUSED.items() if r[name] != value]
    if unused:
        found.append(f"segmentation has no use for {', '.join(unused)}: nothing reads it")
    if r["loader.sampling"] != "uniform":
        found.append(
            "images with masks have no class to balance: sampling is uniform. Consider "
            "--segment.class_weights balanced"
        )
    batch = r["optim.batch_size"]
    if batch > facts.num_train:
        found.append(
            f"a batch of {batch:,} is more than there are images: steps use {facts.num_train:,}. "
            f"Try --optim.batch_size {min(8, facts.num_train)}"
        )
    return tuple(found)


def scratch_rate(batch_size: int) -> float:
    """Return the peak rate from scratch: 2e-3 at 8 images (LOG.md), at most the paper's 4e-3."""
    return min(4e-3, 2e-3 * math.sqrt(batch_size / 8))


def _multiple(pixels: int) -> int:
    """Return the largest multiple of the coarsest stride up to a size, and no less than one."""
    return max(STRIDE, pixels // STRIDE * STRIDE)
