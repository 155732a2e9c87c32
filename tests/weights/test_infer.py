"""The network that a file belongs to."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision

from convnext.models.config import FAMILY
from convnext.tasks.factory import create_model, infer_model
from convnext.weights import LAYOUT_NAMES, export_weights


@pytest.mark.parametrize("name", FAMILY)
def test_every_member_is_named_in_every_layout(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    for layout in ("official", "convnext") if "isotropic" in name else LAYOUT_NAMES:
        assert infer_model(export_weights(model, layout)) == (name, {})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("convnext_tiny", {"num_classes": 21841}),
        ("convnext_base", {"num_classes": 0, "in_chans": 1}),
        ("convnext_pico", {"stem_stride": 2, "layer_scale_init": 0.0}),
        ("convnext_atto", {"stem_stride": 1, "kernel_size": 9}),
        ("convnext_isotropic_small", {"layer_scale_init": 1e-6, "num_classes": 5}),
        ("convnext_isotropic_large", {"layer_scale_init": 0.0}),
        ("convnext_tiny", {"depths": (1, 2, 3, 1), "dims": (16, 32, 64, 128)}),
        ("convnext_tiny", {"depths": (2, 2, 2), "dims": (16, 32, 64)}),
        ("roadmap/resnet50/resnet_baseline", {"num_classes": 12, "in_chans": 4}),
        ("roadmap/resnet200/resnet_baseline", {}),
        ("roadmap/resnet50/resnet_baseline", {"depths": (3, 8, 36, 3)}),
    ],
)
def test_changes_are_told_from_shapes(name: str, changes: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = create_model(name, **changes)
    assert infer_model(model.state_dict()) == (name, changes)


def test_files_of_other_packages() -> None:
    with torch.device("meta"):
        assert infer_model(torchvision.models.convnext_large().state_dict()) == (
            "convnext_large",
            {},
        )
        assert infer_model(timm.create_model("resnet50").state_dict()) == (
            "roadmap/resnet50/resnet_baseline",
            {},
        )
        assert infer_model(timm.create_model("convnext_femto", num_classes=3).state_dict()) == (
            "convnext_femto",
            {"num_classes": 3},
        )


@pytest.mark.parametrize(
    "name",
    ["convnextv2_tiny", "convnext_atto_ols", "resnet18", "resnext50_32x4d", "vit_tiny_patch16_224"],
)
def test_other_networks_are_not_taken_for_ours(name: str) -> None:
    with torch.device("meta"):
        state_dict = timm.create_model(name).state_dict()
    with pytest.raises(ValueError, match="belong to neither a ConvNeXt nor a bottleneck ResNet"):
        infer_model(state_dict)
    with pytest.raises(ValueError, match="belong to neither a ConvNeXt"):
        infer_model({})
