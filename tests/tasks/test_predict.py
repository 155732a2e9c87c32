"""The common behavior of the predictors of all tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import convnext
from convnext.data.preprocessing import DensePreprocessing, Preprocessing
from convnext.tasks import DEFAULT, task_class, task_names


def tiny(task: str) -> convnext.Model:
    """Return a network of a task with random weights, for small images."""
    module = convnext.create_model(
        f"{task_class(task).default_prefix()}convnext_atto",
        num_classes=2,
        depths=[1, 1, 1, 1],
        dims=[8, 8, 16, 16],
    )
    how = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    preprocessing = (
        Preprocessing(image_size=64, crop_pct=1.0, **how)
        if task == DEFAULT
        else DensePreprocessing(image_size=64, max_size=96, **how)
    )
    return convnext.load(
        module, preprocessing=preprocessing, classes=("a", "b"), task=task, device="cpu"
    )


def frames(count: int) -> Iterator[Image.Image]:
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (64, 80, 3), np.uint8)
        yield Image.fromarray(noise)


@pytest.mark.parametrize("kind", ["files", "frames"])
@pytest.mark.parametrize("task", task_names())
def test_a_stream_leaves_the_gradient_mode_of_its_caller(
    task: str, kind: str, tmp_path: Path
) -> None:
    model = tiny(task)
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, frame in zip(files, frames(3), strict=True):
        frame.save(file)

    def stream() -> Iterator[object]:
        source = files if kind == "files" else frames(3)
        options = {"batch_size": 2} if task == DEFAULT else {}
        return iter(model.predict(source, stream=True, progress=False, **options))

    def modes() -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with torch.no_grad():
        for _ in stream():
            assert modes() == (False, False)
        assert modes() == (False, False)
    assert modes() == (True, False)
    for _ in stream():
        assert modes() == (True, False)
    # The mode may change between two results, and a stream may be abandoned early.
    begun = stream()
    with torch.no_grad():
        next(begun)
        assert modes() == (False, False)
    next(begun)
    assert modes() == (True, False)
    del begun
    assert modes() == (True, False)


@pytest.mark.parametrize("task", task_names())
def test_images_of_extreme_shapes_have_features(task: str) -> None:
    sizes = (1, 1), (1, 300), (300, 2)
    images = [Image.new("RGB", size, "red") for size in sizes]
    vectors, paths = tiny(task).embed(images, progress=False)
    assert len(vectors) == len(paths) == 3
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize("task", task_names())
def test_pixels_outside_the_range_of_training_are_counted(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny(task)
    card = model._opened.card
    ranged = replace(card, preprocessing=replace(card.preprocessing, range=(100.0, 1000.0)))
    model = convnext.api.model.Model(replace(model._opened, card=ranged))
    values = np.full((64, 64), 500, np.uint16)
    Image.fromarray(values).save(tmp_path / "0.png")
    values[:16] = 2000
    values[16:24] = 50
    Image.fromarray(values).save(tmp_path / "1.png")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "2.png")
    model.predict(tmp_path, progress=True)
    shown = " ".join("".join(capsys.readouterr()).split())
    assert (
        "pixels outside the range of the training images, clipped: 19 %, in 1 of 2 16-bit or "
        "float images" in shown
    )
