"""Reports on data sets that stay in the user's cache folder while no file of the data changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import struct
import time
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from convnext.atomic import write_text
from convnext.data.doctor import NOT_DECODED, SETTLED_NS, shrink
from convnext.hardware.tuning_cache import cache_folder

Report = TypeVar("Report")
# The libraries that decide what can be read, and how.
_LIBRARIES = ("convnext", "numpy", "pillow", "tifffile", "pydicom", "pillow-heif", "pillow-jxl",
              "pillow-jxl-plugin", "datasets", "pyarrow")  # fmt: skip
# Options that may name files outside of the data.
_ELSEWHERE = ("allow_outside", "annotations", "images", "masks")
_FORMAT = 1
_STAMP = struct.Struct("<qqqQ")
_log = logging.getLogger("convnext")


class StoredReport:
    """The report on a data set, kept while neither a file of it nor the question changes.

    Args:
        path: The data set. Only reports on folders are kept, since a single file may refer to
            others anywhere.
        question: All else that the report depends on, such as the task and the options; plain
            values.
    """

    def __init__(self, path: str, question: Mapping[str, Any]) -> None:
        root = Path(path)
        self._began = time.time_ns()
        self._key = ""
        asked = json.dumps([os.path.abspath(root), path, question], sort_keys=True, default=str)
        name = hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        self.path = cache_folder() / "reports" / f"{name}.json"
        # Whether files elsewhere changed is not known.
        if not root.is_dir() or any(question.get(name) for name in _ELSEWHERE):
            return
        with contextlib.suppress(OSError):
            digest, newest = _stamp_of_tree(root)
            # A file may be written again within one step of the clock of the file system.
            if newest + SETTLED_NS < self._began:
                versions = [_version(name) for name in _LIBRARIES]
                self._key = f"{_FORMAT} {versions} {digest}"

    def load(self, kind: type[Report]) -> Report | None:
        """Return the stored report, with a note that says so; None if anything changed.

        A damaged file is ignored with a warning.
        """
        if not self._key:
            return None
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["key"] != self._key:
                return None
            report: Any = from_plain(kind, found["report"])
            made = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(found["time"])))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            _log.warning("ignoring the damaged file %s (%s)", self.path, error)
            return None
        with contextlib.suppress(OSError):
            os.utime(self.path)  # The reports that were not used for the longest time go first.
        notes = [note for note in report.notes if not note.endswith(NOT_DECODED)]
        again = (
            f"no file has changed since {made}; this is the report of that time (--no-cache reads "
            "the data again)"
        )
        shown: Report = replace(report, notes=(*notes, again))
        return shown

    def save(self, report: Any) -> None:
        """Store a report, of plain values and data classes."""
        if not self._key:
            return
        values = {f.name: getattr(report, f.name) for f in fields(report)}
        content = {"key": self._key, "time": self._began / 1e9, "report": values}
        try:
            write_text(self.path, json.dumps(content, default=_plain))
            shrink(self.path.parent)
        except OSError as error:
            _log.warning("the report is not cached: %s", error)


def from_plain(hint: Any, value: Any) -> Any:
    """Return a value of a type from what JSON makes of it.

    Args:
        hint: A data class, tuple, dictionary or union of these and plain types.
        value: Plain values.

    Raises:
        ValueError: If the value does not have this type.
    """
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (hint,) = (part for part in inner if part is not type(None))
        return from_plain(hint, value)
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        hints = get_type_hints(hint)
        return hint(**{name: from_plain(hints[name], one) for name, one in value.items()})
    if kind is tuple and isinstance(value, list):
        hints_of = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return tuple(from_plain(one, item) for one, item in zip(hints_of, value, strict=True))
    if kind is dict and isinstance(value, dict):
        return {key: from_plain(inner[1], item) for key, item in value.items()}
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint is Any or (isinstance(hint, type) and type(value) is hint):
        return value
    raise ValueError(f"{value!r} is not of the type {hint}")


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    raise TypeError(f"{type(value).__name__} is not a plain value")


def _stamp_of_tree(root: Path) -> tuple[str, int]:
    """Return a hash of the names, sizes and times of all files, and the time of the newest.

    Files directly beside the folder count too: annotations and lists of classes may be there.

    Raises:
        OSError: If a folder cannot be listed.
    """
    digest, newest = hashlib.blake2b(digest_size=16), 0
    beside = os.path.dirname(os.path.abspath(root))
    todo, seen = [(beside, False), (os.path.abspath(root), True)], set()
    while todo:
        folder, is_deep = todo.pop()
        digest.update(b"%d" % is_deep + os.fsencode(folder) + b"\0")
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                try:
                    found = entry.stat()
                except OSError:  # A broken link.
                    found = entry.stat(follow_symlinks=False)
                digest.update(os.fsencode(entry.name) + b"\0")
                if not stat.S_ISDIR(found.st_mode):
                    times = found.st_mtime_ns, found.st_ctime_ns
                    newest = max(newest, *times)
                    digest.update(_STAMP.pack(found.st_size, *times, found.st_ino & (2**64 - 1)))
                elif is_deep and (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    todo.append((entry.path, True))
    return digest.hexdigest(), newest


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
