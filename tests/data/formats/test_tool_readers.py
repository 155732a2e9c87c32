"""Json, texts and tables of tools: shapes, classes, what is left out, and what is refused."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from object_layouts import WRITERS, truth
from PIL import Image
from small_objects import HEIGHT, WIDTH, save
from tool_layouts import kitti, rows, text

from convnext.data.formats.layouts import is_detection, recognize
from convnext.data.masks import cut
from convnext.data.objects import DetectionData, open_dataset
from convnext.tasks import recognize_task


def opened(root: Path) -> DetectionData:
    return open_dataset(str(root), strict=False)


def objects(data: DetectionData) -> dict[str, list[tuple[str, list[float]]]]:
    """Return the class and the box (x, y, width, height) of all objects by image."""
    found: dict[str, list[tuple[str, list[float]]]] = {}
    for images in data.parts.values():
        for record in images.records:
            boxes = np.round(record.objects.boxes, 2)
            boxes[:, 2:] -= boxes[:, :2]
            found[Path(record.file_name).stem] = [
                (data.classes[label], box)
                for label, box in zip(record.objects.labels.tolist(), boxes.tolist(), strict=True)
            ]
    return found


def notes(data: DetectionData) -> str:
    return "\n".join([*data.notes, *(f"{fault.kind}: {fault}" for fault in data.faults)])


def photos(root: Path, *names: str) -> None:
    for name in names:
        save(root / name)


def test_lists_of_wider_face(tmp_path: Path) -> None:
    photos(
        tmp_path,
        *(f"WIDER_{s}/images/0--Parade/{s}_{i}.jpg" for s in ("train", "val") for i in "ab"),
    )
    for split in ("train", "val"):
        lines = (
            f"0--Parade/{split}_a.jpg\n2\n1 2 10 12 0 0 0 0 0 0 \n20 4 8 9 1 0 0 0 0 0 \n"
            f"0--Parade/{split}_b.jpg\n0\n0 0 0 0 0 0 0 0 0 0 \n"
        )
        text(tmp_path / f"wider_face_split/wider_face_{split}_bbx_gt.txt", lines)
    data = opened(tmp_path)
    assert data.classes == ("face",)
    assert (len(data.train), len(data.val)) == (2, 2)
    found = objects(data)
    assert found["val_a"] == [("face", [1, 2, 10, 12]), ("face", [20, 4, 8, 9])]
    assert found["val_b"] == []


def test_texts_of_visdrone(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for i in range(2):
            photos(tmp_path, f"VisDrone-DET-{split}/images/{split}{i}.jpg")
            lines = "1,2,10,12,1,4,0,0\n3,3,5,5,0,0,0,0\n9,9,5,5,1,11,0,1,\n"
            text(tmp_path / f"VisDrone-DET-{split}/annotations/{split}{i}.txt", lines)
    data = opened(tmp_path)
    assert data.classes[3] == "car"
    assert objects(data)["val1"] == [("car", [1, 2, 10, 12])]
    assert "8 regions to ignore and others are left out" in notes(data)


def test_tilted_boxes_of_dota(tmp_path: Path) -> None:
    for i in range(4):
        photos(tmp_path, f"images/{i}.png")
        line = "10 2 20 8 14 18 4 12 small-vehicle 1\n1 1 2 2 3 bad\n"
        text(tmp_path / f"labelTxt/{i}.txt", "imagesource:GoogleEarth\n" + line)
    data = opened(tmp_path)
    assert objects(data)["0"] == [("small-vehicle", [4, 2, 16, 16])]
    assert "4 boxes of four corners are read as the upright boxes" in notes(data)
    assert "is not a line of DOTA; left out" in notes(data)
    assert data.train.records[0].extras[0]["difficult"] == 1


def test_regions_of_kitti_without_labels(tmp_path: Path) -> None:
    kitti(tmp_path, {"training": truth()["train"]})
    photos(tmp_path, "testing/image_2/1.png")
    data = opened(tmp_path)
    assert data.classes == ("cat", "dog")
    assert "2 regions DontCare are left out" in notes(data)
    assert len(data.train) + len(data.val) == 2


def test_shapes_of_label_studio(tmp_path: Path) -> None:
    photos(tmp_path, "images/a.png", "images/b.png", "images/c.png")
    half = {"x": 50, "y": 50, "width": 25, "height": 20}
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    shapes: list[dict[str, Any]] = [
        {"value": {**half, "rotation": 90, "rectanglelabels": ["cat"]}, **size},
        {"value": {"points": [[0, 0], [50, 0], [50, 40]], "polygonlabels": ["dog"]}},
        {"value": {"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "ellipselabels": ["dog"]}},
        {"value": {"format": "rle", "rle": [1], "brushlabels": ["dog"]}},
        {"value": {**half, "rectanglelabels": []}},
        {"value": {"choices": ["indoors"]}, "type": "choices"},
    ]
    tasks: list[dict[str, Any]] = [
        {"id": 1, "data": {"image": "s3://bucket/a.png"}, "annotations": [{"result": shapes}]},
        {
            "id": 2,
            "data": {"image": "/data/upload/3/0a1b2c3d-b.png"},
            "annotations": [{"result": []}, {"result": shapes[1:2]}],
        },
        {"id": 3, "data": {"image": "c.png"}, "annotations": []},
    ]
    text(tmp_path / "export.json", json.dumps(tasks))
    data = opened(tmp_path)
    found = objects(data)
    # 10 x 6 pixels, turned by a right angle around the corner (20, 15).
    assert found["a"][0] == ("cat", [14, 15, 6, 10])
    assert found["a"][1] == ("dog", [0, 0, 20, 12])
    assert found["a"][2][1] == pytest.approx([16, 9, 8, 12], abs=0.05)
    assert [len(found[name]) for name in "abc"] == [3, 1, 0]
    text_of = notes(data)
    for words in (
        "shapes of the kind 'brush'",
        "choices for the whole image",
        "has no class; left out",
        "1 tasks have several annotations, of which the last is read",
        "1 tasks have no annotation",
    ):
        assert words in text_of


def test_a_file_for_each_asset_of_vott(tmp_path: Path) -> None:
    for i in range(3):
        photos(tmp_path, f"{i}.png")
        region = {
            "type": "POLYGON",
            "tags": ["cat", "pet"],
            "boundingBox": {"left": 2, "top": 2, "width": 8, "height": 8},
            "points": [{"x": 2, "y": 2}, {"x": 10, "y": 2}, {"x": 10, "y": 10}],
        }
        regions = [region, {"tags": [], "boundingBox": {}}]
        content = {"asset": {"name": f"{i}.png"}, "regions": regions, "version": "2.2.0"}
        text(tmp_path / f"{i:032x}-asset.json", json.dumps(content))
    data = opened(tmp_path)
    assert data.classes == ("cat", "pet")
    assert objects(data)["0"] == [("cat", [2, 2, 8, 8]), ("pet", [2, 2, 8, 8])]
    assert data.train.objects(0).masks[0] is not None
    assert "needs tags and a boundingBox; left out" in notes(data)


def test_bitmaps_and_holes_of_supervisely(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(stream, "PNG")
    packed = base64.b64encode(zlib.compress(stream.getvalue())).decode()
    hole = {
        "exterior": [[0, 0], [20, 0], [20, 20], [0, 20]],
        "interior": [[[5, 5], [9, 5], [9, 9]]],
    }
    listed: list[dict[str, Any]] = [
        {"classTitle": "a", "geometryType": "bitmap", "bitmap": {"data": packed, "origin": [3, 5]}},
        {"classTitle": "b", "geometryType": "polygon", "points": hole},
        {"classTitle": "b", "geometryType": "point", "points": {"exterior": [[1, 1]]}},
        {"classTitle": "a", "geometryType": "bitmap", "bitmap": {"data": "none"}},
    ]
    for i in range(3):
        photos(tmp_path, f"ds/img/{i}.png")
        content = {"size": {"height": HEIGHT, "width": WIDTH}, "objects": listed}
        text(tmp_path / f"ds/ann/{i}.png.json", json.dumps(content))
    data = opened(tmp_path)
    assert objects(data)["1"] == [("a", [3, 5, 6, 4]), ("b", [0, 0, 20, 20])]
    assert data.train.objects(0).areas.tolist()[0] == 24
    for words in ("holes, which are filled", "bitmap that cannot be read", "kind 'point'"):
        assert words in notes(data)


def _pictures() -> dict[str, Image.Image]:
    """Return one bitmap of 2 x 3 pixels in a picture of 5 x 6, as tools and viewers save it."""
    drawn = np.zeros((6, 5), np.uint8)
    drawn[1:4, 2:4] = 1
    palette = Image.fromarray(drawn)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.info["transparency"] = 0
    white, black = np.full((6, 5, 4), 255, np.uint8), np.zeros((6, 5, 4), np.uint8)
    white[..., 3] = black[..., 3] = 255 * drawn
    opaque = np.dstack([255 * drawn] * 3 + [np.full_like(drawn, 255)])
    return {
        "gray": Image.fromarray(drawn * 255),
        "palette": palette,
        "white on clear white": Image.fromarray(white),
        "black on clear black": Image.fromarray(black),
        "opaque": Image.fromarray(opaque),
    }


@pytest.mark.parametrize("kind", _pictures())
@pytest.mark.parametrize("tool", ["labelme", "supervisely"])
def test_bitmaps_have_the_pixels_that_are_drawn(tmp_path: Path, tool: str, kind: str) -> None:
    stream, picture = io.BytesIO(), _pictures()[kind]
    picture.save(stream, "PNG", **picture.info)
    for name in "ab":
        photos(tmp_path, f"ds/img/{name}.png")
        if tool == "supervisely":
            packed = base64.b64encode(zlib.compress(stream.getvalue())).decode()
            value = {"data": packed, "origin": [7, 8]}
            one = {"classTitle": "a", "geometryType": "bitmap", "bitmap": value}
            size = {"height": HEIGHT, "width": WIDTH}
            text(tmp_path / f"ds/ann/{name}.png.json", json.dumps({"size": size, "objects": [one]}))
        else:
            mask = base64.b64encode(stream.getvalue()).decode()
            points = [[7, 8], [11, 13]]
            shape = {"label": "a", "shape_type": "mask", "points": points, "mask": mask}
            content = {"imagePath": f"{name}.png", "imageWidth": WIDTH, "imageHeight": HEIGHT}
            path = tmp_path / f"ds/img/{name}.json"
            text(path, json.dumps({**content, "shapes": [shape]}))
    found = opened(tmp_path).train.objects(0)
    bitmap = cut(found.masks[0], (0, 0, WIDTH, HEIGHT))
    wanted = np.zeros((HEIGHT, WIDTH), np.uint8)
    wanted[9:12, 9:11] = 1
    assert np.array_equal(bitmap, wanted)
    assert found.areas.tolist() == [6]


LISTS: dict[str, tuple[str, Any]] = {
    "regions of Label Studio": (
        "x.json",
        [
            {"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": 7}]},
            {
                "id": 2,
                "data": {"image": "b.png"},
                "annotations": [{"result": [{"value": {"rectanglelabels": ["cat"]}}]}],
            },
        ],
    ),
    "annotations of Datumaro": (
        "annotations/train.json",
        {
            "categories": {"label": {"labels": [{"name": "cat"}]}},
            "items": [{"id": "a", "annotations": 7}],
        },
    ),
    "labels of BDD100K": (
        "x.json",
        [{"name": "a.png", "labels": 7}, {"name": "b.png", "labels": [{"box2d": 1}]}],
    ),
    "polygons of BDD100K": (
        "x.json",
        [{"name": "a.png", "labels": [{"category": "cat", "poly2d": 7}]}],
    ),
    "objects of an imagefolder": ("images/metadata.jsonl", {"file_name": "a.png", "objects": 7}),
}


@pytest.mark.parametrize("case", LISTS)
def test_values_that_are_not_lists_are_counted(tmp_path: Path, case: str) -> None:
    path, content = LISTS[case]
    photos(tmp_path, "images/a.png", "images/b.png")
    text(tmp_path / path, json.dumps(content))
    data = opened(tmp_path)
    assert not any(objects(data).values())
    assert "has a int where a list belongs; read as an empty one" in notes(data)


def test_classes_of_an_imagefolder_are_numbers_or_names(tmp_path: Path) -> None:
    photos(tmp_path, "a.png", "b.png")
    lines = [
        {"file_name": f"{name}.png", "objects": {"bbox": [[1, 2, 8, 9]], "categories": [label]}}
        for name, label in (("a", 0), ("b", "cat"))
    ]
    text(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="are numbers, such as 0, and others are names"):
        opened(tmp_path)


def test_a_list_of_boxes_with_damaged_numbers(tmp_path: Path) -> None:
    photos(tmp_path, "a.png", "b.png")
    text(tmp_path / "_classes.txt", "cat\n")
    text(tmp_path / "_annotations.txt", "a.png 1,2,9.5,9,0\nb.png 1.2.3,2,9,9,0\n")
    data = opened(tmp_path)
    assert objects(data) == {"a": [("cat", [1, 2, 8.5, 7])]}
    assert "names the image b.png 1.2.3,2,9,9,0, which is not below" in notes(data)


@pytest.mark.parametrize(
    ("table", "boxes"),
    [
        ("width,height,x,y,filename,class\n8,9,2,3,a.png,cat\n", [("cat", [2, 3, 8, 9])]),
        ('filename,class,z,bbox\na.png,cat,,"[2,3,8,9]"\nb.png,cat\n', [("cat", [2, 3, 8, 9])]),
    ],
)
def test_tables_with_columns_in_any_order_and_short_rows(
    tmp_path: Path, table: str, boxes: list[tuple[str, list[float]]]
) -> None:
    photos(tmp_path, "a.png")
    text(tmp_path / "boxes.csv", table)
    assert objects(opened(tmp_path)) == {"a": boxes}


@pytest.mark.parametrize("count", [3, 20_000])
def test_a_table_with_an_open_quotation_mark(tmp_path: Path, count: int) -> None:
    photos(tmp_path, "a.png")
    rows = ["filename,class,x1,y1,x2,y2", 'a.png,"cat,1,2,8,9', *["a.png,cat,1,2,8,9"] * count]
    text(tmp_path / "boxes.csv", "\n".join(rows))
    with pytest.raises(ValueError, match=r"boxes\.csv:\d+: .*quotation mark"):
        opened(tmp_path)


def test_subsets_of_datumaro_with_other_labels(tmp_path: Path) -> None:
    WRITERS["datumaro"](tmp_path, truth())
    path = tmp_path / "annotations/val.json"
    content = json.loads(path.read_text())
    polygon = {"type": "polygon", "label_id": 1, "points": [1, 1, 9, 1, 9, 9]}
    content["items"][0]["annotations"] = [polygon, {"type": "label", "label_id": 0}]
    path.write_text(json.dumps(content))
    data = opened(tmp_path)
    assert objects(data)["val_a"] == [("dog", [1, 1, 8, 8])]
    content["categories"]["label"]["labels"][0]["name"] = "bird"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has other labels than the other subsets"):
        opened(tmp_path)


def test_numbers_of_classes_in_metadata(tmp_path: Path) -> None:
    for i in range(3):
        photos(tmp_path, f"train/{i}.png")
    listed = [{"bbox": [1, 2, 3, 4], "category": 2}, {"bbox": [1, 2, 3], "category": 0}]
    lines = [json.dumps({"file_name": f"{i}.png", "objects": listed}) for i in range(3)]
    text(tmp_path / "train/metadata.jsonl", "\n".join(lines))
    data = opened(tmp_path)
    assert data.classes == ("0", "1", "2")
    assert "the classes are numbers; write their names into classes.txt" in notes(data)
    assert objects(data)["0"] == [("2", [1, 2, 3, 4])]
    text(tmp_path / "classes.txt", "bird\ncat\ndog\n")
    assert opened(tmp_path).classes == ("bird", "cat", "dog")
    text(tmp_path / "classes.txt", "bird\ncat\n")
    with pytest.raises(ValueError, match="has 2 names, but the objects have the class 2"):
        opened(tmp_path)


def test_rows_without_boxes_and_classes(tmp_path: Path) -> None:
    photos(tmp_path, *(f"photos/{i}.png" for i in range(4)))
    values = [(1, 2, 9, 9), ("", "", "", ""), (9, 9, 1, 2), (1, "x", 3, 4)]
    table = [(f"{i}.png", *corners) for i, corners in enumerate(values)]
    rows(tmp_path / "boxes.csv", [("image", "xmin", "ymin", "xmax", "ymax"), *table])
    data = opened(tmp_path)
    assert data.classes == ("object",)
    assert "no column has classes, so all objects are of the class 'object'" in notes(data)
    assert objects(data) == {
        "0": [("object", [1, 2, 8, 7])],
        "1": [],
        "2": [("object", [1, 2, 8, 7])],
    }
    assert "needs a filename, a class and numbers for the box" in notes(data)


def test_images_without_objects_in_tables_without_header(tmp_path: Path) -> None:
    photos(tmp_path, "0.png", "1.png", "2.png")
    rows(
        tmp_path / "a.csv",
        [("0.png", 1, 2, 9, 9, "cat"), ("1.png", *[""] * 5), ("2.png", 1, 2, 9, 9, "dog")],
    )
    assert {name: len(found) for name, found in objects(opened(tmp_path)).items()} == {
        "0": 1,
        "1": 0,
        "2": 1,
    }


@pytest.mark.parametrize(
    "table",
    [
        [("path", "label"), ("0.png", "a"), ("1.png", "b")],
        [("image_id", "x_1", "y_1", "width", "height"), ("0.png", 1, 2, 3, 4)],
        [("id", "x", "y"), ("0.png", 1, 2)],
        [("0.png", 1, 2, 3, "x", "y")],
    ],
)
def test_other_tables_have_no_boxes(tmp_path: Path, table: list[tuple[Any, ...]]) -> None:
    photos(tmp_path, "0.png", "1.png")
    rows(tmp_path / "labels.csv", table)
    assert not is_detection(tmp_path)


def test_a_table_of_boxes_beside_class_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("Audi", "BMW"):
            photos(tmp_path, *(f"{split}/{name}/{name}{i}.png" for i in range(3)))
    rows(tmp_path / "anno_train.csv", [(f"Audi{i}.png", 1, 2, 9, 9, 14) for i in range(3)])
    assert [one.layout for one in recognize(tmp_path)] == ["box-table"]
    assert recognize_task(tmp_path) == "classify"


def test_a_table_of_via_with_an_image_without_regions(tmp_path: Path) -> None:
    photos(tmp_path, "a.png", "b.png")
    header = ("filename", "region_count", "region_shape_attributes", "region_attributes")
    circle = json.dumps({"name": "circle", "cx": 10, "cy": 10, "r": 5})
    table = [header, ("a.png", 1, circle, '{"class": "ball"}'), ("b.png", 0, "{}", "{}")]
    rows(tmp_path / "via.csv", [*table, ("b.png", 1, "{", "{}")])
    found = objects(opened(tmp_path))
    assert found["a"][0][0] == "ball"
    assert found["b"] == []


def test_a_column_of_splits_and_other_signs_between_columns(tmp_path: Path) -> None:
    for i in range(8):
        photos(tmp_path, f"photos/{i}.png")
    splits = ["TRAIN"] * 4 + ["VALIDATION"] * 2 + ["TEST"] * 2
    lines = ["path;set;label;x_min;y_min;x_max;y_max"]
    lines += [f"photos/{i}.png;{split};cat;1;2;9;12" for i, split in enumerate(splits)]
    text(tmp_path / "boxes.csv", "\n".join(lines))
    data = opened(tmp_path)
    assert {name: len(part) for name, part in data.parts.items()} == {
        "train": 4,
        "val": 2,
        "test": 2,
    }
    assert objects(data)["7"] == [("cat", [1, 2, 8, 10])]


def test_tables_of_automl(tmp_path: Path) -> None:
    splits = ("TRAINING", "TRAINING", "TEST", "TEST")
    table = []
    for i, split in enumerate(splits):
        photos(tmp_path, f"photos/{i}.png")
        table.append((split, f"gs://b/photos/{i}.png", "cat", 0.25, 0.5, "", "", 0.5, 0.9, "", ""))
    rows(tmp_path / "export.csv", table)
    data = opened(tmp_path)
    assert data.test is not None
    assert len(data.test) == 2
    assert objects(data)["0"] == [("cat", [10, 15, 10, 12])]
    rows(tmp_path / "export.csv", [("UNASSIGNED", *row[1:]) for row in table])
    assert opened(tmp_path).test is None


def test_objects_beside_class_folders_are_for_two_tasks(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(3):
            photos(tmp_path, f"train/{name}/{name}{i}.png")
            xml = f"<annotation><filename>{name}{i}.png</filename></annotation>"
            text(tmp_path / f"boxes/{name}{i}.xml", xml)
    with pytest.raises(ValueError, match="could be data to classify or to detect; pass --task"):
        recognize_task(tmp_path)


def test_a_refusal_names_the_first_fault(tmp_path: Path) -> None:
    for i in range(2):
        content = {"shapes": [], "imagePath": f"{i}.png", "imageData": "abc", "version": "5"}
        text(tmp_path / f"{i}.json", json.dumps(content))
    with pytest.raises(ValueError, match=r"no image in its train split; \d faults, the first: .*0"):
        open_dataset(str(tmp_path))
    photos(tmp_path / "crowd", "1.png")
    text(tmp_path / "crowd/annotation_train.odgt", "{}")
    with pytest.raises(ValueError, match=r"no annotations of objects .* those of CrowdHuman"):
        open_dataset(str(tmp_path / "crowd"))


def test_a_default_task_that_fits_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("convnext.tasks.classification.recipe.fits_too")
    kitti(tmp_path, {"training": truth()["train"]})
    assert recognize_task(tmp_path) == "detect"


def project(root: Path, regions: list[dict[str, Any]], **parts: Any) -> None:
    """Write a project of VIA 3 with an image a.png and some regions of it."""
    save(root / "a.png")
    content = {
        "project": {"pname": "x", "vid_list": ["1"], "data_format_version": "3.1.1"},
        "attribute": {"1": {"aname": "class", "type": 1, "options": {}}},
        "file": {"1": {"fid": 1, "fname": "a.png", "type": 2, "loc": 1, "src": ""}},
        "metadata": {
            f"1_{i}": {"vid": "1", "flg": 0, "z": [], "av": {"1": "cat"}, **region}
            for i, region in enumerate(regions)
        },
        "view": {"1": {"fid_list": ["1"]}},
        **parts,
    }
    (root / "via.json").write_text(json.dumps(content))


def test_shapes_of_via_3(tmp_path: Path) -> None:
    shapes: list[list[Any]] = [
        [2, 2, 3, 10, 12],
        [3, 20, 15, 6],
        [4, 20, 15, 8, 5],
        [7, 2, 3, 12, 3, 12, 15],
        [8, 22, 9, 27, 3, 32, 8, 26, 14],
        [9, 6, 20, 14, 20, 10, 24],
        [9, 1, 1, 2, 2, 3, 3],
        [1, 5, 5],
        [6, 1, 1, 5, 5, 9, 1],
        [2, 1, 1, "x", 4],
        [],
    ]
    project(tmp_path, [{"xy": xy} for xy in shapes])
    data = opened(tmp_path)
    found = [box for _, box in objects(data)["a"]]
    assert found[0] == [2, 3, 10, 12]
    assert found[1] == pytest.approx([14, 9, 12, 12], abs=0.1)
    assert found[2] == pytest.approx([12, 10, 16, 10], abs=0.1)
    assert found[3] == [2, 3, 10, 12]
    assert found[4] == [22, 3, 10, 11]
    assert found[5] == pytest.approx([6, 16, 8, 8], abs=0.1)
    assert len(found) == 6
    text = notes(data)
    assert "incomplete regions" in text
    for kind in ("point", "polyline", "note on a whole image"):
        assert kind in text


def test_attributes_of_via_3(tmp_path: Path) -> None:
    attribute = {
        "1": {"aname": "class", "type": 2, "options": {"0": "cat", "1": "dog"}},
        "2": {"aname": "note", "type": 1, "options": {}},
    }
    av = [{"1": "1", "2": "far away"}, {"1": "0,1"}, {"1": "0"}, {}]
    regions = [{"xy": [2, 2, 3, 4 + i, 5], "av": values} for i, values in enumerate(av)]
    project(tmp_path, regions, attribute=attribute)
    data = opened(tmp_path)
    assert objects(data)["a"] == [("dog", [2, 3, 4, 5]), ("cat", [2, 3, 6, 5])]
    assert "the class is the region attribute 'class'" in notes(data)
    assert "needs one value of the attribute 'class'" in notes(data)


def test_an_option_of_via_3_that_is_no_text(tmp_path: Path) -> None:
    attribute = {"1": {"aname": "class", "type": 2, "options": {"0": {"en": "cat"}, "1": 7}}}
    regions = [{"xy": [2, 2, 3, 4, 5], "av": {"1": number}} for number in "01"]
    project(tmp_path, regions, attribute=attribute)
    found = [label for label, _ in objects(opened(tmp_path))["a"]]
    assert found == ["{'en': 'cat'}", "7"]


def test_an_option_of_via_3_that_does_not_exist_is_a_fault_and_not_a_class(tmp_path: Path) -> None:
    options = {"0": "cat", "1": "dog"}
    attribute = {
        "1": {"aname": "class", "type": 4, "options": options},
        "2": {"aname": "seen", "type": 2, "options": options},
    }
    av = [{"1": "1"}, {"1": "7"}, {"1": ""}, {"1": "0", "2": "1,9"}]
    project(
        tmp_path,
        [{"xy": [2, 2, 3, 4 + i, 5], "av": v} for i, v in enumerate(av)],
        attribute=attribute,
    )
    data = opened(tmp_path)
    assert objects(data)["a"] == [("dog", [2, 3, 4, 5]), ("cat", [2, 3, 7, 5])]
    listed = [str(fault) for fault in data.faults]
    assert any("1_1 names the option '7' of 'class', which does not" in f for f in listed)
    assert any("1_3 names the option '9' of 'seen'" in f for f in listed)
    assert data.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"aname": "class", "type": 1, "options": {}},
            "attributes 1 and 2 are both called 'class'",
        ),
        (
            {"aname": "kind", "type": 4, "options": ["cat", "dog"]},
            "options of the attribute 'kind' are",
        ),
    ],
)
def test_attributes_of_via_3_that_can_be_read_in_two_ways(tmp_path: Path, second, message) -> None:
    attribute = {"1": {"aname": "class", "type": 1, "options": {}}, "2": second}
    project(tmp_path, [{"xy": [2, 2, 3, 4, 5], "av": {"1": "cat", "2": "0"}}], attribute=attribute)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path)
    # An attribute that no region uses does not matter.
    project(tmp_path, [{"xy": [2, 2, 3, 4, 5], "av": {"1": "cat"}}], attribute=attribute)
    assert objects(opened(tmp_path))["a"] == [("cat", [2, 3, 4, 5])]


@pytest.mark.parametrize(
    ("parts", "region", "message"),
    [
        ({}, {"xy": [], "z": [1.5, 3.0]}, "is a time in a video or a sound, not a region"),
        (
            {"file": {"1": {"fid": 1, "fname": "a.mp4", "type": 4, "loc": 1, "src": ""}}},
            {"xy": [2, 1, 2, 3, 4], "z": [1.5]},
            "a.mp4 is a video or a sound; save the frames as images",
        ),
        ({"view": {"1": {"fid_list": ["1", "2"]}}}, {"xy": [2, 1, 2, 3, 4]}, "shows 2 files at"),
    ],
)
def test_what_via_3_has_beside_images_is_refused(tmp_path: Path, parts, region, message) -> None:
    project(tmp_path, [region], **parts)
    assert is_detection(tmp_path)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path)
