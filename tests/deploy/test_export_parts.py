"""Matrix products in exported files compute what the package computes without them."""

from __future__ import annotations

import re
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_exports import small_detector_file, small_segmentor
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from convnext.api.tools import _size
from convnext.cli import main
from convnext.data.masks import paste_masks
from convnext.data.preprocessing import DensePreprocessing
from convnext.deploy import export as deployment
from convnext.deploy.fold import fold
from convnext.deploy.formats import Blueprint, ExportSettings, write_pt2
from convnext.deploy.graphs import FittedImage
from convnext.tasks import task_class
from convnext.tasks.detection.export.exported import OnCanvas
from convnext.tasks.detection.export.file import default_canvas
from convnext.tasks.detection.export.graph import paste
from convnext.tasks.exporting import export
from convnext.tasks.segmentation.export import AnySizeSegmentor, parts
from convnext.tasks.trained import open_model

PIXELS: dict[str, Any] = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}


@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_masks_are_pasted_as_by_the_package(threshold: float) -> None:
    random = torch.Generator().manual_seed(0)
    size = (45, 70)
    corner = torch.rand(40, 2, generator=random) * torch.tensor([60.0, 40.0])
    boxes = torch.cat((corner, corner + torch.exp2(6 * torch.rand(40, 2, generator=random))), 1)
    boxes = torch.minimum(boxes, torch.tensor([70.0, 45, 70, 45]))
    # Without width, without anything, of the whole image, at the last edge.
    boxes[:4] = torch.tensor([[9.0, 4, 9, 30], [0, 0, 0, 0], [0, 0, 70, 45], [70, 45, 70, 45]])
    shares = torch.rand(40, 28, 28, generator=random)
    rows, columns = (torch.arange(n).float() for n in size)
    found = paste(shares, boxes, (rows, columns), threshold)
    expected = paste_masks(shares, boxes, size, threshold)
    assert expected[4:].sum() > 1000
    # A value at the threshold itself may be rounded either way.
    assert (found != expected).sum() <= 2


@pytest.mark.parametrize("length", [2, 3, 5, 6, 7, 16, 33])
def test_parts_are_those_of_adaptive_pooling(length: int) -> None:
    x = torch.randn(1, 4, length, 9, generator=torch.Generator().manual_seed(0))
    for scale in (1, 2, 3, 6):
        found = parts(x[0, 0, :, 0], scale) @ (x @ parts(x[0, 0, 0], scale).T)
        assert_close(found, F.adaptive_avg_pool2d(x, scale))


@pytest.mark.parametrize("size", [(64, 64), (70, 133), (200, 96)])
def test_a_segmentor_for_any_size_has_the_same_logits(size: tuple[int, int], tmp_path: Any) -> None:
    model, _ = open_model(small_segmentor(tmp_path / "a.safetensors"), torch.device("cpu"))
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(image)
        found = AnySizeSegmentor(fold(model, form="conv"))(image)
        mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
        pixels = image * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
        again = AnySizeSegmentor(fold(model, mean=mean, std=std, form="conv"))(pixels)
    scale = float(expected.abs().max())
    assert_close(found, expected, atol=1e-5 * scale, rtol=1e-4)
    assert_close(again, expected, atol=1e-4 * scale, rtol=1e-3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("short", "long"), [(48, 80), (48, 0), (0, 0)])
@pytest.mark.parametrize("size", [(90, 70), (61, 200), (33, 32), (64, 64)])
def test_an_image_is_fitted_as_by_the_preprocessing(
    size: tuple[int, int], short: int, long: int, interpolation: Any
) -> None:
    pre = DensePreprocessing(image_size=short, max_size=long, interpolation=interpolation, **PIXELS)
    canvas = (64, 96)
    rng = np.random.default_rng(size[0])
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    image = coarse.resize(size, Image.Resampling.BICUBIC)
    expected = torch.from_numpy(OnCanvas(inner=pre, size=canvas).pixels(image))
    height, width = expected.shape[1:]
    assert height <= 64
    assert width <= 96
    found, fitted, own = FittedImage(pre, canvas)(torch.from_numpy(np.array(image))[None])
    assert found.shape == (1, 3, *canvas)
    assert fitted.tolist() == [height, width]
    assert own.tolist() == [size[1], size[0]]
    differing = (found[0, :, :height, :width] - expected.float()).abs()
    assert differing.max() <= (2 if size[1] > 2 * size[0] else 1)
    assert not found[0, :, height:].any()
    assert not found[0, :, :, width:].any()


@pytest.mark.parametrize(("short", "long"), [(800, 1333), (512, 0), (0, 1000), (0, 0)])
def test_a_file_resizes_to_the_sizes_of_the_package(short: int, long: int) -> None:
    pre = DensePreprocessing(image_size=short, max_size=long, **PIXELS)
    rng = np.random.default_rng(0)
    sizes = [(1798, 551), (551, 1798), (1, 3000), *rng.integers(8, 3000, (400, 2)).tolist()]
    for canvas in ((1344, 416), (416, 1344), (800, 1344), (64, 64)):
        file, package = FittedImage(pre, canvas), OnCanvas(inner=pre, size=canvas)
        for width, height in sizes:
            own = torch.tensor([height, width]).float()
            found = tuple(map(int, reversed(file._fitted(own).tolist())))
            assert found == package.size_of(width, height), (width, height, canvas)
            assert found[0] <= canvas[1]
            assert found[1] <= canvas[0]


def test_a_canvas_holds_what_is_read_onto_it() -> None:
    pre = DensePreprocessing(image_size=100, max_size=160, **PIXELS)
    assert default_canvas(pre, [(300, 200)]) == (128, 160)
    assert default_canvas(pre, [(300, 200), (200, 300)]) == (160, 160)
    assert default_canvas(pre, [(300, 200)], stride=64) == (128, 192)
    on = OnCanvas(inner=pre, size=(64, 160))
    assert on.size_of(300, 200) == (96, 64)
    assert on.size_of(900, 100) == pre.size_of(900, 100)


def test_a_file_reports_no_more_than_was_written_into_it(tmp_path: Any) -> None:

    from convnext.deploy.runtimes import Exported
    from convnext.tasks.detection.export.exported import ExportedDetector
    from convnext.tasks.detection.export.file import facts_of
    from convnext.tasks.detection.predict import change_detector
    from convnext.weights.checkpoint import Card

    source = small_detector_file(tmp_path / "a.safetensors")
    model, card = open_model(source, torch.device("cpu"))
    import json

    settings = ExportSettings(size=(64, 64))
    facts = {"inside": settings.inside, "precision": "fp32", **facts_of(model, settings)}
    assert (facts["score_threshold"], facts["max_detections"]) == (0.3, 30)
    boxes = np.arange(120, dtype=np.float32).reshape(30, 4)
    scores = np.linspace(0.9, 0.3, 30, dtype=np.float32)
    scores[20:] = 0
    labels, masks = np.zeros(30, np.int64), np.ones((30, 28, 28), np.float32)
    exported = Exported(
        tmp_path / "a.onnx",
        {"graph": json.dumps(facts)},
        lambda given: [boxes, scores, labels, masks],
    )
    network = ExportedDetector(exported, Card(**{**vars(card), "changes": card.changes}))
    image = torch.zeros(3, 50, 60)
    (found,) = network([image], paste=False)
    assert len(found["scores"]) == len(found["shares"]) == 20
    (pasted,) = network([image])
    assert pasted["masks"].shape == (20, 50, 60)
    sure = change_detector(network, score_threshold=0.5, max_detections=None, nms_threshold=None)
    assert len(sure([image])[0]["scores"]) == int((scores >= 0.5).sum())
    few = change_detector(network, max_detections=3)
    assert len(few([image])[0]["scores"]) == 3
    assert len(network([image])[0]["scores"]) == 20
    for asked, words in (
        ({"score_threshold": 0.1}, "exported with a score_threshold of 0.3"),
        ({"nms_threshold": 0.9}, "exported with a nms_threshold of 0.5"),
        ({"max_detections": 200}, "exported with a max_detections of 30"),
    ):
        with pytest.raises(ValueError, match=words):
            change_detector(network, **asked)
    with pytest.raises(ValueError, match="up to 64 x 64 pixels, not 65 x 20"):
        network([torch.zeros(3, 65, 20)])


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = torch.zeros(1, 3)
    blueprint = Blueprint(graph=nn.Linear(3, 2), examples=(example,), open_dims=({},))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_pt2(blueprint, tmp_path / "a.pt2", {}, ExportSettings(format="pt2"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def write(text: str = "basic_ios::clear: iostream error") -> None:
        with deployment._full_disk_named(tmp_path / "a.xml"):
            raise RuntimeError(text)

    with pytest.raises(RuntimeError, match="another"):
        write("another")
    with pytest.raises(OSError, match=r"a.xml could not be written; is the disk full"):
        write()
    full = SimpleNamespace(free=10)
    monkeypatch.setattr(deployment.shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match=r"No space left on device.*a.xml"):
        write()


def test_sizes_are_read() -> None:
    assert _size("512x768") == (512, 768)
    assert _size("64") == (64, 64)
    assert _size("any") == "any"
    for wrong in ("big", "1x2x3", "-4", ""):
        with pytest.raises(ValueError, match="is not a size"):
            _size(wrong)


@pytest.mark.parametrize(
    ("fields", "task", "words"),
    [
        ({"masks": "full"}, "classify", "--masks is only for detectors"),
        ({"size": "any"}, "classify", "--size any is only for segmentors"),
        ({"size": "any"}, "detect", "a fixed size, which smaller"),
        ({"answers": False}, "detect", "leave out --logits"),
        ({"batch": 4}, "detect", "one image at a time"),
        ({"format": "onnx", "precision": "int8"}, "detect", "--format openvino"),
        ({"format": "openvino", "precision": "bf16"}, "detect", "which is inexact"),
    ],
)
def test_what_a_task_does_not_have_is_refused(fields: Any, task: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        task_class(task).task_module("export").check_settings(ExportSettings(**fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"size": (64, 100)}, "multiples of 32, not 64 x 100: use 64 x 128 (--size 64x128)"),
        ({"size": (64, 64), "masks": "full"}, "leave out --masks"),
    ],
)
def test_what_a_detector_does_not_fit_is_refused_before_images_are_read(
    fields: Any, words: str, tmp_path: Any
) -> None:
    source = small_detector_file(tmp_path / "a.safetensors", masks=False)
    with pytest.raises(ValueError, match=re.escape(words)):
        export(source, settings=ExportSettings(**fields), images=[tmp_path / "missing"])


@pytest.mark.parametrize("num", ["0", "-3"])
def test_a_number_of_images_is_positive(num: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "missing", "--format", "pt2", "--num-images", num]
    assert main(words) == 2
    assert f"--num-images must be at least 1, not {num}" in capsys.readouterr().err
