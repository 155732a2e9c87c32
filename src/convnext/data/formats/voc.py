"""Pascal VOC's xml of boxes: a file per image, and lists of the images of each split.

JPEGImages/  Annotations/*.xml  ImageSets/Main/{train,val,test}.txt
images/      annotations/*.xml  (or annots/, or xml beside the images, also per split)

Boxes count pixels from 1 and include the last ones: a box from 1 to 3 is three pixels wide and
begins at the left edge of the image. Where any box begins at 0, the tool counted from 0, and all
boxes are read so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from convnext.data.formats.imported import ImportedDataset, ImportedImage, ImportedObject, box_of
from convnext.data.formats.paths import FileIndex, normal, split_of
from convnext.data.formats.records import Fault, ReadOptions, Split
from convnext.data.images import readable_extensions
from convnext.documents import BadXml, Node, parse, read_regular

IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", "image")


@dataclass
class BoxFaults:
    """What all files share: faults, and whether boxes count from 0."""

    faults: list[Fault] = field(default_factory=list)
    num_zero: int = 0
    """Boxes that begin at 0, which do not exist when counting from 1."""
    num_parts: int = 0

    def add(self, kind: str, where: str, text: str) -> None:
        self.faults.append(Fault(kind=kind, where=where, text=text))


def read_voc(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of the xml files of a folder, with their objects.

    Raises:
        ValueError: If there are no annotations.
    """
    boxes = BoxFaults()
    files = [path for path in index.with_ending(".xml") if path.is_file()]
    images = [image for path in files if (image := _read_file(path, index, options, boxes))]
    if not images:
        shown = f"; the first fault: {boxes.faults[0]}" if boxes.faults else ""
        raise ValueError(f"{index.root} has no *.xml with <annotation>{shown}")
    notes = []
    if boxes.num_zero:
        notes.append(
            f"{boxes.num_zero:,} boxes begin at 0, so all boxes are read as counting from 0 "
            "instead of from 1 as Pascal VOC does"
        )
        images = [replace(image, objects=tuple(map(_from_zero, image.objects))) for image in images]
    images, split_from, list_notes = _split(images, files, index)
    return ImportedDataset(
        kind="Pascal VOC",
        images=images,
        split_from=split_from,
        notes=(*notes, *list_notes),
        faults=tuple(boxes.faults),
    )


def _read_file(
    path: Path, index: FileIndex, options: ReadOptions, boxes: BoxFaults
) -> ImportedImage | None:
    """Return the image of an xml file; None if it is another kind of file, or damaged."""
    try:
        root = parse(path)
    except BadXml as error:
        if "begins with <" not in str(error):
            boxes.add("damaged xml", str(error), "its image and its objects are left out")
        return None
    stated = root.child("size")
    sides = (_whole(stated.value("width")), _whole(stated.value("height"))) if stated else (0, 0)
    line = f":{stated.line}" if stated else ""
    name = root.value("filename")
    # The name in the file is often that of another format; the name of the file decides then.
    ending = Path(name).suffix.lower()
    is_named = ending in readable_extensions() and normal(Path(name).stem) == normal(path.stem)
    image = _beside(path, index)
    return ImportedImage(
        file=image or (name if is_named or ending in readable_extensions() else f"{path.stem}.jpg"),
        where=f"{path}{line}:",
        objects=tuple(read_objects(root, path, options.difficult, boxes)),
        # Some tools write 0 for an unknown size.
        size=sides if all(sides) else None,
        bases=(path.parent, *_image_folders(path), index.root),
    )


def _image_folders(path: Path) -> list[Path]:
    """Return the folders of images that go with the folder of an xml file."""
    inside = path.parent.name
    return [
        folder
        for name in IMAGE_FOLDERS
        for folder in (path.parent.parent / name, path.parent.parent.parent / name / inside)
    ]


def _beside(path: Path, index: FileIndex) -> Path | None:
    """Return the image of the same name beside an xml file, or in a folder of images."""
    for folder in (path.parent, *_image_folders(path)):
        for ending in (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".tif", ".webp"):
            image = folder / f"{path.stem}{ending}"
            if image.is_file() and index.fence.allows(image):
                return image
    return None


def read_objects(root: Node, path: Path, difficult: str, boxes: BoxFaults) -> list[ImportedObject]:
    """Return the objects of an xml file, with boxes that count from 1."""
    found = []
    for node in root.children:
        if node.name != "object":
            continue
        is_difficult = node.value("difficult") == "1"
        if is_difficult and difficult == "drop":
            boxes.num_parts += 1
            continue
        name, box = node.value("name"), node.child("bndbox")
        where = f"{path}:{node.line}"
        if name and box is None and (polygon := node.child("polygon")) is not None:
            if node.value("deleted") != "1":
                found += _polygon(polygon, name, where, boxes)
            continue
        if not name or box is None:
            text = "an object needs a name and a bndbox; left out"
            boxes.add("incomplete objects", f"{where}:", text)
            continue
        try:
            x1, y1, x2, y2 = (float(box.value(edge)) for edge in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError:
            text = "bndbox needs the numbers xmin ymin xmax ymax; left out"
            boxes.add("incomplete objects", f"{path}:{box.line}:", text)
            continue
        if x2 < x1 or y2 < y1:
            text = f"the corners {x1:g} {y1:g} {x2:g} {y2:g} are in the wrong order; swapped"
            boxes.add("corners in the wrong order", f"{path}:{box.line}:", text)
            x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
        boxes.num_zero += min(x1, y1) == 0
        found.append(
            ImportedObject(
                where=f"{path}:{box.line}",
                label=name,
                box=(x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1),
                crowd=is_difficult and difficult == "crowd",
                extra={"difficult": 1} if is_difficult else {},
            )
        )
    return found


def _polygon(node: Node, name: str, where: str, boxes: BoxFaults) -> list[ImportedObject]:
    """Return the object of a polygon, as LabelMe 3 writes it; its points count from 0."""
    try:
        points = [
            (float(point.value("x")), float(point.value("y")))
            for point in node.children
            if point.name == "pt"
        ]
    except ValueError:
        points = []
    if len(points) < 3:
        boxes.add("incomplete objects", f"{where}:", "a polygon needs three points; left out")
        return []
    corners = np.array(points)
    return [
        ImportedObject(
            where=where, label=name, box=box_of(corners), rings=(tuple(corners.ravel().tolist()),)
        )
    ]


def _from_zero(found: ImportedObject) -> ImportedObject:
    """Return an object whose box was read as counting from 1, but counts from 0."""
    if found.rings:
        return found
    x, y, w, h = found.box
    return replace(found, box=(x + 1, y + 1, w - 1, h - 1))


def _split(
    images: list[ImportedImage], files: Sequence[Path], index: FileIndex
) -> tuple[list[ImportedImage], str, list[str]]:
    """Return the images with the split of the lists, where the lists come from, and notes."""
    stems = {_stem(image) for image in images}
    by_split: dict[Split, set[str]] = {}
    notes: list[str] = []
    lists = []
    for path in index.with_ending(".txt"):
        split = split_of(path.stem)
        if split is None or not _is_list(path, stems):
            continue
        lists.append(path)
        by_split.setdefault(split, set()).update(_read_list(path, stems, notes))
    if not lists:
        return images, "", notes
    if not by_split.get("train"):
        # The images of no list are for training.
        others = {stem for found in by_split.values() for stem in found}
        by_split["train"] = stems - others
    order: tuple[Split, ...] = ("test", "val", "train")
    found = []
    lost = 0
    for image in images:
        split = next((s for s in order if _stem(image) in by_split.get(s, ())), None)
        lost += split is None
        if split is not None:
            found.append(replace(image, split=split))
    if lost:
        notes.append(f"{lost:,} annotated images are in no list of ImageSets; left out")
    names = ", ".join(sorted({path.name for path in lists}))
    folders = {path.parent.relative_to(index.root).as_posix() for path in lists}
    return found, f"{' and '.join(sorted(folders))}: {names}", notes


def _stem(image: ImportedImage) -> str:
    """Return the name of the xml file, which the lists give."""
    path = image.where.rsplit(".xml", 1)[0]
    return normal(Path(path).name)


def _is_list(path: Path, stems: set[str]) -> bool:
    """Tell whether a text lists images: one name per line, perhaps with 1 or -1."""
    return any(_listed(line, stems) in stems for line in _lines(path)[:50])


def _lines(path: Path) -> list[str]:
    try:
        text = read_regular(path, "replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def _listed(line: str, stems: set[str]) -> str:
    """Return the name that a line lists, without its folders, ending and second column."""
    for name in (line, line.split()[0]):
        last = normal(name.replace("\\", "/").rsplit("/", 1)[-1])
        for form in (last, last.rsplit(".", 1)[0]):
            if form in stems:
                return form
    return ""


def _read_list(path: Path, stems: set[str], notes: list[str]) -> list[str]:
    """Return the images of a list that have an annotation; a second column is ignored."""
    found: list[str] = []
    unknown: list[str] = []
    for number, line in enumerate(_lines(path), 1):
        stem = _listed(line, stems)
        if stem:
            found.append(stem)
        else:
            name = line.split()[0]
            unknown.append(f"{path}:{number}: {name} has no annotation in an xml file; left out")
    notes += unknown[:1]
    if len(unknown) > 1:
        notes.append(f"{path}: {len(unknown) - 1:,} more images have no annotation; left out")
    return found


def _whole(text: str) -> int:
    """Return a whole number above 0, or 0 for anything else."""
    try:
        value = float(text)
    except ValueError:
        return 0
    return int(value) if value.is_integer() and value > 0 else 0
