"""Detectors: their parts, and the classes and preprocessing of published ones.

Published files hold only tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from convnext.tasks.detection.model.detector import BY_PREFIX
from convnext.tasks.detection.model.detector import build as build
from convnext.tasks.detection.model.heads import DetectorConfig
from convnext.weights.checkpoint import Card
from convnext.weights.published import dense_preprocessing

TABLES = tuple(BY_PREFIX.values())

# The ids of COCO's 80 categories; the others are unused.
COCO_IDS = tuple(i for i in range(1, 91) if i not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})

# In the order of the ids.
COCO = tuple(
    """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
    fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant,
    bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard,
    sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle,
    wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
    hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock,
    vase, scissors, teddy bear, hair drier, toothbrush
    """.replace("\n    ", " ")
    .strip()
    .split(", ")
)


def published_card(source: str, name: str, changes: Mapping[str, Any]) -> Card:
    """Return a card for a file without one, for the network that its tensor shapes imply.

    The classes are COCO's if there are 80, else numbers. Images are resized to a short side of 800
    pixels and a long side of at most 1333 (paper, appendix A.3).
    """
    changes = asdict(DetectorConfig()) | dict(changes)
    count = int(changes["num_classes"])
    is_coco = count == len(COCO)
    return Card(
        task="detect",
        model=name,
        changes=changes,
        classes=COCO if is_coco else tuple(map(str, range(count))),
        category_ids=COCO_IDS if is_coco else (),
        preprocessing=dense_preprocessing(800, 1333, int(changes.get("in_chans", 3))),
    )
