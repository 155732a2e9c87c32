"""IoU of boxes against pixel counts and torchvision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou, generalized_box_iou

from convnext.tasks.detection.model.boxes import area, clip, covered, giou, iou

coordinate = st.integers(0, 12)
box = st.tuples(coordinate, coordinate, coordinate, coordinate).map(
    lambda c: [min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3])]
)
boxes = st.lists(box, min_size=1, max_size=5).map(lambda b: torch.tensor(b).float())


def paint(b: torch.Tensor) -> torch.Tensor:
    x1, y1, x2, y2 = b.int().tolist()
    image = torch.zeros(12, 12, dtype=torch.bool)
    image[y1:y2, x1:x2] = True
    return image


@settings(deadline=None, derandomize=True)
@given(boxes, boxes)
def test_overlaps_count_pixels(a: torch.Tensor, b: torch.Tensor) -> None:
    shared, ratios, shares = iou(a, b), iou(a, b), covered(a, b)
    assert shared.shape == (len(a), len(b))
    for i, one in enumerate(a):
        assert area(one) == paint(one).sum()
        for j, other in enumerate(b):
            both = int((paint(one) & paint(other)).sum())
            either = int((paint(one) | paint(other)).sum())
            assert ratios[i, j] == pytest.approx(both / max(either, 1))
            assert shares[i, j] == pytest.approx(both / max(int(area(one)), 1))


@settings(deadline=None, derandomize=True)
@given(boxes, boxes)
def test_generalized_iou(a: torch.Tensor, b: torch.Tensor) -> None:
    num = min(len(a), len(b))
    a, b = a[:num], b[:num]
    ours = giou(a, b)
    assert ours.isfinite().all()
    assert (ours.abs() <= 1).all()
    solid = (area(a) > 0) & (area(b) > 0)
    theirs = generalized_box_iou(a, b).diagonal()
    assert torch.allclose(ours[solid], theirs[solid], atol=1e-6)
    assert torch.allclose(iou(a, b)[solid][:, solid], box_iou(a[solid], b[solid]))


def test_generalized_iou_tells_how_far_apart() -> None:
    here = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).expand(3, 4)
    there = torch.tensor([[0.0, 0, 2, 2], [2, 0, 4, 2], [8, 0, 10, 2]])
    assert giou(here, there).tolist() == pytest.approx([1.0, 0.0, -0.6])


def test_clipping() -> None:
    moved = clip(torch.tensor([[-3.0, -1.0, 50.0, 60.0], [70.0, 5.0, 80.0, 9.0]]), (40, 64))
    assert moved.tolist() == [[0, 0, 50, 40], [64, 5, 64, 9]]
