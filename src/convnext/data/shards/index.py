"""The index of a folder of shards, which makes it unnecessary to read every tar.

`shards.json` lists the classes and the shards of each split. Next to every `NAME.tar` there is a
`NAME.idx` with the place and the label of each of its images:

    8 bytes     "CNVXIDX1"
    3 x uint64  number of images n, length of the names in bytes, length of the tar in bytes
    32 bytes    SHA-256 of the tar; zeros if it is not known
    n x int64   where each image begins in the tar
    n x int64   how many bytes it has
    n x int32   its class
    names       UTF-8, separated by zero bytes

All numbers are little-endian. An index may come from anywhere: an entry is refused if it points
outside a tar, to a class that is not listed, or to more memory than the file is long.

Tars without an index are read once. A sample consists of the members that share a name up to the
first dot: one image and `.cls` (a number, or a name in classes.txt) or `.json` (the same under
"label"). A member counts only if the file holds all of it.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from convnext.atomic import atomic_write, write_text
from convnext.data.images import readable_extensions

FILE = "shards.json"
# The plan of a conversion, which is written first; `FILE` is written last.
PLAN = ".plan.json"
FORMAT = "convnext shards 1"
# A larger label is damage, not a class.
MAX_CLASSES = 100_000
# A list of a million shards is shorter than this.
MAX_BYTES = 300_000_000

_MAGIC = b"CNVXIDX1"
_HEAD = struct.Struct("<8sQQQ32s")


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A shard in `shards.json`."""

    name: str
    """Its file, relative to the folder, or its URL."""
    num_images: int
    num_bytes: int
    sha256: str = ""
    """The SHA-256 of the tar as hexadecimal digits; empty if it is not known."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The contents of `shards.json`."""

    classes: tuple[str, ...]
    parts: Mapping[str, tuple[Listed, ...]]
    """"train" and perhaps "val"."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """The places and the labels of the images in one shard."""

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int32]
    names: bytes
    """The result of `pack_names`; empty if the names are read on demand."""
    num_bytes: int
    """The size of the tar."""
    sha256: str = ""

    def __len__(self) -> int:
        return len(self.offsets)


def pack_names(names: Sequence[str]) -> bytes:
    """Return names in the format of the index."""
    return "\0".join(names).encode("utf-8", "surrogateescape")


def name_at(names: Sequence[str], number: int) -> str:
    """Return a name, or the number if an index has fewer names than images."""
    return names[number] if number < len(names) else f"image {number}"


def unpack_names(names: bytes) -> list[str]:
    """Return the names that `pack_names` packed."""
    return names.decode("utf-8", "surrogateescape").split("\0")


def write_places(path: Path, places: Places) -> None:
    """Write the `.idx` of a shard."""
    head = _HEAD.pack(
        _MAGIC,
        len(places),
        len(places.names),
        places.num_bytes,
        bytes.fromhex(places.sha256) if places.sha256 else bytes(32),
    )
    arrays = (places.offsets.astype("<i8"), places.sizes.astype("<i8"), places.labels.astype("<i4"))
    with atomic_write(path) as temporary:
        temporary.write_bytes(head + b"".join(a.tobytes() for a in arrays) + places.names)


def read_places(path: Path, *, num_classes: int, with_names: bool = False) -> Places:
    """Read the `.idx` of a shard; the names only `with_names`.

    Raises:
        ValueError: If it is not such a file, or is inconsistent.
        OSError: If it cannot be read.
    """
    content = path.read_bytes()
    if len(content) < _HEAD.size or not content.startswith(_MAGIC):
        raise ValueError(f"{path} is not the index of a shard")
    _, n, names_size, num_bytes, digest = _HEAD.unpack_from(content)
    if len(content) != _HEAD.size + 20 * n + names_size or num_bytes >= 2**63:
        raise ValueError(f"{path} is cut off or damaged")
    start = _HEAD.size
    offsets = np.frombuffer(content, "<i8", n, start)
    sizes = np.frombuffer(content, "<i8", n, start + 8 * n)
    labels = np.frombuffer(content, "<i4", n, start + 16 * n)
    if n and (
        offsets.min() < 0
        or sizes.min() < 0
        or (offsets > num_bytes).any()
        or (sizes > num_bytes - offsets).any()
    ):
        raise ValueError(f"{path} names places outside of the shard")
    if n and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(f"{path} has labels beyond the {num_classes:,} classes")
    return Places(
        offsets=offsets.astype(np.int64),
        sizes=sizes.astype(np.int64),
        labels=labels.astype(np.int32),
        names=content[start + 20 * n :] if with_names else b"",
        num_bytes=num_bytes,
        sha256=digest.hex() if any(digest) else "",
    )


def read_names(path: Path) -> bytes:
    """Read the packed names of an `.idx`; empty if it is gone, as only messages use them."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD.size)
            file.seek(_HEAD.size + 20 * int(_HEAD.unpack(head)[1]))
            return file.read()
    except (OSError, struct.error, OverflowError):
        return b""


def write_listing(path: Path, listing: Listing) -> None:
    """Write `shards.json`."""
    tree = {"format": FORMAT} | asdict(listing)
    text = json.dumps(tree, indent=1, ensure_ascii=False) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError:  # A name that is not UTF-8 is carried as an escape.
        text = json.dumps(tree, indent=1) + "\n"
    write_text(path, text)


def read_listing(path: Path, *, source: str = "") -> Listing:
    """Read `shards.json`; `source` is its name in messages.

    Raises:
        ValueError: If it is not such a file, or is inconsistent.
        OSError: If it cannot be read.
    """
    source = source or str(path)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{source} is larger than {MAX_BYTES:,} bytes, which is refused")
    try:
        tree = json.loads(path.read_bytes())
        if tree["format"] != FORMAT:
            raise ValueError(f"its format is {tree['format']!r}, but must be {FORMAT!r}")
        classes = tuple(_checked(name, str) for name in _checked(tree["classes"], list))
        parts = {
            part: tuple(_listed(entry) for entry in _checked(tree["parts"][part], list))
            for part in ("train", "val", "test")
            if part in tree["parts"]
        }
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"there is no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{source} is not an index of shards ({why}); write one with "
            "`convnext data FOLDER --to-shards DIR`"
        ) from error
    if len(classes) > MAX_CLASSES or len(set(classes)) < len(classes):
        raise ValueError(f"{source} lists a class twice, or more than {MAX_CLASSES:,} classes")
    return Listing(classes=classes, parts=parts)


def index_name(shard: str) -> str:
    """Return the name of the `.idx` of a shard."""
    return f"{shard.removesuffix('.tar')}.idx"


def _listed(entry: Any) -> Listed:
    entry = _checked(entry, dict)
    listed = Listed(
        name=_checked(entry["name"], str),
        num_images=_checked(entry["num_images"], int),
        num_bytes=_checked(entry["num_bytes"], int),
        sha256=_checked(entry.get("sha256", ""), str).lower(),
    )
    parts = listed.name.split("/")
    if "://" not in listed.name and (not all(parts) or ".." in parts or "\\" in listed.name):
        raise ValueError(f"the shard {listed.name!r} lies outside of the folder")
    if not (0 <= listed.num_images < 2**63 and 0 <= listed.num_bytes < 2**63):
        raise ValueError(f"the shard {listed.name!r} has an impossible size")
    if listed.sha256 and len(bytes.fromhex(listed.sha256)) != 32:
        raise ValueError(f"the SHA-256 of the shard {listed.name!r} is invalid")
    return listed


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{str(value)[:40]!r} must be of type {kind.__name__}")
    return value


# Maximum size of a label file or a description.
MAX_LABEL_BYTES = 1_000_000
# Size of the header of every file in a tar.
HEADER_BYTES = 512


@dataclass(frozen=True)
class Member:
    """A file inside a tar, by its place."""

    shard: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes, fewer if the tar has been truncated since."""
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.shard}!{self.name}"


@dataclass
class ShardIndex:
    """The contents of one tar file."""

    images: list[Member] = field(default_factory=list)
    labels: list[int | str] = field(default_factory=list)
    """Labels as in the file: numbers or names."""
    faults: list[str] = field(default_factory=list)
    """What was left out, and why, one line each."""


# Raised by tarfile for invalid headers, or headers that nest without end.
_DAMAGE = (tarfile.TarError, OSError, ValueError, OverflowError, EOFError, RecursionError)


def index_shard(shard: Path, *, title: str = "") -> ShardIndex:
    """Return the complete samples of a tar file, and its faults.

    `title` is its name in messages, if that is not the name of the file.
    """
    title = title or shard.name
    index = ShardIndex()
    group: dict[str, Member] = {}
    last_key = None
    unlabeled: list[str] = []

    def close() -> None:
        image = next((group[e] for e in group if f".{e.rpartition('.')[2]}" in endings), None)
        label = _label(group)
        if image is not None and label is not None:
            index.images.append(image)
            index.labels.append(label)
        elif image is not None:
            unlabeled.append(image.name)
        group.clear()

    endings = readable_extensions()
    for member in members(shard, index.faults, title=title):
        folder, _, base = member.name.rpartition("/")
        if base.startswith("."):
            continue
        stem, _, ending = base.partition(".")
        key = f"{folder}/{stem}"
        if key != last_key:
            close()
            last_key = key
        group[ending.lower()] = member
    close()
    if unlabeled:
        index.faults.append(
            f"images in {title} without a readable .cls or .json, left out: "
            f"{len(unlabeled):,} (such as {unlabeled[0]})"
        )
    return index


def members(shard: Path, faults: list[str], *, title: str) -> Iterator[Member]:
    """Yield the complete regular files of a tar; add to `faults` why it stopped early."""
    size = shard.stat().st_size
    count = 0
    with shard.open("rb") as file:
        try:
            with tarfile.open(fileobj=_Bounded(file, size), mode="r:") as tar:
                for info in tar:
                    end = info.offset_data + info.size
                    if info.size < 0 or end > size:
                        faults.append(
                            f"{title}: {info.name!r} declares {info.size:,} bytes, but the "
                            f"file ends after {max(size - info.offset_data, 0):,} of them; it and "
                            f"what follows are left out, {count:,} files before it are used"
                        )
                        return
                    if info.isreg() and not info.issparse():
                        count += 1
                        yield Member(shard, info.name, info.offset_data, info.size)
                # After the first header, tarfile treats a damaged one as the end of the archive.
                file.seek(min(tar.offset, size))
                rest = file.read(512)
                if not rest or rest.strip(b"\0"):
                    what = "is damaged there" if rest else "has no end mark"
                    faults.append(
                        f"{title}: read up to byte {tar.offset:,} of {size:,} ({count:,} "
                        f"files); the tar {what}, and may have held more"
                    )
        except _DAMAGE as error:
            faults.append(
                f"{title}: damaged or cut off after {count:,} files, which are used ({error})"
            )


def is_header_of(header: bytes, size: int) -> bool:
    """Tell whether 512 bytes of a tar are the header of a file of `size` bytes."""
    digits = header[124:136].strip(b"\0 ")
    return header[257:262] == b"ustar" and digits == f"{size:o}".zfill(len(digits)).encode()


class _Bounded(io.RawIOBase):
    """A file that never reads past its end, whatever length a damaged header declares."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def read(self, size: int = -1, /) -> bytes:
        left = max(self._size - self._file.tell(), 0)
        return self._file.read(left if size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _label(group: dict[str, Member]) -> int | str | None:
    """Return the label of a sample, or None if it has no valid one."""
    if "cls" in group and group["cls"].size <= MAX_LABEL_BYTES:
        return _number_or_name(group["cls"].read().decode("utf-8", "replace").strip())
    if "json" in group and group["json"].size <= MAX_LABEL_BYTES:
        try:
            value = json.loads(group["json"].read())["label"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        if isinstance(value, bool) or not isinstance(value, int | str):
            return None
        return _number_or_name(str(value))
    return None


def _number_or_name(text: str) -> int | str | None:
    if text.isdecimal() and len(text) < 10:
        return int(text)
    return text or None
