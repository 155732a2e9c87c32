"""Which images an evaluation takes, and what it leaves out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from object_layouts import CLASSES, coco, truth, voc_beside

from convnext.data.contents import FILE, Contents, SplitContents
from convnext.tasks.detection.evaluate import open_split
from convnext.weights.checkpoint import Card


def card(data: Path | None = None, classes: tuple[str, ...] = CLASSES, **detect: Any) -> Card:
    recipe = {} if data is None else {"data": str(data), "detect": detect}
    return Card(
        model="mask_rcnn_convnext_atto",
        changes={},
        classes=classes,
        preprocessing=None,
        task="detect",
        recipe=recipe,
    )


def names(data: Path | str, split: str, own: Card) -> set[str]:
    images = open_split(str(data), split, own, "run").images
    return {Path(name).stem for name in images.names}


def test_other_data_is_scored_on_its_test_split(tmp_path: Path) -> None:
    data = truth()
    voc_beside(tmp_path / "data", data)
    for split, wanted in (("auto", "test"), ("val", "val"), ("train", "train"), ("test", "test")):
        assert names(tmp_path / "data", split, card()) == set(data[wanted])
    assert names(tmp_path / "data", "all", card()) == {n for part in data.values() for n in part}


def test_data_without_a_split_is_scored_whole(tmp_path: Path) -> None:
    data = truth(("pictures",))
    voc_beside(tmp_path / "data", data)
    assert names(tmp_path / "data", "auto", card()) == set(data["pictures"])
    with pytest.raises(ValueError, match="has no test split; its splits are train, val"):
        names(tmp_path / "data", "test", card())
    data["test"] = truth(("test",))["test"]
    voc_beside(tmp_path / "more", {"train": data["pictures"], "val": data["test"]})
    assert names(tmp_path / "more", "auto", card()) == set(data["test"])


def test_the_data_of_training_is_known_by_any_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voc_beside(tmp_path / "data", truth())
    own = card(tmp_path / "data")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for path in ("data", f"data{os.sep}", "./data", "link", str(tmp_path / "data")):
        assert names(path, "auto", own) == {"val_a", "val_b"}


def test_unknown_classes_are_left_out_and_named(tmp_path: Path) -> None:
    voc_beside(tmp_path / "data", truth())
    images, *_, left_out = open_split(
        str(tmp_path / "data"), "test", card(classes=("dog", "bird")), "run"
    )
    assert left_out == (
        "1 objects of 1 classes are left out, because the network does not know them: cat",
    )
    assert [record.objects.labels.tolist() for record in images.records] == [[0], [0]]
    assert images.category_ids == (2, -1)
    with pytest.raises(ValueError, match="which the network does not know"):
        open_split(str(tmp_path / "data"), "test", card(classes=("bird",)), "run")


def test_data_in_two_layouts_is_read_as_the_options_say(tmp_path: Path) -> None:
    data = truth()
    voc_beside(tmp_path / "data", data)
    coco(tmp_path / "data", {name: part for name, part in data.items() if name != "test"})
    with pytest.raises(ValueError, match="objects in several layouts"):
        names(tmp_path / "data", "auto", card())
    for layout, split in (("voc", "test"), ("coco", "val")):
        found = open_split(str(tmp_path / "data"), "auto", card(), "run", layout=layout)
        assert {Path(name).stem for name in found.images.names} == set(data[split])
        assert found.split == split


def test_a_checkpoint_does_not_lead_out_of_the_data(tmp_path: Path) -> None:
    voc_beside(tmp_path / "data", truth())
    for detect in ({"allow_outside": True}, {"images": "/srv"}, {"annotations": "../a.json"}):
        own = card(tmp_path / "data", **detect)
        with pytest.raises(ValueError, match="a checkpoint must not lead there"):
            open_split(str(tmp_path / "data"), "auto", own, str(tmp_path / "model.safetensors"))


def test_new_images_do_not_change_what_was_held_out(tmp_path: Path) -> None:
    data, run = truth(("pictures",)), tmp_path / "run"
    voc_beside(tmp_path / "data", data)
    own = card(tmp_path / "data")
    images = open_split(None, "auto", own, str(tmp_path)).images
    (held,) = {Path(name).stem for name in images.names}
    other = open_split(None, "train", own, str(tmp_path)).images.records[0]
    # As if the run had held out another image than the names give today.
    val = SplitContents(names=[other.file_name], annotations=[], pictures=[])
    run.mkdir()
    (run / FILE).write_text(Contents(classes=CLASSES, splits={"val": val}).to_json())
    after = open_split(None, "auto", own, str(run)).images
    assert after.names == [other.file_name]
    assert held in {Path(n).stem for n in open_split(None, "train", own, str(run)).images.names}


def test_ids_of_all_splits_do_not_coincide(tmp_path: Path) -> None:
    coco(tmp_path / "data", truth())
    found = open_split(str(tmp_path / "data"), "all", card(), "run")
    ids = [record.id for record in found.images.records]
    assert len(set(ids)) == len(ids) == sum(len(part) for part in truth().values())
    assert any("follow the highest one before it" in line for line in found.left_out)
    for split in ("train", "val"):
        of_split = open_split(str(tmp_path / "data"), split, card(), "run")
        assert of_split.left_out == ()
        assert min(record.id for record in of_split.images.records) == min(ids)
