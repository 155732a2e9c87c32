"""The same objects in every layout are the same records, and stay so through conversion."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_layouts import CLASSES, WRITERS, Box, Truth, coco, truth, voc, yolo
from small_objects import HEIGHT, WIDTH

from convnext.cli import main
from convnext.data.formats.layouts import LAYOUTS, is_detection
from convnext.data.formats.records import ReadOptions
from convnext.data.objects import DetectionData, open_dataset
from convnext.tasks.detection.convert import to_coco
from convnext.tasks.detection.recipe import ReadingOptions


def read(data: DetectionData) -> Truth:
    """Return the boxes of a data set by image and split."""
    found: Truth = {}
    for split, images in data.parts.items():
        found[split] = {}
        for record in images.records:
            boxes: list[Box] = []
            for (x1, y1, x2, y2), label in zip(
                record.objects.boxes.tolist(), record.objects.labels.tolist(), strict=True
            ):
                sides = (round(value) for value in (x1, y1, x2 - x1, y2 - y1))
                boxes.append((data.classes[label], *sides))
            found[split][Path(record.file_name).stem] = boxes
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_every_layout_is_read_and_converted(tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    WRITERS[name](source, truth())
    assert is_detection(source)
    data = open_dataset(str(source))
    assert data.classes == CLASSES
    assert read(data) == truth()
    assert data.has_val
    for images in data.parts.values():
        assert images.open(0, "RGB").size == (WIDTH, HEIGHT)
    assert data.understood is not None
    assert data.understood.images == {"train": 2, "val": 2, "test": 2}
    assert [note.split(":")[0] for note in data.notes[:2]] == ["layout", "split"]
    report = to_coco(source, tmp_path / "coco")
    assert report.num_images == {"train": 2, "val": 2, "test": 2}
    again = open_dataset(str(tmp_path / "coco"))
    assert (read(again), again.classes) == (truth(), CLASSES)
    assert [m is None for m in again.train.objects(0).masks] == [
        m is None for m in data.train.objects(0).masks
    ]


@pytest.mark.parametrize("name", ["keras", "voc beside", "yolo of roboflow", "labelme", "createml"])
def test_without_validation_a_share_of_training_is_held_out(tmp_path: Path, name: str) -> None:
    data = truth(("train", "test"))
    data["train"] |= {f"train_{i}": data["train"]["train_a"] for i in range(8)}
    WRITERS[name](tmp_path, data)
    found = open_dataset(str(tmp_path))
    assert (len(found.train), len(found.val)) == (8, 2)
    assert found.test is not None
    assert set(read(found)["test"]) == set(data["test"])
    assert not found.has_val
    assert any("without validation" in note for note in found.notes)


def test_two_layouts_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    coco(tmp_path, truth())
    voc(tmp_path, truth())
    with pytest.raises(ValueError, match=r"several layouts: .*--layout") as error:
        open_dataset(str(tmp_path))
    assert "COCO's json" in str(error.value)
    assert "Pascal VOC xml" in str(error.value)
    for layout in ("coco", "voc"):
        assert read(open_dataset(str(tmp_path), options=ReadOptions(layout=layout))) == truth()
    with pytest.raises(ValueError, match="--layout is 'pascal', but must be one of coco, yolo"):
        open_dataset(str(tmp_path), options=ReadOptions(layout="pascal"))


def test_a_folder_around_the_data_is_entered(tmp_path: Path) -> None:
    yolo_root = tmp_path / "repository" / "dataset"
    yolo_root.mkdir(parents=True)
    yolo(yolo_root, truth())
    (tmp_path / "repository" / "README.txt").write_text("A data set.\n")
    assert read(open_dataset(str(tmp_path / "repository"))) == truth()


def test_copies_of_a_json_are_ignored_and_equals_are_refused(tmp_path: Path) -> None:
    coco(tmp_path, truth())
    path = tmp_path / "annotations" / "instances_train.json"
    path.with_name("instances_train (1).json").write_bytes(path.read_bytes() + b" ")
    data = open_dataset(str(tmp_path))
    assert read(data) == truth()
    assert any("instances_train (1).json is another COCO json" in note for note in data.notes)
    path.with_name("instances_train2017.json").write_bytes(path.read_bytes() + b"  ")
    with pytest.raises(ValueError, match=r"could be in .* --annotations"):
        open_dataset(str(tmp_path))
    names = "annotations/instances_train2017.json, annotations/instances_val.json"
    chosen = open_dataset(str(tmp_path), options=ReadOptions(annotations=names))
    assert read(chosen) == {split: truth()[split] for split in ("train", "val")}


def test_the_command_takes_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco(tmp_path / "data", truth())
    voc(tmp_path / "data", truth())
    assert main(["data", str(tmp_path / "data"), "--task", "detect"]) == 2
    assert "--layout coco" in capsys.readouterr().err
    assert main(["data", str(tmp_path / "data"), "--layout", "voc"]) == 0
    assert "layout: Pascal VOC" in capsys.readouterr().out
    command = ["data", str(tmp_path / "data"), "--layout", "voc", "--to", "coco"]
    assert main([*command, "--output", str(tmp_path / "new")]) == 0
    assert read(open_dataset(str(tmp_path / "new"))) == truth()


def test_nothing_outside_the_data_is_read(tmp_path: Path) -> None:
    coco(tmp_path / "data", truth())
    outside = tmp_path / "elsewhere"
    (tmp_path / "data" / "train").rename(outside)
    path = tmp_path / "data" / "annotations" / "instances_train.json"
    text = path.read_text()
    path.write_text(text.replace("train_", "../../elsewhere/train_"))
    with pytest.raises(ValueError, match=r"lies outside .* --allow-outside"):
        open_dataset(str(tmp_path / "data"))
    allowed = open_dataset(str(tmp_path / "data"), options=ReadOptions(allow_outside=True))
    assert read(allowed) == truth()
    path.write_text(text)
    given = open_dataset(str(tmp_path / "data"), options=ReadOptions(images=str(outside)))
    assert read(given) == truth()
    (tmp_path / "data" / "train").symlink_to(outside)
    assert read(open_dataset(str(tmp_path / "data"))) == truth()


sides = st.tuples(
    st.sampled_from(CLASSES),
    st.integers(0, 20),
    st.integers(0, 15),
    st.integers(1, WIDTH - 21),
    st.integers(1, HEIGHT - 16),
)
images = st.lists(st.lists(sides, min_size=1, max_size=4, unique=True), min_size=2, max_size=3)


@pytest.mark.parametrize("name", WRITERS)
@settings(deadline=None, derandomize=True, max_examples=8)
@given(images, images)
def test_random_objects_there_and_back(name: str, train: list, val: list) -> None:
    data: Truth = {
        split: {f"{split}_{i}": boxes for i, boxes in enumerate(listed)}
        for split, listed in (("train", train), ("val", val))
    }
    data["test"] = {"test_0": [("cat", 1, 1, 5, 5)], "test_1": [("dog", 2, 2, 5, 5)]}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.mkdir()
        WRITERS[name](source, data)
        assert read(open_dataset(str(source), strict=False)) == data
        to_coco(source, Path(folder) / "coco")
        assert read(open_dataset(f"{folder}/coco", strict=False)) == data


def test_the_help_lists_all_layouts() -> None:
    listed = (ReadingOptions.__doc__ or "").split("Layout of objects: ")[1].split(". For ")[0]
    words = re.findall(r"[a-z0-9]+(?:-[a-z]+)?", listed)
    assert set(LAYOUTS) == set(words) - {"or"}
