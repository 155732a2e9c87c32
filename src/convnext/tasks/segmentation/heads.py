"""The heads of segmentation: UPerNet on the whole pyramid, and the auxiliary FCN on one map.

UPerNet (arXiv 1807.10221) is pyramid pooling on the coarsest map, a feature pyramid down to the
finest one, and one convolution over all maps concatenated at the finest resolution. With four times
512 channels there, that convolution costs more than everything before it.

Resizing and convolution are both linear, so channels can be mixed before a map grows: nine
pointwise products at the small size, one per kernel position. Their results are then resized,
shifted and summed, which costs little. For the convolution over all maps of a pyramid with strides
4, 8, 16 and 32 this saves two thirds of the multiplications; the results differ only by rounding.

Shapes: N batch, C channels of a map, D channels of the head, K classes, h w a map, H W the finest
or larger map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.kernels.winograd import WinogradConv, fits
from convnext.models.config import check_types

POOL_SCALES = (1, 2, 3, 6)
CLASSIFIER_STD = 0.01


@dataclass(frozen=True, kw_only=True)
class UPerNetConfig:
    """Settings of the heads; the defaults are those of the published ADE20K models."""

    num_classes: int = 150
    channels: int = 512
    """Channels of the decode head."""
    auxiliary: bool = True
    """Whether to train an auxiliary FCN on the second to last map."""
    auxiliary_channels: int = 256
    dropout: float = 0.1
    """Channel dropout rate before each classifier."""
    output_norms: bool = True
    """Whether each map of the backbone gets its own layer norm."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_classes", "channels", "auxiliary_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}")


class ConvNormAct(nn.Module):
    """A convolution without bias, batch norm and ReLU; the size stays the same."""

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_dim)
        self.act = nn.ReLU(inplace=True)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N D H W
        out: Tensor = self.act(normalize(self.norm, self.conv(x)))
        return out

    def fold_layers(self, merge: Callable[[Sequence[nn.Module]], list[nn.Module]]) -> None:
        """Merge the norm into the convolution, for `convnext.fold`."""
        conv, *rest = merge([self.conv, self.norm])
        self.conv = cast(nn.Conv2d, conv)
        self.norm = rest[0] if rest else nn.Identity()  # type: ignore[assignment]


def normalize(norm: nn.Module, x: Tensor) -> Tensor:  # N C H W
    """Apply a batch norm, with its running statistics if the batch has one value per channel.

    A single image pooled to one position has no variance: torch refuses to train on it, and batch
    statistics would map it to zero. Such a batch does not change the running statistics. A
    synchronized norm sees the values of all processes and runs as usual.
    """
    alone = x.numel() == x.shape[1]
    if not (alone and norm.training and isinstance(norm, nn.modules.batchnorm._BatchNorm)):
        return cast(Tensor, norm(x))
    if isinstance(norm, nn.SyncBatchNorm) and _num_processes() > 1:
        return cast(Tensor, norm(x))
    return F.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )


class FusionConv(ConvNormAct):
    """A 3x3 convolution over maps of several sizes, at the size of the first."""

    mix_first = True
    """Whether to mix channels before resizing if that is less work."""

    def of_maps(self, maps: Sequence[Tensor]) -> Tensor:  # N C H_l W_l -> N D H W
        """Resize, concatenate and convolve maps, with fewer multiplications."""
        x = conv_of_maps(maps, self.conv.weight, self.conv.bias, mix_first=self.mix_first)
        out: Tensor = self.act(normalize(self.norm, x))
        return out

    def in_winograd(self) -> nn.Module | None:
        """Return the CPU version of the folded module, for `convnext.kernels.winograd`."""
        if self.conv.bias is None or not fits(self.conv):
            return None
        return WinogradFusion(self.conv, self.norm, self.act)


class PooledConv(ConvNormAct):
    """Average pooling to scale x scale positions, a 1x1 convolution, and resizing to the map."""

    def __init__(self, in_dim: int, out_dim: int, scale: int) -> None:
        super().__init__(in_dim, out_dim)
        self.pool = nn.AdaptiveAvgPool2d(scale)

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N D H W
        return resize(super().forward(self.pool(x)), x.shape[2:])


class UPerHead(nn.Module):
    """Maps a pyramid, finest map first, to logits (N, K, H, W) at the size of the finest map.

    Args:
        in_dims: Channels of each map.
        channels: Channels D of the head.
        num_classes: Number of classes K.
        dropout: Channel dropout rate before the classifier.
    """

    def __init__(
        self, in_dims: Sequence[int], *, channels: int, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        *finer, coarsest = in_dims
        self.pools = nn.ModuleList(PooledConv(coarsest, channels, scale) for scale in POOL_SCALES)
        pooled = coarsest + len(POOL_SCALES) * channels
        self.bottleneck = ConvNormAct(pooled, channels, kernel_size=3)
        self.laterals = nn.ModuleList(ConvNormAct(dim, channels) for dim in finer)
        self.outputs = nn.ModuleList(ConvNormAct(channels, channels, kernel_size=3) for _ in finer)
        self.fusion = FusionConv(len(in_dims) * channels, channels, kernel_size=3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = make_classifier(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map N C H_l W_l, finest map first, to N K H W."""
        coarsest = maps[-1]
        x = self.bottleneck(torch.cat([coarsest, *(pool(coarsest) for pool in self.pools)], 1))
        outputs = [x]
        for i in reversed(range(len(self.laterals))):
            lateral = self.laterals[i](maps[i])
            x = lateral + resize(x, lateral.shape[2:])
            outputs.insert(0, self.outputs[i](x))
        fused = self.fusion.of_maps(outputs)
        logits: Tensor = self.classifier(self.dropout(fused))
        return logits


class FCNHead(nn.Module):
    """The auxiliary head, for training only: maps (N, C, H, W) to logits (N, K, H, W)."""

    def __init__(self, in_dim: int, *, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = ConvNormAct(in_dim, channels, kernel_size=3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = make_classifier(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N K H W
        logits: Tensor = self.classifier(self.dropout(self.conv(x)))
        return logits


def make_classifier(in_dim: int, num_classes: int) -> nn.Conv2d:
    """Build the last convolution of a head: normal weights of std 0.01, zero biases."""
    classifier = nn.Conv2d(in_dim, num_classes, 1)
    nn.init.normal_(classifier.weight, std=CLASSIFIER_STD)
    assert classifier.bias is not None
    nn.init.zeros_(classifier.bias)
    return classifier


def _num_processes() -> int:
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialized else 1


def conv_of_maps(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None, *, mix_first: bool = True
) -> Tensor:
    """Resize maps (N, C_l, h_l, w_l) to the size of the first, concatenate and convolve them.

    Args:
        maps: The first is the largest.
        weight: (D, sum of C_l, 3, 3), for a convolution with a padding of one pixel.
        bias: (D,) or None.
        mix_first: Whether channels may be mixed first; otherwise use the plain convolution.

    Returns:
        (N, D, H, W), equal to resizing, `torch.cat` and `conv2d`.
    """
    size = (maps[0].shape[2], maps[0].shape[3])
    if not (mix_first and saves(maps)):
        resized = [resize(x, size) for x in maps]
        return F.conv2d(torch.cat(resized, 1), weight, bias, padding=1)
    own = torch.split(weight, [x.shape[1] for x in maps], 1)
    out = F.conv2d(maps[0], own[0], bias, padding=1).contiguous()
    for x, part in zip(maps[1:], own[1:], strict=True):
        out = add_conv_of_resized(out, x, part)
    return out


def saves(maps: Sequence[Tensor]) -> bool:
    """Whether mixing channels first is less work.

    The cost of resizing by matrices is proportional to the sides of the map; that of mixing is
    proportional to the channels. `convnext.cost`, on shapes alone, counts the plain convolution.
    """
    height, width = maps[0].shape[2:]
    smaller = all(x.shape[2] < height and x.shape[3] < width for x in maps[1:])
    return smaller and max(height, width) <= min(x.shape[1] for x in maps) and not maps[0].is_meta


def add_conv_of_resized(out: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return `out` (N, D, H, W) plus the convolution of x (N, C, h, w) resized to its size.

    The sum is written in place, except while tracing, because OpenVINO cannot convert a write
    through a view.
    """
    num, dim, high, wide = out.shape
    height, width = x.shape[2:]
    # Horizontal positions, channels, vertical positions: every product uses contiguous blocks.
    taps = weight.permute(3, 0, 2, 1).reshape(9 * dim, -1, 1, 1)
    mixed = F.conv2d(x, taps).contiguous().view(num, 3, 3 * dim * height, width)
    across = [shifted(width, wide, tap, like=mixed).T.expand(num, -1, -1) for tap in range(3)]
    lines = torch.bmm(mixed[:, 0], across[0])
    for tap in (1, 2):
        lines.baddbmm_(mixed[:, tap], across[tap])
    down = torch.cat([shifted(height, high, tap, like=mixed) for tap in range(3)], 1)
    down = down.expand(num * dim, -1, -1)
    total, lines = out.view(num * dim, high, wide), lines.view(num * dim, 3 * height, wide)
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return torch.baddbmm(total, down, lines).view(num, dim, high, wide)
    total.baddbmm_(down, lines)
    return out


def shifted(small: int, large: int, tap: int, like: Tensor) -> Tensor:  # -> large small
    """Return the matrix that resizes a line linearly and shifts it by one position.

    `tap` 0 gives the previous position, 1 the position itself, 2 the next; beyond the ends is 0.
    """
    eye = torch.eye(small, dtype=torch.float32, device=like.device)
    matrix = F.interpolate(eye[None], large, mode="linear", align_corners=False)[0].T
    padded = F.pad(matrix, (0, 0, 1, 1))
    return padded[tap : tap + large].to(like.dtype)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:  # N C H W -> N C *size
    """Resample bilinearly without aligned corners; a map of that size is returned unchanged."""
    if x.shape[2:] == tuple(size):
        return x
    return F.interpolate(x, list(size), mode="bilinear", align_corners=False)


class WinogradFusion(nn.Module):
    """UPerNet's folded fusion: Winograd for the largest map, and channels_last for all.

    As in `conv_of_maps`, the channels of smaller maps are mixed before they grow. Here every step
    is a product over all channels.

    Args:
        conv: The convolution over all concatenated maps, with a bias.
        norm: The norm after it.
        act: The activation after the norm.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.act = conv, norm, act
        # All maps have the head's number of channels.
        self.dim = self.conv.out_channels
        own = torch.split(self.conv.weight.detach(), self.dim, 1)
        first = nn.Conv2d(self.dim, self.dim, 3, padding=1, device="meta")
        first.weight = nn.Parameter(own[0], requires_grad=False)
        assert self.conv.bias is not None
        first.bias = nn.Parameter(self.conv.bias.detach(), requires_grad=False)
        self.first = WinogradConv(first)
        self.taps: Tensor  # (L-1)*9 C D: vertical, then horizontal positions
        taps = torch.stack(own[1:]).permute(0, 3, 4, 2, 1)
        self.register_buffer("taps", taps.flatten(0, 2).contiguous())

    def of_maps(self, maps: Sequence[Tensor]) -> Tensor:  # N C H_l W_l -> N D H W
        """See `FusionConv.of_maps`."""
        if not saves(maps):
            out = conv_of_maps(maps, self.conv.weight, self.conv.bias)
        else:
            out = self.first(maps[0])
            for n in range(len(out)):
                self._add_resized(out[n].permute(1, 2, 0), [x[n] for x in maps[1:]])
        fused: Tensor = self.act(self.norm(out))
        return fused

    def _add_resized(self, out: Tensor, maps: Sequence[Tensor]) -> None:
        """Add the contributions of an image's smaller maps (C, h_l, w_l) to `out` (H, W, D)."""
        high, wide, dim = out.shape
        total = sum(x.shape[1] for x in maps)
        lines, down, at = out.new_empty(3 * total, wide, dim), out.new_empty(high, 3 * total), 0
        for x, taps in zip(maps, torch.split(self.taps, 9), strict=True):
            height, width = x.shape[1:]
            rows = x.permute(1, 2, 0).reshape(height * width, -1)  # h*w C
            across = [shifted(width, wide, t, like=x).expand(height, -1, -1) for t in range(3)]
            for place in range(3):
                here = slice(at, at + height)
                down[:, here] = shifted(height, high, place, like=x)
                for t in range(3):
                    mixed = (rows @ taps[3 * place + t]).view(height, width, dim)
                    lines[here].baddbmm_(across[t], mixed, beta=int(t > 0))
                at += height
        out.view(high, -1).addmm_(down, lines.flatten(1))
