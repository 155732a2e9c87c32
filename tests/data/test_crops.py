"""Crops have the same pixels as Pillow's without reduction, and nearly the same with it."""

from __future__ import annotations

import random
import struct
from functools import partial
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from convnext.data.images import BadImage, decode
from convnext.data.tensors import MIN_WHOLE, decode_crop, reduction, resize_crop, to_pixels
from convnext.tasks.classification.augment import random_box

WHOLE = partial(random_box, scale=(1.0, 1.0), ratio=(0.1, 10.0), rng=random.Random(0))


@pytest.fixture
def photo(noise):
    """A function (width, height, mode) -> image with structure at all scales, as in photos."""

    def make(width=500, height=375, mode="RGB"):
        sides = ((width, height), (width // 8, height // 8), (6, 5))
        layers = [
            noise(*size, mode, seed=i).resize((width, height), 3) for i, size in enumerate(sides)
        ]
        return Image.blend(Image.blend(layers[2], layers[1], 0.3), layers[0], 0.03)

    return make


def jpeg(image, **options):
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def fixed(box):
    return lambda width, height: box


def test_a_jpeg_has_the_pixels_that_pillow_reads(photo):
    for mode in ("L", "RGB"):
        content = jpeg(photo(mode=mode), progressive=mode == "L")
        for wanted in ("L", "RGB"):
            box = (10.0, 20.0, 300.5, 280.25)
            pixels, crop = decode_crop(content, mode=wanted, draw=fixed(box), size=224)
            expected = to_pixels(decode(content, mode=wanted))
            assert crop == box
            assert pixels.shape == expected.shape
            # Builds of libjpeg may round differently; here they do not.
            assert (pixels.int() - expected.int()).abs().max() <= 2


def test_paths_bytes_and_files_give_the_same(tmp_path, photo):
    content = jpeg(photo(80, 60))
    (tmp_path / "a.jpg").write_bytes(content)
    with (tmp_path / "a.jpg").open("rb") as file:
        found = [
            decode_crop(source, mode="RGB", draw=WHOLE, size=32)
            for source in (content, tmp_path / "a.jpg", str(tmp_path / "a.jpg"), file)
        ]
    assert all(torch.equal(pixels, found[0][0]) for pixels, _ in found)


@pytest.mark.parametrize("format", ["BMP", "PNG", "TIFF", "WEBP"])
def test_other_formats_are_read_as_ever(format, noise):
    buffer = BytesIO()
    noise(50, 40, "RGBA" if format == "PNG" else "RGB").save(buffer, format)
    pixels, box = decode_crop(buffer.getvalue(), mode="RGB", draw=WHOLE, size=16)
    assert torch.equal(pixels, to_pixels(decode(buffer.getvalue(), mode="RGB")))
    assert box == (0, 0, 50, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_crop_is_drawn_on_the_upright_image(orientation, photo):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(photo(90, 60), exif=exif)
    seen = []

    def draw(width, height):
        seen.append((width, height))
        return 0.0, 0.0, float(width), float(height)

    pixels, box = decode_crop(content, mode="RGB", draw=draw, size=64)
    upright = decode(content, mode="RGB")
    assert seen == [upright.size]
    assert box == (0, 0, *upright.size)
    assert (pixels.int() - to_pixels(upright).int()).abs().max() <= 2


@pytest.mark.parametrize("size", [32, 64, 120, 224])
def test_a_jpeg_shrinks_as_far_as_its_crop_allows(size, photo):
    image = photo(1000, 602)
    content = jpeg(image)
    box = (100.0, 40.0, 800.0, 540.0)
    factor = reduction(box, size)
    assert factor == {32: 8, 64: 4, 120: 4, 224: 2}[size]
    pixels, crop = decode_crop(content, mode="RGB", draw=fixed(box), size=size)
    assert pixels.shape == (3, -(-602 // factor), 1000 // factor)
    assert min(crop[2] - crop[0], crop[3] - crop[1]) >= size
    # Nearly the same pixels as from decoding the whole image.
    ours = np.asarray(resize_crop(pixels, crop, size, "bicubic")).astype(np.float64)
    full = decode(content, mode="RGB").resize((size, size), Image.Resampling.BICUBIC, box=box)
    difference = ours - np.asarray(full)
    assert np.square(difference).mean() < 36  # 33 dB
    assert abs(difference.mean()) < 0.3


def test_a_crop_that_is_small_is_decoded_in_full():
    assert reduction((0, 0, 447, 900), 224) == 1
    assert reduction((0, 0, 448, 900), 224) == 2
    assert reduction((0, 0, 10_000, 10_000), 224) == 8


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_whole_pixels_are_resized_as_by_pillow(mode, interpolation, photo):
    image = photo(300, 260, mode)
    resample = Image.Resampling[interpolation.upper()]
    for box in ((0, 0, 300, 260), (13, 40, 250, 231), (100, 100, 200, 180)):
        ours = np.asarray(resize_crop(to_pixels(image), box, 96, interpolation)).astype(int)
        theirs = np.asarray(image.crop(box).resize((96, 96), resample)).astype(int)
        assert (ours == theirs).mean() > 0.9
        assert abs(ours - theirs).mean() < 0.1


def test_a_large_crop_is_rounded_and_a_small_one_is_not(photo):
    image = photo(200, 200)
    large = (10.4, 10.4, 10.4 + 2 * MIN_WHOLE, 10.4 + 2 * MIN_WHOLE)
    rounded = tuple(float(round(edge)) for edge in large)
    pixels = to_pixels(image)
    one, other = (resize_crop(pixels, box, 32, "bicubic") for box in (large, rounded))
    assert one.tobytes() == other.tobytes()
    small = (10.4, 10.4, 9.9 + MIN_WHOLE / 2, 9.9 + MIN_WHOLE / 2)
    exact = image.resize((32, 32), Image.Resampling.BICUBIC, box=small)
    assert resize_crop(pixels, small, 32, "bicubic").tobytes() == exact.tobytes()
    nearest = image.resize((32, 32), Image.Resampling.NEAREST, box=large)
    assert resize_crop(pixels, large, 32, "nearest").tobytes() == nearest.tobytes()


def damaged(name, content):
    if name == "empty":
        return b""
    if name == "no image":
        return b"text" * 100
    if name == "cut off":
        return content[: len(content) // 2]
    header = content.index(b"\xff\xc0")
    return content[: header + 5] + struct.pack(">HH", 60_000, 60_000) + content[header + 9 :]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cut off", "cut off"),
        ("empty", "empty"),
        ("no image", "not an image"),
        ("vast", "declares"),
    ],
)
def test_damaged_files_are_refused_as_by_decode(name, reason, photo):
    content = damaged(name, jpeg(photo(200, 150)))
    with pytest.raises(BadImage, match=reason) as ours:
        decode_crop(content, mode="RGB", draw=WHOLE, size=64, source="x.jpg")
    with pytest.raises(BadImage) as theirs:
        decode(content, mode="RGB", source="x.jpg")
    assert str(ours.value) == str(theirs.value)


def test_without_a_decoder_in_torchvision_pillow_reads(photo, monkeypatch):
    content = jpeg(photo(200, 150))
    before = decode_crop(content, mode="RGB", draw=WHOLE, size=64)[0]
    monkeypatch.setattr("convnext.data.tensors._decoder", lambda: None)
    after = decode_crop(content, mode="RGB", draw=WHOLE, size=64)[0]
    assert (before.int() - after.int()).abs().max() <= 2
