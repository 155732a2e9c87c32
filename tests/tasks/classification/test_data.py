"""Layouts on disk: their images, held-out images, and error messages."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import convnext
from convnext.tasks.classification.data import facts, open_dataset


def sources(samples):
    return [samples.source(i) for i in range(len(samples))]


def test_folders_with_a_split(make_folder):
    root = make_folder({"train/cat": 3, "train/dog": 4, "val/dog": 1, "val/cat": 2})
    data = open_dataset(str(root))
    assert data.classes == ("cat", "dog")
    assert data.train.labels == [0, 0, 0, 1, 1, 1, 1]
    assert data.val.labels == [0, 0, 1]
    assert data.train.source(0) == str(root / "train/cat/000.png")
    assert data.train.open(0, "RGB").size == (20, 16)
    assert data.train.header(0).width == 20
    assert data.train.num_bytes(0) == (root / "train/cat/000.png").stat().st_size
    assert data.notes[3:] == ()


@pytest.mark.parametrize("name", ["validation", "valid", "dev", "Val_Set"])
def test_other_names_of_the_validation_part_are_accepted_and_said(make_folder, name):
    root = make_folder({"train/a": 2, "train/b": 2, f"{name}/a": 1, f"{name}/b": 1})
    data = open_dataset(str(root))
    assert len(data.val) == 2
    assert data.notes[:2] == (
        "layout: class folders",
        f"split: folders train/, {name}/ (val) (train 4, val 2 images)",
    )


def test_a_test_part_beside_a_validation_part_is_left_alone(make_folder):
    root = make_folder({f"{part}/{c}": 2 for part in ("train", "val", "test") for c in "ab"})
    data = open_dataset(str(root))
    assert all(f"{os.sep}val{os.sep}" in s for s in sources(data.val))
    assert data.notes[1] == (
        "split: folders train/, val/, test/; test is kept apart (train 4, val 4, test 4 images)"
    )
    assert data.test is not None
    assert all(f"{os.sep}test{os.sep}" in s for s in sources(data.test))


def test_nested_files_count_and_hidden_ones_do_not(make_folder, noise):
    root = make_folder({"train/a/deep/er": 2, "train/b": 1, "val/a": 1, "val/b": 1})
    for name in ("train/a/.hidden.png", "train/.cache/x.png", ".git/x.png", "train/b/._x.png"):
        (root / name).parent.mkdir(exist_ok=True)
        noise().save(root / name)
    data = open_dataset(str(root))
    assert data.classes == ("a", "b")
    assert data.train.labels == [0, 0, 1]


def test_endings_are_read_in_any_case_and_other_files_are_named(make_folder, noise):
    root = make_folder({"a": 4, "b": 4})
    noise().save(root / "a" / "photo.JPG", "JPEG")
    noise().save(root / "b" / "scan.Tiff", "TIFF")
    (root / "a" / "list.txt").write_text("x")
    (root / "readme.md").write_text("not inside a class")
    data = open_dataset(str(root))
    assert len(data.train) + len(data.val) == 10
    assert any("not images by their ending, left out: 1 (1 .txt" in fault for fault in data.faults)
    assert any("a/list.txt" in fault for fault in data.faults)


def test_links_are_followed_but_never_in_circles(make_folder):
    root = make_folder({"a": 2, "b": 2})
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    data = open_dataset(str(root))
    assert len(data.train) + len(data.val) < 12


def test_without_a_split_a_fixed_share_of_each_class_is_held_out(make_folder):
    root = make_folder({"a": 20, "b": 10, "c": 2, "d": 1})
    data = open_dataset(str(root), val_share=0.2)
    assert Counter(data.val.labels) == {0: 4, 1: 2, 2: 1}
    assert Counter(data.train.labels) == {0: 16, 1: 8, 2: 1, 3: 1}
    assert not set(sources(data.train)) & set(sources(data.val))
    assert data.notes[1] == (
        "split: none; 7 of 33 images, chosen by file name in each class, are held out for "
        "validation (train 26, val 7 images)"
    )
    assert data.faults == ("classes without any validation image: d",)
    again = open_dataset(str(root), val_share=0.2)
    assert sources(again.val) == sources(data.val)


def test_what_is_held_out_hardly_changes_when_images_are_added(make_folder, noise):
    root = make_folder({"a": 40, "b": 40})
    before = set(sources(open_dataset(str(root)).val))
    noise().save(root / "a" / "new.png")
    after = set(sources(open_dataset(str(root)).val))
    assert len(before ^ after) <= 2


def test_training_without_validation_is_split_too(make_folder):
    data = open_dataset(str(make_folder({"train/a": 10, "train/b": 10})))
    assert Counter(data.val.labels) == {0: 2, 1: 2}


def test_a_tar_beside_class_folders_is_left_alone(make_folder):
    root = make_folder({"a": 5, "b": 5})
    (root / "download.tar").write_bytes(bytes(10_240))
    assert open_dataset(str(root)).classes == ("a", "b")


def test_a_class_may_be_called_train(make_folder):
    data = open_dataset(str(make_folder({"bus": 5, "car": 5, "train": 5})))
    assert data.classes == ("bus", "car", "train")


def test_empty_class_folders_are_dropped_and_named(make_folder):
    root = make_folder({"train/a": 2, "train/b": 2, "train/none": 0, "val/a": 1, "val/b": 0})
    data = open_dataset(str(root))
    assert data.classes == ("a", "b")
    assert data.faults == (
        "class folders without images, left out: 1 (none)",
        "classes without any validation image: b",
    )
    assert set(data.faults) <= set(data.notes)


def test_a_class_that_training_lacks_is_refused_unless_one_only_looks(make_folder):
    root = make_folder({"train/a": 2, "train/b": 2, "train/new": 0, "val/a": 1, "val/new": 1})
    with pytest.raises(ValueError, match="classes that training lacks: new"):
        open_dataset(str(root))
    data = open_dataset(str(root), strict=False)
    assert data.classes == ("a", "b", "new")
    assert data.faults[0] == "classes that only validation has: new"


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "it is empty"),
        ({"a": 0, "b": 0}, r"it holds 2 folders \(a, b\); supported layouts: train/CLASS"),
        ({"only": 5}, "only one class"),
        ({"images/train": 2, "annotations/train": 2}, "for segmentation or detection"),
        (
            {"train": 3, "val": 2},
            r"no class folders with images in .*train: it holds 3 files \.png",
        ),
        (
            {f"{name}/{part}/{c}": 1 for name in "xy" for part in ("train", "val") for c in "ab"},
            "holds several data sets: x/, y/; give one of them",
        ),
        ({"train/a": 2, "train/b": 2, "val/a": 0}, "no images for validation"),
        ({"a": 1, "b": 1}, "no images for validation"),
    ],
)
def test_what_is_no_data_set_is_refused_with_what_was_found(make_folder, tmp_path, counts, message):
    root = make_folder(counts) if counts else tmp_path
    with pytest.raises(ValueError, match=message):
        open_dataset(str(root))


def test_absent_paths_files_and_addresses_are_refused(make_folder, tmp_path):
    make_folder({"a": 1}, name="photos")
    with pytest.raises(ValueError, match="did you mean 'photos'"):
        open_dataset(str(tmp_path / "photo"))
    with pytest.raises(ValueError, match="is a file; use a folder"):
        open_dataset(str(tmp_path / "photos/a/000.png"))
    with pytest.raises(ValueError, match="would start a program"):
        open_dataset("pipe:cat x.tar")
    with pytest.raises(ValueError, match="val_share is 1"):
        open_dataset(str(tmp_path / "photos"), val_share=1)


def test_facts_are_read_from_headers(make_folder, noise):
    root = make_folder({"train/a": 9, "train/b": 3, "val/a": 1, "val/b": 1}, size=(70, 50))
    noise(500, 400).save(root / "train/a/large.png")
    (root / "train/a/broken.png").write_bytes(b"")
    known = facts(open_dataset(str(root)))
    assert (known.image_width, known.image_height) == (70, 50)
    assert (known.num_train, known.num_val, known.num_classes) == (14, 2, 2)
    assert known.class_counts == (11, 3)
    assert not known.grayscale


def test_grayscale_is_seen_in_any_mode(make_folder, noise):
    root = make_folder({"train/a": 1, "train/b": 1, "val/a": 1, "val/b": 1})
    for name in ("train/a/000.png", "train/b/000.png"):
        noise(mode="L").convert("RGB").save(root / name)
    noise(mode="L").save(root / "train/a/grey.png")
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(root / "train/b/wide.png")
    noise(mode="L").convert("RGB").save(root / "train/b/grey.jpg")
    assert facts(open_dataset(str(root))).grayscale
    noise(mode="RGB").save(root / "train/b/colour.png")
    assert not facts(open_dataset(str(root))).grayscale


def test_facts_of_nothing_readable(make_folder):
    root = make_folder({"train/a": 1, "train/b": 1, "val/a": 1, "val/b": 1})
    for path in Path(root).rglob("train/*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the sampled training images .* empty"):
        facts(open_dataset(str(root)))


def test_the_digits_are_those_of_uci():
    data = open_dataset("digits")
    assert (len(data.train), len(data.val)) == (1437, 360)
    assert set(Counter(data.val.labels).values()) == {36}
    assert data.classes == tuple("0123456789")
    # Their pixels in any order.
    parts = (data.train, data.val)
    pixels = sorted(p.open(i, "L").tobytes() for p in parts for i in range(len(p)))
    digest = hashlib.sha256(b"".join(pixels)).hexdigest()
    assert digest.startswith("c61d361ace3b84ac")
    assert len(set(pixels)) == 1797
    known = facts(data)
    assert (known.image_height, known.image_width, known.grayscale) == (8, 8, True)
    assert data.train.source(3) == "digits/train/0003"


def test_the_digits_equal_the_copy_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    expected = sorted(zip(labels.tolist(), np.rint(images * 255 / 16).tolist(), strict=True))
    data = open_dataset("digits")
    ours = sorted(
        (part.labels[i], np.asarray(part.open(i, "L")).ravel().astype(float).tolist())
        for part in (data.train, data.val)
        for i in range(len(part))
    )
    assert ours == expected


def test_the_real_photos(shared_data):
    data = open_dataset(str(shared_data / "trashnet_photos"))
    assert data.classes == ("cardboard", "glass", "metal", "paper", "plastic", "trash")
    known = facts(data)
    assert (known.num_train, known.num_val) == (1564, 446)
    assert known.class_counts == (287, 300, 286, 300, 300, 91)
    assert (known.image_width, known.image_height, known.grayscale) == (192, 256, False)
    assert data.notes[3:] == ()


def test_the_short_name_of_layout_is_the_tasks_setting(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):  # These look like something else than classes.
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    small = {
        "network": {"changes": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
        "image_size": 32, "epochs": 1, "progress": False, "device": "cpu", "precision": "fp32",
    }  # fmt: skip
    data = tmp_path / "data"
    run = convnext.train(data=data, output=tmp_path / "a", layout="class_folders", **small)
    assert "layout: class_folders" in (run.folder / "recipe.yaml").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"^layout is .*yolo"):
        convnext.train(data=data, output=tmp_path / "b", task="classify", layout="yolo")
