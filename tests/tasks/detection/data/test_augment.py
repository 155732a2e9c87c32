"""Pixels, boxes and masks stay aligned under every augmentation."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_objects import coco_squares, square_runs

from convnext.data.formats.records import Objects
from convnext.data.masks import area_of, cut
from convnext.data.objects import open_dataset
from convnext.data.preprocessing import DensePreprocessing
from convnext.tasks.detection.dataset import (
    EvalDataset,
    GroupedBatches,
    LargeScaleJitter,
    MultiScale,
    Policy,
    TrainDataset,
    TrainTransform,
    collate,
    scaled_back,
)

PLAIN = DensePreprocessing(image_size=64, mean=(0.5,) * 3, std=(0.5,) * 3)
POLICIES: dict[str, Policy] = {
    "cut": MultiScale(sides=(48, 96), max_size=200, crop_sides=(60, 80), crop_range=(30, 50)),
    "jitter": LargeScaleJitter(crop=64, jitter=(0.3, 2.0)),
    "sizes": MultiScale(sides=(40, 64, 100), max_size=120),
}


def scene(as_runs: bool, crowd: bool = False) -> tuple[torch.Tensor, Objects]:
    """A black image of 80 x 60 with one white square of 24 pixels at (20, 10)."""
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    image[:, 10:34, 20:44] = 255
    ring = np.array([20, 10, 44, 10, 44, 34, 20, 34], np.float64)
    mask: Any = (ring,)
    if as_runs:
        full = np.zeros((60, 80), np.uint8)
        full[10:34, 20:44] = 1
        edges = np.flatnonzero(np.diff(np.concatenate(([0], full.T.ravel(), [0]))))
        mask = {"size": [60, 80], "counts": np.diff(edges, prepend=0, append=4800)}
    return image, Objects(
        ids=(1,),
        boxes=np.array([[20, 10, 44, 34]], np.float64),
        labels=np.array([2]),
        areas=np.array([576.0]),
        crowd=np.array([crowd]),
        masks=(mask,),
    )


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(POLICIES)), seed=st.integers(0, 9999), as_runs=st.booleans())
def test_box_and_mask_are_where_the_pixels_are(name: str, seed: int, as_runs: bool) -> None:
    image, objects = scene(as_runs)
    transform = TrainTransform(preprocessing=PLAIN, policy=POLICIES[name], vflip=0.5)
    pixels, target = transform(image, objects, random.Random(seed))
    white = pixels[0].numpy() > 127
    height, width = white.shape
    boxes, masks = target["boxes"], target["masks"]
    assert isinstance(boxes, torch.Tensor)
    assert isinstance(masks, list)
    if not len(boxes):
        assert white.sum() <= 2 * max(white.shape)
        return
    mask = cut(masks[0], (0, 0, width, height)).astype(bool)
    # Interpolation blurs an edge by a pixel of the smaller image.
    blur = 2 * max(1, round(max(height / 60, width / 80)))
    rows, columns = np.nonzero(mask)
    assert (mask ^ white).sum() <= 4 * blur * (np.ptp(rows) + np.ptp(columns) + 2)
    x1, y1, x2, y2 = boxes[0].tolist()
    assert abs(columns.min() - x1) <= blur
    assert abs(columns.max() + 1 - x2) <= blur
    assert abs(rows.min() - y1) <= blur
    assert abs(rows.max() + 1 - y2) <= blur
    assert target["labels"].tolist() == [2]  # type: ignore[attr-defined]


def test_crowd_regions_are_ignored_or_nothing() -> None:
    image, objects = scene(as_runs=True, crowd=True)
    same = MultiScale(sides=(60,), max_size=80)
    for ignore in (True, False):
        transform = TrainTransform(preprocessing=PLAIN, policy=same, hflip=0.0, ignore_crowd=ignore)
        _, target = transform(image, objects, random.Random(0))
        assert len(target["boxes"]) == len(target["masks"]) == 0  # type: ignore[arg-type]
        assert ("ignored" in target) == ignore
    transform = TrainTransform(preprocessing=PLAIN, policy=same, hflip=1.0)
    _, target = transform(image, objects, random.Random(0))
    assert target["ignored"].tolist() == [[36, 10, 60, 34]]  # type: ignore[attr-defined]


def test_sizes_of_the_policies() -> None:
    rng = random.Random(0)
    shorts = {min(POLICIES["sizes"](80, 60, rng)[1:]) for _ in range(50)}
    assert shorts == {40, 64, 90}  # 120 is the maximum of the long side.
    kept = [POLICIES["cut"](80, 60, rng)[0] for _ in range(50)]
    whole = sum(region == (0, 0, 80, 60) for region in kept)
    assert 10 < whole < 40
    for _ in range(50):
        region, width, height = POLICIES["jitter"](80, 60, rng)
        assert max(width, height) <= 64
        assert region[0] + region[2] <= 80
        assert region[1] + region[3] <= 60


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (4000, 6000)])
@pytest.mark.parametrize("name", sorted(POLICIES))
def test_any_image_has_a_region(name: str, size: tuple[int, int]) -> None:
    for seed in range(20):
        (x, y, w, h), width, height = POLICIES[name](*size, random.Random(seed))
        assert 0 <= x < x + w <= size[0]
        assert 0 <= y < y + h <= size[1]
        assert 0 < width <= 4200
        assert 0 < height <= 4200
    assert scaled_back(0, 0, (1, 1), (100, 100), (2, 2)) == (0, 0, 1, 1)


def make(root: Path, **changes: Any) -> TrainDataset:
    data = open_dataset(str(coco_squares(root)))
    transform = TrainTransform(preprocessing=PLAIN, policy=LargeScaleJitter(crop=64), **changes)
    return TrainDataset(data.train, transform, seed=3)


def test_an_image_is_a_function_of_seed_round_and_index(tmp_path: Path) -> None:
    dataset = make(tmp_path / "d")
    first, again, other = dataset[0, 1], dataset[0, 1], dataset[1, 1]
    assert torch.equal(first.pixels, again.pixels)
    assert first.pixels.shape != other.pixels.shape or not torch.equal(first.pixels, other.pixels)
    # Worker processes that are spawned receive a data set as bytes.
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0, 1].pixels, first.pixels)
    assert "cached in memory" in dataset.fill_cache()
    cached = dataset[0, 1]
    assert torch.equal(first.pixels, cached.pixels)
    batch = collate([first, other])
    assert batch.indices == (1, 1)
    assert len(batch.pixels) == len(batch.targets) == 2


def test_damaged_images_are_replaced_and_named(tmp_path: Path) -> None:
    dataset = make(tmp_path / "d")
    (tmp_path / "d" / "images" / "train0.png").write_bytes(b"no image")
    for _ in range(2):
        item = dataset[0, 0]
        assert item.index == 1
        assert item.bad[0][0] == 0
    dataset.fill_cache()
    assert dataset[0, 0].bad[0][0] == 0
    data = open_dataset(str(tmp_path / "d"))
    (tmp_path / "d" / "images" / "val1.png").unlink()
    bad = EvalDataset(data.val, PLAIN)[1]
    assert bad.bad == ((1, "there is no such file"),)


def test_masks_stay_compressed_until_they_are_cut(tmp_path: Path) -> None:
    runs = square_runs(3, 4, 10, 64)
    assert area_of(runs, (64, 64)) == 100
    dataset = make(tmp_path / "d")
    masks = dataset[0, 0].target["masks"]  # type: ignore[index]
    assert not any(isinstance(mask, torch.Tensor | np.ndarray) for mask in masks)  # type: ignore[attr-defined]


@settings(max_examples=40, deadline=None)
@given(
    tall=st.lists(st.booleans(), min_size=1, max_size=60),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_batches_lie_or_stand(tall: list[bool], batch_size: int, seed: int) -> None:
    batches = GroupedBatches(tall, batch_size, seed=seed)
    batches.num_steps = 2 * batches.steps_per_epoch
    steps = list(batches)
    assert len(steps) == batches.num_steps
    for epoch in range(2):
        mine = steps[epoch * batches.steps_per_epoch :][: batches.steps_per_epoch]
        drawn = [index for step in mine for _, index in step]
        assert len(set(drawn)) == len(drawn)
        assert all(number == epoch for step in mine for number, _ in step)
        mixed = sum(len({tall[index] for _, index in step}) > 1 for step in mine)
        assert mixed <= 1
    later = GroupedBatches(tall, batch_size, seed=seed)
    later.start_step, later.num_steps = 1, batches.num_steps
    assert list(later) == steps[1:]
