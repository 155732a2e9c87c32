"""Pascal VOC and YOLO are converted to COCO JSON; errors are reported with file and line."""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_objects import (
    HEIGHT,
    WIDTH,
    save,
    small_voc,
    small_yolo,
    voc_object,
    voc_xml,
)

from convnext.cli import main
from convnext.data.formats.coco_objects import UNUSED
from convnext.data.formats.voc import BoxFaults, read_objects
from convnext.data.objects import open_dataset
from convnext.documents import BadXml, parse
from convnext.tasks.detection.convert import to_coco

CAT = voc_xml(voc_object("cat", (3, 3, 10, 10)))
EMPTY = voc_xml("")


def content(root: Path, split: str = "train") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / f"instances_{split}.json").read_text())
    return found


def huge_png(path: Path) -> Path:
    """Write a file of a few bytes that declares ten billion pixels."""
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    body = struct.pack(">I", len(head)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_voc(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    two = voc_object("dog", (1, 1, WIDTH, HEIGHT)).replace("</object>", f"{part}</object>")
    texts = {"a": voc_xml(two + voc_object("cat", (3, 4, 3, 9), 1)), "b": EMPTY, "c": CAT}
    report = to_coco(small_voc(tmp_path / "voc", texts), tmp_path / "coco")
    assert (report.kind, report.classes, report.faults) == ("Pascal VOC", ("cat", "dog"), ())
    assert (report.num_images, report.num_objects) == (
        {"train": 2, "val": 1},
        {"train": 2, "val": 1},
    )
    dog, cat = content(tmp_path / "coco")["annotations"]
    assert dog["bbox"] == [0, 0, WIDTH, HEIGHT]
    assert (cat["bbox"], cat["category_id"], cat["difficult"]) == ([2, 3, 1, 6], 1, 1)
    assert (cat["iscrowd"], cat["area"], cat["segmentation"]) == (0, 6, [])
    data = open_dataset(str(tmp_path / "coco"))
    assert (len(data.train), len(data.val)) == (2, 1)
    assert {fault.kind for fault in data.faults} == {UNUSED}  # No dog is held out.
    assert data.train.open(0, "RGB").size == (WIDTH, HEIGHT)
    assert data.train.source(0) == str(tmp_path / "coco" / "images" / "train" / "a.png")


@pytest.mark.parametrize(("difficult", "crowds"), [("keep", [0]), ("crowd", [1]), ("drop", [])])
def test_difficult_objects(tmp_path: Path, difficult: Any, crowds: list[int]) -> None:
    texts = {"a": voc_xml(voc_object("cat", (1, 1, 5, 5), 1)), "b": CAT}
    to_coco(small_voc(tmp_path / "voc", texts), tmp_path / "coco", difficult=difficult)
    assert [value["iscrowd"] for value in content(tmp_path / "coco")["annotations"]] == crowds


def test_voc_without_lists_holds_a_share_out(tmp_path: Path) -> None:
    root = small_voc(tmp_path / "voc", {f"{i}": CAT for i in range(10)})
    for name in ("train", "val"):
        (root / "ImageSets" / "Main" / f"{name}.txt").unlink()
    report = to_coco(root, tmp_path / "coco")
    assert report.num_images == {"train": 8, "val": 2}
    assert any("are held out" in note for note in report.notes)


VOC_FAULTS = {
    "no name": (voc_object("", (1, 1, 5, 5)), "a.xml:3: an object needs a name and a bndbox"),
    "no box": ("<object><name>cat</name></object>", "a.xml:3: an object needs a name"),
    "not numbers": (voc_object("cat", ("x", 1, 5, 5)), "a.xml:4: bndbox needs the numbers"),
    "nan": (voc_object("cat", ("nan", 1, 5, 5)), "has no area within the image"),
    "inverted": (voc_object("cat", (9, 1, 5, 5)), "a.xml:4: the corners 9 1 5 5 are in the wrong"),
    "outside": (voc_object("cat", (90, 1, 95, 5)), "no area within the image of 40 x 30; left out"),
    "over the border": (voc_object("cat", (30, 1, 95, 5)), "a.xml:4: the box 29, 0, 66, 5"),
}


@pytest.mark.parametrize("name", sorted(VOC_FAULTS))
def test_faults_of_voc(tmp_path: Path, name: str) -> None:
    objects, text = VOC_FAULTS[name]
    report = to_coco(small_voc(tmp_path / "voc", {"a": voc_xml(objects), "b": CAT}), tmp_path / "o")
    assert len(report.faults) == 1
    assert text in report.faults[0]
    kept = content(tmp_path / "o")["annotations"]
    left = {"over the border": [[29, 0, 11, 5]], "inverted": [[4, 0, 5, 5]]}
    assert [value["bbox"] for value in kept] == left.get(name, [])


def test_faults_of_voc_files(tmp_path: Path) -> None:
    texts = dict.fromkeys("abcde", CAT)
    texts["b"] = voc_xml(voc_object("cat", (3, 3, 10, 10)), 80, 60)
    texts["d"] = "<annotation>\n<object>\n</annotation>"
    root = small_voc(tmp_path / "voc", texts)
    (root / "JPEGImages" / "a.png").unlink()
    huge_png(root / "JPEGImages" / "c.png")
    listed = root / "ImageSets" / "Main" / "train.txt"
    listed.write_text("a  1\nb -1\nc\nd\n../../e\nf\n")
    report = to_coco(root, tmp_path / "coco")
    broken, absent, huge, size = report.faults
    assert "a.jpg" in absent
    assert "b.xml:2: says 80 x 60 pixels, but the image has 40 x 30" in size
    assert "c.png" in huge
    assert "d.xml:3: is not xml: mismatched tag" in broken
    assert any(f"{listed}:4: d has no annotation" in note for note in report.notes)
    assert report.num_images == {"train": 1, "val": 1}


BOMB = (
    '<?xml version="1.0"?>\n<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa">'
    '<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>\n<annotation>&b;</annotation>'
)
HOSTILE = {
    "deep": ("<annotation>" + "<a>" * 100_000, "1: more than 32 levels"),
    "empty": ("", "1: is not xml: no element found"),
    "encoding": ('<?xml version="1.0" encoding="utf-7"?><annotation/>', ":1: is not xml"),
    "entities": (BOMB, "x.xml:2: has a DOCTYPE"),
    "entities in UTF-16": (BOMB, "x.xml:2: has a DOCTYPE"),
    "external": (
        '<!DOCTYPE annotation [<!ENTITY f SYSTEM "file:///etc/hosts">]><annotation>&f;</annotation>',
        "x.xml:1: has a DOCTYPE",
    ),
    "foreign": ("<html/>", "begins with <html>, not <annotation>"),
    "undefined": ("<annotation>\n&f;</annotation>", "x.xml:2: is not xml: undefined entity"),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_xml(tmp_path: Path, name: str) -> None:
    text, message = HOSTILE[name]
    path = tmp_path / "x.xml"
    path.write_text(text, "utf-16" if "16" in name else "utf-8")
    with pytest.raises(BadXml) as error:
        parse(path)
    assert message in str(error.value)


def test_xml_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.xml").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(BadXml, match="larger than 16 MB"):
        parse(tmp_path / "x.xml")


YAML = "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n"


def test_yolo(tmp_path: Path) -> None:
    labels = {
        "train/a": "1 0.5 0.5 0.5 0.2\n\n0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n",
        "train/sub/b": "",
        "val/c": "0 0.5 0.5 1 1\n",
    }
    root = small_yolo(tmp_path / "yolo", labels)
    save(root / "images" / "train" / "d.png")
    report = to_coco(root, tmp_path / "coco")
    assert (report.kind, report.classes, report.faults) == ("YOLO", ("cat", "dog"), ())
    found = content(tmp_path / "coco")
    assert [value["file_name"] for value in found["images"]] == ["a.png", "d.png", "sub/b.png"]
    box, polygon = found["annotations"]
    assert (box["bbox"], box["category_id"]) == ([10, 12, 20, 6], 2)
    assert (polygon["bbox"], polygon["area"]) == ([4, 3, 16, 12], 192)
    assert polygon["segmentation"] == [[4, 3, 20, 3, 20, 15, 4, 15]]
    assert any("1 of 4 images have no file of labels" in note for note in report.notes)
    data = open_dataset(str(tmp_path / "coco"))
    assert (len(data.train), len(data.val)) == (3, 1)
    assert {fault.kind for fault in data.faults} == {UNUSED}
    assert data.train.open(2, "RGB").size == (WIDTH, HEIGHT)


def test_yolo_layouts(tmp_path: Path) -> None:
    nested = tmp_path / "nested"
    for name in ("train", "valid"):
        save(nested / name / "images" / "a.png")
        (nested / name / "labels").mkdir(parents=True)
        (nested / name / "labels" / "a.txt").write_text("1 0.5 0.5 0.5 0.2\n")
    (nested / "data.yaml").write_text("names: [cat, dog]\n")
    report = to_coco(nested, tmp_path / "a")
    assert (report.num_objects, report.classes) == ({"train": 1, "val": 1}, ("cat", "dog"))
    flat = small_yolo(tmp_path / "flat", {f"{i}": "0 0.5 0.5 0.5 0.2\n" for i in range(10)})
    (flat / "data.yaml").write_text(YAML)
    assert to_coco(flat, tmp_path / "b").num_images == {"train": 8, "val": 2}


LINES = {
    "1 0.5 0.5 0.5": "has 4 numbers, not class cx cy",
    "1 0.5 0.5 0.5 0.5 0.9 0.1 0.1": "has 8 numbers",
    "1 0.5 0.5 nan 0.5": "has a number that is not finite",
    "1 10 12 20 6": "20 is not a share of the image in [0, 1]; divide pixels",
    "1 -1.5 0.5 0.5 0.5": "-1.5 is not a share",
    "1 -0.5 0.5 0.5 0.5": "the box -30, 7.5, 20, 15",
    "1 0.5 0.5 0 0.5": "the box 20, 7.5, 0, 15",
    "2 0.5 0.5 0.5 0.5": "class 2 is not one of the 2 classes from 0 to 1",
    "-1 0.5 0.5 0.5 0.5": "class -1 is not one",
    "0.5 0.5 0.5 0.5 0.5": "class 0.5 is not one",
    "cat 0.5 0.5 0.5 0.5": "'cat 0.5 0.5 0.5 0.5' is not a line of numbers",
}


@pytest.mark.parametrize("line", sorted(LINES))
def test_faults_of_yolo(tmp_path: Path, line: str) -> None:
    labels = {"train/a": f"0 0.5 0.5 0.1 0.1\n{line}\n", "val/b": ""}
    report = to_coco(small_yolo(tmp_path / "yolo", labels), tmp_path / "coco")
    assert len(report.faults) == 1
    assert f"a.txt:2: {LINES[line]}" in report.faults[0]
    assert report.num_objects == {"train": 1, "val": 0}


NAMES = {
    "names: [a, a]": "a duplicate",
    "names: {a: 0, b: 1}": "must be whole numbers",
    "names: 3": "must list the names",
    "names: [[a]]": "must be words",
    "a: 1\nnames: [": "data.yaml:2: is not YAML",
    "names: " + "[" * 5000: "is not YAML",
}


@pytest.mark.parametrize("text", sorted(NAMES))
def test_names_of_yolo_must_be_clear(tmp_path: Path, text: str) -> None:
    root = small_yolo(tmp_path / "yolo", {"train/a": "", "val/b": ""})
    (root / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"data\.yaml") as error:
        to_coco(root, tmp_path / "coco")
    assert NAMES[text] in str(error.value)


def test_yolo_without_names(tmp_path: Path) -> None:
    root = small_yolo(tmp_path / "yolo", {"train/a": "", "val/b": ""})
    (root / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"does not say what its classes .* write a classes.txt"):
        to_coco(root, tmp_path / "coco")


def test_images_are_linked_or_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = small_yolo(tmp_path / "yolo", {"train/a": "0 0.5 0.5 1 1", "val/b": ""})
    original = root / "images" / "train" / "a.png"
    linked = to_coco(root, tmp_path / "linked")
    assert linked.linked
    assert (tmp_path / "linked" / "images" / "train" / "a.png").samefile(original)

    def refuse(*_: object) -> None:
        raise OSError("another device")

    monkeypatch.setattr(os, "link", refuse)
    copied = to_coco(root, tmp_path / "copied")
    copy = tmp_path / "copied" / "images" / "train" / "a.png"
    assert not copied.linked
    assert not copy.samefile(original)
    assert copy.read_bytes() == original.read_bytes()


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    root = small_yolo(tmp_path / "yolo", {"train/a": "", "val/b": ""})
    with pytest.raises(ValueError, match="exists and is not empty"):
        to_coco(root, root)
    save(tmp_path / "photos" / "a.png")
    with pytest.raises(ValueError, match="has no annotations of objects that can be read"):
        to_coco(tmp_path / "photos", tmp_path / "new")
    small_voc(tmp_path / "VOCdevkit" / "VOC2012", {"a": EMPTY, "b": EMPTY})
    with pytest.raises(ValueError, match="has no readable object"):
        to_coco(tmp_path / "VOCdevkit" / "VOC2012", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, new = small_voc(tmp_path / "voc", {"a": CAT, "b": CAT}), tmp_path / "new"
    written: list[Path] = []

    def stop(path: Path, text: str) -> None:
        path.write_text(text)
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("convnext.tasks.detection.convert.write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        to_coco(root, new)
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]
    monkeypatch.undo()
    to_coco(root, new)
    assert sorted(path.name for path in new.iterdir()) == [
        "images",
        "instances_train.json",
        "instances_val.json",
    ]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, new = small_voc(tmp_path / "voc", {"a": CAT, "b": CAT}), tmp_path / "new"
    assert main(["data", str(root), "--to", "coco", "--output", str(new)]) == 0
    text = capsys.readouterr().out
    assert f"convnext train --task detect --data {new}" in text
    assert main(["data", str(root), "--to", "coco", "--output", str(new)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main(["data", str(new), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["splits"]["val"]["objects"] == 1


spans = st.integers(2, 60).flatmap(
    lambda side: st.tuples(
        st.just(side),
        st.integers(1, side).flatmap(lambda a: st.tuples(st.just(a), st.integers(a, side))),
    )
)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(spans, spans)
def test_boxes_of_voc_there_and_back(x: Any, y: Any) -> None:
    (width, (x1, x2)), (height, (y1, y2)) = x, y
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.xml"
        path.write_text(voc_xml(voc_object("cat", (x1, y1, x2, y2)), width, height))
        boxes = BoxFaults()
        found = read_objects(parse(path), path, "keep", boxes)
    assert (boxes.faults, boxes.num_zero) == ([], 0)
    left, top, w, h = found[0].box
    assert min(left, top) >= 0
    assert min(w, h) >= 1
    assert left + w <= width
    assert top + h <= height
    assert (left + 1, top + 1, left + w, top + h) == (x1, y1, x2, y2)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    st.integers(0, 1),
    st.integers(0, 36),
    st.integers(0, 26),
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
)
def test_yolo_there_and_back(c: int, x: int, y: int, w: int, h: int, is_polygon: bool) -> None:
    corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
    shares = [(x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT]
    if is_polygon:
        shares = [value for px, py in corners for value in (px / WIDTH, py / HEIGHT)]
    line = " ".join([str(c), *(f"{share:.6f}" for share in shares)])
    with tempfile.TemporaryDirectory() as folder:
        labels = {"train/a": f"{line}\n", "val/b": ""}
        to_coco(small_yolo(Path(folder) / "yolo", labels), Path(folder) / "coco")
        objects = open_dataset(f"{folder}/coco", strict=False).train.objects(0)
    assert objects.labels.tolist() == [c]
    assert objects.boxes[0].tolist() == pytest.approx([x, y, x + w, y + h], abs=0.002)
    assert objects.areas[0] == pytest.approx(w * h, abs=0.02)
    assert (objects.masks[0] is not None) == is_polygon
