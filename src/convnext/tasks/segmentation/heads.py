"""The heads of segmentation: UPerNet on the whole pyramid, and the auxiliary FCN on one map.

UPerNet (arXiv 1807.10221) is pyramid pooling on the coarsest map, a feature pyramid down to the
finest one, and one convolution over all maps concatenated at the finest resolution. With four times
512 channels there, that convolution costs more than everything before it.

Shapes: N batch, C channels of a map, D channels of the head, K classes, H W of the finest map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.kernels.winograd import fits
from convnext.tasks.segmentation.resized_conv import WinogradFusion, conv_of_maps, resize

POOL_SCALES = (1, 2, 3, 6)
CLASSIFIER_STD = 0.01

PREFIX = "upernet_"


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
