"""Execution of blocks in training: layer by layer, fused, or with recomputed activations.

The mathematics, the weights and the random numbers are the same each way. An execution is a
callable attribute of a block; `convnext.kernels.fused_branch` computes the fused one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convnext.hardware.peak_rates import bf16_gain
from convnext.kernels.fused_branch import Branch, BranchSettings
from convnext.models.blocks import PLAIN, Block, BlockExecution, LayerNorm2d


@dataclass(frozen=True)
class Fused:
    """Trains a ConvNeXt block as one operation, and runs it layer by layer otherwise.

    Attributes:
        widened: Whether bf16 products are computed in fp32.
    """

    widened: bool = False

    def __call__(self, block: Block, x: Tensor) -> Tensor:
        """Run the block; drop path draws the same random numbers as in `Plain`."""
        if not _is_worth_it(block, x):
            return PLAIN(block, x)
        kept = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        index, scale = None, 1.0
        rate = block.drop_path.p
        if rate > 0:
            noise = torch.empty((len(x), 1, 1, 1), dtype=kept).bernoulli_(1 - rate)
            dropped = len(x) - int(noise.sum(dtype=torch.float32))
            index = noise.flatten().nonzero().flatten() if dropped else None
            scale = 1 / (1 - rate) if rate < 1 else 1.0
        spatial, norm, first, second = (
            block.get_submodule(name) for name in ("spatial", "norm", "pwconv1", "pwconv2")
        )
        how = BranchSettings(
            kept=kept,
            products=torch.float32 if self.widened and kept == torch.bfloat16 else kept,
            scale=scale,
            eps=norm.eps,  # type: ignore[arg-type]
        )
        out: Tensor = Branch.apply(
            x,
            spatial.weight,
            spatial.bias,
            norm.weight,
            norm.bias,
            first.weight,
            first.bias,
            second.weight,
            second.bias,
            block.gamma,
            index,
            how,
        )
        return out


@dataclass(frozen=True)
class Recomputed:
    """Keeps only the input of a block; the backward pass recomputes the rest with `inner`."""

    inner: BlockExecution = PLAIN

    def __call__(self, block: Block, x: Tensor) -> Tensor:
        """Run the block with `inner`, without keeping its activations."""
        if not torch.is_grad_enabled():
            return self.inner(block, x)
        output: Tensor = checkpoint(self.inner, block, x, use_reentrant=False)
        return output


def _is_worth_it(block: Block, x: Tensor) -> bool:
    if not (block.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
        return False
    learns = x.requires_grad or any(p.requires_grad for p in block.parameters())
    if x.device.type != "cpu" or not learns:
        return False
    # Sums over rows need more digits than half precision has.
    return block.get_submodule("spatial").weight.dtype in (torch.float32, torch.float64)


def is_fusable(module: nn.Module) -> bool:
    """Return whether a module is a ConvNeXt block with unmodified layers.

    The fused operation would skip replaced or wrapped layers, and hooks.
    """
    if type(module) is not Block:
        return False
    if module.order != ("spatial", "norm", "pwconv1", "pwconv1_act", "pwconv2"):
        return False
    layers = [module.get_submodule(name) for name in module.order]
    kinds = (nn.Conv2d, LayerNorm2d, nn.Conv2d, nn.GELU, nn.Conv2d)
    if any(type(layer) is not kind or _is_watched(layer) for layer, kind in zip(layers, kinds)):  # noqa: B905
        return False
    spatial, norm, first, act, second = layers
    same = spatial.kernel_size[0] // 2  # type: ignore[index]
    pointwise = all(
        p.kernel_size == (1, 1) and p.stride == (1, 1) and p.padding == (0, 0) and p.groups == 1
        for p in (first, second)
    )
    return bool(
        pointwise
        and act.approximate == "none"
        and spatial.groups == spatial.in_channels == spatial.out_channels
        and spatial.kernel_size == (2 * same + 1,) * 2
        and spatial.padding == (same, same)
        and spatial.stride == spatial.dilation == (1, 1)
        and spatial.padding_mode == "zeros"
        and all(layer.bias is not None for layer in (spatial, norm, first, second))
        and isinstance(module.shortcut, nn.Identity)
        and isinstance(module.act, nn.Identity)
    )


def _is_watched(layer: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(layer, name) for name in hooks)


def set_fused(model: nn.Module, *, fused: bool, widened: bool = False) -> int:
    """Make the blocks of a network train as one operation or layer by layer, in place.

    Recomputed blocks stay recomputed.

    Args:
        model: Any network.
        fused: Whether to train blocks as one operation.
        widened: Compute bf16 products in fp32 (`widens`).

    Returns:
        The number of blocks that can be fused.
    """
    inner: BlockExecution = Fused(widened) if fused else PLAIN
    found = [module for module in model.modules() if is_fusable(module)]
    for block in found:
        assert isinstance(block, Block)
        block.execute = Recomputed(inner) if isinstance(block.execute, Recomputed) else inner
    return len(found)


def set_recomputed(blocks: Iterable[Block]) -> None:
    """Make blocks recompute their activations in the backward pass, in place."""
    for block in blocks:
        if not isinstance(block.execute, Recomputed):
            block.execute = Recomputed(block.execute)


def widens(precision: str, *, deterministic: bool) -> bool:
    """Return whether a run computes bf16 products in fp32 because that is faster on this machine.

    Deterministic runs never do: nothing in them depends on a measurement.
    """
    return precision == "bf16" and not deterministic and bf16_gain(torch.get_num_threads()) < 1
