"""Masks of objects, which stay compressed until a part of one is needed; targets and pasting.

A mask is one of these: a bitmap (H, W); COCO's run-length encoding, `{"size": [H, W], "counts":
...}`, with counts as a list or as COCO's string; polygons, a list of rings `[x0, y0, x1, y1, ...]`
in pixels, where a pixel belongs to the object if its center is in any ring; or any of these placed
on another image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from convnext.data.run_lengths import read_counts

# Annotations are read without torch, which takes seconds to import and half a gigabyte.
if TYPE_CHECKING:
    from torch import Tensor

# Points this close to a line, relative to its length, lie on it.
FLAT = 1e-6


class Placed(NamedTuple):
    """A mask on another image: scaled, moved, perhaps mirrored, still compressed.

    A pixel of that image has the value of the mask's pixel below its center. (A tuple, because
    torch's cast of inputs to half precision looks into tuples and fails on frozen dataclasses.)
    """

    mask: Mask
    source: tuple[int, int]
    """Height and width of the image that the mask was drawn on."""
    size: tuple[int, int]
    """Height and width of the other image."""
    scale: tuple[float, float]
    """Pixels of the source per pixel across and down; negative if mirrored."""
    start: tuple[float, float]
    """Position (x, y) in the source of the left and upper edges of the other image."""


Mask: TypeAlias = (
    "Tensor | Placed | npt.NDArray[Any] | Mapping[str, Any]"
    " | Sequence[Sequence[float] | npt.NDArray[np.float64]]"
)
Window = tuple[int, int, int, int]
"""Columns and rows x1 y1 x2 y2; x2 and y2 are excluded."""


def cut(mask: Mask, window: Window) -> npt.NDArray[np.uint8]:  # -> y2-y1 x2-x1
    """Return a part of a mask as 0 and 1, without decoding the rest."""
    x1, y1, x2, y2 = window
    if isinstance(mask, Placed):
        return _cut_placed(mask, window)
    if isinstance(mask, Mapping):
        return _cut_runs(mask, window)
    if isinstance(mask, np.ndarray):
        return (mask[y1:y2, x1:x2] > 0).astype(np.uint8)
    if not isinstance(mask, Sequence):
        return (mask[y1:y2, x1:x2] > 0).cpu().numpy().astype(np.uint8)
    found = np.zeros((y2 - y1, x2 - x1), np.uint8)
    for ring in mask:
        found |= _fill(np.asarray(ring, np.float64).reshape(-1, 2) - (x1, y1), found.shape)
    return found


def place(
    mask: Mask,
    *,
    source: tuple[int, int],
    size: tuple[int, int],
    scale: tuple[float, float],
    start: tuple[float, float],
) -> Mask:
    """Return a mask on another image; the arguments are those of `Placed`.

    The corners of polygons are moved, which loses no precision; other masks stay compressed.
    """
    if isinstance(mask, Sequence):
        factors, offset = np.asarray(scale), np.asarray(start)
        rings = (np.asarray(ring, np.float64).reshape(-1, 2) for ring in mask)
        return tuple(((ring - offset) / factors).ravel() for ring in rings)
    return Placed(mask=mask, source=source, size=size, scale=scale, start=start)


def size_of(mask: Mask) -> tuple[int, int] | None:
    """Return the height and width of a mask's image; None for polygons."""
    if isinstance(mask, Placed):
        return mask.size
    if isinstance(mask, Mapping):
        return int(mask["size"][0]), int(mask["size"][1])
    return None if isinstance(mask, Sequence) else (mask.shape[0], mask.shape[1])


def num_pixels(encoding: Mapping[str, Any]) -> int:
    """Return the number of pixels that run lengths cover; -1 if they are damaged."""
    try:
        runs = _runs(encoding)
    except (ValueError, OverflowError):
        return -1
    # A sum of runs that are each no longer than the image cannot overflow.
    most = math.prod(encoding["size"])
    is_sound = not len(runs) or (runs.min() >= 0 and runs.max() <= most)
    return int(runs.sum()) if is_sound else -1


def is_flat(ring: Sequence[float]) -> bool:
    """Tell whether the points of a polygon (x, y, x, y, ...) all lie on one line."""
    x0, y0, x1, y1, x2, y2 = ring[:6]
    cross = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    lengths = (abs(x1 - x0) + abs(y1 - y0)) * (abs(x2 - x0) + abs(y2 - y0))
    if abs(cross) > FLAT * lengths:  # Nearly all polygons are decided here.
        return False
    points = np.array(ring, np.float64).reshape(-1, 2) - (x0, y0)
    line = points[np.hypot(*points.T).argmax()]
    distances = np.abs(points[:, 0] * line[1] - points[:, 1] * line[0])
    return bool((distances <= FLAT * (line @ line)).all())


def area_of(mask: Mask, size: tuple[int, int]) -> int:
    """Return the number of pixels of a mask on an image of `size` (H, W)."""
    if isinstance(mask, Mapping):
        return int(_runs(mask)[1::2].sum())
    return int(cut(mask, (0, 0, size[1], size[0])).sum())


def bounds_of(mask: Mask) -> tuple[float, float, float, float] | None:
    """Return x1 y1 x2 y2 of polygons or run lengths in pixels; None if they are empty."""
    if not isinstance(mask, Mapping):
        assert isinstance(mask, Sequence)
        points = [np.asarray(ring, np.float64).reshape(-1, 2) for ring in mask]
        if not points:
            return None
        (x1, y1), (x2, y2) = np.concatenate(points).min(0), np.concatenate(points).max(0)
        return float(x1), float(y1), float(x2), float(y2)
    height = int(mask["size"][0])
    ends = np.cumsum(_runs(mask))
    first, last = ends[0 : len(ends) // 2 * 2 : 2], ends[1::2] - 1
    first, last = first[first <= last], last[first <= last]
    if not len(first):
        return None
    columns = int(first[0] // height), int(last[-1] // height) + 1
    # A run that continues in the next column touches the lower and the upper edge.
    wraps = bool((first // height != last // height).any())
    rows = (0, height) if wraps else (int((first % height).min()), int((last % height).max()) + 1)
    return columns[0], rows[0], columns[1], rows[1]


def mask_targets(
    masks: Sequence[Mask | None],
    index: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    side: int = 28,
) -> Tensor:
    """Return the targets of the mask head for boxes (R, 4), 0 and 1 of shape (R, side, side).

    Args:
        masks: One per object; those that `index` refers to must exist.
        index: (R,) the object that each box is assigned to.
        boxes: Proposals in an image of `size` (H, W).
        size: The size of the image and of bitmaps.
        side: The side of a target.

    A cell is 1 if the mean of the mask over it, by aligned RoIAlign, is at least one half.
    """
    import torch
    from torchvision.ops import roi_align

    height, width = size
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    clipped = boxes.detach().cpu().float().clamp(min=0).minimum(limits).tolist()
    targets = torch.zeros(len(boxes), side, side, device=boxes.device)
    for target, i, (left, top, right, bottom) in zip(targets, index.tolist(), clipped, strict=True):
        x1, y1, x2, y2 = _around((left, top, right, bottom), size)
        mask = masks[i]
        assert mask is not None
        part = torch.from_numpy(cut(mask, (x1, y1, x2, y2))).to(boxes.device)
        roi = torch.tensor([[0, left - x1, top - y1, right - x1, bottom - y1]])
        cells = roi_align(
            part.float()[None, None], roi.to(boxes.device), side, 1.0, 0, aligned=True
        )
        target.copy_(cells[0, 0] >= 0.5)
    return targets


def paste_masks(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> Tensor:  # M S S, M 4 -> M H W
    """Paste mask probabilities in [0, 1] into their boxes in an image of `size` (H, W).

    Returns booleans. Besides them, only one object's window is in memory at a time, and nothing is
    computed outside it. A box without width or height repeats the middle of its mask over the pixel
    around it, as in the reference.
    """
    import torch

    pasted = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    for out, (part, (x1, y1, x2, y2)) in zip(
        pasted, paste_windows(masks, boxes, size, threshold), strict=True
    ):
        out[y1:y2, x1:x2] = part
    return pasted


def paste_windows(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> Iterator[tuple[Tensor, Window]]:
    """Yield the part of each pasted mask that may not be empty, and its window."""
    import torch
    from torch.nn import functional as F

    corners = boxes.detach().cpu().float().tolist()
    for mask, box, corner in zip(masks.float(), boxes.float(), corners, strict=True):
        x1, y1, x2, y2 = window = _around(corner, size)
        if x1 == x2 or y1 == y2:
            yield torch.zeros(y2 - y1, x2 - x1, dtype=torch.bool, device=masks.device), window
            continue
        x = _positions(x1, x2, box[0], box[2])
        y = _positions(y1, y2, box[1], box[3])
        grid = torch.stack((x.expand(len(y), -1), y[:, None].expand(-1, len(x))), -1)
        shares = F.grid_sample(mask[None, None], grid[None], align_corners=False)
        yield shares[0, 0] >= threshold, window


def encode(part: npt.NDArray[Any], window: Window, size: tuple[int, int]) -> dict[str, Any]:
    """Return COCO's run lengths of a mask that is empty outside a window of an image (H, W).

    The counts are a list. Memory is a few bytes for each pixel of the window.
    """
    height, width = size
    columns = np.pad(part.T != 0, ((0, 0), (1, 1)))
    column, row = np.divmod(
        np.flatnonzero(columns[:, 1:] != columns[:, :-1]).astype(np.int64), len(part) + 1
    )
    bounds = (window[0] + column) * height + window[1] + row  # Start, end, start, end, ...
    # A run that reaches the bottom edge continues at the top edge of the next column.
    continued = np.flatnonzero(bounds[1:-1:2] == bounds[2::2]) * 2 + 1
    bounds = np.delete(bounds, np.concatenate((continued, continued + 1)))
    counts = np.diff(bounds, prepend=0, append=height * width).tolist()
    if not counts[-1]:  # The mask reaches the last pixel.
        counts.pop()
    return {"size": [height, width], "counts": counts}


def _positions(start: int, end: int, first: Tensor, last: Tensor) -> Tensor:  # -> end-start
    """Return the positions of pixel centers between two edges, which are at -1 and 1."""
    import torch

    centers = torch.arange(start, end, dtype=torch.float32, device=first.device) + 0.5
    return ((centers - first) / (last - first) * 2 - 1).nan_to_num(0.0, 0.0, 0.0)


def _around(box: Sequence[float], size: tuple[int, int]) -> Window:
    """Return the window of a box with a margin of one pixel, clipped to the image."""
    (x1, y1, x2, y2), (height, width) = box, size
    left, top = (max(int(np.floor(v)) - 1, 0) for v in (x1, y1))
    right, bottom = int(np.ceil(x2)) + 1, int(np.ceil(y2)) + 1
    return left, top, max(min(right, width), left), max(min(bottom, height), top)


def _fill(points: npt.NDArray[np.float64], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return the pixels whose centers a ring (V, 2) encloses an odd number of times."""
    height, width = shape
    (x1, y1), (x2, y2) = points.T, np.roll(points, -1, 0).T
    # Rows whose centers y + 1/2 an edge crosses; the half-open rule counts a corner once.
    rows = np.ceil(np.stack((np.minimum(y1, y2), np.maximum(y1, y2))) - 0.5)
    first, last = rows.clip(0, height).astype(np.int64)
    edge = np.repeat(np.arange(len(points)), last - first)
    row = np.arange(len(edge)) - (np.cumsum(last - first) - last)[edge]
    slope = (x2 - x1)[edge] / (y2 - y1)[edge]
    x = x1[edge] + (row + 0.5 - y1[edge]) * slope
    column = np.ceil(x - 0.5).clip(0, width).astype(np.int64)
    toggles = np.bincount(row * (width + 1) + column, minlength=height * (width + 1))
    inside = toggles.reshape(height, width + 1)[:, :width].cumsum(1) % 2
    return inside.astype(np.uint8)


def _cut_runs(encoding: Mapping[str, Any], window: Window) -> npt.NDArray[np.uint8]:
    """Decode the columns of a window; runs go down the columns, background first."""
    x1, y1, x2, y2 = window
    height = int(encoding["size"][0])
    ends = np.cumsum(_runs(encoding)).clip(x1 * height, x2 * height)
    lengths = np.diff(ends, prepend=x1 * height)
    values = np.repeat(np.arange(len(lengths)) % 2, lengths).astype(np.uint8)
    return values.reshape(x2 - x1, height)[:, y1:y2].T


def _cut_placed(placed: Placed, window: Window) -> npt.NDArray[np.uint8]:
    """Cut the part of the source below a window, and sample its nearest pixels."""
    x1, y1, x2, y2 = window
    height, width = placed.source
    taken = []
    for first, last, scale, start, side in (
        (x1, x2, placed.scale[0], placed.start[0], width),
        (y1, y2, placed.scale[1], placed.start[1], height),
    ):
        positions = np.floor(start + (np.arange(first, last) + 0.5) * scale).astype(np.int64)
        taken.append((positions, (positions >= 0) & (positions < side)))
    (x, has_x), (y, has_y) = taken
    found = np.zeros((y2 - y1, x2 - x1), np.uint8)
    if has_x.any() and has_y.any():
        x, y = x[has_x], y[has_y]
        left, top = int(x.min()), int(y.min())
        part = cut(placed.mask, (left, top, int(x.max()) + 1, int(y.max()) + 1))
        found[np.ix_(has_y, has_x)] = part[np.ix_(y - top, x - left)]
    return found


def _runs(encoding: Mapping[str, Any]) -> npt.NDArray[np.int64]:
    counts = encoding["counts"]
    return _read_counts(counts) if isinstance(counts, str | bytes) else np.asarray(counts, np.int64)


# Each box that is assigned to an object decodes its mask again.
@lru_cache(maxsize=256)
def _read_counts(text: str | bytes) -> npt.NDArray[np.int64]:
    return np.array(read_counts(text), np.int64)
