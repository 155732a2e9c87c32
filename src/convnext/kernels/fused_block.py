"""Blocks of ConvNeXt that train as one operation on a CPU: which can, and how they are told to.

The mathematics and the weights are those of `Block`; `convnext.kernels.fused_branch` runs them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convnext.hardware.peak_rates import bf16_gain
from convnext.kernels.fused_branch import Branch, How
from convnext.models.blocks import Block, LayerNorm2d


class FusedBlock(Block):
    """A block that trains as one operation, and is a plain `Block` for everything else.

    Attributes:
        widened: Whether products of bf16 are computed in fp32.
    """

    widened = False

    def forward(self, x: Tensor) -> Tensor:  # N C H W
        """As `Block`; the random numbers of drop path are the same ones."""
        if not self._is_worth_it(x):
            return super().forward(x)
        kept = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        index, scale = None, 1.0
        rate = self.drop_path.p
        if rate > 0:
            noise = torch.empty((len(x), 1, 1, 1), dtype=kept).bernoulli_(1 - rate)
            dropped = len(x) - int(noise.sum(dtype=torch.float32))
            index = noise.flatten().nonzero().flatten() if dropped else None
            scale = 1 / (1 - rate) if rate < 1 else 1.0
        spatial, norm, first, second = (
            self.get_submodule(name) for name in ("spatial", "norm", "pwconv1", "pwconv2")
        )
        how = How(
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
            self.gamma,
            index,
            how,
        )
        return out

    def _is_worth_it(self, x: Tensor) -> bool:
        if not (self.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return False
        learns = x.requires_grad or any(p.requires_grad for p in self.parameters())
        if x.device.type != "cpu" or not learns:
            return False
        # Sums over rows want more digits than weights in half precision have.
        return self.get_submodule("spatial").weight.dtype in (torch.float32, torch.float64)


def is_fusable(module: nn.Module) -> bool:
    """Tell whether a module is the block of ConvNeXt: spatial, norm, GELU between a wide pair.

    Its layers must be just that: what replaced, wrapped or watches one of them would be skipped.
    """
    if type(module) not in (Block, FusedBlock):
        return False
    assert isinstance(module, Block)
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
    """Let the blocks of a network train as one operation or layer by layer, in place.

    Args:
        model: Any network.
        fused: As one operation.
        widened: Compute products of bf16 in fp32 (`widens`).

    Returns:
        How many blocks there are that can.
    """
    found = [module for module in model.modules() if is_fusable(module)]
    for module in found:
        # The state is the same either way; only `forward` differs.
        module.__class__ = FusedBlock if fused else Block
        module.widened = fused and widened  # type: ignore[assignment]
    return len(found)


def widens(precision: str, *, deterministic: bool) -> bool:
    """Tell whether a run computes its products of bf16 in fp32, as they are faster so here.

    In a deterministic run nothing depends on a measurement.
    """
    return precision == "bf16" and not deterministic and bf16_gain(torch.get_num_threads()) < 1
