"""Train a detector on a COCO json, then count and measure the objects in a photo.

docs/detection.md does the same with three commands.

Run: python examples/06_count_objects.py path/to/cells path/to/slide.jpg
"""

from __future__ import annotations

import sys

import convnext


def main(data: str, photo: str) -> None:
    """Train with the settings of `auto`, then count the objects in the photo."""
    run = convnext.train(task="detect", data=data)
    print(f"box AP50 {run.best['box_ap50']:.1f} percent")
    result = convnext.load(run.folder).predict(photo)[0]
    result.save("objects")
    for name, count in result.counts.items():
        print(f"{name:>20}  {count:,}")
    masks = result.masks
    if masks is not None and len(masks):
        print(f"mean area {masks.sum() / len(masks):,.0f} pixels")


if __name__ == "__main__":
    main(*sys.argv[1:])
