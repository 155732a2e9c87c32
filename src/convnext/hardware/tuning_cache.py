"""What was measured on this machine, kept in a file of the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from convnext.atomic import write_text


def cache_folder() -> Path:
    """Return the folder in which this package keeps what it can find out again."""
    root = os.environ.get("XDG_CACHE_HOME")
    if root:
        return Path(root) / "convnext"
    try:
        return Path.home() / ".cache" / "convnext"
    except RuntimeError:  # A user without a home, as in containers.
        return Path(tempfile.gettempdir()) / "convnext"


def key_of(*facts: Any) -> str:
    """Return a short name for facts that decide a measurement, by their `repr`."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other processes out that measure for the same file, where files can be written."""
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=60)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # A timeout is one.
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock)
        yield


def recall(path: Path) -> dict[str, Any]:
    """Return what a file remembers; nothing if there is none, or it cannot be read any more."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def remember(path: Path, key: str, value: Any) -> None:
    """Keep a value of plain types under a key, beside what is there, where files can be written.

    Elsewhere it is forgotten: what was measured can be measured again.
    """
    with contextlib.suppress(OSError):
        write_text(path, json.dumps(recall(path) | {key: value}, indent=1) + "\n")
