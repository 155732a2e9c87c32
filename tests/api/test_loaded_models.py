"""A loaded model stays as it is, whatever is done with it; a path is opened for one job."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_exports import (
    CLASSES,
    STATISTICS,
    small_checkpoint,
    small_detector_file,
    small_photos,
    small_segmentor,
)
from small_objects import coco_squares

import convnext
from convnext.api import check_data
from convnext.data.preprocessing import Preprocessing
from convnext.deploy import fast, optimize, runtimes
from convnext.weights.checkpoint import Card
from convnext.weights.files import read_file, save_checkpoint


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
    monkeypatch.setattr(fast, "known_backend", lambda *_: None)
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
    assert chosen.count("fold") == 1  # `predict`; `evaluate` folds without a choice.
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert network.config == config
    assert list(map(id, network.modules())) == modules
    assert model.network is network


def test_a_path_is_folded_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, data = small_checkpoint(tmp_path / "a.safetensors"), class_folders(tmp_path / "data")
    monkeypatch.setattr(fast, "WORTH_FOLDING_S", 0.0)
    monkeypatch.setattr(fast, "known_backend", lambda *_: None)
    kept = []
    fold = optimize.fold

    def folded(model: Any, *, inplace: bool, **options: Any) -> Any:
        kept.append(not inplace)
        return fold(model, inplace=inplace, **options)

    monkeypatch.setattr(optimize, "fold", folded)
    options: Any = {"batch_size": 2, "progress": False}
    convnext.evaluate(source, data=data, device="cpu", **options)
    convnext.predict(source, data, device="cpu", **options)
    assert kept == [False, False]
    convnext.load(source, device="cpu").predict(data, **options)
    assert kept == [False, False, True]


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_what_is_loaded_is_what_is_exported(task: str, tmp_path: Path) -> None:
    write, _, _ = TASKS[task]
    photos = small_photos(tmp_path / "photos")
    source = write(tmp_path / "a.safetensors")
    model: Any = convnext.load(source, device="cpu")
    with torch.no_grad():
        for p in model.network.parameters():
            p.mul_(1.1)
    modules = list(map(id, model.network.modules()))
    Path(source).unlink()
    done = model.export("pt2", output=tmp_path / "a.pt2", images=[photos], progress=False)
    assert done.proof["agreement"] == 1.0
    assert list(map(id, model.network.modules())) == modules
    with pytest.raises(ValueError, match=r"a\.pt2 is an exported file"):
        convnext.load(done.path).export("onnx", output=tmp_path / "b.onnx", progress=False)
    with pytest.raises(ValueError, match=r"a\.pt2 is an exported file"):
        convnext.export(done.path, format="pt2", output=tmp_path / "b.pt2", progress=False)


def test_a_module_in_memory_is_exported(tmp_path: Path) -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4, 4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(512, 3)
    )
    preprocessing = Preprocessing(image_size=32, crop_pct=1.0, **STATISTICS)
    model = convnext.load(network, preprocessing=preprocessing, classes=CLASSES, device="cpu")
    photos = small_photos(tmp_path / "photos")
    with pytest.raises(ValueError, match="give images FOLDER"):
        model.export("pt2", output=tmp_path / "a.pt2", progress=False)
    done = model.export("pt2", output=tmp_path / "a.pt2", images=[photos], progress=False)
    options: Any = {"progress": False}
    expected = model.predict(photos, **options)
    found = convnext.predict(done.path, photos, **options)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5)


def test_the_last_weights_of_a_run_are_those_of_the_run(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "data")
    run = tmp_path / "run"
    best, last = run / "checkpoints" / "best.safetensors", run / "checkpoints" / "step-00000002"
    last.mkdir(parents=True)
    recipe = {"data": str(data)}
    small_checkpoint(best, recipe)
    tensors, metadata = read_file(Path(small_checkpoint(last / "model.safetensors", recipe)))
    halved = {name: tensor / 2 for name, tensor in tensors.items()}
    save_checkpoint(last / "model.safetensors", halved, Card.from_metadata(metadata, where="last"))
    save_file({f"ema.{name}": t for name, t in tensors.items()}, last / "state.safetensors")
    model = convnext.load(run, which="last", device="cpu")
    scores = model.evaluate(progress=False)
    assert scores.evaluation.source == str(run)
    assert scores.evaluation.last == ()
    assert scores["loss"] != convnext.load(run, device="cpu").evaluate(progress=False)["loss"]
    done = model.export("pt2", progress=False)
    assert done.path.parent == run
    (found,) = convnext.predict(done.path, next(data.rglob("*.png")), progress=False)
    (expected,) = model.predict(next(data.rglob("*.png")), progress=False)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)


def test_a_card_without_a_task_is_a_classifiers(tmp_path: Path) -> None:
    path, data = Path(small_checkpoint(tmp_path / "a.safetensors")), class_folders(tmp_path / "d")
    tensors, metadata = read_file(path)
    save_checkpoint(path, tensors, replace(Card.from_metadata(metadata, where="a"), task=""))
    options: Any = {"progress": False}
    assert convnext.load(path).task == "classify"
    assert len(convnext.predict(path, data, **options)) == 6
    assert "top1" in convnext.evaluate(path, data=data, **options)
    done = convnext.export(path, format="onnx", output=tmp_path / "a.onnx", images=data, **options)
    assert convnext.load(done.path).task == "classify"
    assert len(convnext.predict(done.path, data, **options)) == 6
    with pytest.raises(ValueError, match=r"'clasify', but must be .*did you mean 'classify'"):
        check_data(data, task="clasify", progress=False)  # type: ignore[arg-type]


def test_an_exported_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = class_folders(tmp_path / "data")
    source = small_checkpoint(tmp_path / "a.safetensors")
    file = convnext.export(
        source, format="pt2", output=tmp_path / "a.pt2", images=data, progress=False
    ).path
    opened = []
    read = runtimes._open_pt2
    monkeypatch.setattr(runtimes, "_open_pt2", lambda path: opened.append(path) or read(path))
    model = convnext.load(file)
    model.predict(data, progress=False)
    model.predict(data, topk=2, progress=False)
    model.evaluate(data, progress=False)
    assert model.network is model.network
    assert opened == [file]
    convnext.evaluate(file, data=data, progress=False)
    assert opened == [file] * 2


def test_a_loaded_model_is_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    module = convnext.create_model("convnext_atto", depths=(1, 1), dims=(8, 8), num_classes=2)
    settings = {"image_size": 16, "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    model = convnext.load(module, preprocessing=settings, classes=("a", "b"), device="cpu")
    image = Image.new("RGB", (16, 16))
    assert len(model.predict(image, device="cpu", progress=False)) == 1
    elsewhere = replace(model._opened, device=torch.device("meta"))
    monkeypatch.setattr(model, "_own", elsewhere)
    monkeypatch.setattr(model, "_opened", elsewhere)
    with pytest.raises(
        ValueError, match=r"is on meta, not on cpu; load it there: .*device=\"cpu\""
    ):
        model.predict(image, device="cpu")
