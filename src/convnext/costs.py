"""What a network costs: parameters and multiply-accumulates."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Trainable parameters, and multiply-accumulates (MACs) for one image."""

    params: int
    macs: int


def cost(model: nn.Module, input_size: int | tuple[int, int] = 224) -> Cost:
    """Count the parameters of a classifier, and its MACs for one image of `input_size` (H, W).

    One multiply-accumulate is what the papers print as one FLOP. Convolutions and linear layers
    count, and the two matrix products of attention in the peers that have it; biases, norms,
    activations and pooling do not (ResNet-50 at 224: 4,089,184,256). Nothing is computed: the
    network runs on shapes alone, and stays as it was.
    """
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    shapes = copy.deepcopy(model).to("meta").eval()
    images = torch.empty(1, in_chans(model), height, width, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes(images)
    params = sum(parameter.numel() for parameter in model.parameters())
    return Cost(params=params, macs=counter.get_total_flops() // 2)


def in_chans(model: nn.Module) -> int:
    """Return the channels of the images that a network takes."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise ValueError("this network has no convolution, so its input channels are unknown")
