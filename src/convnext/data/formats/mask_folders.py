"""Images with a mask file each: the accepted folders, lists of names, and how files are paired.

    images/{train,val}/*  annotations/{train,val}/*      also Images/ with Labels/, img/ with gt/
    {train,test}/images/* {train,test}/masks/*
    train/*               train_masks/*                  also trainannot/, train_labels/ ...
    images/*              masks/*                        without a split: a share is held out
    train/x.jpg           train/x_mask.png               in one folder
    JPEGImages/*          SegmentationClass/*            Pascal VOC, with ImageSets/Segmentation/
    leftImg8bit/{train,val}/*/*_leftImg8bit.png          Cityscapes, with gtFine/.../
                                                         *_gtFine_labelTrainIds.png
    two patterns with {split} and stars                  anything else

An image may have several masks, see `mask_layers`.

Names of splits and kinds are read as in `splits`. The split of the folders, or of lists such as
train.txt and val.txt, is kept.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from convnext.data.formats.mask_layers import FOREGROUND, Layers, image_folders, looks_like_mask
from convnext.data.formats.mask_pairs import (
    LOSSY,
    PATTERNS,
    Mask,
    PairListing,
    Part,
    files_of,
    find_by_pattern,
    match_files,
    merge_parts,
    with_split,
)
from convnext.data.formats.paths import Kind, is_plain_name, kind_of, split_of, words_of
from convnext.data.formats.records import Split
from convnext.data.images import (
    is_hidden,
    readable_extensions,
)

CITYSCAPES = (
    "leftImg8bit/{split}/*/*_leftImg8bit.png",
    "gtFine/{split}/*/*_gtFine_labelTrainIds.png",
)
ACCEPTED = (
    "supported layouts: images/{train,val} with annotations/{train,val} or masks/ (the same names, "
    "masks as PNG), {train,val}/images with {train,val}/masks, train/ with train_masks/, x.jpg "
    "beside x_mask.png, JPEGImages/ with SegmentationClass/, Cityscapes, COCO's "
    "instances_{train,val}.json, or --segment.images and --segment.masks with patterns such as "
    "'left/{split}/*/*_left.png'"
)
VOC = "Pascal VOC"
MAX_DEPTH = 4
# Files that are opened to tell whether they are masks.
NUM_OPENED = 3
# Folders whose unused images are listed one by one.
MAX_UNUSED = 4
# Folders without a known name are searched only if there are few.
MAX_FOLDERS, MAX_LEAVES = 100, 10

_NOT_MASKS = frozenset(
    """
    segmentationobject segmentationobjectpng segmentationclassvisualization
    segmentationobjectvisualization imagesets imagesetsmain
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """A folder with images or masks."""

    path: Path
    split: Split | None
    kind: Kind | None
    rest: tuple[str, ...]
    """Words of its name that stand neither for a split nor for a kind."""
    inner: tuple[Path, ...] = ()
    """Folders in it that are listed on their own."""


def is_mask_folder(root: Path) -> bool:
    """Whether a folder, or the only data set in it, holds images with masks in a known layout."""
    try:
        return root.is_dir() and _locate(root) is not None
    except ValueError:  # Several data sets, or several readings: this is said when it is opened.
        return True


def find(root: Path, images: str = "", masks: str = "") -> PairListing:
    """Return the pairs under a folder, by its layout or by two patterns.

    Raises:
        ValueError: If there is no such folder, no layout fits, or more than one does.
    """
    if not root.is_dir():
        raise ValueError(f"the folder {root} does not exist")
    if bool(images) != bool(masks):
        raise ValueError("pass both patterns, --segment.images and --segment.masks, or neither")
    if images:
        return find_by_pattern(root, images, masks)
    located = _locate(root)
    if located is None:
        raise ValueError(f"{root} has no images/ with annotations/ or masks/; {ACCEPTED}")
    return _pairs(*located)


def _pairs(inner: Path, note: str) -> PairListing:
    """Return the pairs of a folder that `_locate` found, with its note."""
    found = (
        (_cityscapes(inner) if (inner / "leftImg8bit").is_dir() else None)
        or _by_image_folders(inner)
        or _by_folders(inner, _pairs_of_folders(inner))
        or (_by_suffix(inner) if _suffix_folders(inner) else None)
        or _by_folders(inner, _pairs_by_contents(inner))
    )
    assert found is not None
    listed = (found.train, found.val, found.test)
    if not any(part.pairs for part in listed if part is not None):
        images, masks = found.train.unpaired_images, found.train.unpaired_masks
        example = f", such as {images[0]} and {masks[0]}" if images and masks else ""
        raise ValueError(
            f"{inner} is read as {found.layout}, but no image and mask have the same name{example};"
            f" {PATTERNS}"
        )
    notes = [note] if note else []
    return replace(found, notes=(*notes, *found.notes, *_unused(found)))


def mask_files(root: Path) -> set[Path]:
    """Return the masks in a folder of images and masks, and the pictures beside them.

    It is empty for other folders, and for those that can be read in several ways.
    """
    try:
        located = _locate(root)
        if located is None:
            return set()
        found = _pairs(*located)
    except ValueError:
        return set()
    images: set[Path] = set()
    masks: set[Path] = set()
    for part in (found.train, found.val, found.test):
        if part is not None:
            images |= {image for image, _ in part.pairs.values()} | set(part.unpaired_images)
            masks |= {file for _, mask in part.pairs.values() for file in files_of(mask)}
            masks |= set(part.unpaired_masks)
    # Other forms of the masks, such as *_color.png and instances.
    folders = {mask.parent for mask in masks} - {image.parent for image in images}
    folders |= {p for p in _subfolders(found.root) if _NOT_MASKS & set(words_of(p.name))}
    beside = {path for folder in folders for path in _walk(folder)}
    return (masks | beside) - images


def _cityscapes(root: Path) -> PairListing:
    """Return Cityscapes' pairs, by the indices of training or by the ids of all labels."""
    by_index = any((root / "gtFine").glob("*/*/*_gtFine_labelTrainIds.png"))
    masks = CITYSCAPES[1] if by_index else CITYSCAPES[1].replace("labelTrainIds", "labelIds")
    found = find_by_pattern(root, CITYSCAPES[0], masks)
    return replace(found, layout="Cityscapes", split="folders", has_label_ids=not by_index)


def _unused(found: PairListing) -> list[str]:
    """Return a note for each folder with images that are neither paired nor reported otherwise."""
    is_reported = any("outside the folders" in f or "that no list" in f for f in found.faults)
    if found.layout == "Cityscapes" or is_reported:
        return []
    used: set[Path] = set()
    for part in (found.train, found.val, found.test):
        if part is not None:
            used |= {file for _, mask in part.pairs.values() for file in files_of(mask)}
            used |= {image for image, _ in part.pairs.values()}
            used |= {*part.unpaired_images, *part.unpaired_masks}
    counts: dict[str, list[Path]] = {}
    for path in _walk(found.root):
        folders = path.relative_to(found.root).parts[:-1]
        is_known = any(_NOT_MASKS & set(words_of(name)) for name in folders)
        if folders and path not in used and not is_known:
            counts.setdefault(folders[0], []).append(path)
    notes = [
        f"{name}/ has {len(files):,} images without masks, left out (such as {files[0].name})"
        for name, files in list(counts.items())[:MAX_UNUSED]
    ]
    if len(counts) > MAX_UNUSED:
        rest = sum(len(files) for files in list(counts.values())[MAX_UNUSED:])
        notes.append(f"{rest:,} more images without masks in other folders, left out")
    return notes


def _locate(root: Path, depth: int = 2) -> tuple[Path, str] | None:
    """Return the folder of the only data set in `root`, often `root` itself, and a note.

    Raises:
        ValueError: If several folders in it hold one.
    """
    if (root / "leftImg8bit").is_dir() or _image_folders(root) or _pairs_of_folders(root):
        return root, ""
    if _suffix_folders(root) or _pairs_by_contents(root):
        return root, ""
    folders = [] if depth == 0 else _subfolders(root)
    if len(folders) > MAX_LEAVES:  # Many folders of images alone are classes.
        folders = [folder for folder in folders if _subfolders(folder)]
    if len(folders) > MAX_FOLDERS:
        return None
    inside = [(folder, found) for folder in folders if (found := _locate(folder, depth - 1))]
    if len(inside) > 1:
        names = ", ".join(f"{folder.name}/" for folder, _ in inside[:5])
        advice = _pattern_of_all(*inside[0])
        raise ValueError(f"{root} holds several data sets: {names}; give one of them{advice}")
    if not inside:
        return None
    inner = inside[0][1][0]
    return inner, f"the data set is in {inner.relative_to(root).as_posix()}/"


def _pattern_of_all(folder: Path, found: tuple[Path, str]) -> str:
    """Return the patterns that read all folders like one; "" if it has several pairs of folders."""
    pairs = _pairs_of_folders(found[0]) if found[0] == folder else []
    if len(pairs) != 1:
        return ""
    patterns = []
    for part in pairs[0]:
        ending = _walk(part.path, part.inner)[0].suffix
        patterns.append(f"'*/{part.path.relative_to(folder).as_posix()}/*{ending}'")
    return (
        f", or all by --segment.images {patterns[0]} --segment.masks {patterns[1]} (--images and "
        "--masks of `data`)"
    )


def _describe(name: str) -> tuple[Split | None, Kind | None, tuple[str, ...]]:
    """Return the split and kind that words of a name stand for, and its other words."""
    splits, kinds, rest = [], [], []
    for word in words_of(name):
        if split := split_of(word):
            splits.append(split)
        elif kind := kind_of(word):
            kinds.append(kind)
        elif not is_plain_name(word):
            rest.append(word)
    kind = next((k for k in ("mask", "annotation", "image") if k in kinds), None)
    return (splits[0] if len(set(splits)) == 1 else None), kind, tuple(rest)


def _folders(root: Path) -> list[_Folder]:
    """Return the folders under `root` whose names stand for a split or a kind."""
    found: list[_Folder] = []

    def visit(folder: Path, outer: _Folder, depth: int) -> tuple[Path, ...]:
        described = [(child, *_describe(child.name)) for child in _subfolders(folder)]
        inner = []
        for child, split, kind, rest in described:
            # A name with further words counts beside one of another kind with the same words.
            known = not rest or (
                kind is not None
                and any(r == rest and k is not None and k != kind for _, _, k, r in described)
            )
            # Train/Urban/images/: a place of its own inside a split.
            is_place = kind is None and outer.split is not None and len(described) <= MAX_LEAVES
            if (not known and not is_place) or (rest and outer.kind):
                continue
            place = _Folder(
                path=child,
                split=split or outer.split,
                kind=kind or outer.kind,
                rest=outer.rest + rest,
            )
            below = visit(child, place, depth + 1) if depth < MAX_DEPTH else ()
            if known:
                inner.append(child)
                found.append(replace(place, inner=below))
        return tuple(inner)

    visit(root, _Folder(path=root, split=None, kind=None, rest=()), 0)
    return found


def _pairs_of_folders(root: Path) -> list[tuple[_Folder, _Folder]]:
    """Return the folders of images and of their masks, both with image files.

    Raises:
        ValueError: If several folders of masks fit the same images equally well.
    """
    folders = _folders(root)
    masks = [
        f
        for f in folders
        if f.kind in ("mask", "annotation") and not _NOT_MASKS & set(words_of(f.path.name))
    ]
    masks = [f for f in masks if _has_files(f)]
    pairs: list[tuple[_Folder, _Folder]] = []
    for image in folders if masks else ():
        if image.kind not in ("image", None) or (image.kind is None and image.split is None):
            continue
        fitting = [m for m in masks if _fits(image, m)]
        if not fitting or not _has_files(image):
            continue
        own = [m for m in fitting if m.split == image.split]
        fitting = own or fitting
        pairs.append((image, _best(image, fitting)[0] if len(fitting) > 1 else fitting[0]))
    return pairs


def _fits(image: _Folder, mask: _Folder) -> bool:
    if image.split != mask.split and mask.split is not None:
        return False
    if image.rest and mask.rest and image.rest != mask.rest:
        return False
    # train/ is the images of train_masks/, but not of train/masks/ below it.
    return image.kind == "image" or image.path.parent == mask.path.parent


def _best(image: _Folder, masks: Sequence[_Folder]) -> list[_Folder]:
    """Return the folder of masks that has most of an image folder's names.

    Raises:
        ValueError: If several have equally many.
    """
    names = _files(image)
    counts = [len(match_files(names, _files(mask)).pairs) for mask in masks]
    best = [mask for mask, count in zip(masks, counts, strict=True) if count == max(counts)]
    if len(best) > 1 and max(counts):
        # A folder beside the images is meant rather than one elsewhere.
        near = [mask for mask in best if mask.path.parent == image.path.parent]
        if len(near) == 1:
            return near
        listed = " and ".join(f"{mask.path.name}/" for mask in best)
        raise ValueError(f"{listed} could both hold the masks of {image.path}; {PATTERNS}")
    return best


def _pairs_by_contents(root: Path) -> list[tuple[_Folder, _Folder]]:
    """Return folders with other words in their names, such as scans/ and scan_labels/.

    One of them must be named for masks and hold masks, and another have the same file names.

    Raises:
        ValueError: If several folders of images fit.
    """
    children = _subfolders(root)
    if len(children) > MAX_LEAVES:
        return []
    folders = []
    for child in children:
        split, kind, rest = _describe(child.name)
        folders.append(_Folder(path=child, split=split, kind=kind, rest=rest))
    named = [
        folder
        for folder in folders
        if folder.kind == "mask"
        and not _NOT_MASKS & set(words_of(folder.path.name))
        and _hold_masks(folder)
    ]
    pairs = []
    for mask in named:
        files = _files(mask)
        others = [f for f in folders if f not in named and f.split == mask.split and _has_files(f)]
        counts = {}
        for other in others:
            names = _files(other)
            paired = len(match_files(names, files).pairs)
            if paired and 2 * paired >= min(len(names), len(files)):
                counts[other.path] = (paired, other)
        best = [f for n, f in counts.values() if n == max(count for count, _ in counts.values())]
        if len(best) > 1:
            listed = " and ".join(f"{folder.path.name}/" for folder in best)
            raise ValueError(f"{listed} could both hold the images of {mask.path}; {PATTERNS}")
        pairs += [(image, mask) for image in best]
    return pairs


def _hold_masks(folder: _Folder) -> bool:
    """Whether the files of a folder look like masks rather than photos: few values, large areas."""
    files = _walk(folder.path)
    if not files or any(_subfolders(folder.path)):
        return False
    return all(looks_like_mask(path) for path in files[:: max(len(files) // NUM_OPENED, 1)])


def _by_folders(root: Path, folders: Sequence[tuple[_Folder, _Folder]]) -> PairListing | None:
    """Return the pairs of files of paired folders; None if there are no such folders."""
    if not folders:
        return None
    parts: dict[Split | None, list[Part]] = {}
    used_masks: dict[Path, set[Path]] = {}
    users: dict[tuple[Path, Split | None], Path] = {}
    masked: dict[Path, Path] = {}
    for image, mask in folders:
        part = match_files(_files(image), _files(mask))
        for file, _ in part.pairs.values():
            if masked.setdefault(file, mask.path) != mask.path:
                raise ValueError(
                    f"{masked[file]} and {mask.path} could both hold the masks of {image.path}; "
                    f"{PATTERNS}"
                )
        if part.pairs:
            other = users.setdefault((mask.path, image.split), image.path)
            if other != image.path:
                raise ValueError(
                    f"{other} and {image.path} could both hold the images of {mask.path}; "
                    f"{PATTERNS}"
                )
        used_masks.setdefault(mask.path, set()).update(
            file for _, m in part.pairs.values() for file in files_of(m)
        )
        parts.setdefault(image.split, []).append(part)
    # Several splits may share a folder of masks.
    parts = {
        split: [
            replace(
                part,
                unpaired_masks=tuple(
                    m for m in part.unpaired_masks if not any(m in u for u in used_masks.values())
                ),
            )
            for part in found
        ]
        for split, found in parts.items()
    }
    names = " and ".join(
        f"{image.path.relative_to(root).as_posix()}/ with {mask.path.relative_to(root).as_posix()}/"
        for image, mask in folders[:3]
    )
    layout = VOC if any(m.path.name == "SegmentationClass" for _, m in folders) else names
    joined = {split: merge_parts(found) for split, found in parts.items()}
    if any((root / place / "val").is_dir() for place in ("images", "annotations", ".")):
        joined.setdefault("val", Part(pairs={}))  # An empty folder is a mistake to report.
    is_ade20k = (root / "objectInfo150.txt").is_file() or (
        (root / "images/training").is_dir() and (root / "annotations/training").is_dir()
    )
    used = {place for pair in folders for part in pair for place in (part.path, part.path.parent)}
    return with_split(
        root, joined, layout=layout, is_ade20k=is_ade20k, folders=tuple(sorted(used | {root}))
    )


def _image_folders(root: Path) -> dict[Split | None, Path]:
    """Return the folders, by split, whose folders hold an image and its masks each."""
    found: dict[Split | None, Path] = {
        split: child
        for child in _subfolders(root)
        if (split := split_of(child.name)) and image_folders(child)
    }
    if found:
        return found if "train" in found else {}
    return {None: root} if image_folders(root) else {}


def _by_image_folders(root: Path) -> PairListing | None:
    folders = _image_folders(root)
    parts = {split: Part(pairs=dict(image_folders(path) or {})) for split, path in folders.items()}
    if not parts:
        return None
    layout = "a folder for each image, with images/ and masks/"
    return with_split(root, parts, layout=layout, folders=(root,))


def _suffix_folders(root: Path) -> dict[Split | None, Path]:
    """Return the folders, by split, that hold masks beside their images: x.jpg and x_mask.png."""
    folders: dict[Split | None, Path] = {}
    for child in _subfolders(root):
        split = split_of(child.name)
        if split and split not in folders and _has_suffixes(child):
            folders[split] = child
    return folders or ({None: root} if _has_suffixes(root) else {})


def _has_suffixes(folder: Path) -> bool:
    """Whether files of a folder are masks of others in it, by the first hundreds of names."""
    files: list[str] = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if not n.startswith("."))[:2]
        files += [os.path.join(here, n) for n in islice(filter(_is_image, sorted(names)), 400)]
        if len(files) >= 400 or len(Path(here).relative_to(folder).parts) > 1:
            break
    masks, images = _by_words(files)
    shared = masks.keys() & images.keys()
    return 2 * len(shared) >= max(len(masks), 1) and 3 * len(shared) >= len(set(images.values()))


def _by_words(files: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the files of a folder that are masks by their last word, and the others, by key."""
    masks: dict[str, list[str]] = {}
    images: dict[str, str] = {}
    for file in files:
        stem, _ = os.path.splitext(file)
        folder, name = os.path.split(stem)
        match = re.fullmatch(
            r"(.+?)[-_. ]+(masks?|msk|labels?|lbl|seg|segmentation|gt|annotation|annot|anno)"
            r"([-_. ]?\d+)?",
            name,
            re.IGNORECASE,
        )
        if match:
            masks.setdefault(os.path.join(folder, match[1]), []).append(file)
        else:
            images[stem] = file
            bare = re.sub(r"[-_. ]+(image|img|sat|rgb)$", "", name, flags=re.IGNORECASE)
            images.setdefault(os.path.join(folder, bare), file)
    return masks, images


def _mask_of(files: Sequence[str]) -> Mask:
    if len(files) == 1:
        return Path(files[0])
    return Layers(tuple((FOREGROUND, Path(file)) for file in files))


def _by_suffix(root: Path) -> PairListing:
    """Return the pairs of x.jpg and x_mask.png in one folder."""
    parts: dict[Split | None, Part] = {}
    folders = _suffix_folders(root)
    for split, folder in folders.items():
        files = [str(path) for path in _walk(folder)]
        masks, images = _by_words(files)
        shared = sorted(masks.keys() & images.keys())
        paired = {images[key] for key in shared}
        parts[split] = Part(
            pairs={
                os.path.relpath(key, folder).replace(os.sep, "/"): (
                    Path(images[key]),
                    _mask_of(masks[key]),
                )
                for key in shared
            },
            unpaired_images=tuple(Path(p) for p in sorted(set(images.values()) - paired)),
            unpaired_masks=tuple(
                Path(file) for key in sorted(masks.keys() - images.keys()) for file in masks[key]
            ),
        )
    return with_split(
        root,
        parts,
        layout="masks beside their images, such as x_mask.png beside x.jpg",
        folders=(root, *folders.values()),
    )


def _files(folder: _Folder) -> dict[str, Path]:
    """Return the image files of a folder by their names without the ending."""
    found: dict[str, Path] = {}
    for path in _walk(folder.path, folder.inner):
        name = path.relative_to(folder.path).with_suffix("").as_posix()
        # A mask that is exact is taken rather than one of the same name that is not.
        if name not in found or found[name].suffix.lower() in LOSSY:
            found[name] = path
    return found


def _walk(folder: Path, without: Sequence[Path] = ()) -> list[Path]:
    """Return the image files below a folder, sorted, without those of some folders."""
    found: list[Path] = []
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(
            n for n in folders if not n.startswith(".") and Path(here, n) not in without
        )
        found += [Path(here, n) for n in names if _is_image(n)]
    return sorted(found)


def _has_files(folder: _Folder) -> bool:
    for here, folders, names in os.walk(folder.path):
        folders[:] = [
            n for n in folders if not n.startswith(".") and Path(here, n) not in folder.inner
        ]
        if any(map(_is_image, names)):
            return True
    return False


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in readable_extensions()


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if not is_hidden(e.name) and e.is_dir())
    return [folder / name for name in names]
