"""The report of `convnext data` on detection data: counts, and every fault with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from small_objects import annotation, image, save, small_coco, write_coco

from convnext.cli import main
from convnext.data import facts
from convnext.data.drawing import class_colors
from convnext.data.formats.records import Objects, Record, no_objects
from convnext.data.masks import bounds_of
from convnext.data.objects import open_dataset
from convnext.tasks.detection import problems as module
from convnext.tasks.detection.inference import Detections
from convnext.tasks.detection.inspect import DataReport, contact_sheet, inspect, inspect_with_sheet
from convnext.tasks.detection.render import compare, draw_objects

QUIET = Console(quiet=True)


def look(root: Path) -> DataReport:
    return inspect(str(root), console=QUIET)


def problems(root: Path) -> dict[str, tuple[int, str]]:
    found = look(root).problems
    return {p.kind: (p.count, " | ".join((p.advice, *p.examples))) for p in found}


def change(root: Path, edit: Callable[[dict], object], split: str = "train") -> None:
    path = root / f"instances_{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_counts(tmp_path: Path) -> None:
    root = small_coco(tmp_path, 12, 10)

    def edit(content: dict) -> None:
        content["annotations"][0]["iscrowd"] = 1  # The only cat of the first image.
        content["annotations"][3].update(bbox=[0, 0, 40, 30], area=1200)
        del content["annotations"][4:6]  # The whole third image.

    change(root, edit)
    report = look(root)
    train = report.splits["train"]
    assert (train.images, train.empty, train.objects, train.crowd) == (12, 1, 21, 1)
    assert (train.masks, train.small, train.medium, train.large) == (10, 20, 1, 0)
    assert (train.per_image, train.most) == (2, 2)
    rows = [(c.name, c.train, c.train_images, c.val, c.val_images) for c in report.classes]
    assert rows == [("cat", 10, 10, 10, 10), ("dog", 11, 11, 10, 10)]
    assert report.sizes == {"40 x 30": 22}
    assert report.splits["val"].aspects is not None
    assert report.splits["val"].aspects.median == 1.5
    assert report.problems == ()
    assert json.loads(json.dumps(report.to_dict()))["splits"]["train"]["crowd"] == 1


def test_faults_of_files(tmp_path: Path) -> None:
    root = small_coco(tmp_path, 6, 2)
    folder = root / "images"
    (folder / "train0.png").unlink()
    (folder / "train1.png").write_bytes(b"no image")
    save(folder / "train2.png", (30, 40))
    (folder / "val0.png").write_bytes((folder / "train3.png").read_bytes())
    (folder / "train5.png").write_bytes((folder / "train4.png").read_bytes())
    save(folder / "stray.png")
    found = problems(root)
    kinds = [kind for kind in found if "fewer than" not in kind]
    expected = {
        "missing image files": "train0.png",
        "images that cannot be read": "train1.png",
        "images whose size differs from the JSON file": (
            "train2.png has 30 x 40 pixels, but 40 x 30 in the JSON file, which is rotated"
        ),
        "validation images identical to a training image": "val0.png = images/train3.png",
        "duplicate images within a split": "train5.png = images/train4.png",
        "image files that no JSON file lists": "stray.png",
    }
    assert kinds == list(expected)
    for kind, text in expected.items():
        count, lines = found[kind]
        assert count == 1
        assert f"images/{text}" in lines.replace("\\", "/")
    assert "--fix" in found["missing image files"][1]


def test_the_orientation_of_a_photo_counts(tmp_path: Path) -> None:
    root = small_coco(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # A quarter turn.
    Image.new("RGB", (30, 40)).save(root / "images" / "train0.jpg", exif=exif)
    change(root, lambda content: content["images"][0].update(file_name="train0.jpg"))
    assert "images whose size differs from the JSON file" not in problems(root)


def test_faults_of_the_json_are_grouped(tmp_path: Path) -> None:
    root = small_coco(tmp_path)

    def edit(content: dict) -> None:
        for value in content["annotations"][:5]:
            value["bbox"][2], value["segmentation"] = 0, []
        content["annotations"][6]["bbox"] = [2, 2, 8, 4]  # Its mask is 8 x 8.

    change(root, edit)
    change(root, lambda content: content["images"][0].pop("width"), "val")
    change(root, lambda content: content["images"][1].update(id=None), "val")
    report = look(root)
    first = report.problems[0]
    assert first.kind == "image without id or file, which prevents training"
    assert "instances_val.json: number 1 of the images needs a whole `id`" in first.examples[0]
    of_kind = {p.kind: p for p in report.problems}
    size = of_kind["image without size"]
    assert size.examples == (
        "instances_val.json: image 5 val0.png has no size in the json; it is taken from the file",
    )
    empty = of_kind["box without area"]
    assert (empty.count, len(empty.examples)) == (5, 3)
    assert empty.examples[0].startswith("instances_train.json: annotation 2 has a box of 0 x 8")
    loose = of_kind["boxes that do not cover their masks"]
    assert loose.examples == ("images/train3.png: annotation 8 by 4.0 pixels",)


def test_how_often_classes_occur(tmp_path: Path) -> None:
    root = small_coco(tmp_path, 6, 2)

    def edit(content: dict, category: int) -> None:
        content["categories"] += [{"id": 10, "name": "emu"}]
        for value in content["annotations"]:
            value["category_id"] = category

    change(root, lambda content: content["annotations"].pop())
    rare = problems(root)["classes with fewer than 10 training objects"]
    assert rare == (2, "add some | cat (6) | dog (5)")
    change(root, lambda content: edit(content, 7))
    change(root, lambda content: edit(content, 9), "val")
    found = problems(root)
    assert "dog" in found["validation classes without a training object"][1]
    assert "cat" in found["classes without a validation object"][1]
    assert "emu" in found["unused categories"][1]
    assert not any("unused category" in kind for kind in found)


def test_many_objects_ask_for_more_detections(tmp_path: Path) -> None:
    root = small_coco(tmp_path)
    many = [annotation(100 + i, 1, segmentation=[], bbox=[2, 2, 8 + i / 16, 8]) for i in range(110)]
    change(root, lambda content: content["annotations"].extend(many))
    suggestions = look(root).suggestions
    assert any("112 objects" in s and "--detect.max_detections 200" in s for s in suggestions)


def test_of_an_empty_split(tmp_path: Path) -> None:
    root = small_coco(tmp_path)
    change(root, lambda content: content.update(annotations=[]), "val")
    report = look(root)
    assert (report.splits["val"].empty, report.splits["val"].aspects) == (2, None)
    write_coco(root / "instances_val.json", [], [])
    assert look(root).splits["val"].images == 0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = small_coco(tmp_path / "data", 12, 10)
    assert main(["data", str(root)]) == 0
    text = capsys.readouterr().out
    assert "no problems found" in text
    assert "small (under 32 x 32)" in text
    png = tmp_path / "sheet.png"
    assert main(["data", str(root), "--json", "--contact-sheet", str(png)]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["splits"]["train"]["objects"] == 24
    with Image.open(png) as sheet:
        assert sheet.width > 800
    assert main(["data", str(root), "--to", "coco"]) == 2
    assert "data --to needs --output" in capsys.readouterr().err


def test_a_contact_sheet_crosses_out_what_is_missing(tmp_path: Path) -> None:
    root = small_coco(tmp_path)
    whole = np.asarray(contact_sheet(open_dataset(str(root)), width=80))
    (root / "images" / "train0.png").unlink()
    crossed = np.asarray(contact_sheet(open_dataset(str(root)), width=80))
    assert whole.shape == crossed.shape
    different = np.argwhere((whole != crossed).any(-1))
    assert len(different)
    assert different.max(0).tolist() < [38 + 60, 16 + 80]


def test_what_is_drawn(tmp_path: Path) -> None:
    images = [image(1, "a.png")]
    objects = [
        annotation(1, 1, bbox=[4, 4, 16, 16], segmentation=[[4, 4, 20, 4, 20, 20, 4, 20]]),
        annotation(2, 1, category_id=9, bbox=[24, 2, 10, 20], segmentation=[]),
    ]
    save(tmp_path / "images" / "a.png")
    write_coco(tmp_path / "instances_train.json", images, objects)
    write_coco(tmp_path / "instances_val.json", images, objects)
    found = open_dataset(str(tmp_path)).train.objects(0)
    colors = class_colors(2)
    black = Image.new("RGB", (80, 60))
    drawn = np.asarray(draw_objects(black, found, colors, source=(40, 30)))
    assert (drawn[4, 48:68] == colors[1]).all()  # The upper edge of a box without a mask.
    assert not drawn[30, 58].any()
    assert (drawn[20, 20] == np.round(0.4 * colors[0].astype(np.float32))).all()
    assert not drawn[46, 20].any()


@pytest.mark.parametrize("name", ["bccd_boxes", "coco_mini_cc", "nuclei_instances"])
def test_the_real_sets_have_no_faults(shared_data: Path, name: str) -> None:
    found = {problem.kind for problem in look(shared_data / name).problems}
    assert not {kind for kind in found if "classes" not in kind and "categories" not in kind}


def test_a_comparison_of_a_long_image_is_small() -> None:
    nothing = Detections(
        boxes=np.zeros((0, 4)),
        scores=np.zeros(0),
        labels=np.zeros(0, np.int64),
        masks=(),
        size=(3000, 1),
    )
    page = compare(Image.new("RGB", (1, 3000)), no_objects(), nothing, ["a"], width=480)
    assert page.height <= 2048


def test_what_training_refuses_is_the_first_problem(tmp_path: Path) -> None:
    root = small_coco(tmp_path)
    change(root, lambda content: content.update(annotations=[]), "val")
    with pytest.raises(ValueError, match="no object that can be used in its val split") as refused:
        open_dataset(str(root))
    first = look(root).problems[0]
    assert str(first) == f"{refused.value}, which prevents training: 1"


def test_masks_are_compared_with_boxes_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUM_AT_ONCE", 3)
    rng = np.random.default_rng(0)
    runs = {"size": [30, 40], "counts": [65, 4, 26, 4, 1101]}
    records, expected = [], []
    for key in range(10):
        masks: list[Any] = [None, runs, {"size": [30, 40], "counts": [1200]}][: key % 4]
        masks += [
            tuple(rng.uniform(0, 30, 2 * n) for n in rng.integers(3, 9, count))
            for count in rng.integers(1, 4, key % 3)
        ]
        boxes = np.concatenate(
            (rng.uniform(0, 15, (len(masks), 2)), np.full((len(masks), 2), 20)), 1
        )
        for row, mask in enumerate(masks):
            bounds = None if mask is None else bounds_of(mask)
            if bounds is not None:
                x1, y1, x2, y2 = boxes[row].tolist()
                by = max(x1 - bounds[0], y1 - bounds[1], bounds[2] - x2, bounds[3] - y2)
                if by > 1:
                    expected.append((key, f"annotation {100 * key + row} by {by:.1f} pixels"))
        objects = Objects(
            ids=tuple(range(100 * key, 100 * key + len(masks))),
            boxes=boxes,
            labels=np.zeros(len(masks), np.int64),
            areas=np.ones(len(masks)),
            crowd=np.zeros(len(masks), np.bool_),
            masks=tuple(masks),
        )
        records.append(Record(id=key, file_name="x", width=40, height=30, objects=objects))
    assert [(record.id, text) for record, text in module._loose(records)] == expected
    assert len(expected) > 5


def test_near_duplicates_are_reported_with_what_was_compared(tmp_path: Path) -> None:
    root = small_coco(tmp_path, 12, 10)
    cells = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    photo = Image.fromarray(cells).resize((40, 32), Image.Resampling.BICUBIC)
    photo.save(root / "images/train0.png")
    photo.point(lambda value: value * 0.9).save(root / "images/val0.png")
    assert "look like a training image" in " ".join(problems(root))
    report = look(root)
    assert any("1 held-out images were compared with" in note for note in report.notes)
    sheet = inspect_with_sheet(str(root), sheet=True)[1]
    assert sheet.height > contact_sheet(open_dataset(str(root))).height + 150


def test_files_that_no_json_lists_are_found_once(tmp_path: Path) -> None:
    root = small_coco(tmp_path, 12, 10)
    known = next(path for path in root.rglob("*.png"))
    (known.parent / "link.png").symlink_to(known)
    (known.parent / ".hidden.png").write_bytes(known.read_bytes())
    (known.parent / "more.PNG").write_bytes(known.read_bytes())
    (known.parent / "notes.txt").write_text("x")
    assert [Path(name).name for name in module.unlisted(open_dataset(str(root)))] == ["more.PNG"]


def test_the_command_takes_deep_and_no_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = small_coco(tmp_path / "within" / "data", 12, 10)
    monkeypatch.setattr(facts, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(facts, "SETTLED_NS", -(10**12))
    assert main(["data", str(root), "--deep", "--no-cache"]) == 0
    assert not (tmp_path / "cache").exists()
    for found in ("", "no file has changed since"):
        assert main(["data", str(root), "--deep"]) == 0
        assert ("no file has changed since" in capsys.readouterr().out) == bool(found)
