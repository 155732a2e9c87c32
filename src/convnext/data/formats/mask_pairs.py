"""Pairs of images and masks: by name, by lists of names, or by two patterns."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convnext.data.formats.mask_layers import (
    FOREGROUND,
    Layered,
    Layers,
    classes_of,
    has_indices,
    layer_files,
)
from convnext.data.formats.paths import normal, split_of, suffixes
from convnext.data.formats.records import Split
from convnext.data.formats.text_lists import names_of_list, split_lists

# Masks of JPEG have values that were never drawn.
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif")
PATTERNS = "say which with --segment.images and --segment.masks (--images and --masks of `data`)"
# Masks that are opened to tell whether they are binary.
NUM_OPENED = 5
SPLITS: tuple[Split, ...] = ("train", "val", "test")

# Words that a mask's name may have beyond its image's, and the other way around.
_MASK_WORDS = frozenset(
    """
    mask masks label labels lab seg segmentation segmented gt groundtruth annotation annotated annot
    l
    """.split()  # noqa: SIM905
)
_IMAGE_WORDS = frozenset(["image", "img", "sat", "rgb", "photo", "im", "input", "original"])


Mask = Path | Layers


def files_of(mask: Mask) -> tuple[Path, ...]:
    """Return the files of a mask."""
    return tuple(path for _, path in mask.files) if isinstance(mask, Layers) else (mask,)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The pairs of a split, by name, and the files without a partner."""

    pairs: dict[str, tuple[Path, Mask]]
    unpaired_images: tuple[Path, ...] = ()
    unpaired_masks: tuple[Path, ...] = ()
    lossy_masks: tuple[Path, ...] = ()
    """JPEG masks, if there is no other."""


@dataclass(frozen=True, kw_only=True)
class PairListing:
    """The image-mask pairs under a path."""

    root: Path
    """The folder of the data set, which may be inside the one that was given."""
    layout: str
    split: str = ""
    """Where the split comes from; "" if there is none."""
    train: Part
    val: Part | None
    test: Part | None = None
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    is_ade20k: bool = False
    has_label_ids: bool = False
    """Whether the masks have the ids of all of Cityscapes' labels, not the indices of training."""
    layer_classes: tuple[str, ...] = ()
    """The classes, if an image has a mask file for each class or object."""
    folders: tuple[Path, ...] = ()
    """Folders that may hold a list of the classes."""


def with_split(
    root: Path,
    parts: Mapping[Split | None, Part],
    *,
    layout: str,
    is_ade20k: bool = False,
    folders: tuple[Path, ...] = (),
) -> PairListing:
    """Return what was found, split by folders or by lists of names."""
    notes: list[str] = []
    split_from = ""
    faults: list[str] = []
    whole = parts.get(None)
    known: dict[Split, Part] = {split: part for split, part in parts.items() if split is not None}
    if whole is not None and known:
        faults.append(
            f"{len(whole.pairs):,} images with masks outside the folders of the splits, left out"
        )
    elif whole is not None:
        listed = _by_lists(root, folders, whole, faults) or _by_prefix(whole)
        known, split_from = listed or ({"train": whole}, "")
    elif "train" in known:
        split_from = "folders"
    if "train" not in known:
        raise ValueError(
            f"{root} has images with masks of its {' and '.join(known)} split only, and none to "
            "train on"
        )
    layer_classes = classes_of(pair for part in known.values() for pair in part.pairs.values())
    if layer_classes:
        notes.append("an image has a mask file for each class or object")
    return PairListing(
        root=root,
        layout=layout,
        split=split_from,
        layer_classes=layer_classes,
        train=known["train"],
        val=known.get("val"),
        test=known.get("test"),
        notes=tuple(notes),
        faults=tuple(faults),
        is_ade20k=is_ade20k,
        folders=folders,
    )


def _by_lists(
    root: Path, folders: Sequence[Path], part: Part, faults: list[str]
) -> tuple[dict[Split, Part], str] | None:
    """Split pairs by lists of names beside them, and name these; None without such lists.

    If there is no list for training, the images that no list names are for training.
    """
    places = dict.fromkeys((root, *folders))
    lists = next((files for place in places if (files := split_lists(place))), {})
    known, videos = _names_of_pairs(part)
    lonely = {image.stem: image for image in part.unpaired_images}
    found: dict[Split, Part] = {}
    taken: dict[str, Split] = {}
    left_out = []
    num_names = num_unknown = 0
    for split, path in lists.items():
        pairs: dict[str, tuple[Path, Mask]] = {}
        without: list[Path] = []
        unknown: list[str] = []
        twice: list[str] = []
        for name in names_of_list(path):
            options = [t for n in (name, os.path.splitext(name)[0]) for t in suffixes(n)]
            keys = next((known[n] for n in options if len(known.get(n, ())) == 1), [])
            keys = keys or videos.get(name.strip("/"), [])
            if not keys:
                without += [lonely[n] for n in options if n in lonely][:1]
                unknown += [name] if not any(n in lonely for n in options) else []
            for key in keys:
                if taken.setdefault(key, split) != split:
                    twice.append(name)
                else:
                    pairs[key] = part.pairs[key]
            num_names += 1
        found[split] = Part(pairs=pairs, unpaired_images=tuple(without))
        where = path.relative_to(root).as_posix()
        num_unknown += len(unknown)
        left_out += [
            f"names in {where} {what}: {len(names):,} (such as {names[0]})"
            for what, names in (
                ("without an image, left out", unknown),
                ("that another list has too, left out of it", twice),
            )
            if names
        ]
    names = ", ".join(path.relative_to(root).as_posix() for path in lists.values())
    if not taken or ("train" not in lists and 2 * num_unknown > num_names):
        if lists:
            faults.append(f"{names}: most names there are not of images with masks; not used")
        return None
    faults += left_out
    rest = sorted(part.pairs.keys() - taken.keys())
    if "train" not in lists:
        pairs = {key: part.pairs[key] for key in rest}
        rest_of_images = set(part.unpaired_images).difference(
            *(other.unpaired_images for other in found.values())
        )
        found["train"] = Part(pairs=pairs, unpaired_images=tuple(sorted(rest_of_images)))
        return found, f"lists {names}; the images that they do not name are for training"
    if rest:
        faults.append(
            f"images with masks that no list names, left out: {len(rest):,} (such as {rest[0]})"
        )
    return found, f"lists {names}"


def _by_prefix(part: Part) -> tuple[dict[Split, Part], str] | None:
    """Split pairs by the first words of all names, such as train_1 and testA_1; else None."""

    def split(path: Path) -> Split | None:
        match = re.match(r"([A-Za-z]+?)[A-Z]?[-_. ]*\d", path.stem)
        return split_of(match[1]) if match else None

    splits = {name: split(image) for name, (image, _) in part.pairs.items()}
    if None in splits.values() or "train" not in splits.values() or len(set(splits.values())) < 2:
        return None
    found = {}
    for wanted in SPLITS:
        pairs = {name: part.pairs[name] for name, own in splits.items() if own == wanted}
        alone = tuple(image for image in part.unpaired_images if split(image) == wanted)
        if pairs:
            found[wanted] = Part(pairs=pairs, unpaired_images=alone)
    masks = part.unpaired_masks
    found["train"] = replace(found["train"], unpaired_masks=masks)
    return found, "the first words of the names"


def _names_of_pairs(part: Part) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the pairs by all names that a list may give an image, and by the names of folders."""
    known: dict[str, list[str]] = {}
    folders: dict[str, list[str]] = {}
    for key, (image, _) in part.pairs.items():
        for name in {key, f"{key}{image.suffix}", image.stem, image.name}:
            known.setdefault(name, []).append(key)
        for name in key.split("/")[:-1]:
            folders.setdefault(name, []).append(key)
    return known, folders


def match_files(images: dict[str, Path], masks: dict[str, Path]) -> Part:
    """Pair files by name, or by name without words such as "mask" if that pairs more of them.

    If none fits, the folders that all images or all masks lie in do not count:
    images/10k/train/x.jpg belongs to labels/semantic/train/x.png.
    """
    part = _match(images, masks)
    inner = [_below_common(files) for files in (images, masks)]
    is_deeper = inner[0].keys() != images.keys() or inner[1].keys() != masks.keys()
    return _match(*inner) if not part.pairs and is_deeper else part


def _below_common(files: dict[str, Path]) -> dict[str, Path]:
    """Return files by their names below the folder that all of them are in."""
    common = os.path.commonpath([os.path.dirname(name) for name in files]) if files else ""
    start = len(common) + 1 if common else 0
    return {name[start:]: path for name, path in files.items()}


def _match(images: dict[str, Path], masks: dict[str, Path]) -> Part:
    lossy = {name: path for name, path in masks.items() if path.suffix.lower() in LOSSY}
    best = join_files(images, masks)
    smaller = min(len(images), len(masks))
    for words in (frozenset[str](), _IMAGE_WORDS):
        if 2 * len(best.pairs) < smaller:
            bare = _join_bare(images, masks, words)
            best = bare if len(bare.pairs) > len(best.pairs) else best
    if 2 * len(best.pairs) < smaller and (layered := layer_files(images, masks)):
        pairs: dict[str, tuple[Path, Mask]] = dict(_plain(layered) or layered)
        of_pairs = {file for _, mask in pairs.values() for file in files_of(mask)}
        best = Part(
            pairs=pairs,
            unpaired_images=tuple(images[name] for name in sorted(images.keys() - pairs.keys())),
            unpaired_masks=tuple(sorted(path for path in masks.values() if path not in of_pairs)),
        )
    if not best.pairs:
        best = _join_numbers(images, masks)
    used = {mask for _, mask in best.pairs.values()}
    return replace(best, lossy_masks=tuple(p for p in lossy.values() if p in used))


def _join_numbers(images: Mapping[str, Path], masks: Mapping[str, Path]) -> Part:
    """Pair files by the first number in their names, if that is unique and pairs all of a folder.

    DRIVE calls them 21_training.tif and 21_manual1.gif.
    """
    keyed: list[dict[str, str]] = []
    for files in (images, masks):
        numbers = {name: re.search(r"\d+", name.rpartition("/")[2]) for name in files}
        keys = [
            f"{name.rpartition('/')[0]}/{int(match[0])}" if match else name
            for name, match in numbers.items()
        ]
        if len(set(keys)) < len(keys):
            return join_files(images, masks)
        keyed.append(dict(zip(keys, files, strict=True)))
    shared = keyed[0].keys() & keyed[1].keys()
    if not shared or len(shared) < min(map(len, keyed)):
        return join_files(images, masks)
    found = join_files(
        {key: images[keyed[0][key]] for key in keyed[0]},
        {key: masks[keyed[1][key]] for key in keyed[1]},
    )
    return replace(found, pairs={keyed[0][key]: pair for key, pair in sorted(found.pairs.items())})


def _plain(layered: Layered) -> dict[str, tuple[Path, Mask]] | None:
    """Return pairs whose masks have one ending for all, such as x_manual.png; None for layers.

    An ending that all masks share is not the name of a class.
    """
    files = [mask.files for _, mask in layered.values()]
    names = {name for layers in files for name, _ in layers}
    is_one = len(names) == 1 and names != {FOREGROUND} and all(len(f) == 1 for f in files)
    paths = [path for layers in files for _, path in layers]
    if not is_one:
        return None
    # masks/road/x.png is of the class road, unless it holds indices.
    some = paths[:: max(len(paths) // NUM_OPENED, 1)]
    if any(path.parent.name in names for path in paths) and not any(map(has_indices, some)):
        return None
    return {name: (image, mask.files[0][1]) for name, (image, mask) in layered.items()}


def _join_bare(
    images: Mapping[str, Path], masks: Mapping[str, Path], words: frozenset[str]
) -> Part:
    """Pair files by their names without some words of images and those of masks."""
    keys = _bare_keys(images, words), _bare_keys(masks, words | _MASK_WORDS)
    bare = join_files(
        {keys[0][name]: path for name, path in images.items() if name in keys[0]},
        {keys[1][name]: path for name, path in masks.items() if name in keys[1]},
    )
    unique = [
        tuple(path for name, path in files.items() if name not in key)
        for files, key in zip((images, masks), keys, strict=True)
    ]
    return replace(
        bare,
        unpaired_images=bare.unpaired_images + unique[0],
        unpaired_masks=bare.unpaired_masks + unique[1],
    )


def _bare_keys(files: Mapping[str, Path], words: frozenset[str]) -> dict[str, str]:
    """Return names without some words; only those that stay unique."""
    bare: dict[str, str] = {}
    for name in files:
        folder, _, stem = name.rpartition("/")
        parts = [p for p in re.split(r"[\W_]+|(?<=[A-Za-z])(?=\d)", stem) if p]
        kept = [p for p in parts if p.lower() not in words] or parts
        bare[name] = "/".join(filter(None, (folder, "_".join(kept))))
    counts: dict[str, int] = {}
    for key in bare.values():
        counts[key] = counts.get(key, 0) + 1
    return {name: key for name, key in bare.items() if counts[key] == 1}


def join_files(images: Mapping[str, Path], masks: Mapping[str, Path]) -> Part:
    """Pair files of equal names; other case and other Unicode forms count where they are unique."""
    pairs = {name: (images[name], masks[name]) for name in images.keys() & masks.keys()}
    rest: list[dict[str, list[str]]] = [{}, {}]
    for found, files in zip(rest, (images, masks), strict=True):
        for name in files.keys() - pairs.keys():
            found.setdefault(normal(name), []).append(name)
    for name in rest[0].keys() & rest[1].keys():
        if len(rest[0][name]) == len(rest[1][name]) == 1:
            pairs[rest[0][name][0]] = (images[rest[0][name][0]], masks[rest[1][name][0]])
    used = {mask for _, mask in pairs.values()}
    return Part(
        pairs={name: pairs[name] for name in sorted(pairs)},
        unpaired_images=tuple(images[name] for name in sorted(images.keys() - pairs.keys())),
        unpaired_masks=tuple(masks[name] for name in sorted(masks) if masks[name] not in used),
    )


def merge_parts(parts: Sequence[Part]) -> Part:
    """Return several parts of a split as one; names are numbered where they repeat."""
    if len(parts) == 1:
        return parts[0]
    pairs: dict[str, tuple[Path, Mask]] = {}
    for number, part in enumerate(parts):
        for name, pair in part.pairs.items():
            pairs[f"{number}/{name}" if name in pairs else name] = pair
    return Part(
        pairs=pairs,
        unpaired_images=tuple(p for part in parts for p in part.unpaired_images),
        unpaired_masks=tuple(p for part in parts for p in part.unpaired_masks),
        lossy_masks=tuple(p for part in parts for p in part.lossy_masks),
    )


def find_by_pattern(root: Path, images: str, masks: str) -> PairListing:
    """Pair files by the text that the stars of two patterns match.

    Raises:
        ValueError: If a pattern matches nothing, or the numbers of stars differ.
    """
    if images.count("*") != masks.count("*") or "*" not in images:
        raise ValueError(
            f"{images!r} and {masks!r} must have the same number of stars, at least one: the text "
            "that they match pairs the files"
        )
    of_images, of_masks = _matches(root, images), _matches(root, masks)
    parts: dict[Split | None, Part] = {}
    taken = {path for found in of_masks.values() for path in found.values()}
    for name in sorted(of_images, key=lambda name: (name.lower() not in SPLITS, name)):
        split = split_of(name) if name else None
        if (name and split is None) or split in parts:
            continue
        # A pattern of images such as *.png may match the masks beside them too.
        own = {key: path for key, path in of_images[name].items() if path not in taken}
        parts[split] = join_files(own, of_masks.get(name, {}))
    if not any(part.pairs for part in parts.values()):
        raise ValueError(f"no pair of files under {root} matches {images!r} and {masks!r}")
    if "train" not in parts and None not in parts:
        raise ValueError(f"{images!r} matches no file of the training split under {root}")
    return with_split(root, parts, layout=f"{images} with {masks}", folders=(root,))


def _matches(root: Path, pattern: str) -> dict[str, dict[str, Path]]:
    """Return files by the name of their split, "" without one, and by what the stars stand for."""
    pieces = re.split(r"(\*|\{split\})", pattern)
    expression, has_split = "", False
    for piece in pieces:
        if piece == "*":
            expression += "([^/]*)"
        elif piece == "{split}":
            expression += "(?P=split)" if has_split else "(?P<split>[^/]*)"
            has_split = True
        else:
            expression += re.escape(piece)
    found: dict[str, dict[str, Path]] = {}
    for name in sorted(glob.glob(pattern.replace("{split}", "*"), root_dir=root)):
        match = re.fullmatch(expression, name.replace("\\", "/"))
        if not match:
            continue
        index = match.re.groupindex.get("split")
        stars = [text for i, text in enumerate(match.groups(), 1) if i != index]
        split = match["split"] if has_split else ""
        found.setdefault(split, {})["/".join(stars)] = root / name
    return found
