"""The kernels as layers, and blocks built from them.

Shapes: N batch, C channels, H and W positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from convnext.deploy.layers import FoldedBlock, Positionwise, Standardize, StandardizeLast
from convnext.models.blocks import Block


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that runs in the kernel, with the same weights and gradients."""

    @classmethod
    def of(cls, conv: nn.Conv2d) -> DepthwiseConv2d:
        """Return a layer with the parameters of another."""
        channels, k = conv.in_channels, conv.kernel_size[0]
        out = cls(channels, channels, k, padding=k // 2, groups=channels, device="meta")
        out.weight, out.bias = conv.weight, conv.bias
        out.train(conv.training)
        return out

    def forward(self, input: Tensor) -> Tensor:  # N C H W
        from gpu_kernels.depthwise import depthwise

        return depthwise(input, self.weight, self.bias)


class DepthwiseNorm(nn.Module):
    """A depthwise convolution and the layer norm after it in one kernel, for inference."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:  # N C H W
        from gpu_kernels.norm import depthwise_norm

        norm: Any = self.norm
        return depthwise_norm(
            x,
            self.conv.weight,
            self.conv.bias,
            norm_weight=getattr(norm, "weight", None),
            norm_bias=getattr(norm, "bias", None),
            eps=norm.eps,
        )


class PlainPair(nn.Module):
    """`x + gamma * pair(y)`, computed by torch's own layers."""

    def __init__(self, pair: nn.Module, gamma: Tensor | None) -> None:
        super().__init__()
        self.pair = pair
        self.gamma = gamma

    def forward(self, y: Tensor, x: Tensor) -> Tensor:  # N C H W
        y = self.pair(y)
        if self.gamma is not None:
            y = y * self.gamma.to(y.dtype).view(-1, 1, 1)
        return x + y


class FusedPair(nn.Module):
    """The same as `PlainPair` in one kernel, for inference."""

    def __init__(self, first: nn.Module, second: nn.Module, gamma: Tensor | None) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.gamma = gamma

    def forward(self, y: Tensor, x: Tensor) -> Tensor:  # N C H W
        from gpu_kernels.mlp import pointwise_pair

        out = pointwise_pair(
            y.permute(0, 2, 3, 1),
            *_weights(self.first),
            *_weights(self.second),
            scale=self.gamma,
            residual=x.permute(0, 2, 3, 1),
        )
        return out.permute(0, 3, 1, 2)


class KernelBlock(nn.Module):
    """A residual block of two halves, each made of torch's layers or one kernel."""

    def __init__(self, spatial: nn.Module, pair: nn.Module) -> None:
        super().__init__()
        self.spatial = spatial
        self.pair = pair

    def forward(self, x: Tensor) -> Tensor:  # N C H W
        out: Tensor = self.pair(self.spatial(x), x)
        return out


@dataclass(frozen=True, kw_only=True)
class Halves:
    """The layers of a ConvNeXt block."""

    conv: nn.Conv2d
    norm: nn.Module
    first: nn.Module
    second: nn.Module
    pair: nn.Module
    """Both products with the GELU in between, for (N, C, H, W)."""
    gamma: Tensor | None


def halves_of(block: nn.Module) -> Halves | None:
    """Return the halves of a block, folded or not; None if it is of another kind."""
    if isinstance(block, Block):
        shortcut, act = block.shortcut, block.act
        layers = [cast(nn.Module, getattr(block, name)) for name in block.order]
        linear = False
    elif isinstance(block, FoldedBlock):
        shortcut, act = block.shortcut, block.act
        layers, linear = [], False
        for layer in block.rows:
            linear |= isinstance(layer, Positionwise)
            layers.extend(layer if isinstance(layer, Positionwise) else [layer])
    else:
        return None
    if not isinstance(shortcut, nn.Identity) or not isinstance(act, nn.Identity):
        return None
    if len(layers) != 5:
        return None
    conv, norm, first, gelu, second = layers
    if not is_depthwise(conv) or not isinstance(norm, nn.LayerNorm | Standardize):
        return None
    if not isinstance(gelu, nn.GELU) or gelu.approximate != "none":
        return None
    if not _is_product(first) or not _is_product(second):
        return None
    pair = (Positionwise if linear else nn.Sequential)(first, gelu, second)
    if isinstance(norm, StandardizeLast):  # Moved to where the channels are not last.
        norm = Standardize(int(norm.dim), eps=norm.eps)
    gamma = block.gamma if isinstance(block, Block) else None
    return Halves(
        conv=cast(nn.Conv2d, conv), norm=norm, first=first, second=second, pair=pair, gamma=gamma
    )


def is_depthwise(layer: nn.Module) -> bool:
    """Return whether the kernel can replace a layer: depthwise, k odd, stride 1, same size."""
    if not isinstance(layer, nn.Conv2d) or isinstance(layer, DepthwiseConv2d):
        return False
    k = layer.kernel_size[0]
    return (
        layer.groups == layer.in_channels == layer.out_channels > 1
        and layer.kernel_size == (k, k)
        and k % 2 == 1
        and k > 1
        and layer.stride == (1, 1)
        and layer.dilation == (1, 1)
        and layer.padding == (k // 2, k // 2)
        and layer.padding_mode == "zeros"
    )


def _is_product(layer: nn.Module) -> bool:
    """Return whether a layer is linear over channels, and has a bias."""
    if isinstance(layer, nn.Conv2d):
        layout = (layer.kernel_size, layer.stride, layer.groups, layer.padding)
        return layout == ((1, 1), (1, 1), 1, (0, 0)) and layer.bias is not None
    return isinstance(layer, nn.Linear) and isinstance(layer.bias, Tensor)


def _weights(layer: Any) -> tuple[Tensor, Tensor]:
    """Return weights (D, C) and bias (D,) of such a layer."""
    return layer.weight.flatten(1), layer.bias
