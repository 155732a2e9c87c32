"""Pictures of labels contain exactly the labels."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convnext.data.drawing import class_colors, data_uri, save_image
from convnext.results.pictures import index_image, overlay
from convnext.tasks.segmentation.evaluate import GAP, IGNORED, LINE, WRONG, compare, error_image
from convnext.tasks.segmentation.predict import class_areas


def labels(num_classes: int, dtype: Any = np.uint8, shape: tuple[int, int] = (30, 40)) -> Any:
    return np.random.default_rng(0).integers(0, num_classes, shape).astype(dtype)


@pytest.mark.parametrize(
    ("num_classes", "mode", "dtype"),
    [(2, "P", np.uint8), (256, "P", np.uint8), (257, "I;16", np.int32), (60_000, "I;16", np.int32)],
)
def test_a_mask_is_read_back_exactly(
    num_classes: int, mode: str, dtype: Any, tmp_path: Path
) -> None:
    truth = labels(num_classes, dtype)
    truth[0, 0] = num_classes - 1
    save_image(index_image(truth, class_colors(num_classes)), tmp_path / "a" / "mask.png")
    with Image.open(tmp_path / "a" / "mask.png") as image:
        assert (image.format, image.mode) == ("PNG", mode)
        assert np.array_equal(np.asarray(image), truth)
        if mode == "P":
            colors = class_colors(num_classes)[truth]
            assert np.array_equal(np.asarray(image.convert("RGB")), colors)


@pytest.mark.parametrize("num_classes", [3, 255, 256, 300])
def test_values_without_a_class_keep_the_image(
    num_classes: int, noise: Callable[..., Image.Image]
) -> None:
    image, values = noise(40, 30), labels(num_classes, np.int32)
    values[0] = -1
    colors = class_colors(num_classes)
    drawn = np.asarray(overlay(image, values, colors, alpha=1.0))
    assert np.array_equal(drawn[0], np.asarray(image)[0])
    assert np.array_equal(drawn[1:], colors[values[1:]])


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_overlay_is_a_mean_and_leaves_what_is_not_labelled(
    mode: str, noise: Callable[..., Image.Image]
) -> None:
    image, values = noise(40, 30, mode=mode), labels(5)
    values[:10] = 255
    before = np.asarray(image.convert("RGB"), float)
    found = np.asarray(overlay(image, values, class_colors(5), alpha=0.25), float)
    assert np.array_equal(found[:10], before[:10])
    expected = 0.75 * before[10:] + 0.25 * class_colors(5)[values[10:]]
    assert np.abs(found[10:] - expected).max() <= 1
    with pytest.raises(ValueError, match="40 x 30 pixels, its labels 40 x 29"):
        overlay(image, values[1:], class_colors(5))


def test_errors_are_orange_and_only_errors(noise: Callable[..., Image.Image]) -> None:
    mask, found = labels(5), labels(5)
    found[5] = (found[5] + 1) % 5
    mask[4:6, :10] = 255
    pixels = np.asarray(error_image(noise(40, 30), found, mask))
    orange = (pixels == WRONG).all(-1)
    assert orange[5, 10:].all()
    assert orange.sum() == 30
    assert (pixels[4:6, :10] == IGNORED).all()
    assert pixels[~orange & (mask != 255)].min() >= 170


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_comparison_has_four_panels(mode: str, noise: Callable[..., Image.Image]) -> None:
    mask, found = labels(5, shape=(60, 80)), labels(5, shape=(60, 80))
    mask[0] = 255
    sheet = compare(noise(23, 17, mode=mode), mask, found, 5, width=160)
    assert sheet.size == (4 * 160 + 3 * GAP, 120 + LINE)
    errors = np.asarray(sheet)[LINE:, -160:]
    assert (errors[:2] == IGNORED).all()
    assert not (errors == WRONG).all(-1).any()
    tall = compare(noise(23, 17), mask[:, :1], found[:, :1], 5, width=10)
    assert tall.size == (40 + 3 * GAP, 600 + LINE)


def test_areas_are_sorted_and_sum_to_all_pixels() -> None:
    values = np.array([[3, 3, 3, 0], [1, 0, 255, 255]], np.uint8)
    areas = class_areas(values, ("sky", "tree", "car", "road"))
    assert [(a.name, a.pixels) for a in areas] == [("road", 3), ("sky", 2), ("tree", 1)]
    assert sum(a.percent for a in areas) == pytest.approx(100)
    assert areas[0].percent == 50
    assert class_areas(np.full((2, 2), 255, np.uint8), ("sky",)) == ()


def test_an_address_holds_the_picture(noise: Callable[..., Image.Image]) -> None:
    head, _, content = data_uri(noise(20, 10)).partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (20, 10)


def test_colors_are_fixed_and_apart() -> None:
    assert np.array_equal(class_colors(300)[:40], class_colors(40))
    assert class_colors(0).shape == (0, 3)
    first = class_colors(12).astype(int)
    gaps = np.abs(first[:, None] - first).sum(-1) + 1000 * np.eye(12, dtype=int)
    assert gaps.min() > 100


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (70_000, 2)])
def test_a_comparison_of_a_long_image_is_small(size: tuple[int, int]) -> None:
    truth = np.zeros(size[::-1], np.uint8)
    page = compare(Image.new("RGB", size), truth, truth, 2, width=320)
    assert page.height <= 2048 + LINE
    assert page.width <= 4 * (320 + GAP)
    assert data_uri(page).startswith("data:image/jpeg")
