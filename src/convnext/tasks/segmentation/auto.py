"""How `auto` chooses segmentation settings from the data, the weights and the device.

Each rule names the setting, its value and the reason that the user sees. The rules for small data
come from the experiments in LOG.md; those for large data are the paper's.
"""

from __future__ import annotations

import math
from typing import Never, cast

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
from convnext.tasks.segmentation.data import DataFacts
from convnext.tasks.segmentation.heads import PREFIX
from convnext.tasks.segmentation.recipe import SegmentationRecipe
from convnext.tasks.segmentation.scores import default_stride

# A data set of at least this size takes the paper's recipe unchanged; ADE20K has 20,210 images.
LARGE = 10_000
# Crops are multiples of this: the stride of the coarsest map.
STRIDE = 32


def resolve(
    recipe: Recipe, facts: DataFacts, context: ResolveContext
) -> tuple[SegmentationRecipe[Never], tuple[Choice, ...]]:
    """Return the recipe without any `auto`, and the choices with their reasons."""
    c = Resolver(recipe, context, num_train=facts.num_train, large=LARGE)
    c.choose_model(PREFIX)
    _choose_input(c, facts)
    _choose_network(c)
    c.choose_dense_batch(on_cpu=4, micro_batch_size=8)
    _choose_schedule(c, facts.num_train)
    c.choose_dense_rate(scratch_rate(c["optim.batch_size"]), layer_decay=0.9)
    c.choose_dense_execution(max(1, round(c["schedule.epochs"] / 10)))
    c.choose("augment.hflip", 0.5, "as in the paper")
    resolved, choices = c.finish()
    return cast("SegmentationRecipe[Never]", resolved), choices


def _choose_input(c: Resolver, facts: DataFacts) -> None:
    c.choose_pixels(gray=facts.grayscale, range=facts.pixel_range, own=("in_chans", "mean", "std"))
    c.choose("input.interpolation", "bilinear", "as in the paper")
    short = min(facts.image_height, facts.image_width)
    limit, why = (192, "what a CPU can afford") if c.on_cpu else (512, "as in the paper")
    size = c.choose("input.image_size", min(limit, _multiple(short)), why)
    if c.large and not c.on_cpu:
        c.choose("segment.crop", 512, "the paper's")
    if c.on_cpu and size >= 6 * STRIDE:
        c.choose("segment.crop", _multiple(round(size * 5 / 6)), "faster, with more variety")
    c.choose("segment.crop", max(STRIDE, size or _multiple(short)), "the short side of the images")
    mild = c.on_cpu and not c.large and c.scratch
    reason = "mild: short" if mild else "the paper's"
    c.choose("segment.jitter", (0.75, 1.5) if mild else (0.5, 2.0), reason)
    reason = "the paper's" if c.large else "faster"
    c.choose("segment.mode", "slide" if c.large else "whole", reason)
    window = c.choose("segment.window", c["segment.crop"], "the size of training")
    c.choose("segment.stride", default_stride(window), "two thirds of the window")
    c.choose("segment.reduce_zero_label", facts.reduce_zero_label, "by the layout of the masks")


def _choose_network(c: Resolver) -> None:
    c.choose_design()
    c.choose_as_weights("segment", "channels")
    if c.on_cpu and not c.large:
        c.choose("segment.channels", 64, "what a CPU can afford")
    c.choose("segment.channels", 512, "the paper's")
    if c["model"].removeprefix(PREFIX).startswith("convnext_"):
        c.choose_backbone(0.4 if c.large else 0.1, "the paper's" if c.large else "mild")


def _choose_schedule(c: Resolver, n: int) -> None:
    if steps := c["schedule.steps"]:
        epochs = max(1, round(steps * c["optim.batch_size"] / n))
        c.choose("schedule.epochs", epochs, f"{steps:,} steps")
        if warmup_steps := c["schedule.warmup_steps"]:
            warmup = two_digits(warmup_steps * c["optim.batch_size"] / n)
            c.choose("schedule.warmup_epochs", warmup, f"{warmup_steps:,} steps")
        c.choose("schedule.warmup_epochs", two_digits(epochs / 20), "5 % of the run")
        return
    images = 160_000 * 16 if c.large else 12_000 if c.scratch else 8_000
    c.choose_length(min(400, max(8, round(images / n))))


def warnings(recipe: ResolvedRecipe, facts: DataFacts) -> tuple[str, ...]:
    """Return warnings about settings of a resolved recipe that cannot work well, with the fix."""
    r = dict(flatten(recipe))
    found = []
    if facts.num_classes == 1:
        found.append(
            "with a single class every prediction is right: add a class for the other pixels, such "
            "as background"
        )
    steps = r["schedule.steps"] or r["schedule.epochs"] * max(
        1, facts.num_train // r["optim.batch_size"]
    )
    found += warn_of_average(r, steps)
    if r["segment.mode"] == "slide" and r["segment.stride"] > r["segment.window"]:
        found.append(
            f"a stride of {r['segment.stride']} leaves gaps between windows of "
            f"{r['segment.window']}. Try --segment.stride {default_stride(r['segment.window'])}"
        )
    return (*found, *warn_of_batch(r, facts.num_train, 8))


def scratch_rate(batch_size: int) -> float:
    """Return the peak learning rate from scratch: 2e-3 at batch size 8 (LOG.md), at most 4e-3."""
    return min(4e-3, 2e-3 * math.sqrt(batch_size / 8))


def _multiple(pixels: int) -> int:
    """Round a size down to a multiple of the coarsest stride, which is also the minimum."""
    return max(STRIDE, pixels // STRIDE * STRIDE)
