"""Files from strangers: only regular files are read; YAML and XML do not expand without bound."""

from __future__ import annotations

import errno
import gc
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from xml.parsers import expat

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
        ValueError: If it is not UTF-8 and `errors` is strict.
    """
    with open(path, encoding="utf-8-sig", errors=errors, opener=_regular) as file:
        try:
            return file.read()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8; save it as UTF-8 ({error})") from error


def read_json(
    path: Path, *, max_bytes: int | None = None, object_hook: Callable[[Any], Any] | None = None
) -> Any:
    """Return the content of a JSON file.

    Args:
        path: The file.
        max_bytes: The size of the largest file that is read.
        object_hook: Called with every mapping; returns what is put in its place.

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
        with _without_collector():
            return json.loads(text, object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def is_special(path: str | Path) -> bool:
    """Whether a path is a named pipe, a socket or a device."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextmanager
def _without_collector() -> Iterator[None]:
    """Stop the search for cycles, of which JSON has none, within the block.

    It would walk through all lists and mappings again and again while their number grows.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


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


MAX_XML_BYTES = 16 * 2**20
MAX_XML_DEPTH = 32


class BadXml(ValueError):  # noqa: N818 - it is the file that is bad
    """A file that is not an annotation; the message has the line."""


@dataclass
class Node:
    """An element of an xml file."""

    name: str
    line: int
    text: str = ""
    children: list[Node] = field(default_factory=list)
    attributes: Mapping[str, str] = field(default_factory=dict)

    def child(self, name: str) -> Node | None:
        """Return the first child element of a name."""
        return next((child for child in self.children if child.name == name), None)

    def value(self, name: str) -> str:
        """Return the text of a child element; empty if there is none."""
        child = self.child(name)
        return child.text.strip() if child else ""


def parse(path: Path, name: str = "annotation", *, max_bytes: int = MAX_XML_BYTES) -> Node:
    """Return the root element of an xml file, whose name must be `name`.

    Raises:
        BadXml: If it cannot be read, is not xml, or declares entities, which could expand to
            anything or refer to other files.
    """
    parser = expat.ParserCreate()
    stack = [Node(name="", line=0)]

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(stack) > MAX_XML_DEPTH:
            raise BadXml(f"{path}:{parser.CurrentLineNumber}: more than {MAX_XML_DEPTH} levels")
        node = Node(name=name, line=parser.CurrentLineNumber, attributes=attributes)
        stack[-1].children.append(node)
        stack.append(node)

    def end(_: str) -> None:
        stack.pop()

    def text(value: str) -> None:
        stack[-1].text += value

    def refuse(*_: object) -> None:
        raise BadXml(
            f"{path}:{parser.CurrentLineNumber}: has a DOCTYPE, whose entities may expand to "
            "anything; remove that line"
        )

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.buffer_text = text, True
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        if path.stat().st_size > max_bytes:
            raise BadXml(f"{path}: is larger than {max_bytes >> 20} MB, too large for annotations")
        with open_regular(path) as file:
            parser.ParseFile(file)
    except OSError as error:
        raise BadXml(f"{path}: cannot be read: {error.strerror}") from error
    except BadXml:
        raise
    except (LookupError, ValueError) as error:  # An unknown encoding.
        raise BadXml(f"{path}:1: is not xml that can be read: {error}") from error
    except expat.ExpatError as error:
        what = expat.ErrorString(error.code)
        raise BadXml(f"{path}:{error.lineno}: is not xml: {what}") from error
    root = stack[0].children[0]
    if root.name != name:
        raise BadXml(f"{path}:{root.line}: begins with <{root.name}>, not <{name}>")
    return root
