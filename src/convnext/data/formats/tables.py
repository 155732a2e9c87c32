"""Tables: a data set as a CSV with the columns `path` and `label`, and perhaps `split` or `fold`.

Paths are absolute or relative to the folder of the CSV. `TableColumns` says which columns of any
table are meant, and which fold is for validation. In any table, images may have several labels
(`cat|dog`, or a column of 0 and 1 for each class), or a probability of every class.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext.data.formats.paths import split_of
from convnext.data.formats.records import Split
from convnext.data.formats.text_lists import cells_of
from convnext.data.samples import ImageListing, LabelKind, strata_of, taker, targets_of
from convnext.documents import read_regular
from convnext.names import count_noun, csv_text, nearest

COLUMNS = ("path", "label")
# Missing values of Python, numpy and pandas.
MISSING = ("None", "nan", "<NA>", "NaT")
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "usage")
FOLD_COLUMNS = ("fold", "folds", "kfold", "k_fold", "fold_id", "cv_fold")
_ROLES = ("image", "label", "split", "fold", "group", "separator")
# Signs that cannot be written in --columns, or only in quotes.
_SIGNS = {"pipe": "|", "semicolon": ";", "comma": ",", "space": " ", "tab": "\t"}
ONE_LABEL, CLASS_COLUMNS = "none", "columns"
"""Separators that say that each image has one label, or that columns of 0 and 1 have several."""
# Up to this fraction of the images may have another number of labels than one without making the
# data multi-label; they are left out.
MAX_SEVERAL = 0.01
# Probabilities may be rounded.
_SUM_TOLERANCE = 0.02


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
    separator: str = ""
    """What separates the labels of an image; `ONE_LABEL` if it has one, `CLASS_COLUMNS` if several
    columns of 0 and 1 may be 1; "" to recognize it."""

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
                    "split=NAME, fold=NAME, group=NAME and separator=SIGN at most once, separated "
                    f"by commas; a SIGN may be {', '.join(_SIGNS)}, or {ONE_LABEL} for one label"
                )
            found[role] = _SIGNS.get(name, name) if role == "separator" else name
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
        return bool(self.named() or self.val_fold or self.separator)

    def check_unused(self, path: str | Path) -> None:
        """Refuse columns and a fold of data that has none.

        Raises:
            ValueError: If the user gives some.
        """
        if self:
            what = "--columns names columns" if self.named() else "--fold needs a column"
            raise ValueError(f"{what} of a table, but {path} is not read as one; give the table")

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
        used = {self.image, self.label, self.group_column(header)}
        left = [name for name in header if name not in used]
        split = self.split or next((n for n in left if n.lower() in SPLIT_COLUMNS), "")
        fold = self.fold or next((n for n in left if n.lower() in FOLD_COLUMNS), "")
        if self.val_fold and not fold:
            raise ValueError(
                f"{path} has no column called fold, which --fold {self.val_fold} needs; name it "
                f"with --columns fold=NAME: it has {', '.join(header)}"
            )
        return split, fold


@dataclass(frozen=True, kw_only=True)
class LabelCells:
    """The labels of the rows of a table."""

    kind: LabelKind
    rows: Sequence[Mapping[str, float]]
    """The labels of each row, each with 1; or the probability of every class."""
    separator: str
    """How they are written, as for `TableColumns`."""
    said: str
    """How they are written, for the user."""
    classes: tuple[str, ...] = ()
    """The columns of the classes; () for the labels of one column."""

    def only(
        self, which: Sequence[int]
    ) -> tuple[tuple[str, ...], list[int], NDArray[np.float32] | None]:
        """Return the classes, and the `labels` and `targets` (see `Samples`) of some rows."""
        return listed_labels(self.kind, [self.rows[i] for i in which], self.classes)


def listed_labels(
    kind: LabelKind, rows: Sequence[Mapping[str, float]], classes: Sequence[str] = ()
) -> tuple[tuple[str, ...], list[int], NDArray[np.float32] | None]:
    """Return the classes, and the `labels` and `targets` (see `Samples`) of images.

    Args:
        kind: The kind of the labels.
        rows: The labels of each image, with their values.
        classes: The classes in order; by default the labels, sorted.
    """
    classes = tuple(classes) or tuple(sorted({name for row in rows for name in row}))
    if kind == "single":
        position = {name: label for label, name in enumerate(classes)}
        return classes, [position[next(iter(row))] for row in rows], None
    targets = targets_of(rows, classes)
    return classes, strata_of(targets, kind), targets


def label_text(labels: Mapping[str, float]) -> str:
    """Return the labels of an image as one text, for messages."""
    if len(labels) == 1 and all(value == 1 for value in labels.values()):
        return next(iter(labels))
    soft = any(value != 1 for value in labels.values())
    return json.dumps(dict(labels) if soft else sorted(labels), ensure_ascii=False)


def label_cells(cells: Sequence[str], separator: str, where: str) -> LabelCells | None:
    """Return the labels of rows whose cells have several; None if each cell is one label.

    Args:
        cells: The cells of a column; an empty one has no label.
        separator: The separator that the user names, "" to recognize one.
        where: The name of the table and of the column.

    Raises:
        ValueError: If cells may be several labels or one, or a list in a cell is damaged.
    """
    if separator == ONE_LABEL or not any(cells):
        return None
    if separator in ("", CLASS_COLUMNS) and all(re.fullmatch(r"\[.*\]|", c.strip()) for c in cells):
        rows = [_literal(cell, where) for cell in cells]
        return LabelCells(kind="multi", rows=rows, separator="", said="as lists")
    if separator in ("", CLASS_COLUMNS) and all(re.fullmatch(r"\{.*\}", c.strip()) for c in cells):
        rows = [_literal(cell, where) for cell in cells]
        rows = _normalized(rows, lambda i: f"{where}, row {i + 1}")
        return LabelCells(kind="soft", rows=rows, separator="", said="as probabilities")
    sign = separator or _recognized_sign(cells, where)
    if not sign or sign == CLASS_COLUMNS:
        return None
    rows = [dict.fromkeys(_split(cell, sign), 1.0) for cell in cells]
    named = "blanks" if sign == " " else repr(sign)
    return LabelCells(kind="multi", rows=rows, separator=sign, said=f"separated by {named}")


def _split(cell: str, sign: str) -> list[str]:
    return [part.strip() for part in cell.split(sign) if part.strip()]


def _literal(cell: str, where: str) -> dict[str, float]:
    """Return the labels of a list, or the values of a mapping, in the notation of JSON or Python.

    Raises:
        ValueError: If it is damaged.
    """
    text = cell.strip() or "[]"
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            found = None
    if isinstance(found, list) and all(map(_is_label, found)):
        return {name: 1.0 for part in found if (name := str(part).strip())}
    if isinstance(found, dict) and all(isinstance(part, int | float) for part in found.values()):
        return {str(name): float(value) for name, value in found.items()}
    raise ValueError(f'{where}: {cell[:60]!r} is not a list of labels such as ["cat", "dog"]')


def _is_label(part: object) -> bool:
    """Whether a part of a list names a class; True and False, which are integers, do not."""
    return isinstance(part, str | int) and not isinstance(part, bool)


def _recognized_sign(cells: Sequence[str], where: str) -> str:
    """Return the sign that separates the labels in cells, "" if each cell is one label.

    Parts that recur in other combinations are labels: "haze primary" beside "clear primary road".
    Words of names recur less often.

    Raises:
        ValueError: If both may be.
    """
    counts = Counter(cell.strip() for cell in cells)
    values = [value for value in counts if value]
    for sign in "|;, ":
        joined = [value for value in values if len(_split(value, sign)) > 1]
        if sum(counts[value] for value in joined) <= MAX_SEVERAL * len(cells):
            continue
        found = Counter(part for value in values for part in set(_split(value, sign)))
        parts = {part for value in joined for part in _split(value, sign)}
        recurring = sum(found[part] > 1 for part in parts) / len(parts)
        # Names of two words are common, names with a comma are not, and none has the other signs.
        is_certain = {
            " ": recurring == 1 and len(values) >= 2 * len(found),
            ",": recurring == 1,
        }.get(sign, recurring >= 0.5)
        if is_certain:
            return sign
        if sign in "|;" or recurring >= (1.0 if sign == " " else 0.5):
            named = {",": "comma", " ": "space"}.get(sign, sign)
            several = " and ".join(map(repr, _split(joined[0], sign)))
            raise ValueError(
                f"{where}: {joined[0]!r} may be the labels {several}, or one label: say which with "
                f"--columns 'separator={named}' or --columns separator={ONE_LABEL}"
            )
    return ""


def class_columns(
    names: Sequence[str], rows: Sequence[Sequence[str]], separator: str, where: str
) -> LabelCells | None:
    """Return the labels of columns of 0 and 1, or of probabilities; None if they are others.

    With 0 and 1, images have several labels if the user says so, or if more than a few have none
    or several.

    Args:
        names: The names of the columns.
        rows: Their cells.
        separator: What the user says, as for `TableColumns`.
        where: The name of the table.

    Raises:
        ValueError: If the probabilities of most rows have the sum 1, but those of one have not.
    """
    try:
        values = [[float(cell) for cell in row] for row in rows]
    except ValueError:
        return None
    if len(names) < 2 or not all(0 <= v <= 1 for row in values for v in row):
        return None
    pairs = [dict(zip(names, row, strict=True)) for row in values]
    if not all(v in (0, 1) for row in values for v in row):
        right = sum(abs(sum(row) - 1) <= _SUM_TOLERANCE for row in values)
        if 2 * right < len(rows):
            return None
        found = _normalized(pairs, lambda i: f"{where}, line {i + 2}")
        said = "the columns of probabilities"
        return LabelCells(kind="soft", rows=found, separator="", said=said, classes=tuple(names))
    hot = [{name: v for name, v in row.items() if v} for row in pairs]
    odd = sum(len(row) != 1 for row in hot)
    several = odd > MAX_SEVERAL * len(rows) if not separator else separator != ONE_LABEL
    return LabelCells(
        kind="multi" if several else "single",
        rows=hot,
        separator=CLASS_COLUMNS if several else ONE_LABEL,
        said="the columns of 0 and 1",
        classes=tuple(names),
    )


def _normalized(
    rows: Sequence[Mapping[str, float]], place: Callable[[int], str]
) -> list[dict[str, float]]:
    """Return probabilities divided by their sums, which rounding may have changed.

    Raises:
        ValueError: If a sum is not 1, or a value is negative.
    """
    for i, row in enumerate(rows):
        total = sum(row.values())
        if not abs(total - 1) <= _SUM_TOLERANCE or min(row.values()) < 0:
            raise ValueError(
                f"{place(i)}: the probabilities of the classes have the sum {total:.4g}, not 1"
            )
    return [{n: v / sum(row.values()) for n, v in row.items()} for row in rows]


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
    of_folds: str = "the column 'fold'",
) -> tuple[dict[Split, list[int]], str]:
    """Return the rows of each split, and which fold is for validation, "" if none is.

    Rows for a test stay so. The fold counts if one is asked for, or if no row is for validation.

    Args:
        splits: The split of each row, "train" where the table does not state one.
        folds: The fold of each row, "" for none; None if the table has no folds.
        columns: What the user says.
        where: The name of the table.
        of_folds: What says the folds, such as a column.

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
            raise ValueError(f"{where}: {of_folds} has {has}; holding one out needs two or more")
        held = _plain_fold(columns.val_fold) or known[0]
        if held not in known:
            raise ValueError(f"{where} has no fold {held!r} in {of_folds}, but {shown}")
        splits = [
            split if split == "test" else "val" if value == held else "train"
            for split, value in zip(splits, values, strict=True)
        ]
        chosen = "" if columns.val_fold else "; --fold chooses another one"
        text = f"{of_folds}: fold {held} of {shown} is for validation{chosen}"
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
    columns.check(header, path)
    split, fold = columns.others(header, path)
    # Any other column beside path and label may be called set or usage.
    split = split if columns.split or split == "split" else ""
    grouped = columns.group_column(header)
    body = [[*cells[: len(header)], *[""] * (len(header) - len(cells))] for cells in body]
    found = _labels_of(path, header, body, columns, ("path", split, fold, grouped))
    check_once(header, ("path", split, fold, grouped), path)
    keys, own, parts, folds, groups = [], [], list[Split](), [], []
    for number, (cells, labels) in enumerate(zip(body, found.rows, strict=True), start=2):
        row = dict(zip(header, cells, strict=True))
        if not row["path"] or (found.kind == "single" and len(labels) != 1):
            raise ValueError(f"{path}, line {number}: a row needs a path and a label")
        keys.append(row["path"])
        own.append(labels)
        parts.append(_part(path, number, row, split))
        folds.append(row[fold] if fold else "")
        groups.append(row[grouped] if grouped else "")
    if not keys:
        raise ValueError(f"{path} has no rows")
    paths = [os.path.normpath(path.parent / key) for key in keys]
    # Rows of one image in two folds would straddle the split.
    where = [" ".join(filter(None, place)) for place in zip(parts, folds, groups, strict=True)]
    rows = list(zip(paths, map(label_text, own), where, strict=True))
    used = _unique(rows, lambda i: f"line {i + 2}", str(path))
    repeated = count_noun(len(keys) - len(used), "row")
    notes = [f"labels {found.said}"] if found.said else []
    notes += [f"{repeated} like another: each image is used once"] * (len(used) < len(keys))
    keys, folds, groups = ([values[i] for i in used] for values in (keys, folds, groups))
    by_split, held = parts_of_rows(
        [parts[i] for i in used],
        folds if fold else None,
        columns,
        where=str(path),
        of_folds=f"the column {fold!r}",
    )
    classes, labels_of_rows, targets = found.only(used)
    return ImageListing(
        root=path.parent,
        classes=classes,
        keys=keys,
        labels=labels_of_rows,
        train=by_split.get("train", []),
        val=by_split.get("val"),
        test=by_split.get("test"),
        layout="table of labels",
        split=held or (f"the column {split}" if split else ""),
        groups=groups if grouped else (),
        notes=tuple(notes),
        faults=(),
        take=taker(path.parent, keys, labels_of_rows, found.kind, targets),
        kind=found.kind,
        targets=targets,
    )


def _labels_of(
    path: Path,
    header: Sequence[str],
    body: Sequence[Sequence[str]],
    columns: TableColumns,
    used: Sequence[str],
) -> LabelCells:
    """Return the labels of the rows of a CSV, by one column or by a column for each class.

    Raises:
        ValueError: If a column is missing, or it is not clear what its cells mean.
    """
    label = columns.label or "label"
    if "path" in header and label not in header:
        others = [i for i, name in enumerate(header) if name not in used]
        names = [header[i] for i in others]
        check_once(header, names, path)
        rows = [[row[i] for i in others] for row in body]
        if (found := class_columns(names, rows, columns.separator, str(path))) is not None:
            return replace(found, said=f"by {found.said}")
    missing = [name for name in ("path", label) if name not in header]
    if missing:
        has = ", ".join(header) or "none"
        raise ValueError(f"{path} needs a column {missing[0]!r}; it has {has}")
    check_once(header, [label], path)
    cells = [row[header.index(label)] for row in body]
    found = label_cells(cells, columns.separator, f"{path}, column {label!r}")
    if found is not None:
        return replace(found, said=f"by the column {label!r}, {found.said}")
    single = [{cell: 1.0} if cell else {} for cell in cells]
    return LabelCells(kind="single", rows=single, separator=ONE_LABEL, said="")


@dataclass(frozen=True)
class MemoryTable:
    """The images of a table in memory."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    """The absolute path, the label, and the other columns of each image."""

    def __len__(self) -> int:
        return len(self.rows)

    def text(self) -> str:
        """Return it as a CSV that `find_table` reads."""
        return csv_text([self.header, *self.rows])


def rows_of(table: Any, columns: TableColumns | None = None) -> MemoryTable:
    """Return path and label, perhaps with split, fold and group, of every image of a table.

    Long because people keep such tables in many types.

    Args:
        table: A DataFrame, a mapping of columns or a list of mappings, with `path` and `label`, and
            perhaps `split`, `fold` and a column of groups; or a list of (path, label). A label is a
            name, a list of names, or a mapping of all classes to their probabilities. Instead of
            `label`, a table may have a column of 0 and 1, or of probabilities, for each class.
        columns: The columns that the user names besides.

    Raises:
        ValueError: If it is none of these, its columns or rows differ in length, or an image has
            two labels, splits or groups.
    """
    if isinstance(table, Iterable) and not (
        isinstance(table, str | bytes | Mapping) or hasattr(table, "columns")
    ):
        items = list(table)
        table = _columns_of(items) if items and isinstance(items[0], Mapping) else items
    elif not (isinstance(table, Mapping) or hasattr(table, "columns")):
        raise ValueError(
            "data is a path, a table with the columns path and label, or a list of (path, label); "
            f"not {type(table).__name__}"
        )
    header: tuple[str, ...]
    pairs: Iterable[Any]
    if isinstance(table, list):
        header, pairs = (*COLUMNS, "split", "fold"), table
    else:
        header, pairs = _chosen_columns(table, TableColumns() if columns is None else columns)
    rows: list[tuple[str, ...]] = []
    is_several = False
    for number, pair in enumerate(pairs):
        # Sets and mappings have no order of values that could mean path and label.
        ordered = isinstance(pair, Iterable) and not isinstance(pair, str | bytes | Set | Mapping)
        row = tuple(pair) if ordered else ()
        if not 2 <= len(row) <= len(header):
            raise ValueError(f"item {number} of the data is {pair!r}, but must be (path, label)")
        path, label, *others = row
        if not isinstance(path, str | Path):
            raise ValueError(
                f"item {number} of the data has {type(path).__name__} where its path should be"
            )
        if not isinstance(label, str) and str(label) in MISSING:
            raise ValueError(f"item {number} of the data, {path}, has no label")
        several = not isinstance(label, str | bytes) and isinstance(label, Iterable | Mapping)
        if several and not isinstance(label, Mapping):
            label = list(label)  # It may be an iterator.
        if several and any(not isinstance(name, str) and str(name) in MISSING for name in label):
            raise ValueError(f"item {number} of the data, {path}, has a missing label: {label!r}")
        if rows and several != is_several:
            other = "one label" if several else "several labels"
            raise ValueError(
                f"item {number} of the data, {path}, has the label {label!r}, but item 0 has "
                f"{other}: give lists of labels for all images, or for none"
            )
        is_several = several
        text = _several_text(label) if several else str(label)
        if rows and len(row) != len(rows[0]):
            raise ValueError(
                f"item {number} of the data has {len(row)} values, but item 0 has {len(rows[0])}: "
                "give all of them a split, or none"
            )
        texts = ("" if str(value) in MISSING else str(value) for value in others)
        rows.append((str(Path(path).absolute()), text, *texts))
    if not rows:
        raise ValueError("the data has no images")
    whole = [(path, label, " ".join(rest).strip()) for path, label, *rest in rows]
    _unique(whole, lambda i: f"item {i}", "the data")
    return MemoryTable(header[: len(rows[0])], rows)


def _columns_of(items: Sequence[Any]) -> dict[str, list[Any]]:
    """Return the columns of a list of mappings; a column that an item lacks is None there.

    Raises:
        ValueError: If an item is not a mapping, or has no path.
    """
    for number, item in enumerate(items):
        if not isinstance(item, Mapping) or "path" not in item:
            raise ValueError(
                f"item {number} of the data is {item!r}, but must have a path and a label"
            )
    names = dict.fromkeys(name for item in items for name in item)
    return {name: [item.get(name) for item in items] for name in names}


def _chosen_columns(
    table: Any, named: TableColumns
) -> tuple[tuple[str, ...], Iterable[tuple[Any, ...]]]:
    """Return the header and the rows of the columns of a table that are used.

    Raises:
        ValueError: If one is missing, or they differ in length.
    """
    columns = list(table if isinstance(table, Mapping) else table.columns)
    if "path" in columns and "label" not in columns and not named.label:
        others = {"path", "split", "fold", named.maybe_group, *named.named()}
        table = _with_labels(table, columns, others, named.separator)
        columns = [*columns, "label"] if "label" in table else columns
    needed = dict.fromkeys(("path", named.label or "label", *named.named()))
    for name in needed:
        if name not in columns:
            near = nearest(name, map(str, columns))
            raise ValueError(f"the table needs a column {name!r}, not {columns}{near}")
    known = dict.fromkeys((*needed, "split", "fold", named.maybe_group))
    used = [name for name in known if name in columns]
    values = [list(table[name]) for name in used]
    if len(set(map(len, values))) > 1:
        lengths = ", ".join(f"{n} has {len(v):,}" for n, v in zip(used, values, strict=True))
        raise ValueError(f"the columns of the table differ in length: {lengths}")
    return tuple(used), zip(*values, strict=True)


def _with_labels(table: Any, columns: Sequence[Any], others: Set[str], separator: str) -> Any:
    """Return a table with a column of labels instead of one for each class, if it has these.

    Args:
        table: The table.
        columns: Its columns.
        others: Columns that are not classes.
        separator: What the user says separates several labels in a cell.

    Raises:
        ValueError: If it is not clear what its cells mean.
    """
    names = [name for name in columns if name not in others]
    values = [list(table[name]) for name in names]
    if len({*map(len, values)}) != 1:
        return table
    cells = [[str(value) for value in row] for row in zip(*values, strict=True)]
    found = class_columns([str(name) for name in names], cells, separator, "the table")
    if found is None:
        return table
    own = {name: list(table[name]) for name in columns if name not in names}
    if found.kind == "single":
        return own | {"label": [next(iter(row), None) for row in found.rows]}
    return own | {"label": [row if found.kind == "soft" else [*row] for row in found.rows]}


def _several_text(labels: Any) -> str:
    """Return several labels, or probabilities, as the cell of a table."""
    if isinstance(labels, Mapping):
        shares = {str(name): float(value) for name, value in labels.items()}
        return json.dumps(shares, ensure_ascii=False)
    return json.dumps([str(name) for name in labels], ensure_ascii=False)


def missing_files(table: MemoryTable) -> list[str]:
    """Return the paths of a table in memory that are not files.

    Raises:
        ValueError: If none is a file, as when paths and labels are swapped.
    """
    missing = [path for path, *_ in table.rows if not Path(path).is_file()]
    if len(missing) == len(table):
        first = os.path.relpath(missing[0])
        raise ValueError(
            f"none of the {len(table):,} files exists, such as {first!r}: is the order (path, "
            f"label), and are the paths relative to {Path.cwd()}?"
        )
    return missing


def _unique(rows: Sequence[tuple[str, ...]], place: Callable[[int], str], where: str) -> list[int]:
    """Return the indices of rows of path, label and place that do not repeat others.

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
        what = "label" if is_label else "split, fold or group"
        raise ValueError(
            f"{where}: {row[0]} has the {what} {one!r} in {place(j)} "
            f"and {other!r} in {place(i)}; a classifier learns one label per image, in one split: "
            "leave out all rows of an image but one"
        )
    return sorted(first.values())


def _part(path: Path, number: int, row: Mapping[str, str], column: str) -> Split:
    split = split_of(((row[column] if column else "") or "train").strip())
    if split is None:
        raise ValueError(
            f"{path}, line {number}: the split is {row[column]!r}, but must be train, val or test"
        )
    return split
