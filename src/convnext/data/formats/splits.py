"""Names of folders and files: which split they are for, and whether they hold images or masks.

People write `train`, `Training`, `seg_train`, `train2017`, `training_set`, `trainannot` ... A name
is read word by word, and only a name whose words are all known counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from convnext.data.formats.records import Split

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


def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name in lowercase, without digits.

    >>> words_of("seg_train2017"), words_of("trainannot"), words_of("SegmentationClass")
    (('seg', 'train'), ('train', 'annot'), ('segmentationclass',))
    """
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
