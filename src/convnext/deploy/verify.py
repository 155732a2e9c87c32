"""Verify an exported file: run it on real images and compare its outputs with the network's.

The task passes in a `Comparison` of outputs. Reading images, timing and reporting are common to all
tasks.
"""

from __future__ import annotations

import itertools
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from PIL import Image

from convnext.data.images import BadImage, Mode, decode, image_files, spread
from convnext.hardware.tuner import timed
from convnext.weights.checkpoint import Card, data_of

# Maximum difference of a probability, and minimum fraction of equal answers. Rounding to 10 bits of
# mantissa costs about 1e-3, to 7 bits about 1e-2; int8 is judged by its answers only.
MAX_DIFFERENCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 1.0}
MIN_AGREEMENT = {"fp32": 0.995, "fp16": 0.97, "bf16": 0.93, "int8": 0.90}
# Maximum loss, in points of accuracy or mIoU.
MAX_LOST = 0.5
NONE_CAN_BE_READ = "none of the images to verify the file on can be read"
# Minimum number of images to judge lost points: with fewer, one image is more than half a point.
ENOUGH_IMAGES = 200

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class ProofImages:
    """Images to verify a file on, opened lazily."""

    files: Sequence[str]
    open: Callable[[int], Image.Image]
    truth: Callable[[int], Any] | None
    """Returns the ground truth of an image; None if there are no labels."""
    open_training: Callable[[int], Image.Image]
    """Images to calibrate int8 on: training images if available, else the same ones."""
    num_training: int

    def images(self) -> Iterator[Image.Image]:
        """Yield the readable images.

        Raises:
            ValueError: If there are none.
        """
        found = 0
        for image in _readable(self.open, range(len(self.files))):
            found += 1
            yield image
        if not found:
            raise ValueError(NONE_CAN_BE_READ)

    def calibration(self, num: int) -> Iterator[Image.Image]:
        """Yield at most `num` images for calibration."""
        return _readable(self.open_training, spread(self.num_training, num))


def _readable(
    open_one: Callable[[int], Image.Image], indices: Sequence[int]
) -> Iterator[Image.Image]:
    for k in indices:
        try:
            yield open_one(k)
        except BadImage:
            continue  # The data set's report lists it.


class Split(Protocol):
    """A part of a data set of any task."""

    def __len__(self) -> int: ...
    def source(self, index: int, /) -> str: ...
    def open(self, index: int, mode: Mode, /) -> Image.Image: ...


S = TypeVar("S", bound=Split)


def collect_images(
    card: Card,
    source: str,
    images: Sequence[str | Path],
    num: int,
    *,
    open_split: Callable[[str], S],
    truth: Callable[[S, int], Any],
) -> ProofImages:
    """Return the images to verify a file on: those given, or else those of the run's data set.

    Args:
        card: The network's card.
        source: The user's name for the network.
        images: Files and folders, without labels.
        num: Maximum number of images.
        open_split: Opens "val" or "train" of the run's data set.
        truth: Returns the ground truth of an image of a split.

    Raises:
        ValueError: If there are no images.
    """
    mode = card.preprocessing.mode
    if images:
        paths = image_files(images)
        chosen = [paths[i] for i in spread(len(paths), num)]

        def open_file(k: int) -> Image.Image:
            return decode(chosen[k], mode=mode)

        return ProofImages(
            files=[str(path) for path in chosen],
            open=open_file,
            truth=None,
            open_training=open_file,
            num_training=len(chosen),
        )
    data_of(source, card, "give --images FOLDER, so that the file can be verified on real images")
    val, train = open_split("val"), open_split("train")
    picked = spread(len(val), num)
    return ProofImages(
        files=[val.source(i) for i in picked],
        open=lambda k: val.open(picked[k], mode),
        truth=lambda k: truth(val, picked[k]),
        open_training=lambda k: train.open(k, mode),
        num_training=len(train),
    )


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The result of comparing a file with its network. Tasks add fields."""

    num_images: int
    max_difference: float
    """Difference of probabilities, or of detection scores; 0 if only labels are compared."""
    agreement: float
    """Fraction of images, pixels or detections with the same answer."""
    metric: str
    before: float | None
    """The network's metric in percent; None without labels."""
    after: float | None
    """The file's metric in percent; None without labels."""
    speed_ratio: float
    """Speedup over the network in eager mode, measured in turns on the same images."""
    failure: str
    sensitivity: tuple[dict[str, Any], ...] = ()
    """For int8: how much each layer alone changes the outputs, most sensitive first."""
    keep_float: tuple[str, ...] = ()
    """For int8: the layers that stayed in fp32."""
    network: str = "network"
    """What gave `before`: the network, with how it ran if not as in `evaluate`."""

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values for printing."""
        return [
            ("images", f"{self.num_images:,}"),
            *self.answer_rows(),
            *metric_row(self.metric, self.before, self.after, self.network),
            *self.extra_metric_rows(),
            ("speedup over eager mode", f"{self.speed_ratio:.2f}x at batch size 1"),
        ]

    def answer_rows(self) -> list[tuple[str, str]]:
        """Return the rows that compare the answers."""
        return [("same answers", f"{100 * self.agreement:.2f} %")]

    def extra_metric_rows(self) -> list[tuple[str, str]]:
        """Return the rows of metrics other than the primary one."""
        return []

    @property
    def passed(self) -> bool:
        """Whether the outputs match the network's within the tolerance of the precision."""
        return not self.failure

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"passed": self.passed}


def metric_row(
    metric: str, before: float | None, after: float | None, network: str = "network"
) -> list[tuple[str, str]]:
    """Return the row of a metric; no row if it is unknown."""
    if before is None or after is None:
        return []
    return [(f"{metric} on these images", f"{network} {before:.2f} %, file {after:.2f} %")]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of a comparison, with fields of `Proof`."""

    max_difference: float
    agreement: float
    metric: str
    before: float | None
    after: float | None
    failure: str
    network: str = "network"


class Comparison(ABC, Generic[Answer]):
    """Compares the answers of a network with those of its file."""

    proof: type[Proof] = Proof
    """The class of the proof; it has all fields of the verdict."""

    @abstractmethod
    def network(self, image: Image.Image) -> Answer:
        """Return the answer of the network.

        Raises:
            BadImage: If the image cannot be used; it is skipped.
        """

    @abstractmethod
    def file(self, image: Image.Image) -> Answer:
        """Return the answer of the file."""

    @abstractmethod
    def add(self, image: Image.Image, network: Answer, file: Answer, truth: Any) -> None:
        """Add a pair of answers, with the ground truth of the image (None if unknown)."""

    @abstractmethod
    def verdict(self, num_images: int, precision: str) -> Verdict:
        """Return the result, judged by the tolerance of the precision."""


class ScoredComparison(Comparison[Answer]):
    """Averages how far answers agree, and scores those to images with labels."""

    metric: ClassVar[str]
    """The name of the score."""
    described: str = "network"
    """What gives the answers that the file's are compared with; see `Proof.network`."""

    def __init__(self) -> None:
        self.differences: list[float] = []
        self.same: list[float] = []
        self.scored: list[tuple[Any, Any]] = []
        """For each labeled image, what `score` needs of the network's and of the file's answer."""

    @abstractmethod
    def score(self, scored: Sequence[Any]) -> float:
        """Return the score over all labeled images, in percent."""

    def verdict(self, num_images: int, precision: str) -> Verdict:
        difference = max(self.differences, default=0.0)
        agreement = statistics.fmean(self.same)
        before = after = None
        if self.scored:
            before, after = (self.score(column) for column in zip(*self.scored, strict=True))
        return Verdict(
            max_difference=difference,
            agreement=agreement,
            metric=self.metric,
            before=before,
            after=after,
            failure=judge(difference, agreement, before, after, num_images, precision),
            network=self.described,
        )


def prove(comparison: Comparison[Any], images: ProofImages, *, precision: str) -> Proof:
    """Run a file and its network in turns on the same images.

    Unreadable images are skipped.

    Raises:
        ValueError: If no image is readable.
    """
    slow: list[float] = []
    fast: list[float] = []
    for k in range(len(images.files)):
        try:
            image = images.open(k)
            network, network_s = timed(partial(comparison.network, image))
        except BadImage:
            continue
        file, file_s = timed(partial(comparison.file, image))
        slow.append(network_s)
        fast.append(file_s)
        truth = None if images.truth is None else images.truth(k)
        comparison.add(image, network, file, truth)
    if not slow:
        raise ValueError(NONE_CAN_BE_READ)
    verdict = comparison.verdict(len(slow), precision)
    found = {field.name: getattr(verdict, field.name) for field in fields(verdict)}
    return comparison.proof(num_images=len(slow), speed_ratio=speed_ratio(slow, fast), **found)


def speed_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return the median ratio of two lists of seconds, measured in turns on the same images."""
    # The first images include the allocation of memory.
    skipped = min(2, len(slow) - 1)
    return statistics.median(
        a / b for a, b in itertools.islice(zip(slow, fast, strict=True), skipped, None)
    )


def judge(
    difference: float,
    agreement: float,
    before: float | None,
    after: float | None,
    num_images: int,
    precision: str,
) -> str:
    """Return the reason why a file fails verification; empty if it passes."""
    if not difference <= MAX_DIFFERENCE[precision]:
        return f"a probability differs by {difference:.2g}, more than {MAX_DIFFERENCE[precision]:g}"
    lost = None if before is None or after is None else before - after
    if lost is not None and num_images >= ENOUGH_IMAGES:
        if lost > MAX_LOST:
            return f"it loses {lost:.2f} points, more than {MAX_LOST}"
        return ""
    if agreement < MIN_AGREEMENT[precision]:
        return (
            f"only {100 * agreement:.1f} % of the answers are equal, less than "
            f"{100 * MIN_AGREEMENT[precision]:g} %"
        )
    return ""
