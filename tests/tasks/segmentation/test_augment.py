"""Training crops: image and mask stay together, and a mask is never interpolated."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shapes import COLORS, draw_pair, write_shapes

from convnext.data.dense import distort
from convnext.data.preprocessing import DensePreprocessing, fit_within
from convnext.data.tensors import to_tensor
from convnext.tasks.segmentation.data import open_dataset
from convnext.tasks.segmentation.dataset import (
    EvalDataset,
    TrainDataset,
    TrainTransform,
    collate,
    is_varied,
)

P = DensePreprocessing(image_size=40, mean=(0.5,) * 3, std=(0.25,) * 3)
PLAIN = TrainTransform(crop=32, preprocessing=P, photometric=False)


def tensors(seed: int, size: tuple[int, int] = (48, 40)) -> tuple[torch.Tensor, torch.Tensor]:
    image, mask = draw_pair(seed, size)
    return to_tensor(image), torch.from_numpy(np.array(mask))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.sampled_from([(0.3, 0.6), (0.5, 2.0), (2.0, 3.0)]))
def test_masks_keep_their_values_and_their_place(seed: int, factor: tuple[float, float]) -> None:
    image, mask = tensors(seed % 50)
    transform = replace(PLAIN, jitter=factor, vflip=0.5)
    pixels, labels = transform(image, mask, random.Random(seed))
    assert pixels.shape == (3, 32, 32)
    assert labels.shape == (32, 32)
    assert labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) <= {0, 1, 2, 255}
    # Every color belongs to one class, so both must agree except near borders.
    centers = torch.tensor(COLORS, dtype=torch.float32)
    nearest = (pixels.permute(1, 2, 0)[..., None, :].float() - centers).abs().sum(-1).argmin(-1)
    inner = labels != 255
    assert (nearest == labels)[inner].float().mean() > 0.9


def test_a_crop_is_a_function_of_the_draw(tmp_path: Path) -> None:
    data = open_dataset(str(write_shapes(tmp_path / "s")))
    transform = replace(PLAIN, photometric=True)
    one, other = (TrainDataset(data.train, transform, seed=3) for _ in range(2))
    assert "cached in memory" in other.fill_cache()
    for draw in ((0, 1), (0, 2), (1, 1)):
        a, b = one[draw], other[draw]
        assert torch.equal(a.pixels, b.pixels)
        assert torch.equal(a.mask, b.mask)
    assert not torch.equal(one[0, 1].pixels, one[1, 1].pixels)
    assert not torch.equal(
        one[0, 1].pixels, TrainDataset(data.train, transform, seed=4)[0, 1].pixels
    )
    batch = collate([one[0, 1], one[0, 2]])
    assert (batch.pixels.shape, batch.masks.shape) == ((2, 3, 32, 32), (2, 32, 32))
    assert "do not fit" in one.fill_cache(budget=1000)
    # Worker processes that are spawned receive a data set as bytes.
    sent = pickle.loads(pickle.dumps(one))
    assert torch.equal(sent[0, 1].pixels, one[0, 1].pixels)


def test_a_pair_that_cannot_be_used_is_replaced_and_named(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "s", num_train=3)
    wrong = root / "annotations/train/001.png"
    Image.new("L", (48, 40), 9).save(wrong)
    data = open_dataset(str(root))
    for cached in (False, True):
        dataset = TrainDataset(data.train, PLAIN, seed=0)
        if cached:
            dataset.fill_cache()
        item = dataset[0, 1]
        assert item.index == 2
        assert [index for index, _ in item.bad] == [1]
        assert item.bad[0][1].startswith(f"{wrong}: has the value 9 in 1,920 pixels")
    root_val = EvalDataset(data.train, P)
    assert root_val[1].bad
    assert root_val[0].mask.shape == (40, 48)
    for path in (root / "annotations/train").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="none of the training images can be used"):
        TrainDataset(data.train, PLAIN, seed=0)[0, 1]


def test_no_class_fills_a_crop_where_that_can_be_helped() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    assert not is_varied(labels, 0.75, 255)
    labels[0, :3] = 1
    assert is_varied(labels, 0.75, 255)
    assert is_varied(torch.zeros(1, 8, 8, dtype=torch.uint8), 1.0, 255)
    labels[0, :3] = 255  # Unlabeled pixels do not count.
    assert not is_varied(labels, 0.75, 255)
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[:, 32:] = 1
    transform = replace(PLAIN, crop=16, jitter=(1.0, 1.0), preprocessing=replace(P, image_size=64))
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)

    def varied(t: TrainTransform) -> int:
        crops = (t(image, mask, random.Random(seed))[1] for seed in range(60))
        return sum(len(crop.unique()) > 1 for crop in crops)

    assert varied(transform) > 1.4 * varied(replace(transform, max_class_share=1.0))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3000, 2), (1600, 1200)])
def test_any_size(size: tuple[int, int]) -> None:
    image = torch.full((3, size[1], size[0]), 9, dtype=torch.uint8)
    mask = torch.ones(size[1], size[0], dtype=torch.uint8)
    pixels, labels = PLAIN(image, mask, random.Random(0))
    assert pixels.shape == (3, 32, 32)
    padding = labels == 255
    assert set(labels.unique().tolist()) <= {1, 255}
    assert (pixels[:, padding] == 128).all()  # The mean color.


def test_distortion_changes_colors_within_their_range() -> None:
    image, _ = tensors(1)
    outcomes = [distort(image, random.Random(seed)) for seed in range(20)]
    assert all(out.dtype == torch.uint8 and out.shape == image.shape for out in outcomes)
    assert sum(not torch.equal(out, image) for out in outcomes) > 15
    gray = distort(image[:1], random.Random(0))
    assert gray.shape == (1, 40, 48)


def test_sizes_of_the_published_recipe() -> None:
    assert fit_within(683, 512, 512, 2048) == (683, 512)
    assert fit_within(1024, 512, 512, 2048) == (1024, 512)
    assert fit_within(3000, 500, 512, 2048) == (2048, 341)
    assert fit_within(480, 360, 0, 0) == (480, 360)
    with pytest.raises(ValueError, match="max_size is 100, but must be at least image_size"):
        DensePreprocessing(image_size=512, max_size=100, mean=(0.5,), std=(0.5,), in_chans=1)
    again = DensePreprocessing.from_dict(P.to_dict())
    assert again == P
