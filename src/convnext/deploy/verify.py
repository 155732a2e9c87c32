"""The proof of an exported file: run on real images, beside the network that it came from."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from convnext.data.images import BadImage, image_files
from convnext.data.samples import spread
from convnext.data.tensors import normalize_batch, to_batch
from convnext.deploy.runtimes import fill_up, filled_size, mean_pixel, open_as_network, votes
from convnext.tasks.detection.export.exported import ExportedDetector
from convnext.tasks.detection.export.pairing import DetectionProof
from convnext.weights.checkpoint import Card

# Largest difference of a probability, and least share of equal answers. Rounding to 10 bits of
# mantissa leaves some 1e-3, to 7 bits some 1e-2; int8 is judged by its answers.
MOST_DIFFERENCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 1.0}
LEAST_AGREEMENT = {"fp32": 0.995, "fp16": 0.97, "bf16": 0.93, "int8": 0.90}
# Points of accuracy or mIoU.
MOST_LOST = 0.5
NONE_CAN_BE_READ = "none of the images to prove the file on can be read"
# Images that a lost point must be seen on: of fewer, one image is more than half a point.
ENOUGH_IMAGES = 200


@dataclass(frozen=True)
class Proofs:
    """Images to prove a file on, each opened when it is needed."""

    files: Sequence[str]
    open: Callable[[int], Image.Image]
    truth: Callable[[int], Any] | None
    """The label of an image, its labels (H, W) and what to ignore of them, or its place among
    `labelled`; None where nothing is known."""
    calibration: Callable[[int], Iterator[Image.Image]]
    """Yields so many images, at most, of training where there are any."""
    labelled: Any = None
    """Of a detector, `DetectionImages` with the network's labels."""

    def images(self) -> Iterator[Image.Image]:
        """Yield the images that can be read.

        Raises:
            ValueError: If none can.
        """
        found = 0
        for k in range(len(self.files)):
            try:
                yield self.open(k)
            except BadImage:
                continue  # The data's own report tells of it.
            found += 1
        if not found:
            raise ValueError(NONE_CAN_BE_READ)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How a file compares with the network that it came from."""

    num_images: int
    max_difference: float
    """Of a probability, or of the score of a detection; 0 of a segmentor, whose labels count."""
    agreement: float
    """Share of images, of pixels, or of detections with the same answer."""
    metric: str
    before: float | None
    """In percent, of the network; None without labels."""
    after: float | None
    """Of the file."""
    speed_ratio: float
    """How many times as fast as the network in eager mode, on the same images in turns."""
    failure: str
    sensitivity: tuple[dict[str, Any], ...] = ()
    """Of int8: what each layer alone does to the outputs, the worst first."""
    keep_float: tuple[str, ...] = ()
    """Of int8: the layers that stayed in fp32."""
    detections: DetectionProof | None = None
    """Of a detector: what becomes of its detections, and AP of masks."""

    def rows(self) -> list[tuple[str, str]]:
        """Return for people what was found: names and figures."""
        rows = [("images", f"{self.num_images:,}")]
        if self.detections is not None:
            rows += self.detections.rows()
        else:
            if self.probabilities:
                difference = f"{self.max_difference:.2g}"
                rows.append(("largest difference of a probability", difference))
            rows.append(("same answers", f"{100 * self.agreement:.2f} %"))
        if self.before is not None and self.after is not None:
            change = f"{self.before:.2f} % before, {self.after:.2f} % after"
            rows.append((f"{self.metric} on them", change))
        if self.detections is not None and self.detections.mask_after is not None:
            d = self.detections
            change = f"{d.mask_before:.2f} % before, {d.mask_after:.2f} % after"
            rows.append(("mask AP on them", change))
        rows.append(("speed, one image at a time", f"{self.speed_ratio:.2f} times eager"))
        return rows

    @property
    def probabilities(self) -> bool:
        """Whether probabilities were compared: of a segmentor, labels are."""
        return self.metric == "top-1"

    @property
    def passed(self) -> bool:
        """Whether the file computes what the network does, as well as its precision can."""
        return not self.failure

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"passed": self.passed}


def collect(card: Card, source: str, images: Sequence[str | Path], num: int) -> Proofs:
    """Return the images to prove a file on: those given, else of the data that a run was made with.

    Raises:
        ValueError: If there are none.
    """
    if images:
        paths = image_files(images)
        chosen = [paths[i] for i in spread(len(paths), num)]
        return make_proofs([str(p) for p in chosen], _opener(card, chosen), None, None)
    if card.recipe.get("data") is None:
        raise ValueError(
            f"{source} does not say which images it was trained on; give --images FOLDER, so that "
            "the file can be proven on real ones"
        )
    if card.task == "detect":
        from convnext.tasks.detection.export.proof import collect_detections

        return collect_detections(card, source, num)
    if card.task == "segment":
        from convnext.tasks.segmentation.evaluate import open_split as open_pairs

        _, pairs = open_pairs(None, "val", card, source)
        _, train = open_pairs(None, "train", card, source)
        picked = spread(len(pairs), num)
        return make_proofs(
            [pairs.source(i) for i in picked],
            lambda k: pairs.open(picked[k], card.preprocessing.mode),
            lambda k: (pairs.mask(picked[k]), pairs.reader.ignore_index),
            lambda k: train.open(k, card.preprocessing.mode),
            len(train),
        )
    from convnext.tasks.classification.evaluate import open_split, relabel

    data = str(card.recipe["data"])
    val, train_samples = (
        relabel(*open_split(data, split, card, None), card.classes) for split in ("val", "train")
    )
    chosen_ones = spread(len(val), num)
    return make_proofs(
        [val.source(i) for i in chosen_ones],
        lambda k: val.open(chosen_ones[k], card.preprocessing.mode),
        lambda k: val.labels[chosen_ones[k]],
        lambda k: train_samples.open(k, card.preprocessing.mode),
        len(train_samples),
    )


def _opener(card: Card, paths: Sequence[Path]) -> Callable[[int], Image.Image]:
    from convnext.data.images import decode

    return lambda k: decode(paths[k], mode=card.preprocessing.mode)


def make_proofs(
    files: Sequence[str],
    open_one: Callable[[int], Image.Image],
    truth: Callable[[int], Any] | None,
    open_train: Callable[[int], Image.Image] | None,
    num_train: int = 0,
) -> Proofs:
    """Return images to prove a file on; without any of training, it is calibrated on the same."""
    opened, count = (open_train, num_train) if open_train else (open_one, len(files))

    def calibration(num: int) -> Iterator[Image.Image]:
        for k in spread(count, num):
            try:
                yield opened(k)
            except BadImage:
                continue  # The data's own report tells of it.

    return Proofs(files, open_one, truth, calibration)


def prove(model: nn.Module, card: Card, path: Path, proofs: Proofs, *, precision: str) -> Proof:
    """Run a file and its network on the same images.

    Images that cannot be read are left out.

    Raises:
        ValueError: If none can be read.
    """
    exported, own = open_as_network(path)
    if isinstance(exported, ExportedDetector):
        from convnext.tasks.detection.export.proof import prove_detector

        return prove_detector(model, card, exported, own, proofs, precision=precision)
    # Both look at a segmentor's images by the windows that the file takes.
    alike = _LikeTheFile(model, card, exported.graph) if card.task == "segment" else model
    both = [_answerer(alike, replace(card, recipe=own.recipe)), _answerer(exported, own)]
    differences, same, times = [], [], [[], []]  # type: ignore[var-annotated]
    hits: list[list[Any]] = [[], []]
    for k in range(len(proofs.files)):
        try:
            image = proofs.open(k)
        except BadImage:
            continue
        found = []
        for answer, seconds in zip(both, times, strict=True):
            began = time.perf_counter()
            found.append(answer(image))
            seconds.append(time.perf_counter() - began)
        (a, label_a), (b, label_b) = found
        if a is not None and b is not None:
            differences.append(float((a - b).abs().max()))
        same.append(float(np.mean(label_a == label_b)))
        if proofs.truth is not None:
            truth = proofs.truth(k)
            for score, label in zip(hits, (label_a, label_b), strict=True):
                score.append(_score(card, truth, label))
    if not same:
        raise ValueError(NONE_CAN_BE_READ)
    before, after = (_total(card, score) for score in hits)
    ratio = speed_ratio(*times)
    difference, agreement = max(differences, default=0.0), statistics.fmean(same)
    return Proof(
        num_images=len(same),
        max_difference=difference,
        agreement=agreement,
        metric="top-1" if card.task == "classify" else "mIoU",
        before=before,
        after=after,
        speed_ratio=ratio,
        failure=judge(difference, agreement, before, after, len(same), precision),
    )


def speed_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return the median ratio of seconds on the same images, in turns."""
    # The first images pay for the allocation of memory.
    skipped = min(2, len(slow) - 1)
    return statistics.median(
        a / b for a, b in itertools.islice(zip(slow, fast, strict=True), skipped, None)
    )


class _LikeTheFile(nn.Module):
    """A segmentor that is given windows of one size, and votes by labels, if its file does."""

    def __init__(self, model: nn.Module, card: Card, graph: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.graph = graph
        grey = normalize_batch(card.preprocessing, mean_pixel(card).view(1, -1, 1, 1)).flatten()
        self.colour = torch.zeros_like(grey) if graph["inside"] == "none" else grey

    def forward(self, images: Tensor) -> Tensor:
        size = filled_size(self.graph, *images.shape[2:])
        filled = fill_up(images, size, self.colour)
        logits: Tensor = self.model(filled)
        if self.graph["output"] == "labels":
            logits = votes(logits.argmax(1), logits.shape[1])
        return logits[..., : images.shape[2], : images.shape[3]]


def judge(
    difference: float,
    agreement: float,
    before: float | None,
    after: float | None,
    num_images: int,
    precision: str,
) -> str:
    """Return what is wrong with a file of a precision; empty if nothing is."""
    if not difference <= MOST_DIFFERENCE[precision]:
        return (
            f"a probability differs by {difference:.2g}, more than {MOST_DIFFERENCE[precision]:g}"
        )
    lost = None if before is None or after is None else before - after
    if lost is not None and num_images >= ENOUGH_IMAGES:
        if lost > MOST_LOST:
            return f"{lost:.2f} points are lost, more than {MOST_LOST}"
        return ""
    if agreement < LEAST_AGREEMENT[precision]:
        return (
            f"only {100 * agreement:.1f} % of the answers are the same, less than "
            f"{100 * LEAST_AGREEMENT[precision]:g} %"
        )
    return ""


def _answerer(model: nn.Module, card: Card) -> Callable[[Image.Image], tuple[Tensor | None, Any]]:
    """Return what maps an image to its probabilities (None for a segmentor) and its answer."""
    pre = card.preprocessing
    if card.task == "segment":
        from convnext.tasks.segmentation.inference import segment_labels
        from convnext.tasks.segmentation.looks import inference_of

        settings = inference_of(card.recipe)

        def labels(image: Image.Image) -> tuple[None, Any]:
            pixels = to_batch(pre, image)[0]
            found = segment_labels(
                model,
                pixels,
                settings=settings,
                size=(image.height, image.width),
                device=torch.device("cpu"),
                precision="fp32",
            )
            return None, found.numpy()

        return labels

    def probabilities(image: Image.Image) -> tuple[Tensor, Any]:
        with torch.inference_mode():
            found = model(to_batch(pre, image)).softmax(1)[0]
        return found, int(found.argmax())

    return probabilities


def _score(card: Card, truth: Any, label: Any) -> Any:
    if card.task == "classify":
        return float(truth == label)
    from convnext.tasks.segmentation.metric import count_confusion

    mask, ignore_index = truth
    return count_confusion(label, mask, len(card.classes), ignore_index)


def _total(card: Card, scores: Sequence[Any]) -> float | None:
    if not scores:
        return None
    if card.task == "classify":
        return 100 * statistics.fmean(scores)
    from convnext.tasks.segmentation.metric import class_iou

    return float(100 * np.nanmean(class_iou(np.sum(scores, 0))))
