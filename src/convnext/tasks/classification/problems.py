"""What is wrong with a data set, the worst first, from what was seen of its images."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from convnext.tasks.classification.data import ClassificationData
from convnext.tasks.classification.scan import Look, look_alikes

NUM_EXAMPLES = 5
# A short side this many times smaller than the median is tiny.
TINY = 4
HUGE_PIXELS = 25_000_000
# A centre crop shows less than a third of an image that is longer than this.
LONG = 3.0
# Fewer training images than this are hardly a class.
FEW = 10
# Below this many per class, published weights are worth more than any other setting.
FEW_FOR_SCRATCH = 500


def find_problems(data: ClassificationData, looks: Sequence[Look]) -> tuple[str, ...]:
    """Return one line per kind of problem: its exact count and up to five examples."""
    good = [look for look in looks if not look.reason]
    found = (find(data, good) for find in _FINDERS)
    first = _unreadable(data, [look for look in looks if look.reason], len(looks))
    return tuple(line for line in (*first, *data.faults, *(x for lines in found for x in lines)))


def find_suggestions(data: ClassificationData, looks: Sequence[Look]) -> tuple[str, ...]:
    """Return what is worth trying with this data, each with the setting to use."""
    counts = Counter(look.label for look in looks if look.part == "train")
    lines = []
    (largest, most), (smallest, fewest) = counts.most_common(1)[0], counts.most_common()[-1]
    if most >= 3 * fewest:
        lines.append(
            f"class {data.classes[smallest]} has {fewest:,} training images, class "
            f"{data.classes[largest]} has {most:,}: consider --loader.sampling balanced"
        )
    good = [look for look in looks if not look.reason]
    side = statistics.median(min(look.width, look.height) for look in good) if good else 0
    usual = int(statistics.median(counts.values()))
    if usual < FEW_FOR_SCRATCH and side >= 64:
        lines.append(
            f"{usual:,} images per class are few: start from published weights (--weights, see "
            "convnext models)"
        )
    if side > 1000:
        lines.append(
            "most images are far larger than a network looks at: copies with a short side of "
            "about 512 pixels are read many times faster"
        )
    if good and all(look.is_grey for look in good) and any(look.mode != "L" for look in good):
        lines.append("there is no colour in any image: --input.in_chans 1 spares the channels")
    return tuple(lines)


def _unreadable(data: ClassificationData, bad: Sequence[Look], total: int) -> list[str]:
    if not bad:
        return []
    lines = [f"{_short(data, look)}: {look.reason}" for look in bad]
    return [f"images that cannot be read: {len(bad):,} of {total:,} ({_some(lines)})"]


def _leaks(data: ClassificationData, looks: Sequence[Look]) -> list[str]:
    in_train = {look.digest: look for look in looks if look.part == "train"}
    twins = [look for look in looks if look.part == "val" and look.digest in in_train]
    if not twins:
        return []
    pairs = (f"{_short(data, t)} = {_short(data, in_train[t.digest])}" for t in twins)
    return [
        "validation images with the pixels of a training image, so that validation flatters: "
        f"{len(twins):,} ({_some(pairs)})"
    ]


def _conflicts(data: ClassificationData, looks: Sequence[Look]) -> list[str]:
    groups = [g for g in _groups(looks) if len({look.label for look in g}) > 1]
    if not groups:
        return []
    shown = (" = ".join(_short(data, look) for look in group[:3]) for group in groups)
    return [f"pictures that stand in more than one class: {len(groups):,} ({_some(shown)})"]


def _repeats(data: ClassificationData, looks: Sequence[Look]) -> list[str]:
    lines = []
    for part, what in (("train", "training"), ("val", "validation")):
        groups = _groups(look for look in looks if look.part == part)
        groups = [g for g in groups if len({look.label for look in g}) == 1]
        surplus = sum(len(group) - 1 for group in groups)
        if surplus:
            shown = (" = ".join(_short(data, look) for look in group[:3]) for group in groups)
            lines.append(
                f"{what} images that repeat another one, pixel by pixel: {surplus:,} "
                f"({_some(shown)})"
            )
    return lines


def _rare_classes(data: ClassificationData, looks: Sequence[Look]) -> list[str]:
    counts = Counter(look.label for look in looks if look.part == "train")
    rare = [f"{data.classes[c]} ({n:,})" for c, n in sorted(counts.items()) if n < FEW]
    if not rare:
        return []
    return [
        f"classes with fewer than {FEW} readable training images: {len(rare):,} ({_some(rare)})"
    ]


def _similar(data: ClassificationData, looks: Sequence[Look]) -> list[str]:
    train = [look for look in looks if look.part == "train"]
    exact = {look.digest for look in train}
    val = [look for look in looks if look.part == "val" and look.digest not in exact]
    pairs = [f"{_short(data, b)} ~ {_short(data, a)}" for a, b in look_alikes(train, val)]
    if not pairs:
        return []
    return [
        "validation images that look like a training image, perhaps the same picture saved again: "
        f"{len(pairs):,} ({_some(pairs)})"
    ]


def _odd(what: str, is_odd: Callable[[Look, float], bool]) -> Callable[..., list[str]]:
    """Return a finder of single images by their look and the median short side."""

    def find(data: ClassificationData, looks: Sequence[Look]) -> list[str]:
        if not looks:
            return []
        median = statistics.median(min(look.width, look.height) for look in looks)
        odd = [
            f"{_short(data, look)} ({look.width:,} x {look.height:,})"
            for look in looks
            if is_odd(look, median)
        ]
        return [f"{what}: {len(odd):,} ({_some(odd)})"] if odd else []

    return find


def _is_tiny(look: Look, median: float) -> bool:
    return min(look.width, look.height) * TINY < median


def _is_huge(look: Look, median: float) -> bool:
    return look.width * look.height > HUGE_PIXELS


def _is_long(look: Look, median: float) -> bool:
    return max(look.width, look.height) > LONG * min(look.width, look.height)


def _is_blank(look: Look, median: float) -> bool:
    return look.is_blank


# The worst first.
_FINDERS: tuple[Callable[[ClassificationData, Sequence[Look]], list[str]], ...] = (
    _leaks,
    _conflicts,
    _rare_classes,
    _similar,
    _repeats,
    _odd("images of one colour only", _is_blank),
    _odd("images that are tiny beside the others", _is_tiny),
    _odd("images so long that a centre crop shows less than a third", _is_long),
    _odd(f"images of more than {HUGE_PIXELS / 1e6:.0f} million pixels, slow to read", _is_huge),
)


def _groups(looks: Iterable[Look]) -> list[list[Look]]:
    """Return the images that have the same pixels, in groups of two and more."""
    by_digest: dict[bytes, list[Look]] = {}
    for look in looks:
        by_digest.setdefault(look.digest, []).append(look)
    return [group for group in by_digest.values() if len(group) > 1]


def _short(data: ClassificationData, look: Look) -> str:
    """Return where an image lies, relative to the data set."""
    return look.source.removeprefix(data.path).lstrip("/\\") or look.source


def _some(lines: Iterable[str]) -> str:
    lines = list(lines)
    more = len(lines) - NUM_EXAMPLES
    return "; ".join(lines[:NUM_EXAMPLES]) + (f"; and {more:,} more" if more > 0 else "")
