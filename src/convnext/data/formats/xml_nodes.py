"""Elements of xml files that cannot be trusted, with their lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from convnext.documents import open_regular

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 32


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


def parse(path: Path, name: str = "annotation", *, max_bytes: int = MAX_BYTES) -> Node:
    """Return the root element of an xml file, whose name must be `name`.

    Raises:
        BadXml: If it cannot be read, is not xml, or declares entities, which could expand to
            anything or refer to other files.
    """
    parser = expat.ParserCreate()
    stack = [Node(name="", line=0)]

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(stack) > MAX_DEPTH:
            raise BadXml(f"{path}:{parser.CurrentLineNumber}: more than {MAX_DEPTH} levels")
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
