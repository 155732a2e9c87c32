"""One range for all 16-bit and float images: found in training images, stored, and applied."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext.data.images import RangedMode, decode
from convnext.data.preprocessing import DensePreprocessing, Preprocessing
from convnext.data.ranges import pixel_range
from convnext.data.samples import FolderSamples

GRAY = {"in_chans": 1, "mean": (0.5,), "std": (0.5,)}


def folder(root: Path, images: list[np.ndarray]) -> FolderSamples:
    for i, values in enumerate(images):
        Image.fromarray(values).save(root / f"{i}.tif")
    return FolderSamples(root, [f"{i}.tif" for i in range(len(images))], [0] * len(images))


def test_twelve_bits_use_all_gray_levels(tmp_path: Path) -> None:
    ramp = np.linspace(0, 4095, 4096).reshape(64, 64).astype(np.uint16)
    samples = folder(tmp_path, [ramp, ramp // 2, np.zeros((8, 8), np.uint8)])
    found = pixel_range(samples)
    assert found is not None
    assert (found.num_images, found.modes) == (2, ["I;16"])
    every = np.concatenate([ramp.ravel(), (ramp // 2).ravel()])
    assert found.values == pytest.approx(np.percentile(every, (0.1, 99.9)), abs=1)
    assert found.clipped == pytest.approx(0.002, abs=0.0005)
    mode = RangedMode("L", found.values)
    levels = [np.asarray(decode(tmp_path / f"{i}.tif", mode=mode)) for i in range(3)]
    assert len(np.unique(levels[0])) == 256
    # Equal values look equal in each image, and images of 8 bits stay as they are.
    assert abs(levels[0].mean() - 2 * levels[1].mean()) < 2
    assert not levels[2].any()
    assert "values from 0 to 4,095" in str(found)
    assert "--input.range" in str(found)


def test_floats_and_images_without_more_than_8_bits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 1e-3, (64, 64)).astype(np.float32)
    values[0, 0] = np.nan
    values[0, 1] = 1e6
    (tmp_path / "f").mkdir()
    found = pixel_range(folder(tmp_path / "f", [values]))
    assert found is not None
    assert -0.004 < found.low < -0.002
    assert 0.002 < found.high < 0.004
    (tmp_path / "u").mkdir()
    assert pixel_range(folder(tmp_path / "u", [np.zeros((4, 4), np.uint8)])) is None
    (tmp_path / "c").mkdir()
    constant = pixel_range(folder(tmp_path / "c", [np.full((4, 4), 7, np.uint16)]))
    assert constant is not None
    assert constant.low < constant.high


@pytest.mark.parametrize("top", [0.99, 1.2, 255.0, 256.0])
def test_floats_without_a_range_are_not_nearly_black(tmp_path: Path, top: float) -> None:
    values = np.linspace(0, top, 64, dtype=np.float32)[None].repeat(64, 0)
    Image.fromarray(values).save(tmp_path / "f.tif")
    assert np.asarray(decode(tmp_path / "f.tif", mode="L")).mean() > 100


@pytest.mark.parametrize(
    "given",
    [
        Preprocessing(image_size=8, crop_pct=1.0, range=(10.0, 500.0), **GRAY),
        DensePreprocessing(image_size=8, range=(10.0, 500.0), **GRAY),
    ],
)
def test_the_range_is_part_of_the_preprocessing(given: Preprocessing | DensePreprocessing) -> None:
    assert type(given).from_dict(given.to_dict()) == given
    image = Image.fromarray(np.full((8, 8), 255, np.uint16))
    assert (given.pixels(image) == 128).all()
    assert pickle.loads(pickle.dumps(given.mode)).range == (10.0, 500.0)
    assert given.mode == "L"
    plain = type(given).from_dict({k: v for k, v in given.to_dict().items() if k != "range"})
    assert "range" not in plain.to_dict()
    assert (plain.pixels(image) == 1).all()
    with pytest.raises(ValueError, match="must be a smaller and a larger number"):
        type(given).from_dict(given.to_dict() | {"range": [5, 5]})
