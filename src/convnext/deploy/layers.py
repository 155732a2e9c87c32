"""The algebra of folding, and the layers that exist only in folded networks.

Shapes: N batch, C channels, H and W positions; `...` any dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from convnext.models.blocks import LayerNorm2d

Product: TypeAlias = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Affine:
    """`x * scale + shift` per channel; both (C,) in fp64."""

    scale: Tensor
    shift: Tensor

    def then(self, other: Affine) -> Affine:
        """Return the composition of this and then another."""
        return Affine(self.scale * other.scale, self.shift * other.scale + other.shift)


Layer: TypeAlias = nn.Module | Affine


def affine(
    scale: Tensor | None, shift: Tensor | None = None, *, like: Tensor | None = None
) -> Affine:
    """Return the Affine of an optional scale and an optional shift."""
    known = next(t for t in (scale, shift, like) if t is not None).detach().double()
    return Affine(
        torch.ones_like(known) if scale is None else scale.detach().double(),
        torch.zeros_like(known) if shift is None else shift.detach().double(),
    )


def split(layer: Layer) -> list[Layer]:
    """Split a norm into the part that depends on its input and the part that does not."""
    if isinstance(layer, nn.Identity):
        return []
    if isinstance(layer, _BatchNorm) and type(layer).forward is _BatchNorm.forward:
        return _split_batch_norm(layer)
    halves = {LayerNorm2d: Standardize, nn.LayerNorm: StandardizeLast}.get(type(layer))
    if halves is None or not isinstance(layer, nn.LayerNorm) or len(layer.normalized_shape) != 1:
        return [layer]
    first = halves(layer.normalized_shape[0], eps=layer.eps)
    return [first, affine(layer.weight, layer.bias)] if layer.elementwise_affine else [first]


def join(layers: Iterable[Layer]) -> list[nn.Module]:
    """Turn the result of `simplify` into modules; a remaining Affine becomes a module of its own.

    An Affine after a `Standardize` becomes a layer norm again, for which fused kernels exist.
    """
    modules: list[nn.Module] = []
    for layer in layers:
        if not isinstance(layer, Affine):
            modules.append(layer)
        elif modules and isinstance(modules[-1], Standardize):
            modules.append(_layer_norm(modules.pop(), layer))
        else:
            modules.append(Scaled(layer.scale.float(), layer.shift.float()).eval())
    return modules


def _layer_norm(first: nn.Module, second: Affine) -> nn.LayerNorm:
    assert isinstance(first, Standardize)
    last = isinstance(first, StandardizeLast)
    norm = nn.LayerNorm(first.dim, first.eps) if last else LayerNorm2d(first.dim)
    norm.eps = first.eps
    norm.weight = nn.Parameter(second.scale.float(), requires_grad=False)
    norm.bias = nn.Parameter(second.shift.float(), requires_grad=False)
    return norm.eval()


def _split_batch_norm(norm: _BatchNorm) -> list[Layer]:
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:  # It uses batch statistics in evaluation too.
        return [norm]
    scale = torch.rsqrt(var.double() + norm.eps)
    own = affine(norm.weight, norm.bias, like=mean)
    return [Affine(scale, -mean.double() * scale).then(own)]


def simplify(layers: Iterable[Layer]) -> list[Layer]:
    """Merge layers into as few equivalent layers as possible.

    Args:
        layers: The layers in execution order.

    Changed products are new modules; unchanged ones are the same objects. An `Affine` remains only
    where no adjacent product can absorb it, as before a padded convolution.
    """
    out: list[Layer] = []
    for layer in (part for whole in layers for part in split(whole)):
        before = out[-1] if out else None
        if isinstance(layer, Affine) and isinstance(before, Affine):
            out[-1] = before.then(layer)
        elif isinstance(layer, Affine) and isinstance(before, Product):
            out[-1] = product_then(before, layer)
        elif isinstance(before, Affine) and is_unpadded(layer):
            out[-1] = affine_then(before, layer)
        else:
            out.append(layer)
    return out


def is_unpadded(layer: Layer) -> bool:
    """Return whether a product has no zero padding."""
    if isinstance(layer, nn.Conv2d):
        return layer.padding in ((0, 0), 0, "valid")
    return isinstance(layer, nn.Linear)


def product_then(product: Product, after: Affine) -> Product:
    """Merge an Affine into the product before it."""
    weight = product.weight.detach().double()
    scale = after.scale.view(-1, *[1] * (weight.dim() - 1))
    return _with(product, weight * scale, _bias(product) * after.scale + after.shift)


def affine_then(before: Affine, product: Layer) -> Product:
    """Merge an Affine into the product after it; exact if the product is unpadded."""
    assert isinstance(product, Product)
    weight = product.weight.detach().double()
    if isinstance(product, nn.Linear):
        return _with(product, weight * before.scale, _bias(product) + weight @ before.shift)
    # Each output channel sees the inputs of its group.
    groups = product.groups
    per_group = weight.shape[0] // groups
    scale, shift = (
        t.view(groups, -1).repeat_interleave(per_group, 0) for t in (before.scale, before.shift)
    )
    added = (weight.sum((2, 3)) * shift).sum(1)
    return _with(product, weight * scale[:, :, None, None], _bias(product) + added)


def _bias(product: Product) -> Tensor:
    if product.bias is None:
        return product.weight.new_zeros(product.weight.shape[0], dtype=torch.float64)
    return product.bias.detach().double()


def _with(product: Product, weight: Tensor, bias: Tensor) -> Product:
    """Return a copy of a product with other weights, in its original dtype."""
    like = product.weight
    new: Product
    with torch.device("meta"):
        if isinstance(product, nn.Linear):
            new = nn.Linear(product.in_features, product.out_features)
        else:
            new = nn.Conv2d(
                product.in_channels,
                product.out_channels,
                product.kernel_size,  # type: ignore[arg-type]
                stride=product.stride,  # type: ignore[arg-type]
                padding=product.padding,  # type: ignore[arg-type]
                dilation=product.dilation,  # type: ignore[arg-type]
                groups=product.groups,
                padding_mode=product.padding_mode,
            )
    new.weight = nn.Parameter(weight.to(like.dtype), requires_grad=False)
    new.bias = nn.Parameter(bias.to(like.dtype), requires_grad=False)
    return new.eval()


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
