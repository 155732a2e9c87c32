"""What the results of image files are called, and that none is written over what was read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

# Bytes of a name: file systems take 255, of which "_overlay.png" and a temporary name need some.
MAX_NAME = 200


def output_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for the results of every file: its own without the ending, where it is alone.

    Files of one name are told apart by the folders below those that all files share, and by their
    ending; one that is given twice, or differs from another by its writing only, by a number. Names
    that leave no room for what is appended are cut.
    """
    stems = Counter(path.stem.casefold() for path in paths)
    folders = [Path(os.path.abspath(path)).parts[1:-1] for path in paths]
    # strict=False: the shortest path bounds what all of them share.
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    num_shared = len(list(shared))
    names: list[str] = []
    taken: set[str] = set()
    for path, folder in zip(paths, folders, strict=True):
        name = path.stem
        if stems[name.casefold()] > 1:
            name = "_".join([*folder[num_shared:], path.name])
        name = (
            os.fsdecode(os.fsencode(name)[:MAX_NAME]) if len(os.fsencode(name)) > MAX_NAME else name
        )
        # Some file systems take "A" and "a" for the same name.
        number, tried = 2, name
        while tried.casefold() in taken:
            number, tried = number + 1, f"{name}_{number}"
        taken.add(tried.casefold())
        names.append(tried)
    return names


def protect(files: Sequence[Path], results: Sequence[Path]) -> None:
    """Refuse to write over what is read.

    Raises:
        ValueError: Naming the file.
    """
    given = {file.resolve() for file in files}
    for result in results:
        if result.resolve() in given:
            raise ValueError(f"{result} is one of the images; choose another folder with --output")
