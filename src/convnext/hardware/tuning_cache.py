"""Measurements of this machine, cached in one file in the user's cache folder.

The keys contain the machine and the versions of the libraries that compute. Several processes may
read and write at the same time. A damaged entry or file is ignored with a note, since everything
can be measured again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from convnext.atomic import write_text
from convnext.hardware.system import cache_folder, cpu_facts

if TYPE_CHECKING:
    import torch

# The libraries, besides torch, whose upgrade may change which backend is the fastest.
RUNTIMES = ("torchvision", "openvino", "onnxruntime", "nncf", "triton")
LOCK_SECONDS = 60.0


def cache_file() -> Path:
    """Return the file of the tuning cache."""
    return cache_folder() / "tuning.json"


def key_of(kind: str, device: torch.device, *facts: Any) -> str:
    """Return the key of a measurement.

    Args:
        kind: The kind of measurement, such as `inference`; the prefix of the key.
        device: The device.
        facts: Everything else that the measurement depends on, by its `repr`.
    """
    from convnext.hardware.devices import environment

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
        note: Called with a line when an entry is ignored.
    """

    def __init__(self, path: Path | None = None, note: Callable[[str], None] = _log) -> None:
        self.path = path or cache_file()
        self.note = note

    def load(self, key: str, parse: Callable[[Any], Any] = lambda value: value) -> Any:
        """Return an entry; None if there is none, or `parse` rejects it.

        Args:
            key: The key passed to `store`.
            parse: Converts the entry; raises ValueError, TypeError or KeyError for a damaged one.
        """
        entries = self._read()
        if key not in entries:
            return None
        try:
            return parse(entries[key])
        except (ValueError, TypeError, KeyError) as error:
            self.note(f"{self.path}: ignoring the damaged entry {key} ({error})")
            return None

    def store(self, key: str, value: Any) -> None:
        """Store an entry of plain values; does nothing if the file cannot be written."""
        with self.exclusive(), contextlib.suppress(OSError):
            text = json.dumps(self._read() | {key: value}, indent=1)
            write_text(self.path, text + "\n")

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock the cache against other processes in the block, so that only one measures.

        Continues without a lock if files cannot be written, and after a minute of waiting.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # Includes timeouts.
                self.path.parent.mkdir(parents=True, exist_ok=True)
                lock = self.path.with_name(f".{self.path.name}.lock")
                # A single lock object per path in a process, so that blocks may be nested.
                stack.enter_context(FileLock(lock, timeout=LOCK_SECONDS, is_singleton=True))
            yield

    def _read(self) -> dict[str, Any]:
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
        except OSError:
            return {}
        except ValueError as error:
            self.note(f"ignoring the damaged file {self.path} ({error})")
            return {}
        if isinstance(entries, dict):
            return entries
        self.note(f"ignoring the damaged file {self.path} (it does not contain a mapping)")
        return {}
