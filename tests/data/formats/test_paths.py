"""Names of splits, and files whose names were written by another system."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from convnext.data.formats.paths import Fence, FileIndex, OutsideError, split_of, split_of_path

SPLITS = {
    "train": "train Train training train2017 trainset train_images images_1st_500_train trainSet "
    "seg_train obj_train_data TRAINING",
    "val": "val valid Validation validate dev val2017 obj_Validation_data valset",
    "test": "test Testing test2017 testset seg_test",
    None: "test_tube bus trainer images traintest train_val devices valley",
}


@pytest.mark.parametrize("split", SPLITS)
def test_words_of_splits(split: str | None) -> None:
    assert {word: split_of(word) for word in SPLITS[split].split()} == dict.fromkeys(
        SPLITS[split].split(), split
    )


def test_the_outermost_folder_counts() -> None:
    assert split_of_path("train/images_1st_500/test.png") == "train"
    assert split_of_path("images/val2017/a.png") == "val"
    assert split_of_path("train.png") is None


NAMES = {
    "images\\a b.png": "backslashes",
    "C:\\data\\images\\a b.png": "backslashes",
    "/home/me/images/a b.png": "an absolute path",
    "a%20b.png": "percent signs",
    "A B.PNG": "upper and lower case",
    "a b.jpg": "another ending",
    "elsewhere/a b.png": "another folder",
    unicodedata.normalize("NFD", "é.png"): "another Unicode form",
    "é.png": "",
    "images/a b.png": "",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_other_systems(tmp_path: Path, name: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a b.png").touch()
    (tmp_path / "images" / unicodedata.normalize("NFC", "é.png")).touch()
    match = FileIndex(Fence(tmp_path)).find(name, [tmp_path, tmp_path / "images"])
    assert match is not None
    assert match.how == NAMES[name]


def test_of_two_files_the_one_in_the_named_folder(tmp_path: Path) -> None:
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").touch()
    index = FileIndex(Fence(tmp_path))
    found = index.find("D:\\x\\val\\a.png")
    assert found is not None
    assert found.path == tmp_path / "val" / "a.png"
    assert index.find("D:\\x\\a.png") is None
    assert len(index.candidates("a.png")) == 2
    inside = index.find("a.png", [tmp_path / "train"])
    assert inside is not None
    assert inside.path.parent.name == "train"


def test_nothing_leaves_the_data(tmp_path: Path) -> None:
    outside, root = tmp_path / "out", tmp_path / "data"
    for folder in (outside / "deep", root / "images"):
        folder.mkdir(parents=True)
    for file in (outside / "secret.png", outside / "deep" / "b.png", root / "images" / "a.png"):
        file.touch()
    (root / "linked").symlink_to(outside / "deep")
    (root / "images" / "c.png").symlink_to(outside / "secret.png")
    index = FileIndex(Fence(root))
    assert [path.name for path in index.images] == ["a.png", "c.png", "b.png"]
    assert not Fence(root).allows(root / "images" / "c.png")
    for name in ("../out/secret.png", str(outside / "secret.png"), "images/c.png"):
        with pytest.raises(OutsideError, match="--allow-outside"):
            index.find(name)
    # A path that leads out is first tried inside.
    found = index.find("../out/images/a.png")
    assert found is not None
    assert found.path == root / "images" / "a.png"
    linked = index.find("linked/b.png")
    assert linked is not None
    assert index.find("../out/deep/b.png") is not None
    assert FileIndex(Fence(root, allow_outside=True)).find("../out/secret.png") is not None
