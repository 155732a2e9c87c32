"""The accepted layouts of COCO's json and its images.

instances_{train,val}.json  images/                    also images/{train,val}
annotations/instances_{train,val}2017.json             COCO's own, with {train,val}2017/
{train,valid}/_annotations.coco.json                   beside the images, exported by labeling tools
anything.json                                          one file: a share is held out

The names may have a year, and `val` may be `valid`, `validation` or `test`. Images are looked for
beside the json, in images/, and in a folder with the name of the split.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from convnext.data.formats.coco import CocoFile

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}
PATTERNS = (
    "instances_{}*.json",
    "annotations/instances_{}*.json",
    "{}/_annotations.coco.json",
    "annotations/{}*.json",
    "{}*.json",
)
ACCEPTED = (
    "accepted are instances_{train,val}.json with images/, COCO's annotations/ with train2017/ and "
    "val2017/, {train,valid}/_annotations.coco.json, or one .json, of which a share is held out"
)
# `convnext data --fix` keeps the original under this name, which is not read.
BACKUP_SUFFIX = ".before-fix"
# Number of images to look for in each candidate folder.
NUM_TRIED = 20


@dataclass(frozen=True, kw_only=True)
class CocoFiles:
    """The files of a data set."""

    train: Path
    val: Path | None
    notes: tuple[str, ...] = ()


def is_detection(root: Path) -> bool:
    """Tell whether a path is in one of the layouts above."""
    if root.is_file():
        return root.suffix.lower() == ".json"
    return root.is_dir() and _of_split(root, "train") is not None


def find(root: Path) -> CocoFiles:
    """Return the json files of a data set.

    Raises:
        ValueError: If there are none.
    """
    if root.is_file():
        return CocoFiles(train=root, val=None)
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}")
    train, val = _of_split(root, "train"), _of_split(root, "val")
    if train is None:
        candidates = _json_files(root, "*.json") + _json_files(root, "annotations/*.json")
        if len(candidates) != 1:
            listed = f"; it has {', '.join(c.name for c in candidates[:5])}" if candidates else ""
            raise ValueError(f"{root} has no json of training objects{listed}; {ACCEPTED}")
        return CocoFiles(train=candidates[0], val=None)
    notes: tuple[str, ...] = ()
    if val is not None and "test" in (val.parent.name, *re.split(r"[\W_\d]+", val.stem)):
        notes = (f"{val.relative_to(root)} is used for validation",)
    return CocoFiles(train=train, val=val, notes=notes)


def image_root(file: CocoFile, root: Path, split: str) -> Path:
    """Return the folder of a file's images: the one that has most of a sample of them."""
    year = (re.findall(r"\d{4}", file.path.stem) or [""])[-1]
    base = root if root.is_dir() else root.parent
    names = ["", *(f"{name}{suffix}" for name in SPLITS[split] for suffix in {year, ""})]
    folders: Sequence[Path] = list(
        dict.fromkeys(
            folder / name
            for folder in (file.path.parent / "images", file.path.parent, base / "images", base)
            for name in names
        )
    )

    def num_found(folder: Path) -> int:
        tried = islice(file.records, NUM_TRIED)
        return sum((folder / record.file_name).is_file() for record in tried)

    return max(folders, key=num_found)


def _of_split(root: Path, split: str) -> Path | None:
    """Return the first json of a split in the order of the patterns and the names."""
    for pattern in PATTERNS:
        for name in SPLITS[split]:
            found = _json_files(root, pattern.format(name))
            if found:
                return found[0]
    return None


def _json_files(root: Path, pattern: str) -> list[Path]:
    return sorted(path for path in root.glob(pattern) if BACKUP_SUFFIX not in path.name)
