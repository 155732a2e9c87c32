"""The feature pyramid (Lin et al., 2017) and the region proposal network (Ren et al., 2015).

The T anchors of an image are always in the order of levels, rows, columns, ratios.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from convnext.tasks.detection.model.boxes import RATIOS, decode, has_area


class FPN(nn.Module):
    """Turns maps c2 to c5 of `in_dims` channels into p2 to p6 of `channels`, without norms.

    p6 is every second position of p5; only proposals of large objects use it.
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


NMS_THRESHOLD = 0.7


class ProposalNetwork(nn.Module):
    """A 3x3 convolution, and two 1x1 convolutions for objectness and deltas of each anchor."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, len(RATIOS), 1)
        self.deltas = nn.Conv2d(channels, 4 * len(RATIOS), 1)
        for conv in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return objectness logits (N, A, H, W) and deltas (N, 4A, H, W) of every level."""
        hidden = [F.relu(self.conv(map_)) for map_ in maps]
        return [(self.objectness(x), self.deltas(x)) for x in hidden]


def by_anchor(logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maps of a level as logits (N, H * W * A) and deltas (N, H * W * A, 4), in fp32."""
    num = len(logits)
    logits = logits.permute(0, 2, 3, 1).reshape(num, -1)
    return logits.float(), deltas.permute(0, 2, 3, 1).reshape(num, -1, 4).float()


def propose(
    anchors: Sequence[Tensor],
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    *,
    size: tuple[int, int],
    num_before: int,
    num_after: int,
    keep_empty: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the best boxes (R, 4) of an image of `size` (H, W), and their scores (R,), best first.

    Args:
        anchors: (T_l, 4) of every level l.
        logits: (T_l,) of every level.
        deltas: (T_l, 4) of every level.
        size: Boxes are clipped to it.
        num_before: Max number of boxes of each level before NMS.
        num_after: Max number of boxes of all levels after NMS.
        keep_empty: Whether to keep boxes that clipping leaves without area; see
            `DetectorConfig.empty_proposals`.

    NMS runs within each level.
    """
    chosen, scores, levels = [], [], []
    for level, (boxes, logit, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
        score, index = logit.sigmoid().sort(descending=True, stable=True)
        index = index[:num_before]
        chosen.append(decode(boxes[index], delta[index], size=size))
        scores.append(score[:num_before])
        levels.append(torch.full_like(index, level))
    candidates, score, level_of = torch.cat(chosen), torch.cat(scores), torch.cat(levels)
    if not keep_empty:
        solid = has_area(candidates)
        candidates, score, level_of = candidates[solid], score[solid], level_of[solid]
    keep = batched_nms(candidates, score, level_of, NMS_THRESHOLD)[:num_after]
    return candidates[keep], score[keep]
