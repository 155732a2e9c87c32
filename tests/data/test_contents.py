"""Hashes of a data set: what changed since a run, and which images it trained on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convnext.data import contents as module
from convnext.data.contents import (
    FILE,
    MAX_BYTES,
    Compared,
    Contents,
    SplitContents,
    changes,
    compare_with_run,
    contents_of_split,
    hash_of_file,
    hash_of_objects,
    read_contents,
    split_to_evaluate,
)
from convnext.data.formats.records import no_objects
from convnext.data.samples import FolderSamples
from convnext.tasks.classification.data import annotation


def samples(root: Path, names: list[str]) -> FolderSamples:
    return FolderSamples(root, names, ["ab".index(name.split("/")[1][0]) for name in names])


def split(root: Path, names: list[str]) -> SplitContents:
    found = samples(root, names)
    return contents_of_split(found, lambda i: annotation(found, ("a", "b"), i), root)


@pytest.fixture
def root(make_folder) -> Path:
    return make_folder({f"{part}/{c}": 3 for part in ("train", "val") for c in "ab"})


def names_in(root: Path, part: str) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in (root / part).rglob("*.*"))


def contents(root: Path) -> Contents:
    parts = {part: split(root, names_in(root, part)) for part in ("train", "val")}
    return Contents(classes=("a", "b"), splits=parts)


def test_contents_survive_json_and_moving(root: Path, tmp_path: Path) -> None:
    before = contents(root)
    (tmp_path / FILE).write_text(before.to_json())
    again = read_contents(tmp_path)
    assert again is not None
    assert again.digest == before.digest
    shutil.copytree(root, tmp_path / "moved")
    assert changes(again, contents(tmp_path / "moved")) == ()
    assert read_contents(tmp_path / "nowhere") is None
    checkpoint = tmp_path / "checkpoints/step-1/model.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert read_contents(checkpoint) == again
    (tmp_path / "loose.safetensors").touch()
    assert read_contents(tmp_path / "loose.safetensors") is None
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        read_contents(tmp_path)


def test_what_has_changed_is_said(root: Path, noise) -> None:
    before = contents(root)
    train, val = names_in(root, "train"), names_in(root, "val")
    noise(9, 9, seed=99).save(root / val[1])
    (root / val[0]).unlink()
    (root / train[0]).rename(root / "train/a/new.png")
    now = contents(root)
    assert changes(before, now) == (
        "new training images: 1 (train/a/new.png)",
        f"training images that are gone: 1 ({train[0]})",
        f"validation images that are gone: 1 ({val[0]})",
        f"changed pictures of validation images: 1 ({val[1]})",
    )
    other = replace(before.splits["val"], annotations=["0"] * 6)
    (line,) = changes(before, Contents(classes=("a", "b"), splits={"val": other}))
    assert line.startswith("changed annotations of validation images: 6 (val/a/")
    backwards = SplitContents(
        names=before.splits["val"].names[::-1],
        annotations=before.splits["val"].annotations[::-1],
        pictures=before.splits["val"].pictures[::-1],
    )
    assert changes(before, Contents(classes=("a", "b"), splits={"val": backwards})) == (
        "the order of the validation images",
    )
    assert changes(before, Contents(classes=("b", "a"))) == ("the classes: a, b then, b, a now",)


def test_images_that_were_trained_on_are_known_by_content(root: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    (run / FILE).write_text(contents(root).to_json())
    (other / "b").mkdir(parents=True)
    shutil.copy(root / names_in(root, "train")[0], other / "b/copy.png")
    shutil.copy(root / names_in(root, "val")[0], other / "b/fresh.png")
    found = FolderSamples(other, ["b/copy.png", "b/fresh.png"], [1, 1])
    compared = compare_with_run(
        str(run), found, lambda i: annotation(found, ("a", "b"), i), data=other, classes=("a", "b")
    )
    assert compared.trained_on == ("b/copy.png",)
    assert compared.to_dict() == {
        "num_trained_on": 1,
        "trained_on": ["b/copy.png"],
        "changed": [],
        "not_compared": "",
    }
    assert compared.lines() == (
        "1 of 2 images were trained on (b/copy.png), so the scores are higher than on new images",
    )
    (line,) = compared.without({1}).lines()
    assert line.startswith("1 of 1 images were trained on")
    assert compared.without({0}).lines() == ()
    assert compared.without({0}).num_images == 1


@pytest.mark.parametrize("part", ["train", "val"])
def test_what_is_not_recognized_by_content_is_said(
    part: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare() -> Compared:
        found = samples(root, names_in(root, "val"))
        return compare_with_run(
            str(tmp_path),
            found,
            lambda i: annotation(found, ("a", "b"), i),
            data=root,
            classes="ab",
        )

    before = contents(root)
    (tmp_path / FILE).write_text(before.to_json())
    assert compare().not_compared == ""
    assert compare().lines() == ()
    what = {"train": "training", "val": "evaluated"}[part]
    if part == "train":
        many = replace(before.splits["train"], names=["all 7 images"], annotations=[], pictures=[])
        (tmp_path / FILE).write_text(
            replace(before, splits={**before.splits, "train": many}).to_json()
        )
    else:
        monkeypatch.setattr(module, "MAX_IMAGES", 5)
    (line,) = compare().lines()
    assert line.startswith("it is not known whether images were trained on: there are more than ")
    assert line.endswith(f"{what} images, too many to hash each")
    assert compare().to_dict()["not_compared"] in line


def test_members_of_shards_are_not_recognized_by_content(root: Path, tmp_path: Path) -> None:
    before = contents(root)
    names = [f"train-000.tar!{i}.jpg" for i in range(6)]
    shards = SplitContents(names=names, annotations=["x"] * 6, pictures=[""] * 6)
    splits = {**before.splits, "train": shards}
    (tmp_path / FILE).write_text(replace(before, splits=splits).to_json())
    found = samples(root, names_in(root, "val"))
    compared = compare_with_run(
        str(tmp_path), found, lambda i: annotation(found, ("a", "b"), i), data=root, classes="ab"
    )
    assert compared.lines() == (
        "it is not known whether images were trained on: the training images are in shards, whose "
        "members are not hashed",
    )


def test_every_part_of_an_annotation_counts() -> None:
    nothing = no_objects()
    one = replace(
        nothing,
        ids=(1,),
        boxes=np.array([[0.0, 0, 4, 4]]),
        labels=np.array([0]),
        areas=np.array([16.0]),
        crowd=np.array([False]),
        masks=([[0, 0, 4, 0, 4, 4]],),
    )
    others = [
        nothing,
        one,
        replace(one, boxes=one.boxes + 1),
        replace(one, labels=np.array([1])),
        replace(one, areas=one.areas + 1),
        replace(one, crowd=np.array([True])),
        replace(one, masks=(None,)),
        replace(one, masks=([[0, 0, 4, 0, 4, 3]],)),
        replace(one, masks=([[0, 0, 4], [0, 4, 4]],)),
        replace(one, masks=({"size": [4, 4], "counts": [16]},)),
        replace(one, masks=({"size": [4, 4], "counts": [0, 16]},)),
        replace(one, masks=({"size": [4, 4], "counts": b"0"},)),
    ]
    assert len({hash_of_objects(objects, ("a", "b")) for objects in others}) == len(others)
    assert hash_of_objects(one, ("b", "a")) == hash_of_objects(others[3], ("a", "b"))


def test_large_files_are_hashed_by_blocks(tmp_path: Path) -> None:
    path = tmp_path / "large"
    whole = bytearray(np.random.default_rng(0).bytes(MAX_BYTES + 100_000))
    hashes = []
    for position in (None, 0, len(whole) - 1, MAX_BYTES // 2):
        changed = bytearray(whole)
        if position is not None:
            changed[position] ^= 1
        path.write_bytes(changed)
        hashes.append(hash_of_file(path))
    path.write_bytes(whole[:-1])
    hashes.append(hash_of_file(path))
    assert len(set(hashes)) >= 4
    assert hash_of_file(tmp_path / "nothing") == ""


@pytest.mark.parametrize(
    ("split", "is_own", "has_val", "has_test", "wanted"),
    [
        ("auto", True, True, True, "val"),
        ("auto", True, False, False, "val"),
        ("auto", False, True, True, "test"),
        ("auto", False, True, False, "val"),
        ("auto", False, False, False, "all"),
        ("train", True, True, True, "train"),
        ("all", False, True, True, "all"),
    ],
)
def test_the_split_to_evaluate(
    split: str, is_own: bool, has_val: bool, has_test: bool, wanted: str
) -> None:
    found = split_to_evaluate(split, is_own=is_own, has_val=has_val, has_test=has_test)
    assert found == wanted
