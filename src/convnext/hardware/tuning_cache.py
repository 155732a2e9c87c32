"""What was measured on this machine, kept in one file of the user's cache folder.

An entry holds for this machine and these versions only: both are part of its key. Several processes
may read and write at a time. An entry or file that cannot be read is ignored with a note: what was
measured can be measured again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import platformdirs
import torch
from filelock import FileLock

from convnext.atomic import write_text
from convnext.hardware.devices import environment
from convnext.hardware.system import cpu_facts

# What computes, beside torch; an upgrade may change which is the fastest.
RUNTIMES = ("torchvision", "openvino", "onnxruntime", "nncf", "triton")
LOCK_SECONDS = 60.0


def cache_folder() -> Path:
    """Return the folder in which this package keeps what it can find out again."""
    root = os.environ.get("XDG_CACHE_HOME")  # Elsewhere than on Linux, too.
    folder = Path(root, "convnext") if root else platformdirs.user_cache_path("convnext", False)
    # A user without a home, as in containers, has a path that begins with "~".
    return folder if folder.is_absolute() else Path(tempfile.gettempdir()) / "convnext"


def cache_file() -> Path:
    """Return the file of the tuning cache."""
    return cache_folder() / "tuning.json"


def key_of(kind: str, device: torch.device, *facts: Any) -> str:
    """Return the key of a measurement.

    Args:
        kind: Of what, such as `inference`; it begins the key.
        device: Where.
        facts: What else decides the measurement, by their `repr`.
    """
    known = environment(device)
    machine = [known[name] for name in ("device", "cpu", "cores", "threads", "torch", "convnext")]
    versions = [(name, _version(name)) for name in RUNTIMES]
    text = repr((machine, cpu_facts()[1], versions, facts))
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _log(line: str) -> None:
    logging.getLogger("convnext").warning(line)


class TuningCache:
    """Entries of plain values under keys (`key_of`), in a file of JSON.

    Args:
        path: The file; by default the user's.
        note: Called with a line where an entry is ignored.
    """

    def __init__(self, path: Path | None = None, note: Callable[[str], None] = _log) -> None:
        self.path = path or cache_file()
        self.note = note

    def load(self, key: str, parse: Callable[[Any], Any] = lambda value: value) -> Any:
        """Return an entry; None if there is none, or `parse` cannot make anything of it.

        Args:
            key: As given to `store`.
            parse: Returns the entry as the caller wants it; it raises ValueError, TypeError or
                KeyError for one that it refuses.
        """
        entries = self._read()
        if key not in entries:
            return None
        try:
            return parse(entries[key])
        except (ValueError, TypeError, KeyError) as error:
            self.note(f"{self.path}: entry {key} is damaged and ignored ({error})")
            return None

    def store(self, key: str, value: Any) -> None:
        """Keep an entry of plain values beside the others.

        Where files cannot be written it is forgotten.
        """
        with self.exclusive(), contextlib.suppress(OSError):
            text = json.dumps(self._read() | {key: value}, indent=1)
            write_text(self.path, text + "\n")

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other processes from writing, and from measuring the same thing, in the block.

        Where files cannot be written, and after a minute of waiting, nothing is kept out.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # A timeout is one.
                self.path.parent.mkdir(parents=True, exist_ok=True)
                lock = self.path.with_name(f".{self.path.name}.lock")
                # One object for a path in a process, so that a block may contain another one.
                stack.enter_context(FileLock(lock, timeout=LOCK_SECONDS, is_singleton=True))
            yield

    def _read(self) -> dict[str, Any]:
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
        except OSError:
            return {}
        except ValueError as error:
            self.note(f"{self.path} is damaged and ignored ({error})")
            return {}
        if isinstance(entries, dict):
            return entries
        self.note(f"{self.path} is damaged and ignored (it holds no mapping)")
        return {}
