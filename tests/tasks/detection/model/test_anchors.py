"""Anchors: their areas, ratios and order, and which of them are used in training."""

from __future__ import annotations

import pytest
import torch

from convnext.tasks.detection.model.boxes import RATIOS, area, base_anchors, level_anchors, usable


@pytest.mark.parametrize("stride", [4, 8, 16, 32, 64])
def test_anchors_of_a_position(stride: int) -> None:
    anchors = base_anchors(stride)
    assert anchors.shape == (3, 4)
    assert torch.allclose(area(anchors), torch.tensor((8.0 * stride) ** 2))
    sides = anchors[:, 2:] - anchors[:, :2]
    assert torch.allclose(sides[:, 1] / sides[:, 0], torch.tensor(RATIOS))
    assert torch.equal(anchors[:, :2], -anchors[:, 2:])


def test_order_is_rows_columns_ratios() -> None:
    anchors = level_anchors((2, 3), 8).view(2, 3, 3, 4)
    centers = (anchors[..., :2] + anchors[..., 2:]) / 2
    for row in range(2):
        for column in range(3):
            assert centers[row, column].tolist() == [[8 * column, 8 * row]] * 3
            shift = torch.tensor([8.0 * column, 8.0 * row] * 2)
            assert torch.equal(anchors[row, column], base_anchors(8) + shift)


def test_which_anchors_are_trained_on() -> None:
    anchors = torch.tensor(
        [[0.0, 0, 10, 10], [-1, 0, 10, 10], [30, 30, 40, 40], [30, 30, 39, 39], [50, 0, 80, 8]]
    )
    assert usable(anchors, (40, 40), 0).tolist() == [True, False, False, True, False]
    assert usable(anchors, (40, 40), 1).tolist() == [True, True, True, True, False]
    # The last one's cell begins at 65, beyond the 64 pixels that the image is padded to.
    assert usable(anchors, (40, 40), -1).tolist() == [True, True, True, True, False]
    assert usable(anchors, (40, 70), -1).all()
