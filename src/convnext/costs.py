"""What a network costs: parameters and multiply-accumulates."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Trainable parameters, and multiply-accumulates (MACs) for one image."""

    params: int
    macs: int


def cost(model: nn.Module, input_size: int | tuple[int, int] = 224) -> Cost:
    """Count the parameters of a network, and its MACs for one image of `input_size` (H, W).

    One multiply-accumulate is what the papers print as one FLOP. Convolutions and linear layers
    count, and the two matrix products of attention in the peers that have it; biases, norms,
    activations and pooling do not (ResNet-50 at 224: 4,089,184,256). A network of a dense task is
    counted as the toolboxes of 2021 did, without its auxiliary head and with what
    `_count_elements` adds. Nothing is computed: the network runs on shapes alone, and stays as it
    was.
    """
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    shapes = copy.deepcopy(model).to("meta").eval()
    images = torch.empty(1, in_chans(model), height, width, device="meta")
    extras: list[int] = []
    if getattr(model, "cost_convention", "") == "toolbox":
        for name, module in shapes.named_modules():
            _count_elements(name, module, extras)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes(images)
    params = sum(parameter.numel() for parameter in model.parameters())
    return Cost(params=params, macs=counter.get_total_flops() // 2 + sum(extras))


def _count_elements(name: str, module: nn.Module, extras: list[int]) -> None:
    """Let a layer that the toolboxes count by its elements add its count to `extras`.

    One per output of a convolution with a bias and of a ReLU, two per value of a batch norm, one
    per input of a pooling; nothing for layer norm, GELU, resizing and the biases of linear layers,
    which the pointwise convolutions of a block are in the authors' code. So counted, the
    segmentors of the paper cost what it says, to two decimals of a billion.
    """

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        extras.append(per_input * inputs[0].numel() + per_output * output.numel())

    per_input, per_output = 0, 0
    if isinstance(module, nn.Conv2d):
        linear = name.endswith(("pwconv1", "pwconv2"))
        per_output = int(module.bias is not None and not linear)
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        per_output = 2
    elif isinstance(module, nn.ReLU):
        per_output = 1
    elif isinstance(module, nn.MaxPool2d | nn.AdaptiveAvgPool2d):
        per_input = 1
    if per_input or per_output:
        module.register_forward_hook(hook)


def in_chans(model: nn.Module) -> int:
    """Return the channels of the images that a network takes."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise ValueError("this network has no convolution, so its input channels are unknown")
