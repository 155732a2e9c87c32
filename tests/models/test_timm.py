"""timm's networks behind our interface."""

from __future__ import annotations

import pytest
import torch

from convnext.tasks.factory import create_model


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet50", (256, 512, 1024, 2048)),
        ("convnext_atto", (40, 80, 160, 320)),
        ("swin_tiny_patch4_window7_224", (96, 192, 384, 768)),
    ],
)
def test_a_peer_has_logits_and_a_pyramid(name: str, channels: tuple[int, ...]) -> None:
    model = create_model(f"timm/{name}", num_classes=5, drop_path_rate=0.1).eval()
    # Neither square nor of the pre-training size.
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert model(images).shape == (1, 5)
        maps = model.pyramid(images)
    assert list(maps) == list(model.levels) == ["c2", "c3", "c4", "c5"]
    for (level, stride), map_ in zip(model.levels.values(), maps.values(), strict=True):
        assert map_.shape == (1, level, 64 // stride, 96 // stride)
    assert tuple(level.channels for level in model.levels.values()) == channels
    assert model.num_features == channels[-1]
    model.reset_classifier(3)
    assert model(images).shape == (1, 3)
    assert model.changes["num_classes"] == 3


def test_a_vit_has_logits_at_any_size_and_no_pyramid() -> None:
    model = create_model("timm/vit_tiny_patch16_224", num_classes=5).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 64, 96)).shape == (1, 5)
    with pytest.raises(
        ValueError, match=r"single scale \(stride 16\) and so no pyramid; choose one"
    ):
        model.pyramid(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_patches_that_are_cut_short_are_padded(name: str) -> None:
    changes = {"depths": (1, 1, 1, 1)} if name.startswith("swin") else {"depth": 1}
    model = create_model(f"timm/{name}", num_classes=2, **changes).eval()
    images = torch.randn(1, 3, 70, 101)
    whole = torch.nn.functional.pad(images, (0, 11, 0, 10) if "vit" in name else (0, 3, 0, 2))
    with torch.inference_mode():
        assert torch.allclose(model(images), model(whole))


def test_one_channel() -> None:
    model = create_model("timm/resnet18", in_chans=1, num_classes=2)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 2)


def test_settings_that_only_our_networks_have() -> None:
    with pytest.raises(ValueError, match="timm/resnet18 does not have the setting kernel_size"):
        create_model("timm/resnet18", kernel_size=9)


@pytest.mark.parametrize("name", ["convnext_atto", "resnet18", "swin_tiny_patch4_window7_224"])
def test_a_network_without_its_head_has_the_same_pyramid(name: str) -> None:
    model = create_model(f"timm/{name}").eval()
    images = torch.randn(1, 3, 64, 64)
    before = model.pyramid(images)
    model.drop_head()
    after = model.pyramid(images)
    assert all(torch.equal(before[level], after[level]) for level in before)
    sum(map_.sum() for map_ in after.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
