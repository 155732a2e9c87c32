"""Names for the files of results: valid on every system, and never those of existing files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convnext.data.downloads import file_name, is_url
from convnext.data.drawing import MAX_NAME
from convnext.names import portable_name


def file_stem(source: str | Path) -> str:
    """Return a name for the files of a result that is valid on every system.

    Args:
        source: A path, without whose extension the name is made; a URL, whose last part is used; or
            any name.
    """
    if isinstance(source, Path):
        source = source.stem
    name = file_name(source) if is_url(source) else source
    name = name.encode("utf-8", "replace").decode()
    name = name.encode()[:MAX_NAME].decode("utf-8", "ignore").rstrip(". ")
    return portable_name(name) if name else "image"


@contextmanager
def free_name(folder: Path, stem: str, endings: Sequence[str]) -> Iterator[str]:
    """Yield a name that no file has, and reserve it against other threads and processes."""
    folder.mkdir(parents=True, exist_ok=True)
    number, name = 1, stem
    while True:
        reservation = folder / f".{name}.reserved"
        try:
            handle = os.open(reservation, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            pass
        else:
            os.close(handle)
            if not any(Path(folder, f"{name}{ending}").exists() for ending in endings):
                break
            reservation.unlink()
        number += 1
        name = f"{stem}_{number}"
    try:
        yield name
    finally:
        reservation.unlink()


def set_field(frozen: Any, name: str, value: Any) -> None:
    """Set a field of a frozen dataclass while it is created."""
    object.__setattr__(frozen, name, value)
