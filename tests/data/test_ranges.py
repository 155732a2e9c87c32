"""One range for all 16-bit and float images: found in training images, stored, and applied."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import convnext
from convnext.cli import main
from convnext.data.images import RangedMode, decode
from convnext.data.preprocessing import DensePreprocessing, Preprocessing
from convnext.data.ranges import pixel_range
from convnext.data.samples import FolderSamples

GRAY = {"in_chans": 1, "mean": (0.5,), "std": (0.5,)}


def folder(root: Path, images: list[np.ndarray]) -> FolderSamples:
    for i, values in enumerate(images):
        Image.fromarray(values).save(root / f"{i}.tif")
    return FolderSamples(root, [f"{i}.tif" for i in range(len(images))], [0] * len(images))


def test_twelve_bits_use_all_gray_levels(tmp_path: Path) -> None:
    ramp = np.linspace(0, 4095, 4096).reshape(64, 64).astype(np.uint16)
    samples = folder(tmp_path, [ramp, ramp // 2, np.zeros((8, 8), np.uint8)])
    found = pixel_range(samples)
    assert found is not None
    assert (found.num_images, found.modes) == (2, ["I;16"])
    every = np.concatenate([ramp.ravel(), (ramp // 2).ravel()])
    assert found.values == pytest.approx(np.percentile(every, (0.1, 99.9)), abs=1)
    assert found.clipped == pytest.approx(0.002, abs=0.0005)
    mode = RangedMode("L", found.values)
    levels = [np.asarray(decode(tmp_path / f"{i}.tif", mode=mode)) for i in range(3)]
    assert len(np.unique(levels[0])) == 256
    # Equal values look equal in each image, and images of 8 bits stay as they are.
    assert abs(levels[0].mean() - 2 * levels[1].mean()) < 2
    assert not levels[2].any()
    assert "values from 0 to 4,095" in str(found)
    assert "--input.range" in str(found)


def test_floats_and_images_without_more_than_8_bits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 1e-3, (64, 64)).astype(np.float32)
    values[0, 0] = np.nan
    values[0, 1] = 1e6
    (tmp_path / "f").mkdir()
    found = pixel_range(folder(tmp_path / "f", [values]))
    assert found is not None
    assert -0.004 < found.low < -0.002
    assert 0.002 < found.high < 0.004
    (tmp_path / "u").mkdir()
    assert pixel_range(folder(tmp_path / "u", [np.zeros((4, 4), np.uint8)])) is None
    (tmp_path / "c").mkdir()
    constant = pixel_range(folder(tmp_path / "c", [np.full((4, 4), 7, np.uint16)]))
    assert constant is not None
    assert constant.low < constant.high


@pytest.mark.parametrize("top", [0.99, 1.2, 255.0, 256.0])
def test_floats_without_a_range_are_not_nearly_black(tmp_path: Path, top: float) -> None:
    values = np.linspace(0, top, 64, dtype=np.float32)[None].repeat(64, 0)
    Image.fromarray(values).save(tmp_path / "f.tif")
    assert np.asarray(decode(tmp_path / "f.tif", mode="L")).mean() > 100


@pytest.mark.parametrize(
    "given",
    [
        Preprocessing(image_size=8, crop_pct=1.0, range=(10.0, 500.0), **GRAY),
        DensePreprocessing(image_size=8, range=(10.0, 500.0), **GRAY),
    ],
)
def test_the_range_is_part_of_the_preprocessing(given: Preprocessing | DensePreprocessing) -> None:
    assert type(given).from_dict(given.to_dict()) == given
    image = Image.fromarray(np.full((8, 8), 255, np.uint16))
    assert (given.pixels(image) == 128).all()
    assert pickle.loads(pickle.dumps(given.mode)).range == (10.0, 500.0)
    assert given.mode == "L"
    plain = type(given).from_dict({k: v for k, v in given.to_dict().items() if k != "range"})
    assert "range" not in plain.to_dict()
    assert (plain.pixels(image) == 1).all()
    with pytest.raises(ValueError, match="must be a smaller and a larger number"):
        type(given).from_dict(given.to_dict() | {"range": [5, 5]})


def wide_classes(root: Path) -> Path:
    """Write two classes of 12-bit images whose values are 0, 100, ... 4,000."""
    values = np.repeat(np.arange(0, 4100, 100, dtype=np.uint16), 40).reshape(41, 40)
    for split, count in (("train", 6), ("val", 3)):
        for name in "ab":
            for i in range(count):
                path = root / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.roll(values, i + ord(name), 0)).save(path)
    return root


def test_a_given_range_is_reported_with_the_pixels_that_it_clips(tmp_path: Path, capsys) -> None:
    root = wide_classes(tmp_path / "data")
    # Of 41 values, 5 are below 500, and 20 above 2,000.
    for option in ("--input.range", "--range"):
        assert main(["data", str(root), option, "500,2000", "--json"]) == 0
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        (note,) = [note for note in report["notes"] if "becomes black" in note]
        assert "500 becomes black and 2,000 white, as given, which clips 61 %" in note
        assert "percentiles are 0 and 4,000" in note
    found = convnext.check_data(root, range=(500, 2000), progress=False)
    assert note in found.notes
    plain = convnext.check_data(root, progress=False)
    (note,) = [note for note in plain.notes if "becomes black" in note]
    assert "0 becomes black and 4,000 white" in note
    assert "clips 0 %" in note


@pytest.mark.parametrize("text", ["5", "9,3", "1,2,3", "4,4"])
def test_what_is_not_a_range_is_refused(tmp_path: Path, text: str, capsys) -> None:
    root = wide_classes(tmp_path / "data")
    assert main(["data", str(root), "--input.range", text]) == 2
    assert "must be LOW,HIGH with LOW below HIGH" in capsys.readouterr().err


def test_a_range_of_images_of_8_bits_is_said_to_have_no_effect(make_folder) -> None:
    root = make_folder({"train/a": 3, "train/b": 3})
    notes = convnext.check_data(root, range=(0, 100), progress=False).notes
    assert "all images have 8 bits, so --input.range does not affect them" in notes


def test_every_verb_counts_the_pixels_that_the_range_clips(tmp_path: Path, capsys) -> None:
    root = wide_classes(tmp_path / "data")
    run = convnext.train(
        data=root,
        model="convnext_atto",
        output=tmp_path / "run",
        epochs=1,
        image_size=32,
        workers=0,
        **{"input.range": (500, 2000)},
    )
    assert "as given, which clips 61 % of the pixels; the 0.1 and 99.9" in " ".join(
        capsys.readouterr().out.split()
    )
    images = str(root / "val" / "a")
    line = "clipped: 61 %, in 3 of 3 16-bit or float images"
    assert main(["predict", str(run.folder), images]) == 0
    assert line in " ".join(capsys.readouterr().out.split())
    assert main(["embed", str(run.folder), images]) == 0
    assert line in " ".join(capsys.readouterr().out.split())
    exported = convnext.load(run.folder).export("onnx", progress=False)
    convnext.predict(exported.path, images)
    assert line in " ".join(capsys.readouterr().out.split())
    assert main(["predict", str(exported.path), images]) == 0
    assert line in " ".join(capsys.readouterr().out.split())
