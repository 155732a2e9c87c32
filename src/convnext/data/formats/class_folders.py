"""Class folders: images in folders that are named after their classes.

train/CLASS/*  val/CLASS/*  test/CLASS/*   also Training, seg_train, validate, dev, Testing ...
CLASS/*                                    without a split
CLASS/train/*  CLASS/test/*                the split inside each class
fold_0/CLASS/*  fold_1/CLASS/*             folds, of which one is for validation
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from convnext.data.formats.class_checks import (
    LAYOUTS,
    Part,
    advice_on_names,
    check_inner,
    check_masks,
    check_names,
    check_versions,
    leave_out_copy,
    leave_out_unlabeled,
    masks_among,
    some,
)
from convnext.data.formats.paths import (
    is_plain_name,
    kind_of,
    split_of,
    splits_among,
    word_split,
)
from convnext.data.formats.records import Split
from convnext.data.formats.tables import TableColumns, parts_of_rows
from convnext.data.formats.text_lists import (
    CLASS_NUMBERS,
    IMAGE_NUMBERS,
    IS_TRAINING,
    TABLES,
    classes_by_list,
    has_numbered_images,
    listed_split,
    names_of_synsets,
    read_numbered_images,
)
from convnext.data.images import is_hidden, readable_extensions, walk_files
from convnext.data.samples import ImageListing, taker

_PARTS: tuple[Split, ...] = ("train", "val", "test")
_FOLD = re.compile(r"(?:k[-_. ]?)?fold[-_. ]?(\d+)", re.IGNORECASE)
# ILSVRC/Data/CLS-LOC/val is so many folders below ImageNet's lists.
NUM_ABOVE = 4
# A folder is searched for the data set inside it only if it has few folders.
_MAX_FOLDERS = 100


def split_folders(root: Path) -> tuple[dict[Split, Path], list[str]]:
    """Return the folders of the splits in a folder, and notes on the others; {} without a split.

    A training folder counts if it has class folders, or another split is beside it: a class may be
    called "train", next to bus/ and car/.

    Raises:
        ValueError: If two folders could be the same split.
    """
    folders = subfolders(root)
    named = splits_among(folders)
    if "train" not in named:
        return {}, []
    if len(named) == 1 and not any(subfolders(folders[name]) for name in named["train"]):
        return {}, []
    found: dict[Split, Path] = {}
    notes: list[str] = []
    for split in _PARTS:
        names = named.get(split, [])
        if not names:
            continue
        exact = [name for name in names if name.lower() == split]
        if len(names) > 1 and len(exact) != 1:
            raise ValueError(
                f"{' and '.join(f'{name}/' for name in names)} in {root} could all be its {split} "
                f"split; rename the one to use to {split}, or move the others away"
            )
        taken = exact[0] if exact else names[0]
        found[split] = folders[taken]
        notes += [f"{name}/ is not used, since {taken}/ exists" for name in names if name != taken]
    return found, notes


def find_root(root: Path) -> tuple[Path, list[str]]:
    """Return the folder of the data set in `root`, often `root` itself, and notes on the choice.

    A folder is entered if it is the only one with a data set, such as data/ in a repository.

    Raises:
        ValueError: If several folders in it are data sets.
    """
    if split_folders(root)[0]:
        return root, []
    folders = subfolders(root)
    if not folders or len(folders) > _MAX_FOLDERS:
        return root, []
    with_split = [p for p in folders.values() if split_folders(p)[0]]
    is_general = len(with_split) == len(folders) == 1 and is_plain_name(with_split[0].name)
    inner = [child for p in with_split for child in subfolders(split_folders(p)[0]["train"])]
    if with_split and not inner and not is_general:
        return root, []  # CLASS/train/*
    if len(with_split) > 1:
        names = ", ".join(f"{p.name}/" for p in with_split[:5])
        raise ValueError(f"{root} holds several data sets: {names}; give one of them")
    if with_split:
        entered = with_split[0]
    else:
        with_images = [p for p in folders.values() if _has_images(p)]
        general = [p for p in with_images if is_plain_name(p.name) or len(with_images) == 1]
        general = [p for p in general if sum(map(_has_images, subfolders(p).values())) > 0]
        if len(general) != 1 or any(_is_image(p) for p in listing(general[0])):
            return root, []
        entered = general[0]
        if len(with_images) > 1 and not is_plain_name(entered.name):
            return root, []
    left = {p.name: _num_images(p) for p in folders.values() if p != entered}
    note = f"the data set is in {entered.name}/"
    if any(left.values()):
        others = ", ".join(f"{name}/ ({n:,} images)" for name, n in left.items() if n)
        note += f"; left out: {others}"
    below, notes = find_root(entered)
    return below, [note, *notes]


def has_class_folders(root: Path) -> bool:
    """Whether a folder, or the only data set in it, has train/CLASS/* with images."""
    try:
        folders, _ = split_folders(find_root(root)[0])
    except ValueError:  # Several data sets or splits.
        return False
    inner = subfolders(folders["train"]) if folders else {}
    classes = [path for name, path in inner.items() if not is_plain_name(name)]
    return sum(any(map(_is_image, listing(path))) for path in classes[:_MAX_FOLDERS]) > 1


def find_folders(
    root: Path, *, any_names: bool = False, columns: TableColumns | None = None
) -> ImageListing:
    """List the class folders in `root`, or in the only data set inside it.

    Args:
        root: The folder.
        any_names: Accept names of splits and of annotations as classes.
        columns: The fold to hold out, which only data in folds may have.

    Raises:
        ValueError: If there is no class folder with images, or it is not clear what they are.
    """
    if any_names:
        folders, notes = split_folders(root)
        inner = subfolders(folders["train"]) if folders else {}
        if sum(map(_has_images, inner.values())) > 1:
            return find_split(root, folders, notes)
        return find_plain(root)
    given = columns or TableColumns()
    outer = root
    root, notes = (root, []) if fold_folders(root) else find_root(root)
    if not given.named() and (folds := fold_folders(root)):
        found = find_folds(root, folds, given)
        return replace(found, notes=(*notes, *found.notes))
    given.check_unused(outer)
    numbered = next((p for p in (root, root.parent) if has_numbered_images(p)), None)
    if numbered is not None:
        return _find_numbered(numbered)
    folders, more = split_folders(root)
    if folders:
        return find_split(root, folders, [*notes, *more], check=True, outer=outer)
    return find_plain(root, notes=notes, check=True)


def _find_numbered(root: Path) -> ImageListing:
    """List images that text files number, such as those of CUB-200.

    Raises:
        ValueError: If the lists are damaged, or name no image that exists.
    """
    listed = read_numbered_images(root)
    below = "images" if (root / "images").is_dir() else ""
    keys: list[str] = []
    names: list[str] = []
    parts: dict[Split, list[int]] = {"train": [], "test": []}
    absent: list[str] = []
    for number, file in listed.files.items():
        key = f"{below}/{file}" if below else file
        if not (root / key).is_file():
            absent.append(file)
            continue
        parts["train" if listed.is_train.get(number, True) else "test"].append(len(keys))
        keys.append(key)
        names.append(listed.labels[number])
    if not keys:
        raise ValueError(f"{root / IMAGE_NUMBERS} lists no image that exists, such as {absent[0]}")
    classes = tuple(sorted(set(names)))
    labels = [classes.index(name) for name in names]
    faults = [
        f"listed images that are absent, left out: {len(absent):,} (such as {name})"
        for name in absent[:1]
    ]
    split = f"list {IS_TRAINING}, whose other images are for testing"
    return ImageListing(
        root=root,
        classes=classes,
        keys=keys,
        labels=labels,
        train=parts["train"],
        val=None,
        test=parts["test"] or None,
        layout=f"lists of numbered images ({IMAGE_NUMBERS}, {CLASS_NUMBERS})",
        split=split if listed.is_train else "",
        notes=(),
        faults=tuple(faults),
        take=taker(root, keys, labels),
    )


def fold_folders(root: Path) -> dict[str, Path]:
    """Return the folders of a split into folds, such as fold_0/CLASS/*, by their numbers.

    It is empty if other folders but that of a test are beside them, or the folds share no class.
    """
    folders = subfolders(root)
    matches = {name: _FOLD.fullmatch(name) for name in folders}
    found = {match[1]: folders[name] for name, match in matches.items() if match}
    others = [name for name, match in matches.items() if not match and split_of(name) != "test"]
    inner = [set(subfolders(path)) for path in found.values()]
    if len(found) < 2 or others or not set.intersection(*inner):
        return {}
    # Folds that are each split again are data sets of their own.
    return {} if any(split_folders(path)[0] for path in found.values()) else found


def find_folds(root: Path, folders: Mapping[str, Path], columns: TableColumns) -> ImageListing:
    """List the images of fold_0/CLASS/*, fold_1/CLASS/* ...; one fold is for validation.

    Raises:
        ValueError: If there is no class folder with images, or no such fold.
    """
    test = [path for name, path in subfolders(root).items() if split_of(name) == "test"]
    faults: list[str] = []
    places = [("", path) for path in test] + [*folders.items()]
    read = [(fold, _walk(path, faults)) for fold, path in places]
    _note_loose([part for _, part in read], faults)
    loose = [p.name for p in listing(root) if _is_image(p)]
    if loose:
        faults.append(f"images beside the folds, left out: {len(loose):,} (such as {loose[0]})")
    names = {c for _, part in read for c in part.files}
    present = {c for _, part in read for c, files in part.files.items() if files}
    classes = _class_names(root, present, names - present, faults)
    keys, labels, folds, splits = list[str](), list[int](), list[str](), list[Split]()
    for fold, part in read:
        for label, name in enumerate(classes):
            files = part.files.get(name, [])
            keys += [f"{part.folder.name}/{file}" for file in files]
            labels += [label] * len(files)
            folds += [fold] * len(files)
            splits += ["train" if fold else "test"] * len(files)
    of_folds = f"the folders {', '.join(path.name for path in folders.values())}"
    parts, held = parts_of_rows(splits, folds, columns, where=str(root), of_folds=of_folds)
    return ImageListing(
        root=root,
        classes=classes,
        keys=keys,
        labels=labels,
        train=parts.get("train", []),
        val=parts.get("val"),
        test=parts.get("test"),
        layout="class folders in folds",
        split=held,
        notes=(),
        faults=tuple(faults),
        take=taker(root, keys, labels),
    )


def find_split(
    root: Path,
    folders: Mapping[Split, Path],
    notes: Sequence[str] = (),
    *,
    check: bool = False,
    outer: Path | None = None,
) -> ImageListing:
    """List the images of train/CLASS/* and the other splits in `root`.

    Args:
        root: The folder.
        folders: Those of its splits.
        notes: What is known of it.
        check: Refuse names of annotations, and images with masks.
        outer: The folder that the user gives, which may have lists of classes; `root` by default.

    Raises:
        ValueError: If there is no class folder with images, or these are not classes.
    """
    notes = list(notes)
    faults: list[str] = []
    parts = {split: _read_part(folder, notes, faults) for split, folder in folders.items()}
    if check:
        train = parts["train"]
        check_names(train.folder, {c for c, files in train.files.items() if files})
        check_inner(train.folder, train)
        check_masks(train)
        note_inner(train, notes)
    _note_others(root, folders, faults)
    places = list(dict.fromkeys((root, outer or root)))
    for split, part in parts.items():
        if split != "train":
            _label_by_list(places, split, part, parts["train"], notes)
            for name in list(part.files):  # test/images/*
                if kind_of(name) == "image" and name not in parts["train"].files:
                    part.loose += part.files.pop(name)
    _leave_out_unknown(parts, faults)
    _note_loose(parts.values(), faults)
    where_from = [
        folder.name + "/" + ("" if folder.name.lower() == split else f" ({split})")
        for split, folder in folders.items()
        if split in parts
    ]
    for part in parts.values() if check else ():
        leave_out_unlabeled(part, faults)
    present, empty = _present(parts, faults)
    classes = _class_names(parts["train"].folder, present, empty, faults)
    notes += names_of_synsets(places, classes)
    keys: list[str] = []
    labels: list[int] = []
    where: dict[str, range] = {}
    for split, part in parts.items():
        start, below = len(keys), part.folder.relative_to(root).as_posix()
        for label, name in enumerate(classes):
            keys += [f"{below}/{file}" for file in part.files.get(name, ())]
            labels += [label] * len(part.files.get(name, ()))
        where[split] = range(start, len(keys))
    return ImageListing(
        root=root,
        classes=classes,
        keys=keys,
        labels=labels,
        train=where["train"],
        val=where.get("val"),
        test=where.get("test"),
        split=f"folders {', '.join(where_from)}",
        notes=tuple(notes),
        faults=tuple(faults),
        take=taker(root, keys, labels),
    )


def _present(parts: Mapping[Split, Part], faults: list[str]) -> tuple[set[str], set[str]]:
    """Return the classes with images to train or validate on, and those without any image.

    Classes that only the test split has are counted.
    """
    known = [part for split, part in parts.items() if split != "test"]
    present = {c for part in known for c, files in part.files.items() if files}
    empty = {c for part in parts.values() for c in part.files} - present
    test = parts.get("test")
    new = {c for c, files in test.files.items() if files} - present if test else set[str]()
    if test is not None and new:
        count = sum(len(test.files[c]) for c in new)
        faults.append(
            f"classes that only {test.folder.name}/ has, left out with {count:,} images: "
            + some(new)
        )
    return present, empty - new


def _leave_out_unknown(parts: dict[Split, Part], faults: list[str]) -> None:
    """Remove the splits other than training whose images are in no class folder."""
    for split, part in list(parts.items()):
        if split != "train" and part.loose and not any(part.files.values()):
            faults.append(
                f"{part.folder.name}/ has no class folders, so that the classes of its "
                f"{len(part.loose):,} images are unknown; left out{_solution(part.folder, split)}"
            )
            del parts[split]


def _solution(folder: Path, split: Split) -> str:
    """Return advice if ImageNet's list of the classes is above the folder that the user gives."""
    above = folder.absolute().parents[:NUM_ABOVE]
    found = next((p for p in above for _ in p.glob(f"LOC_{split}_solution.csv")), None)
    return f" (LOC_{split}_solution.csv has them: give {found} as the data)" if found else ""


def _label_by_list(
    places: Sequence[Path], split: Split, part: Part, train: Part, notes: list[str]
) -> None:
    """Give the images of a split without class folders the classes that a list states."""
    folders = [name for name, files in part.files.items() if files]
    if any(name in train.files or kind_of(name) != "image" for name in folders):
        return
    images = [*part.loose, *(file for name in folders for file in part.files[name])]
    lists = [p for p in listing(part.folder) if p.suffix.lower() in (".txt", *TABLES)]
    lists += [
        p
        for place in places
        for p in listing(place)
        if p.suffix.lower() in (".txt", *TABLES) and word_split(p.stem) == split
    ]
    found = classes_by_list(lists, images, train.files) if images else None
    if found is None:
        return
    path, class_of = found
    part.files = {name: [] for name in train.files}
    for file in images:
        if file in class_of:
            part.files[class_of[file]].append(file)
    part.loose = [file for file in images if file not in class_of]
    where = path.relative_to(places[-1]).as_posix()
    notes.append(f"the classes of the images of {part.folder.name}/ are those of {where}")


def find_plain(root: Path, *, notes: Sequence[str] = (), check: bool = False) -> ImageListing:
    """List CLASS/* in `root`, as training images unless each class has its own split.

    Args:
        root: The folder.
        notes: What is known of it.
        check: Refuse names of splits and of annotations.

    Raises:
        ValueError: If there is no class folder with images, or these are not classes.
    """
    faults: list[str] = []
    part = _walk(root, faults)
    _note_loose([part], faults)
    if check:
        leave_out_copy(part, faults)
        leave_out_unlabeled(part, faults)
    present = {c for c, names in part.files.items() if names}
    if check:
        check_names(root, present)
        check_inner(root, part)
        check_versions(root, part)
        check_masks(part)
    classes = _class_names(root, present, set(part.files) - present, faults)
    keys = [name for c in classes for name in part.files[c]]
    labels = [label for label, c in enumerate(classes) for _ in part.files[c]]
    split = _inner_split(keys) if check else {}
    inner = ""
    if check and not split:
        split, inner = listed_split(root, keys, faults)
    elif split:
        inner = f"folders inside each class: {some({key.split('/')[1] for key in keys})}"
    notes = list(notes)
    if check and not inner.startswith("folders"):
        note_inner(part, notes)
    return ImageListing(
        root=root,
        classes=classes,
        keys=keys,
        labels=labels,
        train=split.get("train", range(len(keys))),
        val=split.get("val"),
        test=split.get("test"),
        split=inner,
        notes=tuple(notes),
        faults=tuple(faults),
        take=taker(root, keys, labels),
    )


def _inner_split(keys: Sequence[str]) -> dict[Split, list[int]]:
    """Return the images of each split if all lie in CLASS/SPLIT/; {} if not."""
    found: dict[Split, list[int]] = {}
    for index, key in enumerate(keys):
        split = split_of(key.split("/")[1])
        if split is None or key.count("/") < 2:
            return {}
        found.setdefault(split, []).append(index)
    return found if "train" in found and len(found) > 1 else {}


def _class_names(
    folder: Path, present: set[str], empty: set[str], faults: list[str]
) -> tuple[str, ...]:
    """Return the sorted names of the classes that have images.

    Raises:
        ValueError: If no class has images.
    """
    if not present:
        advice = advice_on_names(path.name for path in listing(folder) if _is_image(path))
        raise ValueError(
            f"no class folders with images in {folder}: {'; '.join((_seen(folder), *faults))}; "
            f"{advice}{LAYOUTS}"
        )
    if empty:
        faults.append(f"class folders without images, left out: {len(empty):,} ({some(empty)})")
    return tuple(sorted(present))


def _seen(folder: Path) -> str:
    """Describe the contents of a folder in a few words."""
    entries = listing(folder)
    folders = [p.name for p in entries if p.is_dir()]
    endings = Counter(p.suffix.lower() or "no ending" for p in entries if p.is_file())
    parts = [f"{count:,} files {ending}" for ending, count in endings.most_common(3)]
    if folders:
        some = ", ".join(sorted(folders)[:3]) + (" ..." if len(folders) > 3 else "")
        parts.append(f"{len(folders):,} folders ({some})")
    return "it holds " + " and ".join(parts) if parts else "it is empty"


def _read_part(folder: Path, notes: list[str], faults: list[str]) -> Part:
    """List a split, entering a folder that only repeats its name, as in seg_train/seg_train/."""
    while True:
        folders = list(subfolders(folder).values())
        if len(folders) != 1 or any(map(_is_image, listing(folder))):
            break
        inner = folders[0]
        is_name = inner.name.lower() == folder.name.lower() or is_plain_name(inner.name)
        if not is_name or not subfolders(inner):
            break
        folder = inner
        notes.append(f"the classes of {folder.parent.name}/ are in {folder.name}/ inside it")
    return _walk(folder, faults)


def _walk(folder: Path, faults: list[str]) -> Part:
    """Return the image files of every class folder, as `CLASS/...` relative to `folder`.

    Names of classes are compared in one Unicode form: systems write accents differently.
    """
    endings = readable_extensions()
    class_of = {name: unicodedata.normalize("NFC", name) for name in subfolders(folder)}
    classes: dict[str, list[str]] = {name: [] for name in class_of.values()}
    loose: list[str] = []
    others: Counter[str] = Counter()
    example = ""
    for name in walk_files(folder):
        first, slash, _ = name.partition("/")
        ending = os.path.splitext(name)[1].lower()
        if ending in endings:
            (classes[class_of[first]] if slash else loose).append(name)
        elif slash:
            others[ending or "no ending"] += 1
            example = example or name
    if others:
        listed = ", ".join(f"{count:,} {ending}" for ending, count in others.most_common(5))
        faults.append(
            f"files in {folder.name}/ that are not images by their ending, left out: "
            f"{others.total():,} ({listed}, such as {example})"
        )
    return Part(folder=folder, files=classes, loose=loose)


def _note_loose(parts: Iterable[Part], faults: list[str]) -> None:
    """Count the images of splits that are outside class folders, and masks in class folders."""
    parts = list(parts)
    faults += [
        f"files that look like masks of other images, but are read as images of "
        f"{part.folder.name}/: {len(masks):,} (such as {masks[0]})"
        for part in parts
        if (masks := masks_among(part))
    ]
    faults += [
        f"images directly in {part.folder.name}/, outside its class folders, left out: "
        f"{len(part.loose):,} (such as {part.loose[0]})"
        for part in parts
        if part.loose and any(part.files.values())
    ]


def note_inner(part: Part, notes: list[str]) -> None:
    """Say which folders are the classes if all images lie in folders inside them."""
    files = [file for files in part.files.values() for file in files]
    inner = sorted({"/".join(file.split("/")[:2]) for file in files if file.count("/") > 1})
    if files and all(file.count("/") > 1 for file in files) and len(inner) > len(part.files):
        shown = ", ".join(inner[:3]) + (" ..." if len(inner) > 3 else "")
        notes.append(
            f"the classes are the outer folders; those inside them ({shown}) are not told apart: "
            "if they are the classes, move them up, or list the images in a CSV with the columns "
            "path and label"
        )


def _note_others(root: Path, folders: Mapping[Split, Path], faults: list[str]) -> None:
    """Count the images beside the folders of the splits."""
    loose = [p.name for p in listing(root) if _is_image(p)]
    if loose:
        beside = folders["train"].name
        faults.append(f"images beside {beside}/, left out: {len(loose):,} (such as {loose[0]})")
    others = [p for p in subfolders(root).values() if p not in folders.values()]
    counts = {p.name: _num_images(p) for p in others if split_of(p.name) is None}
    faults += [
        f"{name}/ is not a split by its name, left out: {count:,} images"
        for name, count in counts.items()
        if count
    ]


def _num_images(folder: Path) -> int:
    endings = readable_extensions()
    return sum(os.path.splitext(name)[1].lower() in endings for name in walk_files(folder))


def _has_images(folder: Path) -> bool:
    """Whether there is an image in a folder or below it; stops at the first."""
    endings = readable_extensions()
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        if any(
            os.path.splitext(name)[1].lower() in endings for name in files if not is_hidden(name)
        ):
            return True
    return False


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in readable_extensions() and path.is_file()


def subfolders(folder: Path) -> dict[str, Path]:
    """Return the folders in a folder by their names."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if not is_hidden(e.name) and e.is_dir())
    return {name: folder / name for name in names}


def listing(folder: Path) -> list[Path]:
    """Return the entries of a folder without hidden ones."""
    return sorted(p for p in folder.iterdir() if not is_hidden(p.name))
