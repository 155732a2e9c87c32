"""A loaded model stays as it is, whatever is done with it; a path is opened for one job."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_exports import CLASSES, small_checkpoint, small_detector_file, small_segmentor
from small_objects import coco_squares

import convnext
from convnext.deploy import fast


def class_folders(root: Path) -> Path:
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(2):
            pixels = np.random.default_rng(i).integers(0, 256, (70, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def masked_images(root: Path) -> Path:
    for folder in ("images/val", "annotations/val", "images/train", "annotations/train"):
        (root / folder).mkdir(parents=True)
        for i in range(3):
            rng = np.random.default_rng(i)
            shape = (70, 80, 3) if folder.startswith("images") else (70, 80)
            pixels = rng.integers(0, 256 if len(shape) == 3 else 3, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    (root / "classes.txt").write_text("road\nsky\ntree\n")
    return root


TASKS: dict[str, Any] = {
    "classify": (small_checkpoint, class_folders, {"batch_size": 2}),
    "segment": (small_segmentor, masked_images, {}),
    "detect": (small_detector_file, coco_squares, {"score": 0.6, "nms": 0.4, "max_detections": 5}),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_loaded_network_stays_as_it_is(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, make, options = TASKS[task]
    source, data = write(tmp_path / "a.safetensors"), make(tmp_path / "data")
    images = [data] if task == "classify" else [data / "images"]
    chosen = []
    monkeypatch.setattr(fast, "WORTH_FOLDING_S", 0.0)
    monkeypatch.setattr(fast, "known_form", lambda *_: None)
    choose = fast.choose

    def noted(*facts: Any, **more: Any) -> Any:
        chosen.append(choose(*facts, **more))
        return chosen[-1]

    monkeypatch.setattr(fast, "choose", noted)
    model = convnext.load(source, device="cpu")
    assert model.task == task
    network: Any = model.network
    before = {name: t.clone() for name, t in network.state_dict().items()}
    config, modules = copy.deepcopy(network.config), list(map(id, network.modules()))
    model.evaluate(data, progress=False, **options)
    model.predict(images, progress=False, **options)
    assert chosen.count("fold") == 2
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert network.config == config
    assert list(map(id, network.modules())) == modules
    assert model.network is network


def test_a_path_is_folded_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, data = small_checkpoint(tmp_path / "a.safetensors"), class_folders(tmp_path / "data")
    monkeypatch.setattr(fast, "WORTH_FOLDING_S", 0.0)
    monkeypatch.setattr(fast, "known_form", lambda *_: None)
    kept = []
    fold = fast.fold

    def folded(model: Any, *, inplace: bool, **options: Any) -> Any:
        kept.append(not inplace)
        return fold(model, inplace=inplace, **options)

    monkeypatch.setattr(fast, "fold", folded)
    options: Any = {"batch_size": 2, "progress": False}
    convnext.evaluate(source, data=data, device="cpu", **options)
    convnext.predict(source, data, device="cpu", **options)
    assert kept == [False, False]
    convnext.load(source, device="cpu").predict(data, **options)
    assert kept == [False, False, True]
