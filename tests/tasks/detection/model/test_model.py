"""Detectors on every kind of backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_detectors import METHODS, NARROW, SHY, SMALL, random_target, small_detector
from torch import nn

from convnext.data.preprocessing import DensePreprocessing
from convnext.models.config import FAMILY
from convnext.models.flops import cost, dense_macs
from convnext.tasks.detection.model.detector import CascadeMaskRCNN, MaskRCNN
from convnext.tasks.factory import create_model, list_models
from convnext.tasks.trained import build as build_card
from convnext.weights import load_weights, read_source
from convnext.weights.checkpoint import Card
from convnext.weights.files import save_checkpoint

SWIN = {"embed_dim": 12, "num_heads": (1, 1, 1, 1), "depths": (1, 1, 2, 1)}
BACKBONES: dict[str, dict[str, object]] = {
    "convnext_atto": {"in_chans": 4, "drop_path_rate": 0.1},
    "convnext_tiny": {"stem_stride": 2},
    "roadmap/resnet50/resnet_baseline": {},
    "roadmap/resnet50/bn_to_ln": {},
    "timm/convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    "timm/resnet18": {},
    "timm/swin_tiny_patch4_window7_224": SWIN,
}


def images_for(model: nn.Module, *sizes: tuple[int, int]) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    channels = 4 if model.changes.get("in_chans") == 4 else 3
    return [torch.randn(channels, *size, generator=random) for size in sizes]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_detections_and_gradients_of_images_of_odd_sizes(method: str, backbone: str) -> None:
    model = small_detector(f"{method}{backbone}", **BACKBONES[backbone])
    sizes = [(70, 101), (64, 50)]
    images = images_for(model, *sizes)
    targets = [random_target(2, *size, seed=i) for i, size in enumerate(sizes)]
    losses = model.losses(images, targets, seed=0)
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    with torch.inference_mode():
        found = model.eval()(images)
    for one, (height, width) in zip(found, sizes, strict=True):
        num = len(one["scores"])
        assert 0 < num <= 10
        assert one["boxes"].shape == (num, 4)
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert one["masks"].shape == (num, height, width)
        assert one["masks"].dtype == torch.bool
        assert one["labels"].dtype == torch.long
        assert set(one["labels"].tolist()) <= set(range(5))
        assert (one["scores"].diff() <= 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_found(method: str) -> None:
    model = small_detector(f"{method}convnext_atto", score_threshold=0.99).eval()
    with torch.inference_mode():
        (one,) = model(images_for(model, (40, 50)))
    shapes = {name: tuple(value.shape) for name, value in one.items()}
    assert shapes == {"boxes": (0, 4), "scores": (0,), "labels": (0,), "masks": (0, 40, 50)}


@pytest.mark.parametrize("method", METHODS)
def test_an_image_alone_and_in_a_batch_of_its_size(method: str, randomize) -> None:
    model = randomize(small_detector(f"{method}convnext_atto"))
    images = images_for(model, (64, 96), (64, 96))
    with torch.inference_mode():
        together = model(images)
        alone = [model([image])[0] for image in images]
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a["scores"], b["scores"], atol=1e-4)
        assert torch.allclose(a["boxes"], b["boxes"], atol=1e-2)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_finds_alike(method: str, precision: torch.dtype) -> None:
    model = small_detector(f"{method}convnext_atto").eval()
    images = images_for(model, (64, 96))
    with torch.inference_mode():
        (whole,) = model(images)
        with torch.autocast("cpu", precision):
            (mixed,) = model(images)
        (half,) = model.to(precision)([image.to(precision) for image in images])
    for one in (mixed, half):
        assert abs(float(one["scores"][0] - whole["scores"][0])) < 0.01
        assert one["boxes"].dtype == torch.float32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "backbone", ["convnext_atto", "roadmap/resnet50/bn_to_ln", "timm/resnet18"]
)
def test_a_checkpoint_builds_the_same_detector(
    method: str, backbone: str, tmp_path: Path, randomize: Callable[[nn.Module], nn.Module]
) -> None:
    model = randomize(small_detector(f"{method}{backbone}", output_norms=True))
    card = Card(
        model=model.name,
        changes=model.changes,
        classes=tuple("abcde"),
        task="detect",
        preprocessing=DensePreprocessing(
            image_size=64, max_size=96, in_chans=3, mean=(0.5,) * 3, std=(0.2,) * 3
        ),
    )
    save_checkpoint(tmp_path / "model.safetensors", model.state_dict(), card)
    _, metadata = read_source(tmp_path / "model.safetensors")
    again = build_card(Card.from_metadata(metadata, "here")).eval()
    report = load_weights(again, tmp_path / "model.safetensors")
    assert (report.layout, report.missing, report.unexpected) == ("convnext", (), ())
    assert not report.head_replaced
    assert again.config == model.config
    theirs = again.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


# reference: downstream_cost.csv for the paper's Table 3, with decimals from logs.
@pytest.mark.parametrize(
    ("name", "mega_params", "giga_macs"),
    [
        ("mask_rcnn_convnext_tiny", 48.10, 262.11),
        ("cascade_mask_rcnn_convnext_tiny", 85.93, 740.99),
        ("cascade_mask_rcnn_convnext_small", 107.57, 827.31),
        ("cascade_mask_rcnn_convnext_base", 145.80, 964.46),
        ("cascade_mask_rcnn_convnext_large", 254.71, 1354.36),
        ("cascade_mask_rcnn_convnext_xlarge", 406.88, 1898.40),
    ],
)
def test_parameters_and_costs_are_those_of_the_paper(
    name: str, mega_params: float, giga_macs: float
) -> None:
    with torch.device("meta"):
        model = create_model(name)
        images = torch.empty(1, 3, 800, 1280)
    counted = cost(model, (800, 1280))
    assert round(counted.params / 1e6, 2) == mega_params
    assert round(counted.macs / 1e9, 2) == giga_macs
    assert dense_macs(model, lambda: model.run_for_cost(images)) == counted.macs


@pytest.mark.parametrize("method", METHODS)
def test_names(method: str) -> None:
    names = list_models(f"{method}*")
    pyramidal = [name for name, config in FAMILY.items() if len(config.depths) == 4]
    assert names[:9] == [f"{method}{name}" for name in pyramidal]
    assert list_models(f"{method}convnext_b*") == [f"{method}convnext_base"]
    with torch.device("meta"):
        model = create_model(names[0])
    assert isinstance(model, MaskRCNN if method == "mask_rcnn_" else CascadeMaskRCNN)
    assert model.name == names[0]


def test_stages_and_their_heads() -> None:
    one, three = (small_detector(f"{m}convnext_atto") for m in ("mask_rcnn_", "cascade_mask_rcnn_"))
    for model, num in ((one, 1), (three, 3)):
        assert len(model.box_heads) == len(model.mask_heads) == num


@pytest.mark.parametrize("method", METHODS)
def test_settings_go_to_the_detector_or_the_backbone(method: str) -> None:
    model = small_detector(
        f"{method}roadmap/resnet50/bn_to_ln", output_norms=False, max_detections=7, kernel_size=5
    )
    assert isinstance(model.output_norms, nn.Identity)
    assert (model.config.max_detections, model.num_classes) == (7, 5)
    assert tuple(level.channels for level in model.levels.values()) == NARROW["dims"]
    assert model.changes["kernel_size"] == 5
    assert create_model(model.name, **model.changes).changes == model.changes


@pytest.mark.parametrize("method", METHODS)
def test_another_number_of_classes(method: str) -> None:
    model = small_detector(f"{method}convnext_atto")
    model.reset_classifier(7)
    assert (model.num_classes, model.changes["num_classes"]) == (7, 7)
    fresh = small_detector(f"{method}convnext_atto", num_classes=7)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in fresh.state_dict().items()}
    target = random_target(3, 64, 64) | {"labels": torch.tensor([6, 5, 0])}
    losses = model.losses(images_for(model, (64, 64)), [target])
    assert sum(losses.values()).isfinite()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mask_rcnn_convnext_tny", {}, "there is no model 'convnext_tny'; did you mean"),
        ("mask_rcnn_convnext_tiny", {"chanels": 3}, "has no setting 'chanels'; did you mean 'chan"),
        ("cascade_mask_rcnn_convnext_tiny", {"fc_dim": 0}, "fc_dim must be positive, not 0"),
        ("mask_rcnn_convnext_tiny", {"num_classes": 0}, "num_classes must be positive, not 0"),
        ("mask_rcnn_convnext_tiny", {"nms_threshold": 2.0}, r"must lie in \[0, 1\], not 2.0"),
        ("mask_rcnn_convnext_isotropic_small", {}, "single scale .* and so no pyramid"),
        ("cascade_mask_rcnn_timm/vit_tiny_patch16_224", {}, "single scale .* and so no pyramid"),
        ("mask_rcnn_timm/resnet18", {"kernel_size": 9}, "does not have the setting kernel_size"),
    ],
)
def test_mistakes_are_named(name: str, changes: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create_model(name, **changes)  # type: ignore[arg-type]


def test_small_and_shy_are_settings() -> None:
    model = small_detector("mask_rcnn_convnext_atto")
    assert {key: model.changes[key] for key in SMALL | SHY} == SMALL | SHY
