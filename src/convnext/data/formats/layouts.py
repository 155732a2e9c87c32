"""The layouts of images with objects: which one a folder has, and its reader.

A layout is recognized by the contents of a sample of the annotation files, wherever they are below
the folder. A folder that fits two layouts is refused until the user says which one is meant.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from convnext.data.formats.box_tables import is_table, read_table
from convnext.data.formats.box_texts import (
    read_dota,
    read_keras,
    read_kitti,
    read_visdrone,
    read_wider,
    text_layout,
)
from convnext.data.formats.class_checks import with_known_format
from convnext.data.formats.class_folders import has_class_folders
from convnext.data.formats.coco_layout import (
    ACCEPTED,
    BACKUP_SUFFIX,
    has_labels_alone,
    looks_like_coco,
)
from convnext.data.formats.cvat import read_cvat
from convnext.data.formats.imported import ImportedDataset
from convnext.data.formats.instances import read_instances
from convnext.data.formats.label_studio import read_label_studio, read_supervisely, read_vott
from convnext.data.formats.labelme import read_labelme
from convnext.data.formats.mask_folders import is_mask_folder
from convnext.data.formats.paths import Fence, FileIndex
from convnext.data.formats.records import ReadOptions
from convnext.data.formats.text_lists import CLASS_NUMBERS
from convnext.data.formats.tool_json import (
    has_objects_in_lines,
    json_layout,
    read_bdd100k,
    read_createml,
    read_datumaro,
    read_imagefolder,
)
from convnext.data.formats.via import is_via_table, read_via
from convnext.data.formats.voc import read_voc
from convnext.data.formats.yolo import is_label_line, read_yolo
from convnext.data.images import is_hidden
from convnext.documents import open_regular

READERS: Mapping[str, Callable[[FileIndex, ReadOptions], ImportedDataset]] = {
    "yolo": read_yolo,
    "voc": read_voc,
    "labelme": read_labelme,
    "via": read_via,
    "cvat": read_cvat,
    "roboflow-text": read_keras,
    "box-table": read_table,
    "kitti": read_kitti,
    "dota": read_dota,
    "visdrone": read_visdrone,
    "wider-face": read_wider,
    "createml": read_createml,
    "label-studio": read_label_studio,
    "vott": read_vott,
    "supervisely": read_supervisely,
    "datumaro": read_datumaro,
    "bdd100k": read_bdd100k,
    "imagefolder": read_imagefolder,
    "instances": read_instances,
}
LAYOUTS = ("coco", *READERS)
NAMES = {
    "coco": "COCO's json",
    "yolo": "YOLO text files",
    "voc": "Pascal VOC xml",
    "labelme": "LabelMe json",
    "via": "VIA json",
    "cvat": "CVAT xml",
    "roboflow-text": "_annotations.txt",
    "box-table": "a CSV of boxes",
    "kitti": "KITTI's texts",
    "dota": "DOTA's texts",
    "visdrone": "VisDrone's texts",
    "wider-face": "WIDER FACE's lists",
    "createml": "CreateML json",
    "label-studio": "Label Studio json",
    "vott": "VoTT json",
    "supervisely": "Supervisely json",
    "datumaro": "Datumaro json",
    "bdd100k": "BDD100K json",
    "imagefolder": "metadata.jsonl with objects",
    "instances": "masks with the ids of objects",
}
_ENDINGS = (".json", ".jsonl", ".xml", ".txt", ".yaml", ".yml", ".csv", ".tsv", ".data", ".names")
# Files of each ending that are looked into, spread over the folder.
NUM_SAMPLE = 40
HEAD = 1 << 16
MAX_FOLDERS = 20_000


@dataclass(frozen=True)
class Recognized:
    """A layout, and a file that shows it."""

    layout: str
    example: Path


def is_detection(root: Path) -> bool:
    """Tell whether a path has images with objects in one of the layouts."""
    if root.is_file():
        return root.suffix.lower() == ".json"
    found = {one.layout for one in recognize(root)} if root.is_dir() else set()
    # A table of boxes beside train/CLASS/*: the folders are the classes.
    return bool(found) and not (found == {"box-table"} and has_class_folders(root))


def recognize(root: Path) -> list[Recognized]:
    """Return the layouts that annotation files below a folder show."""
    by_ending: dict[str, list[Path]] = {}
    files = list(_annotation_files(root))
    # Lists of numbers and boxes, but of images with a class each.
    numbered = [path.parent for path in files if path.name == CLASS_NUMBERS]
    for path in files:
        if any(folder in path.parents for folder in numbered):
            continue
        by_ending.setdefault(path.suffix.lower(), []).append(path)
    found: dict[str, Path] = {}
    for ending, paths in by_ending.items():
        for path in _sample(paths):
            layout = _layout_of(path, ending)
            if layout:
                found.setdefault(layout, path)
    return [Recognized(layout, path) for layout, path in found.items()]


def choose(root: Path, layout: str = "") -> str:
    """Return the layout of a folder.

    Raises:
        ValueError: If no layout fits, or several do and the user has not chosen.
    """
    if layout:
        if layout not in LAYOUTS:
            raise ValueError(f"--layout is {layout!r}, but must be one of {', '.join(LAYOUTS)}")
        return layout
    if root.is_file():
        return "coco"
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}")
    found = recognize(root)
    if len(found) > 1:
        both = " and ".join(f"{NAMES[one.layout]} ({_short(one.example, root)})" for one in found)
        raise ValueError(
            f"{root} has objects in several layouts: {both}; say which with --layout "
            f"{found[0].layout} or --layout {found[1].layout}"
        )
    if not found and is_mask_folder(root):
        return "instances"
    if not found:
        error = ValueError(
            f"{root} has no annotations of objects that can be read: {ACCEPTED}; also supported: "
            f"{', '.join(NAMES[name] for name in READERS)}"
        )
        raise with_known_format(error, root)
    return found[0].layout


def with_recognized(error: ValueError, root: Path, layout: str) -> ValueError:
    """Return an error about a layout that the user gives, with the one that the folder looks like.

    It is unchanged if the user gives none, or the folder looks like nothing else.
    """
    if not layout or not root.is_dir():
        return error
    others = [one for one in recognize(root) if one.layout != layout]
    if others:
        one = others[0]
        seen = f"{NAMES[one.layout]} ({_short(one.example, root)}): leave out --layout, or give "
        return ValueError(f"{error}; {root} looks like {seen}--layout {one.layout}")
    if layout not in ("class_folders", "file_names") and has_class_folders(root):
        return ValueError(f"{error}; {root} looks like class folders: leave out --layout")
    if is_mask_folder(root):
        seen = "images with masks: leave out --layout, or give --task segment"
        return ValueError(f"{error}; {root} looks like {seen}")
    return error


def file_index(root: Path, options: ReadOptions) -> FileIndex:
    """Return the files of a data set and of the folder of images besides it."""
    base = root if root.is_dir() else root.parent
    others = (Path(options.images),) if options.images else ()
    for folder in others:
        if not folder.is_dir():
            raise ValueError(f"there is no folder of images {folder}")
    return FileIndex(Fence(base, others, allow_outside=options.allow_outside))


def _short(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _annotation_files(root: Path) -> Iterator[Path]:
    """Yield the files that may be annotations, without sorting the images."""
    folders, visited = [str(root)], 0
    while folders and visited < MAX_FOLDERS:
        folder = folders.pop(0)
        visited += 1
        inner: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if is_hidden(entry.name):
                        continue
                    if entry.name.lower().endswith(_ENDINGS):
                        yield Path(entry.path)
                    elif entry.is_dir(follow_symlinks=folder == str(root)):
                        inner.append(entry.path)
        except OSError:
            continue
        folders += sorted(inner)


def _sample(paths: list[Path]) -> list[Path]:
    paths = sorted(paths)
    step = max(len(paths) // NUM_SAMPLE, 1)
    # Small files beside many others are often the ones that matter: data.yaml, one json.
    return [*paths[:NUM_SAMPLE], *paths[NUM_SAMPLE::step]]


def _layout_of(path: Path, ending: str) -> str:
    """Return the layout that a file belongs to; "" if it is none."""
    try:
        with open_regular(path) as file:
            head = file.read(HEAD)
    except OSError:
        return ""
    if ending == ".json":
        return "" if BACKUP_SUFFIX in path.name else _json_layout(path, head)
    if ending == ".xml":
        return _xml_layout(head)
    if ending == ".jsonl":
        return "imagefolder" if has_objects_in_lines(head) else ""
    if ending in (".csv", ".tsv"):
        return "via" if is_via_table(head) else "box-table" if is_table(path) else ""
    if ending == ".txt":
        return _text_layout(path, head)
    text = head.decode("utf-8-sig", "replace")
    if ending in (".yaml", ".yml"):
        keys = {line.split(":")[0].strip() for line in text.splitlines() if not line[:1].isspace()}
        is_config = "names" in keys and keys & {"train", "val", "path", "nc"}
        return "yolo" if is_config or path.name == "data.yaml" else ""
    if ending == ".data":
        return "yolo" if "names" in text and "train" in text else ""
    return "yolo" if path.name == "obj.names" else ""


def _text_layout(path: Path, head: bytes) -> str:
    found = text_layout(path, head)
    if found:
        return found
    lines = head.decode("utf-8-sig", "replace").splitlines()
    first = next((line for line in lines if line.strip()), "")
    # A file of labels may be empty: an image without objects.
    is_label = is_label_line(first) or (not first and "labels" in path.parts)
    return "yolo" if is_label else ""


def _xml_layout(head: bytes) -> str:
    start = head[:4096]
    if b"<annotations" in start:
        # Tags of whole images are not objects.
        shapes = (b"<box ", b"<polygon ", b"<mask ", b"<ellipse ", b"<track ")
        return "cvat" if any(shape in head for shape in shapes) or b"<tag " not in head else ""
    is_voc = b"<annotation" in start and (b"<size>" in head or b"<object>" in head)
    return "voc" if is_voc or (b"<annotation" in start and b"<filename>" in head) else ""


def _json_layout(path: Path, head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    found = json_layout(text)
    if found or text[:1] == b"[":
        return found
    if text[:1] != b"{":
        return ""
    is_project = b'"project"' in text and (
        b'"vid_list"' in text or b'"data_format_version"' in text
    )
    if (
        is_project
        or b'"_via_img_metadata"' in text
        or (b'"regions"' in text and b'"filename"' in text)
    ):
        return "via"
    if b'"shapes"' in text and (b'"imagePath"' in text or b'"imageData"' in text):
        return "labelme"
    return "coco" if looks_like_coco(path) and not has_labels_alone(path) else ""
