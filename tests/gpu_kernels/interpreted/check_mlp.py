"""The fused pointwise pair against torch in fp64."""

from __future__ import annotations

import pytest
import torch
from relative import relative
from torch import Tensor
from torch.nn import functional as F

from gpu_kernels import mlp as module
from gpu_kernels.mlp import pointwise_pair, pointwise_pair_op
from gpu_kernels.tuning import split

# Weights, the activations between the products and the result are rounded.
MOST = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SHAPES = [(70, 16, 64), (5, 20, 80), (65, 40, 100), (64, 48, 192)]  # M C D


def _inputs(rows: int, c: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    random = torch.Generator().manual_seed(c)
    shapes = ((rows, c), (d, c), (d,), (c, d), (c,), (c,), (rows, c))
    x, w1, b1, w2, b2, scale, residual = (torch.randn(*s, generator=random) for s in shapes)
    x, residual = x.to(dtype), residual.to(dtype)
    w1, w2 = (w1 / c**0.5).to(dtype), (w2 / d**0.5).to(dtype)
    return [x, w1, b1, w2, b2, scale, residual]


def _reference(tensors: list[Tensor]) -> Tensor:
    x, w1, b1, w2, b2, scale, residual = (t.double() for t in tensors)
    return residual + scale * F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


@pytest.mark.parametrize("dtype", MOST, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    tensors = _inputs(*shape, dtype)
    *five, scale, residual = tensors
    y = pointwise_pair(*five, scale=scale, residual=residual)
    assert y.dtype == dtype
    assert relative(y, _reference(tensors)) < MOST[dtype]


@pytest.mark.parametrize("config", module.CONFIGS, ids=str)
def test_every_tile(config: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._forward, "configs", [config])
    tensors = _inputs(70, 40, 100, torch.float32)
    *five, scale, residual = tensors
    y = pointwise_pair(*five, scale=scale, residual=residual)
    assert relative(y, _reference(tensors)) < 2e-6


def test_maps_without_scale_or_residual() -> None:
    x, w1, b1, w2, b2, *_ = tensors = _inputs(12, 6, 24, torch.float32)
    tensors[5:] = [torch.ones(6), torch.zeros(12, 6)]
    y = pointwise_pair(x.view(1, 3, 4, 6), w1, b1, w2, b2)
    assert y.shape == (1, 3, 4, 6)
    assert relative(y.view(12, 6), _reference(tensors)) < 2e-6
    assert pointwise_pair(x[:0], w1, b1, w2, b2).shape == (0, 6)


def test_a_wider_residual_decides_the_dtype() -> None:
    tensors = _inputs(5, 16, 32, torch.bfloat16)
    *five, scale, residual = tensors
    y = pointwise_pair(*five, scale=scale, residual=residual.float())
    assert y.dtype == torch.float32
    assert relative(y, _reference(tensors)) < MOST[torch.bfloat16]


def test_compilers_trace_through_it() -> None:
    *five, scale, residual = _inputs(5, 16, 32, torch.float32)

    def function(*five: Tensor) -> Tensor:
        return pointwise_pair(*five, scale=scale, residual=residual).relu()

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*five), function(*five))
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(pointwise_pair_op, (*five, scale, None), test_utils=checks)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(3, (1, 16)), (48, (3, 16)), (96, (3, 32)), (128, (1, 128)), (192, (3, 64)), (320, (3, 128))],
)
def test_split(channels: int, expected: tuple[int, int]) -> None:
    assert split(channels) == expected


def test_what_does_not_fit_is_refused() -> None:
    x, w1, b1, w2, b2, *_ = _inputs(5, 16, 32, torch.float32)
    with pytest.raises(ValueError, match="do not fit rows"):
        pointwise_pair(x, w2, b1, w1, b2)
    with pytest.raises(ValueError, match="residual is"):
        pointwise_pair(x, w1, b1, w2, b2, residual=x[:1])
    wide = torch.zeros(1, 385)
    with pytest.raises(ValueError, match="384 do"):
        pointwise_pair(wide, torch.zeros(8, 385), torch.zeros(8), torch.zeros(385, 8), wide[0])
