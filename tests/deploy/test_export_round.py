"""Exports of all three tasks in every format and precision, verified and used.

Takes some minutes and needs the extra `export`: `pytest -m slow tests/deploy/test_export_round.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_exports import small_checkpoint, small_photos, small_segmentor
from small_objects import coco_squares

PRECISIONS = {
    "onnx": ("fp32", "fp16"),
    "openvino": ("fp32", "fp16", "int8"),
    "pt2": ("fp32", "bf16"),
}
SUFFIX = {"onnx": "onnx", "openvino": "xml", "pt2": "pt2"}


def convnext(*words: object) -> None:
    command = [sys.executable, "-m", "convnext", *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
def test_a_full_round(task: str, tmp_path: Path) -> None:
    photos = small_photos(tmp_path / "photos")
    source: Path | str = tmp_path / "run"
    images = ["--images", photos]
    if task == "classify":
        source = small_checkpoint(tmp_path / "net.safetensors")
    elif task == "segment":
        source = small_segmentor(tmp_path / "net.safetensors")
    else:
        data = coco_squares(tmp_path / "data", num_train=24, num_val=4)
        options = ["--run.precision", "fp32", "--schedule.epochs", 12, "--input.image_size", 64]
        model = ["--task", "detect", "--model", "mask_rcnn_convnext_atto"]
        convnext("train", *model, "--data", data, "--output", source, *options)
        photos, images = data / "images", []
    for format, precisions in PRECISIONS.items():
        for precision in precisions:
            path = tmp_path / f"{precision}.{SUFFIX[format]}"
            # int8 of such a small network may be slower than fp32, which does not matter here.
            force = ["--force"] if precision == "int8" else []
            form = ["--format", format, "--precision", precision, "--output", path]
            convnext("export", source, *form, *images, *force)
            proof = json.loads(path.with_name(path.name + ".proof.json").read_text())
            assert proof["num_images"] == 4
            assert proof["agreement"] > 0.8
            convnext("predict", path, photos, "--output", tmp_path / f"out-{path.name}")
            if task == "detect":
                assert None not in (proof["before"], proof["after"])
                convnext("evaluate", path, "--data", tmp_path / "data")
