"""Fixes of COCO JSON files that need no guess: `convnext data PATH --fix`.

    image         takes its size from the file; without a file, it is removed with its objects
    annotation    removed if its image or category is unknown; a repeated id is replaced
    box           clipped to its image; removed if nothing is left
    mask          polygons of one or two points are removed, the box is kept
    area          computed if it is missing

Faults that need a decision are reported and left unchanged. Keys that are not COCO's are kept.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from convnext.atomic import write_text
from convnext.data.formats.coco import UNUSED, CocoFile, load_json, read_coco
from convnext.data.formats.coco_layout import BACKUP_SUFFIX, find, image_root
from convnext.data.formats.records import Fault, Objects, Record
from convnext.data.images import BadImage, read_header
from convnext.data.threads import for_each
from convnext.tasks.detection.data.repair import Json, Log, Size, fix_annotations, fix_images

NUM_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Change:
    """One kind of change."""

    kind: str
    """For example "box without area: removed"."""
    count: int
    examples: tuple[str, ...]
    """The first few places, for example "annotation 12"."""


@dataclass(frozen=True, kw_only=True)
class FixReport:
    """Changes of one file."""

    path: str
    written: str
    """Path of the fixed file; empty if there was nothing to fix."""
    kept: str
    """Path of the original."""
    changes: tuple[Change, ...]
    left: tuple[Fault, ...]
    """Faults that need a decision."""

    def to_dict(self) -> Json:
        """Return nested plain values for JSON."""
        return asdict(self)

    def print(self, console: Console) -> None:
        """Print a readable report."""
        if not self.written:
            console.print(f"{self.path}: there is nothing to fix", markup=False, soft_wrap=True)
        else:
            console.print(f"{self.path} -> {self.written}", markup=False, soft_wrap=True)
            console.print(f"  original: {self.kept}", markup=False, soft_wrap=True)
        for change in self.changes:
            more = ", ..." if change.count > len(change.examples) else ""
            listed = ", ".join(change.examples)
            line = f"  {change.kind}: {change.count:,} ({listed}{more})"
            console.print(line, markup=False, soft_wrap=True)
        if self.left:
            console.print(f"  needs your decision: {len(self.left):,}", style="yellow")
        for fault in self.left[: 4 * NUM_EXAMPLES]:
            line = f"    {fault.kind}: {fault.where} {fault.text}"
            console.print(line, markup=False, soft_wrap=True)
        if len(self.left) > 4 * NUM_EXAMPLES:
            console.print(f"    and {len(self.left) - 4 * NUM_EXAMPLES:,} more")


@dataclass(frozen=True, kw_only=True)
class FixReports:
    """Changes of the files of a data set."""

    path: str
    files: tuple[FixReport, ...]

    def to_dict(self) -> Json:
        """Return nested plain values for JSON."""
        return asdict(self)

    def print(self, console: Console) -> None:
        """Print a readable report with the next command."""
        for report in self.files:
            report.print(console)
        moved = [report for report in self.files if report.written not in ("", report.path)]
        if moved:
            line = f"the images stay under {self.path}; put them next to {moved[0].written}"
            console.print(line, markup=False, soft_wrap=True)
        elif any(report.written for report in self.files):
            line = f"\nnext: convnext data {self.path}"
            console.print(line, markup=False, soft_wrap=True)


def fix_dataset(
    path: str, output: str | None = None, *, console: Console | None = None
) -> FixReports:
    """Fix each JSON file of a data set.

    Args:
        path: A data set as for `open_dataset`.
        output: A folder for all files, fixed or not, laid out like `path`; by default fixed files
            replace the originals, which are kept next to them under another name.
        console: Console of the progress bar; None for no output.

    Raises:
        ValueError: If there is no data set, a file is not COCO JSON, or a file would be
            overwritten.
    """
    root = Path(path)
    found = find(root)
    base = root if root.is_dir() else root.parent
    files = {"train": found.train} | ({"val": found.val} if found.val else {})
    targets = {
        split: file if output is None else Path(output) / file.relative_to(base)
        for split, file in files.items()
    }
    for split, target in targets.items():  # Check all before writing any.
        _check_free(target, files[split])
    reports = [
        fix(file, targets[split], root=root, split=split, console=console)
        for split, file in files.items()
    ]
    return FixReports(path=path, files=tuple(reports))


def fix(
    path: Path | str,
    output: Path | str | None = None,
    *,
    root: Path | None = None,
    split: str = "train",
    console: Console | None = None,
) -> FixReport:
    """Fix a JSON file.

    Args:
        path: The file.
        output: The fixed file; by default it replaces the original, which is kept next to it.
        root: Where to look for the images: the data set's folder, by default `path`.
        split: "train" or "val", which may be in the name of the images' folder.
        console: Console of the progress bar; None for no output.

    Raises:
        ValueError: If it is not COCO JSON, most images are missing, or `output` exists.
    """
    path = Path(path)
    output = path if output is None else Path(output)
    _check_free(output, path)
    before = read_coco(path)
    content = load_json(path)
    names = [
        image["file_name"]
        for image in content["images"]
        if isinstance(image.get("file_name"), str) and image["file_name"]
    ]
    folder = image_root(_listing(before, names), root or path, split)
    log = Log()
    doubtful = fix_images(content, _sizes(folder, names, console), log)
    fix_annotations(content, before.category_ids, doubtful, log)
    if not log.found and output == path:
        return _report(path, "", "", log, [*log.left, *before.faults])
    kept = path
    if output == path:
        kept = _keep(path)
    write_text(output, json.dumps(content, ensure_ascii=False))
    return _report(path, str(output), str(kept), log, [*log.left, *read_coco(output).faults])


def _check_free(output: Path, path: Path) -> None:
    """Raise a ValueError if another file than `path` would be overwritten."""
    if output != path and output.exists():
        raise ValueError(f"{output} already exists; move it away, or choose another folder")


def _report(path: Path, written: str, kept: str, log: Log, left: list[Fault]) -> FixReport:
    return FixReport(
        path=str(path),
        written=written,
        kept=kept,
        changes=tuple(
            Change(kind=kind, count=len(where), examples=tuple(where[:NUM_EXAMPLES]))
            for kind, where in log.found.items()
        ),
        left=tuple(fault for fault in left if fault.kind != UNUSED),
    )


def _listing(file: CocoFile, names: list[str]) -> CocoFile:
    """Return a file with image names only."""
    nothing = Objects(
        ids=(),
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        areas=np.zeros(0),
        crowd=np.zeros(0, np.bool_),
        masks=(),
    )
    records = tuple(
        Record(id=i, file_name=name, width=1, height=1, objects=nothing)
        for i, name in enumerate(names)
    )
    return CocoFile(
        path=file.path, classes=file.classes, category_ids=(), records=records, faults=()
    )


def _sizes(folder: Path, names: list[str], console: Console | None) -> dict[str, Size | None]:
    """Return the (width, height) of the files that exist; None for those that are not images.

    Raises:
        ValueError: If most are missing: then the folder is wrong, not the JSON file.
    """
    names = list(dict.fromkeys(names))
    sizes: dict[str, Size | None] = {}

    def read(index: int) -> None:
        file = folder / names[index]
        if file.exists():
            try:
                header = read_header(file)
                sizes[names[index]] = header.width, header.height
            except BadImage:
                sizes[names[index]] = None

    for_each(read, len(names), "reading sizes", console=console)
    missing = [name for name in names if name not in sizes]
    if len(missing) > len(names) / 2:
        raise ValueError(
            f"{len(missing):,} of {len(names):,} images are not in {folder}, such as {missing[0]}; "
            "put them there, or correct `file_name`: too many to remove from the JSON file"
        )
    return sizes


def _keep(path: Path) -> Path:
    """Copy a file to an unused name; return its path."""
    for number in itertools.count(1):
        kept = path.with_name(
            f"{path.stem}{BACKUP_SUFFIX}{'' if number == 1 else f'-{number}'}.json"
        )
        try:
            handle = os.open(kept, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            continue
        with open(handle, "wb") as copy, path.open("rb") as original:
            shutil.copyfileobj(original, copy)
            copy.flush()
            os.fsync(copy.fileno())
        break
    return kept
