"""Recognition of the layout of a classification data set."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from convnext.data.formats.class_folders import (
    LAYOUTS,
    find_folders,
    listing,
    split_folders,
    subfolders,
)
from convnext.data.formats.tables import find_table
from convnext.data.samples import Found
from convnext.data.shards.layout import find_shards, part_of
from convnext.data.shards.remote import find_remote, is_remote
from convnext.names import nearest
from convnext.tasks.classification.recipe import ClassificationLoader


def find(
    path: str,
    loader: ClassificationLoader | None = None,
    *,
    layout: str = "auto",
    console: Console | None = None,
) -> Found:
    """List the images below `path` and their classes.

    Args:
        path: A folder or an address.
        layout: "class_folders" accepts any names as classes.
        loader: Settings for caching and fetching remote data.
        console: Console for notes about downloads; standard error by default.

    Raises:
        ValueError: If the path does not exist or has no known layout; the message says what was
            found.
    """
    if path.startswith("pipe:"):
        raise ValueError(f"{path} would start a program, which is refused: use an address")
    if is_remote(path) or (path.endswith(".txt") and Path(path).expanduser().is_file()):
        return find_remote(path, loader or ClassificationLoader(), console=console)
    root = Path(path).expanduser()
    if not root.exists():
        raise ValueError(f"there is no {path}{_near(root)}")
    if root.is_file() and root.suffix.lower() == ".csv":
        return find_table(root)
    if root.is_file():
        advice = f"use its folder, {root.parent}" if root.suffix == ".tar" else "use a folder"
        raise ValueError(f"{path} is a file; {advice} ({LAYOUTS})")
    shards = sorted(p for p in listing(root) if p.suffix == ".tar" and p.is_file())
    # A tar next to class folders is probably their archive, unless its name has a split.
    is_source = bool(subfolders(root)) and not any(part_of(p.name) for p in shards)
    if layout == "auto" and shards and not is_source and not split_folders(root)[0]:
        return find_shards(root, shards)
    return find_folders(root, any_names=layout == "class_folders")


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    suggestion = nearest(path.name, [p.name for p in listing(path.parent)][:1000])
    return suggestion if "did you mean" in suggestion else ""
