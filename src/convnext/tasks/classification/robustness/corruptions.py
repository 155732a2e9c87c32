"""The 15 corruptions of ImageNet-C, generated on the fly for gray or color images of any size.

Kinds and strengths are the published ones for images of 224 pixels (Hendrycks and Dietterich,
"Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019, and the
values in its code). Lengths in pixels scale with the short side down to 32 pixels, the smallest
images with such a published benchmark; below that they stay constant.

The pixels differ from ImageNet-C, so scores are not comparable with published ones:

- the original frost photographs are not available: `frost` draws procedural ice crystals;
- images are not stored as JPEG in between, and glass, motion, snow, fog and elastic follow the
  published definition with different random samples.

The library imagecorruptions, from 2020, does not run with current numpy and scikit-image.

Images are floats (H, W, C) of any size. Borders are mirrored. Everything uses numpy, so that a seed
gives the same pixels for all devices of the network.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
SEVERITIES = (1, 2, 3, 4, 5)
# Increased when a corruption changes: measurements of other versions are not resumed.
VERSION = 1
PUBLISHED_SIDE, SMALLEST_SIDE = 224, 32


def corrupt(pixels: Pixels, name: str, severity: int, *, seed: int, index: int) -> Pixels:
    """Return corrupted pixels, a function of the arguments alone.

    Args:
        pixels: uint8 (C, H, W) with C = 1 or 3.
        name: A key of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: Seed of the evaluation.
        index: Index of the image.

    Returns:
        uint8 (C, H, W).
    """
    rng = np.random.default_rng([seed, index, zlib.crc32(name.encode()), severity])
    image = pixels.transpose(1, 2, 0).astype(np.float64) / 255
    changed = CORRUPTIONS[name](image, severity, rng)
    return np.ascontiguousarray(
        np.rint(changed.clip(0, 1) * 255).astype(np.uint8).transpose(2, 0, 1)
    )


def gaussian_noise(x: Array, severity: int, rng: Generator) -> Array:
    """Add Gaussian noise."""
    return x + rng.normal(scale=(0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1], size=x.shape)


def shot_noise(x: Array, severity: int, rng: Generator) -> Array:
    """Sample a small number of photons."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return np.asarray(rng.poisson(x * photons) / photons)


def impulse_noise(x: Array, severity: int, rng: Generator) -> Array:
    """Set a fraction of the values to min or max."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    hit = rng.random(x.shape) < share
    return np.where(hit, rng.integers(0, 2, x.shape).astype(np.float64), x)


def defocus_blur(x: Array, severity: int, rng: Generator) -> Array:
    """Put the lens out of focus."""
    return convolve(x, disk((3, 4, 6, 8, 10)[severity - 1] * _scale(x)))


def glass_blur(x: Array, severity: int, rng: Generator) -> Array:
    """Look through frosted glass: swap pixels with nearby ones, several times."""
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[
        severity - 1
    ]
    scale = _scale(x)
    rows, columns = grid(x)
    x = blur(x, sigma * scale)
    for _ in range(times):
        moved = rng.integers(-reach, reach, (2, *rows.shape)) * scale
        x = sample(x, rows + moved[0], columns + moved[1])
    return blur(x, sigma * scale)


def motion_blur(x: Array, severity: int, rng: Generator) -> Array:
    """Move the camera in a direction within 45 degrees of horizontal."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    scale = _scale(x)
    angle = np.radians(rng.uniform(-45, 45))
    return convolve(x, streak(2 * radius * scale, sigma * scale, angle))


def zoom_blur(x: Array, severity: int, rng: Generator) -> Array:
    """Move the camera towards the scene."""
    count, step = ((11, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03))[severity - 1]
    views = [enlarge(x, 1 + step * k) for k in range(count)]
    return np.asarray((x + sum(views)) / (count + 1))


def snow(x: Array, severity: int, rng: Generator) -> Array:
    """Add flakes that fall from two sides, and whiten the scene."""
    mean, deviation, flake, threshold, radius, sigma, kept = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    scale = _scale(x)
    flakes = enlarge(rng.normal(mean, deviation, (*x.shape[:2], 1)), max(1, flake * scale))
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1)
    angle = np.radians(rng.uniform(-135, -45))
    flakes = convolve(flakes, streak(2 * radius * scale, sigma * scale, angle))
    whitened = np.maximum(x, _gray(x) * 1.5 + 0.5)
    return np.asarray(kept * x + (1 - kept) * whitened + flakes + flakes[::-1, ::-1])


def frost(x: Array, severity: int, rng: Generator) -> Array:
    """Overlay ice from `ice`; the original uses photographs."""
    kept, ice_share = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    tint = np.array([0.82, 0.92, 1.0]) if x.shape[2] == 3 else np.ones(1)
    return np.asarray(kept * x + ice_share * ice(x, rng)[..., None] * tint)


def ice(x: Array, rng: Generator) -> Array:
    """Return a texture (H, W) in [0, 1] that resembles frost on a window.

    Needles grow in a few directions along ridges of a fractal map, masked by another one.
    """
    height, width, _ = x.shape
    scale = _scale(x)
    cover = fractal(height, width, 1.5, rng)
    ridges = (1 - np.abs(2 * fractal(height, width, 1.25, rng) - 1)) ** 3
    seeds = (rng.random((height, width, 1)) < 0.06).astype(np.float64)
    turn = rng.uniform(0, np.pi)
    needles = np.zeros((height, width))
    for k in range(3):
        steps = np.linspace(-12 * scale, 12 * scale, 49)
        angle = turn + k * np.pi / 3
        line = spread(
            steps * np.sin(angle), steps * np.cos(angle), 1 - np.abs(np.linspace(-1, 1, 49))
        )
        grown = convolve(seeds, line)[..., 0]
        needles = np.maximum(needles, grown / max(grown.max(), 1e-9))
    texture = cover * (0.45 + 0.55 * needles) + 0.5 * ridges * needles + 0.15 * ridges
    return np.asarray((texture * 0.95).clip(0, 1))


def fog(x: Array, severity: int, rng: Generator) -> Array:
    """Add a fractal map, and rescale to keep the brightest value."""
    amount, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity - 1]
    brightest = float(x.max())
    cloud = fractal(x.shape[0], x.shape[1], decay, rng)[..., None]
    return np.asarray((x + amount * cloud) * brightest / (brightest + amount))


def brightness(x: Array, severity: int, rng: Generator) -> Array:
    """Raise the value in HSV space."""
    value = x.max(axis=2, keepdims=True)
    raised = (value + 0.1 * severity).clip(0, 1)
    # Black has no hue: it becomes gray.
    return np.asarray(np.where(value > 0, x / np.maximum(value, 1e-9), 1) * raised)


def contrast(x: Array, severity: int, rng: Generator) -> Array:
    """Move every value toward the mean of its channel."""
    mean = x.mean(axis=(0, 1), keepdims=True)
    return np.asarray(mean + (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1])


def elastic_transform(x: Array, severity: int, rng: Generator) -> Array:
    """Apply an affine transform and a smooth random displacement in one step.

    The published lengths are fractions of 244 pixels, for images of 224.
    """
    alpha, sigma, affine = (
        (2, 0.7, 0.1),
        (2, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    )[severity - 1]
    rows, columns = grid(x)
    scale = _scale(x)
    smooth = max(1.0, 244 * sigma * scale)
    # Smoothing over s pixels divides noise by s, so the input is scaled up to keep the displacement
    # the same fraction of the image as at 224 pixels.
    amount = 244 * alpha * scale * smooth / (244 * sigma)
    moved = [blur(rng.uniform(-1, 1, (*rows.shape, 1)), smooth)[..., 0] * amount for _ in range(2)]
    side = min(x.shape[:2])
    middle = np.array([x.shape[0], x.shape[1]]) // 2
    third = side / 3
    corners = middle + np.array([[third, third], [third, -third], [-third, -third]])
    jitter = rng.uniform(-1, 1, (3, 2)) * affine * 244 * side / PUBLISHED_SIDE
    to_source = np.linalg.lstsq(np.c_[corners + jitter, np.ones(3)], corners, rcond=None)[0]
    places = np.stack([rows + moved[0], columns + moved[1], np.ones_like(rows)], axis=-1)
    source = places @ to_source  # (H, W, 2)
    return sample(x, source[..., 0], source[..., 1])


def pixelate(x: Array, severity: int, rng: Generator) -> Array:
    """Downsample the image, and enlarge its pixels."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    image = _to_image(x)
    size = (max(1, int(image.width * share)), max(1, int(image.height * share)))
    small = image.resize(size, Image.Resampling.BOX)
    return _to_array(small.resize(image.size, Image.Resampling.BOX))


def jpeg_compression(x: Array, severity: int, rng: Generator) -> Array:
    """Compress the image as a low-quality JPEG."""
    buffer = io.BytesIO()
    _to_image(x).save(buffer, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    with Image.open(buffer) as image:
        return _to_array(image)


CORRUPTIONS: dict[str, Callable[[Array, int, Generator], Array]] = {
    function.__name__: function
    for function in (
        *(gaussian_noise, shot_noise, impulse_noise),
        *(defocus_blur, glass_blur, motion_blur, zoom_blur),
        *(snow, frost, fog, brightness),
        *(contrast, elastic_transform, pixelate, jpeg_compression),
    )
}
KINDS = {"noise": 3, "blur": 4, "weather": 4, "digital": 4}
"""Number of corruptions of each kind, in order, as in the paper."""


def _scale(x: Array) -> float:
    """Return the length in this image of one pixel of the published definition."""
    return float(max(min(x.shape[:2]), SMALLEST_SIDE)) / PUBLISHED_SIDE


def _gray(x: Array) -> Array:
    """Return the luma (H, W, 1) by the weights of ITU-R BT.601."""
    return x if x.shape[2] == 1 else np.asarray(x @ np.array([[0.299], [0.587], [0.114]]))


def _to_image(x: Array) -> Image.Image:
    pixels = np.rint(x * 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if x.shape[2] == 1 else pixels)


def _to_array(image: Image.Image) -> Array:
    pixels = np.asarray(image).astype(np.float64) / 255
    return pixels[..., None] if pixels.ndim == 2 else pixels


Array = NDArray[np.float64]

# Sampling points of a disk, per pixel and direction.
FINE = 8


def convolve(image: Array, kernel: Array) -> Array:
    """Convolve `image` (H, W, C) with a kernel (h, w) with odd sides; the size stays the same."""
    height, width = kernel.shape
    pad = ((height // 2, height // 2), (width // 2, width // 2), (0, 0))
    padded = np.pad(image, pad, mode="symmetric")
    # FFTs of lengths without large factors are several times faster.
    size = tuple(-(-length // 32) * 32 for length in padded.shape[:2])
    spectrum = np.fft.rfft2(padded, size, axes=(0, 1)) * np.fft.rfft2(kernel, size)[..., None]
    # Circular and linear convolution differ only in the first rows and columns.
    whole = np.fft.irfft2(spectrum, size, axes=(0, 1))
    return np.asarray(whole[height - 1 : len(padded), width - 1 : padded.shape[1]])  # (H, W, C)


def blur(image: Array, sigma: float) -> Array:
    """Blur `image` with a Gaussian of `sigma` pixels; no change if that is far below a pixel."""
    reach = math.ceil(3 * sigma)
    if sigma < 0.1:
        return image
    profile = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = np.outer(profile, profile)
    return convolve(image, kernel / kernel.sum())


def spread(rows: Array, columns: Array, weights: Array) -> Array:
    """Return the kernel (h, w) of a point that spreads to offsets in fractional pixels.

    The weight of each offset is distributed over the four nearest pixels, so that spreads below one
    pixel work too.
    """
    reach = math.ceil(max(np.abs(rows).max(), np.abs(columns).max())) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    for down in (0, 1):
        for right in (0, 1):
            share = (1 - np.abs(rows - top - down)) * (1 - np.abs(columns - left - right))
            np.add.at(kernel, (top + down + reach, left + right + reach), weights * share)
    return np.asarray(kernel / kernel.sum())


def disk(radius: float) -> Array:
    """Return the kernel of a defocused lens."""
    count = max(3, math.ceil(radius * FINE))
    axis = np.linspace(-radius, radius, 2 * count + 1)
    rows, columns = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    inside = rows**2 + columns**2 <= radius**2
    return spread(rows[inside], columns[inside], np.ones(int(inside.sum())))


def streak(length: float, sigma: float, angle: float) -> Array:
    """Return the kernel of motion blur: a half Gaussian along a line.

    Args:
        length: Length of the line, in pixels.
        sigma: Standard deviation of the Gaussian, in pixels.
        angle: Angle of the line, in radians.
    """
    steps = np.linspace(0, length, 2 * max(4, math.ceil(length)) + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    return spread(steps * math.sin(angle), steps * math.cos(angle), weights)


def sample(image: Array, rows: Array, columns: Array) -> Array:
    """Interpolate `image` at fractional rows and columns (h, w); return values (h, w, C)."""
    rows, columns = _mirror(rows, image.shape[0]), _mirror(columns, image.shape[1])
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    bottom = np.minimum(top + 1, image.shape[0] - 1)
    end = np.minimum(left + 1, image.shape[1] - 1)
    upper = image[top, left] * (1 - right) + image[top, end] * right
    lower = image[bottom, left] * (1 - right) + image[bottom, end] * right
    return np.asarray(upper * (1 - down) + lower * down)


def grid(image: Array) -> tuple[Array, Array]:
    """Return the row and the column (H, W) of every pixel."""
    places = np.indices(image.shape[:2]).astype(np.float64)
    return places[0], places[1]


def enlarge(image: Array, factor: float) -> Array:
    """Zoom into the center of `image`; the size stays the same."""
    rows, columns = grid(image)
    middle = (image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2
    return sample(
        image, middle[0] + (rows - middle[0]) / factor, middle[1] + (columns - middle[1]) / factor
    )


def fractal(height: int, width: int, decay: float, rng: Generator) -> Array:
    """Return a fractal map (height, width) in [0, 1].

    The sum of random grids of 2, 3, 5, 9 ... points, each weaker than the previous one by `decay`
    squared: the midpoint displacement of Fournier, Fussell and Carpenter, written as a sum.
    """
    total = np.zeros((height, width))
    rows, columns = np.indices((height, width)).astype(np.float64)
    for octave in range(math.ceil(math.log2(max(height, width, 2))) + 1):
        cells = 2**octave
        values = rng.uniform(-1, 1, (cells + 1, cells + 1, 1))
        scale = cells / max(height, width)
        total += sample(values, rows * scale, columns * scale)[..., 0] / decay ** (2 * octave)
    total -= total.min()
    return np.asarray(total / max(total.max(), 1e-9))


def _mirror(places: Array, size: int) -> Array:
    """Reflect indices outside of 0..size-1 at the border."""
    turned = np.mod(places + 0.5, 2 * size)
    return np.clip(np.where(turned > size, 2 * size - turned, turned) - 0.5, 0, size - 1)
