"""Time inference of Mask R-CNN and Cascade Mask R-CNN on ConvNeXt-T at 800 x 1280, part by part.

    python benchmarks/detection_speed.py --rounds 5

torchvision's Mask R-CNN on ResNet-50 is timed in the same interleaved run. With random weights a
detector finds nothing, or everything, so each network gets the work of a trained one: 1000
proposals and 100 objects. Prints a table of medians and, as the last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import convnext

PARTS = ("backbone", "fpn", "rpn", "proposals", "box heads", "mask heads", "masks pasted")
OURS = ("mask_rcnn_convnext_tiny", "cascade_mask_rcnn_convnext_tiny")
THEIRS = "torchvision maskrcnn_resnet50_fpn"


class Clock:
    """The total seconds of each part."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the code in the block."""
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    image = torch.randn(3, arguments.height, arguments.width)
    networks = {name: convnext.create_model(name).eval() for name in OURS}
    forms: dict[str, Callable[[], dict[str, float]]] = {
        name: lambda network=network: detect(network, image)  # type: ignore[misc]
        for name, network in networks.items()
    }
    theirs = build_theirs(arguments.height, arguments.width)
    forms[THEIRS] = lambda: whole(lambda: theirs([image]))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in forms}
    with torch.inference_mode():
        for form in forms.values():
            form()
        for _ in range(arguments.rounds):
            for name, form in forms.items():
                found[name].append(form())
    medians = {
        name: {part: statistics.median(row[part] for row in rows) for part in rows[0]}
        for name, rows in found.items()
    }
    for name, row in medians.items():
        print(f"{name:34} {row['all']:6.2f} s")
        for part in PARTS:
            if part in row:
                print(f"    {part:14} {row[part]:6.2f} s  {row[part] / row['all']:4.0%}")
    print(json.dumps({"seconds": medians, **vars(arguments)}))


def detect(network: Any, image: Tensor) -> dict[str, float]:
    """Return the seconds of each part of a detection with 1000 proposals and 100 objects."""
    from convnext.data.masks import paste_masks
    from convnext.tasks.detection.model.boxes import mask_shares, select, stack

    clock = Clock()
    began = time.perf_counter()
    batch, sizes = stack([image], network.strides[-1])
    with clock.part("backbone"):
        levels = network.output_norms(network.backbone.pyramid(batch))
    with clock.part("fpn"):
        maps = network.fpn(list(levels.values()))
    with clock.part("rpn"):
        outputs = network.rpn(maps)
    with clock.part("proposals"):
        boxes = [network.proposals(maps, sizes, outputs=outputs)[0][0]]
        boxes = [spread(1000, sizes[0])] if len(boxes[0]) < 1000 else boxes
    with clock.part("box heads"):
        for stage in range(len(network.method.stages)):
            logits, deltas = network.box_logits(stage, maps, boxes)
            boxes = network.refined(stage, boxes, deltas, logits[:, :-1].argmax(1), sizes)
        scores = logits.softmax(1)[:, :-1]
        select(
            boxes[0][:, None].expand(-1, scores.shape[1], -1),
            scores,
            score_threshold=float(scores.flatten().kthvalue(scores.numel() - 2000)[0]),
            nms_threshold=0.5,
            max_detections=100,
        )
    some, labels = [spread(100, sizes[0])], [torch.zeros(100, dtype=torch.long)]
    with clock.part("mask heads"):
        shares = mask_shares(network, maps, some, labels)
    with clock.part("masks pasted"):
        paste_masks(shares[0], some[0], sizes[0])
    return {"all": time.perf_counter() - began, **clock.seconds}


def spread(count: int, size: tuple[int, int]) -> Tensor:
    """Return boxes of many sizes, spread over an image of `size` (H, W)."""
    random = torch.Generator().manual_seed(0)
    height, width = size
    sides = 16 * 2 ** (5 * torch.rand(count, 2, generator=random))
    corners = torch.rand(count, 2, generator=random) * torch.tensor([width, height])
    boxes = torch.cat((corners, corners + sides), 1)
    return boxes.minimum(torch.tensor([width, height, width, height]).float())


def whole(form: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds of a call."""
    began = time.perf_counter()
    form()
    return {"all": time.perf_counter() - began}


def build_theirs(height: int, width: int) -> nn.Module:
    """Build torchvision's network, set to report 100 objects regardless of their scores."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    theirs = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=81,
        min_size=min(height, width),
        max_size=max(height, width),
        box_score_thresh=0.0,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_test=1000,
    )
    return theirs.eval()


if __name__ == "__main__":
    main()
