"""The assignment of boxes to objects, against hand computation and a plain loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from convnext.tasks.detection.model import boxes as matching
from convnext.tasks.detection.model.boxes import NEGATIVE, UNUSED, Thresholds, iou, match

RPN = Thresholds(positive=0.7, negative=0.3, low_quality=0.3)
STAGE = Thresholds(positive=0.5, negative=0.5)
OBJECTS = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
BOXES = torch.tensor(
    [
        [0.0, 0, 10, 10],
        [0, 0, 10, 9],
        [0, 0, 10, 5],
        [0, 0, 10, 2],
        [24, 0, 34, 10],
        [24, 0, 34, 10],
    ]
)

side = st.integers(1, 6)
box = st.tuples(st.integers(0, 8), st.integers(0, 8), side, side).map(
    lambda c: [c[0], c[1], c[0] + c[2], c[1] + c[3]]
)


def test_by_hand() -> None:
    # IoU with the first object: 1, 0.9, 0.5, 0.2; with the second: 60 / 140, twice.
    low = NEGATIVE
    assert match(BOXES, OBJECTS, STAGE).tolist() == [0, 0, 0, low, low, low]
    assert match(BOXES, OBJECTS, RPN).tolist() == [0, 0, UNUSED, low, 1, 1]
    strict = Thresholds(positive=0.7, negative=0.3)
    assert match(BOXES, OBJECTS, strict).tolist() == [0, 0, UNUSED, low, UNUSED, UNUSED]


def test_the_last_object_wins_a_box_that_is_best_for_two() -> None:
    objects = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12]])
    assert match(torch.tensor([[0.0, 0, 10, 10]]), objects, RPN).tolist() == [1]
    assert match(torch.tensor([[0.0, 0, 10, 10]]), objects, STAGE).tolist() == [0]


def test_nothing_there() -> None:
    assert match(BOXES, OBJECTS[:0], RPN).tolist() == [NEGATIVE] * 6
    assert match(BOXES[:0], OBJECTS, RPN).tolist() == []
    assert match(BOXES[:0], OBJECTS[:0], STAGE).tolist() == []


def test_regions_to_ignore() -> None:
    regions = torch.tensor([[0.0, 0, 10, 4]])
    ignoring = Thresholds(positive=0.5, negative=0.5, ignore=0.6)
    assert match(BOXES, OBJECTS, ignoring, regions).tolist() == [0, 0, UNUSED, UNUSED, -1, -1]
    assert match(BOXES, OBJECTS, ignoring).tolist() == match(BOXES, OBJECTS, STAGE).tolist()
    assert torch.equal(match(BOXES, OBJECTS, STAGE, regions), match(BOXES, OBJECTS, STAGE))


def plainly(boxes: Tensor, objects: Tensor, thresholds: Thresholds) -> list[int]:
    overlaps = iou(objects, boxes)
    found = []
    for column in overlaps.T:
        best = float(column.max())
        own = int(column.argmax())
        middle = UNUSED if best >= thresholds.negative else NEGATIVE
        found.append(own if best >= thresholds.positive else middle)
    if thresholds.low_quality is not None:
        for i, row in enumerate(overlaps):
            if row.max() >= thresholds.low_quality:
                for j in (row == row.max()).nonzero()[:, 0].tolist():
                    found[j] = i
    return found


@pytest.mark.parametrize("thresholds", [RPN, STAGE], ids=["rpn", "stage"])
@settings(deadline=None, derandomize=True)
@given(st.lists(box, min_size=1, max_size=9), st.lists(box, min_size=1, max_size=4), st.data())
def test_matching_in_chunks_is_the_plain_loop(
    thresholds: Thresholds, boxes: list[list[int]], objects: list[list[int]], data: st.DataObject
) -> None:
    ours, theirs = torch.tensor(boxes).float(), torch.tensor(objects).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "MAX_PAIRS", data.draw(st.integers(1, 40)))
        assert match(ours, theirs, thresholds).tolist() == plainly(ours, theirs, thresholds)
