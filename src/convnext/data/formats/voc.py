"""Pascal VOC: JPEGImages/, Annotations/*.xml and ImageSets/Main/{train,val}.txt.

Boxes count pixels from 1 and include the last ones: a box from 1 to 3 is three pixels wide and
begins at the left edge of the image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from xml.parsers import expat

from convnext.data.formats.coco_layout import SPLITS
from convnext.data.formats.records import ImportedDataset, ImportedImage, ImportedObject
from convnext.data.images import readable_extensions
from convnext.data.samples import held_out

Difficult = Literal["keep", "crowd", "drop"]
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

    def child(self, name: str) -> Node | None:
        """Return the first child element of a name."""
        return next((child for child in self.children if child.name == name), None)

    def value(self, name: str) -> str:
        """Return the text of a child element; empty if there is none."""
        child = self.child(name)
        return child.text.strip() if child else ""


def is_voc(root: Path) -> bool:
    """Tell whether a folder is in this layout."""
    return (root / "Annotations").is_dir() and (root / "JPEGImages").is_dir()


def read_voc(
    root: Path, *, difficult: Difficult = "keep", val_share: float = 0.2
) -> ImportedDataset:
    """List the images of a folder; their objects are read one by one.

    Args:
        root: The folder.
        difficult: How to treat objects that are marked difficult: "keep" trains on them, "crowd"
            neither trains on them nor counts them, "drop" leaves them out.
        val_share: Share of the images held out if ImageSets/Main has no lists.

    Raises:
        ValueError: If there are no annotations.
    """
    stems = sorted(path.stem for path in (root / "Annotations").glob("*.xml"))
    if not stems:
        raise ValueError(f"{root}/Annotations has no *.xml")
    known, lists = set(stems), root / "ImageSets" / "Main"
    listings: dict[str, list[str]] = {}
    notes: list[str] = []
    for split, names in SPLITS.items():
        file = next((lists / f"{n}.txt" for n in names if (lists / f"{n}.txt").is_file()), None)
        if file is not None:
            listings[split] = _read_list(file, known, notes)
            if file.stem == "test":
                notes.append("ImageSets/Main/test.txt is used for validation")
    if "train" not in listings:
        rest = sorted(known - set(listings.get("val", ())))
        if "val" not in listings:
            listings["val"] = sorted(held_out(rest, val_share))
            notes.append(
                f"ImageSets/Main has no train.txt: {len(listings['val']):,} of {len(rest):,} "
                "images, chosen by their names, are held out for validation"
            )
        listings["train"] = [stem for stem in rest if stem not in set(listings["val"])]
    images = {p.stem: p for p in sorted((root / "JPEGImages").iterdir()) if _is_image(p)}

    def of(stem: str) -> ImportedImage:
        xml = root / "Annotations" / f"{stem}.xml"
        return ImportedImage(
            image=images.get(stem, root / "JPEGImages" / f"{stem}.jpg"),
            name=images[stem].name if stem in images else f"{stem}.jpg",
            labels=xml,
            read=lambda size: read_objects(xml, size, difficult=difficult),
        )

    return ImportedDataset(
        kind="Pascal VOC",
        splits={split: tuple(of(stem) for stem in stems) for split, stems in listings.items()},
        notes=tuple(notes),
    )


def read_objects(
    path: Path, size: tuple[int, int], *, difficult: Difficult = "keep"
) -> tuple[list[ImportedObject], list[str]]:
    """Return the objects of an xml file for an image of `size` (width, height), and the faults."""
    try:
        root = parse(path)
    except BadXml as error:
        return [], [f"{error}; its objects are left out"]
    faults: list[str] = []
    stated = root.child("size")
    sides = tuple(_whole(stated.value(side)) for side in ("width", "height")) if stated else (0, 0)
    # Some tools write 0 for an unknown size.
    if stated and all(sides) and sides != size:
        faults.append(
            f"{path}:{stated.line}: says {sides[0]} x {sides[1]} pixels, but the image has "
            f"{size[0]} x {size[1]}; were the boxes drawn on another size? They are kept"
        )
    found = []
    for node in root.children:
        if node.name != "object":
            continue
        is_difficult = node.value("difficult") == "1"
        if is_difficult and difficult == "drop":
            continue
        name, box = node.value("name"), node.child("bndbox")
        where = f"{path}:{node.line}"
        if not name or box is None:
            faults.append(f"{where}: an object needs a name and a bndbox; left out")
            continue
        try:
            x1, y1, x2, y2 = (float(box.value(edge)) for edge in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError:
            faults.append(f"{path}:{box.line}: bndbox needs the numbers xmin ymin xmax ymax")
            continue
        found.append(
            ImportedObject(
                where=f"{path}:{box.line}",
                label=name,
                box=(x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1),
                crowd=is_difficult and difficult == "crowd",
                extra={"difficult": 1} if is_difficult else {},
            )
        )
    return found, faults


def parse(path: Path) -> Node:
    """Return the elements of an xml file, with their lines.

    Raises:
        BadXml: If it cannot be read, is not xml, or declares entities, which could expand to
            anything or refer to other files.
    """
    parser = expat.ParserCreate()
    stack = [Node(name="", line=0)]

    def start(name: str, _: dict[str, str]) -> None:
        if len(stack) > MAX_DEPTH:
            raise BadXml(f"{path}:{parser.CurrentLineNumber}: more than {MAX_DEPTH} levels")
        node = Node(name=name, line=parser.CurrentLineNumber)
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
        if path.stat().st_size > MAX_BYTES:
            raise BadXml(f"{path}: is larger than {MAX_BYTES >> 20} MB, too large for annotations")
        parser.Parse(path.read_bytes(), True)
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
    if root.name != "annotation":
        raise BadXml(f"{path}:{root.line}: begins with <{root.name}>, not <annotation>")
    return root


def _read_list(path: Path, known: set[str], notes: list[str]) -> list[str]:
    """Return the images of a list that have an annotation; a second column is ignored."""
    found: list[str] = []
    unknown: list[str] = []
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        stem = line.strip() if line.strip() in known else words[0]
        if stem in known:
            found.append(stem)
        else:
            unknown.append(f"{path}:{number}: {stem} has no Annotations/{stem}.xml; left out")
    notes += unknown[:1]
    if len(unknown) > 1:
        notes.append(f"{path}: {len(unknown) - 1:,} more images have no annotation; left out")
    return list(dict.fromkeys(found))


def _whole(text: str) -> int:
    """Return a whole number above 0, or 0 for anything else."""
    try:
        value = float(text)
    except ValueError:
        return 0
    return int(value) if value.is_integer() and value > 0 else 0


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in readable_extensions() and not path.name.startswith(".")
