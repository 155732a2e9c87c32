"""A folded segmentor that exporters take with height and width left open.

What depends on sizes is written so that it follows from the tensors at hand: the pooling of UPerNet
as two small matrix products, as adaptive pooling has no counterpart in the formats; resizing always
as an interpolation, without the test whether there is anything to resize. The convolution over all
maps is the plain one: which form saves work depends on the size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.tasks.segmentation.heads import PooledConv, UPerHead

LEAST_ANY = 64
"""Least height and width: two positions of the coarsest map, as a single one is a special case for
torch's exporter. Smaller images are filled up with the mean colour."""


class AnySizeSegmentor(nn.Module):
    """Images (N, C, H, W) of at least 64 x 64 pixels to logits (N, K, H, W).

    Args:
        segmentor: A folded one, or one around which the normalisation lies; it is taken apart.
        contiguous: Whether maps are kept channels first. Where one is cast, strides of others would
            become conditions on the sizes; a layer norm makes them so itself.
    """

    def __init__(self, segmentor: nn.Module, *, contiguous: bool = False) -> None:
        super().__init__()
        self.contiguous = contiguous
        within: Any = segmentor
        self.normalize = getattr(within, "normalize", nn.Identity())
        self.backbone = within.backbone
        self.output_norms = within.output_norms
        self.decode_head = AnySizeHead(within.decode_head)
        if contiguous:
            self.to(memory_format=torch.contiguous_format)

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous() if self.contiguous else images
        maps = self.output_norms(self.backbone.pyramid(self.normalize(images)))
        return resized(self.decode_head(list(maps.values())), images)


class AnySizeHead(nn.Module):
    """A `UPerHead`, with the same logits."""

    def __init__(self, head: UPerHead) -> None:
        super().__init__()
        self.pools = nn.ModuleList(AnySizePool(pool) for pool in head.pools)  # type: ignore[arg-type]
        self.bottleneck, self.laterals, self.outputs = head.bottleneck, head.laterals, head.outputs
        self.fusion, self.classifier = head.fusion, head.classifier

    def forward(self, maps: Sequence[Tensor]) -> Tensor:  # N C H_l W_l -> N K H W
        coarsest = maps[-1]
        x = self.bottleneck(torch.cat([coarsest, *(pool(coarsest) for pool in self.pools)], 1))
        outputs = [x]
        for i in reversed(range(len(self.laterals))):
            lateral = self.laterals[i](maps[i])
            x = lateral + resized(x, lateral)
            outputs.insert(0, self.outputs[i](x))
        whole = torch.cat([outputs[0], *(resized(x, outputs[0]) for x in outputs[1:])], 1)
        logits: Tensor = self.classifier(self.fusion(whole))
        return logits


class AnySizePool(nn.Module):
    """A `PooledConv`: means over scale x scale parts, a 1x1 convolution, resized to the map."""

    def __init__(self, pool: PooledConv) -> None:
        super().__init__()
        assert isinstance(pool.pool.output_size, int)
        self.scale = pool.pool.output_size
        self.conv, self.norm, self.act = pool.conv, pool.norm, pool.act

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N D H W
        rows, columns = parts(x[0, 0, :, 0], self.scale), parts(x[0, 0, 0], self.scale)
        pooled = rows @ (x @ columns.T)
        return resized(self.act(self.norm(self.conv(pooled))), x)


def parts(line: Tensor, scale: int) -> Tensor:  # length -> scale length
    """Return the weights of a line's positions in the mean of each of `scale` parts of it.

    A part begins and ends as those of `adaptive_avg_pool2d`: it holds every position that it
    touches, so that parts may overlap.
    """
    ones = torch.ones_like(line, dtype=torch.float32)
    length, j = ones.sum(), torch.cumsum(ones, 0) - 1
    i = torch.arange(scale, dtype=torch.float32, device=line.device)[:, None]
    # Where a part ends within a position, halves keep rounding from mattering.
    first = torch.floor((i * length + 0.5) / scale)
    last = torch.ceil(((i + 1) * length - 0.5) / scale)
    inside = ((j >= first) & (j < last)).float()
    return (inside / inside.sum(1, keepdim=True)).to(line.dtype)


def resized(x: Tensor, like: Tensor) -> Tensor:
    """Return a map resized bilinearly to the height and width of another."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)
