"""The cost of a network: parameters, multiply-accumulates, and the bytes that it moves.

Dense networks are counted as in the toolboxes that the papers used. These add, per element: one
for an output of a convolution with a bias or of a ReLU module, two for a value of a batch norm, one
for an input of a pooling module. Layer norm, GELU, resizing and RoIAlign are not counted, nor are
biases of linear layers, which the pointwise convolutions of a block are in the authors' code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# They keep shapes and have no MACs, but on the meta device they take most of the time.
_SKIPPED = (nn.BatchNorm2d, nn.Dropout, nn.GELU, nn.LayerNorm, nn.ReLU, nn.SiLU)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Trainable parameters, and multiply-accumulates (MACs) for one image."""

    params: int
    macs: int


def cost(model: nn.Module, input_size: int | tuple[int, int] = 224) -> Cost:
    """Count the parameters of a network, and its MACs for one image of `input_size` (H, W).

    The papers print one multiply-accumulate as one FLOP. Convolutions, linear layers and the two
    matrix products of attention count; biases, norms, activations and pooling do not (ResNet-50 at
    224: 4,089,184,256). A dense network is counted as the toolboxes of 2021 did, without its
    auxiliary head and with the terms in the docstring of this module; a detector with 1000
    proposals through every box head and 100 through every mask head. The network runs on shapes
    alone and is not changed.
    """
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    shapes = copy.deepcopy(model).to("meta").eval()
    for module in shapes.modules():
        if type(module) in _SKIPPED:
            module.forward = _same
    images = torch.empty(1, in_chans(model), height, width, device="meta")
    run: Callable[[Tensor], object] = getattr(shapes, "run_for_cost", shapes)
    if getattr(model, "cost_convention", "") == "toolbox":
        macs = dense_macs(shapes, lambda: run(images))
    else:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(images)
        macs = counter.get_total_flops() // 2
    params = sum(parameter.numel() for parameter in model.parameters())
    return Cost(params=params, macs=macs)


def _same(maps: Tensor) -> Tensor:
    return maps


def in_chans(model: nn.Module) -> int:
    """Return the number of input channels of a network."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise ValueError("this network has no convolution, so its input channels are unknown")


def dense_macs(model: nn.Module, run: Callable[[], Any]) -> int:
    """Return the multiply-accumulates of a call of `run`; best with a model on the meta device."""
    counts: list[int] = []
    hooks = [
        module.register_forward_hook(_counter(per_input, per_output, counts))
        for name, module in model.named_modules()
        for per_input, per_output in [_per_element(name, module)]
        if per_input or per_output
    ]
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return int(counter.get_total_flops()) // 2 + sum(counts)


def _per_element(name: str, module: nn.Module) -> tuple[int, int]:
    """Return the cost of a layer per element of its input and of its output."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        linear = name.endswith(("pwconv1", "pwconv2"))
        return 0, int(module.bias is not None and not linear)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return 0, 2
    if isinstance(module, nn.ReLU):
        return 0, 1
    return int(isinstance(module, nn.MaxPool2d | nn.AdaptiveAvgPool2d)), 0


def _counter(
    per_input: int, per_output: int, counts: list[int]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts.append(per_input * inputs[0].numel() + per_output * output.numel())

    return hook


@dataclass(frozen=True, kw_only=True)
class Demand:
    """The work and the memory traffic for one image."""

    params: int
    flops: int
    """Two per multiply-accumulate."""
    activation_bytes: int
    """Bytes that convolutions and linear layers move in fp32, if all else is fused into them."""
    weight_bytes: int
    """In fp32, once per batch."""

    def bytes_of(self, batch: int, precision: str) -> float:
        """Return the bytes that a batch moves in a precision."""
        in_fp32 = batch * self.activation_bytes + self.weight_bytes
        return in_fp32 if precision == "fp32" else in_fp32 / 2


def demand(model: nn.Module, size: tuple[int, int]) -> Demand:
    """Return the demand of an image of `size` (H, W), computed on shapes alone."""
    counted = cost(model, size)
    shapes = copy.deepcopy(model).to("meta").eval()
    moved = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        moved += 4 * (inputs[0].numel() + output.numel())

    hooks = [
        m.register_forward_hook(count)
        for m in shapes.modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    images = torch.empty(1, in_chans(model), *size, device="meta")
    with torch.no_grad():
        getattr(shapes, "run_for_cost", shapes)(images)
    for hook in hooks:
        hook.remove()
    return Demand(
        params=counted.params,
        flops=2 * counted.macs,
        activation_bytes=moved,
        weight_bytes=4 * counted.params,
    )
