"""Resampled kernels, and the ImageNet-1K classes among those of 22K."""

from __future__ import annotations

import pytest
import torch

from convnext.weights.layouts import (
    adapt_channels,
    fit,
    imagenet_1k_of_22k,
    resize_kernel,
    slice_head,
    with_num_dims,
)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 9, 16])
@pytest.mark.parametrize("old", [3, 4, 7])
def test_a_resized_kernel_answers_a_constant_image_alike(old: int, size: int) -> None:
    kernel = torch.randn(5, 2, old, old)
    new = resize_kernel(kernel, size)
    assert new.shape == (5, 2, size, size)
    assert torch.allclose(new.sum((2, 3)), kernel.sum((2, 3)), atol=1e-5)
    assert resize_kernel(kernel.half(), size).dtype == torch.float16


@pytest.mark.parametrize("in_chans", range(1, 8))
def test_other_channels_answer_a_gray_image_alike(in_chans: int) -> None:
    kernel = torch.randn(5, 3, 4, 4)
    new = adapt_channels(kernel, in_chans)
    assert new.shape == (5, in_chans, 4, 4)
    assert torch.allclose(new.sum(1), kernel.sum(1), atol=1e-5)
    if in_chans == 6:
        assert torch.allclose(new, torch.cat([kernel, kernel], 1) / 2, atol=1e-6)


def test_only_trailing_ones_come_and_go() -> None:
    assert with_num_dims(torch.zeros(8, 2), 4).shape == (8, 2, 1, 1)
    assert with_num_dims(torch.zeros(8, 2, 1, 1), 2).shape == (8, 2)
    assert with_num_dims(torch.zeros(8, 1, 1), 1).shape == (8,)
    # The number of elements is equal, but a transposition is not a reshape.
    assert fit("stages.0.0.pwconv1.weight", torch.zeros(2, 8), torch.Size((8, 2, 1, 1))) is None
    assert fit("stages.0.0.norm.weight", torch.zeros(8), torch.Size((4,))) is None
    assert fit("stem.conv.weight", torch.zeros(8, 3, 4, 4), torch.Size((9, 3, 4, 4))) is None


def test_the_1000_classes_among_the_21841() -> None:
    from timm.data import ImageNetInfo

    indices = imagenet_1k_of_22k()
    names_1k = ImageNetInfo("imagenet-1k").label_names()
    names_22k = ImageNetInfo("imagenet-22k").label_names()
    assert len(indices) == 1000
    # The authors' class folders are read in sorted order.
    assert names_22k == sorted(names_22k)
    assert [n for n, i in zip(names_1k, indices, strict=True) if i is None] == ["n04399382"]
    assert all(i is None or names_22k[i] == n for n, i in zip(names_1k, indices, strict=True))
    head = torch.arange(21841.0)
    sliced = slice_head(head)
    assert sliced[0] == names_22k.index("n01440764")  # Tench.
    assert sliced[850] == torch.tensor([float(i) for i in indices if i is not None]).mean()
