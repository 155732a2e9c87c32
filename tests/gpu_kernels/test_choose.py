"""Kernels are used if they are correct and faster; torch layers replace them in these tests."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import convnext
import gpu_kernels
from gpu_kernels import choose as module
from gpu_kernels import modules
from gpu_kernels.choose import apply_kernels
from gpu_kernels.modules import DepthwiseConv2d, DepthwiseNorm, FusedPair, PlainPair

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Timings = dict[str, float]


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Replace the kernels by torch's own layers, on a device that claims to have them."""
    pytest.importorskip("triton")

    def norm(self: DepthwiseNorm, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def pair(self: FusedPair, y: Tensor, x: Tensor) -> Tensor:
        layers = nn.Sequential(self.first, nn.GELU(), self.second)
        return PlainPair(layers, self.gamma)(y, x)

    monkeypatch.setattr(module, "available", lambda device: True)
    monkeypatch.setattr(DepthwiseConv2d, "forward", nn.Conv2d.forward)
    monkeypatch.setattr(DepthwiseNorm, "forward", norm)
    monkeypatch.setattr(FusedPair, "forward", pair)
    return monkeypatch


def _network() -> nn.Module:
    torch.manual_seed(0)
    return convnext.create_model(
        "convnext_atto", depths=(2, 1), dims=(4, 8), num_classes=3, layer_scale_init=0.5
    ).eval()


def _timer(seconds: Timings, calls: list[list[str]] | None = None) -> Callable[..., Timings]:
    def timer(functions: Mapping[str, object], device: torch.device) -> Timings:
        if calls is not None:
            calls.append(sorted(functions))
        return {name: seconds[name] for name in functions}

    return timer


def _apply(tmp_path: Path, timer: Callable[..., Timings], model: nn.Module) -> nn.Module:
    return apply_kernels(
        model, IMAGES, cache=tmp_path / "k.json", timer=timer, console=Console(quiet=True)
    )


@pytest.mark.parametrize(
    ("seconds", "spatial", "pair"),
    [
        ({"torch": 1.0, "depthwise": 2.0, "fused": 3.0}, "torch", "torch"),
        ({"torch": 1.0, "depthwise": 0.98, "fused": 0.98}, "torch", "torch"),
        ({"torch": 1.0, "depthwise": 0.5, "fused": 0.7}, "depthwise", "fused"),
        ({"torch": 1.0, "depthwise": 0.5, "fused": 1.5}, "depthwise", "torch"),
        ({"torch": 1.0, "depthwise": 0.5, "fused": 0.3}, "fused", "fused"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("stand_ins")
def test_the_fastest_wins_by_a_margin(
    seconds: Timings, spatial: str, pair: str, tmp_path: Path
) -> None:
    model = _network()
    fast = _apply(tmp_path, _timer(seconds), model)
    assert {(c.piece, c.option) for c in fast.choices} == {("spatial", spatial), ("pair", pair)}
    assert {c.shape for c in fast.choices} == {(2, 4, 4, 4), (2, 8, 2, 2)}
    torch.testing.assert_close(fast(IMAGES), model(IMAGES))
    replaced = any(isinstance(m, modules.KernelBlock) for m in fast.modules())
    assert replaced == (spatial != "torch" or pair != "torch")


def test_wrong_and_broken_kernels_never_win(stand_ins: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(self: DepthwiseNorm, x: Tensor) -> Tensor:
        return 1.01 * self.norm(self.conv(x))

    def broken(self: FusedPair, y: Tensor, x: Tensor) -> Tensor:
        raise RuntimeError("out of resource: shared memory")

    stand_ins.setattr(DepthwiseNorm, "forward", wrong)
    stand_ins.setattr(FusedPair, "forward", broken)
    seconds = {"torch": 1.0, "depthwise": 0.9, "fused": 0.1}
    fast = _apply(tmp_path, _timer(seconds), _network())
    assert {(c.piece, c.option) for c in fast.choices} == {
        ("spatial", "depthwise"),
        ("pair", "torch"),
    }
    reasons = {c.piece: c.failures["fused"] for c in fast.choices}
    assert "differs by 1.0e-02" in reasons["spatial"]
    assert "shared memory" in reasons["pair"]


@pytest.mark.usefixtures("stand_ins")
def test_a_verdict_is_measured_once(tmp_path: Path) -> None:
    calls: list[list[str]] = []
    timer = _timer({"torch": 1.0, "depthwise": 0.5, "fused": 0.7}, calls)
    first = _apply(tmp_path, timer, _network())
    # Two shapes, two pieces; the second block of the first stage is like the first.
    assert calls == [["depthwise", "fused", "torch"], ["fused", "torch"]] * 2
    again = _apply(tmp_path, timer, _network())
    assert len(calls) == 4
    assert again.choices == first.choices
    path = tmp_path / "k.json"
    assert len(json.loads(path.read_text())) == 4
    path.write_text(json.dumps({key: {"option": 1} for key in json.loads(path.read_text())}))
    _apply(tmp_path, timer, _network())
    assert len(calls) == 8


@pytest.mark.usefixtures("stand_ins")
def test_training_replaces_convolutions_and_keeps_parameters_and_statistics(
    tmp_path: Path,
) -> None:
    model = _network().train()
    model.extra = nn.BatchNorm2d(3)
    model.register_forward_pre_hook(lambda module, inputs: (module.extra(inputs[0]),))
    timer = _timer({"torch": 1.0, "depthwise": 0.5})
    fast = _apply(tmp_path, timer, model)
    assert [(c.piece, c.option) for c in fast.choices] == [("conv training", "depthwise")] * 2
    assert fast.training
    for (name, tensor), (_, before) in zip(
        fast.state_dict().items(), model.state_dict().items(), strict=True
    ):
        assert torch.equal(tensor, before), name


@pytest.mark.usefixtures("stand_ins")
def test_what_was_chosen_is_printed(tmp_path: Path) -> None:
    console = Console(width=160, file=io.StringIO())
    timer = _timer({"torch": 1e-3, "depthwise": 5e-4, "fused": 2.5e-4})
    apply_kernels(_network(), IMAGES, cache=tmp_path / "k.json", timer=timer, console=console)
    text = console.file.getvalue()
    assert "2 x 8 x 2 x 2" in text
    assert "x 4.00" in text
    assert "1000.0" in text


def test_without_triton_or_a_gpu_the_network_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model = _network()
    fast = _apply(tmp_path, _timer({}), model)
    assert fast.choices == []
    assert torch.equal(fast(IMAGES), model(IMAGES))
    monkeypatch.setattr("gpu_kernels.importlib.util.find_spec", lambda name: None)
    assert not gpu_kernels.available(torch.device("cuda"))


def test_an_example_is_a_batch_of_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch of images"):
        apply_kernels(_network(), IMAGES[0], cache=tmp_path / "k.json")
