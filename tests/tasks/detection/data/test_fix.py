"""`--fix` repairs unambiguous faults, counts them, keeps the old file, and leaves the rest."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from small_objects import HEIGHT, RING, WIDTH, annotation, image, save, small_coco, write_coco

from convnext.cli import main
from convnext.data.formats.coco import read_coco
from convnext.data.objects import open_dataset
from convnext.tasks.detection.fix import FixReport, fix, fix_dataset


def mend(
    root: Path, annotations: list[Any], images: list[Any] | None = None
) -> tuple[FixReport, dict[str, Any]]:
    """Write a JSON file and an image a.png, fix it, and return the report and the new content."""
    save(root / "images" / "a.png")
    path = write_coco(root / "x.json", images or [image(1, "a.png")], annotations)
    report = fix(path)
    return report, json.loads(path.read_text())


CHANGES: list[tuple[dict[str, Any], str, dict[str, Any] | None]] = [
    ({"bbox": [2, 2, 0, 5], "segmentation": []}, "box without area: removed", None),
    (
        {"bbox": [2, 2, 0, 5]},
        "objects without a box: rewritten",
        {"bbox": [2, 2, 8, 8]},
    ),
    ({"bbox": [10, 10, -8, -8]}, "objects without a box: rewritten", {"bbox": [2, 2, 8, 8]}),
    (
        {"bbox": [10, 10, -8, -6], "segmentation": []},
        "boxes with negative sides: rewritten",
        {"bbox": [2, 4, 8, 6]},
    ),
    ({"image_id": "1"}, "ids that are not whole numbers: rewritten", {"image_id": 1}),
    ({"category_id": 7.0}, "ids that are not whole numbers: rewritten", {"category_id": 7}),
    ({"bbox": ["2", "2", "8", "8"]}, "boxes written as text: rewritten", {"bbox": [2, 2, 8, 8]}),
    ({"area": 640000}, "area of another unit: computed", {"area": 64.0}),
    ({"id": 0}, "annotation id 0: renumbered", {"id": 2}),
    ({"bbox": [50, 2, 5, 5]}, "box outside the image: removed", None),
    ({"bbox": [35, 2, 10, 8]}, "box beyond the image: clipped", {"bbox": [35, 2, 5, 8]}),
    ({"bbox": [-3, 2, 10, 40]}, "box beyond the image: clipped", {"bbox": [0, 2, 7, 28]}),
    ({"image_id": 4}, "annotation of an unknown image: removed", None),
    ({"category_id": 1}, "annotation of an unknown category: removed", None),
    ({"category_id": True}, "annotation of an unknown category: removed", None),
    (
        {"segmentation": [[1, 1, 5, 6], RING]},
        "polygon with too few points: removed, the box is kept",
        {"segmentation": [RING]},
    ),
    (
        {"segmentation": [[1, 1]]},
        "polygon with too few points: removed, the box is kept",
        {"segmentation": []},
    ),
    ({"area": None}, "missing area: computed", {"area": 64.0}),
    (
        {"area": 0, "segmentation": [], "bbox": [1, 1, 3, 3]},
        "missing area: computed",
        {"area": 9},
    ),
    (
        {"area": -1, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 7, 1188]}},
        "missing area: computed",
        {"area": 7},
    ),
    ({"id": None}, "annotation without id: renumbered", {"id": 2}),
]


@pytest.mark.parametrize(("changes", "kind", "expected"), CHANGES)
def test_what_is_mended(
    tmp_path: Path, changes: dict[str, Any], kind: str, expected: dict[str, Any] | None
) -> None:
    bad = annotation(12, 1) | {"note": "mine"} | changes
    good = annotation(1, 1, category_id=9)
    report, content = mend(tmp_path, [good, bad])
    assert [(change.kind, change.count) for change in report.changes] == [(kind, 1)]
    where = "number 1 of" if bad["id"] is None else f"annotation {bad['id']}"
    assert report.changes[0].examples[0].startswith(where)
    assert report.left == ()
    assert content["annotations"][0] == good
    rest = content["annotations"][1:]
    assert rest == ([] if expected is None else [bad | expected])
    again = fix(tmp_path / "x.json")
    assert (again.changes, again.written) == ((), "")
    assert not [
        fault for fault in read_coco(tmp_path / "x.json").faults if "unused" not in fault.kind
    ]


def test_ids_that_are_there_twice(tmp_path: Path) -> None:
    boxes = [[2, 2, 8, side] for side in (5, 6, 7, 8)]
    ids = zip((3, 8, 3, 3), boxes, strict=True)
    report, content = mend(tmp_path, [annotation(key, 1, bbox=box) for key, box in ids])
    assert [value["id"] for value in content["annotations"]] == [3, 8, 9, 10]
    assert report.changes[0].examples == ("annotation 3 is now 9", "annotation 3 is now 10")


@pytest.mark.parametrize("missing", [{"width": None}, {"height": 0}, {"width": 10**12}])
def test_sizes_come_from_the_files(tmp_path: Path, missing: dict[str, Any]) -> None:
    report, content = mend(tmp_path, [annotation(1, 1)], [image(1, "a.png") | missing])
    assert content["images"] == [image(1, "a.png")]
    assert report.changes[0].kind == "image size: taken from the file"


@pytest.mark.parametrize(
    ("stated", "objects", "reason"),
    [
        # Drawn before or after the photo was turned upright.
        ((HEIGHT, WIDTH), [annotation(1, 1)], "one is the other rotated"),
        ((2 * WIDTH, 2 * HEIGHT), [annotation(1, 1)], "one is the other resized"),
        ((100, 50), [annotation(1, 1, bbox=[60, 5, 20, 20])], "boxes lie outside the image file"),
        (
            (50, 30),
            [annotation(1, 1, segmentation={"size": [30, 50], "counts": [1500]})],
            "it has masks of another size",
        ),
        ((HEIGHT, WIDTH), [annotation(1, 1, bbox=[20, 5, 18, 18])], ""),
        ((WIDTH + 3, HEIGHT), [annotation(1, 1)], ""),
    ],
)
def test_sizes_that_the_objects_speak_against_stay(
    tmp_path: Path, stated: tuple[int, int], objects: list[Any], reason: str
) -> None:
    images = [image(1, "a.png", width=stated[0], height=stated[1])]
    report, content = mend(tmp_path, objects, images)
    found = (content["images"][0]["width"], content["images"][0]["height"])
    if reason:
        assert found == stated
        assert reason in report.left[0].text
        assert content["annotations"] == objects
    else:
        assert found == (WIDTH, HEIGHT)


def test_images_without_a_file_go_with_their_objects(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / "images" / name)
    (tmp_path / "images" / "c.png").write_bytes(b"no image")
    images = [image(i, f"{name}.png") for i, name in enumerate("abcd", 1)]
    path = write_coco(tmp_path / "x.json", images, [annotation(i, i) for i in range(1, 5)])
    report = fix(path)
    found = read_coco(path)
    assert [record.id for record in found.records] == [1, 2, 3]
    assert [len(record.objects) for record in found.records] == [1, 1, 1]
    assert [fault.where for fault in report.left] == ["image 3 c.png"]
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).unlink()
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"2 of 3 images are not in .* such as a.png"):
        fix(path)
    assert path.read_bytes() == before


def test_what_needs_a_decision_stays(tmp_path: Path) -> None:
    images = [image(1, "a.png"), image(1, "gone.png"), image(None, "a.png")]
    objects = [
        annotation(1, 1, bbox=[50, 2, 5, 5]),
        annotation(2, None),
        annotation(3, 1, segmentation={"size": [9, 9], "counts": [81]}),
        annotation(4, 1, bbox=[1, 2, 3], segmentation=[]),
    ]
    report, content = mend(tmp_path, objects, images)
    assert (content["images"], content["annotations"]) == (images, objects)
    assert report.written == ""
    kinds = {fault.kind for fault in report.left}
    assert {"duplicate image id", "image without id or file", "no box"} <= kinds


def test_the_old_file_is_never_overwritten(tmp_path: Path) -> None:
    root = small_coco(tmp_path / "data")
    path = root / "instances_train.json"
    originals = []
    for number in range(2):
        content = json.loads(path.read_text())
        content["annotations"].append(annotation(90 + number, 1, bbox=[1, 1, 0, 0]))
        path.write_text(json.dumps(content))
        originals.append(path.read_bytes())
        report = fix_dataset(str(root))
        assert [bool(file.written) for file in report.files] == [True, False]
    kept = sorted(root.glob("*before-fix*"), key=lambda p: len(p.name))
    assert [file.read_bytes() for file in kept] == originals
    # The original that is kept is not read as data.
    assert len(open_dataset(str(root)).train) == 4
    assert not open_dataset(str(root)).faults


def test_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = small_coco(tmp_path / "data")
    path = root / "instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"].append(annotation(90, 99))
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    command = ["data", str(root), "--fix", "--output", str(tmp_path / "new")]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [len(file["changes"]) for file in printed["files"]] == [0, 1]
    assert path.read_bytes() == before
    for split, count in (("train", 4), ("val", 2)):
        found = read_coco(tmp_path / "new" / f"instances_{split}.json")
        assert (len(found.records), found.faults) == (count, ())
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_killed_command_leaves_no_half_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, output = tmp_path / "data", tmp_path / "fixed"
    for split in ("train", "val"):
        save(root / split / "a.png")
        write_coco(root / f"instances_{split}.json", [image(1, "a.png")], [])
    replaced, done = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        if done:
            raise KeyboardInterrupt
        done.append(target)
        return replaced(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        fix_dataset(str(root), str(output))
    assert done
    assert not output.exists()
    monkeypatch.setattr(Path, "replace", replaced)
    reports = fix_dataset(str(root), str(output))
    assert sorted(p.name for p in output.glob("*.json")) == [
        "instances_train.json",
        "instances_val.json",
    ]
    assert {Path(report.written).parent for report in reports.files} == {output}
    assert not list(output.glob(".*"))


ODD: list[Any] = [
    *(None, True, -1, 1.5, 1e300, float("nan"), 10**30, "1", "", [], {}, [None], [["a"]]),
    *([-5, -5, 1e9, 1e9], [1, 2, 3, 4], [[1e12, 1, 2, 2, 3, -1e12]]),
    *({"size": [30, 40], "counts": [1200]}, {"size": None, "counts": {}}, {"counts": "zz"}),
]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_in_the_json_one_time_is_enough(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    root = small_coco(tmp_path)
    path = root / "instances_train.json"
    content = json.loads(path.read_text())
    for _ in range(6):
        values = draw.choice([content["images"], content["annotations"], content["annotations"]])
        value = draw.choice(values)
        value[draw.choice(sorted(value))] = draw.choice(ODD)
    path.write_text(json.dumps(content))
    fix(path)
    again = fix(path)
    assert again.changes == ()
    assert read_coco(path).classes == ("cat", "dog")
