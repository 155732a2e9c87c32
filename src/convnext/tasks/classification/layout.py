"""Recognise how a classification data set is laid out on disk, and list what is in it."""

from __future__ import annotations

import re
from pathlib import Path

from convnext.names import nearest
from convnext.tasks.classification.folders import (
    LAYOUTS,
    VAL_NAMES,
    find_plain,
    find_split,
    is_split,
    listing,
    subfolders,
)
from convnext.tasks.classification.samples import Found, Member, ShardSamples
from convnext.tasks.classification.shards import index_shard

# Names of folders in data sets for other tasks.
_NOT_CLASSES = {"images", "annotations", "labels", "masks"}
_SHARD_SPLIT = re.compile(rf"(?:^|[-_.])(train|{'|'.join(VAL_NAMES)})(?=[-_.\d]|$)", re.IGNORECASE)

# A label beyond this is damage, not a class.
MAX_CLASSES = 100_000


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
    folders = subfolders(root)
    if is_split(folders):
        return find_split(root, folders)
    shards = sorted(p for p in listing(root) if p.suffix == ".tar" and p.is_file())
    # A tar beside class folders is what they were unpacked from, unless its name tells its part.
    if shards and (not folders or any(_SHARD_SPLIT.search(p.stem) for p in shards)):
        return _find_shards(root, shards)
    if folders and folders.keys() <= _NOT_CLASSES:
        raise ValueError(
            f"{path} holds {' and '.join(sorted(folders))}, as data for segmentation or detection "
            f"does; for classification {LAYOUTS}"
        )
    for inner in folders.values() if len(folders) == 1 else ():
        if is_split(subfolders(inner)):
            raise ValueError(f"{path} is not the data set itself; give {inner}")
    return find_plain(root)


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


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    suggestion = nearest(path.name, [p.name for p in listing(path.parent)][:1000])
    return suggestion if "did you mean" in suggestion else ""
