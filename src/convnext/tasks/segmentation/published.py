"""Classes and preprocessing of published segmentors, whose files hold only tensors: ADE20K.

The reference recipes (`recipes/ade20k_*.yaml`) train at 512 pixels, or at 640 for larger networks.
The tensors do not show the size, but the file's name does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from convnext.tasks.segmentation.heads import UPerNetConfig
from convnext.tasks.segmentation.model import TABLES as OF_UPERNET
from convnext.tasks.segmentation.model import build as build
from convnext.tasks.segmentation.scores import default_stride
from convnext.weights.checkpoint import Card
from convnext.weights.published import dense_preprocessing

TABLES = (OF_UPERNET,)

# In the order of the indices, each by its first name in ADE20K's list.
ADE20K = tuple(
    """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
    person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf,
    house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub,
    railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, sink,
    skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
    screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill,
    bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar,
    arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
    television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman,
    bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
    swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food,
    step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket,
    sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
    monitor, bulletin board, shower, radiator, glass, clock, flag
    """.replace("\n    ", " ")
    .strip()
    .split(", ")
)


def published_card(source: str, name: str, changes: Mapping[str, Any]) -> Card:
    """Return a card for a file without one, from its source and tensor shapes.

    The classes are ADE20K's if there are 150 of them, otherwise numbers.
    """
    changes = asdict(UPerNetConfig()) | dict(changes)
    count = int(changes["num_classes"])
    side = published_side(source)
    return Card(
        task="segment",
        model=name,
        changes=changes,
        classes=ADE20K if count == len(ADE20K) else tuple(map(str, range(count))),
        preprocessing=dense_preprocessing(side, 4 * side, int(changes.get("in_chans", 3))),
        recipe=published_recipe(source),
    )


def published_recipe(source: str) -> dict[str, Any]:
    """Return the inference settings of published segmentors: windows of the crop's size."""
    side = published_side(source)
    return {"segment": {"mode": "slide", "window": side, "stride": default_stride(side)}}


def published_side(source: str) -> int:
    """Return the side of images and crops, from the name of a file or hub id.

    >>> published_side("upernet_convnext_base_22k_640x640.pth")
    640
    """
    return 640 if re.search(r"640|large", Path(source).name) else 512
