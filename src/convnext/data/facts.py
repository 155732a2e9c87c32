"""Facts about images and reports on data sets, kept in the user's cache folder.

They are used again while the files that they are about do not change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import struct
import sys
import time
import types
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from PIL import Image

from convnext.atomic import atomic_write, write_text
from convnext.data.bands import BandImage
from convnext.data.images import Header, as_mode, header_of, opened, upright
from convnext.hardware.system import cache_folder

Report = TypeVar("Report")
# The libraries that decide what can be read, and how.
_LIBRARIES = ("convnext", "numpy", "pillow", "tifffile", "pydicom", "pillow-heif", "pillow-jxl",
              "pillow-jxl-plugin", "datasets", "pyarrow")  # fmt: skip
# Smaller images have no sketch, since it would have too little information.
SKETCH_PIXELS = 32
# Many images show in their first bytes that they are neither gray nor of one color.
_START = 3_000
NOT_DECODED = "(--no-cache decodes them)"
# Options that may name files outside of the data.
_ELSEWHERE = ("allow_outside", "annotations", "images", "masks")
_FORMAT = 1
_STAMP = struct.Struct("<qqqQ")
# What reading a damaged report may raise: numbers too large for a time, lists too deep ...
_DAMAGE = (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError)
_log = logging.getLogger("convnext")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """What a data set report needs to know about an image."""

    width: int
    """Width with the EXIF orientation applied; `height` likewise."""
    height: int
    mode: str
    """Pillow's name of the mode of the file, such as "RGB" or "L"."""
    format: str
    orientation: int
    """The EXIF orientation; 1 for an upright image."""
    digest: bytes
    """Hash of the pixels, 16 bytes; with all bands and bits of the file."""
    sketch: bytes
    """32 bytes, similar for images that look alike; empty for small images."""
    is_blank: bool
    """Whether all pixels are the same."""
    is_gray: bool


def facts_of(image: Image.Image, header: Header) -> ImageFacts:
    """Return the facts about a decoded image in its `Header.whole_mode`."""
    data = image.tobytes()
    is_blank, is_gray = _look_of_rgb(data) if image.mode == "RGB" else _look_of_values(image)
    return ImageFacts(
        width=image.width,
        height=image.height,
        mode=header.mode,
        format=header.format,
        orientation=header.orientation,
        digest=hashlib.blake2b(b"%d %d " % image.size + data, digest_size=16).digest(),
        sketch=sketch(image) if min(image.size) >= SKETCH_PIXELS else b"",
        is_blank=is_blank,
        is_gray=is_gray,
    )


def _look_of_rgb(data: bytes) -> tuple[bool, bool]:
    """Return whether pixels are all the same, and whether they are all gray."""
    start = data[:_START]
    is_gray = start[0::3] == start[1::3] == start[2::3]
    is_blank = start == start[:3] * (len(start) // 3)
    return (
        is_blank and data == data[:3] * (len(data) // 3),
        is_gray and data[0::3] == data[1::3] == data[2::3],
    )


def _look_of_values(image: Image.Image) -> tuple[bool, bool]:
    values = np.asarray(image).reshape(image.height, image.width, -1)
    return (
        bool((values == values[:1, :1]).all()),
        values.shape[2] == 1 or bool((values == values[..., :1]).all()),
    )


def read_facts(path: str) -> ImageFacts:
    """Decode an image file in full, and return the facts about it.

    Raises:
        BadImage: If it cannot be read.
    """
    with opened(path) as image:
        header = header_of(image)
        image.load()
        return facts_of(as_mode(upright(image), header.whole_mode), header)


def sketch(image: Image.Image) -> bytes:
    """Return 256 bits: whether each cell of a 16 x 16 grid is brighter than its left neighbor."""
    if image.mode == "F":  # Scaled to 8 bits by its own values.
        image = BandImage(np.asarray(image)[..., None])
    cells = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX))
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes()


Stamp = tuple[int, int, int, int]
"""Size, times of the last change of content and of status in nanoseconds, and inode."""
# A file that was written so shortly before it was read may have been written again with the same
# times, since file systems count time in steps of up to two seconds.
SETTLED_NS = 2_000_000_000
# The most that the facts of all data sets may take; the oldest are removed.
MAX_CACHE_BYTES = 256 * 2**20
_CACHE_FORMAT = 2
_ROW = np.dtype(
    [
        ("name", "V16"),
        ("size", "<i8"),
        ("modified", "<i8"),
        ("changed", "<i8"),
        ("inode", "<i8"),
        ("digest", "V16"),
        ("sketch", "V32"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("mode", "u1"),
        ("format", "u1"),
        ("orientation", "u1"),
        ("has_sketch", "?"),
        ("is_blank", "?"),
        ("is_gray", "?"),
    ]
)


class FactsCache:
    """Facts about image files, read from the user's cache folder if the files are unchanged.

    The facts of one data set are in one file, which is replaced as a whole: several processes may
    read and write it, and the last one wins. A damaged file is ignored with a warning, and so is
    one of another version.

    Args:
        data: The data set; facts about its images are stored together.
        enabled: Whether to read and write the cache.
    """

    def __init__(self, data: str | Path, *, enabled: bool = True) -> None:
        self.num_found = 0
        """Files whose facts came from the cache."""
        self._enabled = enabled
        name = _hash(os.path.abspath(data)).hex()
        self.path = cache_folder() / "images" / f"{name}.npz"
        self._versions = f"{_CACHE_FORMAT} {version('pillow')} {sys.byteorder}"
        self._rows = np.zeros(0, _ROW)
        self._row_of: dict[bytes, int] = {}
        self._words: list[str] = []
        """The modes and formats that rows refer to."""
        self._new: dict[bytes, tuple[Stamp, ImageFacts]] = {}
        self._used: set[int] = set()
        if enabled:
            self._load()

    def read(self, path: str) -> ImageFacts:
        """Return the facts about an image file, from the cache if the file is unchanged.

        Raises:
            BadImage: If it cannot be read.
        """
        stamp = _stamp(path) if self._enabled else None
        if stamp is None:
            return read_facts(path)
        name = _hash(path if os.path.isabs(path) else os.path.abspath(path))
        row = self._row_of.get(name)
        if row is not None:
            known: tuple[Any, ...] = self._rows[row].item()
            if known[1:5] == stamp:
                self._used.add(row)
                self.num_found += 1
                return self._facts(known)
        found = read_facts(path)
        # Both times count: an extracted archive has old times of modification.
        if max(stamp[1:3]) + SETTLED_NS < time.time_ns():
            self._new[name] = stamp, found
        return found

    def save(self) -> None:
        """Store the facts about the files that were read; those about others are forgotten."""
        if not self._new and len(self._used) == len(self._rows):
            return
        kept = self._rows[sorted(self._used)]
        new = np.array([self._row(*item) for item in self._new.items()], _ROW)
        rows = np.concatenate((kept, new))
        if len(self._words) > 256 or rows.nbytes > MAX_CACHE_BYTES:
            return
        try:
            with atomic_write(self.path) as temporary, temporary.open("wb") as file:
                np.savez(
                    file, rows=rows, words=np.array(self._words), versions=np.array(self._versions)
                )
            shrink(self.path.parent)
        except OSError as error:
            _log.warning("the facts about the images are not cached: %s", error)

    def _row(self, name: bytes, found: tuple[Stamp, ImageFacts]) -> tuple[Any, ...]:
        stamp, facts = found
        for word in (facts.mode, facts.format):
            if word not in self._words:
                self._words.append(word)
        return (
            name,
            *stamp,
            facts.digest,
            facts.sketch.ljust(32, b"\0"),
            facts.width,
            facts.height,
            self._words.index(facts.mode) % 256,
            self._words.index(facts.format) % 256,
            facts.orientation,
            bool(facts.sketch),
            facts.is_blank,
            facts.is_gray,
        )

    def _facts(self, row: tuple[Any, ...]) -> ImageFacts:
        digest, sketch, width, height, mode, format, turn, has_sketch, blank, gray = row[5:]
        return ImageFacts(
            width=width,
            height=height,
            mode=self._words[mode],
            format=self._words[format],
            orientation=turn,
            digest=digest,
            sketch=sketch if has_sketch else b"",
            is_blank=blank,
            is_gray=gray,
        )

    def _load(self) -> None:
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                if str(content["versions"]) != self._versions:
                    return
                rows, words = content["rows"], content["words"].tolist()
            most = max((int(rows[key].max(initial=0)) for key in ("mode", "format")), default=0)
            if rows.dtype != _ROW or most >= max(len(words), 1):
                raise ValueError("it has other columns")
            os.utime(self.path)  # The files that were not used for the longest time go first.
        except FileNotFoundError:
            return
        except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
            _log.warning("ignoring the damaged file %s (%s)", self.path, error)
            return
        self._rows, self._words = rows, words
        self._row_of = {name: row for row, name in enumerate(rows["name"].tolist())}


def _hash(name: str) -> bytes:
    return hashlib.blake2b(os.fsencode(name), digest_size=16).digest()


def _stamp(path: str) -> Stamp | None:
    """Return what changes when a file does; None if there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    inode = found.st_ino & (2**63 - 1)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, inode


def shrink(folder: Path) -> None:
    """Remove the files of a folder that were not used for the longest time, if it is too large."""
    files = []
    for path in folder.glob("[!.]*"):
        with contextlib.suppress(FileNotFoundError):  # Another process removed it.
            files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= MAX_CACHE_BYTES:
            break
        path.unlink(missing_ok=True)
        total -= size


class StoredReport:
    """The report on a data set, kept while neither a file of it nor the question changes.

    Args:
        path: The data set. Only reports on folders are kept, since a single file may refer to
            others anywhere.
        question: All else that the report depends on, such as the task and the options; plain
            values.
    """

    def __init__(self, path: str, question: Mapping[str, Any]) -> None:
        root = Path(path)
        self._began = time.time_ns()
        self._key = ""
        asked = json.dumps([os.path.abspath(root), path, question], sort_keys=True, default=str)
        name = hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        self.path = cache_folder() / "reports" / f"{name}.json"
        # Whether files elsewhere changed is not known.
        if not root.is_dir() or any(question.get(name) for name in _ELSEWHERE):
            return
        with contextlib.suppress(OSError):
            digest, newest = _stamp_of_tree(root)
            # A file may be written again within one step of the clock of the file system.
            if newest + SETTLED_NS < self._began:
                versions = [_version(name) for name in _LIBRARIES]
                self._key = f"{_FORMAT} {versions} {_stamp_of_package()} {digest}"

    def load(self, kind_of: Callable[[str], type[Report]]) -> Report | None:
        """Return the stored report, with a note that says so; None if anything changed.

        A damaged file is ignored with a warning.

        Args:
            kind_of: Returns the data class of the reports of a task.
        """
        if not self._key:
            return None
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["key"] != self._key:
                return None
            if found.pop("digest") != _digest(found):
                raise ValueError("it is not as it was written")
            report: Any = from_plain(kind_of(str(found["task"])), found["report"])
            made = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(found["time"])))
        except FileNotFoundError:
            return None
        except _DAMAGE as error:
            _log.warning("ignoring the damaged file %s (%s)", self.path, error)
            return None
        with contextlib.suppress(OSError):
            os.utime(self.path)  # The reports that were not used for the longest time go first.
        notes = [note for note in report.notes if not note.endswith(NOT_DECODED)]
        again = (
            f"no file has changed since {made}; this is the report of that time (--no-cache reads "
            "the data again)"
        )
        shown: Report = replace(report, notes=(*notes, again))
        return shown

    def save(self, report: Any, task: str) -> None:
        """Store the report of a task, of plain values and data classes."""
        if not self._key:
            return
        values = {f.name: getattr(report, f.name) for f in fields(report)}
        content = {"key": self._key, "time": self._began / 1e9, "task": task, "report": values}
        content["digest"] = _digest(content)
        try:
            write_text(self.path, json.dumps(content, default=_plain))
            shrink(self.path.parent)
        except OSError as error:
            _log.warning("the report is not cached: %s", error)


def from_plain(hint: Any, value: Any) -> Any:
    """Return a value of a type from what JSON makes of it.

    Args:
        hint: A data class, tuple, dictionary or union of these and plain types.
        value: Plain values.

    Raises:
        ValueError: If the value does not have this type.
    """
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (hint,) = (part for part in inner if part is not type(None))
        return from_plain(hint, value)
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        hints = get_type_hints(hint)
        return hint(**{name: from_plain(hints[name], one) for name, one in value.items()})
    if kind is tuple and isinstance(value, list):
        hints_of = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return tuple(from_plain(one, item) for one, item in zip(hints_of, value, strict=True))
    if kind is dict and isinstance(value, dict):
        return {key: from_plain(inner[1], item) for key, item in value.items()}
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint is Any or (isinstance(hint, type) and type(value) is hint):
        return value
    raise ValueError(f"{value!r} is not of the type {hint}")


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    raise TypeError(f"{type(value).__name__} is not a plain value")


def _digest(content: Any) -> str:
    text = json.dumps(content, default=_plain)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _stamp_of_tree(root: Path) -> tuple[str, int]:
    """Return a hash of the names, sizes and times of all files, and the time of the newest.

    Files directly beside the folder count too: annotations and lists of classes may be there.

    Raises:
        OSError: If a folder cannot be listed.
    """
    digest, newest = hashlib.blake2b(digest_size=16), 0
    # Not normalized: where LINK/.. leads depends on the link.
    whole = root.absolute()
    todo, seen = [(str(whole.parent), False), (str(whole), True)], set()
    while todo:
        folder, is_deep = todo.pop()
        digest.update(b"%d" % is_deep + os.fsencode(folder) + b"\0")
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                try:
                    found = entry.stat()
                except OSError:  # A broken link.
                    found = entry.stat(follow_symlinks=False)
                digest.update(os.fsencode(entry.name) + b"\0")
                if not stat.S_ISDIR(found.st_mode):
                    times = found.st_mtime_ns, found.st_ctime_ns
                    newest = max(newest, *times)
                    digest.update(_STAMP.pack(found.st_size, *times, found.st_ino & (2**64 - 1)))
                elif is_deep and (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    todo.append((entry.path, True))
    return digest.hexdigest(), newest


def _stamp_of_package() -> str:
    """Return a hash of the sizes and times of our own modules, which an update changes."""
    found = sorted(Path(__file__).parents[1].rglob("*.py"))
    stamps = [(path.name, (now := path.stat()).st_size, now.st_mtime_ns) for path in found]
    return hashlib.blake2b(repr(stamps).encode(), digest_size=16).hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
