"""Photometric distortion of training images, for segmentation and detection."""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

BRIGHTNESS, CONTRAST, SATURATION, HUE = 32, (0.5, 1.5), (0.5, 1.5), 18 / 360


def distort(image: Tensor, rng: random.Random) -> Tensor:
    """Distort brightness, contrast, saturation and hue of an image (C, H, W) of uint8.

    Each with probability one half; contrast comes before or after the other two, as the detectors
    of 2016 had it.
    """
    if rng.random() < 0.5:
        delta = rng.randint(-BRIGHTNESS, BRIGHTNESS)
        image = (image.to(torch.int16) + delta).clamp(0, 255).to(torch.uint8)
    contrast_first, changes_contrast = rng.random() < 0.5, rng.random() < 0.5
    contrast = rng.uniform(*CONTRAST)
    if contrast_first and changes_contrast:
        image = scale_values(image, contrast)
    if image.shape[0] == 3 and rng.random() < 0.5:
        image = tv.adjust_saturation(image, rng.uniform(*SATURATION))
    if image.shape[0] == 3 and rng.random() < 0.5:
        image = tv.adjust_hue(image, rng.uniform(-HUE, HUE))
    if not contrast_first and changes_contrast:
        image = scale_values(image, contrast)
    return image


def scale_values(image: Tensor, factor: float) -> Tensor:
    """Multiply the values of an image (C, H, W) of uint8."""
    return (image.float() * factor).clamp(0, 255).to(torch.uint8)
