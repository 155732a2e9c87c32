"""Folders of images with masks: layouts, names of splits, lists, and partners."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext.data.formats.mask_folders import find, is_mask_folder
from convnext.tasks.segmentation.data import open_dataset


def image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def mask(path: Path, values: object = ((0, 1), (2, 255))) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.asarray(values, np.uint8)
    Image.fromarray(small.repeat(12 // len(small), 0).repeat(10 // small.shape[1], 1)).save(path)


def counts(root: Path) -> tuple[int, int, int]:
    found = find(root)
    parts = (found.train, found.val, found.test)
    return tuple(0 if part is None else len(part.pairs) for part in parts)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}/{}.jpg", "annotations/{}/{}.png"),
        ("{}/images/{}.jpg", "{}/masks/{}.png"),
        ("{}/image/{}.jpg", "{}/label/{}.png"),
        ("{}/Images/{}.jpg", "{}/Labels/{}.tif"),
        ("{}/{}.jpg", "{}_masks/{}.png"),
        ("{}/{}.jpg", "{}annot/{}.png"),
        ("{}_images/{}.jpg", "{}_labels/{}_L.png"),
        ("{}/{}.jpg", "{}/{}_mask.png"),
        ("data/{}/img/{}.jpg", "data/{}/gt/{}.png"),
        ("Lesions_{}_Input/{}.jpg", "Lesions_{}_GroundTruth/{}_segmentation.png"),
    ],
)
@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "validate", "Testing"), ("train", "dev", "")]
)
def test_layouts_and_names_of_splits(
    tmp_path: Path, images: str, masks: str, names: tuple[str, ...]
) -> None:
    for name, count in zip(names, (5, 3, 2), strict=True):
        for i in range(count if name else 0):
            image(tmp_path / images.format(name, f"a{i}"), i)
            mask(tmp_path / masks.format(name, f"a{i}"))
    assert is_mask_folder(tmp_path)
    assert counts(tmp_path) == (5, 3, 2 if names[2] else 0)
    found = find(tmp_path)
    assert (found.train.unpaired_images, found.train.unpaired_masks) == ((), ())
    for first, second in found.train.pairs.values():
        assert first.stem == second.stem.removesuffix("_L").removesuffix("_mask").removesuffix(
            "_segmentation"
        )


@pytest.mark.parametrize("lists", ["ImageSets/Segmentation", ".", "splits"])
def test_lists_of_names_split_the_images(tmp_path: Path, lists: str) -> None:
    for i in range(9):
        image(tmp_path / f"JPEGImages/{i}.jpg", i)
        if i != 8:
            mask(tmp_path / f"SegmentationClass/{i}.png")
    (tmp_path / lists).mkdir(parents=True, exist_ok=True)
    for split, which in {
        "train": "0\n1 \n2.jpg\n8\n",
        "val": "\ufeff3\n4\n",
        "test": "5\nx\n",
    }.items():
        (tmp_path / lists / f"{split}.txt").write_text(which, encoding="utf-8")
    (tmp_path / lists / "trainval.txt").write_text("0\n1\n2\n3\n4\n")
    assert counts(tmp_path) == (3, 2, 1)
    data = open_dataset(str(tmp_path))
    text = "\n".join(data.notes)
    assert "split: lists " in text
    assert Path(lists, "train.txt").as_posix() in text
    assert "(train 3, val 2, test 1 images)" in text
    assert "without an image, left out: 1 (such as x)" in text
    assert "images with masks that no list names, left out: 2" in text
    assert "1 images without a mask in the train split" in text
    by_pattern = open_dataset(
        str(tmp_path), images="JPEGImages/*.jpg", masks="SegmentationClass/*.png"
    )
    assert (len(by_pattern.train), len(by_pattern.val)) == (3, 2)


def test_patterns_do_not_take_masks_for_images(tmp_path: Path) -> None:
    for i in range(6):
        image(tmp_path / f"train/{i}.png", i)
        mask(tmp_path / f"train/{i}_mask.png")
    data = open_dataset(str(tmp_path), images="train/*.png", masks="train/*_mask.png")
    assert len(data.train) + len(data.val) == 6
    assert data.faults == ()


def test_masks_shared_by_the_splits_and_the_folder_in_a_repository(tmp_path: Path) -> None:
    root = tmp_path / "repo/road_scenes"
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            image(root / f"images/{split}/{split}{i}.jpg", i)
            mask(root / f"masks/{split}{i}.png")
    mask(root / "masks/alone.png")
    found = find(tmp_path / "repo")
    assert (len(found.train.pairs), found.val and len(found.val.pairs)) == (4, 2)
    assert [path.name for path in found.train.unpaired_masks] == ["alone.png"]
    assert found.notes[0] == "the data set is in road_scenes/"


def test_two_readings_are_refused(tmp_path: Path) -> None:
    for i in range(3):
        image(tmp_path / f"images/{i}.jpg", i)
        mask(tmp_path / f"masks/{i}.png")
        mask(tmp_path / f"labels/{i}.png")
    assert is_mask_folder(tmp_path)
    with pytest.raises(ValueError, match=r"masks/.* could both hold the masks .*--segment.masks"):
        find(tmp_path)
    other = tmp_path / "other"
    for name in ("a", "b"):
        for i in range(2):
            image(other / name / f"images/{i}.jpg")
            mask(other / name / f"masks/{i}.png")
    with pytest.raises(ValueError, match="several data sets: a/, b/"):
        find(other)


@pytest.mark.parametrize(
    "names",
    [
        ("train/cat/{}.png", "train/dog/{}.png"),
        ("train/with_mask/{}.png", "train/without_mask/{}.png"),
        ("images/{}.png", "labels/{}.txt"),
        ("mask/{}.png", "cat/{}.png"),
    ],
)
def test_other_data_has_no_masks(tmp_path: Path, names: tuple[str, ...]) -> None:
    for i in range(4):
        for name in names:
            path = tmp_path / name.format(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            image(path.with_suffix(".png"), i)
            if path.suffix == ".txt":
                path.with_suffix(".png").rename(path)
    assert not is_mask_folder(tmp_path)
