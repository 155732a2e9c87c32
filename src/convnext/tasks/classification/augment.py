"""What happens to training images only: to each one as it is read, and to the batch on its device.

All randomness is a function of the seed and of what is drawn, never of the order in which processes
happen to work.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Never

import numpy as np
import torch
from numpy.random import mtrand
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from convnext.data.crops import Box, Draw, resize_crop
from convnext.data.preprocessing import RESAMPLING, Preprocessing
from convnext.data.tensors import normalize_batch
from convnext.tasks.classification.mix import erase, mix, smooth_one_hot
from convnext.tasks.classification.recipe import ClassificationAugment

_RAND_AUGMENT = re.compile(
    r"rand(-(m\d+|n\d+|p[\d.]+|mstd[\d.]+|mmax\d+|inc[01]|t(weights|3aw?)))*"
)

_LENT = np.random.MT19937()


class ImageAugment:
    """From an image of any size to a training image of the network's size, by a given generator.

    A random crop, flips, then RandAugment or else colour jitter.
    """

    def __init__(self, recipe: ClassificationAugment[Never], preprocessing: Preprocessing) -> None:
        """Prepare a resolved recipe.

        Raises:
            ValueError: If a setting reads `auto`, or cannot be.
        """
        check_augment(recipe)
        self.size = preprocessing.image_size
        self.interpolation = preprocessing.interpolation
        self.exact = recipe.exact
        self.scale = recipe.scale
        self.ratio = recipe.ratio
        self.hflip = recipe.hflip
        self.vflip = recipe.vflip
        self.rand_augment = _rand_augment(recipe, preprocessing)
        # RandAugment replaces colour jitter, as in timm.
        self.jitter: float = 0.0 if self.rand_augment else recipe.color_jitter

    @property
    def short_side(self) -> int:
        """The short side of an image that is large enough: any crop then has its pixels."""
        return math.ceil(self.size * max(1.5, 1 / math.sqrt(self.scale[0])))

    def draw(self, rng: random.Random) -> Draw:
        """Return what draws the crop of an image of a given width and height."""
        return partial(random_box, scale=self.scale, ratio=self.ratio, rng=rng)

    def __call__(
        self, image: Image.Image | Tensor, rng: random.Random, box: Box | None = None
    ) -> Image.Image:
        """Return an image of the network's size, in the mode of the given one.

        Args:
            image: Any image, or pixels of one, uint8 (C, H, W).
            rng: Where all draws come from.
            box: The crop, where it was drawn already.
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
    """Return (left, top, right, bottom) of a random crop, in fractions of pixels.

    Without rounding, the crop is the same part of an image whether it was reduced before or not.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            # The sum may round to just beyond the border, which Pillow refuses.
            return left, top, min(left + w, width), min(top + h, height)
    # As torchvision: the whole image, or its centre where it is too long or too high.
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
    """Lend a seed to the global generators of `random` and numpy, which RandAugment draws from."""
    # Numpy's generator is swapped: to copy its state and put it back takes 90 us, this takes 2 us.
    before, numpy_before = random.getstate(), mtrand.get_bit_generator()
    mtrand.set_bit_generator(_LENT)
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        mtrand.set_bit_generator(numpy_before)


class BatchAugment:
    """From pixels and labels to what the loss consumes: normalised, erased, mixed, smoothed.

    It draws from generators of its own, which follow from the seed, the step and the part.
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
        """Prepare a resolved recipe.

        Raises:
            ValueError: If a setting reads `auto`, or cannot be.
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
            labels: (N,).
            step: The optimizer step.
            part: Which micro batch of the step this is, over all devices.
        """
        images = normalize_batch(self.preprocessing, pixels)  # (N, C, H, W)
        targets = smooth_one_hot(labels, self.num_classes, self.label_smoothing)  # (N, num_classes)
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
        ValueError: Naming the setting, its value and what it can be.
    """
    if "auto" in vars(recipe).values():
        raise ValueError("the augment recipe still reads auto; resolve it first")
    for name in ("hflip", "vflip", "mix_prob", "mix_switch_prob", "erasing"):
        value = getattr(recipe, name)
        if not 0 <= value <= 1:
            raise ValueError(f"augment.{name} is {value}, but is a probability between 0 and 1")
    for name in ("color_jitter", "mixup", "cutmix"):
        value = getattr(recipe, name)
        if value < 0:
            raise ValueError(f"augment.{name} is {value}, but must be 0 or more")
    low, high = recipe.scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"augment.scale is {low}, {high}, but must be two shares that rise to 1")
    low, high = recipe.ratio
    if not 0 < low <= high:
        raise ValueError(f"augment.ratio is {low}, {high}, but must be two ratios that rise")


def _rand_augment(
    recipe: ClassificationAugment[Never], preprocessing: Preprocessing
) -> Callable[[Image.Image], Image.Image] | None:
    from timm.data.auto_augment import rand_augment_transform

    policy = recipe.rand_augment
    if policy == "none":
        return None
    gray_levels = tuple(min(255, round(255 * m)) for m in preprocessing.mean)
    # As timm's own pipeline sets them.
    settings = {
        "translate_const": int(preprocessing.image_size * 0.45),
        "img_mean": gray_levels if preprocessing.in_chans > 1 else gray_levels[0],
        "interpolation": RESAMPLING[preprocessing.interpolation],
    }
    if not _RAND_AUGMENT.fullmatch(policy):  # timm skips over what it does not know.
        raise ValueError(
            f"augment.rand_augment is {policy!r}, but must be none, or timm's notation such as "
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
            _quicken(op)
    return transform


def _quicken(op: Any) -> None:
    """Shift by whole pixels, turn and shear by the nearest four pixels and not the nearest 16.

    Pillow takes 2 to 3 ms on a core for each of these at 224 pixels if it is cubic, more than for
    a whole JPEG file; so it takes 0.05 to shift, and 1.1 to turn or shear.
    """
    if op.name.startswith("Translate"):
        op.kwargs["resample"] = Image.Resampling.NEAREST
    elif op.kwargs["resample"] == Image.Resampling.BICUBIC:
        op.kwargs["resample"] = Image.Resampling.BILINEAR


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep some bits per channel.

    The full strength of timm's increasing policies keeps none, which Pillow 13 refuses; earlier
    versions returned black.
    """
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)
