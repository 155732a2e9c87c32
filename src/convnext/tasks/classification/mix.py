"""Losses, and augmentation of whole batches on the device: mixup, cutmix, random erasing.

The draws equal those of timm (Mixup in batch mode, RandomErasing in pixel mode), as
tests/tasks/classification/test_mix.py proves. Unlike in timm, they come from explicit generators,
and batches may have an odd size.
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def losses(model: nn.Module, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return the named losses of images (N, C, H, W) and target distributions (N, num_classes).

    The targets already include mixing and label smoothing. The loss is computed in fp32.
    """
    return {"cross_entropy": F.cross_entropy(model(images).float(), targets)}


# Zhong et al., "Random Erasing Data Augmentation", with timm's range of areas.
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)


def smooth_one_hot(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return fp32 targets (N, num_classes), smoothed like CrossEntropyLoss(label_smoothing)."""
    one_hot = F.one_hot(labels.long(), num_classes).to(torch.float32)
    return one_hot * (1 - smoothing) + smoothing / num_classes


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
