"""Costs of dense networks, layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convnext.models.flops import dense_macs

POSITIONS = 16 * 16


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Conv2d(4, 6, 3, padding=1, bias=False), 4 * 6 * 9 * POSITIONS),
        (nn.Conv2d(4, 6, 3, padding=1), (4 * 6 * 9 + 6) * POSITIONS),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4 * 6 * 4 + 4 * 6) * POSITIONS),
        (nn.Linear(16, 10), 4 * 16 * 16 * 10),
        (nn.BatchNorm2d(4), 2 * 4 * POSITIONS),
        (nn.ReLU(), 4 * POSITIONS),
        (nn.MaxPool2d(2), 4 * POSITIONS),
        (nn.GELU(), 0),
        (nn.LayerNorm(16), 0),
        (nn.Upsample(scale_factor=2), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_a_layer(layer: nn.Module, macs: int) -> None:
    layer, images = layer.to("meta"), torch.empty(1, 4, 16, 16, device="meta")
    assert dense_macs(layer, lambda: layer(images)) == macs
    # Counting leaves no hooks behind.
    assert dense_macs(layer, lambda: [layer(images), layer(images)]) == 2 * macs


def test_pointwise_convolutions_of_a_block_are_the_linear_layers_of_the_authors() -> None:
    block = nn.ModuleDict({"pwconv1": nn.Conv2d(4, 6, 1), "other": nn.Conv2d(4, 6, 1)}).to("meta")
    images = torch.empty(1, 4, 16, 16, device="meta")
    assert dense_macs(block, lambda: block["pwconv1"](images)) == 24 * POSITIONS
    assert dense_macs(block, lambda: block["other"](images)) == (24 + 6) * POSITIONS


def test_nothing_stays_after_a_failure() -> None:
    layer = nn.ReLU()
    with pytest.raises(ZeroDivisionError):
        dense_macs(layer, lambda: 1 / 0)
    assert not layer._forward_hooks
