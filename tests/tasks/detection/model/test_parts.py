"""The parts of a detector: pyramid, proposals, RoI features, heads, selection."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchvision.ops import roi_align

from convnext.tasks.detection.model.boxes import iou, level_anchors, refine, select, stack
from convnext.tasks.detection.model.heads import (
    FPN,
    BoxHead,
    MaskHead,
    ProposalNetwork,
    by_anchor,
    pool_rois,
    propose,
    roi_levels,
)
from convnext.tasks.detection.model.training import box_loss, class_loss, mask_loss, objectness_loss

STDS = (0.1, 0.1, 0.2, 0.2)


def test_images_are_padded_at_the_right_and_below() -> None:
    images = [torch.ones(3, 30, 70), torch.ones(3, 65, 20)]
    batch, sizes = stack(images, 16)
    assert batch.shape == (2, 3, 96, 96)
    assert sizes == [(30, 70), (65, 20)]
    assert batch.sum((1, 2, 3)).tolist() == [3 * 30 * 70, 3 * 65 * 20]
    assert batch[0, :, :30, :70].all()
    assert stack(images, 64)[0].shape == (2, 3, 128, 128)
    for wrong in ([], [torch.ones(1, 3, 8, 8)]):
        with pytest.raises(ValueError, match=r"takes a non-empty list of images \(C, H, W\)"):
            stack(wrong, 32)


def test_the_pyramid_hands_meaning_down() -> None:
    fpn = FPN([4, 6, 8], 5)
    maps = [torch.randn(2, 4, 16, 12), torch.randn(2, 6, 8, 6), torch.randn(2, 8, 4, 3)]
    maps[2].requires_grad_()
    outputs = fpn(maps)
    shapes = [(16, 12), (8, 6), (4, 3), (2, 2)]
    assert [tuple(map_.shape) for map_ in outputs] == [(2, 5, *shape) for shape in shapes]
    assert torch.equal(outputs[3], outputs[2][:, :, ::2, ::2])
    outputs[0].sum().backward()
    assert maps[2].grad is not None
    assert maps[2].grad.abs().sum() > 0
    with torch.no_grad():
        top = fpn.outputs[2](fpn.laterals[2](maps[2]))
        middle = fpn.laterals[2](maps[2]).repeat_interleave(2, 2).repeat_interleave(2, 3)
        middle = fpn.outputs[1](fpn.laterals[1](maps[1]) + middle)
    assert torch.allclose(outputs[2], top, atol=1e-6)
    assert torch.allclose(outputs[1], middle, atol=1e-6)


def test_outputs_and_anchors_are_in_one_order() -> None:
    logits, deltas = torch.randn(2, 3, 4, 5), torch.randn(2, 12, 4, 5)
    flat, coded = by_anchor(logits, deltas)
    assert flat.shape == (2, 60)
    assert coded.shape == (2, 60, 4)
    y, x, a = 2, 3, 1
    position = (y * 5 + x) * 3 + a
    assert flat[1, position] == logits[1, a, y, x]
    assert torch.equal(coded[1, position], deltas[1, 4 * a : 4 * a + 4, y, x])
    center = level_anchors((4, 5), 8)[position].view(2, 2).mean(0)
    assert center.tolist() == [8 * x, 8 * y]


def test_proposals_are_the_best_and_no_doubles() -> None:
    torch.manual_seed(0)
    network = ProposalNetwork(8)
    maps = [torch.randn(1, 8, 16, 16), torch.randn(1, 8, 8, 8)]
    anchors = [level_anchors((16, 16), 4), level_anchors((8, 8), 8)]
    with torch.no_grad():
        levels = [by_anchor(10 * logits, deltas) for logits, deltas in network(maps)]
    logits, deltas = [level[0] for level, _ in levels], [level[0] for _, level in levels]
    size = (60, 50)
    boxes, scores = propose(anchors, logits, deltas, size=size, num_before=100, num_after=30)
    assert len(boxes) == len(scores) == 30
    assert scores[0] == torch.cat(logits).max().sigmoid()
    assert (scores.diff() <= 0).all()
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([50.0, 60, 50, 60])).all()
    (one, _), (other, _) = (
        propose([anchors[i]], [logits[i]], [deltas[i]], size=size, num_before=50, num_after=50)
        for i in (0, 1)
    )
    for own in (one, other):
        assert (iou(own, own) - torch.eye(len(own))).max() <= 0.7
    both, _ = propose(anchors, logits, deltas, size=size, num_before=50, num_after=10**6)
    assert len(both) == len(one) + len(other)


def test_boxes_without_a_width_stay() -> None:
    anchors = torch.tensor([[10.0, 10, 20, 20], [-40, 10, -20, 20], [-60, 12, -30, 22]])
    boxes, _ = propose(
        [anchors], [torch.zeros(3)], [torch.zeros(3, 4)], size=(64, 64), num_before=9, num_after=9
    )
    assert sorted(boxes.tolist()) == [[0, 10, 0, 20], [0, 12, 0, 22], [10, 10, 20, 20]]


def test_boxes_without_a_width_are_dropped_before_they_take_the_place_of_others() -> None:
    anchors = torch.tensor([[-40.0, 10, -20, 20], [-60, 12, -30, 22], [10, 10, 20, 20]])
    boxes, scores = propose(
        [anchors],
        [torch.tensor([3.0, 2.0, 1.0])],
        [torch.zeros(3, 4)],
        size=(64, 64),
        num_before=9,
        num_after=1,
        keep_empty=False,
    )
    assert boxes.tolist() == [[10, 10, 20, 20]]
    assert scores.item() == pytest.approx(torch.tensor(1.0).sigmoid().item())


@pytest.mark.parametrize(
    ("side", "level"),
    [(0, 0), (10, 0), (111, 0), (113, 1), (223, 1), (225, 2), (449, 3), (9999, 3)],
)
def test_a_box_takes_the_level_of_its_size(side: int, level: int) -> None:
    box = torch.tensor([[0.0, 0.0, side / 2, 2.0 * side]])
    assert roi_levels(box, [4, 8, 16, 32]).tolist() == [level]


def test_features_come_from_their_image_and_level_in_order() -> None:
    torch.manual_seed(0)
    strides = [4, 8]
    maps = [torch.randn(2, 3, 64, 64), torch.randn(2, 3, 32, 32)]
    small, large = [3.0, 5.0, 40.0, 31.0], [10.0, 20.0, 210.0, 180.0]
    boxes = [torch.tensor([large, small]), torch.tensor([small])]
    pooled = pool_rois(maps, strides, boxes, 7)
    for row, (image, box, level) in enumerate([(0, large, 1), (0, small, 0), (1, small, 0)]):
        roi = torch.tensor([[image, *box]])
        expected = roi_align(maps[level], roi, 7, 1 / strides[level], 0, aligned=True)
        assert torch.equal(pooled[row], expected[0])
    assert pool_rois(maps, strides, [boxes[0][:0]] * 2, 7).shape == (0, 3, 7, 7)
    half = pool_rois([map_.bfloat16() for map_ in maps], strides, boxes, 7)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), pooled, atol=0.03)


@pytest.mark.parametrize("kind", ["four_conv_fc", "two_fc"])
def test_box_head(kind: str) -> None:
    head = BoxHead(kind, channels=6, fc_dim=10, num_classes=4)
    for rows in (0, 3):
        logits, deltas = head.eval()(torch.randn(rows, 6, 7, 7))
        assert logits.shape == (rows, 5)
        assert deltas.shape == (rows, 4, 4)
    norms = [layer for layer in head.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == (4 if kind == "four_conv_fc" else 0)
    flat = head.fcs[0].weight.shape
    assert flat == (10, 6 * 49)


@pytest.mark.parametrize("num_classes", [1, 80])
def test_fresh_masks_are_undecided(num_classes: int) -> None:
    torch.manual_seed(0)
    head = MaskHead(channels=32, num_classes=num_classes)
    logits = head(torch.randn(2, 32, 14, 14))
    assert 0 < float(logits.detach().abs().max()) < 1


def test_mask_head() -> None:
    head = MaskHead(channels=6, num_classes=4)
    for rows in (0, 3):
        assert head(torch.randn(rows, 6, 14, 14)).shape == (rows, 4, 28, 28)


def test_boxes_follow_the_deltas_of_their_class() -> None:
    boxes = torch.tensor([[10.0, 10, 30, 30], [0, 0, 10, 10]])
    deltas = torch.zeros(2, 3, 4)
    deltas[0, 2, 0] = 1.0
    deltas[1, 0, 0] = 50.0
    moved = refine(boxes, deltas, torch.tensor([2, 1]), STDS, (40, 40))
    assert moved.tolist() == [[12, 10, 32, 30], [0, 0, 10, 10]]
    clipped = refine(boxes, deltas, torch.tensor([0, 0]), STDS, (40, 40))
    assert clipped.tolist() == [[10, 10, 30, 30], [40, 0, 40, 10]]


def test_detections_are_selected_per_class() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])[:, None].repeat(
        1, 2, 1
    )
    scores = torch.tensor([[0.9, 0.3], [0.8, 0.4], [0.04, 0.05]])
    limits = {"score_threshold": 0.05, "nms_threshold": 0.5}
    found, score, label = select(boxes, scores, **limits, max_detections=10)
    assert label.tolist() == [0, 1]
    assert score.tolist() == pytest.approx([0.9, 0.4])
    assert found.tolist() == [[0, 0, 10, 10], [0, 0, 10, 9]]
    assert len(select(boxes, scores, **limits, max_detections=1)[0]) == 1
    assert select(boxes, scores / 100, **limits, max_detections=1)[0].shape == (0, 4)


def test_losses_by_hand() -> None:
    loss = objectness_loss(torch.zeros(2), torch.zeros(6), 16)
    assert float(loss) == pytest.approx(8 * math.log(2) / 16)
    logits = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    loss = class_loss(logits, torch.tensor([2, 0]))
    assert float(loss) == pytest.approx((math.log(3) + math.log(1 + 2 * math.exp(-9))) / 2)
    masks = torch.zeros(1, 3, 2, 2)
    masks[0, 1] = torch.tensor([[50.0, 50.0], [-50.0, 50.0]])
    wanted = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert float(mask_loss(masks, torch.tensor([1]), wanted)) == pytest.approx(50 / 4)
    boxes, targets = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[1.0, 0, 11, 10]])
    loss = box_loss("l1", boxes, torch.zeros(1, 4), targets, stds=STDS, num=4)
    assert float(loss) == pytest.approx(1 / 4)
    loss = box_loss("giou", boxes, torch.zeros(1, 4), targets, stds=STDS, num=4)
    assert float(loss) == pytest.approx((1 - 90 / 110) / 4)
    right = box_loss("giou", boxes, torch.tensor([[1.0, 0, 0, 0]]), targets, stds=STDS, num=4)
    assert float(right) == pytest.approx(0, abs=1e-6)
