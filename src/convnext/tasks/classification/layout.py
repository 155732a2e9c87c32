"""Recognise how a classification data set is laid out on disk, and list what is in it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convnext.images import readable_extensions
from convnext.names import nearest
from convnext.tasks.classification.samples import FolderSamples, Member, Samples, ShardSamples
from convnext.tasks.classification.shards import index_shard

VAL_NAMES = ("val", "validation", "valid", "test")
# Names of folders in data sets for other tasks.
_NOT_CLASSES = {"images", "annotations", "labels", "masks"}
_SHARD_SPLIT = re.compile(rf"(?:^|[-_.])(train|{'|'.join(VAL_NAMES)})(?=[-_.\d]|$)", re.IGNORECASE)

# A label beyond this is damage, not a class.
MAX_CLASSES = 100_000

LAYOUTS = (
    "accepted are train/CLASS/* with val/CLASS/*, CLASS/* without a split, shards train-*.tar "
    "with val-*.tar, or the word digits"
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The images below a path. `train` and `val` are positions in `keys` and `labels`."""

    root: Path
    classes: tuple[str, ...]
    keys: Sequence[str]
    """Names relative to the root."""
    labels: Sequence[int]
    train: Sequence[int]
    val: Sequence[int] | None
    """None where the data has no split of its own."""
    notes: tuple[str, ...]
    faults: tuple[str, ...]
    """As in `ClassificationData`, but not repeated in `notes`."""
    take: Callable[[Sequence[int]], Samples]
    """Return some of the images as samples."""

    def with_train(self, train: Sequence[int]) -> Found:
        """Return the same with fewer training images."""
        return replace(self, train=train)


def find(path: str) -> Found:
    """List the images below `path` and their classes.

    Raises:
        ValueError: If the path is absent, remote, or in no layout that is known; what was found
            instead is said.
    """
    if "://" in path or path.startswith("pipe:"):
        raise ValueError(
            f"{path} is remote, which is not supported: copy the data here and give its folder"
        )
    root = Path(path).expanduser()
    if not root.exists():
        raise ValueError(f"there is no {path}{_near(root)}")
    if root.is_file():
        advice = f"give its folder, {root.parent}" if root.suffix == ".tar" else "give a folder"
        raise ValueError(f"{path} is a file; {advice} ({LAYOUTS})")
    shards = sorted(p for p in _listing(root) if p.suffix == ".tar" and p.is_file())
    if shards:
        return _find_shards(root, shards)
    folders = _folders(root)
    if _is_split(folders):
        return _find_split(root, folders)
    if folders and folders.keys() <= _NOT_CLASSES:
        raise ValueError(
            f"{path} holds {' and '.join(sorted(folders))}, as data for segmentation or detection "
            f"does; for classification {LAYOUTS}"
        )
    for inner in folders.values() if len(folders) == 1 else ():
        if _is_split(_folders(inner)):
            raise ValueError(f"{path} is not the data set itself; give {inner}")
    return _find_plain(root)


def _is_split(folders: dict[str, Path]) -> bool:
    """Tell a training part from a class of that name, beside bus/ and car/, say."""
    if "train" not in folders:
        return False
    has_classes = any(p.is_dir() for p in _listing(folders["train"]))
    return has_classes or any(name in folders for name in VAL_NAMES)


def _find_split(root: Path, folders: dict[str, Path]) -> Found:
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


def _find_plain(root: Path) -> Found:
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
        ValueError: If none has.
    """
    if not present:
        raise ValueError(f"no class folders with images in {folder}: {_seen(folder)}; {LAYOUTS}")
    if empty:
        names = ", ".join(sorted(empty)[:5])
        faults.append(f"{len(empty):,} class folders without images, left out: {names}")
    return tuple(sorted(present))


def _seen(folder: Path) -> str:
    """Say in a few words what a folder holds."""
    entries = _listing(folder)
    folders = [p.name for p in entries if p.is_dir()]
    endings = Counter(p.suffix.lower() or "no ending" for p in entries if p.is_file())
    parts = [f"{count:,} files {ending}" for ending, count in endings.most_common(3)]
    if folders:
        some = ", ".join(sorted(folders)[:3]) + (" ..." if len(folders) > 3 else "")
        parts.append(f"{len(folders):,} folders ({some})")
    return "it holds " + " and ".join(parts) if parts else "it is empty"


def walk_files(folder: Path) -> list[str]:
    """Return the names of all files below a folder, relative and sorted, hidden ones left out."""
    names: list[str] = []
    visited: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in visited:  # A link that leads back up.
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
    classes: dict[str, list[str]] = {p.name: [] for p in _listing(folder) if p.is_dir()}
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
            f"{folder.name}/ has {others.total():,} files that are not images by their ending and "
            f"are left out: {listed} (such as {example})"
        )
    return classes


def _find_shards(root: Path, shards: list[Path]) -> Found:
    notes: list[str] = []
    faults: list[str] = []
    members: list[Member] = []
    raw: list[int | str] = []
    parts: list[str] = []
    for shard in shards:
        match = _SHARD_SPLIT.search(shard.stem)
        index = index_shard(shard)
        faults += index.faults
        members += index.images
        raw += index.labels
        parts += [match.group(1).lower() if match else "train"] * len(index.images)
    if not members:
        detail = f" ({faults[0]})" if faults else ""
        raise ValueError(
            f"the {len(shards)} tar files in {root} hold no sample of an image with a .cls or "
            f".json beside it{detail}"
        )
    classes, labels = _shard_classes(root, members, raw, notes)
    names = [name for name in VAL_NAMES if name in parts]
    if names and names[0] != "val":
        notes.append(f"shards named {names[0]} are used for validation")
    notes += [f"shards named {name} are not used" for name in names[1:]]
    return Found(
        root=root,
        classes=classes,
        keys=[f"{m.shard.name}!{m.name}" for m in members],
        labels=labels,
        train=[i for i, part in enumerate(parts) if part == "train"],
        val=[i for i, part in enumerate(parts) if part == names[0]] if names else None,
        notes=tuple(notes),
        faults=tuple(faults),
        take=lambda which: ShardSamples([members[i] for i in which], [labels[i] for i in which]),
    )


def _shard_classes(
    root: Path, members: list[Member], raw: list[int | str], notes: list[str]
) -> tuple[tuple[str, ...], list[int]]:
    """Return the names of the classes and the label of every sample as a number."""
    listed = root / "classes.txt"
    if listed.is_file():
        text = listed.read_text(encoding="utf-8-sig")
        classes = tuple(line.strip() for line in text.splitlines() if line.strip())
        if len(set(classes)) < len(classes):
            raise ValueError(f"{listed} lists a class twice")
    elif all(isinstance(label, int) for label in raw):
        count = max(int(label) for label in raw) + 1
        if count > MAX_CLASSES:
            raise ValueError(
                f"{root} has the label {count - 1:,}; more than {MAX_CLASSES:,} classes are refused"
            )
        classes = tuple(map(str, range(count)))
        notes.append(f"there is no classes.txt; the {count} classes are numbered")
    else:
        classes = tuple(sorted({str(label) for label in raw}))
    numbers = {name: number for number, name in enumerate(classes)}
    labels: list[int] = []
    for member, label in zip(members, raw, strict=True):
        number = label if isinstance(label, int) and listed.is_file() else numbers.get(str(label))
        if number is None or number >= len(classes):
            raise ValueError(
                f"{member} has the label {label!r}, but classes.txt lists {len(classes)} classes"
            )
        labels.append(number)
    return classes, labels


def _folders(folder: Path) -> dict[str, Path]:
    """Return the folders in a folder by their names in lower case."""
    return {p.name.lower(): p for p in _listing(folder) if p.is_dir()}


def _listing(folder: Path) -> list[Path]:
    """Return what a folder holds, hidden entries left out."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    return nearest(path.name, [p.name for p in _listing(path.parent)][:1000]).partition("; choose")[
        0
    ]
