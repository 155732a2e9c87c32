"""Segmentors on every kind of backbone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from convnext.data.preprocessing import DensePreprocessing
from convnext.models.config import FAMILY
from convnext.models.flops import cost
from convnext.tasks.factory import create_model, list_models
from convnext.tasks.segmentation.model import cross_entropy
from convnext.tasks.trained import build as build_card
from convnext.weights import load_weights, read_source
from convnext.weights.checkpoint import Card
from convnext.weights.files import save_checkpoint

SMALL = {"num_classes": 5, "channels": 8, "auxiliary_channels": 4}
NARROW = {"dims": (8, 8, 16, 16), "depths": (1, 1, 2, 1)}
SWIN = {"embed_dim": 12, "num_heads": (1, 1, 1, 1), "depths": (1, 1, 2, 1)}
BACKBONES: dict[str, dict[str, object]] = {
    "convnext_atto": {"in_chans": 4, "drop_path_rate": 0.1},
    "convnext_tiny": NARROW | {"stem_stride": 2},
    "roadmap/resnet50/resnet_baseline": NARROW,
    "roadmap/resnet50/inverting_dimensions": NARROW,
    "roadmap/resnet50/bn_to_ln": NARROW,
    "timm/convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    "timm/resnet18": {},
    "timm/swin_tiny_patch4_window7_224": SWIN,
}


def build(name: str, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    return create_model(f"upernet_{name}", **{**SMALL, **BACKBONES[name], **changes})


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_logits_and_gradients_of_one_image_of_an_odd_size(name: str) -> None:
    model = build(name)
    images = torch.randn(1, BACKBONES[name].get("in_chans", 3), 70, 101)
    logits = model.heads(images)
    finest, _, third, _ = model.backbone.pyramid(images).values()
    assert logits["decode"].shape == (1, 5, *finest.shape[2:])
    assert logits["auxiliary"].shape == (1, 5, *third.shape[2:])
    masks = torch.randint(0, 5, (1, 70, 101))
    sum(cross_entropy(map_, masks) for map_ in logits.values()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    with torch.inference_mode():
        assert model.eval()(images).shape == (1, 5, 70, 101)
        assert model(images).isfinite().all()
        assert list(model.heads(images)) == ["decode"]
        assert list(model.heads(images, auxiliary=True)) == ["decode", "auxiliary"]


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_a_checkpoint_builds_the_same_segmentor(
    name: str, tmp_path, randomize: Callable[[nn.Module], nn.Module]
) -> None:
    model = randomize(build(name, output_norms=True))
    card = Card(
        model=model.name,
        changes=model.changes,
        classes=tuple("abcde"),
        task="segment",
        preprocessing=DensePreprocessing(
            image_size=64, in_chans=3, mean=(0.5,) * 3, std=(0.2,) * 3
        ),
    )
    save_checkpoint(tmp_path / "model.safetensors", model.state_dict(), card)
    _, metadata = read_source(tmp_path / "model.safetensors")
    again = build_card(Card.from_metadata(metadata, "here")).eval()
    report = load_weights(again, tmp_path / "model.safetensors")
    assert (report.layout, report.missing, report.unexpected) == ("convnext", (), ())
    assert not report.head_replaced
    images = torch.randn(1, BACKBONES[name].get("in_chans", 3), 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(images), again(images))


# reference: ade20k.csv and downstream_cost.csv for the paper's Table 4, with decimals from logs.
@pytest.mark.parametrize(
    ("size", "crop", "mega_params", "giga_macs"),
    [
        ("tiny", 512, 60.24, 938.92),
        ("small", 512, 81.88, 1027.31),
        ("base", 512, 122.10, 1169.84),
        ("base", 640, 122.10, 1827.86),
        ("large", 640, 234.99, 2458.22),
        ("xlarge", 640, 391.14, 3335.21),
    ],
)
def test_parameters_and_costs_are_those_of_the_paper(
    size: str, crop: int, mega_params: float, giga_macs: float
) -> None:
    with torch.device("meta"):
        model = create_model(f"upernet_convnext_{size}")
    counted = cost(model, (crop, 4 * crop))
    assert round(counted.params / 1e6, 2) == mega_params
    assert round(counted.macs / 1e9, 2) == giga_macs


@pytest.mark.parametrize(
    ("size", "mega_params", "giga_macs"),
    [("tiny", 60, 945), ("small", 81, 1038), ("base", 121, 1188)],
)
def test_costs_of_swin_are_those_of_the_paper(size: str, mega_params: int, giga_macs: int) -> None:
    with torch.device("meta"):
        model = create_model(f"upernet_timm/swin_{size}_patch4_window7_224")
    counted = cost(model, (512, 2048))
    assert round(counted.params / 1e6) == pytest.approx(mega_params, abs=0.5)
    assert counted.macs / 1e9 == pytest.approx(giga_macs, abs=0.6)


def test_the_cost_leaves_out_the_auxiliary_head() -> None:
    both, one = build("convnext_atto"), build("convnext_atto", auxiliary=False)
    assert cost(both, 64).macs == cost(one, 64).macs
    assert cost(both, 64).params > cost(one, 64).params


def test_names() -> None:
    names = list_models("upernet_*")
    pyramidal = [name for name, config in FAMILY.items() if len(config.depths) == 4]
    assert names[:9] == [f"upernet_{name}" for name in pyramidal]
    assert len(names) == 9 + 3 * 17
    assert list_models("upernet_convnext_b*") == ["upernet_convnext_base"]
    assert not any(name.startswith("upernet_") for name in list_models())


def test_settings_go_to_the_head_or_the_backbone() -> None:
    model = build("roadmap/resnet50/bn_to_ln", output_norms=False, dropout=0.3, auxiliary=False)
    assert model.auxiliary_head is None
    assert list(model.heads(torch.randn(2, 3, 64, 64))) == ["decode"]
    assert model.decode_head.dropout.p == 0.3
    assert isinstance(model.output_norms, nn.Identity)
    assert model.num_classes == 5
    assert tuple(level.channels for level in model.levels.values()) == NARROW["dims"]
    assert model.changes["kernel_size"] == 7
    assert create_model(model.name, **model.changes).changes == model.changes


def test_another_number_of_classes() -> None:
    model = build("convnext_tiny").double()
    model.reset_classifier(7)
    assert (model.num_classes, model.changes["num_classes"]) == (7, 7)
    logits = model.heads(torch.randn(1, 3, 64, 64, dtype=torch.float64))
    assert {map_.shape[1] for map_ in logits.values()} == {7}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("upernet_convnext_tny", {}, "there is no model 'convnext_tny'; did you mean"),
        ("upernet_convnext_tiny", {"chanels": 3}, "has no setting 'chanels'; did you mean 'chann"),
        ("upernet_convnext_tiny", {"channels": 0}, "channels must be positive, not 0"),
        ("upernet_convnext_tiny", {"num_classes": 0}, "num_classes must be positive, not 0"),
        ("upernet_convnext_tiny", {"dropout": 1.0}, r"dropout must lie in \[0, 1\), not 1.0"),
        ("upernet_convnext_isotropic_small", {}, "single scale .* and so no pyramid"),
        ("upernet_timm/vit_tiny_patch16_224", {}, "single scale .* and so no pyramid"),
        ("upernet_timm/resnet18", {"kernel_size": 9}, "does not have the setting kernel_size"),
    ],
)
def test_mistakes_are_named(name: str, changes: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create_model(name, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["convnext_tiny", "timm/resnet18"])
@pytest.mark.parametrize("size", [(1, 1), (3, 40), (31, 5)])
def test_an_image_smaller_than_a_stride_is_padded_with_the_mean(
    name: str, size: tuple[int, int]
) -> None:
    model = build(name).eval()
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    least = max(level.stride for level in model.levels.values())
    height, width = (max(least, side) for side in size)
    padded = torch.zeros(2, 3, height, width)
    padded[..., : size[0], : size[1]] = image
    with torch.no_grad():
        logits, expected = model(image), model(padded)
    assert logits.shape == (2, 5, *size)
    torch.testing.assert_close(logits, expected[..., : size[0], : size[1]])
