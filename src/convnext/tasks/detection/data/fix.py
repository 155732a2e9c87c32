"""What can be mended in COCO's json without a guess: `convnext data PATH --fix`.

    image         the size is taken from the file; without a file, it goes with its objects
    annotation    of no known image or category: goes; twice the same id: gets another
    box           is cut at the border of its image; goes if nothing is left of it
    mask          polygons of one or two points go, the box stays
    area          is computed where there is none

What needs a decision stays as it is and is told. Names that are not COCO's stay, too.
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
from convnext.data.formats.coco import (
    UNUSED,
    CocoFile,
    Fault,
    Objects,
    Record,
    load_json,
    read_coco,
)
from convnext.data.formats.coco_layout import KEPT, find, image_root
from convnext.data.images import BadImage, read_header
from convnext.data.threads import for_each
from convnext.tasks.detection.data.repair import Json, Log, Size, mend_annotations, mend_images

NUM_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Change:
    """One kind of change."""

    kind: str
    """Such as "box without area: removed"."""
    count: int
    examples: tuple[str, ...]
    """The first few, such as "annotation 12"."""


@dataclass(frozen=True, kw_only=True)
class FixReport:
    """What became of one file."""

    path: str
    written: str
    """Where it is now; empty if nothing was written, since there was nothing to mend."""
    kept: str
    """Where the file is as it was."""
    changes: tuple[Change, ...]
    left: tuple[Fault, ...]
    """What needs a decision."""

    def to_dict(self) -> Json:
        """Return nested plain values for JSON."""
        return asdict(self)

    def print(self, console: Console) -> None:
        """Print for people."""
        if not self.written:
            console.print(f"{self.path}: there is nothing to mend", markup=False, soft_wrap=True)
        else:
            console.print(f"{self.path} -> {self.written}", markup=False, soft_wrap=True)
            console.print(f"  as it was: {self.kept}", markup=False, soft_wrap=True)
        for change in self.changes:
            more = ", ..." if change.count > len(change.examples) else ""
            listed = ", ".join(change.examples)
            line = f"  {change.kind}: {change.count:,} ({listed}{more})"
            console.print(line, markup=False, soft_wrap=True)
        if self.left:
            console.print(f"  needs a decision of yours: {len(self.left):,}", style="yellow")
        for fault in self.left[: 4 * NUM_EXAMPLES]:
            line = f"    {fault.kind}: {fault.where} {fault.text}"
            console.print(line, markup=False, soft_wrap=True)
        if len(self.left) > 4 * NUM_EXAMPLES:
            console.print(f"    and {len(self.left) - 4 * NUM_EXAMPLES:,} more")


@dataclass(frozen=True, kw_only=True)
class FixReports:
    """What became of the files of a data set."""

    path: str
    files: tuple[FixReport, ...]

    def to_dict(self) -> Json:
        """Return nested plain values for JSON."""
        return asdict(self)

    def print(self, console: Console) -> None:
        """Print for people, with the next command."""
        for report in self.files:
            report.print(console)
        moved = [report for report in self.files if report.written not in ("", report.path)]
        if moved:
            line = f"the images stay under {self.path}; put them beside {moved[0].written}"
            console.print(line, markup=False, soft_wrap=True)
        elif any(report.written for report in self.files):
            line = f"\nnext: convnext data {self.path}"
            console.print(line, markup=False, soft_wrap=True)


def fix_dataset(
    path: str, output: str | None = None, *, console: Console | None = None
) -> FixReports:
    """Mend each json of a data set.

    Args:
        path: As of `open_dataset`.
        output: A folder for all files, mended or not, below it as below `path`; by default the
            mended ones replace the old ones, which are kept beside them.
        console: Where the progress bar goes; None for none.

    Raises:
        ValueError: If there is no data set, a file is no COCO json, or it would be overwritten.
    """
    root = Path(path)
    found = find(root)
    base = root if root.is_dir() else root.parent
    files = {"train": found.train} | ({"val": found.val} if found.val else {})
    targets = {
        split: file if output is None else Path(output) / file.relative_to(base)
        for split, file in files.items()
    }
    for split, target in targets.items():  # All, before any is written.
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
    """Mend a json.

    Args:
        path: The file.
        output: Where it goes; by default it replaces the old one, which is kept beside it.
        root: The data set's folder, or `path`, to look for the images in.
        split: "train" or "val", which may be in the name of the images' folder.
        console: Where the progress bar goes; None for none.

    Raises:
        ValueError: If it is no COCO json, the images are not there, or `output` is.
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
    doubtful = mend_images(content, _sizes(folder, names, console), log)
    mend_annotations(content, before.category_ids, doubtful, log)
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
        raise ValueError(f"{output} is there already; move it away, or give another folder")


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
    """Return a file that has nothing but the names of its images."""
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
    """Return the (width, height) of the files that are there; None of those that are no image.

    Raises:
        ValueError: If most are not there: then the folder is wrong, not the json.
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
            "put them there, or correct `file_name`: so many are not taken out of the json"
        )
    return sizes


def _keep(path: Path) -> Path:
    """Keep a copy of a file under a name that nothing has yet; return its path."""
    for number in itertools.count(1):
        kept = path.with_name(f"{path.stem}{KEPT}{'' if number == 1 else f'-{number}'}.json")
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
