"""Lists in text files and tables: the images of each split, and the classes of images.

train.txt   ImageSets/Segmentation/val.txt                the images of a split
val/val_annotations.txt   Test.csv                        the classes of a split without folders
images.txt  image_class_labels.txt  train_test_split.txt  by numbers, as in CUB-200
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convnext.data.formats.paths import is_plain_name, split_of, suffixes
from convnext.data.formats.records import Split
from convnext.documents import read_regular

# The names of lists: ImageSets/Segmentation/train.txt, splits/val.txt, or in the folder itself.
LIST_FOLDERS = (
    "ImageSets/Segmentation",
    "",
    "splits",
    "split",
    "lists",
    "list",
    "ImageSets",
    "meta",
    "annotations",
)

TABLES = (".csv", ".tsv")
# Columns that usually hold the class, the best first.
LABELS = (
    "label", "class", "labels", "class_name", "classname", "category", "target", "species", "breed",
    "diagnosis", "dx", "y", "label_name", "category_name", "classid", "class_id", "label_id",
)  # fmt: skip
_SYNSET = re.compile(r"n\d{8}")
_LAST = "the end of the table"
# Rows that tell which column is which.
NUM_ROWS = 200
# CUB-200 and data sets like it: a number for each image, and files that refer to it.
IMAGE_NUMBERS, CLASS_NUMBERS = "images.txt", "image_class_labels.txt"
CLASS_NAMES, IS_TRAINING = "classes.txt", "train_test_split.txt"


def split_lists(
    root: Path, endings: Sequence[str] = (".txt",), folders: Sequence[str] = LIST_FOLDERS
) -> dict[Split, Path]:
    """Return the files that list the images of each split, from the first folder with some.

    A folder with a list for training wins over one that lists only the others.
    """
    places = [root / name for name in folders]
    years = root / "ImageSets"  # ImageSets/2017 and the like.
    places += sorted(p for p in years.iterdir() if p.is_dir()) if years.is_dir() else []
    first: dict[Split, Path] = {}
    for folder in places:
        found: dict[Split, Path] = {}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            split = split_of(path.stem) if path.suffix.lower() in endings else None
            if split and (split not in found or path.stem.lower() == split):
                found[split] = path
        if "train" in found:
            return found
        first = first or found
    return first


def names_of_list(path: Path) -> list[str]:
    """Return the names in a list, with forward slashes."""
    lines = read_regular(path, "replace").splitlines()
    names = [line.replace("\\", "/").strip() for line in lines]
    # A line may name the mask after the image, or have numbers; names have no blanks then.
    return [_first_of(name) for name in names if name]


def _first_of(line: str) -> str:
    words = line.split()
    has_mask = len(words) == 2 and "." in words[0]
    has_numbers = len(words) > 1 and all(word.lstrip("-").isdecimal() for word in words[1:])
    return words[0] if has_mask or has_numbers else line


def cells_of(path: Path, text: str, sign: str = "", *, is_whole: bool = True) -> list[list[str]]:
    """Return the rows of a table, blank ones as [].

    Args:
        path: Its file, for messages.
        text: Its content.
        sign: What separates the cells; by default the most frequent sign of the first line.
        is_whole: Whether it is the whole content, rather than a start that may end within a cell.

    Raises:
        ValueError: If a quotation mark is not closed: all that follows would be one cell.
    """
    first = text.partition("\n")[0]
    # If a last line of our own is not read as one, it is part of a cell.
    lines = f"{text}\n{_LAST}"
    reader = csv.reader(io.StringIO(lines), delimiter=sign or max(",;\t", key=first.count))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(
            f"{path}:{reader.line_num}: cannot be read as a table: {error}; is a quotation mark "
            "before it not closed?"
        ) from error
    last = rows.pop()
    if last != [_LAST] and is_whole:
        line = lines.count("\n") + 1 - last[-1].count("\n")
        raise ValueError(f"{path}:{line}: a quotation mark is opened, but not closed")
    return rows


def rows_of_text(path: Path) -> list[list[str]]:
    """Return the cells of a table, or the words of each line of another text.

    The words are separated by tabs if there are any, else by commas or blanks.

    Raises:
        ValueError: If it is not UTF-8, or a quotation mark in a table is not closed.
    """
    text = read_regular(path)
    if path.suffix.lower() in TABLES:
        rows = cells_of(path, text)
    elif sign := next((sign for sign in "\t,;" if sign in text.partition("\n")[0]), ""):
        rows = cells_of(path, text, sign)
    else:
        rows = [line.split() for line in text.splitlines()]
    return [[cell.strip() for cell in row] for row in rows if any(row)]


def classes_by_list(
    paths: Sequence[Path], images: Sequence[str], classes: Collection[str]
) -> tuple[Path, dict[str, str]] | None:
    """Return the class of each image by the first list that gives it; None without such a list.

    Args:
        paths: Texts and tables that may be the list.
        images: The files of the images; lists may leave out their folders and endings.
        classes: The known classes; names beside them do not count.
    """
    known = {os.path.splitext(os.path.basename(file))[0]: file for file in images}
    known |= {os.path.basename(file): file for file in images}
    for path in paths:
        rows = rows_of_text(path)
        header = [cell.lower() for cell in rows[0]] if rows else []
        some = rows[:NUM_ROWS]
        width = min(map(len, rows), default=0)
        counts = [sum(os.path.basename(row[i]) in known for row in some) for i in range(width)]
        if not counts or 2 * max(counts) < len(some):
            continue
        image = counts.index(max(counts))
        # All rows below a header must name a class.
        fitting = [
            i
            for i in range(width)
            if i != image and all(_class_in(row[i], classes) for row in some[1:] or some)
        ]
        named = [i for name in LABELS for i in fitting if header[i] == name]
        label = named[0] if named else fitting[0] if len(fitting) == 1 else None
        if label is not None:
            found = {os.path.basename(row[image]): _class_in(row[label], classes) for row in rows}
            return path, {known[name]: c for name, c in found.items() if name in known and c}
    return None


def _class_in(cell: str, classes: Collection[str]) -> str:
    """Return the class that a cell names, perhaps with its boxes as in `dog 1 2 3 4`; else ""."""
    if cell in classes:
        return cell
    words = cell.split()
    names = set(words[::5]) if len(words) % 5 == 0 else set()
    return words[0] if len(names) == 1 and words[0] in classes else ""


def names_of_synsets(places: Sequence[Path], classes: Sequence[str]) -> list[str]:
    """Return a note on the words for classes that are ids of WordNet, if a list has them."""
    if not all(_SYNSET.fullmatch(name) for name in classes):
        return []
    for path in (p for place in places for p in sorted(place.glob("*.txt"))):
        lines = read_regular(path, "replace").splitlines()
        words = dict(line.split(maxsplit=1) for line in lines if len(line.split(maxsplit=1)) == 2)
        if all(name in words for name in classes):
            shown = ", ".join(f"{name} is {words[name].split(',')[0]}" for name in classes[:5])
            more = ", ..." if len(classes) > 5 else ""
            return [f"the classes are ids of WordNet, named by {path.name}: {shown}{more}"]
    return []


@dataclass(frozen=True, kw_only=True)
class NumberedImages:
    """Images by numbers, as in CUB-200."""

    files: Mapping[str, str]
    """The file of each image, relative to the folder of images, by its number."""
    labels: Mapping[str, str]
    """The name of its class."""
    is_train: Mapping[str, bool]
    """Empty without a split."""


def has_numbered_images(folder: Path) -> bool:
    """Whether a folder has lists of images and of their classes by numbers."""
    return (folder / IMAGE_NUMBERS).is_file() and (folder / CLASS_NUMBERS).is_file()


def read_numbered_images(folder: Path) -> NumberedImages:
    """Read lists of images and of their classes by numbers.

    Raises:
        ValueError: If a line is damaged, or an image has no class.
    """
    files = _numbered(folder / IMAGE_NUMBERS)
    classes = _numbered(folder / CLASS_NUMBERS)
    names = _numbered(folder / CLASS_NAMES) if (folder / CLASS_NAMES).is_file() else {}
    split = _numbered(folder / IS_TRAINING) if (folder / IS_TRAINING).is_file() else {}
    without = next((number for number in files if number not in classes), None)
    if without is not None:
        raise ValueError(f"{folder / CLASS_NUMBERS} has no class for image {without}")
    unsplit = next((number for number in files if split and number not in split), None)
    if unsplit is not None:
        raise ValueError(f"{folder / IS_TRAINING} does not say what image {unsplit} is for")
    return NumberedImages(
        files=files,
        labels={number: names.get(classes[number], classes[number]) for number in files},
        is_train={number: value != "0" for number, value in split.items()},
    )


def _numbered(path: Path) -> dict[str, str]:
    """Return the text after the number of each line.

    Raises:
        ValueError: If a line has no number, or a number is repeated.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(read_regular(path, "replace").splitlines(), 1):
        if line.strip():
            key, _, value = line.strip().partition(" ")
            if not key.isdecimal() or not value or key in found:
                raise ValueError(f"{path}:{number}: needs a number of its own and a value")
            found[key] = value.strip()
    return found


def listed_split(
    root: Path, keys: Sequence[str], faults: list[str]
) -> tuple[dict[Split, list[int]], str]:
    """Return the images of each split by lists such as train.txt, and the names of the lists.

    The lists are in the folder, in one such as meta/, or beside an images/ folder.
    """
    beside = [root.parent] if is_plain_name(root.name) else []
    endings = (".txt", *TABLES)
    # The lists of DTD are in labels/, where those of other tasks have the objects of an image.
    folders = (*LIST_FOLDERS, "labels")
    places = (root, *beside)
    lists = next((f for place in places if (f := split_lists(place, endings, folders))), {})
    position: dict[str, int] = {}
    for index, key in enumerate(keys if lists else ()):
        position |= {key: index, os.path.splitext(key)[0]: index}
    found: dict[Split, list[int]] = {}
    unknown: list[str] = []
    for split, path in lists.items():
        for name in _names_in(path, position):
            inner = next((tail for tail in suffixes(name) if tail in position), None)
            if inner is not None:
                found.setdefault(split, []).append(position[inner])
            else:
                unknown.append(name)
    listed = [index for indices in found.values() for index in indices]
    shown = ", ".join(path.name for path in lists.values())
    if not found or len(unknown) > len(listed) or list(found) == ["train"]:
        if lists:
            faults.append(f"{shown}: most names there are not images of the classes; not used")
        return {}, ""
    if "train" not in lists:
        found["train"] = sorted(set(range(len(keys))) - set(listed))
        listed += found["train"]
        shown += ", and all other images are for training"
    if len(set(listed)) < len(listed):
        raise ValueError(f"{shown} in {root} list {len(listed) - len(set(listed)):,} images twice")
    rest = sorted(set(range(len(keys))) - set(listed))
    faults += _other_lists(lists, endings)
    faults += [
        f"{what}, left out: {len(left):,} (such as {left[0]})"
        for what, left in (
            ("listed images that are absent", unknown),
            ("images that no list names", [keys[index] for index in rest]),
        )
        if left
    ]
    return found, f"lists {shown}"


def _other_lists(lists: Mapping[Split, Path], endings: Sequence[str]) -> list[str]:
    """Return a fault if lists of other splits are beside those that are used, such as train2."""
    folder = next(iter(lists.values())).parent
    others = [
        path.name
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in endings and split_of(path.stem) and path not in lists.values()
    ]
    if not others:
        return []
    return [f"lists of other splits, not used: {len(others):,} (such as {others[0]})"]


def _names_in(path: Path, known: Collection[str]) -> list[str]:
    """Return the names in a list, or in the column of a table that has most known names."""
    if path.suffix.lower() not in TABLES:
        return names_of_list(path)
    rows = rows_of_text(path)
    width = min(map(len, rows), default=0)
    columns = [[row[i].replace("\\", "/") for row in rows] for i in range(width)]
    counts = [
        sum(any(tail in known for tail in suffixes(cell)) for cell in column[:NUM_ROWS])
        for column in columns
    ]
    if not any(counts):
        return [row[0] for row in rows[1:] if row]
    best = columns[counts.index(max(counts))]
    is_header = not any(tail in known for tail in suffixes(best[0]))
    return best[1:] if is_header else best
