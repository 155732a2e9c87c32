"""Train our Mask R-CNN and torchvision's from scratch for the same time, side by side.

    python benchmarks/detection.py DATA --minutes 25 --seeds 0 1 2 --output results

Ours is `mask_rcnn_convnext_atto`, torchvision's is `maskrcnn_resnet50_fpn` without weights; images,
crops and optimizer are the same (see `by_the_clock.py`). torchvision's network also gets our image
size and matching anchors: its own are made for 800 pixels and would miss small objects.
"""

from __future__ import annotations

import argparse
import json

import by_the_clock as clock

OURS, THEIRS = "ours", "torchvision"


def main() -> None:
    """Run all seeds, or with --side one network with one seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    clock.add_options(parser, (OURS, THEIRS))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--their-lr", type=float, default=5e-4)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(train(arguments, arguments.side)), flush=True)
    else:
        clock.run_pairs(arguments, (OURS, THEIRS), ("box_ap50", "mask_ap50", "box_ap", "mask_ap"))


def train(arguments: argparse.Namespace, side: str) -> dict[str, object]:
    """Train one network for a fixed time; return its scores."""
    task = clock.open_task(
        arguments,
        {
            "task": "detect",
            "model": "mask_rcnn_convnext_atto",
            "input.image_size": arguments.size,
            "optim.lr": arguments.lr,
            "optim.batch_size": arguments.batch,
            "optim.micro_batch_size": arguments.batch,
        },
    )
    model = task.build_model() if side == OURS else build_other(task, arguments.size)
    seed = arguments.seeds[0]
    scores, images = clock.train(
        task,
        model,
        lr=arguments.lr if side == OURS else arguments.their_lr,
        minutes=arguments.minutes,
        title=f"{side} seed {seed}",
    )
    return {
        "side": side,
        "seed": seed,
        **scores,
        "images": images,
        "minutes": arguments.minutes,
        "params": sum(p.numel() for p in model.parameters()),
    }


def build_other(task, size: int):  # type: ignore[no-untyped-def]
    """Build torchvision's Mask R-CNN behind the interface of our detectors."""
    import torch
    from torch import nn
    from torchvision.models.detection import maskrcnn_resnet50_fpn
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    from convnext.data.masks import cut

    detect = task.recipe.detect
    sides = tuple((round(detect.anchor_scale * stride),) for stride in (4, 8, 16, 32, 64))
    most = detect.max_detections

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = maskrcnn_resnet50_fpn(
                weights=None,
                weights_backbone=None,
                num_classes=len(task.data.classes) + 1,
                min_size=size,
                max_size=4 * size,
                image_mean=[0.0] * 3,
                image_std=[1.0] * 3,
                rpn_anchor_generator=AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * len(sides)),
                rpn_pre_nms_top_n_test=detect.num_proposals,
                rpn_post_nms_top_n_test=detect.num_proposals,
                rpn_post_nms_top_n_train=1000,
                box_batch_size_per_image=detect.box_batch_size,
                box_detections_per_img=most,
            )

        def forward(self, images, targets=None, seed=None, *, paste=True):  # type: ignore[no-untyped-def]
            if targets is not None:
                torch.manual_seed(seed)
                pairs = zip(images, targets, strict=True)
                return self.network(images, [self.as_theirs(i, t) for i, t in pairs])
            # Take the 28 x 28 masks before they are pasted, as for ours.
            paster = self.network.transform.postprocess
            sizes = [image.shape[-2:] for image in images]
            self.network.transform.postprocess = lambda found, inner, _: [
                {**f, "inner": size} for f, size in zip(found, inner, strict=True)
            ]
            try:
                found = self.network(images)
            finally:
                self.network.transform.postprocess = paster
            for f, (height, width) in zip(found, sizes, strict=True):
                inner_height, inner_width = f.pop("inner")
                factors = torch.tensor([width / inner_width, height / inner_height] * 2)
                f["boxes"] = f["boxes"] * factors
                f["labels"] = f["labels"] - 1
                f["shares"] = f.pop("masks")[:, 0]
            return found

        @staticmethod
        def as_theirs(image, target):  # type: ignore[no-untyped-def]
            height, width = image.shape[-2:]
            keep = ((target["boxes"][:, 2:] - target["boxes"][:, :2]) > 0).all(1)
            masks = [torch.from_numpy(cut(m, (0, 0, width, height))) for m in target["masks"]]
            stacked = torch.stack(masks) if masks else torch.zeros(0, height, width).byte()
            return {
                "boxes": target["boxes"][keep],
                "labels": target["labels"][keep] + 1,
                "masks": stacked[keep],
            }

    return Other()


if __name__ == "__main__":
    main()
