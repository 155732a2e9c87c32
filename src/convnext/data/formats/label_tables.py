"""Tables of labels beside images, as people have them: labels.csv, train.csv, one-hot _classes.csv.

    labels.csv  images/*                     filename,label; perhaps a column `split`
    train.csv   test.csv   images/*          a table for each split
    {train,valid,test}/_classes.csv          filename and a 0/1 column for each class (Roboflow)

The column of the images is the one whose values are names of image files, with or without a folder
or an ending. The label is the only other column, or the one with a usual name.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convnext.data.formats.class_folders import listing, subfolders
from convnext.data.formats.records import Split
from convnext.data.formats.splits import is_plain_name, split_of, splits_among
from convnext.data.images import readable_extensions, walk_files
from convnext.data.samples import FolderSamples, ImageListing
from convnext.documents import read_regular

ENDINGS = (".csv", ".tsv")
ONE_HOT = "_classes.csv"
# Tables that are read if there are several, the first one first.
_NAMES = ("labels", "label", "train_labels", "annotations", "metadata", "data", "list")
_LABELS = (
    "label", "class", "labels", "class_name", "classname", "category", "target", "species", "breed",
    "diagnosis", "y", "label_name", "category_name",
)  # fmt: skip
_SPLITS = ("split", "set", "subset", "partition", "usage")
# Rows that tell which column has the images.
NUM_ROWS = 200
# Images of several classes are left out up to this fraction of the rows.
MAX_SEVERAL = 0.01


@dataclass(kw_only=True)
class _Row:
    line: int
    key: str
    """The image, relative to the root."""
    label: str
    split: str = ""


@dataclass(kw_only=True)
class _Read:
    """The rows of a table, and what was left out."""

    path: Path
    rows: list[_Row] = field(default_factory=list)
    columns: tuple[str, str] = ("", "")
    classes: tuple[str, ...] = ()
    """For a one-hot table."""
    absent: list[str] = field(default_factory=list)
    none: list[int] = field(default_factory=list)
    several: list[int] = field(default_factory=list)
    has_split: bool = False


def is_labeled(root: Path) -> bool:
    """Whether a folder has tables of labels, and no class folders."""
    folders = subfolders(root)
    if any((root / name / ONE_HOT).is_file() for name in ("", *folders)):
        return True
    if not any(p.suffix.lower() in ENDINGS for p in listing(root) if p.is_file()):
        return False
    inner = [child for p in folders.values() if is_plain_name(p.name) for child in subfolders(p)]
    return all(map(is_plain_name, folders)) and all(map(is_plain_name, inner))


def find_labeled(root: Path, path: Path | None = None) -> ImageListing:
    """List the images of the tables in a folder, or of one table.

    Raises:
        ValueError: If it is not clear which table or column is meant, or no image is found.
    """
    index = _Index(root)
    notes: list[str] = []
    tables = {"": path} if path else _tables(root, notes)
    read = {split: _read(table, root, index) for split, table in tables.items()}
    faults: list[str] = []
    for table in read.values():
        _note(table, root, notes, faults)
    classes = next((t.classes for t in read.values() if t.classes), ()) or tuple(
        sorted({row.label for table in read.values() for row in table.rows})
    )
    label_of = {name: label for label, name in enumerate(classes)}
    keys: list[str] = []
    labels: list[int] = []
    parts: dict[Split, list[int]] = {}
    for name, table in read.items():
        for row in table.rows:
            split = split_of(row.split) if table.has_split else split_of(name) if name else "train"
            if split is None:
                raise ValueError(
                    f"{table.path}, line {row.line}: the split is {row.split!r}, but must be "
                    "train, val or test"
                )
            parts.setdefault(split, []).append(len(keys))
            keys.append(row.key)
            labels.append(label_of[row.label])
    if not keys:
        raise ValueError(
            f"none of the images in {', '.join(str(t.path) for t in read.values())} is below {root}"
        )
    if "train" not in parts:
        raise ValueError(f"the tables of {root} list no training images")
    _note_rest(index, keys, faults)
    return ImageListing(
        root=root,
        classes=classes,
        keys=keys,
        labels=labels,
        train=parts["train"],
        val=parts.get("val"),
        test=parts.get("test"),
        layout="table of labels",
        split=_split_from(read, root),
        notes=tuple(notes),
        faults=tuple(faults),
        take=lambda which: FolderSamples(
            root, [keys[i] for i in which], [labels[i] for i in which]
        ),
    )


def _split_from(read: Mapping[str, _Read], root: Path) -> str:
    tables = [table.path.relative_to(root).as_posix() for name, table in read.items() if name]
    if tables:
        return f"tables {', '.join(tables)}"
    return "a column of the table" if any(table.has_split for table in read.values()) else ""


class _Index:
    """The image files below a folder, found by a path, a name, or a name without its ending."""

    def __init__(self, root: Path) -> None:
        self.root = root
        endings = readable_extensions()
        self.files = [f for f in walk_files(root) if os.path.splitext(f)[1].lower() in endings]
        self._known: dict[str, str | None] = {}
        for file in self.files:
            bare = os.path.splitext(file)[0]
            for name in {file, bare, os.path.basename(file), os.path.basename(bare)}:
                # None for a name that stands for several files.
                self._known[name] = None if name in self._known else file
        for file in self.files:
            self._known[file] = file

    def find(self, value: str, below: str = "") -> str | None:
        """Return the file that a value names, perhaps below a folder; None if there is none."""
        name = value.strip().replace("\\", "/").removeprefix("./").lstrip("/")
        for text in (f"{below}/{name}" if below else name, name):
            if found := self._known.get(text):
                return found
        return self._known.get(os.path.basename(name)) if name else None


def _tables(root: Path, notes: list[str]) -> dict[str, Path]:
    """Return the tables of a folder by the names of their splits, "" for a table of all images.

    Raises:
        ValueError: If several tables could be meant.
    """
    folders = subfolders(root)
    one_hot = {
        name: folders[name] / ONE_HOT
        for names in splits_among(folders).values()
        for name in names
        if (folders[name] / ONE_HOT).is_file()
    }
    if one_hot:
        return one_hot
    files = {p.stem: p for p in listing(root) if p.is_file() and p.suffix.lower() in ENDINGS}
    if "_classes" in files:
        return {"": files["_classes"]}
    whole = [name for name in _NAMES if name in {stem.lower() for stem in files}]
    if whole:
        taken = next(path for stem, path in files.items() if stem.lower() == whole[0])
        others = [path.name for path in files.values() if path != taken]
        if others:
            notes.append(f"{taken.name} is read; not used: {', '.join(others)}")
        return {"": taken}
    of_splits = splits_among(files)
    if "train" in of_splits:
        found = {names[0]: files[names[0]] for names in of_splits.values()}
        return {
            name: path
            for name, path in found.items()
            if split_of(name) == "train"
            or len(_header(path)) == len(_header(files[of_splits["train"][0]]))
        }
    if len(files) == 1:
        return {"": next(iter(files.values()))}
    raise ValueError(
        f"{root} has several tables: {', '.join(p.name for p in files.values())}; give the one to "
        "use as --data"
    )


def _header(path: Path) -> list[str]:
    return _rows(path)[0]


def _rows(path: Path) -> list[list[str]]:
    try:
        text = read_regular(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8; save it as UTF-8 ({error})") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(row)]
    if len(rows) < 2:
        raise ValueError(f"{path} has no rows")
    return [[cell.strip() for cell in row] for row in rows]


def _read(path: Path, root: Path, index: _Index) -> _Read:
    header, *rows = _rows(path)
    below = path.parent.relative_to(root).as_posix() if path.parent != root else ""
    width = len(header)
    for line, row in enumerate(rows, start=2):
        if len(row) != width:
            raise ValueError(f"{path}, line {line}: {len(row)} columns, but the header has {width}")
    image = _image_column(path, header, rows, index, below)
    found = _Read(path=path)
    split = next((i for i, name in enumerate(header) if name.lower() in _SPLITS), None)
    found.has_split = split is not None and all(split_of(row[split]) for row in rows[:NUM_ROWS])
    others = [
        i for i in range(width) if i != image and header[i] and not (found.has_split and i == split)
    ]
    hot = [i for i in others if all(row[i] in ("0", "1", "0.0", "1.0") for row in rows)]
    is_one_hot = len(hot) >= 2 and (len(hot) == len(others) or path.name == ONE_HOT)
    label = -1 if is_one_hot else _label_column(path, header, others)
    found.columns = header[image], "the columns of 0 and 1" if is_one_hot else header[label]
    found.classes = tuple(header[i] for i in hot) if is_one_hot else ()
    for line, row in enumerate(rows, start=2):
        key = index.find(row[image], below)
        if key is None:
            found.absent.append(row[image])
            continue
        names = [header[i] for i in hot if float(row[i])] if is_one_hot else [row[label]]
        if not names or not names[0]:
            found.none.append(line)
        elif len(names) > 1:
            found.several.append(line)
        else:
            found.rows.append(
                _Row(
                    line=line,
                    key=key,
                    label=names[0],
                    split=row[split] if split is not None else "",
                )
            )
    if len(found.several) > MAX_SEVERAL * len(rows):
        raise ValueError(
            f"{path}: {len(found.several):,} of {len(rows):,} images have several classes (such as "
            f"line {found.several[0]}), but a classifier learns one class for each image"
        )
    return found


def _image_column(
    path: Path, header: list[str], rows: Sequence[list[str]], index: _Index, below: str
) -> int:
    some = rows[:: max(1, len(rows) // NUM_ROWS)]
    counts = [
        sum(index.find(row[i], below) is not None for row in some) for i in range(len(header))
    ]
    best = max(range(len(header)), key=lambda i: counts[i])
    if not counts[best]:
        raise ValueError(
            f"{path}: no column has names of image files below {index.root}; it has "
            f"{', '.join(header)}"
        )
    return best


def _label_column(path: Path, header: list[str], others: Sequence[int]) -> int:
    named = [i for name in _LABELS for i in others if header[i].lower() == name]
    if len(others) == 1:
        return others[0]
    if named:
        return named[0]
    listed = ", ".join(header[i] for i in others) or "none"
    raise ValueError(f"{path}: the column of the labels could be any of {listed}; name it `label`")


def _note(table: _Read, root: Path, notes: list[str], faults: list[str]) -> None:
    where = table.path.relative_to(root).as_posix() if table.path.is_relative_to(root) else ""
    where = where or str(table.path)
    notes.append(
        f"{where}: images by the column {table.columns[0]!r}, labels by "
        + (table.columns[1] if table.classes else f"the column {table.columns[1]!r}")
    )
    for what, left in (
        ("rows without an image file", table.absent),
        ("rows without a class, by line", table.none),
        ("rows with several classes, by line", table.several),
    ):
        if left:
            faults.append(f"{where}: {what}, left out: {len(left):,} (such as {left[0]})")
    twice = [key for key, n in Counter(row.key for row in table.rows).items() if n > 1]
    if twice:
        labels = {row.label for row in table.rows if row.key == twice[0]}
        if len(labels) > 1:
            raise ValueError(
                f"{table.path} gives {twice[0]} several labels: {', '.join(sorted(labels))}"
            )
        faults.append(f"{where}: images listed twice: {len(twice):,} (such as {twice[0]})")


def _note_rest(index: _Index, keys: Sequence[str], faults: list[str]) -> None:
    rest = sorted(set(index.files) - set(keys))
    if rest:
        faults.append(f"images that no table lists, left out: {len(rest):,} (such as {rest[0]})")
