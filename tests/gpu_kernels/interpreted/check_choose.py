"""Networks whose blocks run on the kernels give the same outputs as without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from relative import relative
from rich.console import Console
from torch import nn

import convnext
from convnext.deploy.fold import fold
from gpu_kernels import apply_kernels
from gpu_kernels.modules import DepthwiseConv2d, KernelBlock

QUIET = Console(quiet=True)
CHANGES = {"depths": (1, 1), "dims": (4, 16), "num_classes": 3, "kernel_size": 3}


def _network() -> nn.Module:
    torch.manual_seed(0)
    model = convnext.create_model("convnext_atto", **CHANGES, layer_scale_init=0.5)
    for p in model.parameters():
        if p.dim() == 1:
            p.data.normal_(1, 0.3)
    return model.eval()


def _kernels_win(options: tuple[str, ...]) -> Callable[..., dict[str, float]]:
    def timer(functions: Mapping[str, object], device: torch.device) -> dict[str, float]:
        return {name: 1.0 if name in options else 9.0 for name in functions}

    return timer


@pytest.mark.parametrize("form", ["as trained", "conv", "linear"])
@pytest.mark.parametrize("options", [("depthwise",), ("fused",)], ids=str)
@torch.no_grad()
def test_inference(form: str, options: tuple[str, ...], tmp_path: Path) -> None:
    model = _network()
    if form != "as trained":
        model = fold(model, form=form)
    images = torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(1))
    fast = apply_kernels(
        model, images, cache=tmp_path / "k.json", timer=_kernels_win(options), console=QUIET
    )
    assert sum(isinstance(m, KernelBlock) for m in fast.modules()) == 2
    assert not any(choice.failures for choice in fast.choices)
    assert relative(fast(images), model(images)) < 1e-5
    assert not any(isinstance(m, KernelBlock) for m in model.modules())


def test_training(tmp_path: Path) -> None:
    model = _network().train()
    images = torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(1))
    timer = _kernels_win(("depthwise",))
    fast = apply_kernels(model, images, cache=tmp_path / "k.json", timer=timer, console=QUIET)
    assert sum(isinstance(m, DepthwiseConv2d) for m in fast.modules()) == 2
    assert fast.state_dict().keys() == model.state_dict().keys()
    for network in (model, fast):
        network(images).square().sum().backward()
    theirs = dict(model.named_parameters())
    for name, p in fast.named_parameters():
        assert p.grad is not None, name
        assert relative(p.grad, theirs[name].grad) < 1e-5, name


def test_other_networks_have_their_depthwise_convolutions_replaced(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 5, padding=2, groups=4), nn.Conv2d(4, 4, 3, groups=4)
    )
    images = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    timer = _kernels_win(("depthwise",))
    fast = apply_kernels(
        model.eval(), images, cache=tmp_path / "k.json", timer=timer, console=QUIET
    )
    assert [type(layer) for layer in fast] == [nn.Conv2d, DepthwiseConv2d, nn.Conv2d]
    assert relative(fast(images), model(images)) < 1e-6
