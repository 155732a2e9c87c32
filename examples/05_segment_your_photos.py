"""Train a segmentor on a folder of photos and masks, and print the area of every class in a photo.

docs/segmentation.md does the same with three commands.

Run: python examples/05_segment_your_photos.py path/to/streets path/to/photo.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

from convnext.recipes.recipe import Recipe, change_recipe
from convnext.reports.report import write_report
from convnext.tasks.segmentation.predict import predict
from convnext.training.run import train


def main(data: str, photo: str) -> None:
    """Train with the settings of `auto`, then write a mask and an overlay of the photo."""
    recipe = change_recipe(Recipe(), {"task": "segment", "data": data})
    run = train(recipe, output=Path("runs") / "streets", write_report=write_report)
    print(f"mIoU {run.best['miou']:.1f} percent")
    result = predict(str(run.folder), [photo], output="overlays")
    for area in result.predictions[0].areas:
        print(f"{area.name:>20}  {area.percent:5.1f} percent")


if __name__ == "__main__":
    main(*sys.argv[1:])
