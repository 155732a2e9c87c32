"""Every corruption on photo-like, gray and very small images."""

from __future__ import annotations

import numpy as np
import pytest

from convnext.tasks.classification.robustness.corruptions import (
    CORRUPTIONS,
    KINDS,
    Pixels,
    corrupt,
    elastic_transform,
)

RANDOM = {
    *("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur"),
    *("snow", "frost", "fog", "elastic_transform"),
}


def photo(side: int = 64, chans: int = 3) -> Pixels:
    """Return a photo-like image: large shapes, edges, texture and a bright sky."""
    y, x = np.mgrid[:side, :side] / side
    sky = 0.45 + 0.35 * (1 - y)
    ball = (x - 0.5) ** 2 + (y - 0.55) ** 2 < 0.07
    stripes = 0.25 + 0.2 * np.sin(40 * x + 12 * y)
    base = np.where(ball, 0.65 - 0.5 * x, np.where(y > 0.7, stripes, sky))
    base = base + np.random.default_rng(0).normal(0, 0.02, base.shape)
    image = np.stack([base * share for share in (1.0, 0.85, 0.7)[:chans]])
    return np.rint(255 * image.clip(0, 1)).astype(np.uint8)


def change(name: str, severity: int, image: Pixels, indices: int = 6) -> float:
    """Return the change of an image's pixels in gray levels, over several draws."""
    draws = [corrupt(image, name, severity, seed=0, index=i) for i in range(indices)]
    return float(np.mean([np.abs(d.astype(float) - image).mean() for d in draws]))


def test_there_are_fifteen_of_four_kinds() -> None:
    assert len(CORRUPTIONS) == sum(KINDS.values()) == 15


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(3, 40, 57), (1, 33, 20), (1, 8, 8), (3, 8, 8), (1, 1, 1)])
def test_shape_and_type_stay_and_the_argument_too(name: str, shape: tuple[int, ...]) -> None:
    image = np.ascontiguousarray(np.resize(photo(64, shape[0]), shape))
    before = image.copy()
    for severity in (1, 5):
        made = corrupt(image, name, severity, seed=0, index=0)
        assert (made.shape, made.dtype) == (shape, np.uint8)
        assert made.flags.c_contiguous
    assert (image == before).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("side", "chans"), [(64, 3), (32, 1), (8, 1)])
def test_something_changes_at_every_size(name: str, side: int, chans: int) -> None:
    assert change(name, 5, photo(side, chans)) > 0.5


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - {"elastic_transform", "frost"}))
@pytest.mark.parametrize("side", [32, 112])
def test_severity_5_changes_more_than_1(name: str, side: int) -> None:
    image = photo(side)
    assert change(name, 5, image) > 1.1 * change(name, 1, image)


def test_frost_hides_more_with_every_severity_but_one() -> None:
    # As published, the image darkens while ice is added, so its mean hardly changes: what counts is
    # how much of the image remains visible. Severities 3 and 4 are almost the same.
    image = photo(112)

    def shows(severity: int) -> float:
        made = (corrupt(image, "frost", severity, seed=0, index=i) for i in range(4))
        return float(np.mean([np.corrcoef(m.ravel(), image.ravel())[0, 1] for m in made]))

    levels = [shows(severity) for severity in (1, 2, 3, 5)]
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] < levels[0] - 0.05


def test_elastic_severity_5_tears_more_than_1() -> None:
    # As published, severities 1 and 2 shift the image almost rigidly; 3 to 5 distort it.
    ramp = np.mgrid[:64, :64][0][..., None] / 64.0

    def tearing(severity: int) -> float:
        made = elastic_transform(ramp, severity, np.random.default_rng(0))[16:48, 16:48, 0]
        return float(np.abs(np.diff(made, 2, axis=1)).mean())

    levels = [tearing(severity) for severity in (3, 4, 5)]
    assert levels == sorted(levels)
    assert tearing(5) > 5 * tearing(1)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_pixels_are_a_function_of_seed_index_and_severity(name: str) -> None:
    image = photo(32)
    first = corrupt(image, name, 3, seed=1, index=2)
    assert (first == corrupt(image, name, 3, seed=1, index=2)).all()
    for seed, index in ((2, 2), (1, 3)):
        same = (first == corrupt(image, name, 3, seed=seed, index=index)).all()
        assert same == (name not in RANDOM)
    assert (first != corrupt(image, name, 5, seed=1, index=2)).any()


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "zoom_blur", "contrast", "fog"])
def test_gray_is_treated_as_a_color_image_of_gray(name: str) -> None:
    gray = photo(32, 1)
    color = np.repeat(gray, 3, axis=0)
    made = corrupt(gray, name, 4, seed=0, index=0)
    assert (corrupt(color, name, 4, seed=0, index=0) == made).all()


def test_lengths_follow_the_size_of_the_image() -> None:
    # An edge blurred at twice the size is blurred over twice as many pixels.
    def width(side: int) -> int:
        edge = np.zeros((1, side, side), np.uint8)
        edge[:, :, side // 2 :] = 255
        row = corrupt(edge, "defocus_blur", 5, seed=0, index=0)[0, side // 2]
        return int(((row > 5) & (row < 250)).sum())

    assert width(224) == pytest.approx(2 * width(112), abs=2)
    assert width(224) == pytest.approx(18, abs=2)  # a disk of radius 10
