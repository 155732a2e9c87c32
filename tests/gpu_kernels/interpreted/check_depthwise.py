"""The depthwise kernel against torch's convolution in fp64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from relative import relative
from torch import Tensor
from torch.nn import functional as F

from gpu_kernels import depthwise as module
from gpu_kernels.depthwise import depthwise, depthwise_op, gradient_op

# Rounding of the result only; the interpreter truncates to bf16.
MOST = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 6e-3}
SHAPES = [  # N C H W k
    (1, 3, 1, 1, 3),
    (1, 20, 3, 9, 7),
    (1, 35, 4, 3, 5),
    (2, 32, 3, 2, 7),
]


def _inputs(num: int, c: int, h: int, w: int, k: int, dtype: torch.dtype) -> list[Tensor]:
    random = torch.Generator().manual_seed(c)
    x = torch.randn(num, c, h, w, generator=random).to(dtype)
    weight, bias = (torch.randn(*s, generator=random) for s in ((c, 1, k, k), (c,)))
    return [x.contiguous(memory_format=torch.channels_last), weight, bias]


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x, weight = x.double(), weight.double()
    bias = None if bias is None else bias.double()
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))


@pytest.mark.parametrize("dtype", MOST, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors = [t.requires_grad_() for t in _inputs(*shape, dtype)]
    y = depthwise(*tensors)
    expected = _reference(*tensors)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative(y, expected) < MOST[dtype]
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours = torch.autograd.grad(y, tensors, grad)
    theirs = torch.autograd.grad(expected, tensors, grad.double())
    for got, wanted, given in zip(ours, theirs, tensors, strict=True):
        assert got.dtype == given.dtype
        assert relative(got, wanted) < MOST[given.dtype] + MOST[torch.float32]


@pytest.mark.parametrize("config", module.FORWARD, ids=str)
def test_every_tile(config: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._forward, "configs", [config])
    x, weight, bias = _inputs(1, 33, 5, 3, 3, torch.float32)
    assert relative(depthwise(x, weight, bias), _reference(x, weight, bias)) < 1e-6


@pytest.mark.parametrize("config", module.GRADIENT, ids=str)
def test_every_tile_of_the_gradient(config: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._gradient, "configs", [config])
    x, weight, bias = _inputs(1, 33, 5, 3, 3, torch.float32)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    wanted = torch.autograd.grad(_reference(x, weight, bias), (weight, bias), grad.double())
    by_taps, by_bias = gradient_op(grad.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1), 3)
    assert relative(by_taps.permute(2, 0, 1)[:, None], wanted[0]) < 1e-6
    assert relative(by_bias, wanted[1]) < 1e-6


@pytest.mark.parametrize("programs", [1, 6, 12])
def test_splits_that_do_not_divide_the_rows(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUM_PROGRAMS", programs)  # 1, 2 and 4 splits of 5 rows.
    x, weight, bias = _inputs(1, 4, 5, 3, 3, torch.float32)
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(depthwise(x, weight, bias), (weight, bias), grad)
    theirs = torch.autograd.grad(_reference(x, weight, bias), (weight, bias), grad.double())
    for got, wanted in zip(ours, theirs, strict=True):
        assert relative(got, wanted) < 1e-6


def test_channels_first_and_no_bias() -> None:
    x, weight, _ = _inputs(2, 5, 3, 4, 3, torch.float32)
    y = depthwise(x.contiguous(), weight)
    assert relative(y, _reference(x, weight, None)) < 1e-6
    assert depthwise(x[:0], weight).shape == (0, 5, 3, 4)


def test_only_the_gradients_that_are_asked_for() -> None:
    x, weight, bias = _inputs(1, 5, 3, 4, 3, torch.float32)
    weight.requires_grad_()
    depthwise(x, weight, bias).sum().backward()
    wanted = torch.autograd.grad(_reference(x, weight, bias).sum(), weight)[0]
    assert relative(weight.grad, wanted) < 1e-6


def test_autocast_converts_maps_and_not_weights() -> None:
    x, weight, bias = _inputs(1, 5, 3, 4, 3, torch.float32)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise(x, weight, bias)
    assert y.dtype == torch.bfloat16
    assert relative(y, _reference(x.bfloat16(), weight, bias)) < MOST[torch.bfloat16]
    assert torch.autograd.grad(y.sum(), weight)[0].dtype == torch.float32


def test_compilers_trace_through_it() -> None:
    x, weight, bias = _inputs(1, 5, 3, 4, 3, torch.float32)
    tensors = [t.requires_grad_() for t in (x, weight, bias)]

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(depthwise(x * 2, weight, bias))

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), function(*tensors))
    ours = torch.autograd.grad(compiled(*tensors).square().sum(), tensors)
    theirs = torch.autograd.grad(function(*tensors).square().sum(), tensors)
    torch.testing.assert_close(ours, theirs)


def test_operators_are_what_they_say() -> None:
    x, weight, bias = _inputs(1, 5, 3, 4, 3, torch.float32)
    maps, taps = x.permute(0, 2, 3, 1), weight[:, 0].permute(1, 2, 0).contiguous()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(depthwise_op, (maps, taps, bias), test_utils=checks)
    torch.library.opcheck(depthwise_op, (maps.to(torch.bfloat16), taps, None), test_utils=checks)
    torch.library.opcheck(gradient_op, (maps, maps, 3), test_utils=("test_schema", checks[2]))


@pytest.mark.parametrize("shape", [(5, 1, 4, 4), (5, 2, 3, 3), (4, 1, 3, 3)], ids=str)
def test_other_convolutions_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="k odd"):
        depthwise(torch.zeros(1, 5, 3, 3), torch.zeros(shape))
