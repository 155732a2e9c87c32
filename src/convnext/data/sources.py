"""The input of `predict` as a stream of images: files, globs, URLs, and images in memory.

Images are opened one at a time. An unreadable image gives one `BadImage` and does not end the run.
Ambiguous input is refused before anything runs.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from convnext.data.bands import Clipping
from convnext.data.downloads import Download, Notice, is_url, to_stderr
from convnext.data.images import (
    BadImage,
    Mode,
    RangedMode,
    as_mode,
    decode,
    image_files,
    readable_extensions,
    upright,
)
from convnext.names import nearest

Channels = Literal["rgb", "bgr"]

ACCEPTED = (
    "a path, a folder, a glob, an http(s) URL, a PIL image, a numpy array (H, W, 3) or (H, W) of "
    "uint8, a torch tensor (3, H, W) or (N, 3, H, W) of uint8, or an iterable of these"
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One image that has not been opened yet."""

    name: str
    """Its path or URL, or "image_00003" for the fourth image if it is in memory."""
    path: Path | None
    """Its file; None for a URL and for an image in memory."""
    opener: Callable[[Mode], Image.Image]
    """Reads the image; use `open`."""
    clipping: Clipping = field(default_factory=Clipping)
    """Counts clipped pixels of all images that were given together."""

    def open(self, mode: Mode = "RGB") -> Image.Image:
        """Return the image, upright, in 8 bits, in "RGB" or "L".

        Raises:
            BadImage: If it cannot be fetched or decoded; the message says why.
        """
        image = self.opener(mode)
        self.clipping.add(image)
        return image


def image_sources(
    images: Any,
    *,
    channels: Channels = "rgb",
    notice: Notice = to_stderr,
    max_bytes: int = 64 * 2**20,
    timeout: float = 30.0,
) -> list[Source] | Iterator[Source]:
    """Turn the input of `predict` into images that are opened one by one.

    Args:
        images: One of these, or an iterable of them:

            - a path, or a folder, which is searched recursively;
            - a glob, such as "photos/*.jpg" or "photos/**/*.jpg"; a pattern without an extension
              finds only files with an image extension;
            - an http or https URL of an image;
            - a PIL image, which is treated like a file: EXIF orientation is applied, transparency
              is laid over white;
            - a numpy array (H, W, 3) or (H, W) of uint8; (3, W, 3) is three rows high;
            - a torch tensor (3, H, W) or (N, 3, H, W) of uint8; (3, H, 3) is three columns wide.
        channels: The order in arrays and tensors: "rgb", or "bgr" as in OpenCV. It does not apply
            to files, URLs and PIL images.
        notice: Called with one line before each download.
        max_bytes: The maximum size of a download.
        timeout: Seconds that a server may be silent.

    Returns:
        A list if the images can be counted beforehand: for lists, tuples and everything that is not
        an iterable. Otherwise an iterator. It takes an item from `images` only when the next image
        is requested, and copies arrays and tensors then, so that a buffer may be reused.

    Raises:
        ValueError: If a path that is given directly or in a list does not exist, if nothing is
            found, or if an array has an ambiguous type or shape. Items of other iterables raise it
            in their turn, but there a path that does not exist is only a bad image.
        TypeError: If it is something else.
    """
    if channels not in ("rgb", "bgr"):
        raise ValueError(f"channels is {channels!r}{nearest(str(channels), ('rgb', 'bgr'))}")
    reader = _Reader(
        channels=channels, download=Download(notice=notice, max_bytes=max_bytes, timeout=timeout)
    )
    if _is_lazy(images):
        return reader.lazily(images)
    found = list(reader.expand(images))
    if not found:
        raise ValueError("there are no images: an empty list was given")
    return found


def to_image(image: Any, *, channels: Channels = "rgb") -> Image.Image:
    """Convert an image in memory to a PIL image, with as few copies as possible.

    Args:
        image: A PIL image, a numpy array or a torch tensor, see `image_sources`; not a batch.
        channels: The channel order of an array or a tensor.

    Raises:
        ValueError: If the type or shape of an array is ambiguous.
        TypeError: If it is something else.
    """
    if isinstance(image, Image.Image):
        return upright(image)
    if _is_tensor(image):
        image = _from_tensor(image)
        if image.ndim == 4:
            raise ValueError(f"one image is needed, not a batch of {len(image)}")
    elif not isinstance(image, np.ndarray):
        raise TypeError(
            f"an image is a PIL image, a numpy array or a torch tensor, not {_kind(image)}"
        )
    _check_array(image)
    if image.ndim == 3 and channels == "bgr":
        image = image[..., ::-1]
    return Image.fromarray(np.ascontiguousarray(image))


@dataclass(kw_only=True)
class _Reader:
    channels: Channels
    download: Download
    count: int = 0
    """Number of images so far, for the names of images in memory."""
    clipping: Clipping = field(default_factory=Clipping)

    def lazily(self, items: Iterable[Any]) -> Iterator[Source]:
        """Yield the images of an iterable that is read only once."""
        for item in items:
            is_path = isinstance(item, str | Path) and not is_url(item)
            if is_path and not Path(item).exists() and not glob.has_magic(str(item)):
                yield self._file(Path(item))  # A missing file fails when it is opened.
            elif _is_lazy(item):
                yield from self.lazily(item)
            else:
                yield from self.expand(item, copy=True)

    def expand(self, item: Any, *, copy: bool = False) -> Iterator[Source]:
        """Yield the images that an item stands for."""
        if isinstance(item, str | Path):
            yield from self._named(item)
        elif isinstance(item, Image.Image):
            yield self._in_memory(item, copy=copy)
        elif _is_tensor(item):
            array = _from_tensor(item)
            for image in array if array.ndim == 4 else [array]:
                yield self._in_memory(image, copy=copy)
        elif isinstance(item, np.ndarray) and item.dtype.kind not in "OU":
            yield self._in_memory(item, copy=copy)
        elif isinstance(item, bytes | bytearray | dict) or not isinstance(item, Iterable):
            raise TypeError(f"images are {ACCEPTED}; not {_kind(item)}")
        else:
            for part in item:
                yield from self.expand(part, copy=copy)

    def _named(self, name: str | Path) -> Iterator[Source]:
        if is_url(name):
            self.download.check(str(name))
            yield self._next(str(name), None, partial(self._fetch, str(name)))
        elif not Path(name).exists() and glob.has_magic(str(name)):
            yield from map(self._file, matching_files(str(name)))
        else:
            yield from map(self._file, self._files(Path(name)))

    def _files(self, path: Path) -> list[Path]:
        """Return the images of a folder, without the masks of other images, or a file."""
        files = image_files([path], self.download.notice)
        if not path.is_dir():
            return files
        from convnext.data.formats.mask_folders import mask_files

        masks = mask_files(path)
        left = [file for file in files if file in masks]
        if left and len(left) < len(files):
            self.download.notice(
                f"masks of other images in {path}, left out: {len(left):,} (such as {left[0]})"
            )
            return [file for file in files if file not in masks]
        return files

    def _file(self, path: Path) -> Source:
        return self._next(str(path), path, lambda mode: decode(path, mode=mode))

    def _fetch(self, url: str, mode: Mode) -> Image.Image:
        return decode(self.download.fetch(url), mode=mode, source=url)

    def _in_memory(self, image: Any, *, copy: bool) -> Source:
        name = f"image_{self.count:05d}"
        if isinstance(image, np.ndarray):
            _check_array(image)

        def convert() -> Image.Image:
            try:
                converted = to_image(image, channels=self.channels)
                converted.load()
            except Exception as error:  # Pillow decodes an opened file only now.
                raise BadImage(name, f"damaged ({error})") from error
            return converted

        if not copy:
            return self._next(name, None, lambda mode: _in_8_bit(convert(), mode, name))
        try:
            copied = convert().copy()
        except BadImage as error:
            return self._next(name, None, partial(_fail, error))
        return self._next(name, None, lambda mode: _in_8_bit(copied, mode, name))

    def _next(self, name: str, path: Path | None, opener: Callable[[Mode], Image.Image]) -> Source:
        self.count += 1
        return Source(name=name, path=path, opener=opener, clipping=self.clipping)


def matching_files(pattern: str) -> list[Path]:
    """Return the files that match a glob, sorted; `**` matches any folders.

    A pattern without an extension, such as "photos/*", finds only files with an image extension.

    Raises:
        ValueError: If there are none.
    """
    found = [Path(name) for name in glob.glob(pattern, recursive=True)]
    files = sorted(path for path in found if path.is_file())
    ending = Path(pattern).suffix
    images = files
    if not ending or glob.has_magic(ending):
        images = [path for path in files if path.suffix.lower() in readable_extensions()]
    if images:
        return images
    others = f"; it matches {len(files)} files that are not images" if files else ""
    folders = len(found) - len(files)
    if folders and not files:
        others = f"; it matches {folders} folders, and {pattern}/* or {pattern}/**/* their files"
    raise ValueError(f"no image matches {pattern}{others}")


def _fail(error: BadImage, mode: Mode) -> Image.Image:
    raise error


def _is_lazy(images: Any) -> bool:
    """Whether this is an iterable whose items do not all exist yet, such as a generator."""
    if isinstance(images, str | Path | bytes | dict | list | tuple | np.ndarray | Image.Image):
        return False
    return isinstance(images, Iterable) and not _is_tensor(images)


def _is_tensor(image: Any) -> bool:
    # If torch is not imported, this cannot be a tensor.
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(image, tensor)


def _from_tensor(tensor: Any) -> np.ndarray[Any, Any]:
    """Return a tensor (3, H, W) or (N, 3, H, W) as an array (H, W, 3) or (N, H, W, 3)."""
    kind, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    what = f"a torch tensor of {kind} with shape {shape}"
    if kind != "uint8":
        raise ValueError(f"{what}: {_wrong_type(kind, 'image', 'image.to(torch.uint8)')}")
    if tensor.ndim in (3, 4) and shape[-3] == 3 and 0 not in shape:
        array: np.ndarray[Any, Any] = np.moveaxis(tensor.detach().cpu().numpy(), -3, -1)
        return array
    fix = "tensors are (3, H, W) or (N, 3, H, W)"
    if 0 in shape:
        fix = "it is empty"
    elif tensor.ndim in (3, 4) and (shape[-3] == 4 or shape[-1] == 3):
        one = tensor.ndim == 3
        permuted = f"image.permute({'2, 0, 1' if one else '0, 3, 1, 2'})"
        if shape[-3] == 4:
            fix += (
                f"; if it is (4, H, W), drop the alpha channel with image[{'' if one else ':, '}:3]"
            )
        if shape[-1] == 3:
            fix += f"; if it is (H, W, 3), put the channels first with {permuted}"
    elif tensor.ndim == 2 or (tensor.ndim == 3 and shape[0] == 1):
        fix += "; make a gray image (3, H, W) with image.expand(3, -1, -1)"
    raise ValueError(f"{what}: {fix}")


def _check_array(array: np.ndarray[Any, Any]) -> None:
    """Refuse an array that is not (H, W, 3) or (H, W) of uint8, and say how to convert it."""
    what = f"a numpy array of {array.dtype} with shape {array.shape}"
    if array.dtype != np.uint8:
        reason = _wrong_type(str(array.dtype), "image", 'image.astype("uint8")')
        raise ValueError(f"{what}: {reason}")
    shape = array.shape
    is_image = array.ndim == 2 or (array.ndim == 3 and shape[2] == 3)
    if is_image and 0 not in shape:
        return
    fix = "arrays are (H, W, 3) or (H, W)"
    if 0 in shape:
        fix = "it is empty"
    elif array.ndim == 3 and shape[2] == 4 and shape[0] == 3:
        fix += (
            "; if it is (H, W, 4), drop the alpha channel with image[..., :3]; if it is (3, H, W), "
            "put the channels last with image.transpose(1, 2, 0)"
        )
    elif array.ndim == 3 and shape[2] == 4:
        fix += "; drop the alpha channel with image[..., :3]"
    elif array.ndim == 3 and shape[0] == 3:
        fix += "; put the channels last with image.transpose(1, 2, 0)"
    elif array.ndim == 3 and shape[2] == 1:
        fix += "; drop the last axis with image[..., 0]"
    elif array.ndim == 3 and shape[0] == 1:
        fix += "; drop the first axis with image[0]"
    elif array.ndim == 4:
        fix += "; pass a batch as a list of images: list(images)"
    raise ValueError(f"{what}: {fix}")


def _in_8_bit(image: Image.Image, mode: Mode, name: str) -> Image.Image:
    """Return an image in memory in a mode of 8 bits.

    Raises:
        ValueError: If its values may mean different images, and the model has no range for them.
    """
    if image.mode in ("I", "F") and mode in ("RGB", "L") and not isinstance(mode, RangedMode):
        kinds = {"F": "0 to 1, 0 to 255 or 0 to 65535", "I": "0 to 255, 0 to 65535 or more"}
        raise ValueError(
            f"{name} is a PIL image in mode {image.mode}, whose values may range over "
            f"{kinds[image.mode]}, which are different images; scale them to 0 to 255 and convert "
            'them with Image.fromarray(values.round().astype("uint8")). Only a model that was '
            "trained on 16-bit or float images knows their range"
        )
    return as_mode(image, mode)


def _wrong_type(kind: str, name: str, cast: str) -> str:
    """Return why values other than uint8 are refused, and how to convert them."""
    if "float" in kind:
        rounded = cast.replace(name, f"{name}.round()")
        scaled = cast.replace(name, f"({name} * 255).round()")
        return (
            "floats may range over 0 to 1 or over 0 to 255, which are different images; convert "
            f"them with {scaled} for 0 to 1, or {rounded} for 0 to 255"
        )
    if kind == "bool":
        return f"images are uint8; convert it with {cast} * 255"
    if kind == "uint16":
        return (
            f"images are uint8; convert it with {cast.replace(name, f'({name} // 257)')} if white "
            f"is 65535, or with {cast} if it is 255"
        )
    return f"images are uint8; convert it with {cast} if its values are 0 to 255"


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
