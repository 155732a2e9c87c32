"""The distance of tensors from a reference."""

from __future__ import annotations

from torch import Tensor


def relative(x: Tensor, expected: Tensor) -> float:
    """Return the L2 distance divided by the norm of the expected tensor, in fp64."""
    assert x.shape == expected.shape
    x, expected = x.detach().double(), expected.detach().double()
    return float((x - expected).norm() / expected.norm())
