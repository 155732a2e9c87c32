"""Which boxes a loss is taken on: some positive and some negative ones, at random."""

from __future__ import annotations

import torch
from torch import Tensor

from convnext.tasks.detection.model.matching import NEGATIVE


def sample(
    matches: Tensor, num: int, positive_fraction: float, random: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw positive boxes up to their share of `num`, and negative ones for the rest.

    Args:
        matches: (R,) of `match`.
        num: How many in all; fewer where there are not enough.
        positive_fraction: Share of `num` that positive boxes may have.
        random: Source of chance on the CPU, so that devices draw alike; None: torch's own.

    Returns:
        Indices of the positive and of the negative boxes, each in ascending order.
    """
    positive = _draw((matches >= 0).nonzero()[:, 0], int(num * positive_fraction), random)
    negative = _draw((matches == NEGATIVE).nonzero()[:, 0], num - len(positive), random)
    return positive, negative


def _draw(indices: Tensor, num: int, random: torch.Generator | None) -> Tensor:
    if len(indices) <= num:
        return indices
    chosen = torch.randperm(len(indices), generator=random)[:num].sort().values
    return indices[chosen.to(indices.device)]
