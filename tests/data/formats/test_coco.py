"""Every fault of a COCO JSON is reported with its place and affects as little as possible."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_objects import small_coco, small_yolo

from convnext.data.formats import coco, coco_objects
from convnext.data.formats.coco import read_coco
from convnext.data.formats.coco_objects import UNUSED
from convnext.data.formats.coco_tidy import PolygonParser
from convnext.data.formats.layouts import is_detection
from convnext.data.objects import facts, open_dataset

RING = [1, 1, 5, 1, 5, 5, 1, 5]


def image(key: Any = 1, name: Any = "a.png", **changes: Any) -> dict[str, Any]:
    return {"id": key, "file_name": name, "width": 20, "height": 10, **changes}


def annotation(key: Any = 1, **changes: Any) -> dict[str, Any]:
    found = {"id": key, "image_id": 1, "category_id": 7, "bbox": [1, 1, 4, 4], "area": 16}
    return {**found, "segmentation": [RING], "iscrowd": 0, **changes}


def write(path: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "images": [image()],
        "annotations": [annotation()],
        "categories": [{"id": 7, "name": "cat"}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | changes))
    return path


def test_a_file_without_faults(tmp_path: Path) -> None:
    categories = [{"id": 9, "name": "dog"}, {"id": 7, "name": "cat"}]
    second = annotation(5, category_id=9, bbox=[2, 2, 3.5, 1], segmentation=[])
    path = write(tmp_path / "x.json", categories=categories, annotations=[annotation(), second])
    found = read_coco(path)
    assert (found.classes, found.category_ids, found.faults) == (("cat", "dog"), (7, 9), ())
    objects = found.records[0].objects
    assert objects.ids == (1, 5)
    assert objects.boxes.tolist() == [[1, 1, 5, 5], [2, 2, 5.5, 3]]
    assert objects.labels.tolist() == [0, 1]
    assert objects.masks[1] is None


FAULTS: list[tuple[str, dict[str, Any], str, int]] = [
    ("annotation without id", {"id": None}, "number 0 of the annotations", 1),
    ("box outside the image", {"bbox": [30, 0, 5, 5]}, "outside the image of 20 x 10", 0),
    ("box over the border", {"bbox": [15, 0, 10, 5]}, "cut at its border", 1),
    ("box without area", {"bbox": [1, 1, 0, 5], "segmentation": []}, "0 x 5 pixels", 0),
    ("boxes with negative sides", {"bbox": [5, 5, -4, -4], "segmentation": []}, "other corner", 1),
    ("objects without a box", {"bbox": [1, 1, 0, 5]}, "is that of the mask", 1),
    ("objects without a box", {"bbox": []}, "is that of the mask", 1),
    ("annotation id 0", {"id": 0}, "pycocotools takes", 1),
    ("areas of another unit", {"area": 160_000}, "which its box cannot have", 1),
    ("boxes written as text", {"bbox": ["1", "1", "4", "4"]}, "read as numbers", 1),
    ("empty mask", {"segmentation": [[1, 1, 5, 5, 1, 1]]}, "without an area", 1),
    ("empty mask", {"segmentation": {"size": [10, 20], "counts": [200]}}, "without a pixel", 1),
    ("ids that are not whole numbers", {"image_id": "1"}, "read as a number", 1),
    ("ids that are not whole numbers", {"category_id": 7.0}, "read as a number", 1),
    ("iscrowd that is not a number", {"iscrowd": "0"}, "read as a number", 1),
    ("polygons of two corners", {"segmentation": [[1, 1, 5, 5]]}, "as that rectangle", 1),
    ("polygons in another form", {"segmentation": [[[1, 1], [5, 1], [5, 5]]]}, "list of", 1),
    ("polygons without brackets", {"segmentation": RING}, "one polygon", 1),
    ("damaged mask", {"segmentation": "x"}, "neither polygons nor run lengths", 1),
    ("damaged mask", {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "not pairs", 1),
    ("damaged mask", {"segmentation": {"size": [10, 20], "counts": [1, 2]}}, "do not fill", 1),
    ("damaged mask", {"segmentation": {"size": [10, 20], "counts": "\u00e9"}}, "do not fill", 1),
    ("damaged mask", {"segmentation": {"size": [10, 20]}}, "do not fill", 1),
    ("mask of another size", {"segmentation": {"size": [20, 10], "counts": [200]}}, "[10, 20]", 1),
    ("no box", {"bbox": [1, 2, 3], "segmentation": []}, "four finite numbers", 0),
    ("no box", {"bbox": [1, 1, float("nan"), 4], "segmentation": []}, "four finite numbers", 0),
    ("no box", {"bbox": None, "segmentation": []}, "four finite numbers", 0),
    ("polygon with too few points", {"segmentation": [[1, 1, 9, 9]]}, "2 points", 1),
    ("unknown category", {"category_id": 8}, "the file has 7", 0),
    ("unknown image", {"image_id": 2}, "which the file does not list", 0),
]


@pytest.mark.parametrize(("kind", "changes", "text", "num_left"), FAULTS)
def test_faults_of_annotations(
    tmp_path: Path, kind: str, changes: dict[str, Any], text: str, num_left: int
) -> None:
    found = read_coco(write(tmp_path / "x.json", annotations=[annotation(12) | changes]))
    fault = next(fault for fault in found.faults if fault.kind != UNUSED)
    assert fault.kind == kind
    assert text in str(fault)
    assert "12" in fault.where or "id" in changes
    assert not fault.fatal
    assert len(found.records[0].objects) == num_left


def test_boxes_are_cut_at_the_border(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", annotations=[annotation(bbox=[-3, -0.5, 30, 12])])
    assert read_coco(path).records[0].objects.boxes.tolist() == [[0, 0, 20, 10]]


@pytest.mark.parametrize(
    ("kind", "images", "fatal"),
    [
        ("images listed more than once", [image(), image(2)], False),
        ("duplicate image id", [image(), image(1, "b.png")], True),
        ("image without id or file", [image(), image(None, "b.png")], True),
        ("image without id or file", [image(), image(2, "")], True),
        ("image without size", [image(), image(2, "b.png", width=0)], True),
        ("image without size", [image(), image(2, "b.png", height=None)], True),
        ("image too large", [image(), image(2, "b.png", width=10**9, height=10**9)], True),
    ],
)
def test_faults_of_images(tmp_path: Path, kind: str, images: list[Any], fatal: bool) -> None:
    found = read_coco(write(tmp_path / "x.json", images=images))
    assert [(fault.kind, fault.fatal) for fault in found.faults] == [(kind, fatal)]
    assert [record.id for record in found.records] == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is a list, either results"),
        ("{", "is not JSON"),
        ('{"images": []}', "no list 'annotations'"),
        ('{"images": [1], "annotations": [], "categories": []}', "number 0 of 'images'"),
        ('{"images": [], "annotations": [], "categories": []}', "has no category"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "needs a whole `id`"),
        ("[" * 100_000, "is not JSON"),
        ('"' + "9" * 5000, "is not JSON"),
        ("9" * 5000, "is not JSON"),
    ],
)
def test_what_is_not_such_a_file_at_all(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_coco(path)
    assert "x.json" in str(error.value)


def test_categories_must_be_clear(tmp_path: Path) -> None:
    categories = [{"id": 7, "name": "cat"}, {"id": 7, "name": "dog"}]
    with pytest.raises(ValueError, match=r"category id 7"):
        read_coco(write(tmp_path / "x.json", categories=categories))
    objects = [annotation(1), annotation(2, category_id=8, bbox=[2, 2, 4, 4])]
    categories = [{"id": k, "name": "cat", "supercategory": str(k)} for k in (7, 8)]
    with pytest.raises(ValueError, match=r"called 'cat', of the supercategories 7 and 8"):
        read_coco(write(tmp_path / "x.json", categories=categories, annotations=objects))


def test_categories_of_one_name_are_one(tmp_path: Path) -> None:
    objects = [annotation(1), annotation(2, category_id=8, bbox=[2, 2, 4, 4])]
    categories = [{"id": k, "name": "cat"} for k in (7, 8)]
    found = read_coco(write(tmp_path / "x.json", categories=categories, annotations=objects))
    assert (found.classes, len(found.records[0].objects)) == (("cat",), 2)
    assert [fault.kind for fault in found.faults] == ["categories of one name"]


def save(root: Path, name: str, size: tuple[int, int] = (20, 10)) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(root / name)


@pytest.mark.parametrize(
    ("train", "val", "folders"),
    [
        ("instances_train.json", "instances_val.json", ("images", "images")),
        ("instances_train.json", "instances_val.json", ("images/train", "images/val")),
        (
            "annotations/instances_train2017.json",
            "annotations/instances_val2017.json",
            ("train2017", "val2017"),
        ),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json", ("train", "valid")),
        ("train.json", "dev.json", (".", ".")),
        (
            "annotations/instances_Train.json",
            "annotations/instances_Validation.json",
            ("images", "images"),
        ),
        ("Train/_annotations.coco.json", "Valid/_annotations.coco.json", ("Train", "Valid")),
    ],
)
def test_layouts(tmp_path: Path, train: str, val: str, folders: tuple[str, str]) -> None:
    for path, folder, name in zip((train, val), folders, ("a.png", "b.png"), strict=True):
        write(tmp_path / path, images=[image(1, name)])
        save(tmp_path / folder, name)
    assert is_detection(tmp_path)
    data = open_dataset(str(tmp_path))
    assert data.train.open(0, "RGB").size == (20, 10)
    assert data.val.source(0).endswith("b.png")
    assert data.understood is not None
    assert (data.understood.layout, data.understood.images) == ("COCO", {"train": 1, "val": 1})


def test_one_file_is_split_by_names(tmp_path: Path) -> None:
    images = [image(i, f"{i}.png") for i in range(10)]
    objects = [annotation(i, image_id=i) for i in range(10)]
    path = write(tmp_path / "labels.json", images=images, annotations=objects)
    for i in range(10):
        save(tmp_path / "images", f"{i}.png")
    for source in (tmp_path, path):
        data = open_dataset(str(source))
        assert (len(data.train), len(data.val)) == (8, 2)
        assert not set(data.train.names) & set(data.val.names)


def test_files_that_nothing_can_be_trained_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        open_dataset(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="has no annotations of objects that can be read"):
        open_dataset(str(tmp_path))
    write(tmp_path / "instances_train.json")
    write(tmp_path / "instances_val.json", images=[image(1, "b.png")])
    with pytest.raises(ValueError, match=r"the images of .* are missing"):
        open_dataset(str(tmp_path))
    for name in ("a.png", "b.png"):
        save(tmp_path / "images", name)
    open_dataset(str(tmp_path))
    write(tmp_path / "instances_val.json", images=[image(1, "b.png"), image(1, "c.png")])
    with pytest.raises(ValueError, match=r"instances_val.json: image 1 is the id of b.png and of"):
        open_dataset(str(tmp_path))
    write(tmp_path / "instances_val.json", images=[image(1, "b.png")], annotations=[])
    with pytest.raises(ValueError, match="no object that can be used in its val split"):
        open_dataset(str(tmp_path))
    dogs = [{"id": 7, "name": "dog"}]
    write(tmp_path / "instances_val.json", images=[image(1, "b.png")], categories=dogs)
    with pytest.raises(ValueError, match="objects of 'dog', which is not among"):
        open_dataset(str(tmp_path))


def test_classes_of_both_files_meet_by_name(tmp_path: Path) -> None:
    two = [{"id": 7, "name": "cat"}, {"id": 1, "name": "dog"}]
    write(tmp_path / "instances_train.json", categories=two)
    write(tmp_path / "instances_val.json", images=[image(1, "b.png")])
    for name in ("a.png", "b.png"):
        save(tmp_path / "images", name)
    data = open_dataset(str(tmp_path))
    assert data.classes == ("dog", "cat")
    assert data.train.objects(0).labels.tolist() == data.val.objects(0).labels.tolist() == [1]


def test_of_real_data(shared_data: Path) -> None:
    known = facts(open_dataset(str(shared_data / "nuclei_instances")))
    assert (known.num_train, known.num_objects, known.max_objects) == (192, 7627, 313)
    assert known.has_masks
    assert not facts(open_dataset(str(shared_data / "bccd_boxes"))).has_masks
    crowded = open_dataset(str(shared_data / "coco_mini_cc"))
    assert sum(int(record.objects.crowd.sum()) for record in crowded.train.records) == 9
    for record in crowded.train.records[:10]:
        assert np.isfinite(record.objects.boxes).all()


def test_a_mark_of_windows_at_the_beginning_is_no_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_coco(path).records) == 1


def test_a_crowd_is_marked_by_a_number(tmp_path: Path) -> None:
    rows = [
        annotation(1, iscrowd="0"),
        annotation(2, iscrowd=True),
        annotation(3, iscrowd=5, bbox=[3, 3, 8, 8]),
    ]
    found = read_coco(write(tmp_path / "a.json", annotations=rows))
    assert found.records[0].objects.crowd.tolist() == [False, True, False]
    fault = next(fault for fault in found.faults if fault.kind == "unclear crowd")
    assert fault.where == "annotation 3"


def test_objects_listed_twice_are_left_out_in_every_format(tmp_path: Path) -> None:
    rows = [
        annotation(1),
        annotation(2),
        annotation(3, segmentation=[]),
        annotation(4, iscrowd=1),
    ]
    found = read_coco(write(tmp_path / "a.json", annotations=rows))
    assert found.records[0].objects.ids == (1, 3, 4)
    assert [f.where for f in found.faults if f.kind == "objects listed twice"] == ["annotation 2"]
    line = "0 0.5 0.5 0.4 0.4\n"
    root = small_yolo(tmp_path / "yolo", {"train/a": line * 2, "train/b": line, "val/c": line})
    data = open_dataset(str(root))
    assert sum(len(r.objects) for part in data.parts.values() for r in part.records) == 3
    assert [f.count for f in data.faults if f.kind == "objects listed twice"] == [1]


@pytest.mark.parametrize("is_cvat", [False, True])
def test_files_with_crowds_alone_have_objects(tmp_path: Path, is_cvat: bool) -> None:
    root = small_coco(tmp_path)
    path = root / "instances_train.json"
    content = json.loads(path.read_text())
    for number, row in enumerate(content["annotations"]):
        if is_cvat and number < 2:
            continue
        row["iscrowd"] = 1
        if is_cvat:
            row["segmentation"] = {"size": [30, 40], "counts": [5, 7, 1188]}
            row["attributes"] = {"occluded": False}
    path.write_text(json.dumps(content))
    data = open_dataset(str(root))
    assert not any(record.objects.crowd.any() for record in data.train.records)
    assert "objects marked as crowds" in {fault.kind for fault in data.faults}


def test_one_fatal_fault_is_told_in_a_sentence(tmp_path: Path) -> None:
    root = small_coco(tmp_path)
    path = root / "instances_train.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "a\0.png"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"add them \(`convnext data .* lists all\)"):
        open_dataset(str(root))


WRONG: dict[str, list[Any]] = {
    "bbox": [
        None, [1, 2, 3], ["1", "2", "3", "4"], [float("nan"), 1, 2, 3], [1, 2, 0, 3],
        [9, 9, -3, -4], [15, 4, 30, 30], [100, 100, 5, 5], [True, 1, 2, 3], [1, 1, 10**400, 2],
        [-0.0, 0.0, 5, 5], [float("inf"), 1, 1, 1], [2**53, 0, 1, 1], "x", [[1]], {},
        [-0.5, -2.0, 4, 4],
    ],
    "segmentation": [
        None, [], [[]], [[1, 1, 5, 1]], [[1, 1, 2, 2]], [[1, 1, 2, 2, 3, 3]], [1, 1, 9, 1, 9, 9],
        [[1, 1, 2, 2, 3, 3, 4, 4]], [[0, 0, 9, 0, 9, float("nan")]], [[[1, 1], [5, 1], [5, 5]]],
        [["1", "1", "5", "1", "5", "5"]], {"size": [10, 20], "counts": [10, 20, 170]}, {}, 0, "",
        "a", {"size": [10, 20], "counts": [10]}, {"size": [1, 2], "counts": [2]}, False,
        [[1, 1, 5, 1, 5, True]], [[0, 0, 9, 0, 9, 10**400]], [[0, 0, 4, 0, 4, 4], [1]],
        [[0, 0, 4, 0, 4, 4], None], [[0, 0, 4, 0, 4, 4], "abcdef"], [[0, 0, 4, 0, 4, 4, 5]],
        [[1, 1, 5, 5]], [RING, [2, 2, 3, 3, 4, 4]], [RING, RING],
    ],
    "area": [None, 0, -1, "5", 1e9, True, float("nan"), 0.0001, [], 10**400],
    "iscrowd": [1, True, False, "0", "1", 1.0, 2, None, [], -1],
    "id": [0, 1, None, "7", 3.0, True, 2**70, "x", []],
    "image_id": [99, None, "1", 1.0, True, [], 2**70],
    "category_id": [99, None, "7", 7.0, True, [], {}],
}  # fmt: skip


def random_content(seed: int) -> dict[str, Any]:
    """Return a file of several images, in which some annotations are wrong in one or more ways."""
    random = Random(seed)
    share = random.choice([0, 0.02, 0.3])
    images = [image(key, f"{key}.png") for key in range(1, random.randint(2, 8))]
    annotations: list[dict[str, Any]] = []
    for key in range(1, random.randint(1, 40)):
        x, y, w, h = (random.uniform(1, 5) if random.random() < 0.5 else 3 for _ in range(4))
        ring = [x, y, x + w, y, x + w, y + h, x, y + h]
        masks = [ring] if random.random() < 0.8 else [ring, [value + 1 for value in ring]]
        found = annotation(key, image_id=random.choice(images)["id"], bbox=[x, y, w, h])
        found |= {"area": w * h, "segmentation": masks, "category_id": random.choice([7, 8])}
        while found and random.random() < share:
            name = random.choice(list(WRONG))
            found[name] = random.choice(WRONG[name])
            if random.random() < 0.2:
                del found[name]
        annotations.append(found)
        if random.random() < 0.1:
            annotations.append(found | {"id": 1000 + key})
    categories = [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def everything(path: Path) -> list[Any]:
    """Return all that is read from a file, as values that can be compared."""
    found = read_coco(path)
    rows: list[Any] = [found.classes, found.category_ids, found.notes, repr(found.faults)]
    for record in found.records:
        objects = record.objects
        rows.append((record.id, record.file_name, objects.ids, objects.labels.tolist()))
        rows.append((objects.boxes.tobytes(), objects.areas.tobytes(), objects.crowd.tolist()))
        for mask in objects.masks:
            is_polygons = isinstance(mask, list | tuple)
            rows.append([np.asarray(r).tolist() for r in mask] if is_polygons else repr(mask))
    return rows


def test_checks_in_groups_find_what_checks_one_by_one_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PolygonParser, "GROUP", 7)
    num_faults = num_converted = 0
    for seed in range(150):
        path = tmp_path / "x.json"
        path.write_text(json.dumps(random_content(seed)))
        content = coco.load_json(path, as_arrays=True)
        num_converted += sum(
            isinstance(value.get("segmentation"), tuple) for value in content["annotations"]
        )
        found = everything(path)
        with monkeypatch.context() as patch:
            patch.setattr(coco, "PolygonParser", lambda: None)
            patch.setattr(coco, "read_sound", lambda *_: {})
            patch.setattr(coco_objects, "_are_known", lambda *_: False)
            assert everything(path) == found, seed
        num_faults += found[3].count("Fault(")
    assert num_faults > 500
    assert num_converted > 1000
