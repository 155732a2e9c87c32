"""Blocks: rows checked by hand, the layer norm in every precision, stochastic depth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from convnext.models.blocks import Block, LayerNorm2d, Row, Stem, block_rows
from convnext.models.config import NetworkConfig
from convnext.models.roadmap import RESNET50, roadmap


def test_the_rows_of_resnet50() -> None:
    # First block of the second stage: 256 input channels, and the 3x3 convolution has the stride.
    plain = {"bias": False, "norm": True}
    assert block_rows(RESNET50, in_dim=256, dim=128, stride=2) == (
        Row(name="pwconv1", in_dim=256, out_dim=128, act=True, **plain),
        Row(name="spatial", in_dim=128, out_dim=128, kernel_size=3, stride=2, act=True, **plain),
        Row(name="pwconv2", in_dim=128, out_dim=512, act=False, **plain),
    )


def test_the_rows_of_the_inverted_bottleneck() -> None:
    config = next(r for r in roadmap("resnet50") if r.name == "inverting_dimensions").config
    plain = {"bias": False, "norm": True}
    assert block_rows(config, in_dim=96, dim=192, stride=2) == (
        Row(name="pwconv1", in_dim=96, out_dim=768, act=True, **plain),
        Row(name="spatial", in_dim=768, out_dim=768, kernel_size=3, stride=2, groups=768,
            act=True, **plain),
        Row(name="pwconv2", in_dim=768, out_dim=192, act=False, **plain),
    )  # fmt: skip


def test_the_rows_of_convnext() -> None:
    assert block_rows(NetworkConfig(), in_dim=96, dim=96) == (
        Row(name="spatial", in_dim=96, out_dim=96, kernel_size=7, groups=96, bias=True, norm=True,
            act=False),
        Row(name="pwconv1", in_dim=96, out_dim=384, bias=True, norm=False, act=True),
        Row(name="pwconv2", in_dim=384, out_dim=96, bias=True, norm=False, act=False),
    )  # fmt: skip


def naive_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalize over C as the authors' channels-first code does, in the precision of `x`."""
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    x = (x - mean) / torch.sqrt(variance + 1e-6)
    return weight[:, None, None] * x + bias[:, None, None]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layer_norm_equals_a_reference_in_both_memory_formats(
    memory_format: torch.memory_format,
) -> None:
    norm = LayerNorm2d(24)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    torch.nn.init.uniform_(norm.bias, -1, 1)
    x = torch.randn(2, 24, 5, 7).to(memory_format=memory_format).requires_grad_()
    y = norm(x)
    reference = naive_layer_norm(x, norm.weight, norm.bias)
    assert y.shape == x.shape
    assert torch.allclose(y, reference, atol=1e-5)
    (mine,) = torch.autograd.grad(y.pow(3).sum(), x, retain_graph=True)
    (theirs,) = torch.autograd.grad(reference.pow(3).sum(), x)
    assert torch.allclose(mine, theirs, atol=1e-3)


def test_layer_norm_does_not_overflow_in_fp16() -> None:
    norm = LayerNorm2d(768)
    x = (300 * torch.randn(1, 768, 2, 2, generator=torch.Generator().manual_seed(0))).half()
    exact = norm(x.float())
    # 300 squared is 90,000, beyond the 65,504 of fp16: the naive formula returns zeros.
    broken = naive_layer_norm(x, norm.weight.half(), norm.bias.half())
    assert (broken.float() - exact).abs().max() > 1
    y = norm.half()(x)
    assert y.dtype == torch.float16
    assert (y.float() - exact).abs().max() < 5e-3


def test_layer_norm_keeps_bf16_under_autocast() -> None:
    norm = LayerNorm2d(16)
    x = torch.randn(2, 16, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x.bfloat16())
        block = Block(NetworkConfig(layer_scale_init=0.5), in_dim=16, dim=16)(x.bfloat16())
    assert y.dtype == block.dtype == torch.bfloat16
    assert (y.float() - norm(x)).abs().max() < 0.05
    y.float().sum().backward()
    assert norm.bias.grad is not None
    assert norm.bias.grad.dtype == torch.float32


def test_stochastic_depth_drops_whole_samples() -> None:
    torch.manual_seed(0)
    block = Block(NetworkConfig(layer_scale_init=1.0), in_dim=8, dim=8, drop_path_rate=0.25)
    x = torch.randn(400, 8, 2, 2)
    with torch.no_grad():
        full = block.eval()(x) - x
        assert torch.equal(block(x) - x, full)
        partial = block.train()(x) - x
    dropped = (partial == 0).flatten(1).all(1)
    assert 0.15 < dropped.float().mean() < 0.35
    # The kept branches are scaled so that the mean equals that of evaluation.
    assert torch.allclose(partial[~dropped], full[~dropped] / 0.75, atol=1e-5)


def test_a_block_is_its_rows() -> None:
    config = NetworkConfig(layer_scale_init=0.3)
    block = Block(config, in_dim=8, dim=8)
    x = torch.randn(2, 8, 6, 6)
    y = block.norm(F.conv2d(x, block.spatial.weight, block.spatial.bias, padding=3, groups=8))
    y = F.gelu(F.conv2d(y, block.pwconv1.weight, block.pwconv1.bias))
    y = F.conv2d(y, block.pwconv2.weight, block.pwconv2.bias)
    assert torch.allclose(block(x), x + 0.3 * y, atol=1e-5)


@pytest.mark.parametrize("stem", ["patchify", "conv_pool"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_stem_has_the_stride_it_says(stem: str, stride: int) -> None:
    config = NetworkConfig(stem=stem, stem_stride=stride, in_chans=2)  # type: ignore[arg-type]
    assert Stem(config)(torch.randn(1, 2, 32, 32)).shape == (1, 96, 32 // stride, 32 // stride)
