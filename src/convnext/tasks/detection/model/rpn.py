"""The region proposal network: where something may be, whatever it is (Ren et al., 2015).

T anchors of an image are in one order everywhere: levels, rows, columns, ratios.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from convnext.tasks.detection.model.anchors import RATIOS
from convnext.tasks.detection.model.coding import decode

NMS_THRESHOLD = 0.7


class ProposalNetwork(nn.Module):
    """One 3x3 convolution, and two 1x1 ones for the objectness and the deltas of each anchor."""

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
) -> tuple[Tensor, Tensor]:
    """Return the best boxes (R, 4) of an image of `size` (H, W), and their scores (R,), best first.

    Args:
        anchors: (T_l, 4) of every level l.
        logits: (T_l,) of every level.
        deltas: (T_l, 4) of every level.
        size: What boxes are clipped to. Those that lose their width or height stay, as in the
            stack of the published numbers.
        num_before: Boxes of each level that enter the suppression of doubles.
        num_after: Boxes of all levels that leave it.

    Boxes of one level suppress each other, those of different levels do not.
    """
    chosen, scores, levels = [], [], []
    for level, (boxes, logit, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
        score, index = logit.sigmoid().sort(descending=True, stable=True)
        index = index[:num_before]
        chosen.append(decode(boxes[index], delta[index], size=size))
        scores.append(score[:num_before])
        levels.append(torch.full_like(index, level))
    candidates, score = torch.cat(chosen), torch.cat(scores)
    keep = batched_nms(candidates, score, torch.cat(levels), NMS_THRESHOLD)[:num_after]
    return candidates[keep], score[keep]
