"""A network changes its form when the work ahead is worth it, and only then."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import convnext
from convnext.deploy import fast as module
from convnext.deploy.fast import Fast, choose, seconds_left
from convnext.deploy.forms import Form
from convnext.deploy.layers import ChunkedBlock
from convnext.deploy.optimize import Optimized, distance

CPU = torch.device("cpu")


def _model() -> nn.Module:
    torch.manual_seed(0)
    return convnext.create_model(
        "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=7
    ).eval()


def _images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("left", "gain", "is_known", "can_search", "expected"),
    [
        (None, 0, False, True, "wait"),
        (5, 0, False, True, "stay"),
        (5, 4, True, True, "stay"),
        (60, 0, False, True, "fold"),
        (60, 20, True, True, "known"),
        (60, 5, True, True, "fold"),
        (10_000, 0, False, True, "search"),
        (10_000, 0, False, False, "fold"),
    ],
)
def test_what_is_done_follows_from_the_work_ahead(
    left: float | None, gain: float, is_known: bool, can_search: bool, expected: str
) -> None:
    found = choose(left, gain=gain, build_seconds=10, is_known=is_known, can_search=can_search)
    assert found == expected


def test_the_work_ahead_is_known_after_the_first_images() -> None:
    assert seconds_left(0.0, 0, 100) is None
    assert seconds_left(3.0, 0, 100) is None
    assert seconds_left(3.0, 25, 100) == pytest.approx(9.0)


@pytest.mark.parametrize("work", ["nothing", "minutes", "hours", "refused"])
@torch.inference_mode()
def test_a_job_of_minutes_is_folded_and_one_of_hours_searched(
    work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"nothing": 1.0, "minutes": 100.0, "hours": 10_000.0, "refused": 10_000.0}[work]
    monkeypatch.setattr(module, "seconds_left", lambda *_: seconds)
    monkeypatch.setattr(module, "known_form", lambda *_: None)
    best = Form(pointwise="conv")

    def find(model: nn.Module, example: Tensor, **options: object) -> Optimized:
        return Optimized(model, example, best, lambda images: model(images), ratio=1.0)

    monkeypatch.setattr(module, "optimize", find)
    model, images = _model(), _images()
    expected = model(images)
    lines: list[str] = []
    network = Fast(
        model,
        device=CPU,
        precision="fp32",
        num_images=100,
        enabled=work != "refused",
        note=lines.append,
    ).eval()
    assert distance(network(images), expected) < 1e-5
    if work in ("nothing", "refused"):
        assert network.form is None
        assert torch.equal(network(images), expected)
    elif work == "minutes":
        assert network.form is not None
        assert any(isinstance(m, ChunkedBlock) for m in network.modules())
    else:
        assert network.form == best
        assert "--no-fast" in lines[0]


def test_images_are_counted_on_their_way_to_the_bar() -> None:
    told: list[int] = []
    network = Fast(_model(), device=CPU, precision="fp32", num_images=10)
    count = network.watch(told.append)
    count(3)
    count(4)
    assert told == [3, 4]
    assert network._done == 7
