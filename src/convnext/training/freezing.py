"""Frozen parts of a network: parameters without gradients, and norms with fixed statistics."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from convnext.models.network import DenseModule, Network
from convnext.models.timm import TimmNetwork
from convnext.recipes.resolve import frozen_stages
from convnext.training.optim import timm_stages


class Frozen:
    """What a recipe freezes in a network.

    Args:
        model: The network.
        freeze: `none`, `backbone` (all but the head), or `stages:K` (the stem and K stages).

    Raises:
        ValueError: If the network has no such part; the message names those that it has.
    """

    def __init__(self, model: nn.Module, freeze: str) -> None:
        self.names = frozen_names(model, freeze)
        """The names of the frozen parameters."""
        self._parameters = [p for name, p in model.named_parameters() if name in self.names]
        ids = set(map(id, self._parameters))
        self._modules = list(_whole(model, ids))

    def hold(self, *, frozen: bool = True) -> None:
        """Take the gradients of the parameters away, or give them back."""
        for parameter in self._parameters:
            parameter.requires_grad_(not frozen)

    def eval(self) -> None:
        """Let norms use their statistics, and turn drop path off, in a network in training."""
        for module in self._modules:
            module.eval()


def frozen_names(model: nn.Module, freeze: str) -> frozenset[str]:
    """Return the names of the parameters that `freeze` freezes.

    Raises:
        ValueError: If the network has no such part.
    """
    stages = frozen_stages(freeze)
    if stages == 0:
        return frozenset()
    prefix, backbone = (
        ("backbone.", model.backbone) if isinstance(model, DenseModule) else ("", model)
    )
    names = [name for name, _ in backbone.named_parameters()]
    if stages is None and prefix:
        found = set(names)
    elif isinstance(backbone, Network):
        found = set(names) - _head_of(backbone) if stages is None else _stages_of(backbone, stages)
    elif isinstance(backbone, TimmNetwork):
        found = set(names) - _head_of(backbone) if stages is None else _of_timm(backbone, stages)
    else:
        raise ValueError(
            f"{type(backbone).__name__} is not a network of `convnext models`, so that its parts "
            "are not known; leave out --freeze and call requires_grad_(False) on them"
        )
    return frozenset(f"{prefix}{name}" for name in found)


def _head_of(network: Network | TimmNetwork) -> set[str]:
    """Return the parameters of a classifier's last layer."""
    if isinstance(network, Network):
        heads = (network.head.fc,)
    else:
        found = network.network.get_classifier()
        heads = found if isinstance(found, tuple) else (found,)
    ids = {id(p) for head in heads for p in head.parameters()}
    if not ids:
        raise ValueError(f"{network.name} has no head that could train; leave out --freeze")
    return {name for name, p in network.named_parameters() if id(p) in ids}


def _stages_of(network: Network, count: int) -> set[str]:
    _check_count(count, len(network.stages), network.name)
    parts = ["stem.", *(f"{kind}.{s}." for kind in ("downsample", "stages") for s in range(count))]
    return {name for name, _ in network.named_parameters() if name.startswith(tuple(parts))}


def _of_timm(timm_model: TimmNetwork, count: int) -> set[str]:
    try:
        parts, ends = timm_stages(timm_model)
    except ValueError as error:
        inner = ", ".join(name for name, _ in timm_model.network.named_children())
        raise ValueError(
            f"{timm_model.name} has no list of stages for --freeze stages:{count}: its parts are "
            f"{inner}; use --freeze backbone"
        ) from error
    _check_count(count, len(ends), timm_model.name)
    return {name for name, part in parts.items() if part <= ends[count - 1]}


def _check_count(count: int, num_stages: int, name: str) -> None:
    if count > num_stages:
        raise ValueError(
            f"{name} has the stages 1 to {num_stages}, so --freeze stages:{count} is one of "
            f"stages:1 to stages:{num_stages}, or backbone"
        )


def _whole(module: nn.Module, frozen: set[int]) -> Iterator[nn.Module]:
    """Yield the outermost modules that have parameters, all of them frozen."""
    ids = {id(parameter) for parameter in module.parameters()}
    if ids and ids <= frozen:
        yield module
        return
    for child in module.children():
        yield from _whole(child, frozen)
