"""Boundaries against plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from convnext.tasks.segmentation.metric import TOLERANCE, Metric, count_boundaries, find_boundaries


def slow_boundaries(labels: Any, mask: Any, c: int) -> list[tuple[int, int]]:
    """Pixels of a class next to a labeled pixel of another class."""
    height, width = labels.shape
    return [
        (y, x)
        for y in range(height)
        for x in range(width)
        if labels[y, x] == c and mask[y, x] != 255
        and any(
            labels[v, u] != c and mask[v, u] != 255
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
            if 0 <= v < height and 0 <= u < width
        )
    ]  # fmt: skip


def blobs(seed: int, shape: tuple[int, int]) -> Any:
    coarse = np.random.default_rng(seed).integers(0, 3, (shape[0] // 5 + 1, shape[1] // 5 + 1))
    return np.kron(coarse, np.ones((5, 5), int))[: shape[0], : shape[1]].astype(np.uint8)


@pytest.mark.parametrize("shape", [(20, 30), (17, 280)])
def test_counts_against_loops(shape: tuple[int, int]) -> None:
    mask, labels = blobs(0, shape), blobs(1, shape)
    mask[4:9, 6:14] = 255
    reach = max(1.0, TOLERANCE * math.hypot(*shape))
    counts = count_boundaries(labels, mask, 4)
    for c in range(4):
        found, true = slow_boundaries(labels, mask, c), slow_boundaries(mask, mask, c)

        def met(some: Any, others: Any) -> int:
            return sum(any(math.dist(a, b) <= reach for b in others) for a in some)

        expected = [met(found, true), len(found), met(true, found), len(true)]
        assert counts[:, c].tolist() == expected
    assert counts[:, :3].all()


def test_one_class_has_no_boundary() -> None:
    assert not find_boundaries(np.zeros((4, 4)), np.ones((4, 4), bool)).any()
    metric = Metric(("a", "b"), boundary=True)
    metric.update(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), 0)
    result = metric.compute()
    assert result.boundary_f1 is None
    assert [score.boundary_f1 for score in result.per_class] == [None, None]


@pytest.mark.parametrize(("shift", "expected"), [(0, 100.0), (1, 100.0), (2, 100.0), (8, 0.0)])
def test_a_shift_within_the_tolerance_costs_nothing(shift: int, expected: float) -> None:
    mask = np.zeros((180, 240), np.uint8)  # a diagonal of 300 pixels: 2.25 are tolerated
    mask[:, 100:] = 1
    metric = Metric(("a", "b"), boundary=True)
    metric.update(np.roll(mask, shift, 1)[:, 20:], mask[:, 20:], 0)
    assert metric.compute().boundary_f1 == pytest.approx(expected)
