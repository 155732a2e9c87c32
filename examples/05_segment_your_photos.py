"""Train a segmentor on a folder of photos and masks, and print the area of every class in a photo.

docs/segmentation.md does the same with three commands.

Run: python examples/05_segment_your_photos.py path/to/streets path/to/photo.jpg
"""

from __future__ import annotations

import sys

import convnext


def main(data: str, photo: str) -> None:
    """Train with the settings of `auto`, then save an overlay of the photo."""
    run = convnext.train(task="segment", data=data)
    print(f"mIoU {run.best['miou']:.1f} percent")
    result = convnext.load(run.folder).predict(photo)[0]
    result.save("overlays")
    for area in result.areas:
        print(f"{area.name:>20}  {100 * area.share:5.1f} percent")


if __name__ == "__main__":
    main(*sys.argv[1:])
