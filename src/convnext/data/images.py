"""Image files that cannot be trusted, read into RGB or gray-scale, or refused with a reason.

What a picture means is decided here once, for training, evaluation and prediction alike:

- EXIF orientation is applied;
- transparent images are composited over white, the page that they are drawn for (dropping the alpha
  channel would show whatever color is hidden below it);
- 16-bit and float images are scaled by one range for all, found in the training images (`ranges`);
  without it by the range of their container, such as 65535 to 255, or the window of a DICOM file;
- images of several bands are read band by band, as `BandMode` says;
- the first frame of an animation is used; a TIFF with several slices of one size is refused;
- color profiles are ignored, as in the pipelines that published weights were trained with.
"""

from __future__ import annotations

import importlib
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from convnext.data.bands import (
    CLIPPED,
    ENDINGS,
    INVERTED,
    START,
    WINDOW,
    BandImage,
    Refused,
    band_image,
    beyond_pillow,
    mode_of,
    needs_tifffile,
    num_clipped,
    scaled,
    stack_reason,
    usual_range,
)
from convnext.documents import is_special, open_regular
from convnext.names import count_noun

Mode = Literal["RGB", "L"]
Range = tuple[float, float]
"""The values of 16-bit and float gray-scale that become black and white."""
Ranges = tuple[float, ...]
"""A range for all bands, or one for each of them, one after the other; () for none."""
Array = NDArray[Any]
File = str | Path | bytes | BinaryIO

# Twice Pillow's limit for a warning: Pillow itself refuses images from here on.
MAX_PIXELS = 2 * 89_478_485

# Formats that Pillow passes to another program (EPS would start Ghostscript), cannot decode, or
# that are not pictures.
_REFUSED = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"})

_ORIENTATION_TAG = 0x0112
_SUBFILE_TAG = 254
_PREVIEW_OR_MASK = 1 | 4
_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
QUARTER_TURNS = (5, 6, 7, 8)
_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
WIDE_MODES = (*_16_BIT, "I", "F")
"""Pillow's modes of gray-scale with more than 8 bits."""


class RangedMode(str):
    """A mode that also says by which range 16-bit and float gray-scale is scaled to 8 bits."""

    range: Range

    def __new__(cls, mode: Mode, range: Range) -> RangedMode:
        found = super().__new__(cls, mode)
        found.range = range
        return found

    def __reduce__(self) -> tuple[type[RangedMode], tuple[str, Range]]:
        return RangedMode, (str(self), self.range)


class BandMode(str):
    """A mode that says which bands are read, and by which ranges they are scaled to 8 bits.

    As text it is the mode of the result: "L" for one band, "RGB" for three, else such as
    "5 x uint8".
    """

    bands: tuple[int, ...]
    """Their numbers, from 1; () for all."""
    num_bands: int
    """How many are read."""
    ranges: Ranges

    def __new__(cls, num_bands: int, bands: tuple[int, ...], ranges: Ranges) -> BandMode:
        usual = {1: "L", 3: "RGB"}
        found = super().__new__(cls, usual.get(num_bands, mode_of(num_bands, "uint8")))
        found.num_bands, found.bands, found.ranges = num_bands, bands, ranges
        return found

    def __reduce__(self) -> tuple[type[BandMode], tuple[int, tuple[int, ...], Ranges]]:
        return BandMode, (self.num_bands, self.bands, self.ranges)


class _Picture(str):
    """The type of `PICTURE`."""


PICTURE: Mode = cast("Mode", _Picture("RGB"))
"""Like "RGB", but of an image of any bands the first three are shown."""
RAW: Mode = cast("Mode", "F")
"""16-bit, float and multi-band images keep their values."""


class BadImage(ValueError):  # noqa: N818 - it is the image that is bad
    """A file that is not a readable image.

    Attributes:
        source: The path, or `shard!member`, or another name of the source.
        reason: One line for the user.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Header:
    """The properties that a file declares in its header, with the orientation applied."""

    width: int
    height: int
    mode: str
    """Pillow's name: "RGB", "L", "P", "I;16", "CMYK" ..."""
    format: str
    """Pillow's name: "JPEG", "PNG" ..."""
    orientation: int = 1
    """The EXIF orientation; 1 for an upright image."""
    num_bands: int = 0
    """The number of bands of an image that is more than gray-scale or RGB of 8 bits; else 0."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height

    @property
    def whole_mode(self) -> Mode:
        """The mode that keeps all values and bands: `RAW`, or `PICTURE` of an image of 8 bits."""
        return RAW if self.num_bands or self.mode in WIDE_MODES else PICTURE


def decode(
    file: File,
    *,
    mode: Mode,
    max_pixels: int = MAX_PIXELS,
    at_least: int | None = None,
    source: str | None = None,
) -> Image.Image:
    """Read an image file completely.

    Args:
        file: A path, the bytes, or a binary file at its beginning.
        mode: The mode of the result, "RGB" or "L".
        max_pixels: An image that declares more pixels is refused before decoding.
        at_least: Let a JPEG be decoded at a half, a quarter or an eighth of its size, as long as
            both sides keep this many pixels. Faster, but not the same pixels: for training only.
        source: The name of `file` in messages, if it is not a path.

    Raises:
        BadImage: If the file is missing, empty, truncated, damaged, too large or not an image.
    """
    with opened(file, max_pixels=max_pixels, source=source) as image:
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        image.load()
        return as_mode(upright(image), mode)


def read_header(file: File, *, max_pixels: int = MAX_PIXELS, source: str | None = None) -> Header:
    """Read the header of an image file, without decoding its pixels.

    Raises:
        BadImage: If the file is missing, empty, too large or not an image.
    """
    with opened(file, max_pixels=max_pixels, source=source) as image:
        return header_of(image)


def header_of(image: Image.Image) -> Header:
    """Return the properties of an opened image that is not decoded yet."""
    width, height = image.size
    turn = orientation(image)
    # Pillow applies the orientation of a TIFF itself.
    if image.format != "TIFF" and turn in QUARTER_TURNS:
        width, height = height, width
    return Header(
        width=width,
        height=height,
        mode=image.mode,
        format=image.format or "?",
        orientation=turn,
        num_bands=getattr(image, "num_bands", 0),
    )


@contextmanager
def opened(
    file: File, *, max_pixels: int = MAX_PIXELS, source: str | None = None
) -> Iterator[Image.Image]:
    """Open an image file without decoding its pixels; the arguments are those of `decode`.

    Raises:
        BadImage: If the file is missing, empty, too large or not an image, or if the block fails.
    """
    name = _name(file, source)
    try:
        with _open(file) as stream, identify(stream) as image:
            _check_size(image, max_pixels, name)
            check_stack(image, name)
            yield image
    except BadImage as error:
        raise BadImage(name, error.reason) from error  # `as_mode` does not know the name.
    # Pillow's plugins let almost any exception escape from a damaged file.
    except Exception as error:
        raise BadImage(name, reason_of(error, file)) from error


def identify(stream: IO[bytes]) -> Image.Image:
    """Open the image in a binary file with the first of Pillow's plugins that recognizes it.

    Unlike `Image.open` it does not warn at half the maximum size; a caller could only silence that
    warning for the whole process.

    Raises:
        PIL.UnidentifiedImageError: If no plugin recognizes it.
        PIL.Image.DecompressionBombError: If it declares more than `MAX_PIXELS`.
        Refused: If an extra is not installed, or the file has several frames.
    """
    start = stream.read(START)
    image = beyond_pillow(stream, start, _by_plugin(stream, start[:16]))
    if image is None:
        raise UnidentifiedImageError("no plugin recognizes the file")
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels declared")
    found: Image.Image = image
    return found


def _by_plugin(stream: IO[bytes], start: bytes) -> Image.Image | None:
    for name in readable_formats():
        factory, accepts = Image.OPEN[name]
        try:
            answer = True if accepts is None else accepts(start)
            # A string means that the plugin recognizes the format but lacks a library to read it.
            if isinstance(answer, str) or not answer:
                continue
            stream.seek(0)
            return factory(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # Another format after all.
            continue
    return None


def as_mode(image: Image.Image, mode: Mode) -> Image.Image:
    """Return `image` as "RGB" or "L", composited over white; unchanged if it already is.

    In `RAW`, 16-bit, float and multi-band images keep their values.

    Raises:
        BadImage: If it has other bands than the mode reads.
    """
    if (isinstance(mode, BandMode) or str(mode) == RAW) and getattr(image, "is_cut", False):
        raise BadImage("the image", needs_tifffile("its bands and bits are more than Pillow reads"))
    if isinstance(mode, BandMode):
        return _as_bands(image, mode)
    if image.mode == mode and not image.has_transparency_data:
        return image
    if isinstance(image, BandImage):
        return _of_bands(image, mode)
    if str(mode) == RAW:
        return Image.fromarray(np.asarray(image, dtype=np.float32))
    if image.mode in WIDE_MODES:
        image = _to_8_bit(image, mode.range if isinstance(mode, RangedMode) else None)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _of_bands(image: BandImage, mode: Mode) -> Image.Image:
    """Return an image of bands in a mode that does not say which of them to read.

    Raises:
        BadImage: If the file does not say which bands are red, green and blue.
    """
    if str(mode) == RAW:
        return image
    if isinstance(mode, _Picture):
        return image.convert("RGB")
    if not image.is_rgb:
        raise BadImage(
            "the image",
            f"has {image.num_bands} bands, but gray-scale or RGB images are read here; a network "
            "trained with --input.bands reads such images",
        )
    values = image.values[..., :3]
    if values.dtype == np.uint16 and not isinstance(mode, RangedMode):
        return Image.fromarray((values >> 8).astype(np.uint8)).convert(mode)  # As Pillow does.
    if values.dtype != np.uint8:
        range = mode.range if isinstance(mode, RangedMode) else None
        found = band_image(scaled(values, range or usual_range(values, "F")))
        if range is not None:
            found.info[CLIPPED] = num_clipped(values, range)
        return found.convert(mode)
    return Image.fromarray(np.ascontiguousarray(values)).convert(mode)


_READ = "bands are read"


def _as_bands(image: Image.Image, mode: BandMode) -> Image.Image:
    """Return the bands of an image that a mode names, scaled to 8 bits.

    Raises:
        BadImage: If the image has other bands, or values of more than 8 bits and there is no range.
    """
    if image.info.get(_READ):
        return image
    if image.mode not in ("L", "RGB", "RGBA", *WIDE_MODES) and not isinstance(image, BandImage):
        image = as_mode(image, "RGB")
    values = np.asarray(image)
    values = values[..., None] if values.ndim == 2 else values
    count = values.shape[2]
    if (mode.bands and max(mode.bands) > count) or (not mode.bands and count != mode.num_bands):
        wanted = f"band {max(mode.bands)}" if mode.bands else f"{mode.num_bands} bands"
        raise BadImage(
            "the image",
            f"has {count_noun(count, 'band')}, but the network reads {wanted}; --input.bands of "
            "training chooses bands",
        )
    if mode.bands:
        values = values[..., [band - 1 for band in mode.bands]]
    if values.dtype == np.uint8:
        found = band_image(np.ascontiguousarray(values))
    elif not mode.ranges:
        raise BadImage(
            "the image", f"has values of the type {values.dtype}, which need --input.range"
        )
    else:
        found = band_image(scaled(values, mode.ranges))
        found.info[CLIPPED] = num_clipped(values, mode.ranges)
    found.info[_READ] = True
    return found


@cache
def readable_formats() -> tuple[str, ...]:
    """Return Pillow's names of the supported formats: "JPEG", "PNG" ...

    The plugins of HEIC and JPEG XL are registered where they are installed.
    """
    Image.init()
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    with suppress(ImportError):
        importlib.import_module("pillow_jxl")
    return tuple(name for name in Image.OPEN if name not in _REFUSED)


@cache
def readable_extensions() -> frozenset[str]:
    """Return the extensions of the supported formats: ".jpg", ".png" ...

    Those that need an extra belong to them without it too: such files are named, not left out.
    """
    formats = readable_formats()
    known = (ending for ending, name in Image.registered_extensions().items() if name in formats)
    return ENDINGS.union(known)


def _to_8_bit(image: Image.Image, range: Range | None) -> Image.Image:
    """Scale 16-bit, 32-bit and float gray-scale to 8 bit, and clip values outside the range.

    Without a range, black is 0 and white is 65535 in "I;16". White is not declared in "I" and "F",
    which `convnext.data.sources` refuses in memory. In a file it is the first usual value that the
    largest one of the image does not exceed by half.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    used = range or image.info.get(WINDOW) or usual_range(values, image.mode)
    levels = scaled(values[..., None], used)[..., 0]
    found = Image.fromarray(255 - levels if image.info.get(INVERTED) else levels)
    if range is not None:
        found.info[CLIPPED] = num_clipped(values[..., None], range)
    return found


def upright(image: Image.Image) -> Image.Image:
    """Return an image with its EXIF orientation applied."""
    return turn_image(image, orientation(image))


def turn_image(image: Image.Image, turn: int) -> Image.Image:
    """Return an image with an orientation of EXIF, 1 to 8, applied."""
    how = _ORIENTATION.get(turn)
    return image if how is None else image.transpose(how)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or 1 if the EXIF block is missing or damaged."""
    if "exif" not in image.info and image.format not in ("TIFF", "PNG", "WEBP", "MPO"):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # The pixels are fine even if the EXIF parser fails.
        return 1


def _check_size(image: Image.Image, max_pixels: int, name: str) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(
            name,
            f"declares {width:,} x {height:,} pixels; more than {max_pixels / 1e6:,.4g} million "
            "are refused",
        )


def check_stack(image: Image.Image, name: str) -> None:
    """Refuse a TIFF of several slices, rather than read the first alone.

    Pages of another size are allowed: they are previews, or levels of a pyramid; so are masks.

    Raises:
        BadImage: If the second page has the size of the first.
    """
    if not isinstance(image, TiffImageFile):
        return
    size, second, count, is_preview = image.size, (0, 0), 1, True
    with suppress(SyntaxError):  # A page that is not a picture is a mask of transparency.
        count = image.n_frames
        if count > 1:
            image.seek(1)
            second = image.size
            is_preview = bool(image.tag_v2.get(_SUBFILE_TAG, 0) & _PREVIEW_OR_MASK)
    image.seek(0)
    if second == size and not is_preview:
        raise BadImage(name, stack_reason(count))


def _open(file: File) -> AbstractContextManager[IO[bytes]]:
    if isinstance(file, bytes):
        return BytesIO(file)
    if isinstance(file, str | Path):
        return open_regular(file)
    return nullcontext(file)


def _name(file: File, source: str | None) -> str:
    if source is not None:
        return source
    if isinstance(file, str | Path):
        return str(file)
    return str(getattr(file, "name", "image in memory"))


def _rewritten(file: File) -> str:
    """Return how Git or a transfer has changed the bytes of a file; "" if neither has."""
    if not isinstance(file, str | Path):
        return ""
    try:
        with open_regular(file) as stream:
            data = stream.read(1 << 20)
    except OSError:
        return ""
    if data.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the image; fetch it with `git lfs pull`"
    # Of random bytes, every 256th is a line feed or a carriage return.
    feeds, returns, pairs = data.count(b"\n"), data.count(b"\r"), data.count(b"\r\n")
    is_png = data.startswith((b"\x89PNG\n", b"\x89PNG\r\r\n"))
    lost = len(data) >= 8192 and returns == 0 and feeds > 8
    added = feeds >= 16 and pairs == feeds
    if is_png or lost or added:
        return (
            "its line ends were rewritten, as by Git or FTP in text mode; copy it again in binary "
            "mode"
        )
    return ""


def content_of(path: str) -> bytes:
    """Return the bytes of an image file.

    Raises:
        BadImage: If it cannot be read.
    """
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise BadImage(path, reason_of(error, path)) from error


def ending_of(format: str) -> str:
    """Return the usual ending of a file in a format of Pillow, such as ".jpg" for "JPEG"."""
    known = {name: ending for ending, name in reversed(Image.registered_extensions().items())}
    return {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}.get(format) or known[format]


def reason_of(error: Exception, file: File) -> str:
    """Return why a file cannot be read as an image, for the user."""
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, OSError) and isinstance(file, str | Path) and is_special(file):
        return "a named pipe, a socket or a device, not a file"
    if (rewritten := _rewritten(file)) and not isinstance(error, FileNotFoundError):
        return rewritten
    if isinstance(error, UnidentifiedImageError):
        is_empty = _length(file) == 0
        return "the file is empty" if is_empty else "not an image, or a damaged one"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, Image.DecompressionBombError):
        return f"declares more than {MAX_PIXELS / 1e6:,.4g} million pixels, which are refused"
    text = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"the file is cut off ({text})"
    return f"damaged ({text})"


def _length(file: File) -> int:
    if isinstance(file, bytes):
        return len(file)
    if isinstance(file, str | Path):
        return Path(file).stat().st_size
    return file.seek(0, 2)


def walk_files(folder: Path) -> list[str]:
    """Return the relative names of all files below a folder, sorted, without hidden ones."""
    names: list[str] = []
    visited: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in visited:  # A link back to a parent folder.
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        below = Path(here).relative_to(folder)
        names += [(below / name).as_posix() for name in files if not is_hidden(name)]
    return sorted(names)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden by its name, or written by the archiver of macOS."""
    return name.startswith(".") or name == "__MACOSX"


def image_files(
    images: Iterable[str | Path], notice: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Return files as given, and all files with an image extension under folders, sorted.

    Folders are read as for training: linked folders are followed, hidden files are not listed.

    Args:
        images: Files and folders.
        notice: Called with a line about the other files of a folder.

    Raises:
        ValueError: If a name does not exist, or nothing is left.
    """
    found: list[Path] = []
    extensions = readable_extensions()
    for name in images:
        path = Path(name)
        if path.is_dir():
            files = sorted(path / file for file in walk_files(path))
            found += [file for file in files if file.suffix.lower() in extensions]
            others = [file for file in files if file.suffix.lower() not in extensions]
            if others:
                endings = Counter(file.suffix.lower() or "no ending" for file in others)
                listed = ", ".join(f"{n:,} {ending}" for ending, n in endings.most_common(5))
                notice(
                    f"files in {path} that are not images by their ending, left out: "
                    f"{len(others):,} ({listed}, such as {others[0]})"
                )
        elif path.is_file():
            found.append(path)
        elif is_special(path):
            raise ValueError(f"{name} is a named pipe, a socket or a device, not a file")
        else:
            raise ValueError(f"there is no file or folder {name}")
    if not found:
        raise ValueError(f"there is no image in {', '.join(map(str, images))}")
    return found


def spread(n: int, count: int) -> list[int]:
    """Return up to `count` positions spread evenly over n images."""
    return sorted({i * n // min(n, count) for i in range(min(n, count))})
