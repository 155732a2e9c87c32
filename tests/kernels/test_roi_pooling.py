"""RoI pooling by matrix products gives the same features as torchvision's operator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from convnext.deploy.optimize import distance
from convnext.kernels.roi_pooling import pool_rois_by_products
from convnext.tasks.detection.model.heads import pool_rois

STRIDES = (4, 8, 16, 32)
SIZE = (160, 224)


def _maps(num: int = 2) -> list[Tensor]:
    torch.manual_seed(0)
    height, width = SIZE
    return [torch.randn(num, 6, height // s, width // s) for s in STRIDES]


def _boxes(num: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(2, num, 2, generator=generator).sort(-1).values
    return torch.stack(
        (x[:, 0] * SIZE[1], y[:, 0] * SIZE[0], x[:, 1] * SIZE[1], y[:, 1] * SIZE[0]), 1
    )


EDGES = torch.tensor(
    [
        [0, 0, 224, 160],  # The whole image.
        [223, 159, 224, 160],
        [5, 5, 5, 5],  # Empty ones have no features.
        [5, 5, 5, 40],
        [0, 3, 224, 5],  # Flat.
        [40, 0, 41, 160],
        [-60, -40, 12, 20],  # Beyond the borders.
        [200, 150, 260, 200],
        [400, 400, 500, 500],
    ],
    dtype=torch.float32,
)


@pytest.mark.parametrize("side", [7, 14])
@pytest.mark.parametrize("channels_last", [True, False])
def test_features_are_those_of_roi_align(side: int, channels_last: bool) -> None:
    maps = _maps()
    if channels_last:
        maps = [m.contiguous(memory_format=torch.channels_last) for m in maps]
    boxes = [torch.cat((_boxes(40, 1), EDGES)), _boxes(25, 2)]
    expected = pool_rois(maps, STRIDES, boxes, side)
    found = pool_rois_by_products(maps, STRIDES, boxes, side)
    assert distance(found, expected) < 1e-6
    assert (found - expected).abs().max() < 1e-5


def test_images_without_boxes_and_half_precision() -> None:
    maps, none = _maps(), torch.zeros(0, 4)
    assert pool_rois_by_products(maps, STRIDES, [none, none], 7).shape == (0, 6, 7, 7)
    boxes = [none, _boxes(5, 3)]
    assert (
        distance(pool_rois_by_products(maps, STRIDES, boxes, 7), pool_rois(maps, STRIDES, boxes, 7))
        < 1e-6
    )
    half = [m.bfloat16() for m in maps]
    found = pool_rois_by_products(half, STRIDES, boxes, 7)
    assert found.dtype == torch.bfloat16
    assert distance(found, pool_rois(half, STRIDES, boxes, 7)) < 1e-3
