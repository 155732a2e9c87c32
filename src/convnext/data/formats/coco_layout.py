"""Which json files of a folder are COCO's, and which split each is for.

instances_{train,val,test}.json            images/                  also images/{train,val,test}
annotations/instances_{train,val}2017.json {train,val}2017/         COCO's own
annotations/instances_{Train,Validation}.json                       exported by CVAT
{train,valid,test}/_annotations.coco.json  beside the images        exported by labeling tools
anything.json                              one file: a share is held out

The exact name `instances_SPLIT.json` wins over copies and other names, which are listed as ignored.
Of candidates with equal names the user has to choose. Images are looked for beside the json, in
images/, in a folder with the name of the split, and then everywhere below the data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from convnext.data.formats.paths import (
    SPLIT_WORDS,
    FileIndex,
    split_of,
    split_of_path,
    word_split,
)
from convnext.data.formats.records import SPLITS, Split
from convnext.documents import open_regular, read_regular

ACCEPTED = (
    "supported layouts: instances_{train,val}.json with images/, COCO's annotations/ with "
    "train2017/ and val2017/, {train,valid}/_annotations.coco.json, or one .json file, some "
    "of whose images are held out"
)
# `convnext data --fix` keeps the original under this name, which is not read.
BACKUP_SUFFIX = ".before-fix"
# Number of images to look for in each candidate folder.
NUM_TRIED = 20
# How much of a file is searched for COCO's keys: lists of images come before or after long ones.
SNIFFED = 1 << 16


@dataclass(frozen=True, kw_only=True)
class CocoFiles:
    """The json files of a data set."""

    files: Mapping[Split, Path]
    """The file of each split; a single file without a split is "train"."""
    is_split: bool
    ignored: tuple[Path, ...] = ()


def looks_like_coco(path: Path) -> bool:
    """Tell whether a json has COCO's lists, from its beginning and its end."""
    try:
        stamp = path.stat()
    except OSError:
        return False
    return _looks_like_coco(path, stamp.st_size, stamp.st_mtime_ns)


def has_labels_alone(path: Path) -> bool:
    """Tell whether a json has COCO's lists with a category for each image, but no objects."""
    if not looks_like_coco(path):
        return False
    stamp = path.stat()
    return _has_labels_alone(path, stamp.st_size, stamp.st_mtime_ns)


@lru_cache(maxsize=4096)
def _has_labels_alone(path: Path, size: int, modified_ns: int) -> bool:
    with open_regular(path) as file:
        objects = (b'"bbox"', b'"segmentation"', b'"keypoints"')
        start = file.read(SNIFFED)
        if any(key in start for key in objects):
            return False
        whole = start + file.read()
    return b'"category_id"' in whole and not any(key in whole for key in objects)


@lru_cache(maxsize=4096)
def _looks_like_coco(path: Path, size: int, modified_ns: int) -> bool:
    try:
        with open_regular(path) as file:
            start = file.read(SNIFFED)
            file.seek(max(size - SNIFFED, 0))
            end = file.read()
            if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"{":
                return False
            text = start + end
            keys = (b'"images"', b'"annotations"', b'"categories"')
            if all(key in text for key in keys):
                return True
            if sum(key in text for key in keys) < 1 or size <= 2 * SNIFFED:
                return False
            file.seek(0)
            whole = file.read()
            return all(key in whole for key in keys)
    except OSError:
        return False


def find(root: Path, index: FileIndex, annotations: str = "") -> CocoFiles | None:
    """Return the json files of a data set; None if there are none.

    Args:
        root: The folder, or a json file.
        index: Its files.
        annotations: The files to take, separated by commas.

    Raises:
        ValueError: If two files could be the one of a split.
    """
    if annotations:
        return _given(root, annotations)
    if root.is_file():
        return CocoFiles(files={"train": root}, is_split=False)
    candidates = [
        path
        for path in index.with_ending(".json")
        if BACKUP_SUFFIX not in path.name and looks_like_coco(path)
    ]
    by_split: dict[Split, list[Path]] = {}
    for path in candidates:
        split = _split_of_file(path, root)
        if split is not None:
            by_split.setdefault(split, []).append(path)
    if not by_split:
        # Names with other words, such as cells_coco_train.json, count if all have a split.
        worded = {split: p for p in candidates if (split := word_split(p.stem))}
        if "train" in worded and len(worded) == len(candidates) > 1:
            return CocoFiles(files={s: worded[s] for s in SPLITS if s in worded}, is_split=True)
        if len(candidates) > 1:
            raise _ambiguous(candidates, "all objects", root)
        return CocoFiles(files={"train": candidates[0]}, is_split=False) if candidates else None
    files = {split: _best(by_split[split], split, root) for split in SPLITS if split in by_split}
    if "train" not in files:
        rest = [path for path in candidates if path not in files.values()]
        if len(rest) == 1 and not any(_split_of_file(path, root) for path in rest):
            files = {"train": rest[0], **files}
        elif len(files) == 1:
            return CocoFiles(files={"train": next(iter(files.values()))}, is_split=False)
        else:
            names = ", ".join(_short(path, root) for path in candidates)
            raise ValueError(
                f"{root} has no COCO JSON file for training, only {names}; {ACCEPTED}, or "
                "--annotations FILE"
            )
    ignored = tuple(path for path in candidates if path not in files.values())
    return CocoFiles(files=files, is_split=True, ignored=ignored)


def _given(root: Path, annotations: str) -> CocoFiles:
    """Return the files that the user names.

    Raises:
        ValueError: If one does not exist, or their splits are unclear.
    """
    base = root if root.is_dir() else root.parent
    paths = []
    for name in annotations.split(","):
        path = next((p for p in (base / name.strip(), Path(name.strip())) if p.is_file()), None)
        if path is None:
            raise ValueError(f"there is no annotation file {name.strip()} in {base} or here")
        paths.append(path)
    if len(paths) == 1:
        return CocoFiles(files={"train": paths[0]}, is_split=False)
    splits = [_split_of_file(path, base) or word_split(path.stem) for path in paths]
    if None in splits or len(set(splits)) < len(splits):
        raise ValueError(
            f"--annotations {annotations}: the names must say which file is for train, val or "
            "test, one for each"
        )
    files = {split: path for split, path in zip(splits, paths, strict=True) if split is not None}
    if "train" not in files:
        raise ValueError(f"--annotations {annotations}: no name says that it is for training")
    return CocoFiles(files=files, is_split=True)


def _split_of_file(path: Path, root: Path) -> Split | None:
    own = split_of(path.stem)
    if own is not None:
        return own
    # A name of neutral words alone belongs to the split of its folder; others are something else.
    is_neutral = split_of(f"{path.stem}_train") is not None
    within = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return split_of_path(within) if is_neutral else None


def _best(paths: Sequence[Path], split: Split, root: Path) -> Path:
    """Return the file with the most usual name.

    Raises:
        ValueError: If two are equally usual and differ.
    """
    ranked = sorted(paths, key=lambda path: _rank(path, split, root))
    equal = [path for path in ranked if _rank(path, split, root) == _rank(ranked[0], split, root)]
    if any(
        read_regular(path, "replace") != read_regular(equal[0], "replace") for path in equal[1:]
    ):
        raise _ambiguous(equal, f"the {split} split", root)
    return equal[0]


def _rank(path: Path, split: Split, root: Path) -> int:
    words = "|".join(SPLIT_WORDS[split])
    stem = path.stem.lower()
    if re.fullmatch(rf"instances_({words})(\d{{4}})?", stem):
        return 0
    if path.name.lower() == "_annotations.coco.json":
        return 1
    return 2 if re.fullmatch(r"[\w.]+", stem) else 3


def _ambiguous(paths: Sequence[Path], what: str, root: Path) -> ValueError:
    names = " or ".join(_short(path, root) for path in paths[:4])
    return ValueError(
        f"{root}: {what} could be in {names}; say which with --annotations "
        f"{_short(paths[0], root)}, or with several files separated by commas"
    )


def _short(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def image_folders(path: Path, names: Sequence[str], root: Path, split: Split | None) -> list[Path]:
    """Return the folders where the images of a json may be, the one that has most of them first."""
    year = (re.findall(r"\d{4}", path.stem) or [""])[-1]
    base = root if root.is_dir() else root.parent
    words = SPLIT_WORDS[split] if split else ()
    subfolders = ["", *(f"{word}{suffix}" for word in words for suffix in (year, ""))]
    folders: Sequence[Path] = list(
        dict.fromkeys(
            folder / name
            for folder in (path.parent / "images", path.parent, base / "images", base)
            for name in subfolders
        )
    )

    def num_found(folder: Path) -> int:
        return sum(_exists(folder / name) for name in islice(names, NUM_TRIED))

    # The folder itself has all images, however they are found.
    return sorted((f for f in folders if f.is_dir()), key=num_found, reverse=True) or [base]


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
