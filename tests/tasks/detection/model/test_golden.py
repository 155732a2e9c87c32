"""The authors' checkpoints give the same outputs here as in their code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from golden import GOLDEN, golden_images, golden_weights, sha256
from torch import Tensor

from convnext.tasks.detection.model import training
from convnext.tasks.detection.model.boxes import decode, encode
from convnext.tasks.detection.model.detector import CascadeMaskRCNN
from convnext.tasks.detection.model.heads import METHODS, by_anchor, pool_rois
from convnext.tasks.detection.model.training import (
    box_loss,
    class_loss,
    mask_loss,
    objectness_loss,
    smooth_l1,
)
from convnext.tasks.factory import create_model
from convnext.weights import export_weights, load_weights

NAME = "cascade_mask_rcnn_convnext_tiny"
SIZE = (320, 416)
STAGES = [0, 1, 2]
STDS = [stage.stds for stage in METHODS["cascade_mask_rcnn_"].stages]
TOLERANCE, PIXELS = 1e-4, 1e-2

Golden = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def golden() -> Golden:
    with np.load(GOLDEN / f"{NAME}.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def detector(golden: Golden) -> CascadeMaskRCNN:
    weights = golden_weights(NAME)
    assert sha256(weights) == str(golden["weights_sha256"])
    with torch.device("meta"):
        model = create_model(NAME)
    model = model.to_empty(device="cpu").eval()
    report = load_weights(model, weights)
    assert (report.layout, report.missing, report.unexpected) == ("official", (), ())
    exported = export_weights(model, "official")
    assert exported.keys() == weights.keys()
    assert all(torch.equal(exported[name], weights[name]) for name in weights)
    assert isinstance(model, CascadeMaskRCNN)
    return model


@pytest.fixture(scope="module")
def backbone_maps(detector: CascadeMaskRCNN) -> list[Tensor]:
    with torch.inference_mode():
        maps = detector.output_norms(detector.backbone.pyramid(golden_images(*SIZE)))
    return list(maps.values())


@pytest.fixture(scope="module")
def maps(detector: CascadeMaskRCNN, backbone_maps: list[Tensor]) -> list[Tensor]:
    with torch.inference_mode():
        return detector.fpn(backbone_maps)


@pytest.fixture(scope="module")
def proposals(golden: Golden) -> Tensor:
    return torch.from_numpy(golden["fixed_proposals"])


def distance(ours: Tensor, golden: Golden, name: str) -> float:
    """Return the max difference to a stored tensor, at its stored strides."""
    strides = golden.get(f"{name}__stride", np.empty(0, np.int64))
    index = (..., *(slice(None, None, int(s)) for s in strides))
    part, theirs = ours[index].numpy(), golden[name]
    assert part.shape == theirs.shape
    return float(np.abs(part - theirs).max())


def test_maps_and_proposal_network(
    detector: CascadeMaskRCNN, backbone_maps: list[Tensor], maps: list[Tensor], golden: Golden
) -> None:
    for i, map_ in enumerate(backbone_maps):
        assert distance(map_, golden, f"backbone{i}") < TOLERANCE
    with torch.inference_mode():
        outputs = detector.rpn(maps)
    for i, (map_, (logits, deltas)) in enumerate(zip(maps, outputs, strict=True)):
        assert distance(map_, golden, f"fpn{i}") < TOLERANCE
        assert distance(logits, golden, f"rpn_cls{i}") < TOLERANCE
        assert distance(deltas, golden, f"rpn_reg{i}") < TOLERANCE


def test_proposals_and_those_that_vanished(
    detector: CascadeMaskRCNN, maps: list[Tensor], golden: Golden
) -> None:
    with torch.inference_mode():
        ((boxes, scores),) = detector.proposals(maps, [SIZE])
    theirs = torch.from_numpy(golden["rpn_proposals"])
    assert (scores - theirs[:, 4]).abs().max() < TOLERANCE
    # Compared as sets: nearly equal scores may swap.
    far = torch.cdist(boxes, theirs[:, :4], p=torch.inf)
    assert far.amin(0).max() < PIXELS
    assert far.amin(1).max() < PIXELS
    assert int(((boxes[:, 2:] - boxes[:, :2]) == 0).any(1).sum()) == 51


@pytest.mark.parametrize("stage", STAGES)
def test_heads_and_losses_on_fixed_proposals(
    detector: CascadeMaskRCNN, maps: list[Tensor], golden: Golden, proposals: Tensor, stage: int
) -> None:
    labels, boxes = (torch.from_numpy(golden[f"fixed_{what}"]) for what in ("labels", "targets"))
    with torch.inference_mode():
        logits, deltas = detector.box_logits(stage, maps, [proposals])
        masks = detector.mask_logits(stage, maps, [proposals[:8]])
        features = pool_rois(maps[:-1], detector.strides, [proposals], 7)
    # Every stage gets the same features.
    assert distance(features, golden, "s0.roi_feat") < TOLERANCE
    assert distance(logits, golden, f"s{stage}.cls_score") < TOLERANCE
    assert distance(deltas.flatten(1), golden, f"s{stage}.bbox_pred") < TOLERANCE
    assert distance(masks, golden, f"s{stage}.mask_logits") < TOLERANCE
    decoded = decode(proposals[:, None], deltas, STDS[stage], SIZE)
    assert distance(decoded.flatten(1), golden, f"s{stage}.decoded") < PIXELS
    found = (labels < 80).nonzero()[:, 0]
    regression = box_loss(
        "giou",
        proposals[found],
        deltas[found, labels[found]],
        boxes[found],
        stds=STDS[stage],
        num=len(labels),
    )
    losses = {
        "cls": class_loss(logits, labels),
        "bbox": 10 * regression,
        "mask": mask_loss(masks, labels[:8], torch.from_numpy(golden["mask_targets"])),
    }
    for name, loss in losses.items():
        wanted = float(golden[f"s{stage}.fixed.loss_{name}"])
        assert float(loss) == pytest.approx(wanted, abs=1e-5)


def test_the_cascade_refines_box_by_box(
    detector: CascadeMaskRCNN, maps: list[Tensor], golden: Golden, proposals: Tensor
) -> None:
    boxes = [proposals]
    for stage in STAGES:
        with torch.inference_mode():
            logits, deltas = detector.box_logits(stage, maps, boxes)
        assert distance(logits, golden, f"chain.s{stage}.cls_score") < TOLERANCE
        assert distance(deltas.flatten(1), golden, f"chain.s{stage}.bbox_pred") < TOLERANCE
        labels = logits[:, :-1].argmax(1)
        assert np.array_equal(labels.numpy(), golden[f"chain.s{stage}.label"])
        boxes = detector.refined(stage, boxes, deltas, labels, [SIZE])
        assert distance(boxes[0], golden, f"chain.s{stage}.refined") < PIXELS


@pytest.mark.parametrize("kind", ["fixed", "full"])
def test_detections_and_masks(
    detector: CascadeMaskRCNN, maps: list[Tensor], golden: Golden, proposals: Tensor, kind: str
) -> None:
    with torch.inference_mode():
        if kind == "fixed":
            (found,) = detector.detect(maps, [proposals], [SIZE])
        else:
            (found,) = detector(list(golden_images(*SIZE)))
    theirs = torch.from_numpy(golden[f"{kind}.det_bboxes"])
    labels = torch.from_numpy(golden[f"{kind}.det_labels"])
    assert len(found["boxes"]) == len(theirs)
    # Compared as sets: the nearest reference box of the same class.
    far = torch.cdist(found["boxes"], theirs[:, :4], p=torch.inf)
    far[found["labels"][:, None] != labels] = torch.inf
    nearest = far.argmin(1)
    assert sorted(nearest.tolist()) == list(range(len(theirs)))
    assert far.amin(1).max() < PIXELS
    assert (found["scores"] - theirs[nearest, 4]).abs().max() < TOLERANCE
    areas = golden[f"{kind}.det_mask_area"][nearest.numpy()]
    # A mask value may be closer to one half than the rounding error.
    assert np.abs(found["masks"].sum((1, 2)).numpy() - areas).max() <= 3
    first = np.unpackbits(golden[f"{kind}.det_masks20_packed"], axis=-1)[..., : SIZE[1]]
    stored = nearest < len(first)
    assert (found["masks"][stored].numpy() != first[nearest[stored].numpy()]).sum() <= 3


@pytest.fixture
def unsampled(
    detector: CascadeMaskRCNN, monkeypatch: pytest.MonkeyPatch
) -> tuple[CascadeMaskRCNN, float]:
    """The detector, trained on all available boxes."""
    all_of_them = replace(detector.config, rpn_batch_size=10**6, box_batch_size=10**6)
    monkeypatch.setattr(detector, "config", all_of_them)
    monkeypatch.setattr(training, "BOX_POSITIVE", 1.0)
    return detector


@pytest.fixture(scope="module")
def objects(golden: Golden) -> training.Objects:
    masks = np.unpackbits(golden["gt_masks_packed"], axis=-1)[..., : SIZE[1]]
    target = {"boxes": golden["gt_bboxes"], "labels": golden["gt_labels"], "masks": list(masks)}
    return training.read_target(target, torch.empty(3, *SIZE), 80)


def test_losses_of_the_proposal_network_by_level(
    unsampled: CascadeMaskRCNN, maps: list[Tensor], golden: Golden, objects: training.Objects
) -> None:
    anchors = unsampled.anchors(maps)
    with torch.inference_mode():
        outputs = unsampled.rpn(maps)
    levels = [by_anchor(*output) for output in outputs]
    every = torch.cat(anchors)
    positive, negative, boxes = training.choose_anchors(
        every, objects, unsampled.config, unsampled.method, None
    )
    num, start = len(positive) + len(negative), 0
    for level, (logits, deltas) in enumerate(levels):
        end = start + len(anchors[level])
        yes, no = ((x >= start) & (x < end) for x in (positive, negative))
        here = positive[yes] - start
        loss = objectness_loss(logits[0][here], logits[0][negative[no] - start], num)
        wanted = float(golden["nosample.loss_rpn_cls"][level])
        assert float(loss) == pytest.approx(wanted, abs=1e-5)
        coded = encode(anchors[level][here], boxes[yes])
        loss = smooth_l1(deltas[0][here], coded, unsampled.method.rpn_beta) / num
        wanted = float(golden["nosample.loss_rpn_bbox"][level])
        assert float(loss) == pytest.approx(wanted, abs=1e-6)
        start = end
    totals = training.rpn_losses(unsampled, maps, outputs, [objects], None)
    for name, key in (("rpn_class", "loss_rpn_cls"), ("rpn_box", "loss_rpn_bbox")):
        wanted = float(golden[f"nosample.{key}"].sum())
        assert float(totals[name]) == pytest.approx(wanted, abs=1e-5)


def test_losses_of_the_stages_in_a_row(
    unsampled: CascadeMaskRCNN,
    maps: list[Tensor],
    golden: Golden,
    objects: training.Objects,
    proposals: Tensor,
) -> None:
    boxes = [proposals]
    for s, stage in enumerate(unsampled.method.stages):
        chosen = training.choose_boxes(boxes[0], objects, unsampled.config, stage, None)
        with torch.inference_mode():
            losses, boxes = training.stage_losses(unsampled, s, maps, [chosen], [objects])
        for name, key in (("class", "cls"), ("box", "bbox"), ("mask", "mask")):
            wanted = float(golden[f"nosample.s{s}.loss_{key}"])
            assert float(losses[name]) == pytest.approx(wanted, abs=1e-5)
