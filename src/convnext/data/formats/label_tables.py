"""Tables of labels beside images, as people have them: labels.csv, train.csv, one-hot _classes.csv.

    labels.csv  images/*                     filename,label; perhaps a column `split`
    train.csv   test.csv   images/*          a table for each split; also texts of `name label`
    {train,valid,test}/_classes.csv          filename and a 0/1 column for each class (Roboflow)
    {train,test}/metadata.{csv,jsonl,parquet}  file_name and label (Hugging Face's imagefolder)

The column of the images is the one whose values are names of image files, with or without a folder
or an ending. The label is the only other column, or the one with a usual name. Labels such as
`cat|dog`, and columns of 0 and 1 of which several or none are 1, make the data multi-label.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from convnext.data.contents import hash_of_file
from convnext.data.formats.class_folders import (
    has_class_folders,
    listing,
    split_folders,
    subfolders,
)
from convnext.data.formats.parquet import ENDINGS, table_rows
from convnext.data.formats.paths import is_plain_name, split_of, splits_among, words_of
from convnext.data.formats.records import Split
from convnext.data.formats.tables import (
    CLASS_COLUMNS,
    MAX_SEVERAL,
    ONE_LABEL,
    SPLIT_COLUMNS,
    LabelCells,
    TableColumns,
    check_once,
    class_columns,
    label_cells,
    label_text,
    listed_labels,
    parts_of_rows,
)
from convnext.data.formats.text_lists import LABELS, NUM_ROWS, TABLES, rows_of_text
from convnext.data.images import readable_extensions, walk_files
from convnext.data.samples import ImageListing, LabelKind, taker
from convnext.documents import read_json, read_regular

ONE_HOT = "_classes.csv"
# Hugging Face's table beside the images.
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_TABLES = (*TABLES, ".jsonl", ".parquet")
# Tables that are read if there are several, the first one first.
_NAMES = ("labels", "label", "train_labels", "annotations", "metadata", "data", "list")
_VALIDITY = ("is_valid", "is_val", "is_validation", "valid")
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
# Columns of masks, as competitions have them.
_RUNS = ("encodedpixels", "rle_mask", "rle", "encoded_pixels", "rle_encoding", "mask_rle")
# Columns of text that are not classes, even if there is no other.
_TEXTS = ("text", "caption", "captions", "description", "prompt", "additional_feature")
# A larger json is not a table of labels.
MAX_JSON = 64 * 2**20
# Class folders with more files are not compared with a table beside them.
MAX_COMPARED = 200_000
# With this many rows or more, labels that all differ are not classes.
MIN_ROWS = 4


@dataclass(kw_only=True)
class _Row:
    line: int
    key: str
    """The image, relative to the root."""
    label: str
    """For several labels, all of them as one text."""
    split: str = ""
    fold: str = ""
    group: str = ""
    labels: Mapping[str, float] = field(default_factory=dict)
    """The labels with their values."""


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
    fold: str = ""
    """The column of the folds."""
    group: str = ""
    """The column of the groups."""
    kind: LabelKind = "single"
    separator: str = ""
    """How several labels are written, as for `TableColumns`."""
    negative: list[int] = field(default_factory=list)
    """The lines of images without any label, if images may have several."""


def is_labeled(root: Path) -> bool:
    """Whether a folder has tables of labels, and no class folders.

    Raises:
        ValueError: If its folders may be the classes, but a table gives the images other ones.
    """
    folders = subfolders(root)
    places = [root, *folders.values()]
    if any((place / name).is_file() for place in places for name in (ONE_HOT, *METADATA)):
        return True
    if not any(
        p.suffix.lower() in (*_TABLES, ".txt", ".json") for p in listing(root) if p.is_file()
    ):
        return False
    inner = [child for p in folders.values() if is_plain_name(p.name) for child in subfolders(p)]
    if all(map(is_plain_name, folders)) and all(map(is_plain_name, inner)):
        return bool(_candidates(root, _Index(root) if _texts(root) else None))
    if split_folders(root)[0] or has_class_folders(root):
        _check_folders(root)
        return False
    return _wins(root)


def _check_folders(root: Path) -> None:
    """Refuse class folders of splits if a table beside them gives their images other labels.

    A column of another name than that of a label does not count, and large data is not compared.

    Raises:
        ValueError: If both could give the classes.
    """
    tables = _candidates(root, None)
    if not tables or len(list(islice(walk_files(root), MAX_COMPARED + 1))) > MAX_COMPARED:
        return
    index = _Index(root)
    for path in tables.values():
        try:
            read = _read(path, root, index, TableColumns())
        except ValueError:  # Not a table of these images.
            continue
        if read.columns[1].lower() not in {f"the column {name!r}" for name in LABELS}:
            continue
        pairs = {(row.label, os.path.basename(os.path.dirname(row.key))) for row in read.rows}
        pairs = {pair for pair in pairs if not is_plain_name(pair[1])}
        labels, folders = ({pair[i] for pair in pairs} for i in (0, 1))
        if not len(pairs) == len(labels) == len(folders):
            raise _both(root, sorted(folders), path)


def _both(root: Path, folders: Sequence[str], table: Path) -> ValueError:
    return ValueError(
        f"the classes of {root} may be its folders ({', '.join(folders[:3])} ...) or the labels in "
        f"{table.name}: give --loader.layout class_folders (--layout of `data`) for the folders, "
        f"or the table as --data {table}"
    )


def _wins(root: Path) -> bool:
    """Whether the tables of a folder give the classes, rather than its folders.

    Raises:
        ValueError: If both could.
    """
    index = _Index(root)
    if len({file.split("/")[0] for file in index.files if "/" in file}) < 2:
        return any(_has_images(p, root, index) for p in _candidates(root, index).values())
    try:
        tables = _tables(root, index, [])
        read = [_read(path, root, index, TableColumns()) for path in tables.values()]
    except ValueError:  # Not tables of these images.
        return False
    rows = [row for table in read for row in table.rows]
    folders = {row.key.split("/")[0] if "/" in row.key else "" for row in rows}
    # Folders like images_001 and images_002 are parts, not classes.
    parts = {tuple(word for word in words_of(name) if word) for name in folders}
    is_part = len(parts) == 1 and all(
        re.search(r"\d|images?|imgs?", name, re.I) for name in folders
    )
    if not rows or len(folders) < 2 or is_part:
        return bool(rows)
    pairs = {(row.label, row.key.split("/")[0]) for row in rows}
    if len(pairs) == len(folders) == len({row.label for row in rows}):
        return False  # The same classes, perhaps under numbers.
    raise _both(root, sorted(folders), read[0].path)


def find_labeled(
    root: Path, path: Path | None = None, columns: TableColumns | None = None
) -> ImageListing:
    """List the images of the tables in a folder, or of one table.

    Long because every column of every table ends up in the listing.

    Args:
        root: The folder that the images are below.
        path: The table; by default the one in the folder.
        columns: The columns that the user names.

    Raises:
        ValueError: If it is not clear which table or column is meant, or no image is found.
    """
    index = _Index(root)
    notes: list[str] = []
    tables = {"": path} if path else _tables(root, index, notes)
    columns = TableColumns() if columns is None else columns
    read = _read_alike(tables, root, index, columns)
    faults: list[str] = []
    for table in read.values():
        _note(table, root, notes, faults)
    keys: list[str] = []
    named: list[Mapping[str, float]] = []
    splits: list[Split] = []
    folds, groups = list[str](), list[str]()
    for name, table in read.items():
        for row in table.rows:
            stated = row.split if table.has_split else name
            split = split_of(stated) if stated or table.has_split else "train"
            if split is None:
                raise ValueError(
                    f"{table.path}, line {row.line}: the split is {row.split!r}, but must be "
                    "train, val or test"
                )
            splits.append(split)
            folds.append(row.fold)
            groups.append(row.group)
            keys.append(row.key)
            named.append(row.labels)
    if not keys:
        raise ValueError(
            f"none of the images in {', '.join(str(t.path) for t in read.values())} is below {root}"
        )
    column = next((table.fold for table in read.values() if table.fold), "")
    parts, held = parts_of_rows(
        splits,
        folds if column else None,
        columns,
        where=str(root),
        of_folds=f"the column {column!r}",
    )
    if column and not held:
        notes.append(
            f"the column {column!r} is not used, since the tables state the images for validation; "
            "--fold N holds out a fold instead"
        )
    if "train" not in parts:
        raise ValueError(f"the tables of {root} list no training images")
    _note_rest(index, keys, notes, faults)
    of_columns = next((table.classes for table in read.values() if table.classes), ())
    kind = next(iter(read.values())).kind
    classes, labels, targets = listed_labels(kind, named, of_columns)
    return ImageListing(
        root=root,
        classes=classes,
        keys=keys,
        labels=labels,
        train=parts["train"],
        val=parts.get("val"),
        test=parts.get("test"),
        layout="table of labels",
        split=held or _split_from(read, root),
        groups=groups if any(table.group for table in read.values()) else (),
        notes=tuple(notes),
        faults=tuple(faults),
        take=taker(root, keys, labels, kind, targets),
        kind=kind,
        targets=targets,
    )


def _read_alike(
    tables: Mapping[str, Path], root: Path, index: _Index, columns: TableColumns
) -> dict[str, _Read]:
    """Read the tables of all splits: images of one may have several labels only if those of all do.

    Raises:
        ValueError: As `_read`, or if only some of the tables have probabilities, or if the columns
            of the classes differ.
    """
    read = {split: _read(table, root, index, columns) for split, table in tables.items()}
    several = next((table for table in read.values() if table.kind == "multi"), None)
    is_soft = any(table.kind == "soft" for table in read.values())
    if several is not None and not columns.separator:
        columns = replace(columns, separator=several.separator)
    for split, table in read.items():
        if table.kind == "single" and several is not None:
            read[split] = _read(tables[split], root, index, columns)
        elif table.kind == "single" and table.classes and is_soft:
            table.kind = "soft"  # The probabilities are 0 and 1.
    first, *others = read.values()
    for table in others:
        if table.kind != first.kind or sorted(table.classes) != sorted(first.classes):
            raise ValueError(
                f"{first.path} and {table.path} have other columns of classes or another number of "
                "labels for each image"
            )
    return read


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
        self.copies: set[str] = set()
        """Names of several files with the same contents."""
        self._known: dict[str, list[str]] = {}
        for file in self.files:
            bare = os.path.splitext(file)[0]
            for name in {file, bare, os.path.basename(file), os.path.basename(bare)}:
                self._known.setdefault(name, []).append(file)
        for file in self.files:
            self._known[file] = [file]

    def find(self, value: str, below: str = "") -> str | None:
        """Return the file that a value names, perhaps below a folder; None if there is none."""
        name = value.strip().replace("\\", "/").removeprefix("./").lstrip("/")
        last = os.path.basename(name)
        for text in (f"{below}/{name}" if below else name, name, last):
            if text and (found := self._known.get(text)):
                return found[0] if len(found) == 1 else self._same(text, found)
        return None

    def _same(self, name: str, files: list[str]) -> str | None:
        """Return the first of files that are equal; None if they differ."""
        if len({hash_of_file(self.root / file) for file in files}) > 1:
            return None
        self._known[name] = files[:1]
        self.copies.update(files[1:])
        return files[0]


def _texts(root: Path) -> bool:
    return any(p.suffix.lower() in (".txt", ".json") and p.is_file() for p in listing(root))


def _tables(root: Path, index: _Index, notes: list[str]) -> dict[str, Path]:
    """Return the tables of a folder by the names of their splits, "" for a table of all images.

    Raises:
        ValueError: If several tables could be meant.
    """
    folders = subfolders(root)
    for wanted in ((ONE_HOT,), METADATA):
        in_folders = {
            name: folders[name] / file
            for names in splits_among(folders).values()
            for name in names
            for file in wanted
            if (folders[name] / file).is_file()
        }
        if in_folders:
            return in_folders
        here = next((root / file for file in wanted if (root / file).is_file()), None)
        if here is not None and (wanted != METADATA or _has_images(here, root, index)):
            return {"": here}
        inner = [p / file for p in folders.values() for file in wanted if (p / file).is_file()]
        if len(inner) == 1:
            return {"": inner[0]}
    files = _candidates(root, index)
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
    if len(files) > 1:  # Other tables say something else than the names of images.
        with_images = {n: p for n, p in files.items() if _has_images(p, root, index)}
        if len(with_images) == 1:
            others = [path.name for path in files.values() if path not in with_images.values()]
            notes.append(f"{', '.join(others)}: no column has names of image files; not used")
            files = with_images
    if len(files) == 1:
        return {"": next(iter(files.values()))}
    raise ValueError(
        f"{root} has several tables: {', '.join(p.name for p in files.values())}; give the one to "
        "use as --data"
    )


def _candidates(root: Path, index: _Index | None) -> dict[str, Path]:
    """Return the tables of a folder by their names; texts count only if they name images."""
    files = [p for p in listing(root) if p.is_file() and "submission" not in p.stem.lower()]
    tables = {p.stem: p for p in files if p.suffix.lower() in _TABLES}
    if tables or index is None:
        return tables
    usual = [p for p in files if p.stem.lower() in _NAMES or split_of(p.stem)]
    texts = [p for p in usual if p.suffix.lower() in (".txt", ".json")]
    return {p.stem: p for p in texts if _has_images(p, root, index)}


def _has_images(path: Path, root: Path, index: _Index) -> bool:
    """Whether a column of a table has names of images."""
    try:
        header, *rows = _rows(path)
        _image_column(path, header, rows, index, _below(path, root))
    except ValueError:
        return False
    return True


def names_images(path: Path) -> bool:
    """Whether a column of a table has names of image files below its folder."""
    return _has_images(path, path.parent, _Index(path.parent))


def _below(path: Path, root: Path) -> str:
    """Return the folder that names in a table are looked for in first, relative to the root.

    It is that of the table, or the only folder of the split that the table is for.
    """
    if path.parent != root:
        return path.parent.relative_to(root).as_posix()
    split = split_of(path.stem)
    named = splits_among(subfolders(root)).get(split, []) if split else []
    return named[0] if len(named) == 1 else ""


def _header(path: Path) -> list[str]:
    return _rows(path)[0]


def _rows(path: Path) -> list[list[str]]:
    """Return the header and the rows of a table; texts have the columns image and label.

    Raises:
        ValueError: If it cannot be read, or has no rows.
    """
    if path.suffix.lower() in ENDINGS:
        rows = table_rows(path)
    elif path.suffix.lower() == ".jsonl":
        rows = _rows_of_lines(path)
    elif path.suffix.lower() == ".json":
        rows = _rows_of_json(path)
    else:
        rows = rows_of_text(path)
    if path.suffix.lower() == ".txt":
        if any(len(row) != 2 for row in rows):
            raise ValueError(f"{path}: a line must have the name of an image and its class")
        rows.insert(0, ["first word", "second word"])
    if len(rows) < 2:
        raise ValueError(f"{path} has no rows")
    return rows


def _rows_of_json(path: Path) -> list[list[str]]:
    """Return the rows of a json: labels by the names of images, or a list of flat objects.

    Raises:
        ValueError: If it is something else.
    """
    content = read_json(path, max_bytes=MAX_JSON)
    if isinstance(content, dict) and content:
        if all(isinstance(value, str | int) for value in content.values()):
            return [["name", "label"], *([name, str(value)] for name, value in content.items())]
        if all(map(_is_list_of_labels, content.values())):
            return [["name", "label"], *([n, json.dumps(value)] for n, value in content.items())]
    elif isinstance(content, list) and content and all(map(_is_flat, content)):
        return _rows_of_entries(content)
    raise ValueError(f"{path} has neither labels by image nor a list of images with a label each")


def _is_flat(entry: object) -> bool:
    plain = (str, int, float, bool, type(None))
    return isinstance(entry, dict) and all(
        isinstance(value, plain) or _is_list_of_labels(value) for value in entry.values()
    )


def _is_list_of_labels(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(part, str | int) for part in value)


def _rows_of_lines(path: Path) -> list[list[str]]:
    """Return the rows of JSON lines, the header first.

    Raises:
        ValueError: If a line is not an object of JSON.
    """
    entries = []
    for number, line in enumerate(read_regular(path).splitlines(), 1):
        try:
            entry = json.loads(line) if line.strip() else {}
        except ValueError as error:
            raise ValueError(f"{path}:{number}: is not JSON: {error}") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{path}:{number}: is not an object such as {{}} in JSON")
        entries += [entry] if entry else []
    return _rows_of_entries(entries)


def _rows_of_entries(entries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    header = list(dict.fromkeys(key for entry in entries for key in entry))

    def cell(value: object) -> str:
        return "" if value is None else value if isinstance(value, str) else json.dumps(value)

    return [header, *([cell(entry.get(key)).strip() for key in header] for entry in entries)]


def _read(path: Path, root: Path, index: _Index, columns: TableColumns) -> _Read:
    """Read a table.

    Long because what a column means depends on all others.

    Raises:
        ValueError: If it is not clear what a column means, or most rows do not fit.
    """
    header, *rows = _rows(path)
    below = _below(path, root)
    columns.check(header, path)
    if not columns.named() and any(
        index.find(cell, below) for cell in header
    ):  # The first row is an image as well.
        rows.insert(0, header)
        header = [f"column {number}" for number in range(1, len(header) + 1)]
    width = len(header)
    for line, row in enumerate(rows, start=2):
        if len(row) != width:
            raise ValueError(f"{path}, line {line}: {len(row)} columns, but the header has {width}")
    runs = next((name for name in header if name.lower() in _RUNS), "")
    if runs and not columns.label:
        raise ValueError(
            f"{path}: the column {runs!r} has masks as run lengths, which are not read from "
            "tables: for segmentation, save them as PNG; for classification, name the column of "
            "the classes with --columns label=NAME"
        )
    if columns.image:
        image = header.index(columns.image)
    else:
        image = _image_column(path, header, rows, index, below)
    named = columns.others(header, path)[1], columns.group_column(header)
    found = _Read(path=path, fold=named[0], group=named[1])
    split = _split_column(header, rows, image, columns)
    is_split = split is not None and all(split_of(row[split]) for row in rows[:NUM_ROWS])
    found.has_split = is_split or bool(columns.split)
    fold = header.index(found.fold) if found.fold else None
    group = header.index(found.group) if found.group else None
    left_out = {image, fold, group, split if found.has_split else image}
    others = [i for i in range(width) if header[i] and i not in left_out]
    found.columns, cells = _label_cells(path, header, rows, others, columns)
    used = (header[image], "" if cells.classes else found.columns[0], found.fold)
    check_once(header, used, path)
    found.columns = header[image], found.columns[1]
    found.classes, found.kind, found.separator = cells.classes, cells.kind, cells.separator
    for line, (row, labels) in enumerate(zip(rows, cells.rows, strict=True), start=2):
        key = index.find(row[image], below)
        if key is None:
            found.absent.append(row[image])
            continue
        if found.kind == "single" and len(labels) != 1:
            (found.several if labels else found.none).append(line)
            continue
        if not labels:
            found.negative.append(line)
        found.rows.append(
            _Row(
                line=line,
                key=key,
                label=label_text(labels),
                labels=labels,
                split=row[split] if split is not None else "",
                fold=row[fold] if fold is not None else "",
                group=row[group] if group is not None else "",
            )
        )
    if found.kind == "single":
        _leave_out_several(found, len(rows), is_sure=columns.separator == ONE_LABEL)
    return found


def _label_cells(
    path: Path,
    header: list[str],
    rows: Sequence[Sequence[str]],
    others: Sequence[int],
    columns: TableColumns,
) -> tuple[tuple[str, str], LabelCells]:
    """Return the labels of the rows, with the column of one label and a text on the columns.

    Raises:
        ValueError: If it is not clear which column has the labels, or what its cells mean.
    """
    is_named = any(header[i].lower() in LABELS for i in others)
    if not columns.label and (not is_named or path.name == ONE_HOT):
        hot = [i for i in others if all(row[i] in ("0", "1", "0.0", "1.0") for row in rows)]
        which = hot if path.name == ONE_HOT else others
        cells = [[row[i] for i in which] for row in rows]
        names = [header[i] for i in which]
        if (found := class_columns(names, cells, columns.separator, str(path))) is not None:
            return ("", found.said), found
    label = header.index(columns.label) if columns.label else _label_column(path, header, others)
    name = header[label]
    texts = [row[label] for row in rows]
    where = f"{path}, column {name!r}"
    if (found := label_cells(texts, columns.separator, where)) is not None:
        return (name, f"the column {name!r}, {found.said}"), found
    single = [{text: 1.0} if text else {} for text in texts]
    found = LabelCells(kind="single", rows=single, separator=ONE_LABEL, said="")
    return (name, f"the column {name!r}"), found


def _leave_out_several(found: _Read, num_rows: int, *, is_sure: bool) -> None:
    """Leave out the few images of several labels in a table of one label each.

    Args:
        found: The table.
        num_rows: The number of its rows.
        is_sure: Whether the user says that each cell is one label.

    Raises:
        ValueError: If they are many, or every image has a label of its own.
    """
    labels = {row.label for row in found.rows}
    is_listed = not found.classes and not is_sure
    joined = {label for label in labels if is_listed and _parts_of(label, labels)}
    found.several += [row.line for row in found.rows if row.label in joined]
    found.rows = [row for row in found.rows if row.label not in joined]
    labels -= joined
    if not found.classes and len(labels) == len({row.key for row in found.rows}) >= MIN_ROWS:
        raise ValueError(
            f"{found.path}: {found.columns[1]} has another value for every image, which are not "
            "classes; name the column of the classes `label`"
        )
    if len(found.several) > MAX_SEVERAL * num_rows:
        raise ValueError(
            f"{found.path}: {len(found.several):,} of {num_rows:,} images have several classes "
            f"(such as line {found.several[0]}), but --columns separator={ONE_LABEL} reads one: "
            "leave it out, or leave one class in each row"
        )


def _split_column(
    header: list[str], rows: list[list[str]], image: int, columns: TableColumns
) -> int | None:
    """Return the column of the split; one that marks validation gets the names of splits."""
    if columns.split:
        named = header.index(columns.split)
        if _is_validity(_VALIDITY[0], rows, named):
            _name_splits(rows, named)
        return named
    split = next((i for i, name in enumerate(header) if name.lower() in SPLIT_COLUMNS), None)
    if split is None:
        split = next((i for i in range(len(header)) if i != image and _are_splits(rows, i)), None)
    if split is None:
        split = next((i for i in range(len(header)) if _is_validity(header[i], rows, i)), None)
        if split is not None:
            _name_splits(rows, split)
    return split


def _name_splits(rows: Sequence[list[str]], column: int) -> None:
    """Replace true and false in a column that marks validation by the names of splits."""
    for row in rows:
        row[column] = "val" if row[column].lower() in _TRUE else "train"


def _is_validity(name: str, rows: Sequence[Sequence[str]], column: int) -> bool:
    """Whether a column tells which images are for validation, as fastai's `is_valid` does."""
    values = {row[column].lower() for row in rows}
    return name.lower() in _VALIDITY and len(values) == 2 and values <= {*_TRUE, *_FALSE}


def _are_splits(rows: Sequence[Sequence[str]], column: int) -> bool:
    """Whether all values of a column are names of splits, `train` and another among them."""
    splits = {split_of(row[column]) for row in rows}
    return None not in splits and "train" in splits and len(splits) > 1


def _parts_of(label: str, labels: Collection[str]) -> list[str]:
    """Return the labels that a label joins, such as "Mass|Nodule"; [] if it is one label."""
    parts = [part.strip() for part in re.split(r"[|;]", label)]
    if len(parts) < 2:
        parts = next((label.split(sign) for sign in (",", " ") if sign in label), [])
        parts = [part.strip() for part in parts]
        return parts if len(parts) > 1 and all(part in labels for part in parts) else []
    return parts


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
    others = [i for i in others if header[i].lower() not in _TEXTS]
    named = [i for name in LABELS for i in others if header[i].lower() == name]
    if not named:  # `Finding Labels`
        worded = [i for i in others if {"label", "labels"} & set(words_of(header[i]))]
        named = worded if len(worded) == 1 else []
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
        f"{where}: images by the column {table.columns[0]!r}, labels by {table.columns[1]}"
    )
    for what, left in (
        ("rows without an image file", table.absent),
        ("rows without a class, by line", table.none),
        ("rows with several classes, by line", table.several),
    ):
        if left:
            faults.append(f"{where}: {what}, left out: {len(left):,} (such as {left[0]})")
    if table.classes and (table.none or table.several):
        notes.append(
            f"{where}: --columns separator={CLASS_COLUMNS} keeps the images of several classes or "
            "none, and makes the data multi-label"
        )
    if table.negative:
        notes.append(
            f"{where}: images without any label, negatives of every class: "
            f"{len(table.negative):,} (such as line {table.negative[0]})"
        )
    twice = [key for key, n in Counter(row.key for row in table.rows).items() if n > 1]
    if twice:
        again = set(twice)
        first: dict[str, _Row] = {}
        for row in table.rows:
            if row.key not in again:
                continue
            other = first.setdefault(row.key, row)
            # Of two splits, folds or groups, it would be in training and in validation.
            for name in ("label", "split", "fold", "group"):
                one, two = getattr(other, name), getattr(row, name)
                if one != two and (name != "split" or table.has_split):
                    found = f"{one or 'none'} and {two or 'none'}"
                    raise ValueError(f"{table.path} gives {row.key} several {name}s: {found}")
        rows = {row.key: row for row in reversed(table.rows)}
        table.rows = [row for row in table.rows if rows[row.key] is row]
        count = f"{len(twice):,} (such as {twice[0]})"
        faults.append(f"{where}: images listed twice, of which one counts: {count}")


def _note_rest(index: _Index, keys: Sequence[str], notes: list[str], faults: list[str]) -> None:
    if index.copies:
        notes.append(
            f"{len(index.copies):,} images are there twice under one name, and equal: one counts "
            f"(such as {min(index.copies)})"
        )
    rest = sorted(set(index.files) - set(keys) - index.copies)
    if rest:
        faults.append(f"images that no table lists, left out: {len(rest):,} (such as {rest[0]})")
