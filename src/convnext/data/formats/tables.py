"""Tables: a data set as a CSV with the columns `path` and `label`, and perhaps `split` or `fold`.

Paths are absolute or relative to the folder of the CSV. `TableColumns` says which columns of any
table are meant, and which fold is for validation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from convnext.data.formats.paths import split_of
from convnext.data.formats.records import Split
from convnext.data.formats.text_lists import cells_of
from convnext.data.samples import FolderSamples, ImageListing
from convnext.documents import read_regular
from convnext.names import count_noun, csv_text, nearest

COLUMNS = ("path", "label")
# Missing values of Python, numpy and pandas.
MISSING = ("None", "nan", "<NA>", "NaT")
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "usage")
FOLD_COLUMNS = ("fold", "folds", "kfold", "k_fold", "fold_id", "cv_fold")
_ROLES = ("image", "label", "split", "fold", "group")


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """The columns of a table that the user names, "" to recognize one, and the fold to hold out."""

    image: str = ""
    label: str = ""
    split: str = ""
    fold: str = ""
    group: str = ""
    """The column of what images of one split share, such as the patient."""
    val_fold: str = ""
    """The fold for validation; "" for the first one."""
    maybe_group: str = ""
    """What the user says of groups: a column, or else a pattern of paths."""

    @classmethod
    def parse(cls, text: str, val_fold: int | str = "", group: str = "") -> TableColumns:
        """Return the columns of a text such as "image=file,label=species,fold=fold".

        Args:
            text: The text.
            val_fold: The fold for validation.
            group: A column of groups, or a pattern of paths.

        Raises:
            ValueError: If a part is not ROLE=NAME, or a role is unknown or repeated.
        """
        found: dict[str, str] = {}
        for part in text.split(",") if text.strip() else ():
            role, sign, name = (word.strip() for word in part.partition("="))
            if not sign or not name or role not in _ROLES or role in found:
                raise ValueError(
                    f"--columns has {part.strip()!r}, but takes each of image=NAME, label=NAME, "
                    "split=NAME, fold=NAME and group=NAME at most once, separated by commas"
                )
            found[role] = name
        if "group" in found and group not in ("", found["group"]):
            raise ValueError(f"--columns group={found['group']} and --group {group}: give one")
        return cls(**found, val_fold=str(val_fold).strip(), maybe_group=group)

    def named(self) -> list[str]:
        """Return the columns that are named."""
        own = (self.image, self.label, self.split, self.fold, self.group)
        return [name for name in own if name]

    def group_column(self, header: Sequence[str]) -> str:
        """Return the column of the groups; "" if the table has none."""
        return self.group or (self.maybe_group if self.maybe_group in header else "")

    def __bool__(self) -> bool:
        return bool(self.named() or self.val_fold)

    def check(self, header: Sequence[str], path: Path) -> None:
        """Check that a table has the columns.

        Raises:
            ValueError: If it lacks one.
        """
        for name in self.named():
            if name not in header:
                near = nearest(name, header)
                raise ValueError(f"{path} has no column {name!r}, which --columns names{near}")

    def others(self, header: Sequence[str], path: Path) -> tuple[str, str]:
        """Return the columns of the split and of the fold of a table, "" where it has none.

        Raises:
            ValueError: If a fold is asked for, but no column is known to have folds.
        """
        used = {self.image, self.label}
        left = [name for name in header if name not in used]
        split = self.split or next((n for n in left if n.lower() in SPLIT_COLUMNS), "")
        fold = self.fold or next((n for n in left if n.lower() in FOLD_COLUMNS), "")
        if self.val_fold and not fold:
            raise ValueError(
                f"{path} has no column called fold, which --fold {self.val_fold} needs; name it "
                f"with --columns fold=NAME: it has {', '.join(header)}"
            )
        return split, fold


def check_once(header: Sequence[str], used: Sequence[str], path: Path) -> None:
    """Check that no column that is used shares its name with another one.

    Raises:
        ValueError: If one does.
    """
    for name in used:
        if name and header.count(name) > 1:
            raise ValueError(f"{path} has several columns called {name!r}; rename all but one")


def parts_of_rows(
    splits: Sequence[Split],
    folds: Sequence[str] | None,
    columns: TableColumns,
    *,
    where: str,
    fold_column: str = "fold",
) -> tuple[dict[Split, list[int]], str]:
    """Return the rows of each split, and which fold is for validation, "" if none is.

    Rows for a test stay so. The fold counts if one is asked for, or if no row is for validation.

    Args:
        splits: The split of each row, "train" where the table does not state one.
        folds: The fold of each row, "" for none; None if the table has no folds.
        columns: What the user says.
        where: The name of the table.
        fold_column: The column of the folds.

    Raises:
        ValueError: If there is no such fold, or only one.
    """
    text, held = "", ""
    if folds is not None and (columns.fold or columns.val_fold or "val" not in splits):
        values = [_plain_fold(fold) for fold in folds]
        rest = {v for v, split in zip(values, splits, strict=True) if v and split != "test"}
        known = sorted(rest, key=lambda fold: (not fold.isdecimal(), len(fold), fold))
        shown = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
        if len(known) < 2:
            has = f"only the fold {shown}" if known else "no fold"
            raise ValueError(
                f"{where}: the column {fold_column!r} has {has}; holding one out needs two or more"
            )
        held = _plain_fold(columns.val_fold) or known[0]
        if held not in known:
            raise ValueError(
                f"{where} has no fold {held!r} in the column {fold_column!r}, but {shown}"
            )
        splits = [
            split if split == "test" else "val" if value == held else "train"
            for split, value in zip(splits, values, strict=True)
        ]
        chosen = "" if columns.val_fold else "; --fold chooses another one"
        text = f"the column {fold_column!r}: fold {held} of {shown} is for validation{chosen}"
        without = sum(not value for value in values)
        stay = "stays" if without == 1 else "stay"
        text += f"; {count_noun(without, 'row')} without a fold {stay} in training" * bool(without)
    parts: dict[Split, list[int]] = {}
    for row, split in enumerate(splits):
        parts.setdefault(split, []).append(row)
    return parts, text


def _plain_fold(fold: str) -> str:
    """Return a fold without the ".0" that pandas writes if other rows have none, "" for none."""
    text = fold.strip()
    if text in MISSING:
        return ""
    return text[:-2] if text.endswith(".0") and text[:-2].isdecimal() else text


def has_own_columns(path: Path, columns: TableColumns | None = None) -> bool:
    """Whether a CSV has one of the columns `path` and `label`, or no other that could be meant."""
    if columns and columns.image not in ("", "path"):
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline().rstrip("\r\n")
    if ";" in first or "\t" in first:
        return False
    header = [name.strip() for name in first.split(",")]
    return path.suffix.lower() == ".csv" and ("path" in header or len(header) < 2)


def find_table(path: Path, columns: TableColumns | None = None) -> ImageListing:
    """List the images of a CSV; their classes are the labels, sorted.

    Rows that repeat others exactly are counted and used once.

    Long because every column goes through each of its steps.

    Raises:
        ValueError: If a column is missing, a row is incomplete, a quotation mark is not closed, a
            split has another name, or an image has two labels or splits.
    """
    header, *body = [row for row in cells_of(path, read_regular(path), ",") if row] or [[]]
    columns = TableColumns() if columns is None else columns
    label = columns.label or "label"
    missing = [name for name in ("path", label) if name not in header]
    if missing:
        has = ", ".join(header) or "none"
        raise ValueError(f"{path} needs a column {missing[0]!r}; it has {has}")
    columns.check(header, path)
    split, fold = columns.others(header, path)
    # Any other column beside path and label may be called set or usage.
    split = split if columns.split or split == "split" else ""
    grouped = columns.group_column(header)
    check_once(header, ("path", label, split, fold, grouped), path)
    keys, names, parts, folds, groups = [], [], list[Split](), [], []
    for number, cells in enumerate(body, start=2):
        row = dict(zip_longest(header, cells[: len(header)], fillvalue=""))
        if not row["path"] or not row[label]:
            raise ValueError(f"{path}, line {number}: a row needs a path and a label")
        keys.append(row["path"])
        names.append(row[label])
        parts.append(_part(path, number, row, split))
        folds.append(row[fold] if fold else "")
        groups.append(row[grouped] if grouped else "")
    if not keys:
        raise ValueError(f"{path} has no rows")
    paths = [os.path.normpath(path.parent / key) for key in keys]
    # Rows of one image in two folds would straddle the split.
    where = [" ".join(filter(None, place)) for place in zip(parts, folds, groups, strict=True)]
    rows = list(zip(paths, names, where, strict=True))
    used = _unique(rows, lambda i: f"line {i + 2}", str(path))
    repeated = count_noun(len(keys) - len(used), "row")
    notes = (f"{repeated} like another: each image is used once",) * (len(used) < len(keys))
    lists = keys, names, folds, groups
    keys, names, folds, groups = ([values[i] for i in used] for values in lists)
    found, held = parts_of_rows(
        [parts[i] for i in used],
        folds if fold else None,
        columns,
        where=str(path),
        fold_column=fold,
    )
    classes = tuple(sorted(set(names)))
    label_of = {name: label for label, name in enumerate(classes)}
    labels = [label_of[name] for name in names]
    return ImageListing(
        root=path.parent,
        classes=classes,
        keys=keys,
        labels=labels,
        train=found.get("train", []),
        val=found.get("val"),
        test=found.get("test"),
        layout="table of labels",
        split=held or (f"the column {split}" if split else ""),
        groups=groups if grouped else (),
        notes=notes,
        faults=(),
        take=lambda which: FolderSamples(
            path.parent, [keys[i] for i in which], [labels[i] for i in which]
        ),
    )


def rows_of(table: Any) -> list[tuple[str, ...]]:
    """Return (path, label), perhaps with split and fold, for every image of a table in memory.

    Args:
        table: A DataFrame, or a mapping of columns, with `path` and `label`, and perhaps `split`
            and `fold`; or a list of (path, label).

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
        used = [*COLUMNS, *(name for name in ("split", "fold") if name in columns)]
        values = [list(table[name]) for name in used]
        if len(set(map(len, values))) > 1:
            lengths = ", ".join(f"{n} has {len(v):,}" for n, v in zip(used, values, strict=True))
            raise ValueError(f"the columns of the table differ in length: {lengths}")
        if used[2:] == ["fold"]:
            values.insert(2, [""] * len(values[0]))
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
        if len(row) not in (2, 3, 4):
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
        texts = ("" if str(value) in MISSING else str(value) for value in split)
        rows.append((str(Path(path).absolute()), str(label), *texts))
    if not rows:
        raise ValueError("the data has no images")
    whole = [(path, label, " ".join(rest).strip()) for path, label, *rest in rows]
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
    return csv_text([(*COLUMNS, "split", "fold")[: len(rows[0])], *rows])


def _part(path: Path, number: int, row: Mapping[str, str], column: str) -> Split:
    split = split_of(((row[column] if column else "") or "train").strip())
    if split is None:
        raise ValueError(
            f"{path}, line {number}: the split is {row[column]!r}, but must be train, val or test"
        )
    return split
