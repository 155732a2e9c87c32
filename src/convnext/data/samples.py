"""Labeled images: in folders or in memory here, in shards in `data.shards`.

`Samples` is a sequence by index with the same interface for every kind of storage. `BadImages`
counts images that cannot be read; `ImageCache` keeps decoded ones in memory.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from convnext.data.formats.paths import source_of
from convnext.data.images import (
    BadImage,
    Header,
    Mode,
    as_mode,
    content_of,
    decode,
    read_header,
    spread,
)
from convnext.data.ranges import (
    BandSample,
    ImageValues,
    PixelRange,
    band_sample,
    check_range,
    pixel_notes,
    pixel_range,
)
from convnext.data.threads import for_each
from convnext.hardware.system import free_memory

# Data is listed and checked without torch, which takes seconds to import and half a gigabyte.
if TYPE_CHECKING:
    from torch import Tensor

    from convnext.data.tensors import Box, Draw

S = TypeVar("S", bound=ImageValues)

# A cache may take this share of the memory that is free now.
BUDGET_SHARE = 0.5
# Assumed if the system does not report its free memory.
FALLBACK_MEMORY = 4 * 2**30

Pixels = NDArray[np.uint8]
Targets = NDArray[np.float32]
LabelKind = Literal["single", "multi", "soft"]
"""One label for each image, any number of labels, or a probability of every class."""


class ImageCache:
    """Images of different shapes, (H, W, C) or (C, H, W), one after the other.

    Forked worker processes read the same memory. For spawned ones, torch moves the block to shared
    memory when it sends them the data set.
    """

    def __init__(self, shapes: NDArray[np.int64]) -> None:
        """Reserve room for images of `shapes` (n, 3)."""
        import torch

        self.shapes = shapes
        self.ends = np.cumsum(shapes.prod(axis=1))
        self.block = torch.empty(int(self.ends[-1]), dtype=torch.uint8)
        self.bad: dict[int, str] = {}
        """The reason why an image is missing, by its index."""

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Pixels:
        """Return a view of an image, which must not be modified."""
        shape = self.shapes[index]
        end = int(self.ends[index])
        return self.block.numpy()[end - int(shape.prod()) : end].reshape(shape)

    def fill(self, load: Callable[[int], Pixels], *, console: Console | None = None) -> None:
        """Load all images in a few threads; those that raise BadImage are recorded in `bad`."""

        def load_one(index: int) -> None:
            try:
                self[index][...] = load(index)
            except BadImage as error:
                self.bad[index] = error.reason

        for_each(load_one, len(self), "reading images", console=console)

    def result(self, what: str, source: Callable[[int], str], more_bytes: int = 0) -> str:
        """Return a line for the user on what is cached, and on what could not be read.

        Args:
            what: Which images these are, such as "the training images".
            source: Returns the location of an image.
            more_bytes: Memory beside that of the images.
        """
        line = f"{what} are cached in memory ({(self.block.nbytes + more_bytes) / 1e6:,.3g} MB)"
        if not self.bad:
            return line
        first = min(self.bad)
        return (
            f"{line}, except {len(self.bad):,} of {len(self):,} that cannot be read (such as "
            f"{source(first)}: {self.bad[first]})"
        )


def memory_budget(workers: int = 0) -> int:
    """Return how many bytes a cache for `workers` processes may take on this machine now."""
    free = free_memory() or FALLBACK_MEMORY
    shm = Path("/dev/shm")
    if workers and not _forks() and shm.is_dir():  # Containers often have no more than 64 MB.
        free = min(free, shutil.disk_usage(shm).free)
    return int(free * BUDGET_SHARE)


def _forks() -> bool:
    """Tell whether worker processes will be forked, without fixing the start method."""
    chosen = multiprocessing.get_start_method(allow_none=True)
    return (chosen or multiprocessing.get_all_start_methods()[0]) == "fork"


class Samples(ABC):
    """A sequence of labeled images."""

    labels: Sequence[int]
    """Position of each image's class in `ClassificationData.classes`; with `targets`, see
    `strata_of`."""
    kind: LabelKind = "single"
    targets: Targets | None = None
    """(n, K): 1 for each label of an image, or the probability of every class; None for images of
    one label."""
    is_open_to_threads = False
    """Whether several threads may open images at once."""
    are_files = False
    """Whether `source` is the path of a file."""

    def __len__(self) -> int:
        return len(self.labels)

    def target(self, index: int) -> int | Targets:
        """Return what training is to predict: the label, or the row of `targets`."""
        return self.labels[index] if self.targets is None else self.targets[index]

    @abstractmethod
    def source(self, index: int) -> str:
        """Return the location of an image for messages: a path, `shard!member`, or a name."""

    @abstractmethod
    def open(self, index: int, mode: Mode, *, at_least: int | None = None) -> Image.Image:
        """Return an image; for `at_least` see `decode`.

        Raises:
            BadImage: If it cannot be read.
        """

    def open_crop(self, index: int, mode: Mode, *, draw: Draw, size: int) -> tuple[Tensor, Box]:
        """Return the pixels that a crop needs, and the crop; see `decode_crop`.

        Raises:
            BadImage: If it cannot be read.
        """
        from convnext.data.tensors import to_pixels

        image = self.open(index, mode)
        return to_pixels(image), draw(*image.size)

    @abstractmethod
    def header(self, index: int) -> Header:
        """Read the header of an image, without decoding it.

        Raises:
            BadImage: If it cannot be read.
        """

    @abstractmethod
    def num_bytes(self, index: int) -> int:
        """Return the size of an image file in bytes; 0 if it is gone."""

    @property
    def is_remote(self) -> bool:
        """Whether reading an image may first fetch it, together with many others."""
        return False

    @property
    def shard_sizes(self) -> Sequence[int] | None:
        """Number of images per shard, in order; None if images can be read in any order."""
        return None

    def substitute(self, index: int, error: BadImage) -> int:
        """Return the image that replaces one that cannot be read: the next of its class."""
        return int(self._next_of_class[index])

    def some(self, count: int, attempt: int = 0) -> list[int]:
        """Return up to `count` indices as a sample of all images, spread evenly or quick to read.

        If these cannot be read, another attempt returns others, until there are none left.
        """
        return [] if attempt else spread(len(self), count)

    def prefetch(self, shards: Iterable[int]) -> None:  # noqa: B027 - nothing, if all is local
        """Start fetching shards, in this order, if they are remote."""

    def read_ahead(self, index: int) -> None:  # noqa: B027
        """Start fetching the images after this one, in storage order, if they are remote."""

    @cached_property
    def _next_of_class(self) -> NDArray[np.int64]:
        """The next image of the same class for each image, cyclically."""
        following = np.zeros(len(self), np.int64)
        labels = np.asarray(self.labels)
        order = np.argsort(labels, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
            following[members] = np.roll(members, -1)
        return following


class FileSamples(Samples):
    """Images that are whole files, wherever these are stored."""

    names: list[str]
    """What to call each image; the endings, if any, are those of the files."""

    @abstractmethod
    def content(self, index: int) -> bytes:
        """Return the bytes of an image file.

        Raises:
            BadImage: If it cannot be read.
        """


class FolderSamples(FileSamples):
    """Image files below a folder."""

    is_open_to_threads = True
    are_files = True

    def __init__(self, root: Path, names: Sequence[str], labels: Sequence[int]) -> None:
        self.root = root
        self.names = list(names)
        self.labels = list(labels)

    def source(self, index: int) -> str:
        return str(self.root / self.names[index])

    def content(self, index: int) -> bytes:
        return content_of(self.source(index))

    def open(self, index: int, mode: Mode, *, at_least: int | None = None) -> Image.Image:
        return decode(self.source(index), mode=mode, at_least=at_least)

    def open_crop(self, index: int, mode: Mode, *, draw: Draw, size: int) -> tuple[Tensor, Box]:
        from convnext.data.tensors import decode_crop

        return decode_crop(self.source(index), mode=mode, draw=draw, size=size)

    def header(self, index: int) -> Header:
        return read_header(self.source(index))

    def num_bytes(self, index: int) -> int:
        path = Path(self.source(index))
        return path.stat().st_size if path.is_file() else 0


class ArraySamples(Samples):
    """Gray-scale images in memory."""

    def __init__(self, name: str, images: NDArray[np.uint8], labels: Sequence[int]) -> None:
        self.name = name
        self.images = images  # (n, H, W)
        self.labels = list(labels)

    def source(self, index: int) -> str:
        return f"{self.name}/{index:04d}"

    def open(self, index: int, mode: Mode, *, at_least: int | None = None) -> Image.Image:
        return as_mode(Image.fromarray(self.images[index]), mode)

    def header(self, index: int) -> Header:
        height, width = self.images[index].shape
        return Header(width=width, height=height, mode="L", format="array")

    def num_bytes(self, index: int) -> int:
        return int(self.images[index].nbytes)


@dataclass(frozen=True, kw_only=True)
class ImageListing:
    """The images below a path. `train` and `val` are positions in `keys` and `labels`."""

    root: Path | str
    classes: tuple[str, ...]
    keys: Sequence[str]
    """Names relative to the root."""
    labels: Sequence[int]
    train: Sequence[int]
    val: Sequence[int] | None
    """None if the data has no split of its own."""
    notes: tuple[str, ...]
    faults: tuple[str, ...]
    """See `ClassificationData`; not repeated in `notes`."""
    take: Callable[[Sequence[int]], Samples]
    """Returns some of the images as samples."""
    test: Sequence[int] | None = None
    """The images of a test split, which neither training nor validation uses."""
    layout: str = "class folders"
    split: str = ""
    """Where the split comes from; "" if there is none for validation."""
    groups: Sequence[str] = ()
    """The group of each image by a column of a table; empty if none is named."""
    kind: LabelKind = "single"
    targets: Targets | None = None
    """See `Samples.targets`; `take` passes them on."""

    def with_train(self, train: Sequence[int]) -> ImageListing:
        """Return the same with fewer training images."""
        return replace(self, train=train)


def taker(
    root: Path,
    keys: list[str],
    labels: list[int],
    kind: LabelKind = "single",
    targets: Targets | None = None,
) -> Callable[[Sequence[int]], Samples]:
    """Return a function that takes some of the images of a listing."""

    def take(which: Sequence[int]) -> Samples:
        found = FolderSamples(root, [keys[i] for i in which], [labels[i] for i in which])
        found.kind = kind
        found.targets = None if targets is None else targets[np.asarray(which, np.int64)]
        return found

    return take


def targets_of(rows: Sequence[Mapping[str, float]], classes: Sequence[str]) -> Targets:
    """Return the targets (n, K) of images, each with the values of some classes."""
    position = {name: c for c, name in enumerate(classes)}
    targets = np.zeros((len(rows), len(classes)), np.float32)
    for target, row in zip(targets, rows, strict=True):
        for name, value in row.items():
            target[position[name]] = value
    return targets


def strata_of(targets: Targets, kind: LabelKind) -> list[int]:
    """Return one class per image, for a split in which every class keeps its share.

    It is the most probable class, or the rarest label; images without any label are class K.
    """
    if kind == "soft":
        return [int(c) for c in targets.argmax(1)]
    counts = targets.sum(0)
    rarity = np.where(targets > 0, counts, np.inf)
    return [int(c) for c in np.where(targets.any(1), rarity.argmin(1), targets.shape[1])]


@dataclass(frozen=True, kw_only=True)
class SplitData(Generic[S]):
    """An opened data set with its split."""

    path: str
    classes: tuple[str, ...]
    train: S
    val: S
    test: S | None = None
    """Images that the data keeps for a test, outside of training and validation."""
    has_val: bool = True
    """Whether the data states its validation split; otherwise some images are held out."""
    given_range: tuple[float, ...] = ()
    """The range of 16-bit and float images that the user gives; () for that of the images."""
    notes: tuple[str, ...]
    """Notes for the user on how it was read."""

    @property
    def parts(self) -> dict[str, S]:
        """The images of each split that exists, by "train", "val" and "test"."""
        found = {"train": self.train, "val": self.val}
        return found if self.test is None else {**found, "test": self.test}

    @cached_property
    def pixel_range(self) -> PixelRange | None:
        """The range of the 16-bit and float training images, read once; None if there are none."""
        found = pixel_range(self.train)
        return found and replace(found, given=self.given_range)

    @cached_property
    def band_sample(self) -> BandSample | None:
        """Values of training images with several bands, read once; None if there are none.

        Raises:
            BadImage: If such images exist, but none can be read.
        """
        return band_sample(self.train)


D = TypeVar("D", bound=SplitData[Any])


def with_range(open_data: Callable[[], D], ranges: Sequence[float]) -> D:
    """Open a data set whose 16-bit and float images have the range that the user gives.

    Args:
        open_data: Opens it.
        ranges: Low and high, or such a pair for each band; () for the range of the images.

    Raises:
        ValueError: If the range is not one, or is that of other bands.
    """
    given = check_range(ranges)
    data = open_data()
    if given:
        data = replace(data, given_range=given)
        pixel_notes(data)  # Refuses other bands before all images are read.
    return data


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """The facts about data that `auto` uses. Sizes are medians over the training images."""

    num_train: int
    num_val: int
    num_classes: int
    image_height: int
    image_width: int
    grayscale: bool
    """Whether no image has colors."""
    pixel_range: tuple[float, ...] = ()
    """The range of 16-bit and float images; () if there are none."""
    pixel_sample: PixelRange | None = None
    """Some of their values; None if there are none."""
    bands: BandSample | None = None
    """Values of images with several bands; None if there are none."""

    @property
    def images(self) -> str:
        """The number of images in words."""
        return f"{self.num_train:,} training and {self.num_val:,} validation images"

    @property
    def size(self) -> str:
        """The size of images in words."""
        return f"about {self.image_width} x {self.image_height} pixels"


def check_share(val_share: float) -> None:
    """Check the fraction of images to hold out.

    Raises:
        ValueError: If it is not between 0 and 1.
    """
    if not 0 < val_share < 1:
        raise ValueError(f"val_share is {val_share}, but must be between 0 and 1")


def held_out(names: Sequence[str], share: float) -> set[str]:
    """Return the names with the smallest hashes: a share of them, at least one, never all.

    The result depends on the names alone, not on a seed or an order, and hardly changes when
    images are added. Augmented copies of one image stay together.
    """
    return {names[i] for i in held_out_positions(names, share)}


def hold_out_names(
    names: Sequence[str], share: float, pattern: str = ""
) -> tuple[set[str], list[str]]:
    """Return the names of unlabeled images that are held out, and notes for the user.

    Args:
        names: Paths of images.
        share: The share to hold out.
        pattern: Keeps images of one group together, as for `groups_of`.

    Raises:
        ValueError: If the pattern is found in no name, or no group can be held out.
    """
    if not pattern:
        return held_out(names, share), note_copies(names)
    groups = groups_of(names, pattern)
    places = held_out_groups(groups, [0] * len(names), share)
    return {names[i] for i in places}, [note_groups(groups, places)]


def held_out_positions(names: Sequence[str], share: float) -> list[int]:
    """Return the positions of the names that are held out, in the order of their hashes.

    Augmented copies of one image stay together: a group is held out as a whole, or not at all.
    """
    groups: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        groups.setdefault(source_of(name), []).append(position)
    ranked = sorted(
        groups, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    )
    count = max(1, round(share * len(names)))
    held: list[int] = []
    for name in ranked[:-1]:  # At least one group stays.
        if len(held) >= count:
            break
        held += groups[name]
    return held


def groups_of(names: Sequence[str], pattern: str) -> list[str]:
    """Return the group of each image, such as its patient, by a regular expression.

    The group is the first parenthesis of the expression, or all that it matches. Images whose names
    it is not found in are each a group, with their augmented copies.

    Args:
        names: The paths of the images relative to the data, with slashes.
        pattern: The expression, which is searched for anywhere in the path.

    Raises:
        ValueError: If it is not a regular expression, or is found in no name.
    """
    try:
        find = re.compile(pattern).search
    except re.error as error:
        raise ValueError(f"--group {pattern!r} is not a regular expression: {error}") from error
    found = [find(name) for name in names]
    if not any(found):
        raise ValueError(
            f"--group {pattern!r} is found in no path of an image, such as {names[0]!r}, and is "
            "not a column of a table"
        )
    return [
        f"/{source_of(name)}" if match is None else match[1 if match.re.groups else 0] or ""
        for name, match in zip(names, found, strict=True)
    ]


def held_out_groups(groups: Sequence[str], labels: Sequence[int], share: float) -> list[int]:
    """Return the positions of the images of the groups that are held out, in ascending order.

    Groups are tried in the order of their hashes, and are held out if this brings the number of
    held-out images of the classes nearer to a share of each. Every class keeps an image for
    training.

    Args:
        groups: The group of each image.
        labels: The label of each image; all 0 if they have none.
        share: The share of the images of each class.

    Raises:
        ValueError: If no group can be held out.
    """
    names, group_of = np.unique(np.asarray(groups, object).astype(str), return_inverse=True)
    label_of = np.asarray(labels, np.int64)
    total = np.bincount(label_of)
    order = np.argsort(group_of, kind="stable")
    starts = np.searchsorted(group_of[order], np.arange(len(names) + 1))
    hashes = [hashlib.sha256(n.encode("utf-8", "surrogateescape")).digest() for n in names.tolist()]
    missing = share * total
    left = total.copy()
    held: list[int] = []
    for number in sorted(range(len(names)), key=hashes.__getitem__):
        members = order[starts[number] : starts[number + 1]]
        counts = np.bincount(label_of[members], minlength=len(total))
        nearer = np.abs(missing).sum() - np.abs(missing - counts).sum()
        if nearer > 0 and (left - counts)[counts > 0].all():
            missing, left = missing - counts, left - counts
            held += members.tolist()
    if not held:
        count = f"{len(names):,} {'group' if len(names) == 1 else 'groups'}"
        raise ValueError(
            f"none of the {count} of images can be held out for validation: each is too large, or "
            "has all images of a class; split the data yourself, or group it otherwise"
        )
    return sorted(held)


def note_groups(groups: Sequence[str], held: Sequence[int]) -> str:
    """Return a note on a split that keeps groups together."""
    num_held = len({groups[i] for i in held})
    single = sum(name.startswith("/") for name in groups)
    alone = f"; {single:,} images are in no group" if single else ""
    return f"{num_held:,} of {len(set(groups)):,} groups of images are held out{alone}"


def straddling_groups(parts: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a fault if images of one group are in several splits of the data; [] otherwise.

    Args:
        parts: The group of each image of each split.
    """
    splits: dict[str, list[str]] = {}
    for split, groups in parts.items():
        for group in sorted(set(groups)):
            splits.setdefault(group, []).append(split)
    several = [group for group, found in splits.items() if len(found) > 1]
    if not several:
        return []
    where = " and ".join(splits[several[0]])
    return [
        f"groups of images that are in several splits of the data, so that scores are too high: "
        f"{len(several):,} of {len(splits):,} (such as {several[0]!r} in {where})"
    ]


def straddling_names(names: Mapping[str, Sequence[str]], pattern: str) -> list[str]:
    """Return a fault if images of one group, by a pattern of paths, are in several splits.

    Args:
        names: The paths of the images of each split.
        pattern: As for `groups_of`; "" for no groups.

    Raises:
        ValueError: If the pattern is found in no path.
    """
    if not pattern or not any(names.values()):
        return []
    groups = iter(groups_of([name for found in names.values() for name in found], pattern))
    return straddling_groups(
        {split: [next(groups) for _ in found] for split, found in names.items()}
    )


def num_copies(names: Sequence[str]) -> tuple[int, int]:
    """Return how many names are augmented copies, and of how many images."""
    sources = [source for name in names if (source := source_of(name)) != name]
    return len(sources), len(set(sources))


def note_copies(names: Sequence[str]) -> list[str]:
    """Return a note on augmented copies of images, for a split that we make; [] without any."""
    copies, sources = num_copies(names)
    if copies <= sources:
        return []
    return [
        f"{copies:,} images are augmented copies of {sources:,} by their names (.rf.): the copies "
        "of an image are in the same split"
    ]


class Sources(Protocol):
    """A sequence of images that knows the location of each."""

    def __len__(self) -> int: ...
    def source(self, index: int) -> str: ...


class BadImages:
    """The images of a split that could not be read, each counted once."""

    def __init__(self, samples: Sources, *, max_share: float) -> None:
        self.samples = samples
        self.found: dict[int, BadImage] = {}
        # A single bad image does not end a run on a small data set, unless none is allowed.
        self.max_bad = max(int(max_share * len(samples)), 1 if max_share > 0 else 0)

    def __len__(self) -> int:
        return len(self.found)

    def update(self, records: Iterable[tuple[int, str]]) -> list[BadImage]:
        """Add the bad images of a batch; return the new ones.

        Raises:
            ValueError: If more images are bad than allowed.
        """
        new = {i: BadImage(self.samples.source(i), r) for i, r in records if i not in self.found}
        self.found |= new
        if len(self.found) > self.max_bad:
            some = "; ".join(str(bad) for bad in list(self.found.values())[:5])
            needed = len(self.found) / len(self.samples)
            raise ValueError(
                f"{len(self.found):,} of {len(self.samples):,} images cannot be read, more than "
                f"the {self.max_bad:,} that are allowed: {some}. Fix or remove them (`convnext "
                f"data` lists all), or allow more with --loader.max_bad_share {needed + 0.01:.2f}"
            )
        return list(new.values())


def missing_files(images: Sources) -> list[tuple[int, str]]:
    """Return the images whose files do not exist, each with the reason.

    Images in shards, in archives and in memory are not files of their own, and are not checked.
    """
    if not getattr(images, "are_files", False):
        return []
    folders: dict[str, set[str]] = {}
    missing = []
    for i in range(len(images)):
        folder, name = os.path.split(images.source(i))
        if folder not in folders:
            try:
                folders[folder] = set(os.listdir(folder))
            except OSError:
                folders[folder] = set()
        # A file system may accept other spellings than it lists.
        if name not in folders[folder] and not os.path.exists(os.path.join(folder, name)):
            missing.append((i, "there is no such file"))
    return missing
