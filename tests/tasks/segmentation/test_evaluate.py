"""Data to evaluate on: its classes, its patterns, and another way to write its path."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shapes import write_shapes

from convnext.tasks.segmentation.data import open_dataset
from convnext.tasks.segmentation.evaluate import open_split, relabel
from convnext.weights.checkpoint import Card

CLASSES = ("ground", "red", "blue")


def card(data: Path, **segment: Any) -> Card:
    return Card(
        task="segment",
        model="upernet_convnext_atto",
        changes={},
        classes=CLASSES,
        preprocessing=None,
        recipe={"data": str(data), "segment": segment},
    )


@pytest.mark.parametrize("names", [["blue", "ground", "red"], ["sky", "red", "blue", "ground"]])
def test_masks_of_classes_in_another_order_are_translated(tmp_path: Path, names: list[str]) -> None:
    root = write_shapes(tmp_path / "data", 1, 1)
    data = open_dataset(str(root))
    before = data.val.mask(0)
    pairs = relabel(data.val, data.classes, names)
    after = pairs.mask(0)
    assert {0, 1, 2, 255} == set(np.unique(before))
    for value, name in enumerate(CLASSES):
        assert np.array_equal(after == names.index(name), before == value), name
    assert np.array_equal(after == 255, before == 255)


def test_many_classes_move_the_value_of_none(tmp_path: Path) -> None:
    data = open_dataset(str(write_shapes(tmp_path / "data", 1, 1)))
    names = [*(f"other {i}" for i in range(300)), *CLASSES]
    pairs = relabel(data.val, data.classes, names)
    assert set(np.unique(pairs.mask(0))) == {300, 301, 302, 65_535}
    assert pairs.reader.ignore_index == 65_535


def test_an_unknown_class_is_named(tmp_path: Path) -> None:
    data = open_dataset(str(write_shapes(tmp_path / "data", 1, 1)))
    with pytest.raises(ValueError, match="does not know 1 of the data's 3 classes, such as 'blue'"):
        relabel(data.val, data.classes, ("red", "ground", "green"))


def test_the_data_of_training_is_known_by_any_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_shapes(tmp_path / "data", 2, 1)
    shutil.move(root / "images", root / "left")
    shutil.move(root / "annotations", root / "truth")
    shutil.copytree(root, tmp_path / "more")
    trained = card(root, images="left/{split}/*.png", masks="truth/{split}/*.png")
    monkeypatch.chdir(tmp_path)
    # The second path is of other data, which is in no layout but that of the patterns.
    for path in ("data", "more"):
        opened, pairs = open_split(path, "val", trained, "run")
        assert (len(opened.train), len(pairs)) == (2, 1), path
