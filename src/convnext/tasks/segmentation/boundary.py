"""Counts of boundary pixels for the boundary F-score.

Csurka et al., "What is a good evaluation measure for semantic segmentation?" (2013): a boundary
pixel matches if the other mask has a boundary of the same class within 0.75 percent of the image's
diagonal. Pixels are counted over all images, and the score is computed once per class.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 0.0075


def count_boundaries(
    prediction: NDArray[Any], mask: NDArray[Any], num_classes: int, ignore_index: int = 255
) -> NDArray[np.int64]:
    """Return four counts (4, K) of boundary pixels per class, of labels and mask (H, W).

    They are: predicted with a match, predicted, true with a match, true. The edge of an ignored
    region is not a boundary.
    """
    labelled = mask != ignore_index
    sides = [
        np.where(find_boundaries(side, labelled), side.astype(np.int32), -1)
        for side in (prediction, mask)
    ]
    reach = max(1.0, TOLERANCE * math.hypot(*mask.shape))
    counts = np.zeros((4, num_classes), np.int64)
    for c in range(num_classes):
        found, true = (side == c for side in sides)
        counts[1, c], counts[3, c] = np.count_nonzero(found), np.count_nonzero(true)
        if counts[1, c] and counts[3, c]:
            counts[0, c] = np.count_nonzero(found & is_near(true, reach))
            counts[2, c] = np.count_nonzero(true & is_near(found, reach))
    return counts


def find_boundaries(labels: NDArray[Any], labelled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which labeled pixels (H, W) touch another class above, below, left or right."""
    found = np.zeros(labels.shape, bool)
    for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        differ = (labels[first] != labels[second]) & labelled[first] & labelled[second]
        found[first] |= differ
        found[second] |= differ
    return found


def is_near(pixels: NDArray[np.bool_], reach: float) -> NDArray[np.bool_]:
    """Return which positions (H, W) lie within `reach` of one of `pixels` (at least one is set)."""
    from scipy.ndimage import distance_transform_edt  # type: ignore[import-untyped]

    near: NDArray[np.bool_] = distance_transform_edt(~pixels) <= reach
    return near
