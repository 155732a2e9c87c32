"""TIFF of any bands and types, DICOM, HEIC and JPEG XL: read right, or refused with the reason."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from convnext.data import bands
from convnext.data.bands import BandImage, band_image
from convnext.data.images import (
    PICTURE,
    RAW,
    BadImage,
    BandMode,
    RangedMode,
    decode,
    read_header,
)
from convnext.data.preprocessing import DensePreprocessing, Preprocessing
from convnext.data.ranges import band_sample, color_mode, pixel_notes, pixel_range
from convnext.data.samples import FolderSamples, SplitData
from convnext.data.tensors import decode_crop, resize_crop

RANDOM = np.random.default_rng(0)
FIVE = RANDOM.integers(0, 4000, (24, 32, 5)).astype(np.uint16)


def split(samples: FolderSamples) -> SplitData[FolderSamples]:
    return SplitData(path="", classes=(), train=samples, val=samples, notes=())


def write(path: Path, values: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, values, **{"photometric": "minisblack", **options})
    return path


LAYOUTS: dict[str, dict[str, Any]] = {
    "interleaved": {"planarconfig": "contig"},
    "planes": {"planarconfig": "separate"},
    "compressed": {"planarconfig": "contig", "compression": "lzw", "predictor": True},
    "tiles": {"planarconfig": "contig", "tile": (16, 16), "compression": "deflate"},
}


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, np.float64, np.int16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bands_are_read_as_they_are(layout: str, kind: Any, tmp_path: Path) -> None:
    values = (FIVE % 256 if kind is np.uint8 else FIVE).astype(kind)
    options = LAYOUTS[layout]
    if np.dtype(kind).kind == "f":
        options = {name: value for name, value in options.items() if name != "predictor"}
    given = np.moveaxis(values, -1, 0) if layout == "planes" else values
    path = write(tmp_path / "x.tif", given, **options)
    header = read_header(path)
    assert (header.width, header.height, header.num_bands) == (32, 24, 5)
    assert header.mode == f"5 x {np.dtype(kind)}"
    raw = decode(path, mode=RAW)
    assert np.array_equal(np.asarray(raw), values)
    chosen = decode(path, mode=BandMode(2, (4, 1), (0.0, 3000.0)))
    expected = values[..., [3, 0]]
    if kind is not np.uint8:
        expected = np.rint(expected * (255 / 3000.0)).clip(0, 255)
    assert np.array_equal(np.asarray(chosen), expected.astype(np.uint8))
    shown = decode(path, mode=PICTURE)
    assert (shown.mode, shown.size) == ("RGB", (32, 24))
    with pytest.raises(BadImage, match="5 bands, but gray-scale or RGB"):
        decode(path, mode="RGB")
    with pytest.raises(BadImage, match="has 5 bands, but the network reads band 6"):
        decode(path, mode=BandMode(1, (6,), (0.0, 1.0)))
    with pytest.raises(BadImage, match="has 5 bands, but the network reads 4 bands"):
        decode(path, mode=BandMode(4, (), (0.0, 1.0)))


def test_three_bands_are_rgb_with_their_own_ranges(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", FIVE, planarconfig="contig")
    mode = BandMode(3, (3, 2, 1), (0.0, 4000.0, 1000.0, 2000.0, 0.0, 1.0))
    image = decode(path, mode=mode)
    assert (image.mode, mode, pickle.loads(pickle.dumps(mode)).ranges) == (
        "RGB",
        "RGB",
        mode.ranges,
    )
    red, green, _ = np.moveaxis(np.asarray(image).astype(int), -1, 0)
    assert np.abs(red - FIVE[..., 2] * (255 / 4000)).max() <= 0.5
    outside = (FIVE[..., 1] < 1000) | (FIVE[..., 1] > 2000)
    assert set(np.unique(green[outside])) == {0, 255}
    # Reading is done once.
    pre = Preprocessing(
        image_size=8,
        crop_pct=1.0,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        bands=(3, 2, 1),
        range=mode.ranges,
    )
    assert pre.pixels(image).shape == (3, 8, 8)
    assert Preprocessing.from_dict(pre.to_dict()) == pre


def test_sixteen_bits_of_rgb_keep_their_values(tmp_path: Path) -> None:
    values = FIVE[..., :3]
    path = write(tmp_path / "x.tif", values, photometric="rgb")
    assert read_header(path).num_bands == 3
    plain = decode(path, mode="RGB")
    assert np.array_equal(np.asarray(plain), values >> 8)  # As Pillow reads it.
    ranged = np.asarray(decode(path, mode=RangedMode("RGB", (0.0, 4000.0))))
    assert np.abs(ranged - values * (255 / 4000.0)).max() <= 0.5


def test_a_fourth_band_is_not_dropped_and_alpha_is_not_a_band(tmp_path: Path) -> None:
    values = (FIVE[..., :4] % 256).astype(np.uint8)
    near_infrared = tmp_path / "nir.tif"
    tifffile.imwrite(near_infrared, values, photometric="rgb", extrasamples=["unspecified"])
    assert read_header(near_infrared).num_bands == 4
    assert np.array_equal(np.asarray(decode(near_infrared, mode=BandMode(4, (), ()))), values)
    assert np.array_equal(np.asarray(decode(near_infrared, mode="RGB")), values[..., :3])
    alpha = tmp_path / "alpha.tif"
    tifffile.imwrite(alpha, values, photometric="rgb", extrasamples=["unassalpha"])
    assert read_header(alpha).num_bands == 0
    assert decode(alpha, mode="RGB").mode == "RGB"
    # The bands of any image can be chosen by their numbers.
    assert np.array_equal(np.asarray(decode(alpha, mode=BandMode(4, (1, 2, 3, 4), ()))), values)
    two = write(tmp_path / "two.tif", values[..., :2], planarconfig="contig")
    with pytest.raises(BadImage, match="2 bands"):
        decode(two, mode="L")


def test_stacks_are_refused_and_masks_and_previews_are_not_slices(tmp_path: Path) -> None:
    stack = write(tmp_path / "stack.tif", np.moveaxis(FIVE, -1, 0))
    deep = write(tmp_path / "deep.tif", np.stack([FIVE, FIVE]), planarconfig="contig")
    for path, count in ((stack, 5), (deep, 2)):
        with pytest.raises(BadImage, match=f"is a stack of {count} slices; save each slice"):
            decode(path, mode="L")
        with pytest.raises(BadImage, match="is a stack"):
            read_header(path)
    with tifffile.TiffWriter(tmp_path / "mask.tif") as file:
        file.write(FIVE[..., 0], photometric="minisblack")
        file.write(FIVE[..., 0] > 9, photometric=4, subfiletype=4)
    assert np.array_equal(np.asarray(decode(tmp_path / "mask.tif", mode=RAW)), FIVE[..., 0])
    with tifffile.TiffWriter(tmp_path / "preview.tif") as file:
        file.write(FIVE, photometric="minisblack", planarconfig="contig")
        file.write(FIVE, photometric="minisblack", planarconfig="contig", subfiletype=1)
    assert read_header(tmp_path / "preview.tif").num_bands == 5


def test_a_float64_image_is_gray_scale(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", FIVE[..., 0].astype(np.float64))
    assert (read_header(path).mode, read_header(path).num_bands) == ("F", 0)
    levels = np.asarray(decode(path, mode=RangedMode("L", (0.0, 4000.0))))
    assert np.abs(levels - FIVE[..., 0] * (255 / 4000.0)).max() <= 0.5


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_orientation_of_bands_is_applied(turn: int, tmp_path: Path) -> None:
    gray = (FIVE[..., 0] % 256).astype(np.uint8)
    many, one = tmp_path / "many.tif", tmp_path / "one.tif"
    for path, values, more in ((many, np.stack([gray] * 5, -1), {"planarconfig": "contig"}),
                               (one, gray, {})):  # fmt: skip
        write(path, values, extratags=[(274, 3, 1, turn, True)], **more)
    first = np.asarray(decode(many, mode=BandMode(5, (), ())))[..., 0]
    assert np.array_equal(first, np.asarray(decode(one, mode="L")))
    assert first.shape[::-1] == (read_header(many).width, read_header(many).height)


def test_without_tifffile_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.tif", FIVE, planarconfig="contig")
    two = write(tmp_path / "two.tif", FIVE[..., :2] % 256, planarconfig="contig")
    deep = write(tmp_path / "rgb.tif", FIVE[..., :3], photometric="rgb")
    monkeypatch.setattr(bands, "_module", lambda name: None)
    for file in (path, two):
        with pytest.raises(BadImage, match=r"needs tifffile: pip install 'convnext\[tiff\]'"):
            decode(file, mode=PICTURE)
    # Pillow keeps the upper half of the bits; that is enough without a range only.
    assert decode(deep, mode="RGB").mode == "RGB"
    assert read_header(deep).num_bands == 3
    for mode in (BandMode(3, (), (0.0, 4000.0)), RAW):
        with pytest.raises(BadImage, match=r"rgb\.tif: its bands and bits .* 'convnext\[tiff\]'"):
            decode(deep, mode=mode)
    with pytest.raises(BadImage, match=r"rgb\.tif: its bands and bits .* 'convnext\[tiff\]'"):
        pixel_notes(split(FolderSamples(tmp_path, ["rgb.tif"], [0])))


def test_ranges_and_statistics_are_found_per_band(tmp_path: Path) -> None:
    for i in range(4):
        values = RANDOM.normal((1000, 3000), (100, 10), (40, 40, 2)).astype(np.float32)
        values[0, 0] = np.nan
        write(tmp_path / f"{i}.tif", values, planarconfig="contig")
    samples = FolderSamples(tmp_path, [f"{i}.tif" for i in range(4)], [0] * 4)
    found = band_sample(samples)
    assert found is not None
    assert (found.num_images, set(found.counts), found.is_wide) == (4, {2}, True)
    low, high, low2, high2 = found.ranges()
    assert (low, high, low2, high2) == pytest.approx((690, 1310, 2969, 3031), abs=30)
    assert found.ranges((2,)) == (low2, high2)
    mean, std = found.statistics((2, 1), (low2, high2, low, high))
    assert mean == pytest.approx((0.5, 0.5), abs=0.03)
    assert std == pytest.approx((10 / (high2 - low2), 100 / (high - low)), rel=0.1)
    assert found.clipped((), (low, high, low2, high2)) == pytest.approx(0.002, abs=0.001)
    assert "4 16-bit or float training images with 2 bands" in pixel_notes(split(samples))[0]
    assert color_mode(split(samples)) is PICTURE
    assert pixel_range(samples) is None


def test_different_numbers_of_bands_need_a_choice(tmp_path: Path) -> None:
    for i, count in enumerate((4, 5)):
        values = (FIVE[..., :count] % 256).astype(np.uint8)
        write(tmp_path / f"{i}.tif", values, planarconfig="contig")
    found = band_sample(FolderSamples(tmp_path, ["0.tif", "1.tif"], [0, 0]))
    assert found is not None
    with pytest.raises(ValueError, match=r"different numbers of bands: 4 \(.*0.tif\) and 5 \("):
        found.check()
    assert found.check((4, 1)) == 2
    assert found.ranges() == ()
    with pytest.raises(ValueError, match="has band 5, but the images have 4"):
        found.check((5,))


def test_bands_are_resized_cropped_and_turned_like_gray_images() -> None:
    image = band_image((FIVE % 256).astype(np.uint8))
    assert isinstance(image, BandImage)
    for change in (
        lambda i: i.resize((9, 7), Image.Resampling.BICUBIC),
        lambda i: i.resize((8, 8), Image.Resampling.BILINEAR, box=(1.5, 2, 20, 18)),
        lambda i: i.crop((3, 4, 20, 21)),
        lambda i: i.transpose(Image.Transpose.ROTATE_90),
        lambda i: i.copy(),
    ):
        changed = change(image)
        for k in range(5):
            single = change(Image.fromarray(np.ascontiguousarray(image.values[..., k])))
            assert changed.size == single.size
            assert np.array_equal(np.asarray(changed)[..., k], np.asarray(single))


def test_crops_of_bands(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", FIVE, planarconfig="contig")
    mode = BandMode(5, (), (0.0, 4000.0))
    pixels, box = decode_crop(path, mode=mode, draw=lambda w, h: (2, 2, 22, 22), size=8)
    assert pixels.shape == (5, 24, 32)
    crop = resize_crop(pixels, box, 8, "bicubic")
    assert np.asarray(crop).shape == (8, 8, 5)
    how = DensePreprocessing(
        image_size=12, in_chans=5, mean=(0.5,) * 5, std=(0.2,) * 5, range=(0.0, 4000.0)
    )
    assert how.mode == mode
    assert how.pixels(decode(path, mode=how.mode)).shape == (5, 12, 16)
    with pytest.raises(ValueError, match="bands has 1 numbers, but in_chans is 5"):
        DensePreprocessing.from_dict(how.to_dict() | {"bands": [1]})
    with pytest.raises(ValueError, match="or 5 such pairs"):
        DensePreprocessing.from_dict(how.to_dict() | {"range": [0, 1, 0, 1]})


def dicom(path: Path, values: np.ndarray, **tags: Any) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["test"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = values.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = 8 * values.dtype.itemsize
    data.BitsStored, data.HighBit = data.BitsAllocated, data.BitsAllocated - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


CT = np.linspace(-1000, 3000, 24 * 32).reshape(24, 32).astype(np.int16)


def test_dicom_has_its_window_without_a_range_and_the_common_range_with_one(
    tmp_path: Path,
) -> None:
    stored = (CT + 1024).astype(np.uint16)
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    path = dicom(
        tmp_path / "a.dcm", stored, **rescale, WindowCenter=[40, 300], WindowWidth=[400, 9]
    )
    header = read_header(path)
    assert (header.width, header.height, header.mode, header.format) == (32, 24, "F", "DICOM")
    assert np.array_equal(np.asarray(decode(path, mode=RAW)), CT)
    # C.11.2.1.2: ((x - (c - 0.5)) / (w - 1) + 0.5) * 255
    levels = ((CT - 39.5) / 399 + 0.5) * 255
    window = np.asarray(decode(path, mode="L"))
    assert np.abs(window - levels.clip(0, 255)).max() <= 0.5
    ranged = np.asarray(decode(path, mode=RangedMode("L", (-1000.0, 3000.0))))
    assert np.abs(ranged - (CT + 1000) * (255 / 4000)).max() <= 0.5
    found = pixel_range(FolderSamples(tmp_path, ["a.dcm"], [0]))
    assert found is not None
    assert found.values == pytest.approx((-996, 2996), abs=10)


def test_dicom_with_low_values_as_white_and_of_eight_bits(tmp_path: Path) -> None:
    values = CT.astype(np.uint16) % 4096
    black = dicom(tmp_path / "b.dcm", values, BitsStored=12, HighBit=11)
    white = dicom(
        tmp_path / "w.dcm", values, BitsStored=12, HighBit=11,
        PhotometricInterpretation="MONOCHROME1",
    )  # fmt: skip
    for mode in ("L", RangedMode("L", (100.0, 3000.0))):
        levels = np.asarray(decode(black, mode=mode))
        assert np.array_equal(np.asarray(decode(white, mode=mode)), 255 - levels)
    assert np.abs(np.asarray(decode(black, mode="L")) - values * (255 / 4095)).max() <= 0.5
    eight = dicom(tmp_path / "e.dcm", (values >> 4).astype(np.uint8))
    assert read_header(eight).mode == "L"
    assert np.array_equal(np.asarray(decode(eight, mode="L")), values >> 4)


def test_dicom_that_cannot_be_used_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = dicom(tmp_path / "f.dcm", np.stack([CT, CT, CT]), NumberOfFrames=3)
    with pytest.raises(BadImage, match="has 3 frames; save each frame"):
        decode(frames, mode="L")
    palette = dicom(tmp_path / "p.dcm", CT, PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(BadImage, match="the colors PALETTE COLOR"):
        decode(palette, mode="L")
    good = dicom(tmp_path / "g.dcm", CT)
    good.write_bytes(good.read_bytes()[:-200])
    with pytest.raises(BadImage, match=r"g\.dcm: (damaged|the file is cut off)"):
        decode(good, mode="L")
    monkeypatch.setattr(bands, "_module", lambda name: None)
    with pytest.raises(BadImage, match=r"needs pydicom: pip install 'convnext\[dicom\]'"):
        read_header(frames)


@pytest.mark.parametrize(("format", "plugin"), [("HEIF", "pillow_heif"), ("JXL", "pillow_jxl")])
def test_formats_of_plugins_are_read(format: str, plugin: str, tmp_path: Path) -> None:
    module = __import__(plugin)
    if format == "HEIF":
        module.register_heif_opener()
    picture = Image.fromarray((FIVE[..., :3] >> 4).astype(np.uint8)).resize((64, 64))
    buffer = io.BytesIO()
    picture.save(buffer, format, quality=95)
    assert decode(buffer.getvalue(), mode="RGB").size == (64, 64)


@pytest.mark.parametrize(
    ("start", "plugin"),
    [
        (b"\0\0\0\x18ftypheic", "pillow-heif"),
        (b"\xff\x0a", "pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "pillow-jxl-plugin"),
    ],
)
def test_formats_of_missing_plugins_are_named(
    start: bytes, plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convnext.data.images.readable_formats", lambda: ("JPEG", "PNG"))
    with pytest.raises(BadImage, match=f"pip install {plugin}"):
        read_header(start + b"\0" * 200)
