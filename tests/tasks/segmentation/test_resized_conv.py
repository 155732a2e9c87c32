"""Mixing channels before resizing equals resizing first, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from convnext.tasks.segmentation.heads import UPerHead, conv_of_maps, resize, saves, shifted


def plainly(maps: list[torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    size = maps[0].shape[2:]
    return F.conv2d(torch.cat([resize(x, size) for x in maps], 1), weight, padding=1)


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(2, 17), st.integers(2, 17)),
    shares=st.lists(st.tuples(st.integers(1, 16), st.integers(1, 16)), min_size=1, max_size=3),
    num=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_it_is_the_plain_convolution(
    size: tuple[int, int], shares: list[tuple[int, int]], num: int, seed: int
) -> None:
    torch.manual_seed(seed)
    sizes = [size, *((min(h, size[0] - 1), min(w, size[1] - 1)) for h, w in shares)]
    maps = [torch.randn(num, 17, *s, dtype=torch.float64) for s in sizes]
    weight = torch.randn(5, 17 * len(maps), 3, 3, dtype=torch.float64)
    assert saves(maps)
    # The resizing matrices have single precision.
    assert torch.allclose(conv_of_maps(maps, weight), plainly(maps, weight), atol=1e-4)


def test_gradients_are_those_of_the_plain_convolution() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 16, side, side + 2, requires_grad=True) for side in (12, 6, 3)]
    weight = torch.randn(8, 48, 3, 3, requires_grad=True)
    wanted = torch.randn(2, 8, 12, 14)
    found = []
    for form in (conv_of_maps, plainly):
        loss = (form(maps, weight) * wanted).sum()
        found.append(torch.autograd.grad(loss, [*maps, weight]))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=2e-4, rtol=1e-4)


def test_the_plain_form_is_kept_where_it_is_no_more_work() -> None:
    wide = [torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 4, 4)]
    same = [torch.zeros(1, 16, 8, 8), torch.zeros(1, 16, 8, 4)]
    assert not saves(wide)
    assert not saves(same)
    assert not saves([x.to("meta") for x in (torch.zeros(1, 16, 8, 8), torch.zeros(1, 16, 4, 4))])
    weight = torch.randn(3, 8, 3, 3)
    maps = [torch.randn(1, 4, 8, 8), torch.randn(1, 4, 4, 4)]
    assert torch.equal(conv_of_maps(maps, weight), plainly(maps, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_close(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    maps = [torch.randn(1, 16, side, side) for side in (16, 8, 4)]
    weight = torch.randn(8, 48, 3, 3) / 20
    exact = plainly(maps, weight)
    with torch.autocast("cpu", dtype):
        rough = conv_of_maps(maps, weight)
    assert rough.dtype == dtype
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_lines_are_shifted() -> None:
    middle = shifted(3, 6, 1, like=torch.zeros(()))
    assert torch.allclose(middle.sum(1), torch.ones(6))
    assert torch.equal(shifted(3, 6, 0, like=torch.zeros(()))[1:], middle[:-1])
    assert torch.equal(shifted(3, 6, 2, like=torch.zeros(()))[:-1], middle[1:])
    assert not shifted(3, 6, 0, like=torch.zeros(()))[0].any()


def test_the_head_takes_either_form() -> None:
    torch.manual_seed(0)
    head = UPerHead([8, 8, 8, 8], channels=16, num_classes=3, dropout=0.0).eval()
    for size, compact in ((16, True), (24, False)):
        maps = [torch.randn(1, 8, size // 2**k, size // 2**k) for k in range(4)]
        wide = [torch.zeros(1, 16, *x.shape[2:]) for x in maps]
        assert saves(wide) == compact
        assert head(maps).shape == (1, 3, size, size)
