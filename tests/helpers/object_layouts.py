"""The same small data set of objects in every layout that people publish."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_objects import HEIGHT, WIDTH, save, voc_object, voc_xml
from tool_layouts import MORE_WRITERS

Box = tuple[str, int, int, int, int]
"""A class, and x, y, width, height in pixels."""
Truth = dict[str, dict[str, list[Box]]]
"""Boxes by image and split."""
CLASSES = ("cat", "dog")


def truth(splits: tuple[str, ...] = ("train", "val", "test")) -> Truth:
    """Return two images of each split: one with a cat and a dog, one with a dog."""
    found: Truth = {}
    for shift, split in enumerate(splits):
        both: list[Box] = [("cat", 2 + shift, 3, 10, 12), ("dog", 20, 4 + shift, 15, 9)]
        found[split] = {f"{split}_a": both, f"{split}_b": both[1:]}
    return found


def _shares(box: Box) -> str:
    label, x, y, w, h = box
    values = ((x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT)
    return " ".join([str(CLASSES.index(label)), *(f"{value:.6f}" for value in values)])


def _yolo(root: Path, data: Truth, images: str, labels: str) -> None:
    for split, listed in data.items():
        for name, boxes in listed.items():
            save(root / images.format(split) / f"{name}.png")
            path = root / labels.format(split) / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(map(_shares, boxes)))


def yolo(root: Path, data: Truth) -> None:
    _yolo(root, data, "images/{}", "labels/{}")
    (root / "data.yaml").write_text(
        "path: ../somewhere\ntrain: images/train\nval: images/val\ntest: images/test\n"
        "names:\n  0: cat\n  1: dog\n"
    )


def yolo_roboflow(root: Path, data: Truth) -> None:
    _yolo(root, data, "{}/images", "{}/labels")
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../val/images\ntest: ../test/images\nnc: 2\n"
        "names: ['cat', 'dog']\n"
    )


def yolo_beside(root: Path, data: Truth) -> None:
    _yolo(root, data, "{}", "{}")
    (root / "classes.txt").write_text("cat\ndog\n")


def darknet(root: Path, data: Truth) -> None:
    _yolo(root, data, "obj_{}_data", "obj_{}_data")
    (root / "obj.names").write_text("cat\ndog\n")
    lines = ["classes = 2", "names = data/obj.names", "backup = backup/"]
    for split, key in (("train", "train"), ("val", "valid"), ("test", "test")):
        lines.append(f"{key} = data/{split}.txt")
        names = (f"data/obj_{split}_data/{name}.png" for name in data[split])
        (root / f"{split}.txt").write_text("\n".join(names))
    (root / "obj.data").write_text("\n".join(lines))


def _xml(boxes: list[Box]) -> str:
    return voc_xml("".join(voc_object(c, (x + 1, y + 1, x + w, y + h)) for c, x, y, w, h in boxes))


def voc(root: Path, data: Truth) -> None:
    for split, listed in data.items():
        for name, boxes in listed.items():
            save(root / "JPEGImages" / f"{name}.png")
            (root / "Annotations").mkdir(exist_ok=True)
            (root / "Annotations" / f"{name}.xml").write_text(_xml(boxes))
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\r\n".join(listed))


def voc_beside(root: Path, data: Truth) -> None:
    for split, listed in data.items():
        for name, boxes in listed.items():
            save(root / split / f"{name}.png")
            (root / split / f"{name}.xml").write_text(_xml(boxes))


def voc_annots(root: Path, data: Truth) -> None:
    for split, listed in data.items():
        for name, boxes in listed.items():
            save(root / split / "images" / f"{name}.png")
            (root / split / "annots").mkdir(exist_ok=True)
            (root / split / "annots" / f"{name}.xml").write_text(_xml(boxes))


def labelme(root: Path, data: Truth) -> None:
    for split, listed in data.items():
        for name, boxes in listed.items():
            save(root / split / f"{name}.png")
            shapes: list[dict[str, Any]] = []
            for label, x, y, w, h in boxes:
                corners = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
                kind = "rectangle" if label == "cat" else "polygon"
                points = [[x + w, y + h], [x, y]] if label == "cat" else corners
                shapes.append({"label": label, "points": points, "shape_type": kind})
            content = {
                "version": "5.0.1",
                "shapes": shapes,
                "imagePath": f"..\\{name}.png",
                "imageData": None,
                "imageHeight": HEIGHT,
                "imageWidth": WIDTH,
            }
            (root / split / f"{name}.json").write_text(json.dumps(content))


def via(root: Path, data: Truth) -> None:
    for split, listed in data.items():
        entries = {}
        for name, boxes in listed.items():
            save(root / split / f"{name}.png")
            regions = []
            for label, x, y, w, h in boxes:
                shape = {"name": "rect", "x": x, "y": y, "width": w, "height": h}
                if label == "dog":
                    columns, rows = [x, x + w, x + w, x], [y, y, y + h, y + h]
                    shape = {"name": "polygon", "all_points_x": columns, "all_points_y": rows}
                attributes = {"class": label}
                regions.append({"shape_attributes": shape, "region_attributes": attributes})
            entries[f"{name}.png123"] = {
                "filename": f"{name}.png",
                "size": 123,
                "regions": regions,
                "file_attributes": {},
            }
        (root / split / "via_region_data.json").write_text(json.dumps(entries))


def via3(root: Path, data: Truth) -> None:
    """Write a project of VIA 3 for each split."""
    attribute = {
        "aname": "kind",
        "anchor_id": "FILE1_Z0_XY1",
        "type": 4,
        "desc": "",
        "options": {"7": "cat", "8": "dog"},
        "default_option_id": "",
    }
    for split, listed in data.items():
        project: dict[str, Any] = {
            "project": {
                "pid": "__ID__",
                "pname": split,
                "vid_list": [],
                "data_format_version": "3",
            },
            "config": {"file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}}, "ui": {}},
            "attribute": {"1": attribute},
            "file": {},
            "metadata": {},
            "view": {},
        }
        for number, (name, boxes) in enumerate(listed.items(), 1):
            file = f"{name}.png"
            save(root / split / file)
            project["file"][str(number)] = {
                "fid": str(number), "fname": file, "type": 2, "loc": 1, "src": file,
            }  # fmt: skip
            project["view"][str(number)] = {"fid_list": [str(number)]}
            project["project"]["vid_list"].append(str(number))
            for place, (label, x, y, w, h) in enumerate(boxes):
                xy = [2, x, y, w, h]
                if label == "dog":
                    xy = [7, x, y, x + w, y, x + w, y + h, x, y + h]
                project["metadata"][f"{number}_{place}aB"] = {
                    "vid": str(number), "flg": 0, "z": [], "xy": xy,
                    "av": {"1": {"cat": "7", "dog": "8"}[label]},
                }  # fmt: skip
        (root / split / "via_project.json").write_text(json.dumps(project))


def cvat(root: Path, data: Truth) -> None:
    labels = "".join(f"<label><name>{name}</name></label>" for name in CLASSES)
    xml = ["<annotations><version>1.1</version><meta><task><labels>", labels]
    xml.append("</labels></task></meta>")
    for split, listed in data.items():
        for number, (name, boxes) in enumerate(listed.items()):
            save(root / "images" / f"{name}.png")
            xml.append(
                f'<image id="{number}" name="{name}.png" subset="{split.title()}" '
                f'width="{WIDTH}" height="{HEIGHT}">'
            )
            for label, x, y, w, h in boxes:
                if label == "cat":
                    xml.append(
                        f'<box label="cat" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}"></box>'
                    )
                else:
                    xml.append(
                        f'<mask label="dog" rle="0, {w * h}" left="{x}" top="{y}" '
                        f'width="{w}" height="{h}"></mask>'
                    )
            xml.append('<tag label="outdoors"></tag></image>')
    (root / "annotations.xml").write_text("\n".join([*xml, "</annotations>"]))


def createml(root: Path, data: Truth) -> None:
    for split, listed in data.items():
        entries = []
        for name, boxes in listed.items():
            save(root / split / f"{name}.png")
            objects = [
                {
                    "label": label,
                    "coordinates": {"x": x + w / 2, "y": y + h / 2, "width": w, "height": h},
                }
                for label, x, y, w, h in boxes
            ]
            entries.append({"image": f"{name}.png", "annotations": objects})
        (root / split / "_annotations.createml.json").write_text(json.dumps(entries))


def keras(root: Path, data: Truth) -> None:
    for split, listed in data.items():
        lines = []
        for name, boxes in listed.items():
            save(root / split / f"{name}.png")
            texts = [
                f"{x},{y},{x + w},{y + h},{CLASSES.index(label)}" for label, x, y, w, h in boxes
            ]
            lines.append(" ".join([f"{name}.png", *texts]))
        (root / split / "_annotations.txt").write_text("\n".join(lines))
        (root / split / "_classes.txt").write_text("cat\ndog")


def table(root: Path, data: Truth) -> None:
    for split, listed in data.items():
        lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
        for name, boxes in listed.items():
            save(root / split / f"{name}.png")
            lines += [
                f"{name}.png,{WIDTH},{HEIGHT},{label},{x},{y},{x + w},{y + h}"
                for label, x, y, w, h in boxes
            ]
        (root / split / "_annotations.csv").write_text("\n".join(lines))


def coco(root: Path, data: Truth, name: str = "annotations/instances_{}.json") -> None:
    categories = [{"id": i, "name": label} for i, label in enumerate(CLASSES, 1)]
    for split, listed in data.items():
        images, objects = [], []
        for key, (stem, boxes) in enumerate(listed.items(), 1):
            save(root / split / f"{stem}.png")
            images.append({"id": key, "file_name": f"{stem}.png", "width": WIDTH, "height": HEIGHT})
            for label, x, y, w, h in boxes:
                objects.append(
                    {
                        "id": len(objects) + 1,
                        "image_id": key,
                        "category_id": CLASSES.index(label) + 1,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
        path = root / name.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"images": images, "annotations": objects, "categories": categories})
        )


def coco_roboflow(root: Path, data: Truth) -> None:
    coco(root, data, "{}/_annotations.coco.json")


WRITERS: dict[str, Callable[[Path, Truth], None]] = {
    "coco": coco,
    "coco of roboflow": coco_roboflow,
    "createml": createml,
    "cvat": cvat,
    "darknet": darknet,
    "keras": keras,
    "labelme": labelme,
    "table": table,
    "via": via,
    "via 3": via3,
    "voc": voc,
    "voc annots": voc_annots,
    "voc beside": voc_beside,
    "yolo": yolo,
    "yolo beside": yolo_beside,
    "yolo of roboflow": yolo_roboflow,
    **MORE_WRITERS,
}
