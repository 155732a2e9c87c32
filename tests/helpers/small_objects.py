"""Tiny detection data sets in the layouts of COCO, Pascal VOC and YOLO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RING = [2, 2, 10, 2, 10, 10, 2, 10]
WIDTH, HEIGHT = 40, 30


def save(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), seed: int = 0) -> Path:
    """Write an image of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def image(key: Any, name: Any, **changes: Any) -> dict[str, Any]:
    return {"id": key, "file_name": name, "width": WIDTH, "height": HEIGHT, **changes}


def annotation(key: Any, image_id: Any, **changes: Any) -> dict[str, Any]:
    found = {"id": key, "image_id": image_id, "category_id": 7, "bbox": [2, 2, 8, 8], "area": 64}
    return {**found, "iscrowd": 0, "segmentation": [RING], **changes}


def write_coco(path: Path, images: list[Any], annotations: list[Any]) -> Path:
    """Write a COCO JSON with the categories cat (7) and dog (9)."""
    categories = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def small_coco(root: Path, num_train: int = 4, num_val: int = 2) -> Path:
    """Write a data set without faults: a cat with a mask and a dog without one on every image."""
    number = 0
    for split, count in (("train", num_train), ("val", num_val)):
        images, annotations = [], []
        for i in range(count):
            number += 1
            name = f"{split}{i}.png"
            save(root / "images" / name, seed=number)
            images.append(image(number, name))
            annotations.append(annotation(2 * number, number))
            annotations.append(
                annotation(
                    2 * number + 1,
                    number,
                    category_id=9,
                    bbox=[12, 5, 20, 10],
                    area=200,
                    segmentation=[],
                )
            )
        write_coco(root / f"instances_{split}.json", images, annotations)
    return root


def voc_xml(objects: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>\n{size}\n{objects}\n</annotation>\n"


def voc_object(name: str, box: tuple[float, ...], difficult: int = 0) -> str:
    """Return an element with a box xmin ymin xmax ymax in VOC's convention: from 1, inclusive."""
    edges = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inside = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>\n"
        f"<bndbox>{inside}</bndbox></object>"
    )


def small_voc(root: Path, xml: dict[str, str]) -> Path:
    """Write a VOC folder; the last image by name is for validation."""
    (root / "Annotations").mkdir(parents=True)
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for seed, (name, text) in enumerate(xml.items()):
        save(root / "JPEGImages" / f"{name}.png", seed=seed)
        (root / "Annotations" / f"{name}.xml").write_text(text)
    *train, val = xml
    (lists / "train.txt").write_text("\n".join(train) + "\n")
    (lists / "val.txt").write_text(f"{val}\n")
    return root


def small_yolo(root: Path, labels: dict[str, str], names: str = "cat\ndog\n") -> Path:
    """Write a YOLO folder from texts by "train/name"."""
    for seed, (name, text) in enumerate(labels.items()):
        save(root / "images" / f"{name}.png", seed=seed)
        path = root / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "classes.txt").write_text(names)
    return root


COLORS = {7: (220, 40, 40), 9: (40, 40, 220)}


def coco_squares(root: Path, num_train: int = 12, num_val: int = 4, size: int = 64) -> Path:
    """Write images of red cats and blue dogs: squares with masks, as polygons and run lengths."""
    number = 0
    for split, count in (("train", num_train), ("val", num_val)):
        images, annotations = [], []
        for i in range(count):
            rng = np.random.default_rng(1000 * num_train * (split == "val") + i)
            pixels = rng.integers(90, 130, (size, size, 3), dtype=np.uint8)
            name = f"{split}{i}.png"
            for corner in ((4, 4), (4, 36), (36, 4)):
                side = int(rng.integers(14, 25))
                x, y = corner[0] + int(rng.integers(0, 4)), corner[1] + int(rng.integers(0, 4))
                category = int(rng.choice([7, 9]))
                pixels[y : y + side, x : x + side] = COLORS[category]
                number += 1
                ring = [x, y, x + side, y, x + side, y + side, x, y + side]
                annotations.append(
                    annotation(
                        number,
                        i + 1,
                        category_id=category,
                        bbox=[x, y, side, side],
                        area=side * side,
                        segmentation=[ring] if number % 2 else square_runs(x, y, side, size),
                    )
                )
            (root / "images").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / "images" / name)
            images.append(image(i + 1, name, width=size, height=size))
        write_coco(root / f"instances_{split}.json", images, annotations)
    return root


def square_runs(x: int, y: int, side: int, size: int) -> dict[str, Any]:
    """Return the run lengths of a square on an image of `size` x `size`."""
    mask = np.zeros((size, size), np.uint8)
    mask[y : y + side, x : x + side] = 1
    flat = np.concatenate(([0], mask.T.ravel(), [0]))
    edges = np.flatnonzero(np.diff(flat))
    return {"size": [size, size], "counts": np.diff(edges, prepend=0, append=size * size).tolist()}
