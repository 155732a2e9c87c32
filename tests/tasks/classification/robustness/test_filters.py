"""Convolution, sampling and noise against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from convnext.tasks.classification.robustness.corruptions import (
    blur,
    convolve,
    disk,
    enlarge,
    fractal,
    grid,
    sample,
    spread,
    streak,
)

RNG = np.random.default_rng(0)
IMAGE = RNG.random((9, 14, 3))


@pytest.mark.parametrize("sides", [(1, 1), (3, 5), (7, 3), (25, 31)])
def test_convolution_is_that_of_the_mirrored_image(sides: tuple[int, int]) -> None:
    kernel = RNG.random(sides)
    height, width = sides
    pad = ((height // 2, height // 2), (width // 2, width // 2), (0, 0))
    padded = np.pad(IMAGE, pad, mode="symmetric")
    expected = np.zeros_like(IMAGE)
    for down in range(height):
        for right in range(width):
            part = padded[down : down + len(IMAGE), right : right + IMAGE.shape[1]]
            expected += part * kernel[height - 1 - down, width - 1 - right]
    assert convolve(IMAGE, kernel) == pytest.approx(expected)


def test_a_blur_keeps_a_flat_image_and_smooths_another() -> None:
    flat = np.full((5, 6, 1), 0.3)
    assert blur(flat, 2.0) == pytest.approx(flat)
    assert blur(IMAGE, 2.0).std() < 0.5 * IMAGE.std()
    assert blur(IMAGE, 0.05) is IMAGE


def test_a_point_spreads_by_less_than_a_pixel() -> None:
    kernel = spread(np.array([0.25]), np.array([0.0]), np.array([3.0]))
    assert kernel[len(kernel) // 2 :, len(kernel) // 2][:2].tolist() == [0.75, 0.25]
    assert kernel.sum() == pytest.approx(1)


def test_a_disk_is_round_and_as_wide_as_its_radius() -> None:
    kernel = disk(6.0)
    assert kernel == pytest.approx(kernel.T)
    # Half of the square's diagonal is in the disk; nothing is more than a pixel outside.
    places = np.hypot(*np.indices(kernel.shape) - len(kernel) // 2)
    assert kernel[places > 7.5].max() < 1e-9
    assert kernel[places < 4.5].min() > 0.8 / (np.pi * 36)


def test_a_streak_goes_one_way_and_fades() -> None:
    kernel = streak(8.0, 3.0, 0.0)
    row = kernel[len(kernel) // 2]
    middle = len(row) // 2
    assert row[:middle].sum() < 1e-9 + row[middle]
    assert (np.diff(row[middle + 1 : middle + 8]) < 0).all()


def test_sampling_at_the_pixels_returns_them_and_beyond_the_border_mirrors() -> None:
    rows, columns = grid(IMAGE)
    assert sample(IMAGE, rows, columns) == pytest.approx(IMAGE)
    assert sample(IMAGE, -1 - rows, columns) == pytest.approx(IMAGE)
    between = sample(IMAGE, rows[:1, :1] + 0.5, columns[:1, :1])
    assert between[0, 0] == pytest.approx((IMAGE[0, 0] + IMAGE[1, 0]) / 2)


def test_enlarging_keeps_the_middle() -> None:
    ramp = np.broadcast_to(np.arange(9.0)[:, None, None], (9, 9, 1))
    assert enlarge(ramp, 1.0) == pytest.approx(ramp)
    assert enlarge(ramp, 2.0)[:, 0, 0] == pytest.approx(4 + (np.arange(9) - 4) / 2)


def test_a_fractal_fills_the_unit_range_and_is_rougher_with_less_decay() -> None:
    smooth, rough = (fractal(40, 64, decay, np.random.default_rng(1)) for decay in (3.0, 1.2))
    for cloud in (smooth, rough):
        assert cloud.shape == (40, 64)
        assert (cloud.min(), cloud.max()) == (0, 1)
    assert np.abs(np.diff(rough)).mean() > 2 * np.abs(np.diff(smooth)).mean()
