"""The depthwise convolution fused with the layer norm, against torch in fp64."""

from __future__ import annotations

import pytest
import torch
from relative import relative
from torch import Tensor
from torch.nn import functional as F

from gpu_kernels import norm as module
from gpu_kernels.norm import depthwise_norm, depthwise_norm_op

MOST = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 6e-3}  # As in check_depthwise.
SHAPES = [  # N C H W k; channels in one part and in three, with and without unused ones.
    (1, 3, 1, 1, 3),
    (1, 16, 3, 2, 5),
    (2, 40, 3, 2, 3),
    (1, 48, 2, 9, 7),
    (1, 60, 3, 2, 3),
]


def _inputs(num: int, c: int, h: int, w: int, k: int, dtype: torch.dtype) -> list[Tensor]:
    random = torch.Generator().manual_seed(c)
    x = torch.randn(num, c, h, w, generator=random).to(dtype)
    shapes = ((c, 1, k, k), (c,), (c,), (c,))
    return [x, *(torch.randn(*shape, generator=random) for shape in shapes)]


def _reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> Tensor:
    x, weight = x.double(), weight.double()
    bias, scale, shift = (None if t is None else t.double() for t in (bias, scale, shift))
    y = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
    y = F.layer_norm(y.permute(0, 2, 3, 1), (len(weight),), scale, shift, 1e-6)
    return y.permute(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", MOST, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, bias, scale, shift = _inputs(*shape, dtype)
    y = depthwise_norm(x, weight, bias, norm_weight=scale, norm_bias=shift)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative(y, _reference(x, weight, bias, scale, shift)) < MOST[dtype]


@pytest.mark.parametrize("config", module.CONFIGS, ids=str)
def test_every_tile(config: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._forward, "configs", [config])
    x, weight, bias, scale, shift = _inputs(1, 40, 3, 2, 3, torch.float32)
    y = depthwise_norm(x, weight, bias, norm_weight=scale, norm_bias=shift)
    assert relative(y, _reference(x, weight, bias, scale, shift)) < 1e-6


def test_without_weights_that_were_folded_and_without_bias() -> None:
    x, weight, *_ = _inputs(1, 6, 3, 2, 3, torch.float32)
    assert relative(depthwise_norm(x, weight), _reference(x, weight, None, None, None)) < 1e-6


def test_large_means_keep_their_precision() -> None:
    x, weight, bias, *_ = _inputs(1, 6, 3, 2, 3, torch.float32)
    bias = bias + 1000
    assert relative(depthwise_norm(x, weight, bias), _reference(x, weight, bias, None, None)) < 1e-3


def test_compilers_trace_through_it() -> None:
    x, weight, bias, *_ = _inputs(1, 6, 3, 2, 3, torch.float32)
    compiled = torch.compile(depthwise_norm, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, weight, bias), depthwise_norm(x, weight, bias))
    maps, taps = x.permute(0, 2, 3, 1), weight[:, 0].permute(1, 2, 0)
    checks = ("test_schema", "test_faketensor")
    arguments = (maps, taps, bias, None, None, 1e-6)
    torch.library.opcheck(depthwise_norm_op, arguments, test_utils=checks)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="2048 do"):
        depthwise_norm(torch.zeros(1, 2049, 1, 1), torch.zeros(2049, 1, 3, 3))
    with pytest.raises(ValueError, match="together"):
        depthwise_norm(torch.zeros(1, 2, 1, 1), torch.zeros(2, 1, 3, 3), norm_bias=torch.zeros(2))
