"""Problems of a data set, worst first, and suggested settings.

Every image is decoded once in full; only hashes and other small facts are kept.
"""

from __future__ import annotations

import statistics
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Unpack

from convnext.data import doctor
from convnext.data.doctor import Alike, Scan, ScanOptions, alike_advice
from convnext.data.facts import FactsCache, ImageFacts, facts_of
from convnext.data.images import BadImage
from convnext.data.samples import FolderSamples, Samples
from convnext.tasks.classification.data import ClassificationData, class_counts, refusal


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspected:
    """Findings about one image."""

    part: str
    """"train", "val" or "test"."""
    source: str
    label: int
    """Its class; a hash of all labels if there may be several."""
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


def scan(data: ClassificationData, **how: Unpack[ScanOptions]) -> Scan[Inspected]:
    """Read every image, training images first; the arguments are those of `doctor.scan`."""
    parts = data.parts
    places = [(part, i) for part, samples in parts.items() for i in range(len(samples))]

    def read(place: tuple[str, int], facts: FactsCache) -> Inspected:
        part, index = place
        return item(part, parts[part], index, facts)

    return doctor.scan(data.path, places, read, "reading images", **how)


def item(part: str, samples: Samples, index: int, cache: FactsCache) -> Inspected:
    """Read one image."""
    source, label = samples.source(index), samples.labels[index]
    if samples.targets is not None:
        label = zlib.crc32(samples.targets[index].tobytes())
    num_bytes = samples.num_bytes(index)
    samples.read_ahead(index)
    try:
        facts = _facts(samples, index, cache)
    except BadImage as error:
        return Inspected(
            part=part, source=source, label=label, num_bytes=num_bytes, reason=error.reason
        )
    return Inspected(
        part=part,
        source=source,
        label=label,
        num_bytes=num_bytes,
        width=facts.width,
        height=facts.height,
        mode=facts.mode,
        format=facts.format,
        digest=facts.digest,
        sketch=facts.sketch,
        is_blank=facts.is_blank,
        is_gray=facts.is_gray,
    )


def _facts(samples: Samples, index: int, cache: FactsCache) -> ImageFacts:
    """Return the facts about an image; those about members of shards are not cached.

    Raises:
        BadImage: If it cannot be read.
    """
    if isinstance(samples, FolderSamples):
        return cache.read(samples.source(index))
    header = samples.header(index)
    return facts_of(samples.open(index, header.whole_mode), header)


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


def find_problems(data: ClassificationData, scan: Scan[Inspected]) -> tuple[str, ...]:
    """Return one line per kind of problem, with its count and up to five examples."""
    inspected = scan.inspected
    good = [item for item in inspected if not item.reason]
    found = [
        *_leaks(data, good),
        *_conflicts(data, good),
        *_rare_classes(data, good),
        *_similar(data, scan.alike),
        *_repeats(data, good),
        *(line for find in _ODD for line in find(data, good)),
    ]
    first = _unreadable(data, [item for item in inspected if item.reason], len(inspected))
    reason = refusal(data)
    refused = [f"training is refused: {reason}"] if reason else []
    return (*refused, *first, *data.faults, *found)


def find_suggestions(data: ClassificationData, inspected: Sequence[Inspected]) -> tuple[str, ...]:
    """Return suggestions for this data, each with the setting to use."""
    counts = _train_counts(data)
    lines = []
    (largest, most), (smallest, fewest) = counts.most_common(1)[0], counts.most_common()[-1]
    if most >= 3 * fewest and data.kind == "single":
        lines.append(
            f"class {data.classes[smallest]} has {fewest:,} training images, class "
            f"{data.classes[largest]} has {most:,}: consider --balance logit"
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
    lines = []
    for part, what in (("val", "validation"), ("test", "test")):
        copies = [item for item in inspected if item.part == part and item.digest in in_train]
        pairs = (f"{_short(data, t)} = {_short(data, in_train[t.digest])}" for t in copies)
        if copies:
            lines.append(
                f"{what} images identical to a training image, which makes {what} scores too "
                f"high: {len(copies):,} ({_some(pairs)})"
            )
    return lines


def _conflicts(data: ClassificationData, inspected: Sequence[Inspected]) -> list[str]:
    groups = [g for g in _groups(inspected) if len({item.label for item in g}) > 1]
    if not groups:
        return []
    shown = (" = ".join(_short(data, item) for item in group[:3]) for group in groups)
    what = "in several classes" if data.kind == "single" else "with different labels"
    return [f"identical images {what}: {len(groups):,} ({_some(shown)})"]


def _repeats(data: ClassificationData, inspected: Sequence[Inspected]) -> list[str]:
    lines = []
    for part, what in (("train", "training"), ("val", "validation"), ("test", "test")):
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
    counts = _train_counts(data)
    if data.kind == "single":
        counts = Counter(item.label for item in inspected if item.part == "train")
    rare = [f"{data.classes[c]} ({n:,})" for c, n in sorted(counts.items()) if n < FEW]
    if not rare:
        return []
    return [
        f"classes with fewer than {FEW} readable training images: {len(rare):,} ({_some(rare)})"
    ]


def _train_counts(data: ClassificationData) -> Counter[int]:
    """Return the number of training images of each class that has some."""
    counts = class_counts(data.train, len(data.classes)).tolist()
    return Counter({label: count for label, count in enumerate(counts) if count})


def _similar(data: ClassificationData, alike: Alike[Inspected]) -> list[str]:
    pairs = [f"{_short(data, b)} ~ {_short(data, a)}" for a, b in alike.pairs]
    if not pairs:
        return []
    return [
        "held-out images that look like a training image, perhaps the same one saved again: "
        f"{len(pairs):,} ({_some(pairs)}); {alike_advice(has_val=data.has_val)}"
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
_ODD = (
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
