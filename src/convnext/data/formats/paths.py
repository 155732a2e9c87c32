"""Files of a data set: what their names say about split and contents, and where listed files are.

People write `train`, `Training`, `seg_train`, `train2017`, `training_set`, `trainannot` ... A name
is read word by word, and only a name whose words are all known counts.

Annotations name files as the system wrote them that made the annotations: with backslashes, as
absolute paths of another machine, with percent signs, in another case, another Unicode form, or
with another ending. `FileIndex` finds them, and never leaves the data.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Literal
from urllib.parse import unquote

from convnext.data.formats.records import Split
from convnext.data.images import (
    is_hidden,
    readable_extensions,
)

Kind = Literal["image", "mask", "annotation"]

SPLIT_WORDS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "validating", "dev", "devel", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout"),
}
_SPLITS = {word: split for split, words in SPLIT_WORDS.items() for word in words}
_IMAGES = """
    image images img imgs imagery jpeg jpg jpegimages jpgs pngimages picture pictures photo photos
    input inputs raw rgb original originals frames
"""
_MASKS = """
    mask masks label labels annot annotated gt groundtruth truth ground seg segs segmentation
    segmentations segmentationclass segmentationclasspng segmentationclassraw segmask segmasks
    semantic labelled target targets matte mattes manual lab labs msk msks lbl lbls
"""
_ANNOTATIONS = """
    anno annos annotation annotations annots ann anns bbox bboxes xml xmls json jsons txt csv
    imagesets segmentationobject segmentationclassvisualization segmentationobjectpng
    segmentationobjectvisualization imagesetsmain labelmap polygons keypoints
"""
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(_IMAGES.split(), "image"),
    **dict.fromkeys(_MASKS.split(), "mask"),
    **dict.fromkeys(_ANNOTATIONS.split(), "annotation"),
}
# Words that say nothing about the split or the kind.
_FILLERS = frozenset(
    """
    set sets data dataset datasets split splits subset part parts folder dir stage new final the of
    all class classes id ids first st nd rd th sample samples obj object objects instance instances
    detect detection coco voc yolo darknet via png pics
    """.split()  # noqa: SIM905 - a list of this length reads better as text
)
# Words that are joined to another one without a separator: trainset, trainannot, valmasks.
_ENDS = tuple(
    sorted(
        ("set", "data", "annot", "images", "imgs", "img", "masks", "mask", "labels", "label"),
        key=len,
        reverse=True,
    )
)


# x_train, y_train, Xtest, test_y: inputs and targets, as in code.
_LETTERS = {"x": "images", "y": "labels"}
_SPLIT = "|".join(sorted(_SPLITS, key=len, reverse=True))
_LETTER = re.compile(rf"([xy])[-_. ]?({_SPLIT})|({_SPLIT})[-_. ]?([xy])", re.IGNORECASE)


def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name in lowercase, without digits.

    >>> words_of("seg_train2017"), words_of("trainannot"), words_of("SegmentationClass")
    (('seg', 'train'), ('train', 'annot'), ('segmentationclass',))
    >>> words_of("X_train"), words_of("y_test")
    (('images', 'train'), ('labels', 'test'))
    """
    if match := _LETTER.fullmatch(name):
        letter, split = match[1] or match[4], match[2] or match[3]
        return _LETTERS[letter.lower()], split.lower()
    found: list[str] = []
    for part in re.findall(r"[^\W\d_]+", name):
        whole = part.lower()
        if whole in _KINDS or whole in _SPLITS:
            found.append(whole)
            continue
        for word in re.findall(r"[^\W\d_][a-z]*|[^\W\d_]+", part) if _is_camel(part) else [part]:
            word = word.lower()
            end = next((e for e in _ENDS if word.endswith(e) and word[: -len(e)] in _SPLITS), "")
            found += [word[: -len(end)], end] if end else [word]
    return tuple(found)


def split_of(name: str) -> Split | None:
    """Return the split that a name stands for; None if it has other words, or two splits.

    >>> split_of("seg_train"), split_of("Testing"), split_of("train_masks"), split_of("trainer")
    ('train', 'test', 'train', None)
    """
    words = words_of(name)
    splits = {_SPLITS[word] for word in words if word in _SPLITS}
    known = all(word in _SPLITS or word in _FILLERS or word in _KINDS for word in words)
    return splits.pop() if len(splits) == 1 and known else None


def word_split(name: str) -> Split | None:
    """Return the split that one word of a name stands for; None if there is none, or several.

    >>> word_split("LOC_val_solution"), word_split("bdd100k_labels_images_train"), word_split("x")
    ('val', 'train', None)
    """
    found = {_SPLITS[word] for word in words_of(name) if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def kind_of(name: str) -> Kind | None:
    """Return what a name says its files are; None if it does not say, or has other words.

    >>> kind_of("train_masks"), kind_of("JPEGImages"), kind_of("train"), kind_of("cat_images")
    ('mask', 'image', None, None)
    """
    words = words_of(name)
    if not all(word in _SPLITS or word in _FILLERS or word in _KINDS for word in words):
        return None
    if words[:1] == ("seg",) and len(words) > 1:  # The seg_train/ of a classification data set.
        words = words[1:]
    kinds = {_KINDS[word] for word in words if word in _KINDS}
    # A folder "label_images" holds masks.
    order: tuple[Kind, ...] = ("mask", "annotation", "image")
    return next((kind for kind in order if kind in kinds), None)


def is_reserved(name: str) -> bool:
    """Whether a name is one of a split, or of a kind of images or annotations."""
    return split_of(name) is not None or kind_of(name) is not None


def is_plain_name(name: str) -> bool:
    """Whether a name only says that there is data inside: data, dataset, images, train ...

    >>> is_plain_name("DataSet"), is_plain_name("flowers")
    (True, False)
    """
    words = words_of(name)
    known = (word in _SPLITS or word in _FILLERS or word in _KINDS for word in words)
    return bool(words) and all(known)


def splits_among(names: Iterable[str]) -> dict[Split, list[str]]:
    """Return the names of folders or files that stand for each split.

    Names that share further words count too, such as `flowers_train` beside `flowers_test`.
    """
    names = list(names)
    found: dict[Split, list[str]] = {}
    for name in names:
        if (split := split_of(name)) and kind_of(name) in (None, "image"):
            found.setdefault(split, []).append(name)
    if "train" in found:
        return found
    pairs = split_groups(names)
    return pairs[0] if len(pairs) == 1 else found


def split_groups(names: Iterable[str]) -> list[dict[Split, list[str]]]:
    """Return the names that share further words by split, such as `x_train` and `x_val`."""
    groups: dict[tuple[str, ...], dict[Split, list[str]]] = {}
    for name in names:
        words = words_of(name)
        splits = [_SPLITS[word] for word in words if word in _SPLITS]
        rest = tuple(word for word in words if word not in _SPLITS and word not in _FILLERS)
        if len(splits) == 1 and rest:
            groups.setdefault(rest, {}).setdefault(splits[0], []).append(name)
    return [group for group in groups.values() if "train" in group and len(group) > 1]


_COPY = re.compile(r"[._-](?:jpe?g|png|bmp|webp|tiff?|gif)\.rf\.[0-9A-Za-z]{8,}$", re.IGNORECASE)


def source_of(name: str) -> str:
    """Return the name shared by all augmented copies of an image; other names are unchanged.

    Roboflow names the copies of `cat.jpg` `cat_jpg.rf.HASH.jpg`, with a hash for each.

    >>> source_of("a/cat_jpg.rf.0123456789abcdef.jpg"), source_of("a/cat_jpg.jpg")
    ('a/cat', 'a/cat_jpg.jpg')
    """
    stem, dot, ending = name.rpartition(".")
    if not dot or "/" in ending:
        stem = name
    for text in (stem, name):
        if match := _COPY.search(text):
            return text[: match.start()]
    return name


def _is_camel(part: str) -> bool:
    return bool(re.fullmatch(r"(?:[A-Z][a-z]+){2,}|[a-z]+(?:[A-Z][a-z]+)+", part))


_MASK_FOLDER = re.compile("mask|segmentation|visuali[sz]ation|annotation|label")


def split_of_path(name: str) -> Split | None:
    """Return the split that the folders of a relative path state; the outermost one counts."""
    for part in name.split("/")[:-1]:
        split = split_of(part)
        if split is not None:
            return split
    return None


def normal(name: str) -> str:
    """Return a name for comparison: one Unicode form, in lowercase."""
    return unicodedata.normalize("NFC", name).casefold()


# Where no option allows other places: a CSV of paths may name any.
INTO_DATA = "move it into the data, or list the images in a CSV with the columns path and label"


class OutsideError(ValueError):
    """A path that leads out of the data."""


@dataclass
class Fence:
    """The folders that may be read: the data, its direct children, and those given besides.

    The data folder and its direct children may be links. A deeper link that leads elsewhere, and a
    path with `..` or another root, are outside.
    """

    root: Path
    others: Sequence[Path] = ()
    allow_outside: bool = False
    advice: str = "add --allow-outside to read it, or move it into the data"
    """What to do about a path that is outside."""
    _known: dict[str, bool] = field(default_factory=dict, repr=False)

    @cached_property
    def _roots(self) -> tuple[str, ...]:
        folders = [self.root, *self.others]
        for folder in (self.root, *self.others):
            if folder.is_dir():
                folders += [path for path in folder.iterdir() if path.is_symlink()]
        return tuple(os.path.realpath(folder) for folder in folders)

    def allows(self, path: Path) -> bool:
        """Tell whether a path is in the data, wherever links lead."""
        if self.allow_outside:
            return True
        is_inside = self.allows_folder(str(path.parent))
        if path.is_symlink():
            return self._is_inside(os.path.realpath(path))
        return is_inside or self._is_inside(os.path.realpath(path))

    def allows_folder(self, folder: str) -> bool:
        """Tell whether the files of a folder are in the data, apart from links among them."""
        if folder not in self._known:
            self._known[folder] = self._is_inside(os.path.realpath(folder))
        return self._known[folder] or self.allow_outside

    def check(self, path: Path, *, named_by: str) -> Path:
        """Return a path in the data.

        Raises:
            OutsideError: If it is outside; says what to do.
        """
        if not self.allows(path):
            raise OutsideError(
                f"{named_by} names {path}, which lies outside {self.root}; {self.advice}"
            )
        return path

    def _is_inside(self, real: str) -> bool:
        return any(
            real == root or real.startswith(root.rstrip(os.sep) + os.sep) for root in self._roots
        )


@dataclass(frozen=True)
class Match:
    """A file that was found."""

    path: Path
    how: str
    """How its name differs from what was asked for; empty if it does not."""


@dataclass
class FileIndex:
    """All files below the folders of a data set, listed once."""

    fence: Fence

    @property
    def root(self) -> Path:
        """The folder of the data."""
        return self.fence.root

    @cached_property
    def files(self) -> list[Path]:
        """All files, sorted, without hidden ones."""
        roots = dict.fromkeys([self.fence.root, *self.fence.others])
        return [path for root in roots for path in self._walk(root)]

    @cached_property
    def images(self) -> list[Path]:
        """All files with an image's ending."""
        endings = readable_extensions()
        return [path for path in self.files if path.suffix.lower() in endings]

    def with_ending(self, *endings: str) -> list[Path]:
        """Return the files with one of some endings, such as ".xml"."""
        return [path for path in self.files if path.suffix.lower() in endings]

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        return _grouped((normal(path.name), path) for path in self.images)

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        return _grouped((normal(path.stem), path) for path in self.images)

    def find(self, name: str, bases: Sequence[Path] = ()) -> Match | None:
        """Return the image that annotations call `name`; None if there is none, or several.

        Args:
            name: The name as it is written in the annotations.
            bases: Folders to look in first.

        Raises:
            OutsideError: If it is only found outside the data.
        """
        for base in bases or (self.root,):
            if self._is_allowed_file(os.path.join(base, name)):
                return Match(base / name, "")
        candidates = self.candidates(name, bases)
        if not candidates:
            outside = next((b / name for b in bases or (self.root,) if _is_file(b / name)), None)
            if outside is not None:
                self.fence.check(outside, named_by="an annotation")
        return candidates[0] if len(candidates) == 1 else None

    def _is_allowed_file(self, path: str) -> bool:
        """Tell whether there is a file that may be read; quick, since most names are right."""
        try:
            is_regular = stat.S_ISREG(os.lstat(path).st_mode)
        except (OSError, ValueError):  # A name that is too long, or has a null character.
            return False
        if is_regular and self.fence.allows_folder(os.path.dirname(path)):
            return True
        return _is_file(Path(path)) and self.fence.allows(Path(path))

    def candidates(self, name: str, bases: Sequence[Path] = ()) -> list[Match]:
        """Return the images that `name` fits best; several if it is ambiguous."""
        forms = dict.fromkeys((name, unquote(name)))
        for form in forms:
            parts = _parts(form)
            if not parts:
                continue
            found = self._best(self._by_name.get(normal(parts[-1]), ()), parts, bases)
            if found:
                return [Match(path, _difference(name, path)) for path in found]
        for form in forms:
            parts = _parts(form)
            if not parts:
                continue
            stem = Path(parts[-1]).stem
            found = self._best(self._by_stem.get(normal(stem), ()), parts, bases)
            if found:
                return [Match(path, "another ending") for path in found]
        return []

    def _best(self, paths: Iterable[Path], parts: list[str], bases: Sequence[Path]) -> list[Path]:
        """Return the paths that share most folders with a name, those in `bases` first."""
        scored = [
            ((_shared(path, parts), any(base in path.parents for base in bases)), path)
            for path in paths
            if self.fence.allows(path) and not self._is_mask(path)
        ]
        if not scored:
            return []
        best = max(score for score, _ in scored)
        return [path for score, path in scored if score == best]

    def _is_mask(self, path: Path) -> bool:
        """Tell whether a picture is in a folder of masks; it does not stand in for a photo."""
        inside = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        return any(_MASK_FOLDER.search(normal(part)) for part in inside.parts[:-1])

    def _walk(self, root: Path) -> Iterator[Path]:
        visited: set[str] = set()
        for here, folders, files in os.walk(root, followlinks=True):
            folder = Path(here)
            real = os.path.realpath(here)
            if real in visited or not self.fence.allows(folder / "x"):
                folders.clear()
                continue
            visited.add(real)
            folders[:] = sorted(f for f in folders if not is_hidden(f))
            yield from (folder / name for name in sorted(files) if not name.startswith("."))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # A name that is too long, or has a null character.
        return False


def _grouped(pairs: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for key, path in pairs:
        found.setdefault(key, []).append(path)
    return found


def _parts(name: str) -> list[str]:
    """Return the folders and the name of a path of any system, without its root and dots."""
    path = PureWindowsPath(name.split("://", 1)[-1])
    return [part for part in path.parts if part not in (path.anchor, ".", "..")]


def suffixes(name: str) -> list[str]:
    """Return a path of any system without its root and dots, and all of its ends, longest first."""
    parts = _parts(name)
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _shared(path: Path, parts: Sequence[str]) -> int:
    """Return how many last parts of a path are those of a name."""
    count = 0
    for mine, other in zip(reversed(path.parent.parts), reversed(parts[:-1]), strict=False):
        if normal(mine) != normal(other):
            break
        count += 1
    return count


def _difference(name: str, path: Path) -> str:
    """Return how a written name differs from the file that was found."""
    if "\\" in name:
        return "backslashes"
    if name.startswith("/") or re.match(r"^[A-Za-z]:", name) or "://" in name:
        return "an absolute path"
    last = name.rsplit("/", 1)[-1]
    if last == path.name:
        return "another folder"
    if unquote(last) == path.name:
        return "percent signs"
    if unicodedata.normalize("NFC", last) == unicodedata.normalize("NFC", path.name):
        return "another Unicode form"
    return "upper and lower case"
