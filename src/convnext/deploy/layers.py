"""Layers that exist only in folded networks.

Shapes: N batch, C channels, H and W positions; `...` any dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.models.blocks import LayerNorm2d


class Standardize(nn.Module):
    """Layer norm without weights: mean 0 and variance 1 over the channels of (N, C, H, W).

    Computes statistics in fp32 for any input, as `convnext.models.blocks.LayerNorm2d` does.
    """

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # N C H W
        return standardize(x.permute(0, 2, 3, 1), self.eps).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """Show the channels and eps."""
        return f"{self.dim}, eps={self.eps}"


class StandardizeLast(Standardize):
    """`Standardize` over the last dimension, for (..., C)."""

    def forward(self, x: Tensor) -> Tensor:  # ... C
        return standardize(x, self.eps)


def standardize(x: Tensor, eps: float) -> Tensor:  # ... C
    """Normalize x to mean 0 and variance 1 over its last dimension, in its own dtype."""
    if torch.is_autocast_enabled(x.device.type):  # It would run `F.layer_norm` in fp32.
        return torch.native_layer_norm(x, x.shape[-1:], None, None, eps)[0]
    return F.layer_norm(x, x.shape[-1:], None, None, eps)


class SpelledOut(Standardize):
    """`Standardize` written as sums and products over the channels, without transposing them.

    OpenVINO recognizes a layer norm and runs it on channels-last copies, but fuses these operations
    in the layout of the adjacent convolutions. ConvNeXt-T as a whole becomes 10 percent faster in
    fp32 and a third faster in int8 (LOG.md).

    Args:
        dim: C.
        eps: Added to the variance.
        two_passes: Compute the variance from centered values. The one-pass alternative, the mean of
            squares minus the squared mean, saves 5 percent of a network in int8, which does not
            need the lost precision.
    """

    def __init__(self, dim: int, *, eps: float, two_passes: bool = True) -> None:
        super().__init__(dim, eps=eps)
        self.two_passes = two_passes

    def forward(self, x: Tensor) -> Tensor:  # N C H W
        mean = x.mean(1, keepdim=True)
        centered = x - mean
        if not self.two_passes:
            variance = ((x * x).mean(1, keepdim=True) - mean * mean).clamp_min(0)
            return centered * torch.rsqrt(variance + self.eps)
        squares = (centered * centered).sum(1, keepdim=True)
        return centered * torch.rsqrt(squares * (1 / self.dim) + self.eps)


class Scaled(nn.Module):
    """`x * scale + shift` per channel of (N, C, H, W), if no adjacent layer can absorb it."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:  # N C H W
        return torch.addcmul(self.shift.view(-1, 1, 1), x, self.scale.view(-1, 1, 1))


class Positionwise(nn.Sequential):
    """Applies layers over (..., C) to maps (N, C, H, W).

    A view moves the channels last, which is free for channels_last maps.
    """

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N D H W
        x = x.permute(0, 2, 3, 1)
        for layer in self:
            x = layer(x)
        return x.permute(0, 3, 1, 2)


class FoldedBlock(nn.Module):
    """`act(shortcut(x) + rows(x))`: a residual block after folding."""

    def __init__(self, rows: nn.Sequential, shortcut: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.rows = rows
        self.shortcut = shortcut
        self.act = act

    def forward(self, x: Tensor) -> Tensor:  # N Cin H W -> N Cout H/stride W/stride
        out: Tensor = self.act(self.shortcut(x) + self.rows(x))
        return out


class ChunkedBlock(nn.Module):
    """A block that applies its pointwise layers to a few rows of positions at a time.

    Only one chunk of the wide activations (4C channels) exists at a time and stays in the CPU's
    cache; the result overwrites the output of the spatial convolution. This helps in eager mode
    only: compilers fuse better without the loop.

    Args:
        spatial: Maps (N, C, H, W) to a new (N, C, H, W).
        norm: Norm over (..., C), or None.
        first: Linear from C to D with a bias, followed by an exact GELU.
        second: Linear from D to C with a bias.
    """

    # Bytes of a chunk's wide activations: the best of 0.5 to 16 MB on a Xeon with 2 MB of L2 cache;
    # from 2 MB on all are within 4 percent (LOG.md).
    CHUNK_BYTES = 8 * 2**20

    def __init__(
        self, spatial: nn.Module, norm: nn.Module | None, first: nn.Linear, second: nn.Linear
    ) -> None:
        super().__init__()
        self.spatial = spatial
        self.norm = nn.Identity() if norm is None else norm
        self.first = first
        self.second = second

    def forward(self, x: Tensor) -> Tensor:  # N C H W
        y: Tensor = self.spatial(x)
        y = y.contiguous(memory_format=torch.channels_last)
        rows, residual = (t.permute(0, 2, 3, 1).reshape(-1, t.shape[1]) for t in (y, x))
        num = max(64, self.CHUNK_BYTES // (self.first.out_features * y.element_size()))
        # Under autocast the maps have a narrower dtype than the weights, and `out` is not cast.
        wide, narrow, bias_wide, bias_narrow = (
            t.to(y.dtype)
            for t in (self.first.weight, self.second.weight, self.first.bias, self.second.bias)
        )
        for chunk, identity in zip(torch.split(rows, num), torch.split(residual, num), strict=True):
            hidden = F.linear(self.norm(chunk), wide, bias_wide)
            torch.ops.aten.gelu_(hidden)
            torch.addmm(bias_narrow, hidden, narrow.t(), out=chunk)
            chunk.add_(identity)
        return y


def spell_out(module: nn.Module, *, two_passes: bool = True) -> nn.Module:
    """Replace the channel norms of a folded module by `SpelledOut`, in place; return the module."""
    for name, child in list(module.named_children()):
        if type(child) is Standardize:
            setattr(module, name, SpelledOut(child.dim, eps=child.eps, two_passes=two_passes))
        elif isinstance(child, LayerNorm2d):
            weight, bias = child.weight.detach(), child.bias.detach()
            norm = SpelledOut(len(weight), eps=child.eps, two_passes=two_passes)
            setattr(module, name, nn.Sequential(norm, Scaled(weight, bias)))
        else:
            spell_out(child, two_passes=two_passes)
    return module


class Normalized(nn.Module):
    """A network that normalizes its input images itself.

    For networks that pad their input, where zeros must mean the mean color. Other attributes are
    those of `network`.

    Args:
        network: Takes images (N, C, H, W), or a list of (C, H, W).
        mean: (C,), in the units of the images.
        std: (C,), in the units of the images.
    """

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network = network
        self.normalize = Scaled(1 / std, -mean / std)

    def forward(self, images: Tensor | Sequence[Tensor], **options: Any) -> Any:
        """Normalize the images and call the network."""
        if isinstance(images, Tensor):
            return self.network(self.normalize(images), **options)
        return self.network([self.normalize(image) for image in images], **options)

    def pyramid(self, images: Tensor) -> dict[str, Tensor]:
        """Normalize the images and call the network's `pyramid`."""
        network: Any = self.network
        maps: dict[str, Tensor] = network.pyramid(self.normalize(images))
        return maps

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)
