"""Problems of a data set, worst first, and suggested settings.

Every image is decoded once in full; only hashes and other small facts are kept.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from convnext.data.doctor import read_all
from convnext.data.images import PICTURE, BadImage, Mode
from convnext.data.ranges import color_mode
from convnext.tasks.classification.data import ClassificationData, refusal

# Two images look alike if at most this many of the 256 bits of their sketches differ.
ALIKE_BITS = 8
# Smaller images have no sketch, since it would have too little information.
SKETCH_PIXELS = 32
# Max number of pairs of sketches to compare, which takes a minute.
MAX_PAIRS = 2_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspected:
    """Findings about one image."""

    part: str
    """"train" or "val"."""
    source: str
    label: int
    num_bytes: int
    reason: str = ""
    """Reason why it cannot be read; the fields below are then unset."""
    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    digest: bytes = b""
    """Hash of the pixels."""
    sketch: bytes = b""
    """32 bytes, similar for images that look alike; empty for small images."""
    is_blank: bool = False
    """Whether all pixels are the same."""
    is_gray: bool = False


def scan(data: ClassificationData, *, console: Console | None = None) -> list[Inspected]:
    """Read every image in threads, training images first, with a progress bar."""
    places = [("train", i) for i in range(len(data.train))]
    places += [("val", i) for i in range(len(data.val))]
    mode = color_mode(data.train)
    return read_all(places, lambda p: item(data, *p, mode), "reading images", console=console)


def item(data: ClassificationData, part: str, index: int, mode: Mode = PICTURE) -> Inspected:
    """Read one image."""
    samples = data.train if part == "train" else data.val
    source, label = samples.source(index), samples.labels[index]
    num_bytes = samples.num_bytes(index)
    samples.read_ahead(index)
    try:
        header = samples.header(index)
        image = samples.open(index, mode)
    except BadImage as error:
        return Inspected(
            part=part, source=source, label=label, num_bytes=num_bytes, reason=error.reason
        )
    extrema = [band for band in image.getextrema() if isinstance(band, tuple)]
    red, green, blue = image.split()
    return Inspected(
        part=part,
        source=source,
        label=label,
        num_bytes=num_bytes,
        width=header.width,
        height=header.height,
        mode=header.mode,
        format=header.format,
        digest=hashlib.blake2b(b"%d %d " % image.size + image.tobytes(), digest_size=16).digest(),
        sketch=sketch(image) if min(image.size) >= SKETCH_PIXELS else b"",
        is_blank=all(low == high for low, high in extrema),
        is_gray=red.tobytes() == green.tobytes() == blue.tobytes(),
    )


def sketch(image: Image.Image) -> bytes:
    """Return 256 bits: whether each cell of a 16 x 16 grid is brighter than its left neighbor."""
    cells = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX)).astype(int)
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes()


def near_duplicates(
    first: Sequence[Inspected], second: Sequence[Inspected]
) -> list[tuple[Inspected, Inspected]]:
    """Return pairs of images, one from each sequence, that look alike but have different pixels.

    Each image of `second` is paired with the nearest of `first`. Nothing is compared if there are
    too many pairs.
    """
    first = [item for item in first if item.sketch and not item.is_blank]
    second = [item for item in second if item.sketch and not item.is_blank]
    if not first or not second or len(first) * len(second) > MAX_PAIRS:
        return []
    ours = _words(first)
    pairs = []
    for other, words in zip(second, _words(second), strict=True):
        distances = np.bitwise_count(ours ^ words).sum(axis=1)
        nearest = int(distances.argmin())
        if distances[nearest] <= ALIKE_BITS and first[nearest].digest != other.digest:
            pairs.append((first[nearest], other))
    return pairs


def _words(inspected: Sequence[Inspected]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(item.sketch for item in inspected), np.uint64).reshape(-1, 4)


NUM_EXAMPLES = 5
# An image is tiny if its short side is smaller than the median by this factor.
TINY = 4
HUGE_PIXELS = 25_000_000
# A center crop shows less than a third of an image with a larger aspect ratio.
LONG = 3.0
# Classes with fewer training images are reported.
FEW = 10
# With fewer images per class, published weights help more than any other setting.
FEW_FOR_SCRATCH = 500


def find_problems(data: ClassificationData, inspected: Sequence[Inspected]) -> tuple[str, ...]:
    """Return one line per kind of problem, with its count and up to five examples."""
    good = [item for item in inspected if not item.reason]
    found = (find(data, good) for find in _FINDERS)
    first = _unreadable(data, [item for item in inspected if item.reason], len(inspected))
    rest = [line for lines in found for line in lines]
    reason = refusal(data)
    refused = [f"training is refused: {reason}"] if reason else []
    return (*refused, *first, *data.faults, *rest)


def find_suggestions(data: ClassificationData, inspected: Sequence[Inspected]) -> tuple[str, ...]:
    """Return suggestions for this data, each with the setting to use."""
    counts = Counter(item.label for item in inspected if item.part == "train")
    lines = []
    (largest, most), (smallest, fewest) = counts.most_common(1)[0], counts.most_common()[-1]
    if most >= 3 * fewest:
        lines.append(
            f"class {data.classes[smallest]} has {fewest:,} training images, class "
            f"{data.classes[largest]} has {most:,}: consider --loader.sampling balanced"
        )
    good = [item for item in inspected if not item.reason]
    side = statistics.median(min(item.width, item.height) for item in good) if good else 0
    usual = int(statistics.median(counts.values()))
    if usual < FEW_FOR_SCRATCH and side >= 64:
        lines.append(
            f"{usual:,} images per class are few: start from published weights (--weights, see "
            "convnext models)"
        )
    if side > 1000:
        lines.append(
            "most images are far larger than a network's input: copies with a short side of about "
            "512 pixels are read many times faster"
        )
    if good and all(item.is_gray for item in good) and any(item.mode != "L" for item in good):
        lines.append("all images are gray: --input.in_chans 1 uses a single channel")
    return tuple(lines)


def _unreadable(data: ClassificationData, bad: Sequence[Inspected], total: int) -> list[str]:
    if not bad:
        return []
    lines = [f"{_short(data, item)}: {item.reason}" for item in bad]
    return [f"images that cannot be read: {len(bad):,} of {total:,} ({_some(lines)})"]


def _leaks(data: ClassificationData, inspected: Sequence[Inspected]) -> list[str]:
    in_train = {item.digest: item for item in inspected if item.part == "train"}
    duplicates = [item for item in inspected if item.part == "val" and item.digest in in_train]
    if not duplicates:
        return []
    pairs = (f"{_short(data, t)} = {_short(data, in_train[t.digest])}" for t in duplicates)
    return [
        "validation images identical to a training image, which makes validation scores too high: "
        f"{len(duplicates):,} ({_some(pairs)})"
    ]


def _conflicts(data: ClassificationData, inspected: Sequence[Inspected]) -> list[str]:
    groups = [g for g in _groups(inspected) if len({item.label for item in g}) > 1]
    if not groups:
        return []
    shown = (" = ".join(_short(data, item) for item in group[:3]) for group in groups)
    return [f"identical images in several classes: {len(groups):,} ({_some(shown)})"]


def _repeats(data: ClassificationData, inspected: Sequence[Inspected]) -> list[str]:
    lines = []
    for part, what in (("train", "training"), ("val", "validation")):
        groups = _groups(item for item in inspected if item.part == part)
        groups = [g for g in groups if len({item.label for item in g}) == 1]
        surplus = sum(len(group) - 1 for group in groups)
        if surplus:
            shown = (" = ".join(_short(data, item) for item in group[:3]) for group in groups)
            lines.append(
                f"duplicate {what} images with identical pixels: {surplus:,} ({_some(shown)})"
            )
    return lines


def _rare_classes(data: ClassificationData, inspected: Sequence[Inspected]) -> list[str]:
    counts = Counter(item.label for item in inspected if item.part == "train")
    rare = [f"{data.classes[c]} ({n:,})" for c, n in sorted(counts.items()) if n < FEW]
    if not rare:
        return []
    return [
        f"classes with fewer than {FEW} readable training images: {len(rare):,} ({_some(rare)})"
    ]


def _similar(data: ClassificationData, inspected: Sequence[Inspected]) -> list[str]:
    train = [item for item in inspected if item.part == "train"]
    exact = {item.digest for item in train}
    val = [item for item in inspected if item.part == "val" and item.digest not in exact]
    pairs = [f"{_short(data, b)} ~ {_short(data, a)}" for a, b in near_duplicates(train, val)]
    if not pairs:
        return []
    return [
        "validation images that look like a training image, perhaps the same one saved again: "
        f"{len(pairs):,} ({_some(pairs)})"
    ]


def _odd(what: str, is_odd: Callable[[Inspected, float], bool]) -> Callable[..., list[str]]:
    """Return a finder of unusual images, given their look and the median short side."""

    def find(data: ClassificationData, inspected: Sequence[Inspected]) -> list[str]:
        if not inspected:
            return []
        median = statistics.median(min(item.width, item.height) for item in inspected)
        odd = [
            f"{_short(data, item)} ({item.width:,} x {item.height:,})"
            for item in inspected
            if is_odd(item, median)
        ]
        return [f"{what}: {len(odd):,} ({_some(odd)})"] if odd else []

    return find


def _is_tiny(item: Inspected, median: float) -> bool:
    return min(item.width, item.height) * TINY < median


def _is_huge(item: Inspected, median: float) -> bool:
    return item.width * item.height > HUGE_PIXELS


def _is_long(item: Inspected, median: float) -> bool:
    return max(item.width, item.height) > LONG * min(item.width, item.height)


def _is_blank(item: Inspected, median: float) -> bool:
    return item.is_blank


# Worst first.
_FINDERS: tuple[Callable[[ClassificationData, Sequence[Inspected]], list[str]], ...] = (
    _leaks,
    _conflicts,
    _rare_classes,
    _similar,
    _repeats,
    _odd("images of a single color", _is_blank),
    _odd("images much smaller than the others", _is_tiny),
    _odd("images so long that a center crop shows less than a third", _is_long),
    _odd(f"images of more than {HUGE_PIXELS / 1e6:.0f} million pixels, slow to read", _is_huge),
)


def _groups(inspected: Iterable[Inspected]) -> list[list[Inspected]]:
    """Return groups of two or more images with identical pixels."""
    by_digest: dict[bytes, list[Inspected]] = {}
    for item in inspected:
        by_digest.setdefault(item.digest, []).append(item)
    return [group for group in by_digest.values() if len(group) > 1]


def _short(data: ClassificationData, item: Inspected) -> str:
    """Return the path of an image relative to the data set."""
    return item.source.removeprefix(data.path).lstrip("/\\") or item.source


def _some(lines: Iterable[str]) -> str:
    lines = list(lines)
    more = len(lines) - NUM_EXAMPLES
    return "; ".join(lines[:NUM_EXAMPLES]) + (f"; and {more:,} more" if more > 0 else "")
