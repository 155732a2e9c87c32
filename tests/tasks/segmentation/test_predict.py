"""Predicted masks and areas have the size of their images and do not overwrite each other."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from predicting import run_predictor
from rich.console import Console
from torch import Tensor, nn

from convnext.data.drawing import class_colors, output_names
from convnext.data.images import Mode
from convnext.data.preprocessing import DensePreprocessing, Pixels, to_array
from convnext.tasks.segmentation.predict import SegmentationResult
from convnext.tasks.trained import Opened
from convnext.weights.checkpoint import Card

CLASSES = ("dark", "[bold]light", "never")


class Halves(nn.Module):
    """Separates dark pixels from light ones."""

    def forward(self, images: Tensor) -> Tensor:
        light = images.mean(1)
        return torch.stack([-light, light, torch.full_like(light, -9)], 1)


class HalfSize:
    """Shows the network every image at half its size."""

    mode: Mode = "RGB"

    normalizes = True
    mean = std = (0.5,) * 3

    def pixels(self, image: Image.Image) -> Pixels:
        return to_array(image.resize((max(1, image.width // 2), max(1, image.height // 2)), 0))


def picture(path: Path, width: int = 40, height: int = 30, dark: int = 20) -> Path:
    """Save an image whose left `dark` columns are black, the others white."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[:, :dark] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def run(
    files: list[Path], output: Path, preprocessing: Any = None, **options: Any
) -> SegmentationResult:
    how = preprocessing or HalfSize()
    card = Card(task="segment", model="halves", changes={}, classes=CLASSES, preprocessing=how)
    own = Opened(source="halves", model=Halves(), card=card, device=torch.device("cpu"))
    result = run_predictor(own, files, output=output, precision="fp32", **options)
    assert isinstance(result, SegmentationResult)
    return result


def test_results_have_the_size_of_the_images(tmp_path: Path) -> None:
    files = [picture(tmp_path / "a b" / "grün.png"), picture(tmp_path / "c.png", 61, 7, dark=14)]
    result = run(files, tmp_path / "out", window=8)
    first, second = result.predictions
    assert (first.source, first.mask) == (str(files[0]), "grün_mask.png")
    assert [(a.name, a.pixels, a.percent) for a in first.areas] == [
        ("dark", 600, 50.0), ("[bold]light", 600, 50.0),
    ]  # fmt: skip
    for prediction, source in zip((first, second), files, strict=True):
        with Image.open(tmp_path / "out" / prediction.mask) as mask:
            assert mask.mode == "P"
            assert mask.size == (prediction.width, prediction.height) == opened(source).size
            indices = np.asarray(mask)
        assert not indices[:, :10].any()
        assert (indices[:, -20:] == 1).all()
        shown = np.asarray(opened(tmp_path / "out" / prediction.overlay), float)
        scale = shown.shape[1] // prediction.width  # Small images are enlarged.
        assert shown.shape[0] > scale * prediction.height, "there is no legend below"
        assert np.abs(shown[0, 0] - 0.55 * class_colors(3)[0]).max() <= 1
    assert sum(a.pixels for a in second.areas) == 61 * 7


def test_tables_hold_what_was_found(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no image")
    result = run([damaged, picture(tmp_path / "a.png", dark=10)], tmp_path / "out")
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict()))
    assert written["predictions"][0]["areas"][0]["name"] == "[bold]light"
    rows = list(csv.reader((tmp_path / "out" / "areas.csv").read_text().splitlines()))
    source = str(tmp_path / "a.png")
    assert rows == [
        ["image", "class", "pixels", "percent"],
        [source, "[bold]light", "900", "75.0000"],
        [source, "dark", "300", "25.0000"],
    ]
    assert result.bad_images == ((str(damaged), "not an image, or a damaged one"),)
    console = Console(file=io.StringIO(), width=200)
    result.print(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "40 x 30" in text
    assert "[bold]light 75.0 %, dark 25.0 %" in text
    assert "unreadable images: 1" in text


@pytest.mark.parametrize(("form", "expected"), [("jpg", "JPEG"), ("png", "PNG"), ("none", None)])
def test_overlays_by_choice(form: Any, expected: str | None, tmp_path: Path) -> None:
    result = run([picture(tmp_path / "a.png")], tmp_path / "out", overlays=form)
    names = {"a_mask.png", "areas.csv", "predictions.json"}
    if expected:
        names.add(f"a_overlay.{form}")
        assert opened(tmp_path / "out" / result.predictions[0].overlay).format == expected
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_progress_is_shown_where_asked(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    run([picture(tmp_path / "a.png")], tmp_path / "out", progress=console)
    assert "segmenting" in console.file.getvalue()  # type: ignore[attr-defined]


NAMES = [
    (["a/x.png", "a/y.jpg"], ["x", "y"]),
    (["a/x.png", "b/x.png", "b/y.png"], ["a_x.png", "b_x.png", "y"]),
    (["r/a/x.png", "r/b/c/x.png"], ["a_x.png", "b_c_x.png"]),
    (["a/x.png", "a/x.jpg"], ["x.png", "x.jpg"]),
    (["a/x.png", "a/x.png", "a/X.png"], ["x.png", "x.png_2", "X.png_3"]),
    (["a/b/x.png", "a/x.png", "a/b_x.png.png"], ["b_x.png", "x.png", "b_x.png_2"]),
    ([], []),
]


@pytest.mark.parametrize(("files", "names"), NAMES)
def test_names_of_results(files: list[str], names: list[str]) -> None:
    assert output_names([Path(file) for file in files]) == names


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    files = [picture(tmp_path / f"{n}" / "x.png", dark=n) for n in (10, 20, 30)]
    run(files, tmp_path / "out")
    for dark in (10, 20, 30):
        with Image.open(tmp_path / "out" / f"{dark}_x.png_mask.png") as mask:
            assert int((np.asarray(mask) == 0).sum()) == 30 * dark


def test_an_image_is_never_written_over(tmp_path: Path) -> None:
    files = [picture(tmp_path / "a.png"), picture(tmp_path / "a_mask.png")]
    before = files[1].read_bytes()
    with pytest.raises(ValueError, match="is one of the images; choose another folder"):
        run(files, tmp_path)
    assert files[1].read_bytes() == before


def test_what_cannot_be_done(tmp_path: Path, noise: Callable[..., Image.Image]) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"none of the 1 images can be read: .*damaged\.png"):
        run([damaged], tmp_path / "out")
    with pytest.raises(ValueError, match=r"missing\.png"):
        run([tmp_path / "missing.png"], tmp_path / "out")
    with pytest.raises(ValueError, match="there are no images"):
        run([], tmp_path / "out")
    with pytest.raises(ValueError, match="must be one of png, jpg, none"):
        run([damaged], tmp_path / "out", overlays="gif")
    with pytest.raises(ValueError, match="alpha is 2"):
        run([damaged], tmp_path / "out", alpha=2.0)


def test_names_leave_room_for_what_is_appended(tmp_path: Path) -> None:
    names = output_names([Path("ä" * 120 + f"{i}.png") for i in range(2)])
    assert len(set(names)) == 2
    assert max(len(name.encode("utf-8", "surrogateescape")) for name in names) < 210
    path = picture(tmp_path / f"{'n' * 250}.png")
    result = run([path], tmp_path / "out")
    assert (tmp_path / "out" / result.predictions[0].overlay).is_file()


def test_a_strip_that_would_grow_beyond_memory_is_left_out(tmp_path: Path) -> None:
    strip = picture(tmp_path / "strip.png", 60_000, 1)
    usual = picture(tmp_path / "usual.png")
    preprocessing = DensePreprocessing(image_size=64, mean=(0.5,) * 3, std=(0.5,) * 3)
    result = run([strip, usual], tmp_path / "out", preprocessing)
    assert [source for source, _ in result.bad_images] == [str(strip)]
    assert "3,840,000 x 64" in result.bad_images[0][1]
    assert "input.max_size" in result.bad_images[0][1]
