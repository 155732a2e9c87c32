"""Gradients of layers in bf16 compared with fp32."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import SETTINGS, ToyTask, toy_model

from convnext.recipes.recipe import Recipe, change_recipe
from convnext.tasks.base import Phase
from convnext.training import backend
from convnext.training.backend import gradient_error, shapes_of, slow_in_bf16, wrong_in_bf16


class _Wrong(torch.autograd.Function):
    """The identity with a wrong gradient in bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor if x.dtype == torch.bfloat16 else 1.0
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None]:
        return given[0] * ctx.factor, None


class WrongLinear(nn.Linear):
    """A layer with wrong gradients in bf16."""

    factor = 1.2

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Wrong.apply(super().forward(x), self.factor)
        return out


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 8, 4, 4), (2, 3, 16, 16)),
        (nn.Conv2d(8, 8, 7, padding=3, groups=8), (2, 8, 6, 6)),
        (nn.ConvTranspose2d(4, 4, 2, 2), (2, 4, 5, 5)),
        (nn.Linear(12, 20), (2, 3, 3, 12)),
    ],
)
def test_a_layer_that_is_right_is_within_a_percent(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    assert 0 < gradient_error(layer, shape) < 0.01


@pytest.mark.parametrize(("factor", "error"), [(1.2, 0.2), (math.nan, math.inf)])
def test_a_layer_that_is_wrong_is_found(factor: float, error: float) -> None:
    layer = WrongLinear(6, 4)
    layer.factor = factor
    assert gradient_error(layer, (5, 6)) == pytest.approx(error, abs=0.02)


def test_layers_are_asked_at_the_shapes_that_they_have() -> None:
    model, task = toy_model(), ToyTask()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    shapes = shapes_of(task, model, 8, 12)
    given = {shape for _, shape in shapes.values()}
    assert (backend.IMAGES, 3, 32, 32) in given
    kinds = {type(layer) for layer, _ in shapes.values()}
    assert kinds == {nn.Conv2d, nn.Linear}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_what_is_wrong_is_named_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache = toy_model(), tmp_path / "gradients.json"
    monkeypatch.setattr(backend, "gradient_error", lambda layer, shape: 0.002)
    assert wrong_in_bf16(ToyTask(), model, 8, num_steps=12, cache=cache) == ""
    monkeypatch.setattr(backend, "gradient_error", lambda layer, shape: math.inf)
    assert wrong_in_bf16(ToyTask(), model, 8, num_steps=12, cache=cache) == ""
    fresh = tmp_path / "other.json"
    found = wrong_in_bf16(ToyTask(), model, 8, num_steps=12, cache=fresh)
    assert "the gradients of Conv2d(3, " in found
    assert "on 4 x 3 x 32 x 32 are not numbers" in found
    assert list(json.loads(fresh.read_text()).values()) == [found]
    # Another number of images is checked separately.
    assert "not numbers" in wrong_in_bf16(ToyTask(), model, 2, num_steps=12, cache=cache)


class GrowingTask(ToyTask):
    """A task with images of 32 pixels in the first four steps, and of 64 after them."""

    def phases(self, num_steps: int) -> tuple[Phase, ...]:
        return (Phase(0, 4, None), Phase(4, num_steps, None))  # type: ignore[arg-type]

    def losses(self, model: nn.Module, batch: Tensor, step: int, *rest: Any) -> dict[str, Tensor]:
        images = self.images[batch]
        larger = images.repeat(1, 1, 2, 2)
        return {"loss": model(images if step < 4 else larger).sum()}


def test_every_phase_of_a_run_is_asked() -> None:
    shapes = shapes_of(GrowingTask(), toy_model(), 8, 12)  # type: ignore[arg-type]
    given = {shape for _, shape in shapes.values()}
    assert {(4, 3, 32, 32), (4, 3, 64, 64)} <= given


@pytest.mark.parametrize(
    ("seconds", "found"),
    [(0.5, ""), (0.97, "0.97 times as long"), (1.5, "of 4 images takes 1.50 times as long")],
)
def test_bf16_is_taken_only_where_it_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, found: str
) -> None:
    asked = []

    def time_backend(*given: Any, once: bool) -> float:
        asked.append(given[-1].precision)
        return (seconds if asked[-1] == "bf16" else 1.0) + 0.1 * (len(asked) < 3)

    monkeypatch.setattr(backend, "_time_backend", time_backend)
    recipe: Any = change_recipe(Recipe(), SETTINGS | {"optim.micro_batch_size": 8})
    for _ in range(2):
        said = slow_in_bf16(ToyTask(), toy_model(), recipe, cache=tmp_path / "times.json")  # type: ignore[arg-type]
        assert found in said
        assert bool(said) == bool(found)
    assert asked == ["fp32", "bf16"] * backend.NUM_TURNS
