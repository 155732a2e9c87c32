"""Look at every image of a data set once: decode it in full and keep what can be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from convnext.data.images import BadImage
from convnext.data.threads import for_each
from convnext.tasks.classification.data import ClassificationData

# Two pictures look alike if at most this many of the 256 bits of their sketches differ.
ALIKE_BITS = 8
# Below this many pixels a sketch says too little to compare by.
SKETCH_PIXELS = 32
# Pairs of sketches to compare at most: a minute's work.
MAX_PAIRS = 2_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What was seen of one image."""

    part: str
    """"train" or "val"."""
    source: str
    label: int
    num_bytes: int
    reason: str = ""
    """Why it cannot be read; if it cannot, the fields below mean nothing."""
    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    digest: bytes = b""
    """Equal for equal pixels."""
    sketch: bytes = b""
    """32 bytes, nearly equal for pictures that look alike; empty for small images."""
    is_blank: bool = False
    """Whether all pixels are the same."""
    is_grey: bool = False


def scan(data: ClassificationData, *, console: Console | None = None) -> list[Look]:
    """Look at every image, those of training first, by a few threads with a progress bar."""
    places = [("train", i) for i in range(len(data.train))]
    places += [("val", i) for i in range(len(data.val))]
    looks: list[Look | None] = [None] * len(places)

    def look_at(number: int) -> None:
        looks[number] = look(data, *places[number])

    for_each(look_at, len(places), "looking at images", console=console)
    return [look for look in looks if look is not None]


def look(data: ClassificationData, part: str, index: int) -> Look:
    """Look at one image."""
    samples = data.train if part == "train" else data.val
    source, label = samples.source(index), samples.labels[index]
    num_bytes = samples.num_bytes(index)
    samples.read_ahead(index)
    try:
        header = samples.header(index)
        image = samples.open(index, "RGB")
    except BadImage as error:
        return Look(part=part, source=source, label=label, num_bytes=num_bytes, reason=error.reason)
    extrema = [band for band in image.getextrema() if isinstance(band, tuple)]
    red, green, blue = image.split()
    return Look(
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
        is_grey=red.tobytes() == green.tobytes() == blue.tobytes(),
    )


def sketch(image: Image.Image) -> bytes:
    """Return 256 bits: whether each cell of a 16 x 16 grid is brighter than its left neighbour."""
    cells = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX)).astype(int)
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes()


def look_alikes(first: Sequence[Look], second: Sequence[Look]) -> list[tuple[Look, Look]]:
    """Return pairs of images, one of each, that look alike though their pixels differ.

    Of every image in `second` the nearest in `first` is taken. Nothing is compared where there are
    too many pairs.
    """
    first = [look for look in first if look.sketch and not look.is_blank]
    second = [look for look in second if look.sketch and not look.is_blank]
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


def _words(looks: Sequence[Look]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(look.sketch for look in looks), np.uint64).reshape(-1, 4)
