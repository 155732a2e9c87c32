"""The output norms of dense tasks on the maps of a backbone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convnext.models.network import Level, OutputNorms, wants_output_norms
from convnext.tasks.factory import create_model


def test_each_map_is_normed_over_its_channels() -> None:
    torch.manual_seed(0)
    norms = OutputNorms({"c2": Level(8, 4), "c3": Level(16, 8)})
    maps = {"c2": 3 + torch.randn(2, 8, 4, 6), "c3": 5 * torch.randn(2, 16, 2, 3)}
    normed = norms(maps)
    assert list(normed) == ["c2", "c3"]
    for name, map_ in normed.items():
        assert map_.shape == maps[name].shape
        assert map_.mean(1).abs().max() < 1e-5
        assert (map_.std(1, unbiased=False) - 1).abs().max() < 1e-3
    assert list(norms.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert isinstance(norms[0], nn.LayerNorm)
    assert norms[0].eps == 1e-6


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("convnext_atto", True),
        ("roadmap/resnet50/bn_to_ln", True),
        ("roadmap/resnet50/fewer_norms", False),
        ("roadmap/resnet50/resnet_baseline", False),
        ("timm/resnet18", False),
        ("timm/swin_tiny_patch4_window7_224", True),
        ("timm/vgg11", False),
    ],
)
def test_layer_norm_networks_get_them(name: str, wanted: bool) -> None:
    with torch.device("meta"):
        assert wants_output_norms(create_model(name)) == wanted
