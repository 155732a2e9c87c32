"""Detections of two backends of a network are matched and compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from convnext.data.masks import encode, paste_masks
from convnext.tasks.detection.export.proof import DetectionProof, compare, judge_detections
from convnext.tasks.detection.inference import Detections, compress

SIZE = (60, 80)
BOXES = np.array([[5.0, 5, 25, 25], [30, 10, 60, 50], [40, 12, 70, 52]])


def detections(boxes: Any = BOXES, scores: Any = (0.9, 0.8, 0.7), labels: Any = (0, 1, 0)) -> Any:
    boxes = np.asarray(boxes, float).reshape(-1, 4)
    pasted = paste_masks(torch.ones(len(boxes), 28, 28), torch.from_numpy(boxes), SIZE)
    window = (0, 0, SIZE[1], SIZE[0])
    return Detections(
        boxes=boxes,
        scores=np.asarray(scores, float),
        labels=np.asarray(labels, np.int64),
        masks=tuple(compress(encode(mask.numpy(), window, SIZE)) for mask in pasted),
        size=SIZE,
    )


def compared(network: Any, file: Any, plain: Any = None, **changes: Any) -> DetectionProof:
    settings: dict[str, Any] = {"min_score": 0.05, "max_detections": 100, "margin": 0.01, **changes}
    return compare([(network, file, plain or network)], **settings)


def test_equal_detections_are_all_paired() -> None:
    order = [2, 0, 1]
    other = detections(BOXES[order], np.array([0.9, 0.8, 0.7])[order], np.array([0, 1, 0])[order])
    found = compared(detections(), other)
    assert (found.num_detections, found.matched, found.matched_close) == (6, 1.0, 1.0)
    assert (found.score_difference, found.mask_iou) == (0.0, 1.0)


def test_what_differs_is_counted() -> None:
    moved = BOXES + np.array([[0, 0, 0, 0], [8, 0, 8, 0], [0, 0, 0, 0]])
    found = compared(detections(), detections(moved, (0.9, 0.8, 0.65), (0, 1, 1)))
    # The second has an IoU of 22 / 38; the third has another class.
    assert found.matched == pytest.approx(4 / 6)
    assert found.matched_close == pytest.approx(2 / 6)
    assert found.score_difference == 0.0
    assert found.mask_iou == pytest.approx((1 + 22 / 38) / 2)
    missing = compared(detections(), detections(BOXES[:2], (0.9, 0.8), (0, 1)))
    assert missing.matched == pytest.approx(4 / 5)
    own = compared(detections(), detections(), detections(BOXES[:2], (0.9, 0.8), (0, 1)))
    assert (own.matched, own.matched_own) == (1.0, pytest.approx(4 / 5))


def test_detections_at_a_threshold_may_come_and_go() -> None:
    fewer = detections(BOXES[:2], (0.9, 0.8), (0, 1))
    assert compared(detections(scores=(0.9, 0.8, 0.055)), fewer).matched == 1.0
    # At the end of a full list as well: 0.7 could be another detection of score 0.7.
    swapped = detections(BOXES + np.array([[0.0] * 4] * 2 + [[0, 30, 0, 30]]))
    assert compared(detections(), swapped).matched == pytest.approx(4 / 6)
    assert compared(detections(), swapped, max_detections=3).matched == 1.0


GOOD = DetectionProof(
    num_detections=100,
    matched=1.0,
    matched_close=1.0,
    matched_own=0.9,
    score_difference=1e-4,
    mask_iou=0.999,
)


@pytest.mark.parametrize(
    ("changes", "points", "num", "precision", "wrong"),
    [
        ({}, None, 32, "fp32", ""),
        ({"score_difference": 0.02}, None, 32, "fp32", "a score differs by 0.02"),
        ({"score_difference": 0.02}, None, 32, "fp16", ""),
        ({"score_difference": float("nan")}, None, 32, "int8", "differs by nan"),
        ({"matched": 0.9}, None, 32, "fp32", "only 90.0 % of the detections"),
        ({"mask_iou": 0.9}, None, 32, "fp32", "mean mask IoU is 90.0 %"),
        ({"mask_iou": None}, None, 32, "fp32", ""),
        ({"num_detections": 0}, None, 32, "fp32", "nothing can be compared"),
        ({"matched": 0.7}, (30.0, 29.8), 300, "int8", ""),
        ({"matched": 0.9}, (30.0, 29.0), 300, "int8", "1.00 points of box AP"),
        ({"mask_before": 30.0, "mask_after": 28.0}, (30.0, 30.0), 300, "int8", "of mask AP"),
    ],
)
def test_verdicts(changes: Any, points: Any, num: int, precision: str, wrong: str) -> None:
    before, after = points or (None, None)
    verdict = replace(GOOD, **changes)
    found = judge_detections(verdict, before, after, num, precision, any_found=True)
    assert bool(found) == bool(wrong)
    assert wrong in found


def test_detections_near_the_threshold_are_not_called_none() -> None:
    near = detections(scores=(0.055, 0.056, 0.057))
    verdict = compared(near, near)
    assert verdict.num_detections == 0
    found = judge_detections(verdict, None, None, 32, "fp32", any_found=True)
    assert "no detection is clearly above" in found
    found = judge_detections(verdict, None, None, 32, "fp32", any_found=False)
    assert "detects no object" in found
