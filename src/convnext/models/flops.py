"""What a network costs: parameters and multiply-accumulates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convnext.models.dense_flops import dense_macs


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
    counted as the toolboxes of 2021 did, without an auxiliary head and with what
    `convnext.models.dense_flops` adds; a detector with 1000 proposals through every box head and
    100 through every mask head. Nothing is computed: the network runs on shapes alone, and stays
    as it was.
    """
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    shapes = copy.deepcopy(model).to("meta").eval()
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


def in_chans(model: nn.Module) -> int:
    """Return the channels of the images that a network takes."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise ValueError("this network has no convolution, so its input channels are unknown")
