"""Layouts of strangers that were read wrongly, or answered by a text that does not help."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from object_layouts import WRITERS, truth
from PIL import Image
from small_objects import save

from convnext.data.formats.records import ReadOptions
from convnext.data.objects import open_dataset as open_objects
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
