"""Rules of `auto` for detection: settings chosen from the data, the weights and the device.

Each rule is one line: the setting, the value, and the reason that the user reads. The rules for
small data come from the experiments in LOG.md; those for large data are the paper's.
"""

from __future__ import annotations

import math
from typing import Never, cast

from convnext.data.objects import DataFacts
from convnext.recipes.recipe import flatten
from convnext.recipes.resolve import Choice, ResolveContext, Resolver, two_digits, warn_of_batch
from convnext.recipes.schema import Recipe, ResolvedRecipe
from convnext.tasks.detection.model.boxes import SCALE
from convnext.tasks.detection.model.detector import MaskRCNN
from convnext.tasks.detection.recipe import DetectionRecipe
from convnext.tasks.factory import dense_prefix

# A data set of at least this size takes the paper's recipe unchanged; COCO has 118,287 images.
LARGE = 20_000
STRIDE = 32
PAPER_SIDES = tuple(range(480, 801, 32))
# Strides of the maps with the smallest and the largest anchors.
FINEST, COARSEST = 4, 64


def resolve(
    recipe: Recipe, facts: DataFacts, context: ResolveContext
) -> tuple[DetectionRecipe[Never], tuple[Choice, ...]]:
    """Return the recipe without any `auto`, and the choices with their reasons."""
    c = Resolver(recipe, context, num_train=facts.num_train, large=LARGE)
    c.choose_model(MaskRCNN.prefix)
    _choose_input(c, facts)
    _choose_heads(c, facts)
    c.choose_design()
    if c["model"].removeprefix(dense_prefix(c["model"]) or "").startswith("convnext_"):
        c.choose_backbone(0.4 if c.large else 0.1, "the paper's" if c.large else "mild")
    c.choose_dense_batch(on_cpu=2, micro_batch_size=2)
    if c.large:
        c.choose("schedule.epochs", 36, "the paper's")
    c.choose_length(min(300, max(8, round(6_000 / facts.num_train))))
    c.choose_dense_rate(scratch_rate(c["optim.batch_size"]), layer_decay=0.95)
    every = max(1, round(c["schedule.epochs"] / 5))
    c.choose("run.eval_every", every, "epochs between evaluations, which are slow")
    c.choose_dense_execution(every)
    c.choose("run.compile", False, "image sizes vary between batches")
    c.choose("augment.hflip", 0.5, "as in the paper")
    resolved, choices = c.finish()
    return cast("DetectionRecipe[Never]", resolved), choices


def _choose_input(c: Resolver, facts: DataFacts) -> None:
    c.choose_pixels(gray=facts.grayscale, range=facts.pixel_range, own=("in_chans", "mean", "std"))
    c.choose("input.interpolation", "bilinear", "as in the paper")
    as_paper = c.large and not c.on_cpu
    if as_paper:
        c.choose("input.image_size", 800, "the paper's")
        c.choose("detect.policy", "multi_scale", "the paper's")
    limit, why = (256, "what a CPU can afford") if c.on_cpu else (800, "as in the paper")
    size = c.choose("input.image_size", min(limit, max(STRIDE, _short(facts))), why)
    c.choose("detect.policy", "large_scale_jitter", "variety, and batches of one size")
    sides = tuple(sorted({max(STRIDE, round(side * size / 800)) for side in PAPER_SIDES}))
    c.choose("detect.sides", sides, "60 to 100 % of the image size, as in the paper")
    long = max(facts.image_height, facts.image_width) * size / (_short(facts) or 1)
    crop = 1024 if as_paper else math.ceil(min(long, 4 * size) / STRIDE) * STRIDE
    c.choose("detect.crop", crop, "the long side of the resized images")
    reason = "the usual range" if c.large else "mild: little data"
    c.choose("detect.jitter", (0.1, 2.0) if c.large else (0.6, 1.6), reason)


def _choose_heads(c: Resolver, facts: DataFacts) -> None:
    c.choose_as_weights("detect", "channels", "fc_dim", "anchor_scale")
    small = c.on_cpu and not c.large
    reason = "what a CPU can afford" if small else "the paper's"
    c.choose("detect.channels", 64 if small else 256, reason)
    c.choose("detect.fc_dim", 256 if small else 1024, reason)
    scale, why = anchor_scale(facts.object_sides, c["input.image_size"] or _short(facts))
    if c.large:
        scale, why = SCALE, "the paper's"
    c.choose("detect.anchor_scale", scale, why)
    many = facts.max_objects > 100
    limit = 100 if not many else math.ceil(1.5 * facts.max_objects / 100) * 100
    why = f"up to {facts.max_objects:,} objects per image" if many else "COCO's limit"
    limit = c.choose("detect.max_detections", limit, why)
    c.choose("detect.num_proposals", max(300, 2 * limit) if small else 1000, reason)
    c.choose("detect.rpn_batch_size", 256, "the paper's")
    c.choose("detect.box_batch_size", 128 if small else 512, reason)
    why = "the paper's" if c.large else "their objects have no labels"
    c.choose("detect.ignore_crowd", not c.large, why)


def anchor_scale(sides: tuple[float, float, float], size: int) -> tuple[float, str]:
    """Return the scale whose finest anchors fit small objects, and why.

    `sides` are the 10th, 50th and 90th percentiles of the objects' sides, as fractions of the
    image's short side, which the network sees at `size` pixels. An anchor matches objects of half
    to twice its area.
    """
    small = sides[0] * size
    for scale in (SCALE, SCALE / 2):
        if small >= 0.7 * FINEST * scale:
            break
    else:
        scale = SCALE / 4
    largest = COARSEST * scale
    reason = f"10 % of the objects are smaller than {small:.0f} x {small:.0f} pixels"
    if scale == SCALE:
        reason = f"anchors from {FINEST * scale:.0f} to {largest:.0f} pixels fit the objects"
    return scale, reason


def warnings(recipe: ResolvedRecipe, facts: DataFacts) -> tuple[str, ...]:
    """Return warnings about settings of a resolved recipe that cannot work well, with the fix."""
    r = dict(flatten(recipe))
    found = []
    size = r["input.image_size"] or _short(facts)
    smallest = FINEST * r["detect.anchor_scale"]
    middle = facts.object_sides[1] * size
    if middle < smallest / 2:
        better = two_digits(middle / FINEST)
        found.append(
            f"half of the objects are smaller than {middle:.0f} x {middle:.0f} pixels, but the "
            f"smallest anchor is {smallest:.0f} pixels wide: they will not be found. Try "
            f"--detect.anchor_scale {better} or a larger --input.image_size"
        )
    largest = 2 * COARSEST * r["detect.anchor_scale"]
    if facts.object_sides[2] * size > largest:
        found.append(
            f"10 % of the objects are larger than {facts.object_sides[2] * size:.0f} pixels, but "
            f"the largest anchor is {largest / 2:.0f} pixels wide. Try a larger "
            "--detect.anchor_scale or a smaller --input.image_size"
        )
    if facts.max_objects > r["detect.max_detections"]:
        found.append(
            f"an image has {facts.max_objects:,} objects, but at most "
            f"{r['detect.max_detections']:,} are reported. Try --detect.max_detections "
            f"{math.ceil(1.5 * facts.max_objects / 100) * 100}"
        )
    return (*found, *warn_of_batch(r, facts.num_train, 4))


def scratch_rate(batch_size: int) -> float:
    """Return the peak learning rate from scratch: 1e-3 at batch size 2 (LOG.md), at most 2e-3."""
    return min(2e-3, 1e-3 * math.sqrt(batch_size / 2))


def _short(facts: DataFacts) -> int:
    return min(facts.image_height, facts.image_width)
