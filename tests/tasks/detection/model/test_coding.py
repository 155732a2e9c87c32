"""Box deltas: round trips, limits, and the published numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext.tasks.detection.model.boxes import MAX_LOG_RATIO, decode, encode

side = st.floats(1, 200)
box = st.tuples(st.floats(-50, 500), st.floats(-50, 500), side, side).map(
    lambda c: torch.tensor([c[0], c[1], c[0] + c[2], c[1] + c[3]])
)
STDS = (0.1, 0.1, 0.2, 0.2)


@settings(deadline=None, derandomize=True)
@given(box, box)
def test_there_and_back(start: torch.Tensor, end: torch.Tensor) -> None:
    sides = (end[2:] - end[:2]) / (start[2:] - start[:2])
    assert (
        torch.allclose(decode(start, encode(start, end, STDS), STDS), end, atol=0.05)
        or (sides.log().abs() > MAX_LOG_RATIO).any()
    )


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(-(2.0**90), 2.0**90), min_size=4, max_size=4), st.booleans())
def test_any_delta_gives_a_box_in_the_image(deltas: list[float], flat: bool) -> None:
    start = torch.tensor([5.0, 5, 5, 25] if flat else [5.0, 5, 30, 25])
    found = decode(start, torch.tensor(deltas), size=(60, 40))
    assert found.isfinite().all()
    assert (found >= 0).all()
    assert (found <= torch.tensor([40.0, 60, 40, 60])).all()
    assert (found[:2] <= found[2:]).all()


def test_by_hand() -> None:
    start = torch.tensor([10.0, 10, 30, 20])
    end = torch.tensor([15.0, 5, 25, 25])
    coded = encode(start, end, STDS)
    assert coded.tolist() == pytest.approx([0, 0, 5 * math.log(0.5), 5 * math.log(2)])
    shifted = decode(start, torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]), STDS)
    assert shifted.tolist() == [[12, 10, 32, 20], [10, 11, 30, 21]]


def test_sides_change_at_most_by_a_factor() -> None:
    found = decode(torch.tensor([0.0, 0, 16, 16]), torch.tensor([0.0, 0, 99, -99]))
    assert (found[2:] - found[:2]).tolist() == pytest.approx([1000, 0.256], rel=1e-4)


def test_classes_broadcast() -> None:
    boxes, deltas = torch.rand(5, 4).cumsum(1), torch.randn(5, 3, 4)
    every = decode(boxes[:, None], deltas)
    assert every.shape == (5, 3, 4)
    for label in range(3):
        assert torch.equal(every[:, label], decode(boxes, deltas[:, label]))
