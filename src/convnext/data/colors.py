"""A colour for every class, the same wherever the class is drawn."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

# Far from each other in hue or lightness, so that a dozen classes can be told apart.
FIRST = (
    (230, 25, 75),
    (60, 180, 75),
    (30, 90, 230),
    (255, 225, 25),
    (145, 30, 180),
    (70, 240, 240),
    (245, 130, 48),
    (240, 50, 230),
    (128, 128, 0),
    (0, 128, 128),
    (250, 190, 212),
    (128, 0, 0),
)
GOLDEN = 0.618033988749895


def class_colors(n: int) -> NDArray[np.uint8]:
    """Return n colours (n, 3); the colour of a class does not depend on n."""
    more = [
        [
            round(255 * v)
            for v in colorsys.hsv_to_rgb(
                i * GOLDEN % 1, (0.55, 0.8, 1)[i % 3], (1, 0.8, 0.6)[i % 2]
            )
        ]
        for i in range(max(0, n - len(FIRST)))
    ]
    return np.array([*FIRST, *more][:n], np.uint8).reshape(n, 3)
