"""The fifteen corruptions: a function of image, kind, strength and generator."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from convnext.tasks.classification.robustness.corruptions import CORRUPTIONS, corrupt


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Something with areas, edges and fine structure, of 224 x 200 pixels."""
    rows, columns = np.mgrid[:224, :200]
    waves = 0.5 + 0.3 * np.sin(rows / 7) * np.cos(columns / 5)
    image = np.stack([waves, waves**2, 0.8 * waves + 0.1], axis=-1)
    image[40:110, 70:130] = (0.9, 0.3, 0.2)
    image += np.random.default_rng(3).normal(0, 0.01, image.shape)
    return (image.clip(0, 1) * 255).astype(np.uint8)


def change(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def test_there_are_the_fifteen_of_imagenet_c() -> None:
    assert len(CORRUPTIONS) == 15


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_the_same_way_every_time(name: str, photo: np.ndarray) -> None:
    before = photo.copy()
    one, other = (corrupt(photo, name, 3, np.random.default_rng(5)) for _ in range(2))
    assert one.shape == photo.shape
    assert one.dtype == np.uint8
    assert (one == other).all()
    assert (photo == before).all()
    assert change(one, photo) > 0.5


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - {"elastic_transform", "frost", "fog"}))
def test_more_is_worse(name: str, photo: np.ndarray) -> None:
    changes = [
        change(corrupt(photo, name, severity, np.random.default_rng(5)), photo)
        for severity in (1, 3, 5)
    ]
    assert changes == sorted(changes)
    assert changes[0] < changes[-1]


def test_frost_and_fog_hide_more_and_more(photo: np.ndarray) -> None:
    # Their brightness is bounded; what is lost is the image, measured by correlation with it.
    for name in ("frost", "fog"):
        left = [
            np.corrcoef(
                corrupt(photo, name, severity, np.random.default_rng(5)).ravel(), photo.ravel()
            )[0, 1]
            for severity in (1, 5)
        ]
        assert left[1] < left[0] < 1


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (1, 1, 3)])
def test_images_of_any_size_and_grey_ones(name: str, shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for severity in (1, 5):
        made = corrupt(image, name, severity, np.random.default_rng(1))
        assert made.shape == shape


def test_known_values() -> None:
    grey = np.full((16, 16, 3), 100, dtype=np.uint8)
    rng = np.random.default_rng(0)
    # Value plus 0.2 of 255; and a flat image has no contrast to lose.
    assert (corrupt(grey, "brightness", 2, rng) == 151).all()
    assert (corrupt(grey, "contrast", 5, rng) == grey).all()
    assert (corrupt(grey, "defocus_blur", 5, rng) == grey).all()
    checked = corrupt(np.zeros((64, 64, 3), np.uint8), "impulse_noise", 1, rng)
    assert (checked == 255).mean() == pytest.approx(0.015, abs=0.006)
    small = Image.effect_noise((8, 8), 90).convert("RGB")
    pixelated = corrupt(np.asarray(small), "pixelate", 5, rng)
    # A quarter of the side: four pixels, each four by four.
    assert len(np.unique(pixelated.reshape(-1, 3), axis=0)) <= 4


@pytest.mark.parametrize(("name", "severity"), [("rain", 1), ("fog", 0), ("fog", 6)])
def test_what_is_not_there(name: str, severity: int) -> None:
    with pytest.raises(ValueError, match=r"there is no corruption|one of 1 to 5"):
        corrupt(np.zeros((4, 4, 3), np.uint8), name, severity, np.random.default_rng(0))
