"""Winograd convolutions compute the same outputs as direct ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import convnext
from convnext.deploy.backends import Backend, build
from convnext.deploy.fold import fold
from convnext.deploy.optimize import distance, eager_backend, search
from convnext.kernels import winograd as module
from convnext.kernels.winograd import WinogradConv, fits, has_any, with_winograd
from convnext.tasks.segmentation.heads import WinogradFusion

CPU = torch.device("cpu")


def _segmentor() -> nn.Module:
    torch.manual_seed(0)
    model = convnext.create_model(
        "upernet_convnext_atto",
        depths=(1, 1, 1, 1),
        dims=(8, 16, 24, 32),
        channels=64,
        num_classes=5,
    )
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()  # type: ignore[union-attr]
            m.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model.eval()


# Fewer tiles than a chunk; chunks of rows; chunks of images; sides that tiles do not divide.
@pytest.mark.parametrize(
    ("shape", "num_tiles"),
    [((2, 7, 9), 256), ((2, 33, 18), 10), ((5, 6, 5), 9), ((1, 1, 1), 256), ((3, 8, 4), 1)],
)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_it_is_the_convolution(
    shape: tuple[int, int, int], num_tiles: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NUM_TILES", num_tiles)
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 72, 3, padding=1, bias=bias)
    x = torch.randn(shape[0], 64, *shape[1:])
    exact = nn.functional.conv2d(
        x.double(),
        conv.weight.double(),
        None if conv.bias is None else conv.bias.double(),
        padding=1,
    )
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        assert distance(WinogradConv(conv)(images), exact) < 1e-5


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 3, padding=1, stride=2),
        nn.Conv2d(64, 64, 3, padding=1, groups=64),
        nn.Conv2d(64, 64, 3, padding=2, dilation=2),
        nn.Conv2d(64, 64, 1, padding=1),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 64, 3, padding=1),
        nn.Linear(64, 64),
    ],
)
def test_others_are_left_alone(conv: nn.Module) -> None:
    assert not fits(conv)
    assert with_winograd(nn.Sequential(conv))[0] is conv  # type: ignore[index]


@pytest.mark.parametrize("size", [(64, 96), (272, 32)])
@torch.no_grad()
def test_a_segmentor_gives_the_same_logits(size: tuple[int, int]) -> None:
    # At the second size, maps are so large that mixing channels first saves nothing.
    model, images = _segmentor(), torch.randn(2, 3, *size)
    backend = Backend(pointwise="chunked", dense="winograd")
    assert str(backend).endswith("winograd")
    assert distance(build(backend, model, images)(images), model(images)) < 1e-5
    folded = with_winograd(fold(model, form="chunked"))
    kinds = [type(m) for m in folded.modules()]
    assert kinds.count(WinogradFusion) == 1
    assert kinds.count(WinogradConv) == 5  # Three outputs, bottleneck, fusion.
    assert any(isinstance(m, nn.Conv2d) and fits(m) for m in model.modules())  # Unchanged.


@torch.no_grad()
def test_it_is_the_first_form_of_networks_that_have_such_convolutions() -> None:
    model, images = _segmentor(), torch.randn(1, 3, 64, 64)
    classifier = convnext.create_model("convnext_atto", num_classes=3)
    assert has_any(model)
    assert not has_any(classifier)
    assert eager_backend(CPU, "fp32", model).dense == "winograd"
    assert eager_backend(CPU, "bf16", model).dense == "direct"
    assert eager_backend(CPU, "fp32", classifier).dense == "direct"
    best = search(model, images, precision="fp32", budget_s=0.0)
    assert [m.form.folded for m in best.measured] == [False]
    lines: list[str] = []
    search(model, images, precision="fp32", note=lines.append, budget_s=0.0)
    assert "winograd" in lines[-1]
