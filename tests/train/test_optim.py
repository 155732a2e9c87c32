"""Parameter groups and schedule, against the figures of the authors' recipe."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from convnext import create_model
from convnext.network import Network
from convnext.recipe import OptimRecipe
from convnext.train.optim import layer_ids, learning_rate, make_optimizer, parameter_groups


def meta_model(name: str) -> Network:
    with torch.device("meta"):
        model = create_model(name)
    assert isinstance(model, Network)
    return model


@pytest.mark.parametrize("decay", [0.7, 0.8])
def test_scales_of_the_deep_networks(decay: float) -> None:
    groups = parameter_groups(
        meta_model("convnext_base"), lr=1.0, weight_decay=0.05, layer_decay=decay
    )
    scales = {group["lr_scale"] for group in groups}
    assert sorted(scales, reverse=True) == pytest.approx([decay**k for k in range(14)])
    assert all(group["lr"] == group["lr_scale"] for group in groups)


def test_ids_of_the_deep_networks() -> None:
    ids = layer_ids(meta_model("convnext_base"))
    assert ids["stem.conv.weight"] == 0
    assert ids["stages.0.2.pwconv1.weight"] == 1
    assert ids["downsample.1.norm.weight"] == ids["stages.1.0.gamma"] == 2
    assert ids["downsample.2.conv.weight"] == 3
    assert [ids[f"stages.2.{b}.gamma"] for b in range(27)] == [3 + b // 3 for b in range(27)]
    assert ids["downsample.3.conv.weight"] == ids["stages.3.0.gamma"] == 12
    assert ids["head.norm.weight"] == ids["head.fc.bias"] == 13


def test_ids_of_tiny() -> None:
    ids = layer_ids(meta_model("convnext_tiny"))
    assert [ids[f"stages.2.{b}.gamma"] for b in range(9)] == [3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert ids["stages.3.0.gamma"] == 6
    assert ids["head.fc.weight"] == 7


@pytest.mark.parametrize(
    "name", ["convnext_isotropic_small", "roadmap/resnet50/resnet_baseline", "timm/resnet18"]
)
def test_every_network_has_ordered_groups(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    ids = layer_ids(model)
    names = [name for name, _ in model.named_parameters()]
    assert set(names) == set(ids)
    assert ids[names[0]] == 0
    assert ids[names[-1]] == max(ids.values()) > 3


def test_biases_and_norms_do_not_decay() -> None:
    model = meta_model("convnext_atto")
    groups = parameter_groups(model, lr=1.0, weight_decay=0.05, layer_decay=1.0)
    assert len(groups) == 2
    without = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    expected = {
        id(p) for name, p in model.named_parameters() if p.ndim <= 1 or name.endswith("bias")
    }
    assert without == expected
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_schedule_is_linear_then_cosine() -> None:
    settings = {"peak": 4e-3, "final": 1e-6, "num_steps": 1000, "warmup_steps": 100}
    rates = [learning_rate(step, **settings) for step in range(1000)]  # type: ignore[arg-type]
    assert rates[0] == 0.0
    assert rates[99] == pytest.approx(4e-3)
    assert rates[100] == pytest.approx(4e-3)
    assert rates[550] == pytest.approx(1e-6 + (4e-3 - 1e-6) * 0.5, rel=1e-9)
    assert rates[-1] == pytest.approx(1e-6, abs=2e-8)
    assert all(a >= b for a, b in pairwise(rates[99:]))
    assert learning_rate(0, peak=1.0, final=0.0, num_steps=10, warmup_steps=0) == 1.0
    assert math.isfinite(learning_rate(0, peak=1.0, final=0.0, num_steps=1, warmup_steps=1))


def test_optimizer_takes_the_recipe() -> None:
    model = create_model("convnext_atto", num_classes=2)
    recipe = OptimRecipe(lr=1e-3, weight_decay=0.1, layer_decay=0.9, betas=(0.8, 0.95))
    optimizer = make_optimizer(model, recipe)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.8, 0.95)
    assert max(group["lr"] for group in optimizer.param_groups) == 1e-3
