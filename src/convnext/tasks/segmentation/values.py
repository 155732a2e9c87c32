"""What the values of masks mean: a sample of the masks decides, and what was decided is said.

Indices of classes, 0 and 255 for a foreground, the same with gray edges, values far apart such as
0, 127 and 254, or ids of objects. A list of the classes beside the data overrides all of this.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext.tasks.segmentation.class_lists import Classes
from convnext.tasks.segmentation.masks import NONE_16_BIT, Color, MaskReader, Survey

# Values are far apart if fewer than one in this many occurs.
SPARSE = 4
# Two values stand out if all others together cover a smaller share of the pixels.
EDGE_SHARE = 0.3
# Width of a gray edge in pixels: of drawn masks, and of JPEG, which blurs blocks of 8.
EDGE_WIDTH, JPEG_WIDTH = 3, 9
# Masks with at least this many values may hold the ids of objects.
MIN_IDS = 30
MIN_IDS_16_BIT = 8
# Numbers of objects that differ between images, before few values may be ids as well.
MIN_NUMBERS = 3
BACKGROUND, FOREGROUND = "background", "foreground"
HOW = (
    'list the value of each class in palette.json, such as {"background": 0, "leaf": 127}, or the '
    "names of all indices in classes.txt"
)


def is_binary(found: Survey) -> bool:
    """Whether masks of JPEG hold a background and a foreground, with noise."""
    reader = _binary(found, (BACKGROUND, FOREGROUND), []) if found.colored is None else None
    return reader is not None


def choose(
    found: Survey,
    listed: Classes,
    *,
    root: Path,
    reduced: bool,
    is_voc: bool,
    notes: list[str],
) -> tuple[MaskReader, tuple[str, ...]]:
    """Return how masks are read, and the names of the classes; what was decided is noted.

    Args:
        found: What a sample of the masks holds.
        listed: The classes that a file lists.
        root: The folder of the data, for messages.
        reduced: Value 0 means no class, and class k has the value k + 1.
        is_voc: Whether the folders are Pascal VOC's, so that the colors may be too.
        notes: Grows by what was decided.

    Raises:
        ValueError: If the values of the masks have no single meaning.
    """
    _check_palettes(found, listed, root)
    if listed.names:
        return _by_list(found, listed, reduced, notes)
    if found.colored is not None:
        return _by_colors(found, root, is_voc, notes)
    if not reduced:
        both = (BACKGROUND, FOREGROUND)
        decided = _binary(found, both, notes) or _objects(found, both, notes)
        if decided:
            return decided, both
        _check_numbers(found, root)
    return _by_values(found, root, reduced, notes)


def _check_palettes(found: Survey, listed: Classes, root: Path) -> None:
    """Refuse indices whose color differs from mask to mask, unless the colors are listed.

    Raises:
        ValueError: If an index has two colors.
    """
    if listed.palette or found.by_shade:
        return
    for index, colors in sorted(found.palettes.items()):
        if len(colors) > 1:
            first, second = sorted(colors)[:2]
            raise ValueError(
                f"the masks under {root} are palette images whose palettes differ: index {index} "
                f"is {first} in one and {second} in another; list the color of each class in "
                "palette.json"
            )


def _by_list(
    found: Survey, listed: Classes, reduced: bool, notes: list[str]
) -> tuple[MaskReader, tuple[str, ...]]:
    names, count = listed.names, len(listed.names)
    ignore_index = 255 if count <= 255 else NONE_16_BIT
    notes.append(f"the classes are listed in {listed.source}")
    plain = not listed.palette and not listed.values and not reduced and found.colored is None
    values = found.values - {NONE_16_BIT}
    if plain and count == 2 and not values <= {0, 1, 255}:
        both = (names[0], names[1])
        decided = _binary(found, both, notes) or _objects(found, both, notes, listed=True)
        if decided:
            return decided, names
    if plain and count == 2 and values == {0, 255}:
        return _binary(found, (names[0], names[1]), notes) or MaskReader(num_classes=2), names
    given = listed.values
    in_range = {v for v in values if 0 < v < count}
    if plain and not in_range and count > 2 and len(values) == count and max(values) >= count:
        given = tuple(sorted(values))
        pairs = ", ".join(f"{value} is {name}" for value, name in zip(given, names, strict=True))
        notes.append(f"the masks hold as many values as there are classes, taken in order: {pairs}")
    return (
        MaskReader(
            num_classes=count,
            ignore_index=ignore_index,
            reduce_zero_label=reduced,
            palette=listed.palette,
            values=given,
            void=listed.void,
        ),
        names,
    )


def _binary(found: Survey, names: tuple[str, str], notes: list[str]) -> MaskReader | None:
    """Return a reader of a background and a foreground, if the values are two; None if not."""
    values = found.values - {NONE_16_BIT}
    top = max(values, default=0)
    if found.by_shade and len(values) <= 2:
        notes.append("palette images in black and white are read by their colors")
    if values in ({0, 255}, {255}):
        notes.append(f"the masks have only 0 and 255: {names[0]} and {names[1]}")
        if found.is_lossy:  # Another mask may have noise.
            return MaskReader(num_classes=2, ignore_index=254, threshold=128)
        return MaskReader(num_classes=2, ignore_index=254, values=(0, 255), by_shade=found.by_shade)
    if len(values) == 2 and 0 in values and top >= 8:
        notes.append(f"the masks have only 0 and {top}: {names[0]} and {names[1]}")
        return MaskReader(num_classes=2, ignore_index=254, values=(0, top), by_shade=found.by_shade)
    if top < 64 or len(values) < 3:
        return None
    middle = top // 2 + 1
    width = JPEG_WIDTH if found.is_lossy else EDGE_WIDTH
    main = _main_values(found)
    if main is None:
        return None
    low, high = main
    total = sum(found.counts.values())
    rest = sum(n for value, n in found.counts.items() if value not in main)
    if found.is_lossy:
        rest = sum(n for value, n in found.counts.items() if low + 32 < value < high - 32)
    if rest > EDGE_SHARE * total or not _at_edges(found.masks, low, high, width):
        return None
    notes.append(
        f"the masks hold {low} and {high}, and along their edges {len(values) - 2:,} other values "
        f"on {100 * rest / total:.2g} % of the pixels: read as two classes, {names[0]} below "
        f"{middle} and {names[1]} from {middle} on; if each value is a class, {HOW}"
    )
    return MaskReader(num_classes=2, ignore_index=254, threshold=middle, by_shade=found.by_shade)


def _main_values(found: Survey) -> tuple[int, int] | None:
    """Return the two most frequent values, if they are far apart and frame the others."""
    common = sorted(value for value, _ in found.counts.most_common(2))
    if len(common) < 2:
        return None
    low, high = common
    if found.is_lossy:
        low, high = (low if low > 16 else 0), (high if high < 239 else 255)
    inside = all(low <= value <= high for value in found.counts)
    # A value that is nearly as frequent as the two is a class of its own.
    counts = [count for _, count in found.counts.most_common(3)]
    is_rare = found.is_lossy or 2 * counts[2] <= counts[1]
    return (low, high) if inside and is_rare and low < 32 and high >= 64 else None


def _at_edges(masks: Iterable[NDArray[np.int32]], low: int, high: int, width: int) -> bool:
    """Whether nearly all values between are near both a low and a high pixel."""
    near = between = 0
    margin = min(32, (high - low) // 4)
    for values in masks:
        inner = (values > low + margin) & (values < high - margin)
        if not inner.any():
            continue
        close = _grow(values <= low + margin, width) & _grow(values >= high - margin, width)
        between += int(inner.sum())
        near += int((inner & close).sum())
    return near >= 0.95 * between


def _grow(where: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Return the pixels within a distance of those that are set, in both directions."""
    for axis in (0, 1):
        grown = where.copy()
        source, target = np.moveaxis(where, axis, 0), np.moveaxis(grown, axis, 0)
        for step in range(1, min(width + 1, len(source))):
            target[step:] |= source[:-step]
            target[:-step] |= source[step:]
        where = grown
    return where


def _objects(
    found: Survey, names: tuple[str, str], notes: list[str], *, listed: bool = False
) -> MaskReader | None:
    """Return a reader of the foreground, if the values are ids of objects; None if not.

    A few numbers count as ids only if a file lists the two classes.
    """
    enough = MIN_IDS_16_BIT if found.is_wide else MIN_IDS
    are_ids = found.num_id_like >= 0.8 * max(found.num_tested, 1)
    if not are_ids or (len(found.values - {0}) < enough and not (listed and _numbered(found))):
        return None
    notes.append(
        f"the masks hold ids of objects, up to {found.num_objects:,} in an image, rather than "
        f"classes: every object is {names[1]}, and 0 is {names[0]}; if the values are classes, "
        f"{HOW}"
    )
    return MaskReader(num_classes=2, ignore_index=254, threshold=1)


def _numbered(found: Survey) -> bool:
    """Whether the values of every mask are 1 to n, with another n from mask to mask."""
    return not found.numbers[0] and len(found.numbers.keys() - {0}) >= MIN_NUMBERS


def _check_numbers(found: Survey, root: Path) -> None:
    """Refuse values that may be classes or number the objects of an image.

    Raises:
        ValueError: If they may.
    """
    is_id_like = found.num_id_like >= 0.8 * found.num_tested and found.num_tested >= MIN_NUMBERS
    if _numbered(found) and is_id_like:
        count = max(found.numbers)
        raise ValueError(
            f"the values of the masks under {root} may be classes, or number the objects of an "
            f"image: each mask has 1 to n in regions of their own, and n is up to {count}. If they "
            f"are classes, name all {count + 1} in classes.txt; if they are objects of one class, "
            "write two names into it, such as background and person, or train with --task detect "
            "--detect.layout instances"
        )


def _by_values(
    found: Survey, root: Path, reduced: bool, notes: list[str]
) -> tuple[MaskReader, tuple[str, ...]]:
    """Return a reader whose classes are the values themselves.

    Raises:
        ValueError: If they are not plainly indices.
    """
    values = found.values
    ignore_index = 255 if max(values - {NONE_16_BIT}, default=0) <= 255 else NONE_16_BIT
    known = sorted(values - {ignore_index, NONE_16_BIT} - ({0} if reduced else set()))
    if not known:
        why = f"; {found.unreadable}" if found.unreadable else ""
        raise ValueError(f"the sampled masks under {root} have no labeled pixel{why}")
    count = known[-1] + (0 if reduced else 1)
    if len(known) < count // SPARSE and not reduced:
        return _by_sparse_values(values - {NONE_16_BIT}, root, notes)
    names = tuple(f"class {k + int(reduced)}" for k in range(count))
    notes.append(
        f"no classes.txt or classes.json names the classes: the mask values show {count} classes; "
        f"{ignore_index} means no class"
    )
    if known[0] > 0 and not reduced:
        notes.append(
            f"no mask has the value 0, the values begin at {known[0]}: if they count from 1, give "
            "--segment.reduce_zero_label true (--reduce-zero-label of `data`)"
        )
    reader = MaskReader(num_classes=count, ignore_index=ignore_index, reduce_zero_label=reduced)
    return reader, names


def _by_sparse_values(
    values: set[int], root: Path, notes: list[str]
) -> tuple[MaskReader, tuple[str, ...]]:
    """Return a reader of values that are far apart, each a class.

    Raises:
        ValueError: If there are many, or 255 could mean no class as well.
    """
    known = sorted(values)
    steps = np.diff(known)
    is_even = len(known) > 2 and int(steps.max()) - int(steps.min()) <= 2
    if known[-1] > 255 or len(known) > 32:
        raise ValueError(
            f"the masks under {root} have values up to {known[-1]:,}, but only {len(known):,} "
            "different ones; if these are classes, give them the values 0, 1, 2 ..., or list all "
            f"classes in classes.txt; otherwise {HOW}"
        )
    listed = ", ".join(map(str, known))
    if 255 in values and not is_even:
        raise ValueError(
            f"the masks under {root} have the values {listed}: 255 may be a class or mean no "
            f'class; {HOW}; add "void": 255 for no class'
        )
    notes.append(
        f"the masks have the values {listed}, which are far apart: each is a class; if they are "
        "indices of a longer list, name all its classes in classes.txt"
    )
    reader = MaskReader(
        num_classes=len(known), ignore_index=254 if 255 in known else 255, values=tuple(known)
    )
    return reader, tuple(f"value {value}" for value in known)


def voc_colors() -> dict[Color, int]:
    """Return Pascal VOC's color of each index; 255 is the color of no class."""
    colors = {}
    for index in range(256):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
        colors[(rgb[0], rgb[1], rgb[2])] = index
    return colors


def _by_colors(
    found: Survey, root: Path, is_voc: bool, notes: list[str]
) -> tuple[MaskReader, tuple[str, ...]]:
    """Return a reader of masks in Pascal VOC's colors.

    Raises:
        ValueError: If they have other colors.
    """
    known = voc_colors()
    indices = {known.get(color, -1) for color in found.colors} | found.values
    if not is_voc or -1 in indices or max(indices - {255}, default=0) > 64:
        shown = ", ".join(str(list(color)) for color, _ in found.colors.most_common(8))
        raise ValueError(
            f"{found.colored} is a color image, not class indices; list the color of each class in "
            f'{root / "palette.json"}, such as {{"road": [128, 64, 128], "void": [0, 0, 0]}}; its '
            f"most frequent colors are {shown}"
        )
    count = max(indices - {255}) + 1
    notes.append(
        f"the masks have Pascal VOC's colors: {count} classes in the order of its color map, "
        "[224, 224, 192] means none"
    )
    palette = {color: index for color, index in known.items() if index < count or index == 255}
    return MaskReader(num_classes=count, palette=palette), tuple(
        f"class {index}" for index in range(count)
    )
