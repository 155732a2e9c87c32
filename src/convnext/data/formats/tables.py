"""Tables: a data set as a CSV with the columns `path` and `label`, and perhaps `split`.

Paths are absolute or relative to the folder of the CSV.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import zip_longest
from pathlib import Path
from typing import Any

from convnext.data.formats.paths import split_of
from convnext.data.formats.text_lists import cells_of
from convnext.data.samples import FolderSamples, ImageListing
from convnext.documents import read_regular
from convnext.names import count_noun, csv_text, nearest

COLUMNS = ("path", "label")
# Missing values of Python, numpy and pandas.
MISSING = ("None", "nan", "<NA>", "NaT")


def has_own_columns(path: Path) -> bool:
    """Whether a CSV has one of the columns `path` and `label`, or no other that could be meant."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline().rstrip("\r\n")
    if ";" in first or "\t" in first:
        return False
    header = [name.strip() for name in first.split(",")]
    return path.suffix.lower() == ".csv" and ("path" in header or len(header) < 2)


def find_table(path: Path) -> ImageListing:
    """List the images of a CSV; their classes are the labels, sorted.

    Rows that repeat others exactly are counted and used once.

    Raises:
        ValueError: If a column is missing, a row is incomplete, a quotation mark is not closed, a
            split has another name, or an image has two labels or splits.
    """
    header, *body = [row for row in cells_of(path, read_regular(path), ",") if row] or [[]]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        has = ", ".join(header) or "none"
        raise ValueError(f"{path} needs a column {missing[0]!r}; it has {has}")
    keys, names, parts = [], [], []
    for number, cells in enumerate(body, start=2):
        row = dict(zip_longest(header, cells[: len(header)], fillvalue=""))
        if not row["path"] or not row["label"]:
            raise ValueError(f"{path}, line {number}: a row needs a path and a label")
        keys.append(row["path"])
        names.append(row["label"])
        parts.append(_part(path, number, row))
    if not keys:
        raise ValueError(f"{path} has no rows")
    paths = [os.path.normpath(path.parent / key) for key in keys]
    rows = list(zip(paths, names, parts, strict=True))
    used = _unique(rows, lambda i: f"line {i + 2}", str(path))
    repeated = count_noun(len(keys) - len(used), "row")
    notes = (f"{repeated} like another: each image is used once",) * (len(used) < len(keys))
    keys, names, parts = ([values[i] for i in used] for values in (keys, names, parts))
    classes = tuple(sorted(set(names)))
    label_of = {name: label for label, name in enumerate(classes)}
    labels = [label_of[name] for name in names]
    train = [i for i, part in enumerate(parts) if part == "train"]
    val, test = ([i for i, part in enumerate(parts) if part == split] for split in ("val", "test"))
    return ImageListing(
        root=path.parent,
        classes=classes,
        keys=keys,
        labels=labels,
        train=train,
        val=val or None,
        test=test or None,
        layout="table of labels",
        split="the column split" if "split" in header else "",
        notes=notes,
        faults=(),
        take=lambda which: FolderSamples(
            path.parent, [keys[i] for i in which], [labels[i] for i in which]
        ),
    )


def rows_of(table: Any) -> list[tuple[str, ...]]:
    """Return (path, label) or (path, label, split) for every image of a table in memory.

    Args:
        table: A DataFrame, or a mapping of columns, with `path` and `label`, and perhaps `split`;
            or a list of (path, label).

    Raises:
        ValueError: If it is none of these, its columns or rows differ in length, or an image has
            two labels or splits.
    """
    pairs: Iterable[Any]
    if isinstance(table, Mapping) or hasattr(table, "columns"):
        columns = list(table if isinstance(table, Mapping) else table.columns)
        for name in COLUMNS:
            if name not in columns:
                near = nearest(name, map(str, columns))
                raise ValueError(f"the table needs a column {name!r}, not {columns}{near}")
        used = [*COLUMNS, *(["split"] if "split" in columns else [])]
        values = [list(table[name]) for name in used]
        if len(set(map(len, values))) > 1:
            lengths = ", ".join(f"{n} has {len(v):,}" for n, v in zip(used, values, strict=True))
            raise ValueError(f"the columns of the table differ in length: {lengths}")
        pairs = zip(*values, strict=True)
    elif isinstance(table, Iterable) and not isinstance(table, str | bytes):
        pairs = table
    else:
        raise ValueError(
            "data is a path, a table with the columns path and label, or a list of (path, label); "
            f"not {type(table).__name__}"
        )
    rows: list[tuple[str, ...]] = []
    for number, pair in enumerate(pairs):
        # Sets and mappings have no order of values that could mean path and label.
        ordered = isinstance(pair, Iterable) and not isinstance(pair, str | bytes | Set | Mapping)
        row = tuple(pair) if ordered else ()
        if len(row) not in (2, 3):
            raise ValueError(f"item {number} of the data is {pair!r}, but must be (path, label)")
        path, label, *split = row
        if not isinstance(path, str | Path):
            raise ValueError(
                f"item {number} of the data has {type(path).__name__} where its path should be"
            )
        if not isinstance(label, str) and str(label) in MISSING:
            raise ValueError(f"item {number} of the data, {path}, has no label")
        if rows and len(row) != len(rows[0]):
            raise ValueError(
                f"item {number} of the data has {len(row)} values, but item 0 has {len(rows[0])}: "
                "give all of them a split, or none"
            )
        rows.append((str(Path(path).absolute()), str(label), *map(str, split)))
    if not rows:
        raise ValueError("the data has no images")
    whole = [(path, label, *rest, "")[:3] for path, label, *rest in rows]
    _unique(whole, lambda i: f"item {i}", "the data")
    return rows


def missing_files(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the paths of a table in memory that are not files.

    Raises:
        ValueError: If none is a file, as when paths and labels are swapped.
    """
    missing = [path for path, *_ in rows if not Path(path).is_file()]
    if len(missing) == len(rows):
        first = os.path.relpath(missing[0])
        raise ValueError(
            f"none of the {len(rows):,} files exists, such as {first!r}: is the order (path, "
            f"label), and are the paths relative to {Path.cwd()}?"
        )
    return missing


def _unique(rows: Sequence[tuple[str, ...]], place: Callable[[int], str], where: str) -> list[int]:
    """Return the indices of rows of path, label and split that do not repeat others.

    Args:
        rows: The rows.
        place: Names a row by its index.
        where: The name of the table.

    Raises:
        ValueError: If an image has two labels or splits.
    """
    first: dict[str, int] = {}
    for i, row in enumerate(rows):
        j = first.setdefault(row[0], i)
        if rows[j] == row:
            continue
        is_label = rows[j][1] != row[1]
        one, other = (rows[j][1], row[1]) if is_label else (rows[j][2], row[2])
        raise ValueError(
            f"{where}: {row[0]} has the {'label' if is_label else 'split'} {one!r} in {place(j)} "
            f"and {other!r} in {place(i)}; a classifier learns one label per image, in one split: "
            "leave out all rows of an image but one"
        )
    return sorted(first.values())


def table_text(rows: Sequence[tuple[str, ...]]) -> str:
    """Return the rows from `rows_of` as a CSV that `find_table` reads."""
    return csv_text([(*COLUMNS, "split")[: len(rows[0])], *rows])


def _part(path: Path, number: int, row: Mapping[str, str]) -> str:
    split = split_of((row.get("split") or "train").strip())
    if split is None:
        raise ValueError(
            f"{path}, line {number}: the split is {row['split']!r}, but must be train, val or test"
        )
    return split
