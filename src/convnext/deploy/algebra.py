"""Merge adjacent layers of a trained network.

In evaluation mode, a network is a sequence of these kinds of layers:

    convolution, linear     a product with weights
    Affine                  a scale and a shift per channel: batch norm, layer scale, the
                            normalization of the input, the second half of a layer norm
    Standardize             the first half of a layer norm: mean 0 and variance 1 over the channels
    anything else           an activation or a pool, which nothing can be merged across

`simplify` merges every `Affine` into an adjacent product. All arithmetic is in fp64, so that the
result is rounded only once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convnext.deploy.layers import Scaled, Standardize, StandardizeLast
from convnext.models.blocks import LayerNorm2d

Product = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Affine:
    """`x * scale + shift` per channel; both (C,) in fp64."""

    scale: Tensor
    shift: Tensor

    def then(self, other: Affine) -> Affine:
        """Return the composition of this and then another."""
        return Affine(self.scale * other.scale, self.shift * other.scale + other.shift)


Layer = nn.Module | Affine


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
