"""Files from strangers: only regular files are read, and YAML does not expand without bound."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import IO, Any

import yaml

MAX_DEPTH = 50
"""How deep lists and mappings of YAML may be nested."""
MAX_VALUES = 1_000_000
"""The maximum number of values in a YAML document, with all that its aliases repeat."""


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        OSError: If it cannot be read, or is a named pipe or a device, which could be read forever.
    """
    return open(path, "rb", opener=_regular)


def read_regular(path: str | Path, errors: str = "strict") -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises:
        OSError: As `open_regular`.
        UnicodeDecodeError: If it is not UTF-8 and `errors` is strict.
    """
    with open(path, encoding="utf-8-sig", errors=errors, opener=_regular) as file:
        return file.read()


def read_json(path: Path, *, max_bytes: int | None = None) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: If it cannot be read, is larger than `max_bytes`, or is not JSON.
    """
    try:
        if max_bytes is not None and path.stat().st_size > max_bytes:
            raise ValueError(f"{path} is larger than {max_bytes >> 20} MB")
        text = read_regular(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _regular(path: str, flags: int) -> int:
    # Without the flag, opening a named pipe waits for its writer.
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file, but a pipe, a device or a folder", path)
    return handle


def parse_yaml(text: str, loader: type[Any] = yaml.SafeLoader) -> Any:
    """Return the value of a YAML document.

    Raises:
        yaml.YAMLError: If it is not YAML, is nested too deeply, contains itself, or repeats so much
            by its aliases that it is too large.
    """
    reader = loader(text)
    try:
        root = reader.get_single_node()
        if root is None:
            return None
        _num_values(root, {}, 0)
        return reader.construct_document(root)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    finally:
        reader.dispose()


def _num_values(node: yaml.Node, known: dict[int, int | None], depth: int) -> int:
    """Return the number of values below a node; `known` has those of other nodes, by identity."""
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise yaml.YAMLError("a part of it contains itself")
        return count
    if depth > MAX_DEPTH:
        raise yaml.YAMLError("it is nested too deeply")
    known[id(node)] = None
    count = 1
    for inner in node.value if isinstance(node, yaml.CollectionNode) else ():
        for part in inner if isinstance(inner, tuple) else (inner,):
            count += _num_values(part, known, depth + 1)
    if count > MAX_VALUES:
        raise yaml.YAMLError(f"its aliases repeat more than {MAX_VALUES:,} values")
    known[id(node)] = count
    return count
