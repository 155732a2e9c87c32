"""Building blocks of the corruptions: convolution, sampling, point spreads, fractal noise.

Images are floats (H, W, C) of any size. Borders are mirrored. Everything uses numpy, so that a seed
gives the same pixels for all devices of the network.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

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
