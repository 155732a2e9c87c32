"""All kinds of files that occur in folders are read correctly or refused with a reason."""

from __future__ import annotations

import pickle
import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext.data.images import BadImage, as_mode, decode, read_header, readable_extensions


def encode(image, format="PNG", **options):
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG that declares a size but has almost no data."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


def test_reads_paths_bytes_and_files_alike(tmp_path, noise):
    image = noise()
    path = tmp_path / "a.png"
    image.save(path)
    for file in (path, str(path), path.read_bytes(), BytesIO(path.read_bytes())):
        decoded = decode(file, mode="RGB")
        assert decoded.mode == "RGB"
        assert decoded.tobytes() == image.tobytes()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG", "PPM"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_common_format_gives_the_mode_that_is_asked_for(format, mode, noise):
    for original in ("RGB", "L"):
        decoded = decode(encode(noise(mode=original), format), mode=mode)
        assert (decoded.mode, decoded.size) == (mode, (40, 30))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_white(mode):
    hidden = Image.new(mode, (4, 4), (200, 0, 0, 0) if mode == "RGBA" else (90, 0))
    decoded = decode(encode(hidden), mode="RGB")
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    half = Image.new(mode, (4, 4), (0, 0, 0, 128) if mode == "RGBA" else (0, 128))
    assert decode(encode(half), mode="L").getpixel((0, 0)) == 127


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert decode(encode(image), mode="RGB").getpixel((0, 0)) == (0, 0, 255)
    assert decode(encode(image, transparency=1), mode="RGB").getpixel((0, 0)) == (255, 255, 255)
    several = encode(image, transparency=bytes([255, 128]))
    assert decode(several, mode="RGB").getpixel((0, 0)) == (127, 127, 255)


def test_a_transparent_color_of_rgb_and_of_gray():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    decoded = decode(encode(image, transparency=(1, 2, 3)), mode="RGB")
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (9, 9, 9)]
    gray = encode(Image.new("L", (2, 2), 7), transparency=7)
    assert decode(gray, mode="L").getpixel((0, 0)) == 255


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_is_scaled_and_not_clipped(format):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    decoded = decode(encode(Image.fromarray(values), format), mode="L")
    assert np.asarray(decoded).tolist() == [[0, 1, 128, 255]]
    assert (
        decode(encode(Image.fromarray(values), format), mode="RGB").getpixel((2, 0)) == (128,) * 3
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 65535]], np.int32), [[0, 255]]),
        (np.array([[0, 2**31 - 1]], np.int32), [[0, 255]]),
        (np.array([[-5, 65535]], np.int32), [[0, 255]]),
        (np.array([[0, 0.5, 1.0]], np.float32), [[0, 128, 255]]),
        (np.array([[0, 100, 255]], np.float32), [[0, 100, 255]]),
        (np.array([[np.nan, 1]], np.float32), [[0, 255]]),
        (np.zeros((1, 2), np.float32), [[0, 0]]),
    ],
)
def test_the_white_of_wide_grayscale_is_the_smallest_usual_one(values, expected):
    assert np.asarray(as_mode(Image.fromarray(values), "L")).tolist() == expected


def test_cmyk_and_one_bit():
    cyan = encode(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=95)
    red, green, blue = decode(cyan, mode="RGB").getpixel((0, 0))
    assert red < 30
    assert min(green, blue) > 225
    assert decode(encode(Image.new("1", (4, 4), 1)), mode="RGB").getpixel((0, 0)) == (255,) * 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_to_pixels_and_header(orientation, format, noise):
    image = noise(48, 32).resize((480, 320))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, format, exif=exif)
    decoded, header = decode(data, mode="RGB"), read_header(data)
    assert decoded.size == ((320, 480) if orientation > 4 else (480, 320))
    assert (header.width, header.height) == decoded.size
    from PIL import ImageOps

    with Image.open(BytesIO(data)) as opened:
        assert decoded.tobytes() == ImageOps.exif_transpose(opened).convert("RGB").tobytes()


# Pillow warns, and pytest is configured to turn warnings into errors.
@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_does_no_harm(noise):
    data = encode(noise(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(data, mode="RGB").size == (40, 30)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(format):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert decode(data, mode="RGB").getpixel((3, 3)) == (255, 0, 0)


def test_a_stack_of_slices_is_refused_but_a_preview_is_not():
    slices = [Image.new("L", (8, 8), level) for level in (10, 20, 30)]
    data = encode(slices[0], "TIFF", save_all=True, append_images=slices[1:])
    for read in (read_header, lambda file: decode(file, mode="L")):
        with pytest.raises(BadImage, match="is a stack of 3 slices"):
            read(data)
    data = encode(slices[0], "TIFF", save_all=True, append_images=[slices[1].resize((4, 4))])
    assert decode(data, mode="L").getpixel((3, 3)) == 10


def test_draft_keeps_enough_pixels_and_is_off_by_default(noise):
    data = encode(noise(800, 640), "JPEG")
    assert decode(data, mode="RGB").size == (800, 640)
    assert decode(data, mode="RGB", at_least=100).size == (200, 160)
    assert decode(data, mode="RGB", at_least=700).size == (800, 640)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.jpg", b"", "empty"),
        ("text.jpg", b"no picture at all" * 100, "not an image"),
        ("zeros.png", bytes(5000), "not an image"),
        ("head.png", b"\x89PNG\r\n\x1a\n", "not an image"),
        ("bomb.png", png_header(60_000, 60_000), "more than 179 million"),
    ],
)
def test_what_is_no_image_is_refused_with_its_name_and_a_reason(tmp_path, name, data, reason):
    path = tmp_path / name
    path.write_bytes(data)
    for read in (lambda: decode(path, mode="RGB"), lambda: read_header(path)):
        with pytest.raises(BadImage, match=reason) as caught:
            read()
        assert caught.value.source == str(path)
        assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_that_is_cut_off_is_refused(format, share, noise):
    data = encode(noise(200, 150), format)
    with pytest.raises(BadImage):
        decode(data[: int(len(data) * share)], mode="RGB", source="shard.tar!7.jpg")


@pytest.mark.filterwarnings("ignore")
def test_every_flipped_byte_gives_an_image_or_a_bad_image(noise):
    rng = np.random.default_rng(0)
    for format in ("PNG", "JPEG", "GIF", "TIFF", "WEBP"):
        data = encode(noise(24, 24), format)
        for _ in range(60):
            broken = bytearray(data)
            broken[int(rng.integers(len(data)))] = int(rng.integers(256))
            with suppress(BadImage):
                assert decode(bytes(broken), mode="RGB").mode == "RGB"


def test_the_declared_size_is_checked_before_decoding(noise):
    data = encode(noise(100, 100))
    assert decode(data, mode="RGB", max_pixels=10_000).size == (100, 100)
    with pytest.raises(BadImage, match=r"declares 100 x 100 pixels"):
        decode(data, mode="RGB", max_pixels=9_999)


def test_a_large_photo_passes():
    # 100 million pixels: above Pillow's warning, below what is refused.
    assert read_header(png_header(10_000, 10_000)).width == 10_000


def test_absent_files_and_postscript_are_refused(tmp_path):
    with pytest.raises(BadImage, match="no such file"):
        decode(tmp_path / "gone.png", mode="RGB")
    with pytest.raises(BadImage, match="not an image"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", mode="RGB")


def test_bad_image_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(BadImage("a.png", "cut off")))
    assert (error.source, error.reason, str(error)) == ("a.png", "cut off", "a.png: cut off")


def test_extensions_are_those_of_images():
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif"} <= readable_extensions()
    assert not {".pdf", ".txt", ".eps", ".npy", ".mp4", ".json"} & readable_extensions()


def test_files_that_git_or_a_transfer_changed(tmp_path: Path) -> None:
    pointer = tmp_path / "a.jpg"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(BadImage, match="Git LFS"):
        decode(pointer, mode="RGB")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "b.png"
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    with pytest.raises(BadImage, match="line ends were rewritten"):
        decode(path, mode="RGB")
