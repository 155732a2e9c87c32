"""Fixes of COCO JSON files that need no guess: `convnext data PATH --fix`.

    ids, sizes    text and floats become whole numbers; an image listed once per object becomes one
    image         takes its size from the file; without a file, it is removed with its objects
    annotation    removed if its image or category is unknown; a repeated id, and 0, are replaced
    box           corners and shares become x, y, width, height; clipped to its image
    mask          two corners become a rectangle; polygons of one or two points are removed
    area          computed if it is missing or cannot be
    EXIF          objects on unturned pixels are turned with their image

The steps are those of the reader, so nothing is removed that training uses. Faults that need a
decision are reported and left unchanged. Keys that are not COCO's are kept.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from convnext.atomic import whole_folder, write_text
from convnext.data.formats import coco_layout
from convnext.data.formats.coco import Files, load_json, locate, read_categories, read_coco
from convnext.data.formats.coco_layout import BACKUP_SUFFIX
from convnext.data.formats.coco_objects import UNUSED
from convnext.data.formats.coco_tidy import tidy_ids, tidy_objects
from convnext.data.formats.coco_values import Changes
from convnext.data.formats.layouts import NAMES, choose, file_index
from convnext.data.formats.located import read_headers
from convnext.data.formats.opening import coco_images, file_names
from convnext.data.formats.paths import FileIndex
from convnext.data.formats.records import Fault, FaultList, ReadOptions, Split
from convnext.data.threads import place_files
from convnext.tasks.detection.convert import HEAD
from convnext.tasks.detection.repair import (
    Json,
    Log,
    Size,
    fix_annotations,
    fix_images,
    turn_images,
)

OPTIONS = ReadOptions
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
    path: str,
    output: str | None = None,
    *,
    options: ReadOptions | None = None,
    confirm: Callable[[FixReports], bool] | None = None,
    console: Console | None = None,
) -> FixReports:
    """Fix each JSON file of a data set.

    Args:
        path: A data set as for `open_dataset`.
        output: A new or empty folder for the complete data set, fixed or not, laid out like `path`;
            it appears when it is complete. By default fixed files replace the originals, which are
            kept next to them under another name.
        options: What the user says about data that can be read in several ways.
        confirm: Is called with the changes before anything is written; False writes nothing.
        console: Console of the progress bar; None for no output.

    Raises:
        ValueError: If there is no data set, a file is not COCO JSON, or a file would be
            overwritten.
    """
    root, options = Path(path), options or ReadOptions()
    layout = choose(root, options.layout or ("coco" if options.annotations else ""))
    if layout != "coco":
        raise ValueError(
            f"{path} is {NAMES[layout]}; --fix is for COCO's json: write one with --to coco "
            "--output DIR, which reports every fault"
        )
    index = file_index(root, options)
    found = coco_layout.find(root, index, options.annotations)
    if found is None:
        raise ValueError(f"{root} has no COCO JSON file with objects; {coco_layout.ACCEPTED}")
    base = root if root.is_dir() else root.parent
    targets = {
        split: file if output is None else Path(output) / file.relative_to(base)
        for split, file in found.files.items()
    }
    for split, target in targets.items():  # Check all before writing any.
        _check_free(target, found.files[split])
    plans = [
        _plan(file, targets[split], root, index, split if found.is_split else None, options)
        for split, file in found.files.items()
    ]
    reports = FixReports(path=path, files=tuple(plan.report for plan in plans))
    if not any(plan.is_changed for plan in plans) and output is None:
        return reports
    if confirm is not None and not confirm(reports):
        raise ValueError("nothing was written")
    if output is None:
        return FixReports(path=path, files=tuple(_report(plan, _write(plan)) for plan in plans))
    with whole_folder(output) as draft:
        for plan in plans:
            _write(replace(plan, target=draft / plan.path.relative_to(base)))
        _place_images(plans, base, draft, console)
    kept = {plan.path: str(plan.path) if plan.is_changed else "" for plan in plans}
    return FixReports(path=path, files=tuple(_report(plan, kept[plan.path]) for plan in plans))


def fix(
    path: Path | str,
    output: Path | str | None = None,
    *,
    root: Path | None = None,
    options: ReadOptions | None = None,
) -> FixReport:
    """Fix a JSON file.

    Args:
        path: The file.
        output: The fixed file; by default it replaces the original, which is kept next to it.
        root: Where to look for the images: the data set's folder, by default that of `path`.
        options: What the user says about data that can be read in several ways.

    Raises:
        ValueError: If it is not COCO JSON, most images are missing, or `output` exists.
    """
    path, options = Path(path), options or ReadOptions()
    target = path if output is None else Path(output)
    _check_free(target, path)
    root = path.parent if root is None else root
    plan = _plan(path, target, root, file_index(root, options), None, options)
    return _report(plan, _write(plan))


@dataclass(frozen=True)
class _Plan:
    """A fixed file that is not written yet."""

    path: Path
    target: Path
    content: Json
    files: Files
    report: FixReport

    @property
    def is_changed(self) -> bool:
        return bool(self.report.changes) or self.target != self.path


def _plan(
    path: Path,
    target: Path,
    root: Path,
    index: FileIndex,
    split: Split | None,
    options: ReadOptions,
) -> _Plan:
    """Fix the content of a file."""
    content, changes, faults = load_json(path), Changes(), FaultList()
    tidy_ids(content, changes)
    names = file_names(content)
    images = coco_images(path, content, split, root, index, options)
    log = Log()
    stated = {id(image): (image.get("width"), image.get("height")) for image in content["images"]}
    files = locate(content, images, faults)
    for image in content["images"]:  # `fix_images` decides and logs it.
        image["width"], image["height"] = stated[id(image)]
    doubtful = fix_images(content, _sizes(files, names, images.root), log, set(files.turned))
    tidy_objects(content, changes, boxes=options.boxes or None)
    for (kind, _), places in changes.first.items():
        log.found.setdefault(f"{kind}: rewritten", []).extend(places)
    classes, _ = read_categories(path, content, faults)
    _merge_categories(content, list(classes), log)
    turn_images(content, files.turned, log)
    for image in content["images"]:
        name = image.get("file_name")
        new = files.names.get(name) if isinstance(name, str) else None
        if new is not None:
            log.add("file name: as the file is called", f"{name} is {new}")
            image["file_name"] = new
    fix_annotations(content, list(classes), doubtful, log)
    left = [fault for fault in (*log.left, *changes.fatal) if fault.kind != UNUSED]
    report = FixReport(
        path=str(path),
        written=str(target) if log.found or target != path else "",
        kept=str(path) if target != path else "",
        changes=tuple(
            Change(kind=kind, count=len(where), examples=tuple(where[:NUM_EXAMPLES]))
            for kind, where in log.found.items()
        ),
        left=tuple(left),
    )
    return _Plan(path, target, content, files, report)


def _write(plan: _Plan) -> str:
    """Write a fixed file if it changes; return where the old content is kept, or ""."""
    if not plan.is_changed:
        return ""
    kept = str(_keep(plan.path)) if plan.target == plan.path else str(plan.path)
    write_text(plan.target, json.dumps({**HEAD, **plan.content}, ensure_ascii=False))
    return kept


def _report(plan: _Plan, kept: str) -> FixReport:
    """Return the report of a written file, with the faults that are left."""
    written = str(plan.target) if plan.is_changed else ""
    left = (*plan.report.left, *read_coco(plan.target).faults)
    return _with(plan.report, written, kept, left)


def _with(report: FixReport, written: str, kept: str, left: Sequence[Fault]) -> FixReport:
    return FixReport(
        path=report.path,
        written=written,
        kept=kept,
        changes=report.changes,
        left=tuple(fault for fault in left if fault.kind != UNUSED),
    )


def _place_images(
    plans: Sequence[_Plan], base: Path, output: Path, console: Console | None
) -> None:
    """Link or copy the images beside the fixed files, so that the data set is complete."""
    paths = {path for plan in plans for path in plan.files.paths.values()}
    pairs = []
    for path in sorted(paths):
        is_in = path.absolute().is_relative_to(base.absolute())
        name = path.absolute().relative_to(base.absolute()) if is_in else Path("images", path.name)
        pairs.append((path, output / name))
    place_files([(a, b) for a, b in pairs if not b.exists()], "writing images", console)


def _merge_categories(content: Json, kept: Sequence[int], log: Log) -> None:
    """Leave out the categories that were merged into another one of the same name."""
    gone = [value for value in content["categories"] if value.get("id") not in kept]
    for value in gone:
        log.add("categories of one name: merged", f"category {value.get('id')}")
    content["categories"] = [value for value in content["categories"] if value not in gone]


def _check_free(output: Path, path: Path) -> None:
    """Raise a ValueError if another file than `path` would be overwritten."""
    if output != path and output.exists():
        raise ValueError(f"{output} already exists; move it away, or choose another folder")


def _sizes(files: Files, names: list[str], folder: Path) -> dict[str, Size | None]:
    """Return the (width, height) of the files that exist; None for those that are not images.

    Raises:
        ValueError: If most are missing: then the folder is wrong, not the JSON file.
    """
    names = list(dict.fromkeys(names))
    missing = [name for name in names if name not in files.paths]
    if len(missing) > len(names) / 2:
        raise ValueError(
            f"{len(missing):,} of {len(names):,} images are not in {folder}, such as {missing[0]}; "
            "put them there, or correct `file_name`: too many to remove from the JSON file"
        )
    rest = {name: path for name, path in files.paths.items() if name not in files.headers}
    headers = files.headers | read_headers(rest)[0]
    return {name: headers[name].upright if name in headers else None for name in files.paths}


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
