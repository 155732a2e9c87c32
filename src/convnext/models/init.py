"""The first weights of a network: the authors', and others for runs that are short."""

from __future__ import annotations

import math

import torch
from torch import nn

PAPER_STD = 0.02
# Of the wide kind; measured on small photos, see LOG.md.
FAN_IN_GAIN = 1.4
WINDOW_SIGMA = 1.6


def init_paper(module: nn.Module) -> None:
    """Draw weights as the authors' code does: truncated normal of std 0.02, zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=PAPER_STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_fan_in(module: nn.Module) -> None:
    """Draw convolutions that carry their input's variance on, biases and heads left as they are.

    With a std of 0.02 every block begins almost as the identity, which long schedules undo and
    short ones do not. Depthwise kernels are random under a Gaussian window of unit energy, so that
    a block begins by looking at its neighbourhood rather than at one position.
    """
    for layer in module.modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        if layer.groups > 1:
            with torch.no_grad():
                layer.weight.copy_(_windowed(layer.weight))
        else:
            fan_in = layer.weight[0].numel()
            nn.init.trunc_normal_(layer.weight, std=FAN_IN_GAIN / math.sqrt(fan_in))


def _windowed(kernels: torch.Tensor) -> torch.Tensor:  # C 1 K K
    side = kernels.shape[-1]
    x = torch.arange(side, device=kernels.device) - side // 2
    window = torch.exp(-(x[:, None] ** 2 + x[None] ** 2) / (2 * WINDOW_SIGMA**2))
    drawn = torch.randn_like(kernels) * window
    energy: torch.Tensor = torch.linalg.vector_norm(drawn, dim=(1, 2, 3), keepdim=True)
    return torch.div(drawn, energy)
