"""The residual branch of a ConvNeXt block as one operation with its own backward pass, on a CPU.

- The two pointwise layers run on a chunk of rows at a time, whose wide activations stay in the
  cache from the first product to the last, in the forward and the backward pass.
- Layer scale, the factor of drop path and the addition of the shortcut are one operation, which
  skips images whose branch is dropped.
- The weight gradient of the depthwise convolution is a depthwise convolution over tiles.
- If bf16 products are slower than fp32 products, rows are widened to fp32 for them; activations
  kept for the backward pass stay in bf16.

Shapes: N images, C channels, D wide channels, H W positions, R = N x H x W rows, k kernel size.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from convnext.kernels.winograd import depthwise_weight_gradient

# Bytes of a chunk's wide activations, in the dtype of the products.
CHUNK_BYTES = 8 * 2**20
# Minimum rows of a chunk, since each chunk costs one addition to the weight gradients.
MIN_CHUNK = 512


@dataclass(frozen=True, kw_only=True)
class BranchSettings:
    """The settings of a branch."""

    kept: torch.dtype
    """The dtype of the maps, and of activations kept for the backward pass."""
    products: torch.dtype
    scale: float
    """The factor of drop path on branches that are not dropped."""
    eps: float

    @property
    def sums(self) -> torch.dtype:
        """The dtype of statistics and of weight gradients."""
        return torch.promote_types(self.kept, torch.float32)

    @property
    def widened(self) -> bool:
        """Whether rows are kept in a lower precision than they are computed in."""
        return self.products != self.kept

    def chunk(self, wide: int) -> int:
        """Return the number of rows per chunk for activations with `wide` channels."""
        return max(MIN_CHUNK, CHUNK_BYTES // (wide * self.products.itemsize))


class Branch(torch.autograd.Function):
    """`x + scale * gamma * pwconv2(gelu(pwconv1(norm(spatial(x)))))` for the images in `index`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # N C H W
        spatial: Tensor,  # C 1 k k
        spatial_bias: Tensor,
        norm: Tensor,
        norm_bias: Tensor,
        first: Tensor,  # D C 1 1
        first_bias: Tensor,
        second: Tensor,  # C D 1 1
        second_bias: Tensor,
        gamma: Tensor | None,
        index: Tensor | None,
        how: BranchSettings,
    ) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x = _last(x)  # N H W C
            images = (x if index is None else x.index_select(0, index)).to(how.kept)
            mixed = _last(
                F.conv2d(
                    _maps(images),
                    spatial.to(how.kept),
                    spatial_bias.to(how.kept),
                    padding=spatial.shape[-1] // 2,
                    groups=len(spatial),
                )
            )
            rows = mixed.flatten(0, 2)  # R C
            residual = x.flatten(0, 2)
            num, wide = len(rows), len(first)
            normed = torch.empty_like(rows)
            # The result must own its memory, or it could not be modified in place.
            whole = torch.empty_like(_maps(x), memory_format=torch.channels_last)
            by_image = whole.permute(0, 2, 3, 1)  # N H W C
            dropped = index is not None
            out = (
                torch.empty_like(rows, dtype=x.dtype) if dropped else by_image.view(residual.shape)
            )
            before = torch.empty(num, wide, dtype=how.kept)  # The activation.
            # Widened rows recompute it, which is cheaper than rounding it.
            after = None if how.widened else torch.empty_like(before)
            mean, rstd = (torch.empty(num, 1, dtype=how.sums) for _ in range(2))
            first_t, second_t = (t.flatten(1).to(how.products).t() for t in (first, second))
            first_bias, second_bias = (t.to(how.products) for t in (first_bias, second_bias))
            factor = _factor(gamma, second_bias, how)
            for part in _parts(num, how.chunk(wide)):
                moments = mean[part], rstd[part]
                options = (norm.shape, norm, norm_bias, how.eps)
                if after is None:
                    y, means, scales = torch.native_layer_norm(rows[part].to(how.sums), *options)
                    normed[part], moments[0][:], moments[1][:] = y, means, scales
                    hidden = torch.addmm(first_bias, y.to(how.products), first_t)
                    before[part] = hidden
                    torch.ops.aten.gelu_(hidden)
                else:
                    torch.ops.aten.native_layer_norm.out(
                        rows[part], *options, out0=normed[part], out1=moments[0], out2=moments[1]
                    )
                    hidden = torch.addmm(first_bias, normed[part], first_t, out=before[part])
                    hidden = torch.ops.aten.gelu.out(hidden, out=after[part])
                y = torch.addmm(second_bias, hidden, second_t)
                if index is None:
                    y = torch.addcmul(residual[part].to(y.dtype), y, factor)
                else:
                    y *= factor
                out[part] = y
            if index is not None:
                by_image.copy_(x).index_add_(0, index, out.view_as(images))
        ctx.how = how
        ctx.save_for_backward(
            *(images, mixed, normed, mean, rstd, before, after),
            *(spatial, norm, norm_bias, first, second, second_bias, gamma, index),
        )
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        how: BranchSettings = ctx.how
        saved = ctx.saved_tensors  # Read once: with recomputation they are available only once.
        images, mixed, normed, mean, rstd, before, after = saved[:7]
        spatial, norm, norm_bias, first, second, second_bias, gamma, index = saved[7:]
        with torch.autocast("cpu", enabled=False):
            grad = _last(grad)  # N H W C
            inner = (grad if index is None else grad.index_select(0, index)).flatten(0, 2)
            rows = mixed.flatten(0, 2)
            wide, dim = len(first), len(second)
            first_rows, second_rows = (t.flatten(1).to(how.products) for t in (first, second))
            factor = _factor(gamma, second_bias, how)
            # Gradients of the branch before layer scale, and of the activation's input.
            of_branch, of_inside = (Sums(*shape, how.sums) for shape in ((dim, wide), (wide, dim)))
            of_norm, of_norm_bias = torch.zeros(2, dim, dtype=how.sums)
            of_mixed = torch.empty_like(rows)
            for part in _parts(len(rows), how.chunk(wide)):
                g, y, u = (t[part].to(how.products) for t in (inner, normed, before))
                of_branch.add(g, F.gelu(u) if after is None else after[part])
                g = (g * factor) @ second_rows
                torch.ops.aten.gelu_backward.grad_input(g, u, grad_input=g)
                of_inside.add(g, y)
                of_mixed[part], n, b = torch.ops.aten.native_layer_norm_backward(
                    *((g @ first_rows).to(how.sums), rows[part].to(how.sums), norm.shape),
                    *(mean[part], rstd[part], norm, norm_bias, [True, True, True]),
                )
                of_norm += n
                of_norm_bias += b
            of_mixed = of_mixed.view_as(mixed)
            of_images = torch.ops.aten.convolution_backward(
                *(_maps(of_mixed), _maps(images), spatial.to(how.kept), None, [1, 1]),
                *([spatial.shape[-1] // 2] * 2, [1, 1], False, [0, 0], len(spatial)),
                [True, False, False],
            )[0]
            of_images = _last(of_images)
            if index is None:
                of_x = of_images.add_(grad) if grad.dtype == how.kept else grad + of_images
            else:
                of_x = grad.index_add(0, index, of_images.to(grad.dtype))
            of_spatial = depthwise_weight_gradient(images, of_mixed, spatial.shape[-1])
            of_spatial = _like(of_spatial, spatial)
            of_gamma = None
            if gamma is not None:
                of_gamma = (of_branch.weight * second.flatten(1)).sum(1)
                of_gamma = (of_gamma + of_branch.bias * second_bias) * how.scale
            of_second = of_branch.weight.mul_(factor.unsqueeze(1))
            of_second_bias = of_branch.bias.mul_(factor)
        return (
            _maps(of_x),
            *(of_spatial, of_mixed.sum((0, 1, 2), dtype=how.sums), of_norm, of_norm_bias),
            *(_like(of_inside.weight, first), of_inside.bias),
            *(_like(of_second, second), of_second_bias, of_gamma, None, None),
        )


def _factor(gamma: Tensor | None, like: Tensor, how: BranchSettings) -> Tensor:
    """Return layer scale times drop path's factor (C,), in the dtype of the products."""
    factor = torch.ones_like(like) if gamma is None else gamma
    return (factor * how.scale).to(how.products)


class Sums:
    """The gradients of a linear layer's weight (D, C) and bias (D,), summed over chunks of rows."""

    def __init__(self, out_dim: int, in_dim: int, dtype: torch.dtype) -> None:
        self.weight = torch.empty(out_dim, in_dim, dtype=dtype)
        self.bias = torch.zeros(out_dim, dtype=dtype)
        self.empty = True

    def add(self, grad: Tensor, input: Tensor) -> None:
        """Add the rows of a chunk, (R, D) and (R, C)."""
        self.bias += grad.sum(0, dtype=self.bias.dtype)
        if grad.dtype != self.weight.dtype:
            product = grad.t() @ input
            self.weight = product.to(self.weight.dtype) if self.empty else self.weight + product
        elif self.empty:
            torch.mm(grad.t(), input, out=self.weight)
        else:
            self.weight.addmm_(grad.t(), input)
        self.empty = False


def _parts(rows: int, size: int) -> list[slice]:
    """Split `rows` into slices of about equal length."""
    count = max(1, -(-rows // size))
    ends = [rows * i // count for i in range(count + 1)]
    return [slice(*pair) for pair in pairwise(ends)]


def _last(x: Tensor) -> Tensor:
    """Return maps (N, C, H, W) as a contiguous (N, H, W, C)."""
    return x.permute(0, 2, 3, 1).contiguous()


def _like(grad: Tensor, weight: Tensor) -> Tensor:
    """Return a contiguous gradient with the strides of its weight, which avoids later copies.

    With one input channel or one position, the two memory formats differ only in their strides.
    """
    assert weight.shape[1] == 1 or weight.shape[2:] == (1, 1)
    return grad.as_strided(weight.shape, weight.stride())


def _maps(x: Tensor) -> Tensor:
    """View (N, H, W, C) as maps (N, C, H, W)."""
    return x.permute(0, 3, 1, 2)
