"""Images of any number of bands, and image files that Pillow cannot read: some TIFF, and DICOM.

`BandImage` has the part of Pillow's interface that the pipelines use, so that an image of five
bands is resized, cropped and flipped like one of three. tifffile and pydicom are imported when a
file needs them; without them the file is refused with the extra to install.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.names import count_noun, install_extra

if TYPE_CHECKING:
    from rich.console import Console

Array = NDArray[Any]

INVERTED, WINDOW = "inverted", "window"
"""Keys of `Image.info` of DICOM: whether the low values are white; the values from black to white
that the file asks for."""

CLIPPED = "clipped"
"""Key of `Image.info`: how many pixels the given range clips, and of how many."""
_COUNTING = threading.Lock()

_PREVIEW_OR_MASK = 1 | 4
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
START = 132
"""How many bytes of a file tell its format."""
ENDINGS = frozenset({".dcm", ".dicom", ".heic", ".heif", ".jxl"})
"""Endings of images that need an extra or a plugin of Pillow."""


class Refused(ValueError):  # noqa: N818 - it is a refusal, not a failure
    """The reason why an image file cannot be used, for the user."""


class BandImage(Image.Image):
    """An image of some bands, of any type of numbers.

    Resizing, cropping and turning need bands of 8 bits.

    Args:
        values: (H, W, C).
        is_rgb: Whether the file says that the first three bands are red, green and blue.
    """

    format = "TIFF"

    def __init__(self, values: Array, *, is_rgb: bool = False) -> None:
        super().__init__()
        self.values, self.is_rgb = values, is_rgb
        self._size = values.shape[1], values.shape[0]
        self._mode = mode_of(values.shape[2], str(values.dtype))

    @property
    def num_bands(self) -> int:
        """The number of bands."""
        return int(self.values.shape[2])

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return dict(self.values.__array_interface__)

    def load(self) -> Any:
        """Do nothing: the values are in memory."""

    def getbands(self) -> tuple[str, ...]:
        """Return the numbers of the bands, from 1."""
        return tuple(str(i + 1) for i in range(self.num_bands))

    def getextrema(self) -> Any:
        """Return the smallest and the largest value of each band."""
        flat = self.values.reshape(-1, self.num_bands)
        return tuple(zip(flat.min(0).tolist(), flat.max(0).tolist(), strict=True))

    def tobytes(self, encoder_name: str = "raw", *args: Any) -> bytes:
        """Return the values as bytes."""
        return self.values.tobytes()

    def copy(self) -> BandImage:
        """Return a copy."""
        return self._like(self.values.copy())

    def resize(self, size: Any, *args: Any, **options: Any) -> BandImage:
        """Resize every band; the arguments are Pillow's."""
        return self._each(lambda band: band.resize(size, *args, **options))

    def crop(self, box: Any = None) -> BandImage:
        """Crop; pixels beyond the border are 0."""
        return self._each(lambda band: band.crop(box))

    def transpose(self, method: Any) -> BandImage:
        """Flip or turn."""
        return self._each(lambda band: band.transpose(method))

    def convert(self, mode: Any = None, *args: Any, **options: Any) -> Image.Image:
        """Return the first three bands, or the only or first one, as a picture to look at.

        Bands of more than 8 bits are scaled by their own values.
        """
        values = self.values[..., :3] if self.num_bands >= 3 else self.values[..., :1]
        if values.dtype != np.uint8:
            values = np.nan_to_num(values.astype(np.float64))
            low, high = np.percentile(values, (0.1, 99.9), axis=(0, 1))
            values = (values - low) * (255 / np.maximum(high - low, 1e-12))
            values = values.clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(values if values.shape[2] == 3 else values[..., 0])
        return picture.convert(mode or "RGB", *args, **options)

    def _each(self, change: Callable[[Image.Image], Image.Image]) -> BandImage:
        assert self.values.dtype == np.uint8, self.values.dtype
        bands = (np.ascontiguousarray(self.values[..., i]) for i in range(self.num_bands))
        changed = [np.asarray(change(Image.fromarray(band))) for band in bands]
        return self._like(np.stack(changed, axis=-1))

    def _like(self, values: Array) -> BandImage:
        image = BandImage(values, is_rgb=self.is_rgb)
        image.info = self.info.copy()
        return image


class UnreadImage(Image.Image):
    """An image whose header was read; `load` turns it into the image itself, as Pillow does."""

    def __init__(
        self,
        size: tuple[int, int],
        mode: str,
        format: Literal["TIFF", "DICOM"],
        read: Callable[[], Image.Image],
        num_bands: int = 0,
    ) -> None:
        super().__init__()
        self._size, self._mode, self.format, self._read = size, mode, format, read
        self.num_bands = num_bands
        """0 unless there are several that Pillow does not show."""

    def load(self) -> Any:
        """Decode the pixels."""
        image = self._read()
        image.format = self.format
        self.__class__ = image.__class__  # type: ignore[assignment]
        self.__dict__ = image.__dict__
        return image.load()


def mode_of(num_bands: int, kind: str) -> str:
    """Return the mode of an image of some bands: "5 x uint16"."""
    return f"{num_bands} x {kind}"


def band_image(values: NDArray[np.uint8]) -> Image.Image:
    """Return pixels (H, W, C) as an image: "L" for one band, "RGB" for three."""
    if values.shape[2] == 1:
        return Image.fromarray(values[..., 0])
    return Image.fromarray(values) if values.shape[2] == 3 else BandImage(values)


@dataclass(kw_only=True)
class Clipping:
    """Counts the pixels of 16-bit and float images outside the range of the training images."""

    num_images: int = 0
    num_clipped_images: int = 0
    num_pixels: int = 0
    num_clipped: int = 0

    def add(self, image: Image.Image) -> None:
        """Count an image that was scaled by a range; others do not count."""
        clipped, total = image.info.get(CLIPPED, (0, 0))
        if total:
            with _COUNTING:  # Threads open images.
                self.num_images += 1
                self.num_clipped_images += bool(clipped)
                self.num_pixels += total
                self.num_clipped += clipped

    def print(self, console: Console | None) -> None:
        """Print the counts if images were scaled by a range."""
        if console is not None and self.num_images:
            console.print(str(self), markup=False)

    def __str__(self) -> str:
        if not self.num_images:
            return ""
        share = self.num_clipped / self.num_pixels
        return (
            f"pixels outside the range of the training images, clipped: {100 * share:.2g} %, in "
            f"{self.num_clipped_images:,} of {count_noun(self.num_images, '16-bit or float image')}"
        )


def scaled(values: Array, ranges: Sequence[float]) -> NDArray[np.uint8]:
    """Scale values (..., C) to 0..255, by one range or one per band, and clip the others."""
    low, high = np.array(ranges[::2]), np.array(ranges[1::2])
    levels = np.rint((np.nan_to_num(values.astype(np.float64)) - low) * (255 / (high - low)))
    found: NDArray[np.uint8] = levels.clip(0, 255).astype(np.uint8)
    return found


def num_clipped(values: Array, ranges: Sequence[float]) -> tuple[int, int]:
    """Return how many values (..., C) are outside of their range, and how many there are."""
    low, high = np.array(ranges[::2]), np.array(ranges[1::2])
    return int(((values < low) | (values > high)).sum()), int(values.size)


def usual_range(values: Array, mode: str) -> tuple[float, float]:
    """Return black and white of an image in one of Pillow's modes that does not declare white."""
    largest = float(values.max(initial=0.0))
    usual = {"I": (65535.0, 2**31 - 1.0), "F": (1.0, 255.0, 65535.0)}.get(mode, (65535.0,))
    return 0.0, next((white for white in usual if largest <= 1.5 * white), largest)


def beyond_pillow(stream: IO[bytes], start: bytes, pillow: Image.Image | None) -> Any:
    """Return a file as an image if Pillow cannot read it, or not all of it.

    Args:
        stream: The file.
        start: Its first `START` bytes.
        pillow: What Pillow makes of it; None if no plugin recognizes it.

    Returns:
        An `UnreadImage`, or `pillow`.

    Raises:
        Refused: If an extra is not installed, or the file has several frames.
    """
    if start.startswith(_TIFF):
        left_out = None if pillow is None else _left_out(pillow)
        if pillow is not None and left_out is None:
            return pillow
        if pillow is not None and left_out is not None and _module("tifffile") is None:
            pillow.num_bands, pillow.is_cut = left_out, True  # type: ignore[attr-defined]
            if pillow.mode != "RGB":
                raise Refused(needs_tifffile(f"it has {left_out} bands"))
            return pillow
        return _open_tiff(stream)
    if pillow is None and start[128:] == b"DICM":
        return _open_dicom(stream)
    if pillow is None and start[4:8] == b"ftyp" and start[8:12] in _HEIC:
        raise Refused("a HEIC image, which Pillow reads after `pip install pillow-heif`")
    if pillow is None and start.startswith(_JXL):
        raise Refused("a JPEG XL image, which Pillow reads after `pip install pillow-jxl-plugin`")
    return pillow


def _left_out(image: Image.Image) -> int | None:
    """Return the number of bands of a TIFF if Pillow drops some of them, or half of their bits."""
    tags: Any = getattr(image, "tag_v2", {})
    samples, photometric = int(tags.get(277, 1)), int(tags.get(262, 1))
    if photometric not in (0, 1, 2):  # A palette, CMYK, YCbCr: Pillow knows what they mean.
        return None
    extra = tags.get(338, ())
    extra = tuple(extra) if isinstance(extra, tuple | list) else (extra,)
    colors = 3 if photometric == 2 else 1
    has_alpha = samples == colors + 1 and bool(extra) and extra[-1] in (1, 2)
    if has_alpha or samples < colors:
        return None
    bits = tags.get(258, (1,))
    is_deep = colors == 3 and max(bits if isinstance(bits, tuple | list) else (bits,)) > 8
    return samples if samples > colors or is_deep else None


def _open_tiff(stream: IO[bytes]) -> Image.Image:
    """Return a TIFF of any number of bands and any type.

    Raises:
        Refused: If it is a stack, or its values are not real numbers.
    """
    tifffile = _module("tifffile")
    if tifffile is None:
        raise Refused(needs_tifffile("a TIFF that Pillow cannot read"))
    stream.seek(0)
    with tifffile.TiffFile(stream) as file:
        pages = file.pages
        page = pages[0]
        if len(pages) > 1 and pages[1].shape == page.shape:
            is_picture = not int(pages[1].tags.valueof(254, 0)) & _PREVIEW_OR_MASK
            if is_picture:
                raise Refused(stack_reason(len(pages)))
        shape, kind = tuple(page.shape), page.dtype
        if kind is None or kind.kind not in "buif":
            raise Refused(f"its values are of type {kind}, not real numbers")
        if page.axes not in ("YX", "YXS", "SYX"):
            raise Refused(
                f"a TIFF with the axes {page.axes}; images have a height, width and bands"
            )
        is_planar, is_rgb = page.axes == "SYX", int(page.photometric) == 2
        turn = int(page.tags.valueof(274, 1))
    count = 1 if len(shape) == 2 else shape[0 if is_planar else 2]
    height, width = shape[1:] if is_planar else shape[:2]

    def read() -> Image.Image:
        stream.seek(0)
        with tifffile.TiffFile(stream) as file:
            values = np.asarray(file.pages[0].asarray())
        if is_planar:
            values = np.moveaxis(values, 0, -1)
        values = turned(values, turn)
        if count > 1:
            kept = values if kind.itemsize < 8 else values.astype(np.float32)
            return BandImage(np.ascontiguousarray(kept), is_rgb=is_rgb)
        return Image.fromarray(values.reshape(values.shape[:2]).astype(np.float32))

    size = (height, width) if turn > 4 else (width, height)
    if count == 1:
        return UnreadImage(size, "F", "TIFF", read)
    return UnreadImage(size, mode_of(count, str(kind)), "TIFF", read, count)


def turned(values: Array, turn: int) -> Array:
    """Apply an orientation of EXIF, 1 to 8, to an array (H, W, ...)."""
    if turn > 4:
        values = values.swapaxes(0, 1)
    rows = -1 if turn in (3, 4, 7, 8) else 1
    columns = -1 if turn in (2, 3, 6, 7) else 1
    return values[::rows, ::columns]


def stack_reason(count: int) -> str:
    """Return why a TIFF of several slices is refused."""
    return (
        f"is a stack of {count:,} slices; save each slice that is to be used as a file of its own, "
        "or the bands of one image as the bands of one page"
    )


def _open_dicom(stream: IO[bytes]) -> Image.Image:
    """Return a DICOM file of one frame; gray values are rescaled as it says.

    Raises:
        Refused: If pydicom is not installed, or the file has several frames, or colors of a kind
            that is not RGB.
    """
    pydicom = _module("pydicom")
    if pydicom is None:
        raise Refused(f"a DICOM file, which needs pydicom: {install_extra('dicom')}")
    stream.seek(0)
    header = pydicom.dcmread(stream, stop_before_pixels=True)
    if "Rows" not in header or "Columns" not in header:
        raise Refused("a DICOM file without an image")
    frames = int(header.get("NumberOfFrames", 1) or 1)
    if frames > 1:
        raise Refused(
            f"has {count_noun(frames, 'frame')}; save each frame that is to be used as a file of "
            "its own"
        )
    photometric = str(header.get("PhotometricInterpretation", ""))
    is_gray = photometric in ("MONOCHROME1", "MONOCHROME2")
    if not is_gray and not photometric.startswith(("RGB", "YBR")):
        raise Refused(f"a DICOM file with the colors {photometric}; gray, RGB and YBR are read")
    is_float = any(name in header for name in ("FloatPixelData", "DoubleFloatPixelData"))
    slope, intercept = (
        float(header.get(name, usual))
        for name, usual in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    window = _window(header)
    is_plain = (slope, intercept) == (1.0, 0.0) and window is None and not is_float
    is_byte = is_plain and int(header.get("BitsStored", 16)) == 8
    is_signed = bool(header.get("PixelRepresentation", 0))
    plain: Literal["L", "F"] = "L" if is_byte and not is_signed else "F"

    def read() -> Image.Image:
        stream.seek(0)
        values = pydicom.dcmread(stream).pixel_array
        if not is_gray:
            return Image.fromarray(np.asarray(values, np.uint8))
        is_low_white = photometric == "MONOCHROME1"
        if plain == "L":
            levels = values.astype(np.uint8)
            return Image.fromarray(255 - levels if is_low_white else levels)
        image = Image.fromarray((values * slope + intercept).astype(np.float32))
        stored = int(header.get("BitsStored", 16))
        lowest = -(2 ** (stored - 1)) if is_signed else 0
        ends = (slope * value + intercept for value in (lowest, lowest + 2**stored - 1))
        image.info |= {INVERTED: is_low_white, WINDOW: window or tuple(sorted(ends))}
        return image

    mode = plain if is_gray else "RGB"
    return UnreadImage((int(header.Columns), int(header.Rows)), mode, "DICOM", read)


def _window(header: Any) -> tuple[float, float] | None:
    """Return the values from black to white of the first window of a DICOM file, if it has one."""
    center, width = (_first(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
    kind = str(header.get("VOILUTFunction", "LINEAR"))
    if center is None or width is None or kind not in ("LINEAR", "LINEAR_EXACT"):
        return None
    if kind == "LINEAR":  # The standard, part 3, C.11.2.1.2.
        center, width = center - 0.5, width - 1
    return (center - width / 2, center + width / 2) if width > 0 else None


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, Sequence) and not isinstance(value, str) else value)


def needs_tifffile(what: str) -> str:
    """Return a reason that ends with the extra to install."""
    return f"{what}, which needs tifffile: {install_extra('tiff')}"


def _module(name: Literal["tifffile", "pydicom"]) -> ModuleType | None:
    """Return a module of an extra; None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
