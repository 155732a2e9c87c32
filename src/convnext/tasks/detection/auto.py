"""What `auto` means for detection: settings chosen from the data, the weights and the device.

Every rule is a line that names the setting, the value and the reason in words for the user. The
rules for small data come from the experiments in LOG.md, those for large data are the paper's.
"""

from __future__ import annotations

import math

from convnext.data.objects import DataFacts
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
from convnext.tasks.detection.model.boxes import SCALE

# A data set this large takes the paper's recipe as it stands: COCO has 118,287 images.
LARGE = 20_000
# Augmentations and losses of classification, which mean nothing for objects.
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
STRIDE = 32
PAPER_SIDES = tuple(range(480, 801, 32))
# The smallest anchor is on the map of stride 4, the largest on that of stride 64.
FINEST, COARSEST = 4, 64


def resolve(
    recipe: Recipe, facts: DataFacts, where: Circumstances
) -> tuple[Recipe, tuple[Choice, ...]]:
    """Return the recipe without any `auto`, and what was chosen and why."""
    check_ranges(recipe)
    c = Chooser(recipe)
    on_cpu = where.device == "cpu"
    if on_cpu:
        c.choose("model", "mask_rcnn_convnext_atto", "the smallest of the family: there is no GPU")
    c.choose("model", "mask_rcnn_convnext_tiny", "the smallest network of the paper")
    scratch, large = recipe.weights == "none", facts.num_train >= LARGE
    _choose_input(c, facts, where, on_cpu=on_cpu, large=large)
    _choose_heads(c, facts, where, on_cpu=on_cpu, large=large)
    _choose_backbone(c, where, scratch=scratch, large=large)
    _choose_batch(c, facts.num_train, large=large, on_cpu=on_cpu)
    _choose_schedule(c, facts.num_train, large=large)
    _choose_rate(c, scratch=scratch, large=large)
    every = max(1, round(c["schedule.epochs"] / 5))
    c.choose("run.eval_every", every, "epochs between evaluations, which take long")
    choose_execution(c, where, facts.num_train, large=large)
    c.choose("run.compile", False, "every batch has another size")
    c.choose("augment.hflip", 0.5, "as in the paper")
    # Silently: nothing of detection reads them.
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
    if large and not on_cpu:
        size = c.choose("input.image_size", 800, "the paper's")
        c.choose("detect.policy", "multi_scale", "the paper's")
    most, why = (256, "what a CPU can afford") if on_cpu else (800, "as in the paper")
    size = c.choose("input.image_size", min(most, max(STRIDE, short)), why)
    c.choose("detect.policy", "large_scale_jitter", "variety, and batches of one size")
    sides = tuple(sorted({max(STRIDE, round(side * size / 800)) for side in PAPER_SIDES}))
    c.choose("detect.sides", sides, "three fifths of the size to all of it, as in the paper")
    long = max(facts.image_height, facts.image_width) * size / (short or 1)
    crop = 1024 if large and not on_cpu else math.ceil(min(long, 4 * size) / STRIDE) * STRIDE
    c.choose("detect.crop", crop, "the long side of the resized images")
    reason = "the usual range" if large else "mild: little data"
    c.choose("detect.jitter", (0.1, 2.0) if large else (0.6, 1.6), reason)


def _choose_heads(
    c: Chooser, facts: DataFacts, where: Circumstances, *, on_cpu: bool, large: bool
) -> None:
    known = where.weights_network
    for name in ("channels", "fc_dim", "anchor_scale"):
        if name in known:
            c.choose(f"detect.{name}", known[name], "as the weights have it")
    small = on_cpu and not large
    afford = "what a CPU can afford"
    c.choose("detect.channels", 64 if small else 256, afford if small else "the paper's")
    c.choose("detect.fc_dim", 256 if small else 1024, afford if small else "the paper's")
    scale, reason = anchor_scale(facts.object_sides, c["input.image_size"] or _short(facts))
    if large:
        scale, reason = SCALE, "the paper's"
    c.choose("detect.anchor_scale", scale, reason)
    many = facts.most_objects > 100
    most = 100 if not many else math.ceil(1.5 * facts.most_objects / 100) * 100
    reason = f"up to {facts.most_objects:,} on one image" if many else "as COCO counts"
    most = c.choose("detect.max_detections", most, reason)
    c.choose(
        "detect.num_proposals",
        max(300, 2 * most) if small else 1000,
        afford if small else "the paper's",
    )
    c.choose("detect.rpn_batch_size", 256, "the paper's")
    boxes = 128 if small else 512
    c.choose("detect.box_batch_size", boxes, afford if small else "the paper's")
    c.choose("detect.ignore_crowd", not large, "the paper's" if large else "nobody labelled them")


def anchor_scale(sides: tuple[float, float, float], size: int) -> tuple[float, str]:
    """Return the scale whose finest anchors fit small objects, and why.

    `sides` are tenth, half and nine tenths of the objects' sides, as shares of the image's short
    side, which the network sees at `size` pixels. An anchor learns of an object from half to twice
    its area on.
    """
    small = sides[0] * size
    for scale in (SCALE, SCALE / 2):
        if small >= 0.7 * FINEST * scale:
            break
    else:
        scale = SCALE / 4
    largest = COARSEST * scale
    reason = f"a tenth of the objects is below {small:.0f} pixels wide and high"
    if scale == SCALE:
        reason = f"anchors from {FINEST * scale:.0f} to {largest:.0f} pixels fit the objects"
    return scale, reason


def _choose_backbone(c: Chooser, where: Circumstances, *, scratch: bool, large: bool) -> None:
    for name in ("stem", "stem_stride", "norm", "layer_scale_init"):
        if name in where.weights_network:
            c.choose(f"network.{name}", where.weights_network[name], "as the weights have it")
    backbone = c["model"].removeprefix("cascade_").removeprefix("mask_rcnn_")
    if not backbone.startswith("convnext_"):
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
    size = 16 if large else 2 if on_cpu else 8
    reason = "the paper's" if large else "many steps matter more than large ones"
    batch = c.choose("optim.batch_size", min(size, n), reason)
    c.choose("optim.micro_batch_size", batch if on_cpu else min(batch, 2), "of one backward pass")


def _choose_schedule(c: Chooser, n: int, *, large: bool) -> None:
    if large:
        c.choose("schedule.epochs", 36, "the paper's")
    images = 6_000
    epochs = min(300, max(8, round(images / n)))
    epochs = c.choose("schedule.epochs", epochs, f"{epochs * n:,} images in all")
    c.choose("schedule.warmup_epochs", two_digits(epochs / 20), "a twentieth of the run")


def _choose_rate(c: Chooser, *, scratch: bool, large: bool) -> None:
    batch = c["optim.batch_size"]
    if scratch:
        c.choose("optim.lr", two_digits(scratch_rate(batch)), f"for {batch} images a step")
        c.choose("optim.layer_decay", 1.0, "every layer is new")
    c.choose("optim.lr", two_digits(1e-4 * math.sqrt(batch / 16)), "the paper's, by the batch")
    c.choose("optim.weight_decay", 0.05, "the paper's")
    c.choose("optim.layer_decay", 0.95, "the paper's")
    c.choose("optim.clip_grad", 0.0 if large else 1.0, "the paper's" if large else "small batches")


def warnings(recipe: Recipe, facts: DataFacts) -> tuple[str, ...]:
    """Return what cannot work well in a resolved recipe, each with what to do about it."""
    r = dict(flatten(recipe))
    found = []
    size = r["input.image_size"] or _short(facts)
    smallest = FINEST * r["detect.anchor_scale"]
    middle = facts.object_sides[1] * size
    if middle < smallest / 2:
        better = two_digits(middle / FINEST)
        found.append(
            f"half of the objects are below {middle:.0f} pixels wide and high, but the smallest "
            f"anchor has {smallest:.0f}: they will not be found. Try --detect.anchor_scale {better}"
            " or a larger --input.image_size"
        )
    largest = 2 * COARSEST * r["detect.anchor_scale"]
    if facts.object_sides[2] * size > largest:
        found.append(
            f"a tenth of the objects is above {facts.object_sides[2] * size:.0f} pixels wide and "
            f"high, but the largest anchor has {largest / 2:.0f}. Try a larger "
            "--detect.anchor_scale or a smaller --input.image_size"
        )
    if facts.most_objects > r["detect.max_detections"]:
        found.append(
            f"an image has {facts.most_objects:,} objects, but at most "
            f"{r['detect.max_detections']:,} are found. Try --detect.max_detections "
            f"{math.ceil(1.5 * facts.most_objects / 100) * 100}"
        )
    unused = [name for name, value in UNUSED.items() if r[name] != value]
    if unused:
        found.append(f"detection has no use for {', '.join(unused)}: nothing reads it")
    if r["loader.sampling"] != "uniform":
        found.append("images with objects have no class to balance: sampling is uniform")
    batch = r["optim.batch_size"]
    if batch > facts.num_train:
        found.append(
            f"a batch of {batch:,} is more than there are images: steps use {facts.num_train:,}. "
            f"Try --optim.batch_size {min(4, facts.num_train)}"
        )
    return tuple(found)


def scratch_rate(batch_size: int) -> float:
    """Return the peak rate from scratch: 1e-3 at 2 images (LOG.md), at most 2e-3."""
    return min(2e-3, 1e-3 * math.sqrt(batch_size / 2))


def _short(facts: DataFacts) -> int:
    return min(facts.image_height, facts.image_width)
