"""What networks of dense tasks cost, as the toolboxes that the papers used count it.

Multiply-accumulates, and by elements: one per output of a convolution with a bias and of a ReLU
module, two per value of a batch norm, one per input of a pooling module. Layer norm, GELU, resizing
and RoIAlign count nothing, nor do biases of linear layers, which the pointwise convolutions of a
block are in the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def dense_macs(model: nn.Module, run: Callable[[], Any]) -> int:
    """Return the multiply-accumulates of what `run` does with a model, best on the meta device."""
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
    """Return what a layer costs per element of its input and of its output."""
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
