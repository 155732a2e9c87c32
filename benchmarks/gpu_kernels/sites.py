"""The places in a network where kernels could compute, and their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from gpu_kernels.modules import (
    DepthwiseConv2d,
    DepthwiseNorm,
    FusedPair,
    KernelBlock,
    PlainPair,
    halves_of,
    is_depthwise,
)
from gpu_kernels.traffic import Piece

# The limits of the kernels, known without importing Triton.
MAX_CHANNELS = {"spatial": 2048, "pair": 384}


@dataclass(frozen=True, kw_only=True)
class Maps:
    """The shape and dtype of a layer's input maps (N, C, H, W)."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def draw(self) -> Tensor:
        """Return random maps, channels_last."""
        random = torch.Generator(self.device).manual_seed(0)
        maps = torch.randn(self.shape, generator=random, device=self.device).to(self.dtype)
        return maps.contiguous(memory_format=torch.channels_last)


def variants_of(site: nn.Module, *, training: bool) -> dict[Piece, dict[str, nn.Module]]:
    """Return the pieces of a layer or block that kernels can compute, each in all its variants."""
    if is_depthwise(site):
        conv = cast(nn.Conv2d, site)
        piece: Piece = "conv training" if training else "conv"
        return {piece: {"torch": conv, "depthwise": DepthwiseConv2d.of(conv)}}
    halves = None if training else halves_of(site)
    if halves is None:
        return {}
    channels = halves.conv.in_channels
    spatial: dict[str, nn.Module] = {
        "torch": nn.Sequential(halves.conv, halves.norm),
        "depthwise": nn.Sequential(DepthwiseConv2d.of(halves.conv), halves.norm),
    }
    if channels <= MAX_CHANNELS["spatial"]:
        spatial["fused"] = DepthwiseNorm(halves.conv, halves.norm)
    pair: dict[str, nn.Module] = {"torch": PlainPair(halves.pair, halves.gamma)}
    if channels <= MAX_CHANNELS["pair"]:
        pair["fused"] = FusedPair(halves.first, halves.second, halves.gamma)
    return {"spatial": spatial, "pair": pair}


def joined(picked: Mapping[Piece, nn.Module]) -> nn.Module:
    """Return the layer or block that consists of the selected variants."""
    if "pair" in picked:
        return KernelBlock(picked["spatial"], picked["pair"]).eval()
    (variant,) = picked.values()
    return variant


def find_sites(network: nn.Module, example: Tensor) -> dict[str, Maps]:
    """Return the input, for an example, of each layer or block that kernels could compute."""
    sites: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        within = any(name.startswith(f"{outer}.") for outer in sites)
        if not within and variants_of(module, training=network.training):
            sites[name] = module
    arrived: dict[str, Maps] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            arrived[name] = Maps(shape=tuple(x.shape), dtype=x.dtype, device=x.device)

        return hook

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in sites.items()]
    # An example must not change the running statistics of batch norms.
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
        for name, buffer in network.named_buffers():
            buffer.copy_(kept[name])
    return arrived


def replaced(network: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Return a network with the module of a name replaced; "" stands for the whole network."""
    if not name:
        return new
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, new)
    return network
