"""The network: initial weights, heads, stems, pyramids, and the order of its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from convnext.models.network import Network
from convnext.models.roadmap import roadmap
from convnext.tasks.factory import create_model

SMALL: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (8, 16, 32, 64)}


def test_first_weights_are_those_of_the_authors_code() -> None:
    torch.manual_seed(0)
    model = create_model("convnext_nano", head_init_scale=0.001)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            # Truncation at an absolute 2, a hundred deviations away, has no effect.
            error = 0.02 * 4 / (2 * module.weight.numel()) ** 0.5
            assert module.weight.std().item() == pytest.approx(0.02, abs=error), name
            assert not module.bias.any(), name
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert not module.bias.any()
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            assert (parameter == 1e-6).all()
    assert model.head.fc.weight.std().item() == pytest.approx(2e-5, rel=0.02)
    assert not model.head.fc.bias.any()


def test_stochastic_depth_rises_linearly() -> None:
    model = create_model("convnext_atto", drop_path_rate=0.11)
    rates = [block.drop_path.p for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.01 * b for b in range(12)])


@pytest.mark.parametrize("in_chans", [1, 3, 5])
@pytest.mark.parametrize("stem_stride", [1, 2, 4])
def test_channels_and_stems(in_chans: int, stem_stride: int) -> None:
    for rung in (roadmap("resnet50")[0], roadmap("resnet50")[-1]):
        name = f"roadmap/resnet50/{rung.name}"
        model = create_model(name, in_chans=in_chans, stem_stride=stem_stride, **SMALL)
        images = torch.randn(2, in_chans, 32, 32)
        assert model(images).shape == (2, 1000)
        assert model.forward_features(images).shape[2:] == (4 // stem_stride,) * 2
        strides = [level.stride for level in model.levels.values()]
        assert strides == [stem_stride * 2**s for s in range(4)]


def test_heads() -> None:
    model = create_model("convnext_tiny", num_classes=0, **SMALL).eval()
    images = torch.randn(2, 3, 64, 64)
    features = model(images)
    assert features.shape == (2, model.num_features) == (2, 64)
    model.reset_classifier(7)
    assert model.config.num_classes == 7
    assert model(images).shape == (2, 7)
    assert torch.allclose(model(images), model.head.fc(features))
    again = create_model(model.name, **model.changes)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(images), model(images))
    model.double().reset_classifier(3)
    assert model.head.fc.weight.dtype == torch.float64
    model.reset_classifier(0)
    assert "head.fc.weight" not in model.state_dict()


@pytest.mark.parametrize("rung", roadmap("resnet50"), ids=lambda rung: rung.name)
def test_pyramids_of_rungs(rung: Any) -> None:
    model = create_model(f"roadmap/resnet50/{rung.name}", **SMALL).eval()
    maps = model.pyramid(torch.randn(1, 3, 64, 96))
    wide = 4 if rung.config.bottleneck == "narrow" else 1
    assert {name: tuple(map_.shape[1:]) for name, map_ in maps.items()} == {
        f"c{s + 2}": (wide * 8 * 2**s, 16 // 2**s, 24 // 2**s) for s in range(4)
    }
    assert [(level.channels, level.stride) for level in model.levels.values()] == [
        (map_.shape[1], 64 // map_.shape[2]) for map_ in maps.values()
    ]


def test_the_parts_make_the_whole() -> None:
    model = create_model("convnext_tiny", **SMALL).eval()
    images = torch.randn(1, 3, 64, 64)
    features = model.forward_features(images)
    assert torch.equal(model.pyramid(images)["c5"], features)
    assert torch.equal(model.head(features), model(images))


def test_both_memory_formats_give_the_same_logits() -> None:
    model = create_model("convnext_tiny", **SMALL).eval()
    images = torch.randn(2, 3, 64, 64)
    logits = model(images)
    channels_last = model.to(memory_format=torch.channels_last)
    again = channels_last(images.to(memory_format=torch.channels_last))
    assert torch.allclose(again, logits, atol=1e-5)


def test_an_isotropic_network_has_one_scale_and_no_pyramid() -> None:
    model = create_model("convnext_isotropic_small", depths=(2,), dims=(16,))
    assert isinstance(model, Network)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
    with pytest.raises(ValueError, match=r"single scale \(stride 16\) and so no pyramid; choose"):
        model.pyramid(torch.randn(1, 3, 64, 64))
