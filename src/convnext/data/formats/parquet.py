"""Tables in Parquet and Arrow files, with the images inside, as Hugging Face's `datasets` has them.

    data/{train,validation,test}-00000-of-00003.parquet   an image and a label in each row
    {train,test}/data-00000-of-00001.arrow                written by `save_to_disk`

An image is a struct of `bytes` and `path`, or plain bytes. The names of a `ClassLabel` are those in
the schema of the file. Reading needs pyarrow, the extra `datasets`.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.formats.located import Locator
from convnext.data.formats.paths import (
    INTO_DATA,
    Fence,
    FileIndex,
    is_plain_name,
    split_of,
    split_of_path,
)
from convnext.data.formats.records import Split
from convnext.data.formats.tables import (
    TableColumns,
    check_once,
    label_cells,
    listed_labels,
    parts_of_rows,
)
from convnext.data.formats.text_lists import LABELS
from convnext.data.images import (
    BadImage,
    Header,
    Mode,
    content_of,
    decode,
    read_header,
    walk_files,
)
from convnext.data.samples import FileSamples, FolderSamples, ImageListing, LabelKind, Samples
from convnext.documents import is_special, read_json
from convnext.names import install_extra

if TYPE_CHECKING:
    from torch import Tensor

    from convnext.data.tensors import Box, Draw

ENDINGS = (".parquet", ".arrow")
# What `save_to_disk` writes beside the files of a split, and above several splits.
_STATE, _DICT = "state.json", "dataset_dict.json"
_MAX_STATE = 64 * 2**20
# Values that tell whether a column of bytes has images.
NUM_VALUES = 8
# Bytes of images that each process keeps in memory.
MAX_BYTES = 256 * 2**20
# train-00000-of-00003-0123456789abcdef.parquet, 0000.parquet
_NUMBER = re.compile(r"[-_.]?\d+(-of-\d+.*)?$")


def library(name: str) -> Any:
    """Import and return a module of pyarrow.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"reading Parquet needs pyarrow: {install_extra('datasets')}") from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises into an error that names the file.

    Raises:
        ValueError: If the file cannot be read.
    """
    if is_special(path):
        raise ValueError(f"{path} is a named pipe, a socket or a device, not a file")
    library("pyarrow")
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}") from error
    # A damaged file raises ArrowInvalid, OSError, and others for what pyarrow lacks.
    except Exception as error:
        kind = "Arrow" if path.suffix.lower() == ".arrow" else "Parquet"
        text = " ".join(str(error).split())
        raise ValueError(f"{path} is not a {kind} file that can be read: {text}") from error


@dataclass(kw_only=True)
class _File:
    """An open file: groups of rows that are read at once."""

    path: Path
    schema: Any
    starts: list[int]
    """The first row of each group, and the number of rows."""
    largest: int = 0
    """The most bytes of a group, uncompressed; 0 if the file is mapped into memory."""
    table: Any = None
    """The rows of an Arrow file, which are mapped into memory and not read yet."""

    def column(self, name: str, inner: str = "") -> Any:
        """Return a column of all rows, or a field of its structs.

        Raises:
            ValueError: If it cannot be read.
        """
        with _reading(self.path):
            whole = self.table
            if whole is None:
                wanted = [f"{name}.{inner}" if inner else name]
                with library("pyarrow.parquet").ParquetFile(self.path) as file:
                    whole = file.read(columns=wanted, use_threads=False)
            return _inner(whole.column(name), inner)

    def group(self, number: int, name: str, inner: str) -> list[bytes | None]:
        """Return the bytes of the images in a group of rows.

        Raises:
            ValueError: If they cannot be read.
        """
        with _reading(self.path):
            if self.table is None:
                with library("pyarrow.parquet").ParquetFile(self.path) as file:
                    wanted = [f"{name}.{inner}" if inner else name]
                    table = file.read_row_group(number, columns=wanted, use_threads=False)
            else:
                start, end = self.starts[number : number + 2]
                table = self.table.slice(start, end - start)
            found: list[bytes | None] = _inner(table.column(name), inner).to_pylist()
            return found

    def first(self, name: str) -> list[bytes]:
        """Return the first values of a column that are not null, up to `NUM_VALUES`.

        Raises:
            ValueError: If they cannot be read.
        """
        found: list[bytes] = []
        with _reading(self.path), ExitStack() as stack:
            if self.table is None:
                opened = library("pyarrow.parquet").ParquetFile(self.path)
                file = stack.enter_context(opened)
                batches = file.iter_batches(NUM_VALUES, columns=[name], use_threads=False)
            else:
                batches = self.table.select([name]).to_batches(NUM_VALUES)
            for batch in batches:
                found += [value for value in batch.column(0).to_pylist() if value is not None]
                if len(found) >= NUM_VALUES:
                    break
        return found[:NUM_VALUES]

    def has_gaps(self, name: str, inner: str) -> bool:
        """Whether rows may lack bytes, by the statistics of the file."""
        if self.table is not None:
            return bool(_inner(self.table.column(name), inner).null_count)
        with _reading(self.path), library("pyarrow.parquet").ParquetFile(self.path) as file:
            path = f"{name}.{inner}" if inner else name
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            chunks = [
                chunk
                for group in groups
                for i in range(group.num_columns)
                if (chunk := group.column(i)).path_in_schema == path
            ]
            known = [c.statistics for c in chunks if c.statistics and c.statistics.has_null_count]
            return len(known) < len(groups) or any(s.null_count for s in known)


def _inner(column: Any, name: str) -> Any:
    """Return a field of a column of structs; null where the struct is."""
    return library("pyarrow.compute").struct_field(column, name) if name else column


def _open(path: Path) -> _File:
    """Open a file without reading its rows.

    Raises:
        ValueError: If it cannot be read.
    """
    with _reading(path):
        if path.suffix.lower() == ".arrow":
            arrow = library("pyarrow")
            mapped = arrow.memory_map(str(path))
            try:
                table = arrow.ipc.open_stream(mapped).read_all()
            except arrow.ArrowInvalid:  # The format of files rather than of streams.
                table = arrow.ipc.open_file(mapped).read_all()
            sizes = [len(batch) for batch in table.to_batches()]
            return _File(path=path, schema=table.schema, starts=_starts(sizes), table=table)
        with library("pyarrow.parquet").ParquetFile(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            return _File(
                path=path,
                schema=file.schema_arrow,
                starts=_starts(group.num_rows for group in groups),
                largest=max((group.total_byte_size for group in groups), default=0),
            )


def _starts(sizes: Iterable[int]) -> list[int]:
    return [0, *np.cumsum([*sizes], dtype=np.int64).tolist()]


class ParquetSamples(FileSamples):
    """Images in the rows of Parquet and Arrow files, or beside them where a row has only a path.

    The rows around an image are read with it and kept for a while: reading in storage order is
    fast.

    Args:
        files: The files.
        column: The column of the images, and the field of its structs or "".
        places: (n, 2) position of the file, and row in it.
        beside: The paths of images that are files, by position in `places`.
        names: What to call each row.
        labels: The label of each row.
    """

    is_open_to_threads = True

    def __init__(
        self,
        files: Sequence[Path],
        column: tuple[str, str],
        places: NDArray[np.int64],
        beside: Mapping[int, str],
        names: Sequence[str],
        labels: Sequence[int],
    ) -> None:
        self.files, self.column, self.places = list(files), column, places
        self.beside, self.names, self.labels = dict(beside), list(names), list(labels)
        self._forget()

    def _forget(self) -> None:
        self._open: dict[int, _File] = {}
        self._groups: dict[tuple[int, int], list[bytes | None]] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        hidden = ("_open", "_groups", "_lock")
        return {key: value for key, value in self.__dict__.items() if key not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def source(self, index: int) -> str:
        if index in self.beside:
            return self.beside[index]
        return f"{self.files[int(self.places[index, 0])]}!{self.names[index]}"

    def content(self, index: int) -> bytes:
        """Return the bytes of an image file.

        Raises:
            BadImage: If its file cannot be read, or has changed.
        """
        if index in self.beside:
            return content_of(self.beside[index])
        number, row = self.places[index].tolist()
        try:
            with self._lock:
                file = self._open.get(number)
                if file is None:
                    file = self._open[number] = _open(self.files[number])
                group = int(np.searchsorted(file.starts, row, side="right")) - 1
                rows = self._groups.get((number, group))
                if rows is None:
                    rows = self._keep((number, group), file.group(group, *self.column))
            found = rows[row - file.starts[group]]
        except (ValueError, IndexError) as error:
            raise BadImage(self.source(index), f"cannot be read ({error})") from error
        if found is None:
            raise BadImage(self.source(index), "the row has no bytes")
        return bytes(found)

    def _keep(self, key: tuple[int, int], rows: list[bytes | None]) -> list[bytes | None]:
        self._groups[key] = rows
        total = sum(len(row or b"") for rows in self._groups.values() for row in rows)
        while total > MAX_BYTES and len(self._groups) > 1:
            total -= sum(len(row or b"") for row in self._groups.pop(next(iter(self._groups))))
        return rows

    def _file(self, index: int) -> str | bytes:
        return self.beside.get(index) or self.content(index)

    def open(self, index: int, mode: Mode, *, at_least: int | None = None) -> Image.Image:
        file = self._file(index)
        return decode(file, mode=mode, at_least=at_least, source=self.source(index))

    def open_crop(self, index: int, mode: Mode, *, draw: Draw, size: int) -> tuple[Tensor, Box]:
        from convnext.data.tensors import decode_crop

        file = self._file(index)
        return decode_crop(file, mode=mode, draw=draw, size=size, source=self.source(index))

    def header(self, index: int) -> Header:
        return read_header(self._file(index), source=self.source(index))

    def num_bytes(self, index: int) -> int:
        if index in self.beside:
            path = Path(self.beside[index])
            return path.stat().st_size if path.is_file() else 0
        try:
            return len(self.content(index))
        except BadImage:
            return 0


def table_files(root: Path) -> list[Path]:
    """Return the Parquet and Arrow files below a folder, without those that `datasets` caches.

    If `datasets` saved the data set, these are the files that it lists.

    Raises:
        ValueError: If it lists a file that does not exist.
    """
    return _table_files(root)[0]


def _table_files(root: Path) -> tuple[list[Path], list[str]]:
    """Return the files that are read, and the names of those that an earlier save has left.

    Raises:
        ValueError: If a saved data set lists a file that does not exist.
    """
    found, left = list[Path](), list[str]()
    listed: dict[Path, set[str] | None] = {}
    for name in walk_files(root):
        path = root / name
        if not name.lower().endswith(ENDINGS) or path.name.startswith("cache-"):
            continue
        folder = path.parent
        if folder not in listed:
            listed[folder] = _saved(folder, root)
        names = listed[folder]
        if names is None or path.name in names:
            found.append(path)
        else:
            left.append(name)
    return found, left


def _saved(folder: Path, root: Path) -> set[str] | None:
    """Return the files of a folder that `save_to_disk` lists; None if it did not write them.

    Saving again does not remove the files of an earlier time.

    Raises:
        ValueError: If a file that it lists does not exist.
    """
    splits = _json_list(folder.parent / _DICT, "splits") if folder != root else None
    if splits is not None and folder.name not in splits:
        return set()
    entries = _json_list(folder / _STATE, "_data_files")
    if entries is None:
        return None
    names = {
        os.path.basename(str(entry.get("filename"))) for entry in entries if isinstance(entry, dict)
    }
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise ValueError(f"{folder / _STATE} lists {missing[0]}, which does not exist")
    return names


def _json_list(path: Path, key: str) -> list[Any] | None:
    """Return a list in a file that `datasets` writes; None if there is none."""
    found = read_json(path, max_bytes=_MAX_STATE) if path.is_file() else None
    value = found.get(key) if isinstance(found, dict) else None
    return value if isinstance(value, list) else None


def has_images(path: Path) -> bool:
    """Whether a column of a file has the bytes of images.

    Raises:
        ValueError: If it cannot be read.
    """
    return bool(_image_columns(_open(path)))


def _image_columns(file: _File) -> dict[str, str]:
    """Return the columns with images, each with the field of its structs or "".

    Plain bytes may as well be hashes or embeddings, so the first of them must be images.

    Raises:
        ValueError: If they cannot be read.
    """
    return {
        name: inner
        for name, inner in _byte_columns(file.schema).items()
        if inner or any(map(_is_image, file.first(name)))
    }


def _is_image(content: bytes) -> bool:
    try:
        read_header(content)
    except BadImage:
        return False
    return True


def _byte_columns(schema: Any) -> dict[str, str]:
    """Return the columns that may have images, each with the field of its structs or ""."""
    types = library("pyarrow.types")
    found = {}
    for column in schema:
        kind, features = column.type, _features(schema).get(column.name)
        inner = ""
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind, inner = kind.field("bytes").type, "bytes"
        is_binary = types.is_binary(kind) or types.is_large_binary(kind)
        if is_binary and (inner or not isinstance(features, dict) or "_type" in features):
            found[column.name] = inner
    return found


def _features(schema: Any) -> dict[str, Any]:
    """Return what `datasets` says about the columns of a file; {} if it did not write it."""
    try:
        text = (schema.metadata or {}).get(b"huggingface", b"{}")
        found = json.loads(text)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def class_names(schema: Any, column: str) -> tuple[str, ...]:
    """Return the names of the classes in a column of numbers; () if the schema has none.

    The column may have a list of them in each row.
    """
    feature = _features(schema).get(column)
    if _has_label_lists(schema, column):
        feature = feature[0] if isinstance(feature, list) and feature else feature
        feature = feature.get("feature") if isinstance(feature, dict) else None
    names = feature.get("names") if isinstance(feature, dict) else None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if names and is_list else ()


def _has_label_lists(schema: Any, column: str) -> bool:
    """Whether each row of a column has a list of names, or of the numbers of named classes."""
    types, kind = library("pyarrow.types"), schema.field(column).type
    if not (types.is_list(kind) or types.is_large_list(kind)):
        return False
    if types.is_string(kind.value_type) or types.is_large_string(kind.value_type):
        return True
    feature = _features(schema).get(column)
    is_sequence = isinstance(feature, dict) and "names" in str(feature.get("feature"))
    return types.is_integer(kind.value_type) and is_sequence


def table_rows(path: Path) -> list[list[str]]:
    """Return the header and the rows of a file without images, as texts.

    Numbers of classes are replaced by their names, lists of labels are texts in JSON, and other
    lists and structs are left out.

    Raises:
        ValueError: If it cannot be read.
    """
    file, types = _open(path), library("pyarrow.types")
    plain = [
        c.name
        for c in file.schema
        if not types.is_nested(c.type) or _has_label_lists(file.schema, c.name)
    ]
    columns = [_texts(file, name) for name in plain]
    return [plain, *(list(row) for row in zip(*columns, strict=True))]


def _texts(file: _File, column: str) -> list[str]:
    """Return the values of a column as texts, "" where there is none, and the names of classes.

    Lists of labels become texts in JSON.

    Raises:
        ValueError: If it has several other values in a row, or others than the numbers of the
            classes.
    """
    if _has_label_lists(file.schema, column):
        rows = file.column(column).to_pylist()
        return ["" if row is None else json.dumps(_named(file, column, row)) for row in rows]
    if library("pyarrow.types").is_nested(file.schema.field(column).type):
        raise ValueError(
            f"{file.path}: the column {column!r} has several values in a row, not one; --columns "
            "names others"
        )
    # A float that is not a number is how pandas and numpy say that there is none.
    values = [None if v != v else v for v in file.column(column).to_pylist()]
    return _named(file, column, values)


def _named(file: _File, column: str, values: Sequence[Any]) -> list[str]:
    """Return values as texts, "" where there is none, and the names of classes.

    Raises:
        ValueError: If a value is not the number of a class.
    """
    names = class_names(file.schema, column)
    if not names:
        return ["" if v is None else str(int(v)) if _is_whole(v) else str(v) for v in values]
    found = []
    for row, value in enumerate(values):
        is_number = isinstance(value, int | float) and float(value).is_integer()
        number = int(value or 0) if is_number else None
        if value is not None and (number is None or not -1 <= number < len(names)):
            raise ValueError(
                f"{file.path}, row {row}: the column {column!r} is {value!r}, but the schema names "
                f"{len(names)} classes by their numbers"
            )
        found.append("" if number is None or number < 0 else names[number])
    return found


def _is_whole(value: Any) -> bool:
    """Whether pandas made a float of a whole number, since the column has gaps."""
    return isinstance(value, bool | float) and float(value).is_integer()


@dataclass(kw_only=True)
class _Rows:
    """The rows of all files that have an image."""

    places: list[tuple[int, int]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    beside: dict[int, str] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    folds: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    neither: list[str] = field(default_factory=list)
    unlabeled: list[str] = field(default_factory=list)


def find_parquet(root: Path, columns: TableColumns | None = None) -> ImageListing:
    """List the images in Parquet or Arrow files below a folder, or in one file.

    Long because every column goes through each of its steps.

    Raises:
        ValueError: If a file cannot be read, it is not clear which column or folder is meant, or
            no row has an image and a label.
    """
    given = TableColumns() if columns is None else columns
    faults: list[str] = []
    base = root if root.is_dir() else root.parent
    by_split = {"": [root]} if root.is_file() else _by_split(root, faults)
    files = [_open(path) for paths in by_split.values() for path in paths]
    stated = [split for split, paths in by_split.items() for _ in paths]
    image, label = _columns_of(files[0], given)
    inner = _byte_columns(files[0].schema)[image]
    names = _same_classes(files, label)
    header = files[0].schema.names
    (splits, folds), grouped = given.others(header, files[0].path), given.group_column(header)
    rows = _read(files, stated, (image, inner, label), (splits, folds, grouped), base)
    if not rows.labels:
        left = f"({'; '.join(_left(rows)) or 'there are no rows'})"
        raise ValueError(f"{root}: no row has an image and a label {left}")
    faults += [*_left(rows), *_large_group(files)]
    parts, split_from = parts_of_rows(
        [_split_of(text, root, splits) for text in rows.splits],
        rows.folds if folds else None,
        given,
        where=str(root),
        of_folds=f"the column {folds!r}",
    )
    column = f"the column {splits!r}" if splits else ""
    split_from = split_from or ("the names of the files or folders" if any(stated) else column)
    lists = _has_label_lists(files[0].schema, label)
    where = f"{root}, column {label!r}"
    several = label_cells(rows.labels, given.separator, where) if lists or not names else None
    kind: LabelKind = "single" if several is None else several.kind
    values = [{name: 1.0} for name in rows.labels] if several is None else several.rows
    classes, labels, targets = listed_labels(kind, values, names)
    shown, keys = _names(rows, files)
    places = np.array(rows.places, np.int64).reshape(-1, 2)

    def take(which: Sequence[int]) -> Samples:
        found = some(which)
        found.kind = kind
        found.targets = None if targets is None else targets[np.asarray(which, np.int64)]
        return found

    def some(which: Sequence[int]) -> Samples:
        beside = {i: rows.beside[k] for i, k in enumerate(which) if k in rows.beside}
        if len(beside) == len(which) and beside:
            return FolderSamples(base, [*beside.values()], [labels[k] for k in which])
        return ParquetSamples(
            [file.path for file in files],
            (image, inner),
            places[np.asarray(which, np.int64)],
            beside,
            [shown[k] for k in which],
            [labels[k] for k in which],
        )

    note = f"images by the column {image!r}, labels by the column {label!r}"
    note += f", {several.said}" if several is not None else ""
    negative = sum(not row for row in values)
    negatives = f"images without any label, negatives of every class: {negative:,}"
    return ImageListing(
        root=root,
        classes=classes,
        keys=keys,
        labels=labels,
        train=parts.get("train", []),
        val=parts.get("val"),
        test=parts.get("test"),
        layout=f"images in {len(files):,} {'Parquet' if files[0].table is None else 'Arrow'} "
        f"{'file' if len(files) == 1 else 'files'}",
        split=split_from,
        groups=rows.groups if grouped else (),
        notes=(
            note + (", whose names are in the schema" if names else ""),
            *([negatives] if negative else []),
        ),
        faults=tuple(faults),
        take=take,
        kind=kind,
        targets=targets,
    )


def _read(
    files: Sequence[_File],
    stated: Sequence[str],
    columns: tuple[str, str, str],
    others: tuple[str, str, str],
    root: Path,
) -> _Rows:
    """Read the rows of all files, without the bytes of the images.

    Args:
        files: The files.
        stated: The split in the name of each file, or "".
        columns: The column of the images, the field of its structs, and the column of the labels.
        others: The columns of the split, of the fold and of the group, or "".
        root: Where images are whose rows have a path only.

    Raises:
        ValueError: If a file lacks a column.
    """
    rows = _Rows()
    locator = Locator(FileIndex(Fence(root, advice=INTO_DATA)), (root,))
    image, _, label = columns
    for number, file in enumerate(files):
        missing = [name for name in (image, label) if name not in file.schema.names]
        if missing:
            raise ValueError(f"{file.path} has no column {missing[0]!r}, unlike {files[0].path}")
        here = [name if name in file.schema.names else "" for name in others]
        _add(rows, number, file, columns, here, locator, stated[number])
    return rows


def _names(rows: _Rows, files: Sequence[_File]) -> tuple[list[str], list[str]]:
    """Return what to call each row in its file, and among all files."""
    if all(rows.paths) and len(set(rows.paths)) == len(rows.paths):
        return rows.paths, rows.paths
    shown = [f"row {row}" for _, row in rows.places]
    keys = [f"{files[number].path.name}!row {row}" for number, row in rows.places]
    return shown, keys


def _split_of(text: str, root: Path, column: str) -> Split:
    split = split_of(text) if text or column else "train"
    if split is None:
        raise ValueError(
            f"{root}: a row of the column {column!r} is {text!r}, but must be train, val or test"
        )
    return split


def _large_group(files: Sequence[_File]) -> list[str]:
    large = max(files, key=lambda file: file.largest)
    if large.largest <= MAX_BYTES:
        return []
    return [
        f"{large.path} has {large.largest / 1e9:,.2g} GB in one group of rows, which each process "
        "that loads images holds in memory; write smaller groups, such as row_group_size=100"
    ]


def _left(rows: _Rows) -> list[str]:
    return [
        f"{what}, left out: {len(left):,} (such as {left[0]})"
        for what, left in (
            ("rows with neither bytes nor a file of an image", rows.neither),
            ("rows without a label", rows.unlabeled),
        )
        if left
    ]


def _add(
    rows: _Rows,
    number: int,
    file: _File,
    columns: tuple[str, str, str],
    others: Sequence[str],
    locator: Locator,
    split: str,
) -> None:
    """Add the rows of a file that have an image and a label."""
    image, inner, label = columns
    kind = file.schema.field(image).type
    paths: list[str | None] = [None] * file.starts[-1]
    if inner and kind.get_field_index("path") >= 0:
        paths = file.column(image, "path").to_pylist()
    labels = _texts(file, label)
    splits, folds, groups = (_texts(file, name) if name else [""] * len(labels) for name in others)
    has_gaps = file.has_gaps(image, inner)
    for group in range(len(file.starts) - 1):
        start, end = file.starts[group : group + 2]
        content = file.group(group, image, inner) if has_gaps else None
        for row in range(start, end):
            path, where = paths[row] or "", f"{file.path.name}, row {row}"
            if content is not None and content[row - start] is None:
                found = locator.find(path) if path else None
                if found is None:
                    rows.neither.append(where + (f": {path}" if path else ""))
                    continue
                if labels[row]:
                    rows.beside[len(rows.labels)] = str(found)
            if not labels[row]:
                rows.unlabeled.append(where)
                continue
            rows.places.append((number, row))
            rows.paths.append(path)
            rows.labels.append(labels[row])
            rows.splits.append(split or splits[row])
            rows.folds.append(folds[row])
            rows.groups.append(groups[row])


def _by_split(root: Path, faults: list[str]) -> dict[str, list[Path]]:
    """Return the files below a folder by the split in their names or folders, "" for no split.

    Raises:
        ValueError: If they are several data sets, or there is none.
    """
    found: dict[str, list[Path]] = {}
    sets: dict[str, list[str]] = {}
    tables, stale = _table_files(root)
    if stale:
        faults.append(
            f"files that {_STATE} or {_DICT} does not list, perhaps of an earlier save, left out: "
            f"{len(stale):,} (such as {stale[0]})"
        )
    for path in tables:
        below = path.relative_to(root).as_posix()
        folders = [name for name in below.split("/")[:-1] if not is_plain_name(name)]
        split = split_of(_NUMBER.sub("", path.stem)) or split_of_path(below) or ""
        found.setdefault(split, []).append(path)
        sets.setdefault("/".join(folders), []).append(below)
    if not found:
        raise ValueError(f"there is no Parquet or Arrow file below {root}")
    if len(sets) > 1:
        listed = " and ".join(f"{name or '.'}/ ({files[0]})" for name, files in sets.items())
        raise ValueError(f"{root} holds several data sets: {listed}; give one of them as --data")
    if len(found) > 1 and (unnamed := found.pop("", [])):
        faults.append(
            f"files without a split in their names, left out: {len(unnamed):,} (such as "
            f"{unnamed[0].relative_to(root).as_posix()})"
        )
    return found


def _columns_of(file: _File, given: TableColumns) -> tuple[str, str]:
    """Return the columns of the images and of the labels.

    Raises:
        ValueError: If there is none, or several could be meant.
    """
    names = file.schema.names
    given.check(names, file.path)
    check_once(names, names, file.path)
    of_bytes, images = _byte_columns(file.schema), _image_columns(file)
    if given.image:
        if given.image not in of_bytes:
            raise ValueError(f"{file.path}: the column {given.image!r} has no bytes of images")
        image = given.image
    elif len(images) == 1:
        image = next(iter(images))
    else:
        listed = " or ".join(map(repr, images)) or "none of its columns"
        raise ValueError(
            f"{file.path}: the images could be {listed}; say which with --columns image=NAME"
        )
    if given.label:
        return image, given.label
    types = library("pyarrow.types")
    used = {image, *given.named(), *given.others(names, file.path), given.group_column(names)}
    others = [c for c in file.schema if c.name not in used]
    nested = [
        c.name
        for c in others
        if types.is_nested(c.type) and not _has_label_lists(file.schema, c.name)
    ]
    left = [c.name for c in others if c.name not in nested]
    left = [name for name in left if name not in of_bytes]
    classed = [name for name in left if class_names(file.schema, name)]
    usual = [name for wanted in LABELS for name in left if name.lower() == wanted]
    if len(classed) == 1 or (len(left) == 1 and not nested):
        return image, (classed or left)[0]
    if usual and (usual[0] in classed or not classed):
        return image, usual[0]
    listed = ", ".join(classed or left) or "none"
    extra = f" ({', '.join(nested)} have several values in a row)" if nested else ""
    raise ValueError(
        f"{file.path}: the column of the labels could be any of {listed}{extra}; say which with "
        "--columns label=NAME"
    )


def _same_classes(files: Sequence[_File], label: str) -> tuple[str, ...]:
    """Return the names of the classes in the schemas of files; () if they have none.

    Raises:
        ValueError: If two files have different ones, so that a number has two meanings.
    """
    first = files[0]
    names = class_names(first.schema, label)
    for file in files:
        if (other := class_names(file.schema, label)) != names:
            raise ValueError(
                f"{first.path} and {file.path} name other classes in the column {label!r}: "
                f"{', '.join(names[:5]) or 'none'} and {', '.join(other[:5]) or 'none'}"
            )
    return names
