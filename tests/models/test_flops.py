"""Parameters and multiply-accumulates."""

from __future__ import annotations

import torch
from torch import nn

from convnext.models.flops import cost, in_chans
from convnext.tasks.factory import create_model


def test_convolutions_and_linear_layers_count_and_nothing_else() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 7, padding=3, groups=8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    counted = cost(model, (32, 64))
    assert counted.macs == (16 * 32) * (3 * 8 * 9 + 8 * 49) + 8 * 10
    assert counted.params == (3 * 8 * 9 + 8) + 16 + (8 * 49 + 8) + 90


def test_attention_counts_in_peers() -> None:
    with torch.device("meta"):
        vit = create_model("timm/vit_tiny_patch16_224")
    tokens, dim = 197, 192
    linear = tokens * dim * dim * (3 + 1 + 8)
    attention = 2 * tokens * tokens * dim
    patches, head = 196 * dim * 3 * 256, dim * 1000
    assert cost(vit).macs == 12 * (linear + attention) + patches + head


def test_the_convention_of_dense_tasks_adds_elements() -> None:
    class Toy(nn.Sequential):
        cost_convention = "toolbox"

    layers = [
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 4, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    ]
    positions = 16 * 16
    added = 8 * positions * (1 + 2 + 1 + 1) + 4 * positions // 4
    assert cost(Toy(*layers), 32).macs == cost(nn.Sequential(*layers), 32).macs + added


def test_counting_leaves_a_network_as_it_was() -> None:
    model = create_model("convnext_atto", in_chans=1)
    assert in_chans(model) == 1
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert 3.9 < cost(model, 128).macs / cost(model, 64).macs < 4
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
