"""WebDataset shards: where every sample lies in a tar file, found once, so that any can be read.

A sample is the members that share a name up to the first dot: one image and `.cls` (a number, or a
name of classes.txt) or `.json` (the same under "label"). Nothing that a tar header says is
believed: a member counts only if the file really holds all of it.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from convnext.data.images import readable_extensions

# A label file or a description is not longer than this.
MAX_LABEL_BYTES = 1_000_000
# What stands before every file in a tar.
HEADER_BYTES = 512


@dataclass(frozen=True)
class Member:
    """A file inside a tar, by its place."""

    shard: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes, fewer if the tar has been cut since."""
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.shard}!{self.name}"


@dataclass
class ShardIndex:
    """What one tar file holds."""

    images: list[Member] = field(default_factory=list)
    labels: list[int | str] = field(default_factory=list)
    """As they stand in the file: a number or a name."""
    faults: list[str] = field(default_factory=list)
    """What was left out and why, one line each."""


# What tarfile raises for headers that are none, or that nest without end.
_DAMAGE = (tarfile.TarError, OSError, ValueError, OverflowError, EOFError, RecursionError)


def index_shard(shard: Path, *, title: str = "") -> ShardIndex:
    """Return the complete samples of a tar file, and what else is to be said about it.

    `title` is its name in messages, where that is not the name of the file.
    """
    title = title or shard.name
    index = ShardIndex()
    group: dict[str, Member] = {}
    last_key = None
    unlabelled: list[str] = []

    def close() -> None:
        image = next((group[e] for e in group if f".{e.rpartition('.')[2]}" in endings), None)
        label = _label(group)
        if image is not None and label is not None:
            index.images.append(image)
            index.labels.append(label)
        elif image is not None:
            unlabelled.append(image.name)
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
    if unlabelled:
        index.faults.append(
            f"images in {title} without a readable .cls or .json, left out: "
            f"{len(unlabelled):,} (such as {unlabelled[0]})"
        )
    return index


def members(shard: Path, faults: list[str], *, title: str) -> Iterator[Member]:
    """Yield the regular files that a tar holds completely; tell `faults` why it stopped early."""
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
                # Past its first header, tarfile takes a damaged one for the end of the archive.
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
    """A file that never reads past its end, whatever length a damaged header asks for."""

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
    """Return the label of a sample, or None if it has none that can be read."""
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
