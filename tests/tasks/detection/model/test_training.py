"""The losses of a detector: always finite, reproducible by seed, and decreasing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_detectors import METHODS, random_target, small_detector
from torch import Tensor, nn

from convnext.tasks.detection.model.heads import METHODS as METHOD_TABLE
from convnext.tasks.detection.model.heads import DetectorConfig
from convnext.tasks.detection.model.training import choose_anchors, choose_boxes, read_target

SIZE = (64, 96)
NAMES = {
    "mask_rcnn_": ["rpn_class", "rpn_box", "class", "box", "mask"],
    "cascade_mask_rcnn_": [
        "rpn_class",
        "rpn_box",
        *(f"stage{s}_{name}" for s in range(3) for name in ("class", "box", "mask")),
    ],
}


def build(method: str, **changes: Any) -> nn.Module:
    return small_detector(f"{method}convnext_atto", layer_scale_init=1.0, **changes)


def images(num: int = 1, size: tuple[int, int] = SIZE) -> list[Tensor]:
    return list(torch.randn(num, 3, *size, generator=torch.Generator().manual_seed(1)))


def empty() -> dict[str, Any]:
    return random_target(0, *SIZE)


@pytest.mark.parametrize("method", METHODS)
def test_names_seeds_and_the_state_of_chance(method: str) -> None:
    model = build(method, rpn_batch_size=20, box_batch_size=16)
    batch, targets = images(2), [random_target(4, *SIZE, seed=seed) for seed in (0, 1)]
    with torch.no_grad():
        first, again, other = (model.losses(batch, targets, seed) for seed in (0, 0, 1))
        called = model(batch, targets, 0)
    assert list(first) == NAMES[method]
    assert called == first
    assert first == again
    assert first != other


@pytest.mark.parametrize("method", METHODS)
def test_images_without_objects(method: str) -> None:
    model = build(method)
    losses = model.losses(images(2), [empty(), empty()], seed=0)
    for name, loss in losses.items():
        assert loss.isfinite()
        assert (loss == 0) == name.endswith(("box", "mask")), name
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    mixed = model.losses(images(2), [random_target(3, *SIZE), empty()], seed=0)
    assert all(loss.isfinite() and loss > 0 for loss in mixed.values())


@pytest.mark.parametrize(
    "precision",
    [
        torch.bfloat16,
        pytest.param(torch.float16, marks=pytest.mark.slow),  # Emulated on CPUs: a minute.
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("method", METHODS)
def test_a_thousand_objects_in_any_precision(method: str, precision: torch.dtype | None) -> None:
    model = build(method)
    target = random_target(1000, *SIZE)
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        losses = model.losses(images(), [target], seed=0)
    for loss in losses.values():
        assert loss.dtype == torch.float32
        assert loss.isfinite()
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("method", METHODS)
def test_proposals_that_vanish(method: str) -> None:
    model = build(method)
    with torch.no_grad():
        # Every box moves far to the left, where clipping leaves no width.
        model.rpn.deltas.bias.copy_(torch.tensor([-90.0, 0.0, 0.0, 0.0] * 3))
    model.eval()
    with torch.no_grad():
        ((boxes, _),) = model.proposals(model.features(torch.stack(images())), [SIZE])
    assert (boxes[:, 2] == boxes[:, 0]).all()
    losses = model.losses(images(), [random_target(3, *SIZE)], seed=0)
    assert all(loss.isfinite() for loss in losses.values())
    assert model(images())[0]["scores"].isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_objects_without_an_extent_are_left_out(method: str) -> None:
    model = build(method)
    target = random_target(3, *SIZE)
    flat = {
        "boxes": torch.cat((target["boxes"], torch.tensor([[5.0, 5.0, 5.0, 20.0]]))),
        "labels": torch.cat((target["labels"], torch.tensor([0]))),
        "masks": [*target["masks"], [[5.0, 5.0, 5.0, 20.0]]],
    }
    with torch.no_grad():
        assert model.losses(images(), [flat], 0) == model.losses(images(), [target], 0)


@pytest.mark.parametrize("method", METHODS)
def test_every_form_of_masks_gives_the_same_losses(method: str) -> None:
    model = build(method)
    target = random_target(3, *SIZE)
    target["boxes"] = target["boxes"].round()
    height, width = SIZE
    bitmaps = np.zeros((3, *SIZE), np.uint8)
    for bitmap, box in zip(bitmaps, target["boxes"].int().tolist(), strict=True):
        bitmap[box[1] : box[3], box[0] : box[2]] = 1
    rings = [[[b[0], b[1], b[2], b[1], b[2], b[3], b[0], b[3]]] for b in target["boxes"].tolist()]
    runs = []
    for bitmap in bitmaps:
        changes = np.flatnonzero(np.diff(bitmap.T.ravel(), prepend=0))
        counts = np.diff(np.concatenate(([0], changes, [height * width])))
        runs.append({"size": [height, width], "counts": counts.tolist()})
    with torch.no_grad():
        first, *others = (
            model.losses(images(), [target | {"masks": masks}], 0)
            for masks in (list(bitmaps), torch.from_numpy(bitmaps), rings, runs)
        )
    assert all(other == first for other in others)


@pytest.mark.parametrize("method", METHODS)
def test_a_few_steps_teach_something(method: str) -> None:
    model = build(method, box_batch_size=64)
    picture, target = torch.zeros(3, *SIZE), random_target(2, *SIZE)
    for x1, y1, x2, y2 in target["boxes"].int().tolist():
        picture[:, y1:y2, x1:x2] = 2.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for step in range(25):
        loss = sum(model.losses([picture], [target], seed=step).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert np.mean(totals[-5:]) < 0.6 * np.mean(totals[:3])


def test_own_boxes_of_objects_are_not_handed_on() -> None:
    stage = METHOD_TABLE["cascade_mask_rcnn_"].stages[0]
    objects = read_target(random_target(3, *SIZE), images()[0], 5)
    proposals = torch.rand(40, 4).sort(1).values[:, [0, 1, 2, 3]] * 60
    chosen = choose_boxes(proposals, objects, DetectorConfig(num_classes=5), stage, None)
    assert chosen.given.sum() == 3
    assert torch.equal(chosen.boxes[chosen.given], objects.boxes)
    assert torch.equal(chosen.labels[chosen.given], objects.labels)
    assert (chosen.labels[len(chosen.index) :] == 5).all()


def test_at_most_a_quarter_and_a_half_are_positive() -> None:
    method = METHOD_TABLE["mask_rcnn_"]
    objects = read_target(random_target(1, *SIZE), images()[0], 5)
    config = DetectorConfig(num_classes=5, box_batch_size=40, rpn_batch_size=20)
    near = objects.boxes + torch.randn(60, 4) * 0.1
    far = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).repeat(60, 1)
    chosen = choose_boxes(torch.cat((near, far)), objects, config, method.stages[0], None)
    assert (len(chosen.index), len(chosen.boxes)) == (10, 40)
    yes, no, boxes = choose_anchors(torch.cat((near, far)), objects, config, method, None)
    assert (len(yes), len(no)) == (10, 10)
    assert torch.equal(boxes, objects.boxes.expand(10, -1))


def test_regions_to_ignore_count_if_asked() -> None:
    method = METHOD_TABLE["mask_rcnn_"]
    target = random_target(1, *SIZE) | {"ignored": torch.tensor([[40.0, 40.0, 60.0, 60.0]])}
    objects = read_target(target, images()[0], 5)
    inside = torch.tensor([[45.0, 45.0, 55.0, 55.0]])
    for threshold, num in ((None, 2), (0.5, 1)):
        config = DetectorConfig(num_classes=5, ignore_threshold=threshold)
        chosen = choose_boxes(inside, objects, config, method.stages[0], None)
        assert len(chosen.boxes) == num


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0])}, "2 boxes, 1 labels and 2 masks"),
        ({"masks": []}, "2 boxes, 2 labels and 0 masks"),
        ({"masks": np.ones((2, 64, 90))}, r"is \(64, 96\) .* has masks of \(64, 90\)"),
        ({"masks": [{"size": [96, 64], "counts": [6144]}] * 2}, r"has masks of \(96, 64\)"),
        ({"labels": torch.tensor([0, 5])}, "labels must be from 0 to 4, .* num_classes=6"),
        ({"labels": torch.tensor([-1, 0])}, "labels must be from 0 to 4"),
        ({"boxes": torch.full((2, 4), torch.nan)}, "a coordinate that is not finite"),
    ],
)
def test_mistakes_in_targets_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("mask_rcnn_").losses(images(), [random_target(2, *SIZE) | change])


def test_what_a_target_lacks_is_named() -> None:
    target = {key: value for key, value in random_target(2, *SIZE).items() if key != "masks"}
    with pytest.raises(ValueError, match="a target has no masks; it has boxes, labels"):
        build("mask_rcnn_").losses(images(), [target])


def test_as_many_targets_as_images() -> None:
    with pytest.raises(ValueError, match="there are 2 images and 1 targets"):
        build("mask_rcnn_").losses(images(2), [empty()])


@pytest.mark.parametrize("method", METHODS)
def test_boxes_far_outside_take_no_memory(method: str) -> None:
    # RoIAlign would sample each of their pixels.
    detector = small_detector(f"{method}convnext_atto").train()
    target = {
        "boxes": torch.tensor([[-1e6, -1e6, 1e7, 1e7], [300.0, 300.0, 400.0, 400.0]]),
        "labels": torch.tensor([0, 1]),
        "masks": [None, None],
    }
    losses = detector.losses([torch.randn(3, 64, 64)], [target], seed=0)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("part", ["rpn.deltas", "rpn.conv", "box_heads.0.regressor"])
@pytest.mark.parametrize("method", METHODS)
def test_boxes_that_are_not_finite_are_a_loss_in_training_and_an_error_in_inference(
    method: str, part: str
) -> None:
    model = build(method, score_threshold=0.0)
    nn.init.constant_(model.get_submodule(part).weight, float("nan"))
    losses = model.losses(images(2), [random_target(4, *SIZE)] * 2, seed=0)
    # Without finite proposals, the heads learn from the true boxes.
    assert sum(losses.values()).isfinite() == (part == "rpn.deltas")
    with pytest.raises(ValueError, match="coordinates are not finite"), torch.no_grad():
        model.eval()(images())
