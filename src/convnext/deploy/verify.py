"""The proof of an exported file: run on real images, beside the network that it came from.

What is compared is the task's: it hands in a `Comparison` of answers. Which images are read, how
they are timed, and what a proof says is the same for all.
"""

from __future__ import annotations

import itertools
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from PIL import Image

from convnext.data.images import BadImage, Mode, decode, image_files
from convnext.data.samples import spread
from convnext.hardware.timer import timed
from convnext.weights.checkpoint import Card, data_of

# Largest difference of a probability, and least share of equal answers. Rounding to 10 bits of
# mantissa leaves some 1e-3, to 7 bits some 1e-2; int8 is judged by its answers.
MOST_DIFFERENCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 1.0}
LEAST_AGREEMENT = {"fp32": 0.995, "fp16": 0.97, "bf16": 0.93, "int8": 0.90}
# Points of accuracy or mIoU.
MOST_LOST = 0.5
NONE_CAN_BE_READ = "none of the images to prove the file on can be read"
# Images that a lost point must be seen on: of fewer, one image is more than half a point.
ENOUGH_IMAGES = 200

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class ProofImages:
    """Images to prove a file on, each opened when it is needed."""

    files: Sequence[str]
    open: Callable[[int], Image.Image]
    truth: Callable[[int], Any] | None
    """What the task knows about an image; None where there are no labels."""
    open_training: Callable[[int], Image.Image]
    """Images to calibrate int8 on: of training where there are any, else the same ones."""
    num_training: int

    def images(self) -> Iterator[Image.Image]:
        """Yield the images that can be read.

        Raises:
            ValueError: If none can.
        """
        found = 0
        for image in _readable(self.open, range(len(self.files))):
            found += 1
            yield image
        if not found:
            raise ValueError(NONE_CAN_BE_READ)

    def calibration(self, num: int) -> Iterator[Image.Image]:
        """Yield so many images at most to calibrate on."""
        return _readable(self.open_training, spread(self.num_training, num))


def _readable(
    open_one: Callable[[int], Image.Image], indices: Sequence[int]
) -> Iterator[Image.Image]:
    for k in indices:
        try:
            yield open_one(k)
        except BadImage:
            continue  # The data's own report names it.


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
    """Return the images to prove a file on: those given, else of the data that a run was made with.

    Args:
        card: Of the network.
        source: What the user calls it.
        images: Files and folders; they have no labels.
        num: How many at most.
        open_split: Opens "val" or "train" of the run's own data.
        truth: What is known about an image of a split.

    Raises:
        ValueError: If there are none.
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
    data_of(source, card, "give --images FOLDER, so that the file can be proven on real images")
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
    """How a file compares with the network that it came from. A task may say more."""

    num_images: int
    max_difference: float
    """Of a probability, or of the score of a detection; 0 where only labels are compared."""
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
    """For int8: what each layer alone does to the outputs, the worst first."""
    keep_float: tuple[str, ...] = ()
    """For int8: the layers that stayed in fp32."""

    def rows(self) -> list[tuple[str, str]]:
        """Return for people what was found: names and figures."""
        return [
            ("images", f"{self.num_images:,}"),
            *self.answer_rows(),
            *metric_row(self.metric, self.before, self.after),
            *self.extra_metric_rows(),
            ("speed, one image at a time", f"{self.speed_ratio:.2f} times eager"),
        ]

    def answer_rows(self) -> list[tuple[str, str]]:
        """Return how the answers compare."""
        return [("same answers", f"{100 * self.agreement:.2f} %")]

    def extra_metric_rows(self) -> list[tuple[str, str]]:
        """Return metrics beside the first."""
        return []

    @property
    def passed(self) -> bool:
        """Whether the file computes what the network does, as well as its precision can."""
        return not self.failure

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"passed": self.passed}


def metric_row(metric: str, before: float | None, after: float | None) -> list[tuple[str, str]]:
    """Return the row of a metric; none where it is not known."""
    if before is None or after is None:
        return []
    return [(f"{metric} on them", f"{before:.2f} % before, {after:.2f} % after")]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a comparison found; the fields are those of `Proof`."""

    max_difference: float
    agreement: float
    metric: str
    before: float | None
    after: float | None
    failure: str


class Comparison(ABC, Generic[Answer]):
    """The answers of a network and of its file, side by side."""

    proof: type[Proof] = Proof
    """What is made of a verdict; its further fields are those of the verdict."""

    @abstractmethod
    def network(self, image: Image.Image) -> Answer:
        """Return the answer of the network.

        Raises:
            BadImage: If the image cannot be used; it is left out.
        """

    @abstractmethod
    def file(self, image: Image.Image) -> Answer:
        """Return the answer of the file."""

    @abstractmethod
    def add(self, image: Image.Image, network: Answer, file: Answer, truth: Any) -> None:
        """Take up the two answers, and what is known about the image (None for nothing)."""

    @abstractmethod
    def verdict(self, num_images: int, precision: str) -> Verdict:
        """Return how they compare, judged by what the precision allows."""


def prove(comparison: Comparison[Any], images: ProofImages, *, precision: str) -> Proof:
    """Run a file and its network on the same images, in turns.

    Images that cannot be read are left out.

    Raises:
        ValueError: If none can be read.
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
    """Return the median ratio of seconds on the same images, in turns."""
    # The first images pay for the allocation of memory.
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
