"""Exported detectors, and segmentors for any size, replace their checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from predicting import run_predictor
from small_exports import FILES, small_detector_file, small_photos, small_segmentor

from convnext.cli import main
from convnext.deploy.export import ExportSettings
from convnext.deploy.runtimes import open_exported
from convnext.tasks.detection.export.proof import DetectorProof
from convnext.tasks.exporting import export

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images that a detector reads at 64 x 96 pixels, the size of the file."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    for k in range(3):
        coarse = np.random.default_rng(k).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((90 + 30 * k, 60 + 20 * k)).save(folder / f"{k}.png")
    return folder


@pytest.mark.parametrize(
    ("format", "masks", "inside"),
    [("onnx", "full", "full"), ("openvino", "shares", "normalize"), ("pt2", "none", "none")],
)
def test_a_detectors_file_predicts_like_its_checkpoint(
    format: Any, masks: Any, inside: Any, photos: Path, tmp_path: Path
) -> None:
    checkpoint = small_detector_file(tmp_path / "net.safetensors")
    path = tmp_path / FILES[format]
    settings = ExportSettings(format=format, masks=masks, inside=inside)
    result = export(checkpoint, settings=settings, output=path, images=[photos])
    assert isinstance(result.proof, DetectorProof)
    proof = result.proof.detections
    assert proof.num_detections > 20
    assert proof.matched > 0.98
    stored = json.loads(result.proof_path.read_text())
    assert stored["detections"]["matched_close"] == proof.matched_close
    graph = open_exported(path).graph
    assert (graph["canvas"], graph["max_detections"]) == ([64, 96], 30)
    expected, found = (
        run_predictor(
            source, sorted(photos.iterdir()), output=tmp_path / f"out{k}", overlays="none"
        )
        for k, source in enumerate((checkpoint, str(path)))
    )
    assert (tmp_path / "out1" / "objects.csv").is_file()
    tolerance = 1.0 if inside == "full" else 0.01
    for a, b in zip(expected.predictions, found.predictions, strict=True):
        assert len(a.found) == len(b.found) > 0
        assert b.found.labels.tolist() == a.found.labels.tolist()
        assert b.found.boxes == pytest.approx(a.found.boxes, abs=tolerance)
        assert (b.found.masks[0] is None) == (masks == "none")


@pytest.mark.parametrize("format", sorted(FILES))
def test_a_segmentor_of_default_width_is_exported(format: Any, tmp_path: Path) -> None:
    # With 16 channels or more, maps are mixed before they are resized.
    checkpoint = small_segmentor(tmp_path / "net.safetensors", channels=512)
    photos = small_photos(tmp_path / "photos")
    settings = ExportSettings(format=format, answers=False)
    result = export(checkpoint, settings=settings, output=tmp_path / FILES[format], images=[photos])
    assert result.proof.agreement > 0.995


@pytest.mark.parametrize("format", ["onnx", "openvino"])  # pt2 is what onnx is made from.
def test_a_segmentors_file_takes_any_size(format: Any, tmp_path: Path) -> None:
    checkpoint = small_segmentor(tmp_path / "net.safetensors")
    photos = small_photos(tmp_path / "photos")
    path = tmp_path / FILES[format]
    settings = ExportSettings(format=format, size="any")
    result = export(checkpoint, settings=settings, output=path, images=[photos])
    assert result.proof.agreement > 0.995
    for k, source in enumerate((checkpoint, str(path))):
        assert main(["predict", source, str(photos), "--output", str(tmp_path / str(k))]) == 0
    for name in ("0_mask.png", "3_mask.png"):  # Not smaller than the input of the file.
        a, b = (np.array(Image.open(tmp_path / str(k) / name)) for k in (0, 1))
        assert np.mean(a == b) > 0.99
