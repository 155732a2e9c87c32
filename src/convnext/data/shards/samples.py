"""Images in tar files, local or remote, read by position; compact for tens of millions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.images import BadImage, Header, Mode, decode, read_header, spread
from convnext.data.samples import Samples
from convnext.data.shards.index import (
    HEADER_BYTES,
    Places,
    is_header_of,
    name_at,
    read_names,
    unpack_names,
)
from convnext.data.shards.store import Remote, Store

if TYPE_CHECKING:
    from torch import Tensor

    from convnext.data.tensors import Box, Draw

# How often a remote shard is fetched again if it was removed before it was read.
TRIES = 3


class BadShard(BadImage):
    """An image that cannot be read, perhaps only temporarily, because its shard cannot."""


class CutShard(BadImage):
    """An image beyond the end of a shard that is truncated, perhaps only temporarily."""

    def __init__(self, source: str, reason: str, num_bytes: int) -> None:
        super().__init__(source, reason)
        self.num_bytes = num_bytes
        """The size of the truncated shard."""


class Numbers(Sequence[int]):
    """An array as a sequence of plain int."""

    def __init__(self, values: NDArray[np.integer]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> Numbers: ...

    def __getitem__(self, index: int | slice) -> int | Numbers:
        return Numbers(self.values[index]) if isinstance(index, slice) else int(self.values[index])

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self.values), 65_536):
            yield from self.values[start : start + 65_536].tolist()

    def __array__(
        self, dtype: np.dtype[np.generic] | None = None, copy: bool | None = None
    ) -> NDArray[np.generic]:
        return np.array(self.values, dtype=dtype, copy=copy)


def base_name(title: str) -> str:
    """Return the name of a shard without its location."""
    return title.rpartition("/")[2] if "://" in title else Path(title).name


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A tar file and the places of its images."""

    title: str
    """Its path or URL."""
    part: str
    """"train" or "val"."""
    file: Path | Remote
    places: Places
    index: Path | None = None
    """The `.idx` with the names, if `places` does not have them."""

    @property
    def name(self) -> str:
        """The name of the file alone."""
        return base_name(self.title)

    def names(self) -> bytes:
        """Return the names of its images, packed."""
        return self.places.names if self.index is None else read_names(self.index)


class ShardSamples(Samples):
    """Images of shards, in the order of the shards.

    Args:
        shards: The shards.
        store: The store of copies of remote shards.
    """

    def __init__(self, shards: Sequence[Shard], *, store: Store | None = None) -> None:
        self.store = store
        self.shards = list(shards)
        places = [shard.places for shard in shards]
        self._starts = np.cumsum([0, *map(len, places)])
        self._offsets = np.concatenate([np.empty(0, np.int64), *(p.offsets for p in places)])
        self._sizes = np.concatenate([np.empty(0, np.int64), *(p.sizes for p in places)])
        labels = np.concatenate([np.empty(0, np.int32), *(p.labels for p in places)])
        self.labels = Numbers(labels)
        # Position of each image in its shard.
        self._numbers = np.arange(len(labels), dtype=np.int32)
        self._numbers -= np.repeat(self._starts[:-1], np.diff(self._starts)).astype(np.int32)
        self._names: tuple[int, list[str]] = (-1, [])

    def take(self, which: Sequence[int]) -> ShardSamples:
        """Return some of the images, given in ascending order."""
        if isinstance(which, range):
            where = np.arange(which.start, which.stop, which.step)
        else:
            where = np.asarray(which, dtype=np.int64)
        shard_of = np.searchsorted(self._starts, where, side="right") - 1
        used, sizes = np.unique(shard_of, return_counts=True)
        taken = ShardSamples((), store=self.store)
        taken.shards = [self.shards[number] for number in used.tolist()]
        taken._starts = np.cumsum([0, *sizes.tolist()])
        taken._offsets, taken._sizes = self._offsets[where], self._sizes[where]
        taken._numbers = self._numbers[where]
        taken.labels = Numbers(np.asarray(self.labels)[where])
        return taken

    @property
    def is_remote(self) -> bool:
        """Whether any shard must be fetched before it can be read."""
        return any(isinstance(shard.file, Remote) for shard in self.shards)

    @property
    def shard_sizes(self) -> Sequence[int] | None:
        """Number of images per shard; None if all are local, so that any order is fine."""
        return tuple(np.diff(self._starts).tolist()) if self.is_remote else None

    def shard_of(self, index: int) -> int:
        """Return the position in `shards` of the shard of an image."""
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def key(self, index: int) -> str:
        """Return `shard!member`, without the location of the shard."""
        return f"{self.shards[self.shard_of(index)].name}!{self._name(index)}"

    def source(self, index: int) -> str:
        return f"{self.shards[self.shard_of(index)].title}!{self._name(index)}"

    def open(self, index: int, mode: Mode, *, at_least: int | None = None) -> Image.Image:
        content = self._bytes(index)
        try:
            return decode(content, mode=mode, at_least=at_least, source="")
        except BadImage as error:
            raise BadImage(self.source(index), error.reason) from error

    def open_crop(self, index: int, mode: Mode, *, draw: Draw, size: int) -> tuple[Tensor, Box]:
        from convnext.data.tensors import decode_crop

        content = self._bytes(index)
        try:
            return decode_crop(content, mode=mode, draw=draw, size=size, source="")
        except BadImage as error:
            raise BadImage(self.source(index), error.reason) from error

    def header(self, index: int) -> Header:
        return read_header(self._bytes(index), source=self.source(index))

    def num_bytes(self, index: int) -> int:
        return int(self._sizes[index])

    def substitute(self, index: int, error: BadImage) -> int:
        """Return the next image in storage order, or one from a shard that is available.

        An image of another class from an available shard does less harm than fetching a shard for
        an image of the same class.
        """
        shard = self.shard_of(index)
        if isinstance(error, CutShard):
            start, stop = self._starts[shard : shard + 2].tolist()
            ends = self._offsets[start:stop] + self._sizes[start:stop]
            whole = int(np.count_nonzero(ends <= error.num_bytes))
            if whole:
                return int(start + (index - start) % whole)
        elif not isinstance(error, BadShard):
            return (index + 1) % len(self)
        following = (shard + 1) % len(self.shards)
        start, stop = self._starts[following : following + 2].tolist()
        return int(start + (index - self._starts[shard]) % (stop - start))

    def some(self, count: int, attempt: int = 0) -> list[int]:
        """Return images spread evenly; if shards are remote, those of two shards per attempt."""
        if not self.is_remote:
            return super().some(count, attempt)
        bounds = self._starts[2 * attempt : 2 * attempt + 3]
        if len(bounds) < 2:
            return []
        first = int(bounds[0])
        return [first + i for i in spread(int(bounds[-1]) - first, count)]

    def prefetch(self, shards: Iterable[int]) -> None:
        files = (self.shards[number].file for number in shards if number < len(self.shards))
        if self.store is not None:
            self.store.prefetch(file for file in files if isinstance(file, Remote))

    def read_ahead(self, index: int) -> None:
        shard = self.shard_of(index)
        self.prefetch(range(shard, shard + 3))

    def _name(self, index: int) -> str:
        shard = self.shard_of(index)
        known, names = self._names
        if known != shard:
            names = unpack_names(self.shards[shard].names())
            self._names = (shard, names)
        return name_at(names, int(self._numbers[index]))

    def _bytes(self, index: int) -> bytes:
        """Return the bytes of an image file.

        Raises:
            BadShard: If the shard cannot be fetched or opened, or is not the one that was indexed.
            CutShard: If it ends before the image does.
        """
        size, offset = int(self._sizes[index]), int(self._offsets[index])
        content, before, length = b"", b"", 0
        for attempt in range(TRIES):
            try:
                with self._path(index).open("rb") as file:
                    length = os.fstat(file.fileno()).st_size
                    if offset + size <= length:
                        file.seek(offset - HEADER_BYTES)
                        before = file.read(HEADER_BYTES)
                        content = file.read(size)
                break
            except OSError as error:
                was_removed = isinstance(error, FileNotFoundError) and self.store is not None
                if was_removed and attempt + 1 < TRIES:
                    continue
                reason = f"the shard cannot be read ({error})"
                raise BadShard(self.source(index), reason) from error
        if offset + size > length:
            reason = f"the shard ends after {max(length - offset, 0):,} of its {size:,} bytes"
            raise CutShard(self.source(index), reason, length)
        if not is_header_of(before, size):
            raise BadShard(self.source(index), "the shard is not the one that was indexed")
        return content

    def _path(self, index: int) -> Path:
        file = self.shards[self.shard_of(index)].file
        if isinstance(file, Path):
            return file
        assert self.store is not None, "remote shards need a store"
        return self.store.get(file)


class Keys(Sequence[str]):
    """The keys of shard samples, made on demand."""

    def __init__(self, samples: ShardSamples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._samples.key(i) for i in range(*index.indices(len(self)))]
        return self._samples.key(index)
