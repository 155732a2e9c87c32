"""Layouts of strangers that were read wrongly, or answered by a text that does not help."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from object_layouts import WRITERS, coco, truth
from PIL import Image
from small_objects import save

from convnext.data.formats.records import ReadOptions
from convnext.data.formats.tables import TableColumns
from convnext.data.objects import open_dataset as open_objects
from convnext.tasks import recognize_task
from convnext.tasks.classification.data import open_dataset
from convnext.tasks.segmentation.data import open_dataset as open_masks


def mask(path: Path, *values: int) -> None:
    """Write a mask of 40 x 30 pixels with regions of some values."""
    pixels = np.zeros((30, 40), np.uint8)
    for number, value in enumerate(values):
        pixels[5:20, 5 + 12 * number : 15 + 12 * number] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("name", ["unlabeled", "Unlabelled", "not_annotated", "unsorted"])
def test_images_without_a_class_are_not_a_class(make_folder, name) -> None:
    root = make_folder({"cat": 4, "dog": 4, name: 5})
    data = open_dataset(str(root))
    assert data.classes == ("cat", "dog")
    assert any(f"{name}/ says that its 5 images have no class; left out" in f for f in data.faults)
    assert name in open_dataset(str(root), layout="class_folders").classes


def test_masks_by_two_tools_are_refused(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "img" / f"{i}.png", seed=i)
        mask(tmp_path / "masks_machine" / f"{i}.png", 1, 2)
        mask(tmp_path / "masks_human" / f"{i}.png", 100, 200)
    with pytest.raises(ValueError, match=r"masks_human and .*masks_machine could both hold"):
        open_masks(str(tmp_path))


def test_folders_around_the_splits_do_not_count(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for i in range(3):
            save(tmp_path / "images/10k" / split / f"{split}{i}.jpg", seed=i)
            mask(tmp_path / "labels/sem_seg/masks" / split / f"{split}{i}.png", 1, 2)
    data = open_masks(str(tmp_path))
    assert (len(data.train), len(data.val)) == (3, 3)
    assert data.train.mask(0).max() == 2


def test_images_and_masks_without_a_common_name_are_named(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "images" / f"photo{'abc'[i]}.png", seed=i)
        mask(tmp_path / "masks" / f"seg{'xyz'[i]}.png", 1)
    with pytest.raises(ValueError, match=r"no image and mask have the same name, such as .*photoa"):
        open_masks(str(tmp_path))


@pytest.mark.parametrize("content", ["dict", "list"])
def test_labels_in_json(make_folder, content) -> None:
    root = make_folder({"img": 8})
    labels = {f"{i:03d}.png": "ab"[i % 2] for i in range(8)}
    rows = [{"image": name, "label": label, "width": 20} for name, label in labels.items()]
    (root / "labels.json").write_text(json.dumps(labels if content == "dict" else rows))
    for path in (root, root / "labels.json"):
        data = open_dataset(str(path))
        assert data.classes == ("a", "b")
        assert len(data.train) + len(data.val) == 8


def test_texts_without_a_header_are_described_by_their_words(make_folder) -> None:
    root = make_folder({"imgs": 8})
    lines = [f"{'ab'[i % 2]} imgs/{i:03d}.png" for i in range(8)]
    (root / "labels.txt").write_text("\n".join(lines))
    notes = "\n".join(open_dataset(str(root)).notes)
    assert "images by the column 'second word', labels by the column 'first word'" in notes


def test_a_split_that_is_left_out_is_not_listed(make_folder) -> None:
    root = make_folder({"train/a": 4, "train/b": 4, "val": 3})
    data = open_dataset(str(root))
    assert "split: folders train/; 2 of 8 images" in "\n".join(data.notes)
    assert any("val/ has no class folders" in fault for fault in data.faults)


def test_splits_joined_to_classes_and_other_versions_say_what_to_rename(make_folder) -> None:
    names = [f"{split}_{c}" for split in ("train", "test") for c in ("rose", "tulip")]
    root = make_folder(dict.fromkeys(names, 3))
    message = "if test_rose is the split test of a class, rename it to test/rose"
    with pytest.raises(ValueError, match=message):
        open_dataset(str(root))
    folds = make_folder({f"cv_{k}/{c}": 3 for k in (1, 2) for c in "ab"}, name="folds")
    with pytest.raises(ValueError, match="if they are folds, rename them to fold_0, fold_1"):
        open_dataset(str(folds))


def test_names_of_classes_in_labels_txt_beside_yolo(tmp_path: Path) -> None:
    for i in range(5):
        save(tmp_path / f"{i}.png", seed=i)
        (tmp_path / f"{i}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "labels.txt").write_text("widget\n")
    data = open_objects(str(tmp_path))
    assert data.classes == ("widget",)
    assert len(data.train) + len(data.val) == 5


@pytest.mark.parametrize("layout", ["yolo", "voc", "labelme", "cvat"])
def test_a_wrong_layout_of_objects_is_answered_by_the_right_one(tmp_path: Path, layout) -> None:
    WRITERS["coco"](tmp_path, truth())
    with pytest.raises(ValueError, match=r"looks like COCO's json .* or give --layout coco"):
        open_objects(str(tmp_path), options=ReadOptions(layout=layout))


def test_objects_that_are_read_as_class_folders_are_named(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "val")):
        save(tmp_path / "images" / split / f"{split}{i}.png", seed=i)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        content = {
            "images": [{"id": 1, "file_name": f"{split}{i}.png", "width": 40, "height": 30}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 4, 5]}],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (tmp_path / "annotations" / f"{split}.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="looks like COCO's json"):
        open_dataset(str(tmp_path), layout="class_folders")


def test_splits_are_no_classes_in_names_of_files(make_folder) -> None:
    root = make_folder({"photos": 6})
    for i, path in enumerate(sorted((root / "photos").iterdir())):
        path.rename(path.with_name(f"{('train', 'val')[i % 2]}_{i}.png"))
    with pytest.raises(ValueError, match="named for splits or annotations"):
        open_dataset(str(root), layout="file_names")


def test_copies_within_the_test_split_are_counted(make_folder) -> None:
    from convnext.tasks.classification.inspect import inspect

    root = make_folder({"train/a": 3, "train/b": 3, "test/a": 2, "test/b": 2})
    (root / "test/a/copy.png").write_bytes((root / "test/a/000.png").read_bytes())
    assert any(
        line.startswith("duplicate test images with identical pixels: 1 (")
        for line in inspect(str(root)).problems
    )


def test_a_table_that_gives_images_of_split_folders_other_labels_is_refused(make_folder) -> None:
    root = make_folder({f"train/p{k}": 4 for k in (1, 2, 3)} | {"test/p4": 2})
    for path in root.glob("*/*/*.png"):
        path.rename(path.with_name(f"{path.parent.name}_{path.name}"))
    names = sorted(path.name for path in root.glob("*/*/*.png"))
    rows = [f"{name},{'ab'[i % 2]}" for i, name in enumerate(names)]
    (root / "labels.csv").write_text("\n".join(["filename,label", *rows]))
    with pytest.raises(ValueError, match=r"may be its folders .p1, p2, p3 .* labels in labels"):
        open_dataset(str(root))
    assert open_dataset(str(root / "labels.csv")).classes == ("a", "b")
    # The same labels under other names, and a column that is not one of labels, do not matter.
    for header, value in (("filename,label", lambda name: f"no. {name[1]}"), ("filename,age", len)):
        rows = [f"{name},{value(name)}" for name in names]
        (root / "labels.csv").write_text("\n".join([header, *rows]))
        assert open_dataset(str(root), strict=False).classes == ("p1", "p2", "p3")


def test_folders_inside_the_classes_are_named(make_folder) -> None:
    counts = {"a/abbey": 4, "a/airport": 4, "b/bar": 4}
    text = (
        "the classes are the outer folders; those inside them (a/abbey, a/airport, b/bar) are not"
    )
    for root in (
        make_folder(counts),
        make_folder({f"train/{name}": n for name, n in counts.items()}, name="split"),
    ):
        data = open_dataset(str(root))
        assert data.classes == ("a", "b")
        assert any(note.startswith(text) for note in data.notes)
    flat = open_dataset(str(make_folder({"a": 4, "b/inner": 4}, name="flat")))
    assert not any("told apart" in note for note in flat.notes)


def test_names_of_files_leave_masks_out_and_honor_lists(tmp_path: Path) -> None:
    """Oxford-IIIT Pet: images/, annotations/trimaps/ and lists of names with three numbers."""
    names = [f"{breed}_{i}" for breed in ("Abyssinian", "american_bulldog") for i in range(1, 7)]
    for seed, name in enumerate(names):
        save(tmp_path / f"images/{name}.jpg", seed=seed)
        mask(tmp_path / f"annotations/trimaps/{name}.png", 1, 2, 3)
    rows = [f"{name} {1 + (name[0] == 'a')} 1 1" for name in names]
    (tmp_path / "annotations/trainval.txt").write_text("\n".join(r for r in rows if "_5" not in r))
    (tmp_path / "annotations/test.txt").write_text("\n".join(r for r in rows if "_5" in r))
    data = open_dataset(str(tmp_path), layout="file_names")
    assert data.classes == ("Abyssinian", "american_bulldog")
    assert (len(data.train) + len(data.val), len(data.test)) == (10, 2)
    sources = [part.source(i) for part in data.parts.values() for i in range(len(part))]
    assert {Path(source).parent.name for source in sources} == {"images"}
    assert "12 masks of the images are left out" in data.notes


def words(counts: dict[str, int], **category: object) -> dict[str, object]:
    """Return labels in COCO's words, without objects."""
    ids = {name: number for number, name in enumerate(counts)}
    listed = [(f"{name}/{i:03d}.png", ids[name]) for name, n in counts.items() for i in range(n)]
    return {
        "images": [{"id": i, "file_name": file} for i, (file, _) in enumerate(listed)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": c, **category}
            for i, (_, c) in enumerate(listed)
        ],
        "categories": [{"id": number, "name": f"the {name}"} for name, number in ids.items()],
    }


def test_labels_in_words_of_coco(make_folder) -> None:
    root = make_folder({"pictures/1": 5, "pictures/2": 5, "pictures/3": 4})
    train = words({"pictures/1": 5, "pictures/2": 5})
    (root / "train2017.json").write_text(json.dumps(train))
    (root / "val2017.json").write_text(json.dumps(words({"pictures/3": 4, "pictures/2": 0})))
    assert recognize_task(root) == "classify"
    data = open_dataset(str(root), strict=False)
    assert data.classes == ("the pictures/1", "the pictures/2", "the pictures/3")
    assert (len(data.train), len(data.val)) == (10, 4)
    assert "split: train2017.json, val2017.json (train 10, val 4 images)" in data.notes
    # With boxes, it is data for detection.
    objects = words({"pictures/1": 5, "pictures/2": 5}, bbox=[1, 1, 5, 5])
    (root / "train2017.json").write_text(json.dumps(objects))
    assert recognize_task(root) == "detect"
    train["categories"] = [{"id": 0, "name": "x"}, {"id": 1, "name": "x"}]
    for key, value, message in (
        ("", "", None),
        ("annotations", [{"image_id": 1, "category_id": 7}], "annotation 0 has the category 7"),
        ("images", [{"id": [1], "file_name": "a"}], "images 0 is not an object with ids"),
        ("annotations", {"category_id": 1}, "annotations 0 is not an object with ids"),
    ):
        (root / "train2017.json").write_text(json.dumps({**train, key: value}))
        if message is None:
            assert open_dataset(str(root), strict=False).classes[-2:] == ("x (0)", "x (1)")
        else:
            with pytest.raises(ValueError, match=message):
                open_dataset(str(root), strict=False)


def test_splits_of_json_files_with_other_words(tmp_path: Path) -> None:
    coco(tmp_path, truth(), "cells_coco_{}.json")
    data = open_objects(str(tmp_path), strict=False)
    assert {split: len(part) for split, part in data.parts.items()} == {
        split: len(part) for split, part in truth().items()
    }
    given = ReadOptions(annotations="cells_coco_train.json,cells_coco_val.json")
    assert set(open_objects(str(tmp_path), options=given).parts) == {"train", "val"}


def test_one_of_several_lists_of_splits_is_used_and_said_so(make_folder) -> None:
    root = make_folder({"images/banded": 6, "images/dotted": 6})
    (root / "labels").mkdir()
    for number in (1, 2):
        for k, split in enumerate(("train", "val", "test")):
            numbers = [(2 * k + j + number) % 6 for j in (0, 1)]
            names = [f"{c}/{i:03d}.png" for c in ("banded", "dotted") for i in numbers]
            (root / f"labels/{split}{number}.txt").write_text("\n".join(names))
    data = open_dataset(str(root))
    assert (len(data.train), len(data.val), len(data.test)) == (4, 4, 4)
    assert sorted(Path(data.val.source(i)).stem for i in range(4)) == ["003", "003", "004", "004"]
    assert "lists of other splits, not used: 3 (such as test2.txt)" in data.faults


def test_masks_in_tables_are_refused_unless_a_column_of_classes_is_named(make_folder) -> None:
    root = make_folder({"train_images": 8})
    rows = [f"{i:03d}.png,{1 + i % 2},1 5 9 {i}" for i in range(8)]
    (root / "train.csv").write_text("\n".join(["ImageId,ClassId,EncodedPixels", *rows]))
    with pytest.raises(ValueError, match=r"'EncodedPixels' has masks as run lengths.*label=NAME"):
        open_dataset(str(root))
    columns = TableColumns.parse("label=ClassId")
    assert open_dataset(str(root), columns=columns).classes == ("1", "2")
