"""Augmentation of training images, when they are read and of batches on the device; the losses.

All randomness is a function of the seed and the draw, not of the order in which processes run.

Batches are mixed (mixup, cutmix) and rectangles erased on the device. The draws equal those of timm
(Mixup in batch mode, RandomErasing in pixel mode), as tests/tasks/classification/test_mix.py
proves. Unlike in timm, they come from explicit generators, and batches may have an odd size.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Never

import numpy as np
import torch
from numpy.random import mtrand
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from convnext.data.preprocessing import RESAMPLING, Preprocessing
from convnext.data.tensors import Box, Draw, normalize_batch, resize_crop
from convnext.tasks.classification.recipe import ClassificationAugment, LossRecipe

# Defaults of the papers: Lin et al. 2017; Ridnik et al. 2021, whose positives have the exponent 1.
FOCAL = {"gamma": 2.0, "alpha": 0.25}
ASYMMETRIC = {"gamma": 4.0, "margin": 0.05}
# Rare labels have at most this weight.
POS_WEIGHT = 10.0

# Cui et al. 2019: the effective number of images of a class is below 1 / (1 - BETA).
BETA = 0.999


class Balance:
    """What `loss.balance` changes in the cross-entropy.

    Args:
        kind: `loss` for weights by the effective number of images of a class (Cui et al. 2019),
            `logit` for logits adjusted by the log of its frequency (Menon et al. 2021); others
            change nothing.
        counts: Training images of each class.
        device: The device of the logits.
    """

    def __init__(
        self, kind: str = "none", counts: Sequence[int] = (), device: torch.device | str = "cpu"
    ) -> None:
        self.weights = effective_weights(counts).to(device) if kind == "loss" else None
        self.offsets = log_frequencies(counts).to(device) if kind == "logit" else None

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of logits and target distributions, both (N, num_classes)."""
        if self.offsets is not None:
            logits = logits + self.offsets
        return F.cross_entropy(logits, targets, weight=self.weights)


def effective_weights(counts: Sequence[int]) -> Tensor:
    """Return a weight per class: the inverse effective number of its images.

    Their mean over the training images is 1, so that the loss keeps its scale. A class without
    images has the largest weight of the others.
    """
    number = torch.tensor(counts, dtype=torch.float64)
    weights = (1 - BETA) / (1 - BETA**number)
    weights[number == 0] = weights[number > 0].max()
    return (weights * number.sum() / (weights * number).sum()).float()


def log_frequencies(counts: Sequence[int]) -> Tensor:
    """Return the log of the share of each class in training; a missing class counts one image."""
    number = torch.tensor(counts, dtype=torch.float64).clamp_min(1)
    return (number / number.sum()).log().float()


class Losses:
    """The named losses of a recipe, computed in fp32.

    Targets are distributions over the classes for `cross_entropy`, else one number in [0, 1] for
    each class; both already include mixing, and label smoothing.
    """

    def __init__(
        self,
        recipe: LossRecipe[Never],
        counts: Sequence[int],
        num_images: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare the loss.

        Args:
            recipe: The resolved recipe.
            counts: The number of training images with each label.
            num_images: The number of training images.
            device: The device of the logits.
        """
        self.name = recipe.name
        self.balance = Balance(recipe.balance, counts, device)
        if self.name == "bce":
            with_label = torch.tensor(counts, dtype=torch.float32)
            weights = (num_images - with_label) / with_label.clamp_min(1)
            limit = 1.0 if recipe.pos_weight == "auto" else recipe.pos_weight
            self.pos_weight = weights.clamp(1, limit).to(device)
        elif self.name == "focal":
            self.focal = {
                name: default if getattr(recipe, name) == "auto" else getattr(recipe, name)
                for name, default in FOCAL.items()
            }
        elif self.name == "asymmetric":
            self.gamma = ASYMMETRIC["gamma"] if recipe.gamma == "auto" else recipe.gamma
            self.margin = ASYMMETRIC["margin"] if recipe.margin == "auto" else recipe.margin

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the losses of images (N, C, H, W) and targets (N, num_classes)."""
        logits = model(images).float()
        if self.name == "cross_entropy":
            loss = self.balance.cross_entropy(logits, targets)
        elif self.name == "bce":
            loss = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.pos_weight)
        elif self.name == "focal":
            loss = sigmoid_focal_loss(logits, targets, reduction="mean", **self.focal)
        else:
            loss = asymmetric_loss(logits, targets, gamma=self.gamma, margin=self.margin)
        return {self.name: loss}


def asymmetric_loss(logits: Tensor, targets: Tensor, *, gamma: float, margin: float) -> Tensor:
    """Return the mean asymmetric loss of logits (N, K) and targets (N, K).

    Not timm's, which is a sum or a mean depending on its version.
    """
    probabilities = logits.sigmoid()
    without = (1 - probabilities + margin).clamp(max=1)
    log_likelihood = targets * F.logsigmoid(logits) + (1 - targets) * without.clamp_min(1e-8).log()
    right = targets * probabilities + (1 - targets) * without
    return -((1 - right) ** (targets + gamma * (1 - targets)) * log_likelihood).mean()


# Zhong et al., "Random Erasing Data Augmentation", with timm's range of areas.
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)


def smooth_one_hot(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return fp32 targets (N, num_classes), smoothed like CrossEntropyLoss(label_smoothing)."""
    one_hot = F.one_hot(labels.long(), num_classes).to(torch.float32)
    return one_hot * (1 - smoothing) + smoothing / num_classes


def targets_of_labels(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return fp32 targets (N, num_classes) of labels (N,), or of rows of targets."""
    if labels.ndim == 1:
        return smooth_one_hot(labels, num_classes, smoothing)
    targets = labels.to(torch.float32)
    return targets * (1 - smoothing) + smoothing / num_classes if smoothing else targets


def mix(
    images: Tensor,
    targets: Tensor,
    *,
    mixup: float,
    cutmix: float,
    prob: float,
    switch_prob: float,
    generator: np.random.RandomState,
) -> tuple[Tensor, Tensor]:
    """Blend (mixup) or patch (cutmix) the batch with itself in reverse order.

    Args:
        images: (N, C, H, W), changed in place.
        targets: (N, num_classes).
        mixup: Alpha of the beta distribution; 0 for none.
        cutmix: The same for cutmix.
        prob: Probability that the batch is mixed.
        switch_prob: Probability of cutmix if both are on.
        generator: The generator of all draws.
    """
    share, use_cutmix = 1.0, False
    if (mixup or cutmix) and generator.rand() < prob:
        use_cutmix = bool(generator.rand() < switch_prob) if mixup and cutmix else bool(cutmix)
        alpha = cutmix if use_cutmix else mixup
        share = float(generator.beta(alpha, alpha))
    if share == 1:
        return images, targets
    if use_cutmix:
        top, bottom, left, right = cutmix_box(images.shape[2], images.shape[3], share, generator)
        # flip copies, so that the patches come from the original batch.
        images[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right].flip(0)
        share = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    else:
        blend_reversed(images, share)
    return images, targets * share + targets.flip(0) * (1 - share)


def blend_reversed(images: Tensor, share: float) -> None:
    """Blend images (N, C, H, W), weighted by `share`, with the batch in reverse order, in place."""
    # On a CPU, two images at a time, so that they stay in the cache.
    size = 1 if images.device.type == "cpu" else max(1, len(images) // 2)
    half = (len(images) + 1) // 2  # In an odd batch, the middle image is its own partner.
    for start in range(0, half, size):
        stop = min(start + size, half)
        first = images[start:stop]
        last = images[len(images) - stop : len(images) - start]
        for_first, for_last = last.flip(0).mul_(1 - share), first.flip(0).mul_(1 - share)
        first.mul_(share).add_(for_first)
        if stop <= len(images) // 2:
            last.mul_(share).add_(for_last)


def cutmix_box(
    height: int, width: int, share: float, generator: np.random.RandomState
) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of a clipped box that leaves about `share` of the image."""
    side = math.sqrt(1 - share)
    cut_h, cut_w = int(height * side), int(width * side)
    y, x = int(generator.randint(0, height)), int(generator.randint(0, width))
    return (
        max(0, y - cut_h // 2),
        min(height, y + (cut_h + 1) // 2),
        max(0, x - cut_w // 2),
        min(width, x + (cut_w + 1) // 2),
    )


def erase(images: Tensor, *, prob: float, boxes: random.Random, noise: torch.Generator) -> Tensor:
    """Fill a rectangle of each image (N, C, H, W) with noise, in place, with probability `prob`.

    The images are normalized, so the noise also has mean 0 and standard deviation 1.
    """
    channels, height, width = images.shape[1:]
    for image in images:
        box = erase_box(height, width, prob, boxes)
        if box is not None:
            top, left, h, w = box
            patch = torch.empty((channels, h, w), device=images.device)
            image[:, top : top + h, left : left + w] = patch.normal_(generator=noise)
    return images


def erase_box(
    height: int, width: int, prob: float, boxes: random.Random
) -> tuple[int, int, int, int] | None:
    """Return (top, left, height, width) of a rectangle to erase, or None."""
    if boxes.random() > prob:
        return None
    for _ in range(10):
        area = boxes.uniform(*ERASED_AREA) * height * width
        aspect = math.exp(boxes.uniform(*map(math.log, ERASED_ASPECT)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            return boxes.randint(0, height - h), boxes.randint(0, width - w), h, w
    return None


_RAND_AUGMENT = re.compile(
    r"rand(-(m\d+|n\d+|p[\d.]+|mstd[\d.]+|mmax\d+|inc[01]|t(weights|3aw?)))*"
)

_TEMPORARY_GENERATOR = np.random.MT19937()


class ImageAugment:
    """Turns an image of any size into a training image of the network's size.

    Applies a random crop, flips, and then RandAugment or color jitter.
    """

    def __init__(self, recipe: ClassificationAugment[Never], preprocessing: Preprocessing) -> None:
        """Check and store a resolved recipe.

        Raises:
            ValueError: If a setting is `auto` or out of range.
        """
        check_augment(recipe)
        self.size = preprocessing.image_size
        self.interpolation = preprocessing.interpolation
        self.exact = recipe.exact
        self.scale = recipe.scale
        self.ratio = recipe.ratio
        self.hflip = recipe.hflip
        self.vflip = recipe.vflip
        # Both are for RGB and gray-scale only.
        is_usual = preprocessing.in_chans in (1, 3)
        self.rand_augment = _rand_augment(recipe, preprocessing) if is_usual else None
        # RandAugment replaces color jitter, as in timm.
        self.jitter: float = recipe.color_jitter if is_usual and not self.rand_augment else 0.0

    @property
    def short_side(self) -> int:
        """Short side at which an image is large enough for any crop."""
        return math.ceil(self.size * max(1.5, 1 / math.sqrt(self.scale[0])))

    def draw(self, rng: random.Random) -> Draw:
        """Return a function that draws the crop of an image of a given width and height."""
        return partial(random_box, scale=self.scale, ratio=self.ratio, rng=rng)

    def __call__(
        self, image: Image.Image | Tensor, rng: random.Random, box: Box | None = None
    ) -> Image.Image:
        """Return an image of the network's size, in the mode of the input.

        Args:
            image: An image, or its pixels as uint8 (C, H, W).
            rng: The generator of all draws.
            box: The crop, if it was drawn before.
        """
        if isinstance(image, Tensor):
            box = box or self.draw(rng)(image.shape[2], image.shape[1])
            image = resize_crop(image, box, self.size, self.interpolation)
        else:
            box = box or self.draw(rng)(*image.size)
            size = (self.size, self.size)
            image = image.resize(size, RESAMPLING[self.interpolation], box=box)
        if self.hflip and rng.random() < self.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.vflip and rng.random() < self.vflip:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        if self.rand_augment is not None:
            with seeded(rng.getrandbits(32)):
                return self.rand_augment(image)
        return color_jitter(image, self.jitter, rng) if self.jitter else image


def random_box(
    width: int,
    height: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: random.Random,
) -> Box:
    """Return (left, top, right, bottom) of a random crop, in fractional pixels.

    Without rounding, the crop shows the same part of an image at any size.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            # Rounding may put the sum just beyond the border, which Pillow refuses.
            return left, top, min(left + w, width), min(top + h, height)
    # Like torchvision: the whole image, or its center if its aspect ratio is out of range.
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, height * aspect), min(height, width / aspect)
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def color_jitter(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    """Change brightness, contrast and saturation in random order, each by up to `strength`."""
    changes: list[Callable[[Image.Image], Any]] = [ImageEnhance.Brightness, ImageEnhance.Contrast]
    if image.mode != "L":
        changes.append(ImageEnhance.Color)
    rng.shuffle(changes)
    for change in changes:
        image = change(image).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return image


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Temporarily seed the global generators of `random` and numpy, which RandAugment uses."""
    # Swapping numpy's generator takes 2 us; saving and restoring its state would take 90 us.
    before, numpy_before = random.getstate(), mtrand.get_bit_generator()
    mtrand.set_bit_generator(_TEMPORARY_GENERATOR)
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        mtrand.set_bit_generator(numpy_before)


class BatchAugment:
    """Turns pixels and labels into inputs of the loss: normalizes, erases, mixes, smooths.

    Seed, step and part determine all draws.
    """

    def __init__(
        self,
        recipe: ClassificationAugment[Never],
        *,
        num_classes: int,
        label_smoothing: float,
        preprocessing: Preprocessing,
        seed: int = 0,
    ) -> None:
        """Check and store a resolved recipe.

        Raises:
            ValueError: If a setting is `auto` or out of range.
        """
        check_augment(recipe)
        self.mixup = recipe.mixup
        self.cutmix = recipe.cutmix
        self.mix_prob = recipe.mix_prob
        self.switch_prob = recipe.mix_switch_prob
        self.erasing = recipe.erasing
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.preprocessing = preprocessing
        self.seed = seed

    def __call__(
        self, pixels: Tensor, labels: Tensor, *, step: int, part: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return images and targets, both fp32.

        Args:
            pixels: uint8 (N, C, H, W).
            labels: (N,), or rows of targets (N, num_classes).
            step: The optimizer step.
            part: Index of the micro batch in the step, over all devices.
        """
        images = normalize_batch(self.preprocessing, pixels)  # (N, C, H, W)
        targets = targets_of_labels(labels, self.num_classes, self.label_smoothing)
        if self.erasing:
            boxes = random.Random(f"erase {self.seed} {step} {part}")
            noise = torch.Generator(images.device).manual_seed(boxes.getrandbits(63))
            images = erase(images, prob=self.erasing, boxes=boxes, noise=noise)
        if self.mixup or self.cutmix:
            key = random.Random(f"mix {self.seed} {step} {part}").getrandbits(32)
            images, targets = mix(
                images,
                targets,
                mixup=self.mixup,
                cutmix=self.cutmix,
                prob=self.mix_prob,
                switch_prob=self.switch_prob,
                generator=np.random.RandomState(key),
            )
        return images, targets


def check_augment(recipe: ClassificationAugment[Never]) -> None:
    """Check the values of a resolved recipe.

    Raises:
        ValueError: If one is invalid; the message has the setting, its value and its range.
    """
    if "auto" in vars(recipe).values():
        raise ValueError("the augment recipe still has auto; resolve it first")
    for name in ("hflip", "vflip", "mix_prob", "mix_switch_prob", "erasing"):
        value = getattr(recipe, name)
        if not 0 <= value <= 1:
            raise ValueError(f"augment.{name} is {value}, but must be between 0 and 1")
    for name in ("color_jitter", "mixup", "cutmix"):
        value = getattr(recipe, name)
        if value < 0:
            raise ValueError(f"augment.{name} is {value}, but must be at least 0")
    low, high = recipe.scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"augment.scale is {low}, {high}, but must be two ascending fractions")
    low, high = recipe.ratio
    if not 0 < low <= high:
        raise ValueError(f"augment.ratio is {low}, {high}, but must be two ascending ratios")


def _rand_augment(
    recipe: ClassificationAugment[Never], preprocessing: Preprocessing
) -> Callable[[Image.Image], Image.Image] | None:
    from timm.data.auto_augment import rand_augment_transform

    policy = recipe.rand_augment
    if policy == "none":
        return None
    gray_levels = tuple(min(255, round(255 * m)) for m in preprocessing.mean)
    # The values of timm's own pipeline.
    settings = {
        "translate_const": int(preprocessing.image_size * 0.45),
        "img_mean": gray_levels if preprocessing.in_chans > 1 else gray_levels[0],
        "interpolation": RESAMPLING[preprocessing.interpolation],
    }
    if not _RAND_AUGMENT.fullmatch(policy):  # timm would ignore unknown parts.
        raise ValueError(
            f"augment.rand_augment is {policy!r}, but must be none or in timm's notation, such as "
            "rand-m9-mstd0.5-inc1"
        )
    try:
        transform: Callable[[Image.Image], Image.Image] = rand_augment_transform(policy, settings)
    except (AssertionError, ValueError, KeyError) as error:
        raise ValueError(
            f"augment.rand_augment is {policy!r}, which timm does not understand; "
            "try rand-m9-mstd0.5-inc1"
        ) from error
    for op in transform.ops:  # type: ignore[attr-defined]
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterize
        elif not recipe.exact:
            _speed_up(op)
    return transform


def _speed_up(op: Any) -> None:
    """Translate by whole pixels, and rotate and shear with bilinear instead of bicubic filters.

    At 224 pixels, each bicubic operation takes Pillow 2 to 3 ms on one core, more than decoding a
    JPEG file. This way a translation takes 0.05 ms, a rotation or shear 1.1 ms.
    """
    if op.name.startswith("Translate"):
        op.kwargs["resample"] = Image.Resampling.NEAREST
    elif op.kwargs["resample"] == Image.Resampling.BICUBIC:
        op.kwargs["resample"] = Image.Resampling.BILINEAR


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep some bits per channel.

    At full strength, timm's increasing policies keep no bits, which Pillow 13 refuses; earlier
    versions returned black.
    """
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)
