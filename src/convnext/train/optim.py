"""The optimizer's parameter groups and its learning rate, as pure functions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from convnext.network import Network
from convnext.peers import TimmNetwork
from convnext.recipe import OptimRecipe


def layer_ids(model: nn.Module) -> dict[str, int]:
    """Return the group of every parameter for layer-wise decay, 0 at the pixels.

    The authors' groups: stem 0; stage 1 is 1; the first downsampling and stage 2 are 2; the second
    downsampling is 3; stage 3 advances by one every three blocks from 3 on; the third downsampling
    and stage 4 are one more; norm and head come last (13 for depths 3-3-27-3). An isotropic network
    advances by one every three blocks from 1 on. Peers have the groups that timm gives them.
    """
    if isinstance(model, TimmNetwork):
        from timm.models import group_parameters

        matcher = model.network.group_matcher(coarse=False)
        groups = group_parameters(model.network, matcher, reverse=True)
        return {f"network.{name}": int(group) for name, group in groups.items()}
    assert isinstance(model, Network)
    return {name: _layer_id(name, model.config.depths) for name, _ in model.named_parameters()}


def _layer_id(name: str, depths: tuple[int, ...]) -> int:
    part, *rest = name.split(".")
    if len(depths) == 1:
        last = 1 + math.ceil(depths[0] / 3)
        return {"stem": 0, "head": last}.get(part) or (
            1 + int(rest[1]) // 3 if part == "stages" else 0
        )
    stage4 = 3 + math.ceil(depths[2] / 3)
    if part == "head":
        return stage4 + 1
    if part == "stem":
        return 0
    stage = int(rest[0])
    if part == "downsample":
        return {1: 2, 2: 3, 3: stage4}[stage]
    return (1, 2, 3 + int(rest[1]) // 3, stage4)[stage]


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Return the optimizer's groups: one for each layer and kind of weight decay.

    Biases and parameters of one dimension do not decay (reference: the authors' recipe). Each group
    has `lr_scale`, which the schedule multiplies with its rate: `layer_decay ** (last - id)`.
    """
    ids = layer_ids(model) if layer_decay != 1 else {}
    last = max(ids.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not name.endswith(".bias")
        layer = ids.get(name, last)
        group = groups.setdefault(
            (layer, decays),
            {
                "name": f"layer {layer}, {'decay' if decays else 'no decay'}",
                "params": [],
                "lr_scale": layer_decay ** (last - layer),
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    for group in groups.values():
        group["lr"] = lr * group["lr_scale"]
    return [groups[key] for key in sorted(groups)]


def make_optimizer(model: nn.Module, recipe: OptimRecipe) -> torch.optim.Optimizer:
    """Build AdamW over `parameter_groups`, fused where the device has it."""
    assert not isinstance(recipe.lr, str)
    assert not isinstance(recipe.weight_decay, str)
    assert not isinstance(recipe.layer_decay, str)
    groups = parameter_groups(
        model, lr=recipe.lr, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay
    )
    return torch.optim.AdamW(
        groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=_has_fused(model)
    )


def _has_fused(model: nn.Module) -> bool:
    return next(model.parameters()).device.type in ("cpu", "cuda")


def learning_rate(
    step: int, *, peak: float, final: float, num_steps: int, warmup_steps: int
) -> float:
    """Return the rate of a step: linear from 0 to `peak`, then a cosine down to `final`."""
    if step < warmup_steps:
        # As the authors' linspace(0, peak, warmup_steps): 0 first, the peak at its end.
        return peak * step / max(warmup_steps - 1, 1)
    share = (step - warmup_steps) / max(num_steps - warmup_steps, 1)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * min(share, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
