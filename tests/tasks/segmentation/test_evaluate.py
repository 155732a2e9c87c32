"""Evaluation data: its classes, its patterns, and another spelling of its path."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shapes import write_shapes
from small_exports import small_segmentor

from convnext.data.contents import FILE, Contents, SplitContents, relative_names
from convnext.tasks.segmentation.data import open_dataset
from convnext.tasks.segmentation.evaluate import open_split, relabel, unknown_classes
from convnext.tasks.segmentation.export import SegmentorComparison
from convnext.tasks.segmentation.layout import annotation
from convnext.tasks.trained import open_model
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
    with pytest.raises(ValueError, match="does not know 3 of the data's 3 classes"):
        relabel(data.val, data.classes, ("sky", "sea"))
    wanted = ("red", "ground", "green")
    pairs = relabel(data.val, data.classes, wanted)
    assert set(np.unique(pairs.mask(0))) == {0, 1, 255}
    assert (pairs.mask(0)[data.val.mask(0) == 2] == 255).all()
    assert unknown_classes(data.classes, wanted) == (
        "pixels of 1 classes are left out, because the network does not know them: blue",
    )


def test_the_split_to_evaluate_on(tmp_path: Path) -> None:
    own = write_shapes(tmp_path / "own", 4, 2)
    other = write_shapes(tmp_path / "other", 4, 2)
    shutil.copytree(other / "images/val", other / "images/test")
    shutil.copytree(other / "annotations/val", other / "annotations/test")
    (other / "images/test/001.png").unlink()
    plain = tmp_path / "plain"
    for kind in ("images", "annotations"):
        shutil.copytree(own / kind / "train", plain / kind)
    shutil.copy(own / "classes.txt", plain)

    def count(path: Path, split: str) -> int:
        return len(open_split(str(path), split, card(own), "run").images)

    assert [count(own, split) for split in ("auto", "train", "all")] == [2, 4, 6]
    assert [count(other, split) for split in ("auto", "val", "all")] == [1, 2, 7]
    assert count(plain, "auto") == 4
    with pytest.raises(ValueError, match="has no test split"):
        count(own, "test")


def test_the_data_of_training_is_known_by_any_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_shapes(tmp_path / "data", 2, 1)
    shutil.move(root / "images", root / "left")
    shutil.move(root / "annotations", root / "truth")
    shutil.copytree(root, tmp_path / "more")
    trained = card(root, images="left/{split}/*.png", masks="truth/{split}/*.png")
    monkeypatch.chdir(tmp_path)
    # The second path holds other data, which only the patterns describe.
    for path in ("data", "more"):
        counts = [len(open_split(path, s, trained, "run").images) for s in ("train", "val")]
        assert counts == [2, 1], path


def test_other_data_is_read_as_the_options_say(tmp_path: Path) -> None:
    own, other = (write_shapes(tmp_path / name, 4, 2) for name in ("own", "other"))
    shutil.move(other / "images", other / "left")
    shutil.move(other / "annotations", other / "truth")
    patterns = {"images": "left/{split}/*.png", "masks": "truth/{split}/*.png"}
    found = open_split(str(other), "val", card(own), "run", **patterns)
    assert len(found.images) == 2
    assert {path.parent.parent.name for path in found.images.masks} == {"truth"}
    turned = open_split(str(own), "val", card(own), "run", exif="turned").images
    assert turned.exif == "turned"
    without = open_split(str(own), "val", card(own), "run", reduce_zero_label=True)
    assert without.images.reader.reduce_zero_label


def test_patterns_of_a_card_stay_in_the_data_folder(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "data", 2, 1)
    (root / "own").mkdir()
    shutil.move(root / "images", root / "own" / "left")
    shutil.move(root / "annotations", tmp_path / "truth")
    shutil.move(root / "classes.txt", root / "own")
    left = "left/{split}/*.png"
    for masks in ("../../truth/{split}/*.png", f"{tmp_path.as_posix()}/truth/{{split}}/*.png"):
        trained = card(root / "own", images=left, masks=masks)
        loose = tmp_path / "net.safetensors"
        with pytest.raises(ValueError, match=r"net.safetensors was trained .*--segment.masks"):
            open_split(str(root / "own"), "val", trained, str(loose))
        assert len(open_split(None, "val", trained, str(tmp_path)).images) == 1  # A run folder.


@pytest.mark.parametrize("host", ["//host/x/*", "\\\\host\\x\\*", "/\\host/*", "file://host/*"])
def test_no_pattern_of_a_card_names_a_host(host: str, tmp_path: Path) -> None:
    trained = card(tmp_path, images=host, masks="masks/*")
    with pytest.raises(ValueError, match="leads out of the data folder"):
        open_split(None, "val", trained, str(tmp_path))


def test_a_pattern_of_another_type_is_refused(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "data", 2, 1)
    for name in ("images", "masks", "reduce_zero_label"):
        with pytest.raises(ValueError, match=rf"the model card has segment.{name}=\[1\]"):
            open_split(None, "val", card(root, **{name: [1]}), str(tmp_path))


def test_new_images_do_not_change_what_was_held_out(tmp_path: Path) -> None:
    root, run = tmp_path / "data", tmp_path / "run"
    other = write_shapes(tmp_path / "other", 10, 1)
    for kind in ("images", "annotations"):
        shutil.copytree(other / kind / "train", root / kind)
    shutil.copy(other / "classes.txt", root)
    own = card(root)
    before = open_split(str(root), "auto", own, str(run)).images
    val = SplitContents(
        names=relative_names(map(str, before.images), root), annotations=[], pictures=[]
    )
    run.mkdir()
    (run / FILE).write_text(Contents(classes=CLASSES, splits={"val": val}).to_json())
    for path in [*(root / "images").iterdir(), *(root / "annotations").iterdir()]:
        shutil.copy(path, path.with_name(f"more_{path.name}"))
    assert len(open_split(str(root), "auto", own, "nothing").images) > len(before)
    after = open_split(str(root), "auto", own, str(run)).images
    assert sorted(after.images) == sorted(before.images)


def test_the_hash_of_an_annotation_is_that_of_the_mask(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "data", 2, 2)
    pairs = open_dataset(str(root)).val
    hashes = [annotation(pairs, CLASSES, index) for index in (0, 1)]
    assert len(set(hashes)) == 2
    shutil.copy(pairs.masks[0], pairs.masks[1])
    assert annotation(pairs, CLASSES, 1) == hashes[0]


@pytest.mark.parametrize(
    ("size", "output", "network"),
    [
        (None, "logits", "network"),
        (None, "labels", "network, run like the file with labels instead of logits,"),
        (
            (64, 96),
            "logits",
            "network, run like the file with windows of 64 pixels every 42, padded to 64 x 96,",
        ),
        (
            (64, 64),
            "labels",
            "network, run like the file with windows of 64 pixels every 42, padded to 64 x 64 and "
            "labels instead of logits,",
        ),
    ],
)
def test_a_proof_says_what_network_it_scored(
    tmp_path: Path, size: tuple[int, int] | None, output: str, network: str
) -> None:
    model, card = open_model(small_segmentor(tmp_path / "net.safetensors"), torch.device("cpu"))
    graph = {"size": size, "output": output, "inside": "normalize"}
    file: Any = SimpleNamespace(card=card, graph=graph)
    comparison = SegmentorComparison(model, card, file)
    labels = np.zeros((4, 4), np.int64)
    for truth in (labels, labels + 1):
        comparison.add(Image.new("RGB", (4, 4)), labels, labels, (truth, 255))
    verdict = comparison.verdict(2, "fp32")
    proof = comparison.proof(num_images=2, speed_ratio=1.0, **vars(verdict))
    assert proof.to_dict()["network"] == network
    rows = dict(proof.rows())
    score = f"{verdict.before:.2f} %"
    assert rows["mIoU on these images"] == f"{network} {score}, file {score}"
