"""Train a detector on a COCO json, then count and measure the objects in a photo.

docs/detection.md does the same with three commands.

Run: python examples/06_count_objects.py path/to/cells path/to/slide.jpg
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from convnext.data.masks import area_of
from convnext.recipes.recipe import Recipe, change_recipe
from convnext.reports.report import write_report
from convnext.tasks.detection.predict import predict
from convnext.training.run import train


def main(data: str, photo: str) -> None:
    """Train with the settings of `auto`, then count the objects in the photo."""
    recipe = change_recipe(Recipe(), {"task": "detect", "data": data})
    run = train(recipe, output=Path("runs") / "objects", write_report=write_report)
    print(f"box AP50 {run.best['box_ap50']:.1f} percent")
    result = predict(str(run.folder), [photo], output="objects")
    found = result.predictions[0].found
    counts = Counter(result.classes[label] for label in found.labels)
    for name, count in counts.most_common():
        print(f"{name:>20}  {count:,}")
    areas = [area_of(mask, found.size) for mask in found.masks]
    print(f"mean area {sum(areas) / max(len(areas), 1):,.0f} pixels")


if __name__ == "__main__":
    main(*sys.argv[1:])
