"""The data set of `object_layouts` as tables, texts and json of more tools."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_objects import HEIGHT, WIDTH, save

Box = tuple[str, int, int, int, int]
Truth = dict[str, dict[str, list[Box]]]
CLASSES = ("cat", "dog")
CODES = {"cat": "/m/01yrx", "dog": "/m/0bt9lr"}


def rows(path: Path, values: list[tuple[Any, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(values)


def text(path: Path, value: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value)


def _table(
    root: Path, data: Truth, name: str, header: tuple[str, ...], row: Callable[..., tuple[Any, ...]]
) -> None:
    for split, listed in data.items():
        values: list[tuple[Any, ...]] = [header] if header else []
        for image, boxes in listed.items():
            save(root / split / f"{image}.png")
            values += [row(f"{image}.png", *box) for box in boxes]
        rows(root / name.format(split), values)


def retinanet(root: Path, data: Truth) -> None:
    def row(name: str, label: str, x: int, y: int, w: int, h: int) -> tuple[Any, ...]:
        return name, x, y, x + w, y + h, label

    _table(root, data, "{}/_annotations.csv", (), row)


def vott_table(root: Path, data: Truth) -> None:
    def row(name: str, label: str, x: int, y: int, w: int, h: int) -> tuple[Any, ...]:
        return name, x, y, x + w, y + h, label

    _table(
        root, data, "{}/pets-export.csv", ("image", "xmin", "ymin", "xmax", "ymax", "label"), row
    )


def makesense(root: Path, data: Truth) -> None:
    def row(name: str, label: str, x: int, y: int, w: int, h: int) -> tuple[Any, ...]:
        return label, x, y, w, h, name, WIDTH, HEIGHT

    _table(root, data, "labels_{}.csv", (), row)


def lists_in_cells(root: Path, data: Truth) -> None:
    def row(name: str, label: str, x: int, y: int, w: int, h: int) -> tuple[Any, ...]:
        return Path(name).stem, WIDTH, HEIGHT, f"[{x}.0, {y}, {w}, {h}]", label

    _table(root, data, "{}.csv", ("image_id", "width", "height", "bbox", "class"), row)


def open_images(root: Path, data: Truth) -> None:
    header = ("ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax")

    def row(name: str, label: str, x: int, y: int, w: int, h: int) -> tuple[Any, ...]:
        shares = (x / WIDTH, (x + w) / WIDTH, y / HEIGHT, (y + h) / HEIGHT)
        return Path(name).stem, "xclick", CODES[label], 1, *(f"{v:.6f}" for v in shares)

    _table(root, data, "sub-{}-annotations-bbox.csv", header, row)
    rows(root / "class-descriptions-boxable.csv", [(code, name) for name, code in CODES.items()])


def via_table(root: Path, data: Truth) -> None:
    header = ("#filename", "file_size", "file_attributes", "region_count", "region_id")

    def row(name: str, label: str, x: int, y: int, w: int, h: int) -> tuple[Any, ...]:
        shape = json.dumps({"name": "rect", "x": x, "y": y, "width": w, "height": h})
        return name, 9, "{}", 1, 0, shape, json.dumps({"class": label})

    columns = (*header, "region_shape_attributes", "region_attributes")
    _table(root, data, "{}/via_export_csv.csv", columns, row)


def kitti(root: Path, data: Truth) -> None:
    for split, listed in data.items():
        for name, boxes in listed.items():
            save(root / split / "image_2" / f"{name}.png")
            lines = [
                f"{label} 0.00 0 -1.57 {x}.00 {y}.00 {x + w}.00 {y + h}.00 1 1 3 2 1 9 -1.6"
                for label, x, y, w, h in boxes
            ]
            lines.append("DontCare -1 -1 -10 1.00 1.00 9.00 9.00 -1 -1 -1 -1000 -1000 -1000 -10")
            text(root / split / "label_2" / f"{name}.txt", "\n".join(lines))


def dota(root: Path, data: Truth) -> None:
    for split, listed in data.items():
        for name, boxes in listed.items():
            save(root / split / "images" / f"{name}.png")
            lines = ["imagesource:GoogleEarth", "gsd:0.1"]
            for label, x, y, w, h in boxes:
                corners = (x, y, x + w, y, x + w, y + h, x, y + h)
                lines.append(" ".join(f"{v}.0" for v in corners) + f" {label} 0")
            text(root / split / "labelTxt" / f"{name}.txt", "\n".join(lines))


def labelme_xml(root: Path, data: Truth) -> None:
    for split, listed in data.items():
        for name, boxes in listed.items():
            save(root / split / f"{name}.png")
            xml = [f"<annotation><filename>{name}.png</filename><folder></folder>"]
            for number, (label, x, y, w, h) in enumerate([*boxes, ("mouse", 1, 1, 5, 5)]):
                corners = ((x, y), (x + w, y), (x + w, y + h), (x, y + h))
                points = "".join(f"<pt><x>{a}</x><y>{b}</y></pt>" for a, b in corners)
                xml.append(
                    f"<object><name>{label}</name><deleted>{int(label == 'mouse')}</deleted>"
                    f"<id>{number}</id><polygon>{points}</polygon></object>"
                )
            text(root / split / f"{name}.xml", "".join([*xml, "</annotation>"]))


def _json(
    root: Path, data: Truth, name: str, entry: Callable[[str, list[Box]], Any], folder: str = "{}"
) -> None:
    for split, listed in data.items():
        entries = []
        for image, boxes in listed.items():
            save(root / folder.format(split) / f"{image}.png")
            entries.append(entry(f"{image}.png", boxes))
        text(root / name.format(split), json.dumps(entries))


def _percent(box: Box) -> dict[str, Any]:
    label, x, y, w, h = box
    return {
        "x": 100 * x / WIDTH,
        "y": 100 * y / HEIGHT,
        "width": 100 * w / WIDTH,
        "height": 100 * h / HEIGHT,
        "rotation": 0,
        "rectanglelabels": [label],
    }


def label_studio(root: Path, data: Truth) -> None:
    def entry(name: str, boxes: list[Box]) -> dict[str, Any]:
        size = {"original_width": WIDTH, "original_height": HEIGHT}
        results = [
            {"type": "rectanglelabels", "from_name": "label", **size, "value": _percent(box)}
            for box in boxes
        ]
        cancelled: dict[str, Any] = {"result": [], "was_cancelled": True}
        return {
            "id": 1,
            "data": {"image": f"/data/upload/1/0a1b2c3d-{name}"},
            "annotations": [{"result": results, "was_cancelled": False}, cancelled],
        }

    _json(root, data, "{}/project.json", entry)


def label_studio_min(root: Path, data: Truth) -> None:
    def entry(name: str, boxes: list[Box]) -> dict[str, Any]:
        regions = [{"original_width": WIDTH, **_percent(box)} for box in boxes]
        return {"image": f"/data/local-files/?d=photos%2F{name}", "id": 1, "label": regions}

    _json(root, data, "{}/project.json", entry)


def vott(root: Path, data: Truth) -> None:
    for split, listed in data.items():
        assets = {}
        for name, boxes in listed.items():
            save(root / split / f"{name}.png")
            regions = [
                {
                    "type": "RECTANGLE",
                    "tags": [label],
                    "boundingBox": {"left": x, "top": y, "width": w, "height": h},
                    "points": [{"x": x, "y": y}],
                }
                for label, x, y, w, h in boxes
            ]
            assets[name] = {"asset": {"name": f"{name}.png", "path": "C:/x"}, "regions": regions}
        text(root / split / "pets-export.json", json.dumps({"name": "pets", "assets": assets}))


def supervisely(root: Path, data: Truth) -> None:
    for split, listed in data.items():
        for name, boxes in listed.items():
            save(root / split / "img" / f"{name}.png")
            objects = [
                {
                    "classTitle": label,
                    "geometryType": "rectangle",
                    "points": {"exterior": [[x, y], [x + w, y + h]], "interior": []},
                }
                for label, x, y, w, h in boxes
            ]
            size = {"width": WIDTH, "height": HEIGHT}
            content = {"description": "", "tags": [], "size": size, "objects": objects}
            text(root / split / "ann" / f"{name}.png.json", json.dumps(content))
    text(root / "meta.json", json.dumps({"classes": [{"title": name} for name in CLASSES]}))


def datumaro(root: Path, data: Truth) -> None:
    for split, listed in data.items():
        items = []
        for name, boxes in listed.items():
            save(root / "images" / split / f"{name}.png")
            annotations = [
                {"type": "bbox", "label_id": CLASSES.index(label), "bbox": [x, y, w, h]}
                for label, x, y, w, h in boxes
            ]
            image = {"path": f"{name}.png", "size": [HEIGHT, WIDTH]}
            items.append({"id": name, "annotations": annotations, "image": image})
        labels = {"labels": [{"name": name, "parent": ""} for name in CLASSES]}
        content = {"info": {}, "categories": {"label": labels}, "items": items}
        text(root / "annotations" / f"{split}.json", json.dumps(content))


def bdd100k(root: Path, data: Truth) -> None:
    def entry(name: str, boxes: list[Box]) -> dict[str, Any]:
        labels: list[dict[str, Any]] = [
            {"category": label, "box2d": {"x1": x, "y1": y, "x2": x + w, "y2": y + h}}
            for label, x, y, w, h in boxes
        ]
        lane = {"closed": False, "vertices": [[1, 1], [9, 9], [5, 9]]}
        return {"name": name, "labels": [*labels, {"category": "lane", "poly2d": [lane]}]}

    _json(root, data, "labels/bdd100k_labels_images_{}.json", entry, "images/100k/{}")


def imagefolder(root: Path, data: Truth) -> None:
    for split, listed in data.items():
        lines = []
        for name, boxes in listed.items():
            save(root / split / f"{name}.png")
            objects = {
                "bbox": [list(box[1:]) for box in boxes],
                "categories": [b[0] for b in boxes],
            }
            lines.append(json.dumps({"file_name": f"{name}.png", "objects": objects}))
        text(root / split / "metadata.jsonl", "\n".join(lines) + "\n")


MORE_WRITERS: dict[str, Callable[[Path, Truth], None]] = {
    "bdd100k": bdd100k,
    "datumaro": datumaro,
    "dota": dota,
    "imagefolder": imagefolder,
    "kitti": kitti,
    "label studio": label_studio,
    "label studio min": label_studio_min,
    "labelme xml": labelme_xml,
    "lists in cells": lists_in_cells,
    "makesense": makesense,
    "open images": open_images,
    "retinanet": retinanet,
    "supervisely": supervisely,
    "via table": via_table,
    "vott": vott,
    "vott table": vott_table,
}
