"""What the data set reports of all tasks share: reading of images, duplicates, tables.

Every image is decoded once in full.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypedDict, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from convnext.data.drawing import Shown, crossed_out, with_pairs
from convnext.data.facts import NOT_DECODED, FactsCache
from convnext.data.images import BadImage, Mode
from convnext.data.threads import for_each
from convnext.names import count_noun
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
# Held-out images that are compared with all training images, unless all are asked for.
NUM_ALIKE = 5_000
# How many pairs of sketches are compared at once: 64 MB.
MAX_PAIRS = 1_000_000


class Comparable(Protocol):
    """Findings about an image that can be compared with another one."""

    @property
    def part(self) -> str: ...
    @property
    def source(self) -> str: ...
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


NUM_SHOWN = 8
"""Pairs of near duplicates on a contact sheet."""
SPLITS = {"train": "training", "val": "validation", "test": "test"}


class Openable(Protocol):
    """The images of a split."""

    def __len__(self) -> int: ...
    def source(self, index: int) -> str: ...
    def open(self, index: int, mode: Mode) -> Image.Image: ...


def alike_advice(*, has_val: bool) -> str:
    """Return what to do about near duplicates across splits.

    Args:
        has_val: Whether the data states its split.
    """
    advice = "--contact-sheet PNG shows them side by side"
    if has_val:
        return advice
    return f"{advice}, and --group keeps images of one patient or place in one split"


def with_alike(
    page: Image.Image,
    alike: Alike[Item],
    parts: Mapping[str, Openable],
    mode: Mode,
    root: str,
) -> Image.Image:
    """Return a contact sheet with the near duplicates of a report above it, side by side.

    Args:
        page: The contact sheet.
        alike: What the report found.
        parts: The images of each split.
        mode: The mode to open them in.
        root: The path of the data set, which is left out of the names.
    """
    pairs = alike.pairs[:NUM_SHOWN]
    if not pairs:
        return page
    wanted = {(item.part, item.source) for pair in pairs for item in pair}
    places = {
        place: index
        for part, images in parts.items()
        for index in range(len(images))
        if (place := (part, images.source(index))) in wanted
    }

    def shown(item: Item) -> Shown:
        try:
            image = parts[item.part].open(places[item.part, item.source], mode)
        except BadImage:  # It has changed since it was read.
            image = crossed_out(page.width // 4)
        path = item.source.removeprefix(root).lstrip("/\\") or item.source
        return Shown(image, SPLITS[item.part], path)

    total = count_noun(len(alike.pairs), "pair")
    title = f"images of two splits that look alike, {len(pairs)} of {total}"
    return with_pairs(page, title, [(shown(a), shown(b)) for a, b in pairs])


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
