"""Folding changes how a network is computed, and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import convnext
from convnext.deploy.fold import fold
from convnext.deploy.layers import ChunkedBlock, FoldedBlock
from convnext.hardware.devices import autocast
from convnext.models.config import NetworkConfig
from convnext.models.network import Network

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
# In fp32 the outputs differ only by rounding, about 1e-7.
TOLERANCE = 1e-5
SMALL = {
    "convnext_isotropic": {"depths": (2,), "dims": (24,)},
    "convnext_": {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)},
    "roadmap/": {"depths": (1, 1, 2, 1), "dims": (4, 8, 12, 16)},
}
OURS = sorted(
    [*convnext.FAMILY]
    + [
        f"roadmap/{r}/{rung.name}"
        for r in ("resnet50", "resnet200")
        for rung in convnext.roadmap(r)
    ]
)
PEERS = [
    "timm/convnext_atto",
    "timm/deit_tiny_patch16_224",
    "timm/efficientnet_b0",
    "timm/regnety_002",
    "timm/resnet18",
    "timm/resnext50_32x4d",
    "timm/swin_tiny_patch4_window7_224",
]


def _build(name: str, **changes: object) -> nn.Module:
    small = next((v for k, v in SMALL.items() if name.startswith(k)), {})
    torch.manual_seed(0)
    return _trained(convnext.create_model(name, **{"num_classes": 7} | small | changes))


def _trained(model: nn.Module) -> nn.Module:
    """Give every weight vector and statistic distinct values."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if p.dim() == 1:
                center = 1.0 if name in ("weight", "gamma") else 0.0
                p.data.normal_(center, 0.3, generator=generator)
        if isinstance(module, _BatchNorm) and module.running_var is not None:
            assert module.running_mean is not None
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model.eval()


def _images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2))


def _normalized(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (MEAN, STD))
    return (images - mean) / std


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _norms_left(model: nn.Module) -> int:
    return sum(isinstance(m, _BatchNorm) for m in model.modules())


@pytest.mark.parametrize("form", ["chunked", "conv", "linear"])
@pytest.mark.parametrize("name", OURS)
@torch.no_grad()
def test_every_network_computes_the_same(name: str, form: str) -> None:
    model = _build(name)
    images = _images(2, 3, 64, 64)
    expected = model(_normalized(images))
    assert _difference(fold(model, form=form)(_normalized(images)), expected) < TOLERANCE
    folded = fold(model, mean=MEAN, std=STD, form=form)
    assert _difference(folded(images), expected) < TOLERANCE
    assert _norms_left(folded) == 0
    assert not any(p.requires_grad for p in folded.parameters())


@pytest.mark.parametrize("name", PEERS)
@torch.no_grad()
def test_peers_compute_the_same(name: str) -> None:
    model = _build(name)
    images = _images(1, 3, 224, 224)
    folded = fold(model, mean=MEAN, std=STD)
    assert _difference(folded(images), model(_normalized(images))) < TOLERANCE
    assert _norms_left(folded) == 0


@pytest.mark.parametrize(
    "name", ["convnext_atto", "roadmap/resnet50/resnet_baseline", "timm/resnet18"]
)
@torch.no_grad()
def test_the_pyramid_is_kept(name: str) -> None:
    model = _build(name)
    images = _images(1, 3, 64, 96)
    expected = model.pyramid(images)
    for folded, own in (
        (fold(model), images),
        (fold(model, mean=MEAN, std=STD), images * _std() + _mean()),
    ):
        maps = folded.pyramid(own)
        assert list(maps) == list(expected) == list(folded.levels)
        for level, map_ in maps.items():
            assert _difference(map_, expected[level]) < TOLERANCE


def _mean() -> Tensor:
    return torch.tensor(MEAN).view(-1, 1, 1)


def _std() -> Tensor:
    return torch.tensor(STD).view(-1, 1, 1)


@pytest.mark.parametrize("backbone", ["convnext_atto", "timm/resnet18"])
@torch.no_grad()
def test_segmentors_compute_the_same(backbone: str) -> None:
    model = _build(f"upernet_{backbone}", channels=16)
    images = _images(1, 3, 67, 90)
    folded = fold(model, mean=MEAN, std=STD)
    assert _difference(folded(images), model(_normalized(images))) < TOLERANCE
    assert _norms_left(folded) == 0
    assert folded.auxiliary_head is None
    assert model.auxiliary_head is not None


@pytest.mark.parametrize("method", ["cascade_mask_rcnn", "mask_rcnn"])
@torch.no_grad()
def test_detectors_compute_the_same(method: str) -> None:
    model = _build(f"{method}_convnext_atto", channels=16)
    images = _images(1, 3, 64, 96)
    folded = fold(model)
    maps, expected = folded.features(images), model.features(images)
    for found, level in zip(maps, expected, strict=True):
        assert _difference(found, level) < TOLERANCE
    boxes = [torch.tensor([[1.0, 2.0, 40.0, 50.0], [20.0, 3.0, 90.0, 60.0]])]
    for stage in range(len(model.box_heads)):
        for found, logits in zip(
            folded.box_logits(stage, expected, boxes),
            model.box_logits(stage, expected, boxes),
            strict=True,
        ):
            assert _difference(found, logits) < TOLERANCE
    assert _norms_left(folded) == 0
    detected = fold(model, mean=MEAN, std=STD)([images[0]])
    assert set(detected[0]) == {"boxes", "scores", "labels", "masks"}


CONFIGS = st.builds(
    NetworkConfig,
    depths=st.just((1, 1)),
    dims=st.just((4, 6)),
    num_classes=st.sampled_from([0, 3]),
    stem=st.sampled_from(["conv_pool", "patchify"]),
    stem_stride=st.sampled_from([1, 2, 4]),
    depthwise=st.booleans(),
    bottleneck=st.sampled_from(["narrow", "inverted"]),
    expansion=st.sampled_from([1, 2]),
    spatial_first=st.booleans(),
    kernel_size=st.sampled_from([1, 3, 7]),
    act=st.sampled_from(["relu", "gelu"]),
    acts=st.sampled_from(["every", "one"]),
    norm=st.sampled_from(["batch", "layer"]),
    norms=st.sampled_from(["every", "one"]),
    downsample=st.sampled_from(["in_block", "between_stages"]),
    layer_scale_init=st.sampled_from([0.0, 0.5]),
)


@given(config=CONFIGS, form=st.sampled_from(["chunked", "conv", "linear"]))
@settings(max_examples=60, deadline=None, derandomize=True)
@torch.no_grad()
def test_every_configuration_computes_the_same(config: NetworkConfig, form: str) -> None:
    model = _trained(Network(config))
    images = _images(2, 3, 16, 16)
    folded = fold(model, mean=MEAN, std=STD, form=form)
    assert _difference(folded(images), model(_normalized(images))) < TOLERANCE


@torch.no_grad()
def test_the_original_is_left_alone_unless_told_otherwise() -> None:
    model = _build("convnext_atto").train()
    before = copy.deepcopy(model.state_dict())
    folded = fold(model)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not folded.training
    assert fold(model, inplace=True) is model


@pytest.mark.parametrize("form", ["conv", "linear"])
@torch.no_grad()
def test_folded_networks_can_be_exported(form: str) -> None:
    folded = fold(_build("convnext_atto"), mean=MEAN, std=STD, form=form)
    images = _images(2, 3, 64, 64)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(folded, (images,), dynamic_shapes=({0: batch},))
    more = _images(3, 3, 64, 64)
    assert _difference(program.module()(more), folded(more)) < TOLERANCE


@torch.no_grad()
def test_half_precision_stays_half_and_finite() -> None:
    folded = fold(_build("roadmap/resnet50/resnet_baseline")).to(torch.bfloat16)
    assert folded(_images(1, 3, 64, 64).bfloat16()).dtype == torch.bfloat16


def test_mistakes_are_named() -> None:
    model = _build("convnext_atto")
    with pytest.raises(ValueError, match="both mean and std"):
        fold(model, mean=MEAN)
    with pytest.raises(ValueError, match="the network takes 3 channels"):
        fold(model, mean=(0.5,), std=(0.5,))
    with pytest.raises(ValueError, match="linear, conv, chunked"):
        fold(model, form="dense")  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["chunked", "conv", "linear"])
@torch.inference_mode()
def test_folded_networks_run_under_autocast_as_narrow_as_the_original(form: str) -> None:
    """As `predict` runs a network that was trained in bf16."""
    model = _build("convnext_atto")
    images = _images(2, 3, 64, 64)
    exact = model(images)
    folded = fold(model, form=form)
    dtypes = set()
    for module in folded.modules():
        if isinstance(module, FoldedBlock | ChunkedBlock):
            module.register_forward_hook(lambda _, given, out: dtypes.add(out.dtype))
    with autocast(torch.device("cpu"), "bf16"):
        found = folded(images)
    assert dtypes == {torch.bfloat16}
    assert _difference(found.float(), exact) < 3e-2


@torch.no_grad()
def test_a_folded_network_can_be_folded_again() -> None:
    model = _build("convnext_atto")
    images = _images(2, 3, 64, 64)
    again = fold(fold(model), mean=MEAN, std=STD, form="chunked")
    assert _difference(again(images), model(_normalized(images))) < TOLERANCE


@torch.no_grad()
def test_devices_without_fp64_have_their_weights_folded_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved = []
    monkeypatch.setattr("convnext.deploy.fold.WITHOUT_FP64", ("cpu",))
    monkeypatch.setattr(nn.Module, "cpu", lambda self: moved.append(self) or self)
    model = _build("convnext_atto")
    images = _images(1, 3, 64, 64)
    assert _difference(fold(model)(images), model(images)) < TOLERANCE
    assert len(moved) == 1


@pytest.mark.parametrize("name", ["timm/resnet18", "upernet_convnext_atto"])
def test_a_mean_for_other_channels_is_refused_by_every_network(name: str) -> None:
    with pytest.raises(ValueError, match="the network takes 3 channels"):
        fold(_build(name), mean=(0.5,), std=(0.5,))
