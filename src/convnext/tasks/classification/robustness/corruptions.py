"""The fifteen corruptions of ImageNet-C, made on the fly for images of any size.

Kinds, order and strengths are those of Hendrycks and Dietterich, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations" (2019), whose strengths are for 224 pixels:
lengths in pixels shrink with smaller images. Frost lays a drawn texture of crystals over the image,
where the authors lay photographs; fog and snow are drawn by the same kind of noise as theirs. So
figures are comparable with each other, and not with those of the published files.

Every function maps floats (H, W, 3) in [0, 1] to such, and draws from the generator it is given.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
SEVERITIES = (1, 2, 3, 4, 5)
SIDE = 224


def corrupt(pixels: Pixels, name: str, severity: int, rng: Generator) -> Pixels:
    """Return a corrupted image.

    Args:
        pixels: (H, W, 3), or (H, W, 1) for greyscale, which stays grey.
        name: One of `CORRUPTIONS`.
        severity: 1 to 5.
        rng: Where randomness comes from.

    Raises:
        ValueError: If there is no such corruption or severity.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"there is no corruption {name!r}; there are {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"a severity is one of 1 to 5, not {severity}")
    chans = pixels.shape[2]
    image = np.repeat(pixels, 3, axis=2) if chans == 1 else pixels
    made = CORRUPTIONS[name](image / 255.0, severity - 1, rng)
    if chans == 1:
        made = made.mean(axis=2, keepdims=True)
    return (np.clip(made, 0.0, 1.0) * 255.0).round().astype(np.uint8)


def gaussian_noise(x: Floats, s: int, rng: Generator) -> Floats:
    """Add normal noise."""
    return x + rng.normal(size=x.shape, scale=(0.08, 0.12, 0.18, 0.26, 0.38)[s])


def shot_noise(x: Floats, s: int, rng: Generator) -> Floats:
    """Count photons: Poisson noise."""
    photons = (60, 25, 12, 5, 3)[s]
    return rng.poisson(x * photons) / photons


def impulse_noise(x: Floats, s: int, rng: Generator) -> Floats:
    """Set some values to black or white."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[s]
    drawn = rng.random(x.shape)
    return np.where(drawn < share / 2, 0.0, np.where(drawn < share, 1.0, x))


def defocus_blur(x: Floats, s: int, _rng: Generator) -> Floats:
    """Blur by a disk, as a lens out of focus."""
    radius, alias = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[s]
    return _convolve(x, _disk(_scaled(radius, x, 0.6), alias))


def glass_blur(x: Floats, s: int, rng: Generator) -> Floats:
    """Swap neighbouring pixels, as frosted glass."""
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[s]
    reach = max(1, round(_scaled(reach, x)))
    x = _blur(x, _scaled(sigma, x, 0.3))
    height, width = x.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    for _ in range(rounds):
        shift = rng.integers(-reach, reach + 1, size=(2, height, width))
        x = x[np.clip(rows + shift[0], 0, height - 1), np.clip(columns + shift[1], 0, width - 1)]
    return _blur(x, _scaled(sigma, x, 0.3))


def motion_blur(x: Floats, s: int, rng: Generator) -> Floats:
    """Blur along a line at a random angle of up to 45 degrees."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[s]
    angle = rng.uniform(-np.pi / 4, np.pi / 4)
    return _convolve(x, _line(_scaled(radius, x, 1.0), _scaled(sigma, x, 0.5), angle))


def zoom_blur(x: Floats, s: int, _rng: Generator) -> Floats:
    """Average the image with enlarged ones, as moving towards it."""
    end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[s]
    factors = np.arange(1.0, end, step)
    return (x + sum(_enlarged(x, factor) for factor in factors)) / (len(factors) + 1)


def snow(x: Floats, s: int, rng: Generator) -> Floats:
    """Let snow fall: bright flakes, blurred along their way, and a paler image."""
    mean, scale, zoom, threshold, radius, sigma, keep = (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[s]
    flakes = _enlarged(rng.normal(mean, scale, x.shape[:2])[..., None], zoom)
    flakes = np.where(flakes < threshold, 0.0, np.clip(flakes, 0, 1))
    angle = rng.uniform(-3 * np.pi / 4, -np.pi / 4)
    fallen = _convolve(flakes, _line(_scaled(radius, x, 1.0), _scaled(sigma, x, 0.5), angle))
    pale = np.maximum(x, x.mean(axis=2, keepdims=True) * 1.5 + 0.5)
    covered: Floats = keep * x + (1 - keep) * pale + fallen
    return covered + np.flip(fallen, (0, 1))


def frost(x: Floats, s: int, rng: Generator) -> Floats:
    """Lay a drawn texture of crystals over the image."""
    image, ice = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[s]
    size = max(x.shape[:2])
    ridges = 1 - np.abs(2 * _plasma(size, 1.6, rng) - 1)
    needles = _blur(rng.random((size, size, 1)), 0.7)[..., 0]
    crystals = np.clip(0.75 * ridges**3 + 0.5 * needles * ridges, 0, 1)
    tint = np.array([0.85, 0.93, 1.0])
    frozen: Floats = image * x + ice * (crystals[: x.shape[0], : x.shape[1], None] * tint)
    return frozen


def fog(x: Floats, s: int, rng: Generator) -> Floats:
    """Add a plasma of fog, and keep the range."""
    strength, decay = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[s]
    most = x.max()
    cloud = _plasma(max(x.shape[:2]), decay, rng)[: x.shape[0], : x.shape[1], None]
    misty: Floats = (x + strength * cloud) * most / (most + strength)
    return misty


def brightness(x: Floats, s: int, _rng: Generator) -> Floats:
    """Raise the value of HSV, which is the largest channel."""
    value = x.max(axis=2, keepdims=True)
    raised = np.clip(value + (0.1, 0.2, 0.3, 0.4, 0.5)[s], 0, 1)
    # A black pixel has no colour to scale.
    bright: Floats = np.where(value > 0, x * raised / np.maximum(value, 1e-9), raised)
    return bright


def contrast(x: Floats, s: int, _rng: Generator) -> Floats:
    """Draw all values towards the mean of their channel."""
    mean = x.mean(axis=(0, 1), keepdims=True)
    flat: Floats = (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[s] + mean
    return flat


def elastic_transform(x: Floats, s: int, rng: Generator) -> Floats:
    """Stretch the image: a random affine map, then local displacements."""
    alpha, sigma, affine = (
        (2.0, 0.7, 0.1),
        (2.0, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    )[s]
    height, width = x.shape[:2]
    side = min(height, width) * 244 / SIDE
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    # Three corners move: an affine map has six numbers.
    square = np.array([[-1, -1], [1, -1], [-1, 1]]) * min(height, width) / 3
    moved = square + rng.uniform(-affine * side, affine * side, square.shape)
    matrix = np.linalg.solve(np.c_[moved, np.ones(3)], square)
    centred = np.stack([columns - width / 2, rows - height / 2, np.ones_like(rows)], axis=-1)
    source = centred @ matrix
    shift = [
        ndimage.gaussian_filter(rng.uniform(-1, 1, (height, width)), sigma * side, mode="reflect")
        * alpha
        * side
        for _ in range(2)
    ]
    places = [source[..., 1] + height / 2 + shift[0], source[..., 0] + width / 2 + shift[1]]
    bands = [ndimage.map_coordinates(x[..., c], places, order=1, mode="reflect") for c in range(3)]
    return np.stack(bands, axis=-1)


def pixelate(x: Floats, s: int, _rng: Generator) -> Floats:
    """Shrink the image, and enlarge it without smoothing."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[s]
    height, width = x.shape[:2]
    small = (max(1, round(width * share)), max(1, round(height * share)))
    image = Image.fromarray((x * 255).round().astype(np.uint8)).resize(small, Image.Resampling.BOX)
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) / 255.0


def jpeg_compression(x: Floats, s: int, _rng: Generator) -> Floats:
    """Save as a JPEG of low quality."""
    buffer = io.BytesIO()
    image = Image.fromarray((x * 255).round().astype(np.uint8))
    image.save(buffer, "JPEG", quality=(25, 18, 15, 10, 7)[s])
    return np.asarray(Image.open(buffer)) / 255.0


CORRUPTIONS: dict[str, Callable[[Floats, int, Generator], Floats]] = {
    function.__name__: function
    for function in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        snow,
        frost,
        fog,
        brightness,
        contrast,
        elastic_transform,
        pixelate,
        jpeg_compression,
    )
}


def _scaled(length: float, x: Floats, least: float = 0.0) -> float:
    """Return a length that is meant for 224 pixels for an image of this size."""
    return float(max(least, length * min(1.0, min(x.shape[:2]) / SIDE)))


def _blur(x: Floats, sigma: float) -> Floats:
    return np.asarray(ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest"))


def _disk(radius: float, alias: float) -> Floats:
    reach = math.ceil(radius) + 1
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    # The edge is soft over one pixel, so that a radius below one is something too.
    disk = np.clip(radius + 0.5 - np.hypot(rows, columns), 0.0, 1.0)
    smooth = np.asarray(ndimage.gaussian_filter(disk, alias))
    return np.asarray(smooth / smooth.sum())


def _line(radius: float, sigma: float, angle: float) -> Floats:
    """Return a kernel that fades along a line from its centre."""
    steps = np.arange(2 * round(radius) + 1)
    reach = len(steps)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    y, x = reach + steps * math.sin(angle), reach + steps * math.cos(angle)
    rows, columns = np.floor(y).astype(int), np.floor(x).astype(int)
    for down in (0, 1):
        for right in (0, 1):
            share = np.abs(1 - down - (y - rows)) * np.abs(1 - right - (x - columns))
            np.add.at(kernel, (rows + down, columns + right), weights * share)
    return np.asarray(kernel / kernel.sum())


def _convolve(x: Floats, kernel: Floats) -> Floats:
    from scipy.signal import fftconvolve  # type: ignore[import-untyped]

    reach = kernel.shape[0] // 2
    wide = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    return np.asarray(fftconvolve(wide, kernel[..., None], mode="valid", axes=(0, 1)))


def _enlarged(x: Floats, factor: float) -> Floats:
    """Return the middle of an image, enlarged to the image's size."""
    height, width = x.shape[:2]
    centre = (height - 1) / 2, (width - 1) / 2
    offset = [c - c / factor for c in centre]
    scale = (1 / factor, 1 / factor)
    bands = [
        ndimage.affine_transform(x[..., c], scale, offset, order=1, mode="nearest")
        for c in range(x.shape[2])
    ]
    return np.stack(bands, axis=-1)


def _plasma(size: int, decay: float, rng: Generator) -> Floats:
    """Return a square of noise in [0, 1] whose octaves fade by `decay`: clouds."""
    side = 2 ** max(1, math.ceil(math.log2(size)))
    total, strength, cells = np.zeros((side, side)), 1.0, 1
    while cells <= side:
        coarse = rng.uniform(-1, 1, (cells + 1, cells + 1))
        grid = np.linspace(0, cells, side, endpoint=False)
        places = np.meshgrid(grid, grid, indexing="ij")
        total += strength * ndimage.map_coordinates(coarse, places, order=1)
        strength, cells = strength / decay, cells * 2
    total -= total.min()
    return np.asarray(total[:size, :size] / max(total.max(), 1e-9))
