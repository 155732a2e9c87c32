"""Class folders: images in folders that are named after their classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from convnext.data.images import readable_extensions
from convnext.data.samples import FolderSamples, Found, Samples

VAL_NAMES = ("val", "validation", "valid", "test")
LAYOUTS = (
    "accepted are train/CLASS/* with val/CLASS/*, CLASS/* without a split, shards train-*.tar "
    "with val-*.tar, a CSV with the columns path and label, or the word digits"
)


def is_split(folders: dict[str, Path]) -> bool:
    """Tell a training split from a class called "train", next to bus/ and car/ for example."""
    if "train" not in folders:
        return False
    has_classes = any(p.is_dir() for p in listing(folders["train"]))
    return has_classes or any(name in folders for name in VAL_NAMES)


def find_split(root: Path, folders: dict[str, Path]) -> Found:
    """List train/CLASS/* and val/CLASS/* in `root`, whose `subfolders` are `folders`.

    Raises:
        ValueError: If there is no class folder with images.
    """
    notes: list[str] = []
    faults: list[str] = []
    names = [name for name in VAL_NAMES if name in folders]
    if names and names[0] != "val":
        notes.append(f"{folders[names[0]].name}/ is used for validation")
    notes += [f"{folders[name].name}/ is not used" for name in names[1:]]
    train_folder = folders["train"]
    train = _walk(train_folder, faults)
    val = _walk(folders[names[0]], faults) if names else {}
    present = {c for part in (train, val) for c, files in part.items() if files}
    empty = {c for part in (train, val) for c in part} - present
    classes = _class_names(train_folder, present, empty, faults)
    keys, labels = [], []
    for part, folder in ((train, train_folder), (val, folders[names[0]] if names else root)):
        for label, name in enumerate(classes):
            keys += [f"{folder.name}/{file}" for file in part.get(name, ())]
            labels += [label] * len(part.get(name, ()))
    num_train = sum(map(len, train.values()))
    return Found(
        root=root,
        classes=classes,
        keys=keys,
        labels=labels,
        train=range(num_train),
        val=range(num_train, len(keys)) if names else None,
        notes=tuple(notes),
        faults=tuple(faults),
        take=_taker(root, keys, labels),
    )


def find_plain(root: Path) -> Found:
    """List CLASS/* in `root` as training images without a split.

    Raises:
        ValueError: If there is no class folder with images.
    """
    faults: list[str] = []
    files = _walk(root, faults)
    present = {c for c, names in files.items() if names}
    classes = _class_names(root, present, set(files) - present, faults)
    keys = [name for c in classes for name in files[c]]
    labels = [label for label, c in enumerate(classes) for _ in files[c]]
    return Found(
        root=root,
        classes=classes,
        keys=keys,
        labels=labels,
        train=range(len(keys)),
        val=None,
        notes=(),
        faults=tuple(faults),
        take=_taker(root, keys, labels),
    )


def _taker(root: Path, keys: list[str], labels: list[int]) -> Callable[[Sequence[int]], Samples]:
    def take(which: Sequence[int]) -> Samples:
        return FolderSamples(root, [keys[i] for i in which], [labels[i] for i in which])

    return take


def _class_names(
    folder: Path, present: set[str], empty: set[str], faults: list[str]
) -> tuple[str, ...]:
    """Return the sorted names of the classes that have images.

    Raises:
        ValueError: If no class has images.
    """
    if not present:
        raise ValueError(f"no class folders with images in {folder}: {_seen(folder)}; {LAYOUTS}")
    if empty:
        names = ", ".join(sorted(empty)[:5]) + (" ..." if len(empty) > 5 else "")
        faults.append(f"class folders without images, left out: {len(empty):,} ({names})")
    return tuple(sorted(present))


def _seen(folder: Path) -> str:
    """Describe the contents of a folder in a few words."""
    entries = listing(folder)
    folders = [p.name for p in entries if p.is_dir()]
    endings = Counter(p.suffix.lower() or "no ending" for p in entries if p.is_file())
    parts = [f"{count:,} files {ending}" for ending, count in endings.most_common(3)]
    if folders:
        some = ", ".join(sorted(folders)[:3]) + (" ..." if len(folders) > 3 else "")
        parts.append(f"{len(folders):,} folders ({some})")
    return "it holds " + " and ".join(parts) if parts else "it is empty"


def walk_files(folder: Path) -> list[str]:
    """Return the relative names of all files below a folder, sorted, without hidden ones."""
    names: list[str] = []
    visited: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in visited:  # A link back to a parent folder.
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(here).relative_to(folder)
        names += [(below / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(names)


def _walk(folder: Path, faults: list[str]) -> dict[str, list[str]]:
    """Return the image files of every class folder, as `CLASS/...` relative to `folder`."""
    endings = readable_extensions()
    classes: dict[str, list[str]] = {p.name: [] for p in listing(folder) if p.is_dir()}
    others: Counter[str] = Counter()
    example = ""
    for name in walk_files(folder):
        first, slash, _ = name.partition("/")
        ending = os.path.splitext(name)[1].lower()
        if slash and ending in endings:
            classes[first].append(name)
        elif slash:
            others[ending or "no ending"] += 1
            example = example or name
    if others:
        listed = ", ".join(f"{count:,} {ending}" for ending, count in others.most_common(5))
        faults.append(
            f"files in {folder.name}/ that are not images by their ending, left out: "
            f"{others.total():,} ({listed}, such as {example})"
        )
    return classes


def subfolders(folder: Path) -> dict[str, Path]:
    """Return the folders in a folder by their lowercase names."""
    return {p.name.lower(): p for p in listing(folder) if p.is_dir()}


def listing(folder: Path) -> list[Path]:
    """Return the entries of a folder without hidden ones."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
