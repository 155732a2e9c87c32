"""How far tensors are from a reference."""

from __future__ import annotations

from torch import Tensor


def relative(x: Tensor, expected: Tensor) -> float:
    """Return the L2 distance over the norm of what is expected, in fp64."""
    assert x.shape == expected.shape
    x, expected = x.detach().double(), expected.detach().double()
    return float((x - expected).norm() / expected.norm())
