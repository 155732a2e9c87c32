"""Annotations with several readings: the one that is meant is taken and said, or all are named."""

from __future__ import annotations

import base64
import json
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from object_layouts import Box, Truth, coco, labelme, truth, voc_beside, yolo_roboflow
from PIL import Image
from rich.console import Console
from small_objects import HEIGHT, WIDTH, save

from convnext.data.formats.coco_tidy import tidy_ids
from convnext.data.formats.coco_values import Changes, _form_of
from convnext.data.formats.instances import _ids, _objects_of
from convnext.data.formats.records import ReadOptions
from convnext.data.masks import area_of, cut, is_flat
from convnext.data.objects import DetectionData, open_dataset
from convnext.tasks.detection.inspect import inspect as inspect_objects
from convnext.tasks.detection.inspect import inspect_with_sheet
from convnext.tasks.segmentation.data import open_dataset as open_pairs

BOTH = ("train", "val")


def one(boxes: list[Box] | None = None) -> Truth:
    data = truth(BOTH)
    return (
        data if boxes is None else {s: dict.fromkeys(listed, boxes) for s, listed in data.items()}
    )


def kinds(data: DetectionData) -> set[str]:
    return {fault.kind for fault in data.faults}


# ---- YOLO ---------------------------------------------------------------------------------------


def lines(root: Path, text: str, config: str = "names: [cat, dog]\n") -> str:
    yolo_roboflow(root, one())
    for path in root.rglob("labels/*.txt"):
        path.write_text(text)
    (root / "data.yaml").write_text(config)
    return str(root)


def test_oriented_boxes_become_upright(tmp_path: Path) -> None:
    turned = "0 0.5 0.2 0.7 0.5 0.5 0.8 0.3 0.5\n1 0.1 0.1 0.3 0.1 0.3 0.2 0.1 0.2\n"
    data = open_dataset(lines(tmp_path, turned))
    objects = data.train.objects(0)
    assert objects.boxes[0].tolist() == [12, 6, 28, 24]
    assert objects.masks == (None, None)
    assert any("8 objects are oriented boxes" in note for note in data.notes)


def test_keypoints_are_left_out_if_the_data_says_so(tmp_path: Path) -> None:
    pose = "0 0.5 0.5 0.4 0.4 0.4 0.4 2 0.6 0.6 1\n"
    path = lines(tmp_path, pose)
    with pytest.raises(ValueError, match=r"2 keypoints or polygons: add `kpt_shape: \[2, 3\]`"):
        open_dataset(path)
    (tmp_path / "data.yaml").write_text("kpt_shape: [2, 3]\nnames: [cat, dog]\n")
    data = open_dataset(path)
    assert data.train.objects(0).boxes.round(3).tolist() == [[12, 9, 28, 21]]
    assert any("4 objects have keypoints" in note for note in data.notes)


@pytest.mark.parametrize(
    ("config", "number"), [("names: {1: cat, 2: dog}\n", 0), ("names: [cat, dog]\n", 2)]
)
def test_numbers_that_count_from_elsewhere_are_refused(
    tmp_path: Path, config: str, number: int
) -> None:
    path = lines(tmp_path, f"1 0.5 0.5 0.4 0.4\n{number} 0.5 0.5 0.2 0.2\n", config)
    with pytest.raises(ValueError, match=r"numbers the .*classes from"):
        open_dataset(path)


def test_an_image_without_objects_takes_no_labels_of_another_split(tmp_path: Path) -> None:
    data = {split: {"0": boxes["train_a"]} for split, boxes in (("train", truth()["train"]),)}
    yolo_roboflow(tmp_path, {**data, "val": {"1": truth()["train"]["train_a"]}, "test": {}})
    save(tmp_path / "val" / "images" / "0.png")
    found = open_dataset(str(tmp_path))
    assert [(r.file_name, len(r.objects)) for r in found.val.records] == [
        ("val/images/0.png", 0),
        ("val/images/1.png", 2),
    ]


def test_the_same_images_twice_are_split(tmp_path: Path) -> None:
    path = lines(tmp_path, "0 0.5 0.5 0.4 0.4\n")
    config = "train: ../train/images\nval: ../train/images\nnames: [cat, dog]\n"
    (tmp_path / "data.yaml").write_text(config)
    data = open_dataset(path)
    assert not set(data.train.names) & set(data.val.names)
    assert any("gives the same images" in note for note in data.notes)


# ---- COCO ---------------------------------------------------------------------------------------


def change(root: Path, edit: Any) -> str:
    for split in BOTH:
        path = root / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        for number, value in enumerate(content["annotations"]):
            edit(value, number)
        path.write_text(json.dumps(content))
    return str(root)


def boxes_of(data: DetectionData) -> list[list[float]]:
    return [box for r in data.train.records for box in r.objects.boxes.round(2).tolist()]


def corner(value: dict[str, Any], _: int) -> None:
    x, y, w, h = value["bbox"]
    value["bbox"] = [x, y, x + w, y + h]


def shares(value: dict[str, Any], _: int) -> None:
    x, y, w, h = value["bbox"]
    value["bbox"] = [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]


def centers(value: dict[str, Any], _: int) -> None:
    x, y, w, h = value["bbox"]
    value["bbox"] = [x + w / 2, y + h / 2, w, h]


@pytest.mark.parametrize("edit", [corner, shares, centers])
def test_masks_tell_what_boxes_are(tmp_path: Path, edit: Any) -> None:
    coco(tmp_path, one())
    wanted = boxes_of(open_dataset(str(tmp_path)))
    data = open_dataset(change(tmp_path, edit))
    assert boxes_of(data) == wanted
    assert any(kind.startswith("boxes") for kind in kinds(data))


def test_boxes_that_could_be_either_are_refused(tmp_path: Path) -> None:
    coco(tmp_path, one([("cat", 14, 10, 10, 8)]))

    def edit(value: dict[str, Any], number: int) -> None:
        shares(value, number)
        del value["segmentation"], value["area"]

    path = change(tmp_path, edit)
    with pytest.raises(ValueError, match=r"corner and size .* or as center and size .* --boxes"):
        open_dataset(path)
    for form, left in (("xywh", 14), ("cxcywh", 9)):
        data = open_dataset(path, options=ReadOptions(boxes=form))  # type: ignore[arg-type]
        assert boxes_of(data)[0][0] == left


def test_areas_tell_what_boxes_are_where_both_readings_fit(tmp_path: Path) -> None:
    corners = [[10.0 + k, 10.0 + k, 20.0 + k, 20.0 + k] for k in range(12)]
    boxes = np.array(corners)
    sides = np.full((12, 2), (100.0, 80.0))
    values = [{"bbox": box, "area": 100.0} for box in corners]
    assert _form_of(values, boxes, sides, Changes(), are_shares=False) == "xyxy"
    values = [{"bbox": box, "area": box[2] * box[3]} for box in corners]
    assert _form_of(values, boxes, sides, Changes(), are_shares=False) == "xywh"


def test_ids_of_any_kind_beside_words_are_no_traceback() -> None:
    content = {"images": [{"id": [1]}, {"id": "w"}], "annotations": [], "categories": []}
    tidy_ids(content, Changes())
    assert content["images"][1]["id"] == 1


@pytest.mark.parametrize(
    ("ring", "flat"),
    [
        ([10.1, 20.3, 30.7, 40.9, 51.3, 61.5], True),
        ([v for k in range(7) for v in (k / 3, k / 7)], True),
        ([5.0, 5.0, 5.0, 5.0, 5.0, 5.0], True),
        ([0.0, 0.0, 9.0, 0.0, 4.0, 0.01], False),
        ([0.0, 0.0, 4.0, 4.0, 4.0, 0.0, 0.0, 4.0], False),  # Crosses itself.
        ([0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 2.0, 0.0], False),
    ],
)
def test_polygons_on_a_line_enclose_nothing(ring: list[float], flat: bool) -> None:
    assert is_flat(ring) == flat


def test_a_polygon_on_a_line_is_no_mask_in_any_format(tmp_path: Path) -> None:
    text = "0 .1 .1 .3 .3 .5 .5 .7 .7\n0 .1 .1 .3 .1 .3 .3\n"
    data = open_dataset(lines(tmp_path, text), strict=False)
    assert "empty mask" in kinds(data)
    assert [mask is None for mask in data.train.objects(0).masks] == [True, False]


def test_yaml_of_other_tools_is_passed_over(tmp_path: Path) -> None:
    root = lines(tmp_path, "0 .5 .5 .2 .2\n")
    Path(root, "deploy.yml").write_text("a: 1\n---\nb: 2\n")
    assert open_dataset(root).classes


def test_ids_below_one_are_not_objects() -> None:
    ids = np.array([[-2, -1, 0, 4, 4]])
    assert [found.where for found in _objects_of(ids, Path("x.tif"))] == ["x.tif: id 4"]


def test_the_transparency_of_a_mask_is_not_an_id(tmp_path: Path) -> None:
    Image.new("LA", (4, 3), (7, 200)).save(tmp_path / "x.png")
    assert (_ids(tmp_path / "x.png") == np.full((3, 4), 7)).all()


# ---- LabelMe ------------------------------------------------------------------------------------


def test_shapes_of_labelme(tmp_path: Path) -> None:
    labelme(tmp_path, one())
    bitmap = np.zeros((6, 8), np.uint8)
    bitmap[1:5, 2:6] = 1
    stream = BytesIO()
    Image.fromarray(bitmap).save(stream, format="PNG")
    mask = base64.b64encode(stream.getvalue()).decode()
    ring = [[1, 1], [5, 1], [5, 5], [1, 5]]
    shapes = [
        {"label": "cat", "shape_type": "circle", "points": [[20, 15], [26, 15]]},
        {"label": "dog", "shape_type": "mask", "points": [[10, 5], [17, 10]], "mask": mask},
        {"label": "dog", "shape_type": "polygon", "points": ring, "group_id": 1},
        {"label": "dog", "points": [[x + 20, y] for x, y in ring], "group_id": 1},
        {"label": "dog", "shape_type": "point", "points": [[3, 3]]},
        {"label": "dog", "shape_type": "line", "points": [[3, 3], [5, 5]]},
    ]
    for path in tmp_path.rglob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"shapes": shapes}))
    data = open_dataset(str(tmp_path))
    objects = data.train.objects(0)
    circle, drawn, group = objects.masks
    assert circle is not None
    assert drawn is not None
    assert group is not None
    assert objects.boxes.round(1).tolist()[0] == pytest.approx([14, 9, 26, 21], abs=0.1)
    assert area_of(circle, (HEIGHT, WIDTH)) == pytest.approx(np.pi * 36, rel=0.05)
    assert cut(drawn, (12, 6, 16, 10)).all()
    assert area_of(drawn, (HEIGHT, WIDTH)) == 16
    assert (objects.boxes[2].tolist(), area_of(group, (HEIGHT, WIDTH))) == ([1, 1, 25, 5], 32)
    assert {"shapes of the kind 'point'", "shapes of the kind 'line'"} <= kinds(data)


# ---- EXIF ---------------------------------------------------------------------------------------


def turn(root: Path, orientation: int) -> None:
    """Give all images an orientation, and a bright square at x 4 to 8, y 2 to 6."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in root.rglob("*.png"):
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        pixels[2:6, 4:8] = 255
        Image.fromarray(pixels).save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("name", ["coco", "voc"])
def test_objects_turn_with_their_image(tmp_path: Path, name: str, orientation: int) -> None:
    square: list[Box] = [("cat", 4, 2, 4, 4)]
    {"coco": coco, "voc": voc_beside}[name](tmp_path, one(square))
    turn(tmp_path, orientation)
    is_clear = orientation >= 5
    options = ReadOptions(exif="" if is_clear else "unturned")
    data = open_dataset(str(tmp_path), options=options)
    image = np.asarray(data.train.open(0, "L"))
    x1, y1, x2, y2 = (int(value) for value in data.train.objects(0).boxes[0])
    assert (x2 - x1, y2 - y1) == (4, 4)
    assert image[y1:y2, x1:x2].min() == 255
    mask = data.train.objects(0).masks[0]
    if mask is not None:
        assert (cut(mask, (0, 0, image.shape[1], image.shape[0])) == (image > 0)).all()
    assert ("EXIF: objects on unturned pixels" in kinds(data)) == is_clear


def test_sizes_that_do_not_tell_the_orientation_are_said(tmp_path: Path) -> None:
    coco(tmp_path, one([("cat", 4, 2, 4, 4)]))
    turn(tmp_path, 3)
    data = open_dataset(str(tmp_path))
    fault = next(fault for fault in data.faults if fault.kind.startswith("EXIF"))
    assert fault.count == 2
    assert "--exif unturned" in fault.text
    _, sheet = inspect_with_sheet(str(tmp_path), sheet=True)
    _, usual = inspect_with_sheet(str(tmp_path), {"exif": "turned"}, sheet=True)
    assert sheet.height > usual.height  # Both readings come first.
    assert data.train.objects(0).boxes[0].tolist() == [4, 2, 8, 6]


# ---- instance masks -----------------------------------------------------------------------------


def instances(root: Path, count: int, *, is_class: bool = False) -> str:
    """Write images with 16-bit masks of two to five squares, with an id or a class each."""
    for split in BOTH:
        for number in range(count):
            save(root / split / "images" / f"{number}.png", seed=number)
            ids = np.zeros((HEIGHT, WIDTH), np.uint16)
            for i in range(2 + number % 4):
                ids[2:8, 7 * i : 7 * i + 5] = 1 + i % 2 if is_class else i + 1
            path = root / split / "masks" / f"{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ids).save(path)
    return str(root)


def test_ids_of_pixels_are_objects(tmp_path: Path) -> None:
    data = open_dataset(instances(tmp_path, 4))
    assert data.classes == ("object",)
    assert [len(record.objects) for record in data.train.records] == [2, 3, 4, 5]
    objects = data.train.objects(1)
    assert objects.boxes.tolist() == [[7 * i, 2, 7 * i + 5, 8] for i in range(3)]
    assert [m is not None and area_of(m, (HEIGHT, WIDTH)) for m in objects.masks] == [30] * 3
    assert any("every value of a mask above 0 is read as an object" in note for note in data.notes)


def test_ids_of_a_real_set_are_its_objects(shared_data: Path, tmp_path: Path) -> None:
    """The masks hold what the json of the same images does, for boxes, masks and foreground."""
    original = open_dataset(str(shared_data / "nuclei_instances"))
    for split, images in (("train", original.train), ("val", original.val)):
        for i in images.some(10):
            record = images.records[i]
            ids = np.zeros((record.height, record.width), np.uint16)
            for k, mask in enumerate(record.objects.masks):
                assert mask is not None
                ids[cut(mask, (0, 0, record.width, record.height)) > 0] = k + 1
            name = Path(record.file_name).stem
            for folder, picture in (
                (f"images/{split}/{name}.png", Image.open(images.source(i))),
                (f"masks/{split}/{name}.{'tif' if i % 2 else 'png'}", Image.fromarray(ids)),
            ):
                (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
                picture.save(tmp_path / folder)
    found = open_dataset(str(tmp_path))
    assert (len(found.train), len(found.val), found.faults) == (10, 10, ())
    by_name = {Path(r.file_name).stem: r.objects for r in original.train.records}
    for record in found.train.records:
        wanted, objects = by_name[Path(record.file_name).stem], record.objects
        size = record.height, record.width
        assert len(objects) == len(wanted)
        areas = sorted(area_of(mask, size) for mask in objects.masks if mask is not None)
        assert areas == pytest.approx(
            sorted(area_of(mask, size) for mask in wanted.masks if mask is not None), abs=40
        )  # Objects of the json overlap by some pixels.
    report = inspect_objects(str(tmp_path))
    with Console(file=StringIO(), width=200) as console:
        report.print(console)
    assert "objects of 1 class\n" in console.file.getvalue()  # type: ignore[attr-defined]
    assert report.problems == () or all("no JSON" not in str(p) for p in report.problems)
    assert report.splits["train"].masks == sum(len(r.objects) for r in found.train.records)
    pairs = open_pairs(str(tmp_path))
    assert pairs.classes == ("background", "foreground")
    assert any("the masks hold ids of objects" in note for note in pairs.notes)
    for i in range(len(pairs.train)):
        record = found.train.records[i]
        drawn = np.zeros((record.height, record.width), bool)
        for mask in record.objects.masks:
            assert mask is not None
            drawn |= cut(mask, (0, 0, record.width, record.height)) > 0
        assert np.array_equal(pairs.train.mask(i) == 1, drawn)


def test_masks_of_fractions_or_bands_hold_no_ids(tmp_path: Path) -> None:
    path = instances(tmp_path, 6)
    masks = tmp_path / "train" / "masks"
    Image.fromarray(np.full((HEIGHT, WIDTH), 0.5, np.float32)).save(masks / "1.tif")
    tifffile.imwrite(
        masks / "2.tif", np.arange(HEIGHT * WIDTH * 5).reshape(HEIGHT, WIDTH, 5).astype(np.uint16),
        photometric="minisblack", planarconfig="contig",
    )  # fmt: skip
    data = open_dataset(path, strict=False)
    assert len(data.train) == 4
    texts = [str(fault) for fault in data.faults]
    assert any("holds fractions" in text for text in texts)
    assert any("has several bands of ids" in text for text in texts)


def test_an_image_whose_mask_is_damaged_is_not_empty(tmp_path: Path) -> None:
    path = instances(tmp_path, 4)
    (tmp_path / "train" / "masks" / "1.tif").write_bytes(b"II*")
    data = open_dataset(path, strict=False)
    assert [len(record.objects) for record in data.train.records] == [2, 4, 5]
    assert "masks that cannot be read" in kinds(data)


def test_classes_of_pixels_are_not_objects(tmp_path: Path) -> None:
    path = instances(tmp_path, 4, is_class=True)
    with pytest.raises(ValueError, match="look like classes, not like the ids of objects"):
        open_dataset(path)
    data = open_dataset(path, options=ReadOptions(layout="instances"))
    assert [len(record.objects) for record in data.train.records] == [2, 2, 2, 2]


def test_an_image_of_another_split_does_not_stand_in(tmp_path: Path) -> None:
    same = {"0": truth()["train"]["train_a"], "1": truth()["train"]["train_b"]}
    coco(tmp_path, {"train": same, "val": same})
    (tmp_path / "train" / "0.png").unlink()
    save(tmp_path / "masks" / "0.png")
    data = open_dataset(str(tmp_path))
    assert ([r.file_name for r in data.train.records], len(data.val)) == (["1.png"], 2)
    assert "missing image files" in kinds(data)


def test_an_image_without_a_readable_line_is_not_empty(tmp_path: Path) -> None:
    path = lines(tmp_path, "0 0.5 0.5 0.4 0.4\n")
    (tmp_path / "train" / "labels" / "train_a.txt").write_text("0 200 200 40 40\n")
    (tmp_path / "val" / "labels" / "val_a.txt").write_text("")
    data = open_dataset(path)
    assert [(Path(r.file_name).stem, len(r.objects)) for r in data.train.records] == [
        ("train_b", 1)
    ]
    assert len(data.val) == 2
    assert "images without a readable line" in kinds(data)
