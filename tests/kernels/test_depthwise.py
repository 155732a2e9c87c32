"""Tests of the weight gradient of a depthwise convolution."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from convnext.kernels.winograd import depthwise_weight_gradient


@pytest.mark.parametrize(
    ("height", "width", "kernel_size"), [(5, 7, 3), (14, 14, 7), (15, 30, 7), (2, 1, 7), (9, 9, 11)]
)
def test_gradient_of_depthwise_weights(height, width, kernel_size):
    generator = torch.Generator().manual_seed(0)
    images, grad = torch.randn(2, 3, height, width, 6, dtype=torch.float64, generator=generator)
    weight = torch.zeros(6, 1, kernel_size, kernel_size, dtype=torch.float64, requires_grad=True)
    out = F.conv2d(images.permute(0, 3, 1, 2), weight, padding=kernel_size // 2, groups=6)
    out.backward(grad.permute(0, 3, 1, 2))
    found = depthwise_weight_gradient(images, grad, kernel_size)
    torch.testing.assert_close(found, weight.grad)
    low = depthwise_weight_gradient(images.bfloat16(), grad.bfloat16(), kernel_size)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), weight.grad, rtol=0.05, atol=0.3)
