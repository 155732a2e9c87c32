"""Images of four bands of 16 bits, from training to the exported file, for every task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from small_exports import small_checkpoint

import convnext
from convnext.tasks.classification.robustness.run import evaluate_robustness

TINY = {
    "network": {"changes": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
    "image_size": 64,
    "precision": "fp32",
    "device": "cpu",
    "progress": False,
}
SIDE = 64


def picture(rng: np.random.Generator, x: int, y: int, level: float) -> np.ndarray:
    """Return noise whose fourth band has a square."""
    values = rng.normal(2000, 200, (SIDE, SIDE, 4))
    values[y : y + 24, x : x + 24, 3] += level
    return values.clip(0, 65535).astype(np.uint16)


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")


def classes(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6)):
        for name, level in (("dry", 0), ("wet", 3000)):
            for i in range(count):
                values = picture(rng, *rng.integers(0, 40, 2), level)
                save(root / split / name / f"{i}.tif", values)


def pairs(root: Path) -> None:
    rng = np.random.default_rng(1)
    for split, count in (("train", 12), ("val", 4)):
        for i in range(count):
            x, y = rng.integers(0, 40, 2)
            save(root / "images" / split / f"{i}.tif", picture(rng, x, y, 3000))
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[y : y + 24, x : x + 24] = 1
            (root / "masks" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / split / f"{i}.png")


def objects(root: Path) -> None:
    rng = np.random.default_rng(2)
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", 8), ("val", 4)):
        images, annotations = [], []
        for i in range(count):
            x, y = rng.integers(0, 40, 2).tolist()
            save(root / split / f"{i}.tif", picture(rng, x, y, 3000))
            images.append({"id": i + 1, "file_name": f"{i}.tif", "width": SIDE, "height": SIDE})
            annotations.append(
                {"id": i + 1, "image_id": i + 1, "category_id": 1, "bbox": [x, y, 24, 24],
                 "area": 576, "iscrowd": 0,
                 "segmentation": [[x, y, x + 24, y, x + 24, y + 24, x, y + 24]]}
            )  # fmt: skip
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "field"}],
        }
        path = root / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content), encoding="utf-8")


SETS = {
    "classify": (classes, {"epochs": 10, "lr": 3e-3, "batch_size": 8}, "val/wet/0.tif"),
    "segment": (pairs, {"epochs": 2, "segment": {"channels": 16}}, "images/val/0.tif"),
    "detect": (
        objects,
        {"epochs": 1, "detect": {"channels": 16, "fc_dim": 32, "num_proposals": 50}},
        "val/0.tif",
    ),
}


@pytest.mark.parametrize("task", SETS)
def test_four_bands_from_data_to_the_exported_file(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, settings, image = SETS[task]
    write(tmp_path / "data")
    report = convnext.check_data(tmp_path / "data", progress=False)
    assert any("training images with 4 bands were sampled" in note for note in report.notes)
    given: dict[str, Any] = {**TINY, **settings, "progress": True}
    run = convnext.train(data=tmp_path / "data", output=tmp_path / "run", **given)
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "the bands of the images" in printed
    assert ("distortion of saturation and hue is left out" in printed) == (task == "segment")
    model = convnext.load(run.folder)
    how = model.preprocessing
    assert (how.in_chans, len(how.range), how.bands) == (4, 8, ())
    assert how.mean[3] != how.mean[0]
    scores = convnext.evaluate(run.folder, progress=False)
    if task == "classify":
        assert scores["top1"] > 80
    file = tmp_path / "data" / image
    result = model.predict(file, progress=False)[0]
    assert result.plot().size[1] >= SIDE
    assert model.embed(file, progress=False).vectors.shape[0] == 1
    exported = convnext.export(
        run.folder,
        format="onnx",
        output=tmp_path / "x.onnx",
        force=task == "detect",
        progress=False,
    )
    again = convnext.load(exported.path)
    assert again.preprocessing.range == how.range
    other = again.predict(file, progress=False)[0]
    if task == "classify":
        assert np.allclose(other.probabilities, result.probabilities, atol=1e-4)
    rgb = tmp_path / "rgb.png"
    Image.new("RGB", (SIDE, SIDE)).save(rgb)
    bad = model.predict([file, rgb], progress=False).bad_images
    assert [reason for _, reason in bad] == [
        "has 3 bands, but the network reads 4 bands; --input.bands of training chooses bands"
    ]


def test_chosen_bands_meet_weights_of_rgb_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # No line of the table is broken.
    classes(tmp_path / "data")
    source = small_checkpoint(tmp_path / "rgb.safetensors")
    common = {**TINY, "epochs": 1, "progress": True, "weights": source, "model": "auto"}
    common.pop("network")
    run = convnext.train(
        data=tmp_path / "data",
        output=tmp_path / "two",
        **common,
        input={"bands": "4,1", "range": "0,6000"},
        augment={"color_jitter": 0.4},
    )
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "the 3 channels of their stem are repeated for 2, and scaled" in printed
    assert "augment.color_jitter is left out, for images of 2 bands" in printed
    how = convnext.load(run.folder).preprocessing
    assert (how.in_chans, how.bands, how.range) == (2, (4, 1), (0.0, 6000.0))
    assert how.mean == pytest.approx((0.37, 0.333), abs=0.03)
    again = convnext.train(
        data=tmp_path / "data", output=tmp_path / "on", epochs=1, weights=str(run.folder),
        progress=True, device="cpu", precision="fp32",
    )  # fmt: skip
    printed = " ".join("".join(capsys.readouterr()).split())
    assert convnext.load(again.folder).preprocessing.bands == (4, 1)
    assert "of their stem" not in printed
    with pytest.raises(ValueError, match="reads 2 bands"):
        evaluate_robustness(str(run.folder))
    with pytest.raises(ValueError, match=r"input\.in_chans is 3, but there are 4 bands"):
        convnext.train(
            data=tmp_path / "data", output=tmp_path / "x", input={"in_chans": 3}, progress=False
        )
    with pytest.raises(ValueError, match=r"input\.bands has band 7, but the images have 4"):
        convnext.train(
            data=tmp_path / "data", output=tmp_path / "x", input={"bands": [7]}, progress=False
        )
