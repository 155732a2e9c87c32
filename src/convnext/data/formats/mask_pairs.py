"""Pairs of images and masks: by name, by lists of names, or by two patterns."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convnext.data.formats.mask_layers import Layers, classes_of, layer_files
from convnext.data.formats.records import Split
from convnext.data.formats.split_lists import names_of_list, split_lists
from convnext.data.formats.splits import split_of

# Masks of JPEG have values that were never drawn.
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif")
PATTERNS = "say which with --segment.images and --segment.masks (--images and --masks of `data`)"
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
        listed = _by_lists(root, whole, faults)
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


def _by_lists(root: Path, part: Part, faults: list[str]) -> tuple[dict[Split, Part], str] | None:
    """Split pairs by lists of names beside them, and name these; None without such lists."""
    lists = split_lists(root)
    if "train" not in lists:
        return None
    by_name: dict[str, str] = {}
    for own, (image, _) in part.pairs.items():
        by_name |= {own: own, image.stem: own, image.name: own}
    lonely = {image.stem: image for image in part.unpaired_images}
    found: dict[Split, Part] = {}
    taken: dict[str, Split] = {}
    for split, path in lists.items():
        pairs: dict[str, tuple[Path, Mask]] = {}
        without: list[Path] = []
        unknown: list[str] = []
        twice: list[str] = []
        for name in names_of_list(path):
            bare = os.path.splitext(name)[0]
            options = (name, bare, os.path.basename(name), os.path.basename(bare))
            key = next((by_name[n] for n in options if n in by_name), None)
            if key is None:
                without += [lonely[n] for n in options if n in lonely][:1]
                unknown += [name] if not any(n in lonely for n in options) else []
            elif taken.setdefault(key, split) != split:
                twice.append(name)
            else:
                pairs[key] = part.pairs[key]
        found[split] = Part(pairs=pairs, unpaired_images=tuple(without))
        where = path.relative_to(root).as_posix()
        if unknown:
            faults.append(
                f"names in {where} without an image, left out: {len(unknown):,} (such as "
                f"{unknown[0]})"
            )
        if twice:
            faults.append(
                f"names in {where} that another list has too, left out of it: {len(twice):,} "
                f"(such as {twice[0]})"
            )
    names = ", ".join(path.relative_to(root).as_posix() for path in lists.values())
    rest = part.pairs.keys() - taken.keys()
    if rest:
        faults.append(
            f"images with masks that no list names, left out: {len(rest):,} (such as {min(rest)})"
        )
    return found, f"lists {names}"


def match_files(images: dict[str, Path], masks: dict[str, Path]) -> Part:
    """Pair files by name, or by name without words such as "mask" if that pairs more of them."""
    lossy = {name: path for name, path in masks.items() if path.suffix.lower() in LOSSY}
    exact = join_files(images, masks)
    smaller = min(len(images), len(masks))
    if 2 * len(exact.pairs) < smaller:
        keys = _bare_keys(images, _IMAGE_WORDS), _bare_keys(masks, _MASK_WORDS)
        bare = join_files(
            {keys[0][name]: path for name, path in images.items() if name in keys[0]},
            {keys[1][name]: path for name, path in masks.items() if name in keys[1]},
        )
        if len(bare.pairs) > len(exact.pairs):
            unique = [
                tuple(path for name, path in files.items() if name not in key)
                for files, key in zip((images, masks), keys, strict=True)
            ]
            exact = replace(
                bare,
                unpaired_images=bare.unpaired_images + unique[0],
                unpaired_masks=bare.unpaired_masks + unique[1],
            )
    if 2 * len(exact.pairs) < smaller and (layered := layer_files(images, masks)):
        of_layers = {path for _, layers in layered.values() for _, path in layers.files}
        exact = Part(
            pairs=dict(layered),
            unpaired_images=tuple(images[name] for name in sorted(images.keys() - layered.keys())),
            unpaired_masks=tuple(sorted(path for path in masks.values() if path not in of_layers)),
        )
    used = {mask for _, mask in exact.pairs.values()}
    return replace(exact, lossy_masks=tuple(p for p in lossy.values() if p in used))


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
    return Part(
        pairs={name: (images[name], masks[name]) for name in sorted(images.keys() & masks.keys())},
        unpaired_images=tuple(images[name] for name in sorted(images.keys() - masks.keys())),
        unpaired_masks=tuple(masks[name] for name in sorted(masks.keys() - images.keys())),
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
