"""The pyramid contract: what a dense task may know of the network below it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Level(NamedTuple):
    """One map of a pyramid: its channels, and the input pixels per position."""

    channels: int
    stride: int


class Backbone(Protocol):
    """A network with a pyramid. `levels` describes what `pyramid` returns, in the same order."""

    @property
    def levels(self) -> dict[str, Level]: ...

    @property
    def changes(self) -> dict[str, Any]: ...

    def pyramid(self, images: Tensor) -> dict[str, Tensor]: ...

    def drop_head(self) -> None: ...


def name_levels(levels: Iterable[Level]) -> dict[str, Level]:
    """Name each level c + log2(stride): c2 to c5 for strides 4 to 32.

    Raises:
        ValueError: If there are fewer than two scales, or a stride is no power of two.
    """
    levels = list(levels)
    strides = [level.stride for level in levels]
    if len(set(strides)) < 2:
        raise ValueError(
            f"this network has a single scale (stride {strides[0]}) and so no pyramid; "
            "take one with several stages, such as convnext_tiny or timm/resnet50"
        )
    for stride in strides:
        if stride & (stride - 1):
            raise ValueError(f"a pyramid needs strides that are powers of two, not {strides}")
    return {f"c{int(math.log2(level.stride))}": level for level in levels}
