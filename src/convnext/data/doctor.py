"""What the data set reports of all tasks share: facts about images, duplicates, tables.

Every image is decoded once in full. The facts about it stay in the user's cache folder, so that an
unchanged file is not decoded again by the next report.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, Protocol, TypedDict, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from convnext.atomic import atomic_write
from convnext.data.bands import BandImage
from convnext.data.images import Header, as_mode, header_of, opened, upright
from convnext.data.threads import for_each
from convnext.hardware.tuning_cache import cache_folder
from convnext.progress import safe_console

BAR = 24
"""Length of the longest bar in characters."""
MAX_ROWS = 60
"""Maximum number of classes in a table."""
T = TypeVar("T")
Data = TypeVar("Data")
Job = TypeVar("Job")

# Two images look alike if at most this many of the 256 bits of their sketches differ.
ALIKE_BITS = 8
# Smaller images have no sketch, since it would have too little information.
SKETCH_PIXELS = 32
# Held-out images that are compared with all training images, unless all are asked for.
NUM_ALIKE = 5_000
NOT_DECODED = "(--no-cache decodes them)"
# How many pairs of sketches are compared at once: 64 MB.
MAX_PAIRS = 1_000_000
# Many images show in their first bytes that they are neither gray nor of one color.
_START = 3_000


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


_log = logging.getLogger("convnext")


class Comparable(Protocol):
    """Findings about an image that can be compared with another one."""

    @property
    def part(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def digest(self) -> bytes: ...
    @property
    def sketch(self) -> bytes: ...
    @property
    def is_blank(self) -> bool: ...


Item = TypeVar("Item", bound=Comparable)


@dataclass(frozen=True, kw_only=True)
class Alike(Generic[Item]):
    """Held-out images that look like a training image but have different pixels."""

    pairs: Sequence[tuple[Item, Item]]
    """A training image and a held-out image that looks like it."""
    note: str
    """What was compared, for the user."""


@contextlib.contextmanager
def listing(console: Console) -> Iterator[None]:
    """Tell on a terminal, within the block, that files and annotations are being listed."""
    if not console.is_terminal:
        yield
        return
    with console.status("listing files and annotations"):
        yield


@dataclass(frozen=True, kw_only=True)
class Scan(Generic[Item]):
    """Findings about all images of a data set."""

    inspected: Sequence[Item]
    alike: Alike[Item]
    num_cached: int = 0
    """Images whose facts came from the cache."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was compared, and what was not read again, for the user."""
        if not self.num_cached:
            return (self.alike.note,)
        total = len(self.inspected)
        what = "all" if self.num_cached == total else f"{self.num_cached:,} of {total:,}"
        cached = (
            f"{what} images are unchanged since an earlier report, and were not decoded again "
            f"{NOT_DECODED}"
        )
        return self.alike.note, cached


class ScanOptions(TypedDict, total=False):
    """How the images of a data set are read for a report."""

    deep: bool
    """Compare all held-out images with the training images, not only a sample; default False."""
    cache: bool
    """Do not decode images again that are unchanged since an earlier report; default True."""
    console: Console | None
    """Console of the progress bar; standard error by default."""


def open_and_scan(
    open_data: Callable[[], Data],
    scan: Callable[..., Scan[Item]],
    **how: Unpack[ScanOptions],
) -> tuple[Data, Scan[Item]]:
    """Return a data set, and the findings about all its images.

    Args:
        open_data: Lists the files and reads the annotations.
        scan: A task's `scan`: takes the data and `ScanOptions`.
        **how: As the fields say.
    """
    console = how.get("console") or safe_console(Console(stderr=True))
    with listing(console):
        data = open_data()
    return data, scan(data, **{**how, "console": console})


def scan(
    data: str | Path,
    jobs: Sequence[Job],
    read: Callable[[Job, FactsCache], Item],
    title: str,
    **how: Unpack[ScanOptions],
) -> Scan[Item]:
    """Read every image in threads, with a progress bar, and look for near duplicates.

    Args:
        data: The path of the data set.
        jobs: One for each image.
        read: Returns the findings about an image; called from several threads.
        title: The title of the progress bar.
        **how: As the fields say.
    """
    facts = FactsCache(data, enabled=how.get("cache", True))
    found = read_all(jobs, lambda job: read(job, facts), title, console=how.get("console"))
    facts.save()
    good = [item for item in found if not item.reason]
    train = [item for item in good if item.part == "train"]
    alike = find_alike(
        train,
        [item for item in good if item.part != "train"],
        deep=how.get("deep", False),
    )
    return Scan(inspected=found, alike=alike, num_cached=facts.num_found)


def find_alike(train: Sequence[Item], held: Sequence[Item], *, deep: bool) -> Alike[Item]:
    """Compare held-out images with all training images.

    Each held-out image is paired with the training image that is most like it. Copies, small images
    and images of one color are left out.

    Args:
        train: Findings about readable training images.
        held: Findings about other readable images.
        deep: Compare all of them, rather than `NUM_ALIKE` that are spread evenly.
    """
    exact = {item.digest for item in train}
    first = [item for item in train if item.sketch and not item.is_blank]
    second = [i for i in held if i.sketch and not i.is_blank and i.digest not in exact]
    total = len(second)
    if not deep and total > NUM_ALIKE:
        second = [second[position * total // NUM_ALIKE] for position in range(NUM_ALIKE)]
    nearest = find_nearest(_sketches(first), _sketches(second))
    pairs = [
        (first[position], item)
        for position, item in zip(nearest.tolist(), second, strict=True)
        if position >= 0
    ]
    what = f"{len(second):,} of {total:,}" if len(second) < total else f"all {total:,}"
    num_left = len(train) + len(held) - len(first) - total
    left = f" ({num_left:,} copies, small and single-colored images aside)" if num_left else ""
    note = (
        f"duplicates: the pixels of all {len(train) + len(held):,} readable images were compared; "
        f"near duplicates: {what} held-out images were compared with {len(first):,} training "
        f"images{left}" + ("; --deep compares all" if len(second) < total else "")
    )
    return Alike(pairs=pairs, note=note)


def _sketches(items: Sequence[Comparable]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(item.sketch for item in items), np.uint8).reshape(-1, 32)


def find_nearest(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the most similar row of `first` (N, 32) for each of `second` (M, 32); -1 if none is.

    Rows that differ in at most `ALIKE_BITS` bits have one of `ALIKE_BITS + 1` groups of bits in
    common, so that only rows with a common group are compared. Of equally similar rows it is the
    first one.
    """
    num_groups = ALIKE_BITS + 1
    # A distance and a row as one number, so that the smallest is the first of the most similar.
    none = (ALIKE_BITS + 1) << 40
    best = np.full(len(second), none, np.int64)
    ours, theirs = first.view(np.uint64), second.view(np.uint64)
    for group in range(num_groups):
        keys, wanted = _bits(first, group, num_groups), _bits(second, group, num_groups)
        order = keys.argsort(kind="stable")
        keys = keys[order]
        low, high = keys.searchsorted(wanted), keys.searchsorted(wanted, "right")
        counts = high - low
        ends = counts.cumsum()
        starts = ends - counts
        start = 0
        while start < len(second):
            # At least one row, and as many as give a bounded number of pairs.
            before = int(starts[start])
            stop = max(int(ends.searchsorted(before + MAX_PAIRS, "right")), start + 1)
            rows = np.arange(start, stop).repeat(counts[start:stop])
            pairs = np.arange(before, before + len(rows))
            candidates = order[low[rows] + pairs - starts[rows]]
            distances = np.bitwise_count(ours[candidates] ^ theirs[rows]).sum(1, dtype=np.int64)
            np.minimum.at(best, rows, (distances << 40) | candidates)
            start = stop
    return np.where(best < none, best & ((1 << 40) - 1), -1)


def _bits(sketches: NDArray[np.uint8], group: int, num_groups: int) -> NDArray[np.uint32]:
    """Return every `num_groups`-th bit of each sketch as a number."""
    found = np.zeros(len(sketches), np.uint32)
    for start in range(0, len(sketches), 65_536):
        bits = np.unpackbits(sketches[start : start + 65_536], axis=1)[:, group::num_groups]
        packed = np.packbits(bits, axis=1)
        found[start : start + 65_536] = np.ascontiguousarray(packed).view(np.uint32)[:, 0]
    return found


def read_all(
    jobs: Sequence[Job], read: Callable[[Job], T], title: str, *, console: Console | None = None
) -> list[T]:
    """Return the result of `read` for every job, in order, with a few threads and a bar."""
    found: dict[int, T] = {}

    def read_one(number: int) -> None:
        found[number] = read(jobs[number])

    for_each(read_one, len(jobs), title, console=console)
    return [found[number] for number in range(len(jobs))]


def plain_table(first: str, *others: str) -> Table:
    """Return a table without lines: a column of names, shortened if needed, then numbers."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column(first, overflow="ellipsis", max_width=30, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table


def class_table(columns: Sequence[str], rows: Sequence[tuple[str, float, Sequence[str]]]) -> Table:
    """Return a table with a row per class: its name, cells, and a bar for its number."""
    table = plain_table("class", *columns)
    table.add_column("")
    largest = max((value for _, value, _ in rows), default=0)
    for name, value, cells in rows[:MAX_ROWS]:
        table.add_row(escape(name), *cells, bar(value, largest))
    if len(rows) > MAX_ROWS:
        table.caption = f"the first {MAX_ROWS} of {len(rows):,} classes"
    return table


def bar(value: float, largest: float) -> str:
    """Return a bar that is longest for `largest`, and never empty for a value above 0."""
    return "█" * max(round(BAR * value / (largest or 1)), 1 if value else 0)


def print_notes(notes: Iterable[str], console: Console) -> None:
    """Print notes on how the data was read."""
    for note in notes:
        console.print(f"note: {note}", markup=False)


def list_sizes(sizes: Mapping[str, int]) -> str:
    """Return the most frequent sizes and the number of other sizes."""
    common = list(sizes.items())
    more = f", and {len(common) - 4:,} other sizes" if len(common) > 4 else ""
    return ", ".join(f"{size} ({count:,})" for size, count in common[:4]) + more


def print_numbered(lines: Iterable[str], console: Console) -> None:
    """Print numbered lines."""
    for number, line in enumerate(lines, 1):
        console.print(f" {number}. {line}", markup=False, soft_wrap=True)
