"""The images that `evaluate` takes: the held-out ones of a run, or a split of other data."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_exports import small_checkpoint

from convnext.data.contents import FILE, Contents, SplitContents
from convnext.deploy.export import ExportRequest
from convnext.deploy.formats import ExportSettings
from convnext.tasks.classification.evaluate import open_split
from convnext.tasks.classification.export import export_spec
from convnext.tasks.classification.robustness.run import _open_clean
from convnext.tasks.trained import open_model
from convnext.weights.checkpoint import Card


def card(data: Path | str) -> Card:
    return Card(
        task="classify",
        model="convnext_atto",
        changes={},
        classes=("a", "b"),
        preprocessing=None,
        recipe={"data": str(data), "loader": {"val_share": 0.2}},
    )


def test_the_split_to_evaluate_on(make_folder):
    counts = {"train": 5, "val": 2, "test": 1}
    root = make_folder({f"{part}/{c}": n for part, n in counts.items() for c in "ab"})
    other = card("elsewhere")
    found = {
        split: len(open_split(str(root), split, other, None).images)
        for split in ("auto", "train", "val", "test", "all")
    }
    assert found == {"auto": 2, "train": 10, "val": 4, "test": 2, "all": 16}
    assert len(open_split(str(root), "auto", card(root), None).images) == 4
    plain = make_folder({"a": 10, "b": 10}, name="plain")
    assert len(open_split(str(plain), "auto", other, None).images) == 20
    with pytest.raises(ValueError, match="has no test split; its splits are train"):
        open_split(str(plain), "test", other, None)


def test_other_data_is_read_as_the_options_say(make_folder, tmp_path):
    root = make_folder({"images": 12})
    rows = [f"{i:03d}.png,{'ab'[i % 2]},{'xy'[i % 2]},{i % 3}" for i in range(12)]
    (root / "list.csv").write_text("\n".join(["file,kind,note,part", *rows]))
    path = str(root / "list.csv")
    with pytest.raises(ValueError, match="could be any of kind, note, part"):
        open_split(path, "auto", card("elsewhere"), None)
    columns = "image=file,label=kind,fold=part"
    counts = [
        len(open_split(path, split, card("elsewhere"), None, columns=columns, fold=2).images)
        for split in ("auto", "train", "all")
    ]
    assert counts == [4, 8, 12]
    clean, _ = _open_clean(
        "run", card("elsewhere"), path, "val", None, 0, None, None, columns=columns, fold=0
    )
    assert sorted(Path(clean.samples.source(i)).stem for i in range(4)) == [
        "000", "003", "006", "009"
    ]  # fmt: skip
    # What is not said is as in training, if the data is that of training.
    own = replace(card(path), recipe={"data": path, "loader": {"columns": columns, "fold": 0}})
    found = open_split(path, "val", own, None).images
    assert found.source(0) == clean.samples.source(0)
    assert open_split(path, "val", own, None, fold=1).images.names[0].endswith("001.png")
    with pytest.raises(ValueError, match="--layout is 'coco', but must be class_folders or"):
        open_split(path, "auto", own, None, layout="coco")


def test_the_data_of_training_is_known_by_any_path(make_folder, tmp_path, monkeypatch):
    root = make_folder({"a": 10, "b": 10})
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    for path in ("data", "./data/", str(root), "link"):
        assert len(open_split(path, "auto", card(root), None).images) == 4, path


def test_unknown_classes_are_left_out_and_named(make_folder):
    root = make_folder({"a": 3, "b": 3, "zebra": 2})
    found = open_split(str(root), "auto", card("elsewhere"), None)
    assert (len(found.images), found.classes) == (6, ("a", "b"))
    assert found.images.labels == [0, 0, 0, 1, 1, 1]
    assert found.left_out == (
        "2 of 8 images are left out, because the network does not know their classes: zebra",
    )
    strange = make_folder({"x": 1, "y": 1}, name="strange")
    with pytest.raises(ValueError, match="does not know 2 of the data's 2 classes"):
        open_split(str(strange), "auto", card("elsewhere"), None)


def test_new_images_do_not_change_what_was_held_out(make_folder):
    root = make_folder({"a": 10, "b": 10})
    own = card(root)
    before = open_split(str(root), "auto", own, None).images.names
    for path in list(root.rglob("*.png")):
        for number in range(2):
            shutil.copy(path, path.with_name(f"more{number}_{path.name}"))
    assert len(open_split(str(root), "auto", own, None).images) == 12
    found = open_split(str(root), "auto", own, None, held=before)
    assert sorted(found.images.names) == sorted(before)
    assert len(open_split(str(root), "all", own, None, held=before).images) == 60


def test_corruptions_and_exports_take_what_the_run_held_out(make_folder, tmp_path):
    """The names recorded by the run decide, not those that a split of the folder would take now."""
    root = make_folder({"a": 10, "b": 10})
    names = [f"{name}/{path.name}" for name in "ab" for path in sorted((root / name).iterdir())]
    usual = set(open_split(str(root), "auto", card(root), None).images.names)
    held = tuple(name for name in names if name not in usual)[:4]
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    small_checkpoint(
        run / "checkpoints" / "best.safetensors",
        {"task": "classify", "data": str(root), "loader": {"val_share": 0.2}},
    )
    splits = {"val": SplitContents(names=held, annotations=(), pictures=())}
    (run / FILE).write_text(Contents(classes=("a", "b"), splits=splits).to_json())
    source = str(run)
    network, own = open_model(source, torch.device("cpu"))
    own = replace(own, classes=("a", "b"))

    def short(sources: Iterable[str]) -> set[str]:
        return {source.removeprefix(f"{root}/") for source in sources}

    clean, split = _open_clean(source, own, None, "val", None, 0, None, None)
    assert split == "val"
    assert short(clean.samples.source(i) for i in range(len(clean))) == set(held)
    settings = ExportSettings(format="onnx")
    spec = export_spec(ExportRequest(model=network, card=own, source=source, settings=settings))
    assert short(spec.images.files) == set(held)
    assert spec.images.num_training == 16
