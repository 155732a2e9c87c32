"""A whole ConvNeXt block as one operation with its own backward pass, for training on a CPU.

The mathematics and the weights are those of `Block`; what differs is how they are run (LOG.md):

- The pointwise pair runs on some rows of positions at a time, whose wide activations stay in the
  cache from the first product to the last, forwards and backwards.
- Layer scale, the factor of drop path and the addition of the shortcut are one operation. Images
  whose branch is dropped are left out of it.
- The weight gradient of the depthwise convolution is a depthwise convolution over tiles.
- Where products of bf16 are slower than those of fp32, the rows are widened for them: bf16 is
  then what is kept for the backward pass.

Shapes: N images, C channels, D wide channels, H W positions, R = N x H x W rows, k kernel size.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from convnext.blocks import Block, LayerNorm2d
from convnext.rates import bf16_gain

# Bytes of the wide activations of a chunk, in the dtype of the products.
CHUNK_BYTES = 8 * 2**20
# Weight gradients are added to once for every chunk, which must be worth it.
MIN_CHUNK = 512
# Positions of a tile's side: kernel and input of a tile stay in the first cache.
MAX_TILE = 14


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
        out: Tensor = _Branch.apply(
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


@dataclass(frozen=True, kw_only=True)
class How:
    """What a branch needs beside tensors."""

    kept: torch.dtype
    """Of the maps, and of what is kept for the backward pass."""
    products: torch.dtype
    scale: float
    """Of the branch of an image that is not dropped."""
    eps: float

    @property
    def sums(self) -> torch.dtype:
        """The dtype of statistics and of gradients of weights."""
        return torch.promote_types(self.kept, torch.float32)

    @property
    def widened(self) -> bool:
        """Whether rows are kept in less precision than they are computed in."""
        return self.products != self.kept

    def chunk(self, wide: int) -> int:
        """Return the rows of a chunk whose activations have `wide` channels."""
        return max(MIN_CHUNK, CHUNK_BYTES // (wide * self.products.itemsize))


class _Branch(torch.autograd.Function):
    """`x + scale * gamma * pwconv2(gelu(pwconv1(norm(spatial(x)))))`, by the images of `index`."""

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
        how: How,
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
            # What is returned must own its memory, or it could not be changed in place.
            whole = torch.empty_like(_maps(x), memory_format=torch.channels_last)
            by_image = whole.permute(0, 2, 3, 1)  # N H W C
            dropped = index is not None
            out = (
                torch.empty_like(rows, dtype=x.dtype) if dropped else by_image.view(residual.shape)
            )
            before = torch.empty(num, wide, dtype=how.kept)  # The activation.
            # Widened rows have it computed again, which is cheaper than rounding it.
            after = None if how.widened else torch.empty_like(before)
            mean, rstd = (torch.empty(num, 1, dtype=how.sums) for _ in range(2))
            first_t, second_t = (t.flatten(1).to(how.products).t() for t in (first, second))
            first_bias, second_bias = (t.to(how.products) for t in (first_bias, second_bias))
            factor = _factor(gamma, second_bias, how)
            for part in _parts(num, how.chunk(wide)):
                moments = mean[part], rstd[part]
                options = (norm.shape, norm, norm_bias, how.eps)
                if after is None:
                    y, *found = torch.native_layer_norm(rows[part].to(how.sums), *options)
                    normed[part], moments[0][:], moments[1][:] = y, *found
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
        how: How = ctx.how
        saved = ctx.saved_tensors  # Once: recomputed ones are handed out a single time.
        images, mixed, normed, mean, rstd, before, after = saved[:7]
        spatial, norm, norm_bias, first, second, second_bias, gamma, index = saved[7:]
        with torch.autocast("cpu", enabled=False):
            grad = _last(grad)  # N H W C
            inner = (grad if index is None else grad.index_select(0, index)).flatten(0, 2)
            rows = mixed.flatten(0, 2)
            wide, dim = len(first), len(second)
            first_rows, second_rows = (t.flatten(1).to(how.products) for t in (first, second))
            factor = _factor(gamma, second_bias, how)
            # Of the branch before layer scale, and of what is inside the activation.
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


def _factor(gamma: Tensor | None, like: Tensor, how: How) -> Tensor:
    """Return layer scale times the factor of drop path (C,), in the dtype of the products."""
    factor = torch.ones_like(like) if gamma is None else gamma
    return (factor * how.scale).to(how.products)


class Sums:
    """The gradients of a linear layer's weight (D, C) and bias (D,), summed over chunks of rows."""

    def __init__(self, out_dim: int, in_dim: int, dtype: torch.dtype) -> None:
        self.weight = torch.empty(out_dim, in_dim, dtype=dtype)
        self.bias = torch.zeros(out_dim, dtype=dtype)
        self.empty = True

    def add(self, grad: Tensor, input: Tensor) -> None:
        """Take in the rows of a chunk, (R, D) and (R, C)."""
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
    """Return slices of about equal length that cover `rows`."""
    count = max(1, -(-rows // size))
    ends = [rows * i // count for i in range(count + 1)]
    return [slice(*pair) for pair in pairwise(ends)]


def _last(x: Tensor) -> Tensor:
    """Return maps (N, C, H, W) as a contiguous (N, H, W, C)."""
    return x.permute(0, 2, 3, 1).contiguous()


def _like(grad: Tensor, weight: Tensor) -> Tensor:
    """Return a contiguous gradient in the strides of its weight, so that nobody copies it again.

    With one input channel or one position, the two memory formats differ in strides alone.
    """
    assert weight.shape[1] == 1 or weight.shape[2:] == (1, 1)
    return grad.as_strided(weight.shape, weight.stride())


def _maps(x: Tensor) -> Tensor:
    """Return (N, H, W, C) as maps (N, C, H, W), by a view."""
    return x.permute(0, 3, 1, 2)


def depthwise_weight_gradient(images: Tensor, grad: Tensor, kernel_size: int) -> Tensor:
    """Return the gradient of the weight of a depthwise convolution of stride 1 and equal size.

    It is a convolution again, of the images by the gradients, with one output for each weight. Cut
    into tiles, of which each with each channel is a group of its own, it runs on the kernels
    of the forward pass; oneDNN's own are 1.2 to 2 times as slow in fp32, 3 to 6 times in bf16.

    Args:
        images: Inputs of the convolution (N, H, W, C), contiguous.
        grad: Gradient of its output, of the same shape.
        kernel_size: k, odd.

    Returns:
        (C, 1, k, k), in fp32, or in fp64 if the images are.
    """
    n, height, width, dim = images.shape
    dtype = torch.promote_types(images.dtype, torch.float32)
    rows, columns = -(-height // MAX_TILE), -(-width // MAX_TILE)
    h, w = -(-height // rows), -(-width // columns)
    halo = kernel_size - 1
    if n == 0:
        return torch.zeros(dim, 1, kernel_size, kernel_size, dtype=dtype)
    padded = _padded(images, kernel_size // 2, rows * h + halo, columns * w + halo)
    a, b, c, _ = padded.stride()
    windows = padded.as_strided(
        (h + halo, w + halo, n, rows, columns, dim), (b, c, a, h * b, w * c, 1)
    )
    kernels = _padded(grad, 0, rows * h, columns * w)
    kernels = kernels.view(n, rows, h, columns, w, dim).permute(2, 4, 0, 1, 3, 5)
    groups = n * rows * columns * dim
    # One copy each, which orders, and widens where it must.
    windows, kernels = (
        torch.empty(t.shape, dtype=dtype).copy_(t).view(1, *t.shape[:2], groups)
        for t in (windows, kernels)
    )
    sums = F.conv2d(_maps(windows), kernels.permute(3, 0, 1, 2), groups=groups)
    return sums.view(-1, dim, 1, kernel_size, kernel_size).sum(0)


def _padded(x: Tensor, start: int, height: int, width: int) -> Tensor:
    """Return (N, H, W, C) amid zeros, `start` of them before its rows and columns."""
    if x.shape[1:3] == (height, width):
        return x
    padded = x.new_empty(len(x), height, width, x.shape[-1])
    bottom, right = start + x.shape[1], start + x.shape[2]
    padded[:, start:bottom, start:right] = x
    for border in (
        padded[:, :start],
        padded[:, bottom:],
        padded[:, :, :start],
        padded[:, :, right:],
    ):
        border.zero_()
    return padded
