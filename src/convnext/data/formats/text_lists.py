"""Text files that list the images of each split: train.txt, ImageSets/Segmentation/val.txt ..."""

from __future__ import annotations

from pathlib import Path

from convnext.data.formats.records import Split
from convnext.data.formats.splits import split_of
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
)


def split_lists(root: Path) -> dict[Split, Path]:
    """Return the text files that list the images of each split, from the first folder with some.

    A folder with a list for training wins over one that lists only the others.
    """
    folders = [root / name for name in LIST_FOLDERS]
    years = root / "ImageSets"  # ImageSets/2017 and the like.
    folders += sorted(p for p in years.iterdir() if p.is_dir()) if years.is_dir() else []
    first: dict[Split, Path] = {}
    for folder in folders:
        found: dict[Split, Path] = {}
        for path in sorted(folder.glob("*.txt")) if folder.is_dir() else ():
            split = split_of(path.stem)
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
    # A line may name the mask after the image, and names have no blanks then.
    return [
        name.split()[0] if len(name.split()) == 2 and "." in name.split()[0] else name
        for name in names
        if name
    ]
