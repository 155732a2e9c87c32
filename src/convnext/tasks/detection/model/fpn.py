"""The feature pyramid network: each scale knows what the coarser ones do (Lin et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class FPN(nn.Module):
    """Maps c2 to c5 of `in_dims` channels to p2 to p6 of `channels`; no norm, no activation.

    p6 is every second position of p5, for the proposals of large objects only.
    """

    def __init__(self, in_dims: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(dim, channels, 1) for dim in in_dims)
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_dims)
        for conv in (*self.laterals, *self.outputs):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:  # each N C H W, finest first
        sums = [lateral(map_) for lateral, map_ in zip(self.laterals, maps, strict=True)]
        for i in range(len(sums) - 1, 0, -1):
            coarse = F.interpolate(sums[i], size=sums[i - 1].shape[2:], mode="nearest")
            sums[i - 1] = sums[i - 1] + coarse
        outputs = [conv(map_) for conv, map_ in zip(self.outputs, sums, strict=True)]
        return [*outputs, F.max_pool2d(outputs[-1], 1, stride=2)]
