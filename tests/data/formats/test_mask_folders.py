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
        ("x_{}/{}.jpg", "y_{}/{}.png"),
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


INDICES = ((0, 1), (2, 0))


def labels_of(root: Path, name: str) -> set[int]:
    data = open_dataset(str(root))
    for part in (data.train, data.val):
        if name in part.names:
            return set(np.unique(part.mask(part.names.index(name))).tolist())
    raise AssertionError(f"{name} is not among {data.train.names} and {data.val.names}")


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}.jpg", "masks/{}_mask.png"),
        ("img/{}.png", "gt/{}_gt.png"),
        ("images/img_{}.jpg", "labels/img_{}_P.png"),
        ("images/im{}.png", "labels-ah/im{}.ah.png"),
        ("images/image_{}.png", "masks/mask_{}.png"),
        ("images/Img_{}.JPG", "masks/img_{}.png"),
        ("scans/case {}.png", "scan_labels/case {}.png"),
        ("images/{}.jpg", "truth_pngs/{}_manual1.png"),
        ("PNGImages/Ped{}.png", "PedMasks/Ped{}_mask.png"),
        ("2_Ortho_RGB/top_2_{}_RGB.tif", "5_Labels_all/top_2_{}_label.tif"),
        ("SKIN-2017_Training_Data/S_{}.jpg", "SKIN-2017_Training_Part1_GroundTruth/S_{}_seg.png"),
        ("train_img/{}.jpg", "train_lab/{}.png"),
    ],
)
def test_masks_whose_names_differ(tmp_path: Path, images: str, masks: str) -> None:
    for i in range(6):
        image(tmp_path / images.format(i), i)
        mask(tmp_path / masks.format(i), INDICES)
    assert is_mask_folder(tmp_path)
    found = find(tmp_path)
    assert (len(found.train.pairs), found.layer_classes) == (6, ())
    for first, second in found.train.pairs.values():
        number = first.stem.removesuffix("_RGB")[-1]
        assert number in second.stem.removeprefix("top_2_")
    data = open_dataset(str(tmp_path))
    assert data.classes == ("class 0", "class 1", "class 2")
    assert labels_of(tmp_path, data.val.names[0]) == {0, 1, 2}


def test_other_case_is_not_a_name_of_its_own(tmp_path: Path) -> None:
    for name in ("a", "A", "b"):
        image(tmp_path / f"images/{name}.png")
        mask(tmp_path / f"masks/{name}.png", INDICES)
    image(tmp_path / "images/C.png")
    mask(tmp_path / "masks/c.png", INDICES)
    pairs = find(tmp_path).train.pairs
    assert {name: mask.stem for name, (_, mask) in pairs.items()} == {
        "a": "a",
        "A": "A",
        "b": "b",
        "C": "c",
    }


def test_accents_in_another_unicode_form(tmp_path: Path) -> None:
    for i in range(4):
        image(tmp_path / f"images/{i}\u00e9.png")
        mask(tmp_path / f"masks/{i}e\u0301.png", INDICES)
    assert len(find(tmp_path).train.pairs) == 4


def test_photos_are_not_masks(tmp_path: Path) -> None:
    for i in range(4):
        image(tmp_path / f"street/{i}.png", i)
        image(tmp_path / f"street_labels/{i}.png", i + 9)
    assert not is_mask_folder(tmp_path)


def test_images_without_masks_are_counted(tmp_path: Path) -> None:
    for i in range(5):
        image(tmp_path / f"train/image/{i}.png", i)
        mask(tmp_path / f"train/label/{i}.png")
        image(tmp_path / f"test/{i}.png", i)
    data = open_dataset(str(tmp_path))
    assert data.test is None
    assert "test/ has 5 images without masks, left out (such as 0.png)" in data.notes


def test_places_inside_a_split(tmp_path: Path) -> None:
    for split, count in (("Train", 3), ("Val", 1), ("Test", 2)):
        for place in ("Urban", "Rural"):
            for i in range(count):
                image(tmp_path / f"{split}/{place}/images_png/{i}.png", i)
                if split != "Test":
                    mask(tmp_path / f"{split}/{place}/masks_png/{i}.png")
    assert counts(tmp_path) == (6, 2, 0)
    train = find(tmp_path).train.pairs
    assert all(image.parts[-3] == mask.parts[-3] for image, mask in train.values())


def test_lists_of_videos_and_of_validation_alone(tmp_path: Path) -> None:
    for video in ("bear", "boat", "camel"):
        for i in range(2):
            image(tmp_path / f"JPEGImages/480p/{video}/{i:05d}.jpg", i)
            mask(tmp_path / f"Annotations/480p/{video}/{i:05d}.png")
    lists = tmp_path / "ImageSets/2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("camel\n")
    (lists / "train.txt").write_text("bear\nboat\n")
    assert counts(tmp_path) == (4, 2, 0)
    (lists / "train.txt").unlink()
    found = find(tmp_path)
    assert (len(found.train.pairs), found.val and len(found.val.pairs)) == (4, 2)
    assert found.split.endswith("the images that they do not name are for training")
    (lists / "val.txt").write_text("some\nother\ntext\n")
    found = find(tmp_path)
    assert (len(found.train.pairs), found.val) == (6, None)
    assert "not used" in found.faults[0]


def test_names_of_lists_that_fit_two_images_are_not_guessed(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        for i in range(3):
            image(tmp_path / f"images/{folder}/{i}.jpg", i)
            mask(tmp_path / f"masks/{folder}/{i}.png")
    (tmp_path / "train.txt").write_text("a/0\na/1\nb/1\n2\n")
    (tmp_path / "val.txt").write_text("/images/b/0.jpg /masks/b/0.png\n")
    found = find(tmp_path)
    assert set(found.train.pairs) == {"a/0", "a/1", "b/1"}
    assert found.val
    assert set(found.val.pairs) == {"b/0"}
    assert any("without an image, left out: 1 (such as 2)" in fault for fault in found.faults)


def test_ids_of_cityscapes_become_its_classes(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 1)):
        for i in range(count):
            name = f"{split}/aachen/aachen_{i}"
            image(tmp_path / f"leftImg8bit/{name}_leftImg8bit.png", i)
            mask(tmp_path / f"gtFine/{name}_gtFine_labelIds.png", ((7, 26), (0, 33)))
    data = open_dataset(str(tmp_path))
    assert (len(data.train), len(data.val), len(data.classes)) == (3, 1, 19)
    labels = data.train.mask(0)
    assert data.classes[int(labels[0, 0])] == "road"
    assert data.classes[int(labels[0, -1])] == "car"
    assert labels[-1, 0] == data.ignore_index
    assert data.classes[int(labels[-1, -1])] == "bicycle"


def test_the_first_words_of_names_split(tmp_path: Path) -> None:
    for name, count in (("train", 4), ("testA", 2), ("testB", 1)):
        for i in range(count):
            image(tmp_path / f"{name}_{i}.bmp", i)
            mask(tmp_path / f"{name}_{i}_anno.bmp", INDICES)
    assert counts(tmp_path) == (4, 0, 3)
    assert find(tmp_path).split == "the first words of the names"
    image(tmp_path / "other_1.bmp")
    mask(tmp_path / "other_1_anno.bmp", INDICES)
    assert counts(tmp_path) == (8, 0, 0)


def test_several_places_are_read_by_the_patterns_of_the_message(tmp_path: Path) -> None:
    for place in ("Tile 1", "Tile 2"):
        for i in range(3):
            image(tmp_path / place / f"images/part_{i}.jpg", i)
            mask(tmp_path / place / f"masks/part_{i}.png", INDICES)
    with pytest.raises(ValueError, match=r"several data sets: Tile 1/, Tile 2/") as error:
        find(tmp_path)
    assert "--segment.images '*/images/*.jpg' --segment.masks '*/masks/*.png'" in str(error.value)
    found = find(tmp_path, "*/images/*.jpg", "*/masks/*.png")
    assert len(found.train.pairs) == 6


def test_lists_beside_the_folders_inside_a_root(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit/VOC2012"
    for i in range(4):
        image(root / f"JPEGImages/{i}.jpg", i)
        mask(root / f"SegmentationClass/{i}.png")
        mask(root / f"SegmentationObject/{i}.png")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("0\n1\n3\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("2\n")
    assert counts(tmp_path) == (3, 1, 0)
    assert not any("without masks" in note for note in find(tmp_path).notes)


def test_one_folder_of_masks_below_annotations(tmp_path: Path) -> None:
    for i in range(6):
        image(tmp_path / f"images/pug_{i}.jpg", i)
        mask(tmp_path / f"annotations/trimaps/pug_{i}.png", ((1, 2), (3, 2)))
    (tmp_path / "annotations/test.txt").write_text("pug_4 3 1 1\npug_5 3 1 1\n")
    (tmp_path / "annotations/list.txt").write_text("#Image CLASS-ID\npug_4 3 1 1\n")
    assert counts(tmp_path) == (4, 0, 2)
    data = open_dataset(str(tmp_path))
    assert data.classes == ("class 0", "class 1", "class 2", "class 3")
    assert any("no mask has the value 0, the values begin at 1" in note for note in data.notes)
    assert len(open_dataset(str(tmp_path), reduce_zero_label=True).classes) == 3


def test_two_folders_of_masks_of_which_one_is_named_otherwise(tmp_path: Path) -> None:
    for split, numbers in (("training", range(21, 26)), ("test", range(1, 4))):
        for i in numbers:
            image(tmp_path / f"{split}/images/{i:02d}_{split}.tif", i)
            mask(tmp_path / f"{split}/1st_manual/{i:02d}_manual1.gif")
    assert counts(tmp_path) == (5, 0, 3)
    for split, numbers in (("training", range(21, 26)), ("test", range(1, 4))):
        for i in numbers:
            mask(tmp_path / f"{split}/mask/{i:02d}_{split}_mask.gif")
    with pytest.raises(ValueError, match=r"1st_manual/ and mask/ could both hold the masks"):
        find(tmp_path)
    pattern = "{split}/images/*_{split}.tif", "{split}/1st_manual/*_manual1.gif"
    assert len(find(tmp_path, *pattern).train.pairs) == 5
