"""The proof of a detector's file: its detections on real images, beside those of the network."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from convnext.data.images import BadImage
from convnext.data.samples import spread
from convnext.data.tensors import to_batch
from convnext.deploy.verify import (
    ENOUGH_IMAGES,
    MOST_LOST,
    NONE_CAN_BE_READ,
    Proof,
    Proofs,
    make_proofs,
    speed_ratio,
)
from convnext.tasks.detection.export.exported import ExportedDetector, OnCanvas
from convnext.tasks.detection.export.pairing import DetectionProof, compare
from convnext.tasks.detection.inference import Detections, detect
from convnext.tasks.detection.metric import Metric
from convnext.tasks.detection.model.batch import padded_size, stack
from convnext.tasks.detection.model.detector import Detector
from convnext.weights.checkpoint import Card

# Largest difference of a score, least share of detections with a partner, and of their masks' mean
# overlap. Half precision moves a box now and then over the threshold of a suppression.
MOST_DIFFERENCE = {"fp32": 5e-3, "fp16": 5e-2, "bf16": 2e-1, "int8": 1.0}
LEAST_MATCHED = {"fp32": 0.99, "fp16": 0.95, "bf16": 0.90, "int8": 0.80}
LEAST_MASK_IOU = {"fp32": 0.98, "fp16": 0.95, "bf16": 0.90, "int8": 0.80}
# By how much a score may differ before a detection at its threshold counts.
MARGIN = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 1e-1}
CPU = torch.device("cpu")


def collect_detections(card: Card, source: str, num: int) -> Proofs:
    """Return images of the data that a detector was trained on.

    Raises:
        ValueError: If it is gone.
    """
    from convnext.tasks.detection.evaluate import open_split

    _, val = open_split(None, "val", card, source)
    _, train = open_split(None, "train", card, source)
    picked, mode = spread(len(val), num), card.preprocessing.mode
    proofs = make_proofs(
        [val.source(i) for i in picked],
        lambda k: val.open(picked[k], mode),
        lambda k: picked[k],
        lambda k: train.open(k, mode),
        len(train),
    )
    return replace(proofs, labelled=val)


class _Network(nn.Module):
    """A detector on images with more zeros around them, as in a batch with larger ones."""

    def __init__(self, detector: Detector, canvas: tuple[int, int]) -> None:
        super().__init__()
        self.detector = detector
        self.canvas = canvas

    def forward(self, images: list[Tensor], *, paste: bool) -> Any:
        detector = self.detector
        nothing = images[0].new_zeros(len(images[0]), *self.canvas)
        batch, sizes = stack([*images, nothing], detector.strides[-1])
        maps = detector.features(batch[:-1])
        proposals = [boxes for boxes, _ in detector.proposals(maps, sizes[:-1])]
        return detector.detect(maps, proposals, sizes[:-1], paste=paste)


def prove_detector(
    model: nn.Module,
    card: Card,
    exported: ExportedDetector,
    own: Card,
    proofs: Proofs,
    *,
    precision: str,
) -> Proof:
    """Run a detector's file and its network on the same images.

    Raises:
        ValueError: If none can be read.
    """
    assert isinstance(model, Detector)
    canvas: tuple[int, int] = tuple(exported.graph["canvas"])
    fitted = OnCanvas(inner=card.preprocessing, size=canvas)
    padded = _Network(model, canvas)
    found: list[tuple[Detections, Detections, Detections]] = []
    indices: list[int] = []
    times: tuple[list[float], list[float]] = ([], [])
    for k in range(len(proofs.files)):
        try:
            image = proofs.open(k)
            began = time.perf_counter()
            plain = _detect(model, card.preprocessing, image)
        except BadImage:
            continue
        times[0].append(time.perf_counter() - began)
        began = time.perf_counter()
        file = _detect(exported, own.preprocessing, image)
        times[1].append(time.perf_counter() - began)
        is_plain = _fills(model, card.preprocessing.size_of(*image.size), canvas)
        network = plain if is_plain else _detect(padded, fitted, image)
        found.append((network, file, plain))
        if proofs.truth is not None:
            indices.append(proofs.truth(k))
    if not found:
        raise ValueError(NONE_CAN_BE_READ)
    tolerance = precision
    if exported.graph["inside"] == "full" and precision == "fp32":
        tolerance = "fp16"  # A pixel is now and then rounded the other way.
    config = exported.config
    compared = compare(
        found,
        least_score=config.score_threshold,
        most=config.max_detections,
        margin=MARGIN[tolerance],
    )
    before = after = None
    if indices:
        box, masks = [], []
        for column in (2, 1):
            metric = Metric(proofs.labelled, card.classes, config.max_detections)
            for index, three in zip(indices, found, strict=True):
                metric.update(index, three[column])
            evaluation = metric.compute()
            box.append(evaluation.box.ap)
            masks.append(None if evaluation.mask is None else evaluation.mask.ap)
        before, after = box
        compared = replace(compared, mask_before=masks[0], mask_after=masks[1])
        if None in masks:
            compared = replace(compared, mask_before=None, mask_after=None)
    return Proof(
        num_images=len(found),
        max_difference=compared.score_difference,
        agreement=compared.matched,
        metric="box AP",
        before=before,
        after=after,
        speed_ratio=speed_ratio(*times),
        failure=judge_detections(
            *(compared, before, after, len(found), tolerance),
            any_found=any(len(d) for network, file, _ in found for d in (network, file)),
        ),
        detections=compared,
    )


def _fills(model: Detector, size: tuple[int, int], canvas: tuple[int, int]) -> bool:
    """Whether an image read at `size` (width, height) is padded to just the canvas."""
    return padded_size([(size[1], size[0])], model.strides[-1]) == canvas


def _detect(network: nn.Module, preprocessing: Any, image: Image.Image) -> Detections:
    with torch.inference_mode():
        pixels = to_batch(preprocessing, image)[0]
        size = (image.height, image.width)
        return detect(network, pixels, size, device=CPU, precision="fp32")


def judge_detections(
    compared: DetectionProof,
    before: float | None,
    after: float | None,
    num_images: int,
    precision: str,
    *,
    any_found: bool,
) -> str:
    """Return what is wrong with a file of a precision; empty if nothing is.

    Args:
        compared: How the detections of the file compare with the network's.
        before: Box AP of the network in percent; None without labels.
        after: Of the file.
        num_images: On which both were run.
        precision: Whose limits hold.
        any_found: Whether either of them detected anything, however near the threshold.
    """
    if not compared.num_detections:
        if any_found:
            return (
                "of the detections none is surely above the threshold of the score, which proves "
                "nothing: give other images with --images"
            )
        return "nothing was detected on any image, which proves nothing: give others with --images"
    if not compared.score_difference <= MOST_DIFFERENCE[precision]:
        return (
            f"a score differs by {compared.score_difference:.2g}, more than "
            f"{MOST_DIFFERENCE[precision]:g}"
        )
    if num_images >= ENOUGH_IMAGES:
        pairs = ((before, after, "box"), (compared.mask_before, compared.mask_after, "mask"))
        for old, new, name in pairs:
            if old is not None and new is not None and old - new > MOST_LOST:
                return f"{old - new:.2f} points of {name} AP are lost, more than {MOST_LOST}"
        if before is not None:
            return ""
    if compared.matched < LEAST_MATCHED[precision]:
        return (
            f"only {100 * compared.matched:.1f} % of the detections are found by both, less than "
            f"{100 * LEAST_MATCHED[precision]:g} %"
        )
    if compared.mask_iou is not None and compared.mask_iou < LEAST_MASK_IOU[precision]:
        return (
            f"masks overlap by {100 * compared.mask_iou:.1f} % in the mean, less than "
            f"{100 * LEAST_MASK_IOU[precision]:g} %"
        )
    return ""
