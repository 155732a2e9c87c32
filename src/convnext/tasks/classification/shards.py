"""Conversion of labeled images to WebDataset shards: `convnext data FOLDER --to-shards DIR`.

    DIR/train-000000.tar ...  val-000000.tar ...    an image and its class number per sample
    DIR/train-000000.idx ...                        the position of each image in its shard
    DIR/classes.txt  shards.json                    class names; the shards of each part

Training images are shuffled once with a fixed seed, so that every shard is a mixture. Files are
copied unchanged unless they are resized. The same folder gives the same bytes.

The assignment of images to shards is planned before any image is read. An interrupted conversion
resumes and keeps complete shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from convnext.atomic import only_writer, remove_temporary_files, write_text
from convnext.data.samples import FileSamples
from convnext.data.shards import index as shard_index
from convnext.data.shards.index import PLAN, Listed, index_name
from convnext.data.shards.layout import (
    Planned,
    missing_images,
    plan_shards,
    size_scale,
    write_shard,
)
from convnext.names import count_noun
from convnext.tasks.classification.data import ClassificationData, Reading, open_as

# Megabytes per shard: large enough for efficient sequential reads, small enough to fetch a window
# of several per lane in seconds.
SHARD_MB = 128
# Marks a folder of shards, and is locked while a process writes it.
MARK = ".convnext-shards"
OWN_FILES = r"((train|val|test)-\d+\.(tar|idx)|classes\.txt|shards\.json|\.plan\.json)"


@dataclass(frozen=True, kw_only=True)
class ShardsReport:
    """Result of a conversion."""

    folder: str
    classes: tuple[str, ...]
    num_train: int
    num_val: int
    num_test: int
    num_shards: int
    num_kept: int
    """Shards that existed already."""
    num_bytes: int
    """Size of all shards."""
    unreadable: tuple[tuple[str, str], ...]
    """The files that were left out, each with the reason."""
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return asdict(self)

    def print(self, console: Console) -> None:
        """Print a readable report."""
        for note in self.notes:
            console.print(f"note: {note}", markup=False)
        kept = f" ({self.num_kept:,} existed already)" if self.num_kept else ""
        numbers = [f"{self.num_train:,} training", f"{self.num_val:,} validation"]
        numbers += [f"{self.num_test:,} test"] if self.num_test else []
        console.print(
            f"{', '.join(numbers[:-1])} and {numbers[-1]} images of "
            f"{count_noun(len(self.classes), 'class', 'classes')} in "
            f"{count_noun(self.num_shards, 'shard')}{kept}, "
            f"{self.num_bytes / 1e6:,.4g} MB: {self.folder}",
            markup=False,
        )
        if self.unreadable:
            console.print(f"left out because they cannot be read: {len(self.unreadable):,}")
        for source, reason in self.unreadable:
            console.print(f"  {source}: {reason}", markup=False)


def to_shards(
    path: str,
    folder: str | Path,
    *,
    shard_mb: float = SHARD_MB,
    resize: int | None = None,
    val_share: float = 0.2,
    console: Console | None = None,
    **reading: Unpack[Reading],
) -> ShardsReport:
    """Write labeled images as shards, with the split that training would use.

    Args:
        path: Class folders, a table or Parquet files, as for `open_dataset`.
        folder: A new or empty folder for the shards, or the folder of an interrupted conversion.
        shard_mb: Approximate size of a shard in megabytes.
        resize: Maximum short side; larger images are resized and saved as JPEG.
        val_share: Fraction of each class for validation if the data has no split.
        console: Console of the progress bar; None for no output.
        **reading: How to read the data.

    Raises:
        ValueError: If there are no image files with a class each, `folder` has other content, or
            the disk is too small.
        BusyError: If another process writes the same folder.
    """
    if not shard_mb > 0:
        raise ValueError(f"the size of a shard must be above 0 MB, not {shard_mb}")
    if resize is not None and resize < 1:
        raise ValueError(f"the short side must be at least 1 pixel, not {resize}")
    data = open_as(path, val_share=val_share, **reading)
    if not isinstance(data.train, FileSamples):
        raise ValueError(
            f"{path} has no image files, on their own or in Parquet; only these can be converted "
            "to shards"
        )
    if data.kind != "single":
        raise ValueError(
            f"{path} has several labels for an image, but shards hold one: train on the images and "
            "their table"
        )
    odd = [name for name in data.classes if name.splitlines() != [name.strip()]]
    if odd:
        raise ValueError(f"the name {odd[0]!r} does not fit into classes.txt; rename its folder")
    target = Path(folder).expanduser()
    scale = size_scale(data.train, resize)
    plan = [
        shard
        for part, samples in _parts(data)
        for shard in plan_shards(part, samples, int(shard_mb * 1e6), scale)
    ]
    _claim(target)
    with only_writer(target / MARK):
        _keep_plan(target, path, data, shard_mb=shard_mb, resize=resize)
        return _write(target, data, plan, resize, scale, console)


def _write(
    target: Path,
    data: ClassificationData,
    plan: Sequence[Planned],
    resize: int | None,
    scale: float,
    console: Console | None,
) -> ShardsReport:
    """Write the shards that are not complete yet, then the files that describe all of them."""
    done = {shard.name for shard in plan if _is_done(target / shard.name, data)}
    _check_space(target, data, [shard for shard in plan if shard.name not in done], scale)

    columns = (TextColumn("writing shards"), BarColumn(), MofNCompleteColumn())
    visible = console is not None and console.is_terminal
    unreadable: list[tuple[str, str]] = []
    samples_of = dict(_parts(data))
    with (
        Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not visible, transient=True
        ) as progress,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        bar = progress.add_task("", total=sum(len(shard.indices) for shard in plan))
        for shard in plan:
            samples = samples_of[shard.part]
            if shard.name in done:
                unreadable += missing_images(target / shard.name, shard, samples)
            else:
                unreadable += write_shard(target / shard.name, shard, samples, resize, pool)
            progress.advance(bar, len(shard.indices))
    return _finish(target, data, plan, done, unreadable)


def _parts(data: ClassificationData) -> list[tuple[str, FileSamples]]:
    assert isinstance(data.train, FileSamples)
    assert isinstance(data.val, FileSamples)
    found = [("train", data.train), ("val", data.val)]
    if data.test is not None:
        assert isinstance(data.test, FileSamples)
        found.append(("test", data.test))
    return found


def _claim(target: Path) -> None:
    """Make sure that `target` is new, empty, or of a conversion, and mark it.

    Raises:
        ValueError: If it is not.
    """
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; choose a new folder")
    mark, is_marked = target / MARK, (target / MARK).is_file() or (target / PLAN).is_file()
    if target.is_dir() and not is_marked and any(target.iterdir()):
        some = ", ".join(sorted(p.name for p in target.iterdir())[:3])
        raise ValueError(f"{target} has other files ({some}); choose a new or empty folder")
    target.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _keep_plan(
    target: Path, path: str, data: ClassificationData, *, shard_mb: float, resize: int | None
) -> None:
    """Write the plan of a conversion, or compare it with the one of an interrupted conversion.

    Raises:
        ValueError: If that was another conversion.
    """
    digest = hashlib.sha256()
    for _, samples in _parts(data):
        for index, name in enumerate(samples.names):
            line = f"{name}\0{samples.labels[index]}\0{samples.num_bytes(index)}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    plan = {
        "classes": list(data.classes),
        "images": digest.hexdigest(),
        "shard_mb": shard_mb,
        "resize": resize,
    }
    remove_temporary_files(target, OWN_FILES)
    mark = target / PLAN
    if not mark.is_file():
        write_text(mark, json.dumps(plan))
        return
    try:
        before = json.loads(mark.read_bytes())
    except ValueError:
        before = None
    if before != plan:
        raise ValueError(
            f"{target} has shards of other images or settings than {path} now; choose a new "
            "folder, or remove that one"
        )


def _check_space(
    target: Path, data: ClassificationData, plan: Sequence[Planned], scale: float
) -> None:
    images = sorted((shard.part, index) for shard in plan for index in shard.indices)
    samples_of = dict(_parts(data))
    needed = sum(samples_of[part].num_bytes(index) * scale + 4 * 512 for part, index in images)
    free = shutil.disk_usage(target).free
    if needed > free:
        raise ValueError(
            f"the shards need about {needed / 1e9:,.3g} GB, but only {free / 1e9:,.3g} GB are free "
            f"at {target}; free some space, or choose a folder on another disk"
        )


def _is_done(tar: Path, data: ClassificationData) -> bool:
    """Whether a shard is complete and undamaged: its index is written last, and has its hash."""
    try:
        index = tar.with_name(index_name(tar.name))
        places = shard_index.read_places(index, num_classes=len(data.classes))
        if tar.stat().st_size != places.num_bytes:
            return False
        with tar.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == places.sha256
    except (OSError, ValueError):
        return False


def _finish(
    target: Path,
    data: ClassificationData,
    plan: Sequence[Planned],
    done: set[str],
    unreadable: Sequence[tuple[str, str]],
) -> ShardsReport:
    """Write the files that describe all shards."""
    parts: dict[str, list[Listed]] = {part: [] for part, _ in _parts(data)}
    for shard in plan:
        index = target / index_name(shard.name)
        places = shard_index.read_places(index, num_classes=len(data.classes))
        parts[shard.part].append(
            Listed(
                name=shard.name,
                num_images=len(places),
                num_bytes=places.num_bytes,
                sha256=places.sha256,
            )
        )
    write_text(target / "classes.txt", "".join(f"{name}\n" for name in data.classes))
    listing = shard_index.Listing(
        classes=data.classes, parts={part: tuple(listed) for part, listed in parts.items()}
    )
    shard_index.write_listing(target / shard_index.FILE, listing)
    every = [listed for part in parts.values() for listed in part]
    return ShardsReport(
        folder=str(target),
        classes=data.classes,
        num_train=sum(listed.num_images for listed in parts["train"]),
        num_val=sum(listed.num_images for listed in parts["val"]),
        num_test=sum(listed.num_images for listed in parts.get("test", ())),
        num_shards=len(every),
        num_kept=len(done),
        num_bytes=sum(listed.num_bytes for listed in every),
        unreadable=tuple(unreadable),
        notes=data.notes,
    )
