"""Remote files in a local folder, each fetched completely, checked, and once per machine.

A file is either complete or absent. A lock, which is released if its holder dies, keeps two
processes from fetching the same file. When the folder reaches its limit, the least recently used
files are removed. If a file cannot be fetched in spite of retries, all processes skip it for ten
minutes, and a run continues without it.

Threads and connections belong to the process that made them; after a fork a store makes new ones.
"""

from __future__ import annotations

import hashlib
import math
import os
import queue
import random
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from convnext.atomic import atomic_write, write_text
from convnext.names import printable

# Seconds until a file that could not be fetched is requested again.
FORGET_AFTER = 600.0
# Seconds before the first retry, which double before each further one up to the longest.
BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
# Seconds between two updates of the time at which a file was last used.
TOUCH_EVERY = 60.0
# The store may take this share of the disk space that is free or already taken by it.
DISK_SHARE = 0.5
# A download below this many bytes per second, over this many timeouts, is given up.
SLOWEST, WINDOW = 1_000, 5
# The maximum size of an index or a list: a million shards with long URLs.
MAX_INDEX_BYTES = 500_000_000
# Copies have a subfolder of the user's folder and distinctive names. Other files are never touched.
OWN_FOLDER = "convnext-shards"
OWN_NAME = re.compile(r"\.?[0-9a-f]{32}\.(bin|failed|short)(\..+)?")
# A temporary file older than this (in seconds) belongs to a process that was killed.
STALE_AFTER = 86_400.0


class Unavailable(OSError):  # noqa: N818 - as BadImage
    """A remote file that cannot be fetched now; the message is the reason for the user."""


class Missing(Unavailable):
    """A remote file that does not exist."""


class Refused(Unavailable):
    """A remote file that the server refuses to send."""


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A remote file, with its size and hash if they are known."""

    url: str
    num_bytes: int | None = None
    sha256: str = ""

    @property
    def key(self) -> str:
        """A name for the local copy, which depends on the contents if their hash is known."""
        return hashlib.sha256(f"{self.url}\n{self.sha256}".encode()).hexdigest()[:32]


class Store:
    """Local copies of remote files."""

    def __init__(
        self, folder: str | Path, *, limit_gb: float = 0.0, retries: int = 5, timeout: float = 60.0
    ) -> None:
        """Prepare the store without using the network.

        Args:
            folder: The copies are kept in a subfolder of it; `~` is expanded, and it is created if
                needed.
            limit_gb: The maximum size of all copies; 0 for half of the free disk space.
            retries: How often a failed request is repeated.
            timeout: Seconds to wait for a connection, and then for each chunk.
        """
        self.folder = Path(folder).expanduser() / OWN_FOLDER
        self.limit_gb = limit_gb
        self.retries = retries
        self.timeout = timeout
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._filesystems: dict[str, Any] = {}
        self._used: dict[str, float] = {}
        self._failed: dict[str, tuple[float, Unavailable]] = {}
        self._queue: queue.SimpleQueue[Remote] = queue.SimpleQueue()
        self._queued: set[str] = set()
        self._thread: threading.Thread | None = None
        self._mutex = threading.Lock()

    def _own(self) -> None:
        """Drop threads and connections from before a fork."""
        if self._pid != os.getpid():
            self._begin()

    def __getstate__(self) -> dict[str, Any]:
        names = ("folder", "limit_gb", "retries", "timeout")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def get(self, file: Remote) -> Path:
        """Return the local copy of a file, fetched if needed.

        It may be shorter than `file.num_bytes` if the server has no more. It may be removed when
        space is needed: open it at once, and call again if it is gone.

        Raises:
            Missing: If there is no such file.
            Unavailable: If it cannot be fetched, or could not be in the last ten minutes.
        """
        self._own()
        path = self.folder / f"{file.key}.bin"
        now = time.monotonic()
        if now - self._used.get(file.key, -TOUCH_EVERY) < TOUCH_EVERY and path.exists():
            return path
        until, error = self._failed.get(file.key, (0.0, None))
        if error is not None and now < until:
            raise error
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._is_good(path, file):
            with FileLock(self.folder / f"{file.key}.lock"):
                # Another process may have fetched it, or failed, while this one waited.
                if not self._is_good(path, file):
                    # No one else fetches it: these files are from a process that was killed.
                    for half in self._own_files(f".{path.name}.*"):
                        half.unlink(missing_ok=True)
                    self._fetch_or_remember(file, path)
        self._used[file.key] = now
        with suppress(FileNotFoundError):  # Removed by another process; the caller tries again.
            os.utime(path)
        return path

    def download(self, file: Remote, path: Path) -> None:
        """Fetch the file of an index, or a list, to a path, replacing any file there.

        Raises:
            Missing: If there is no such file.
            Unavailable: If it cannot be fetched.
        """
        self._own()
        self._fetch(file, path, MAX_INDEX_BYTES, "the limit of an index")

    def prefetch(self, files: Iterable[Remote]) -> None:
        """Fetch files in a thread of this process, in order; failures are raised on use.

        Files that are present or already requested cost nothing.
        """
        self._own()
        for file in files:
            if file.key not in self._queued and not (self.folder / f"{file.key}.bin").exists():
                self._queued.add(file.key)
                self._queue.put(file)
        if self._thread is None and self._queued:
            self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
            self._thread.start()

    def forget_failures(self) -> None:
        """Request files again that could not be fetched; for the start of a run."""
        self._failed.clear()
        for path in (*self._own_files("*.failed"), *self._own_files("*.short")):
            path.unlink(missing_ok=True)

    def _own_files(self, pattern: str) -> list[Path]:
        """Return the files that match a pattern and were written by a store."""
        return [path for path in self.folder.glob(pattern) if OWN_NAME.fullmatch(path.name)]

    def limit(self) -> int:
        """Return how many bytes the copies may take."""
        return int(self.limit_gb * 1e9) if self.limit_gb else int(self._room() * DISK_SHARE)

    def _room(self) -> int:
        """Return the bytes of the disk that are free, or taken by copies."""
        above = self.folder
        while not above.exists():
            above = above.parent
        taken = sum(size for _, size, _ in self._copies())
        return shutil.disk_usage(above).free + taken

    def _work(self) -> None:
        while True:
            file = self._queue.get()
            with suppress(OSError, ValueError):
                self.get(file)
            self._queued.discard(file.key)

    def _is_good(self, path: Path, file: Remote) -> bool:
        """Tell whether a copy can be used; one that is too short is accepted for ten minutes."""
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return False
        whole = file.num_bytes is None or size == file.num_bytes
        return whole or _age(path.with_suffix(".short")) < FORGET_AFTER

    def _fetch_or_remember(self, file: Remote, path: Path) -> None:
        mark = path.with_suffix(".failed")
        age = _age(mark)
        if age < FORGET_AFTER:
            reason = mark.read_text(encoding="utf-8")
            self._remember(file, Unavailable(reason), FORGET_AFTER - age)
        try:
            if file.num_bytes is not None:
                self._fetch(file, path, file.num_bytes, "the limit in its index")
            else:
                reason = "the limit of the cache (--loader.shard_cache_gb)"
                self._fetch(file, path, self.limit(), reason)
                self._make_room(0)  # Now its size is known.
        except Unavailable as error:
            write_text(mark, str(error))
            say(f"{file.url} is left out for now: {error}")
            self._remember(file, error, FORGET_AFTER)

    def _remember(self, file: Remote, error: Unavailable, seconds: float) -> None:
        self._failed[file.key] = (time.monotonic() + seconds, error)
        raise error

    def _fetch(self, file: Remote, path: Path, max_bytes: int, reason: str) -> None:
        """Fetch a file of up to `max_bytes`, with retries; wait twice as long after each."""
        filesystem = self._filesystem(file.url)
        tries, length, room = self.retries + 1, -1, self._room()
        # Check before removing copies for a file that can never fit.
        if (file.num_bytes or 0) > room:
            raise Unavailable(
                f"its index says {file.num_bytes:,} bytes, but {self.folder} has room for {room:,}"
            )
        for attempt in range(tries):
            try:
                self._make_room(file.num_bytes or 0)
                with atomic_write(path) as temporary:
                    try:
                        watch = make_watch(
                            max_bytes=max_bytes, reason=reason, patience=self.timeout
                        )
                        filesystem.get_file(file.url, str(temporary), callback=watch)
                    except FileNotFoundError as error:
                        raise Missing("there is no such file") from error
                    before, length = length, temporary.stat().st_size
                    # The same length twice means the end of the file, not a broken connection.
                    is_all = length == before or attempt + 1 == tries
                    if is_all and file.num_bytes is not None and length < file.num_bytes:
                        self._accept_short(file, path, length)
                    else:
                        _check(file, temporary)
                return
            except Unavailable:
                raise
            # The exceptions of the many backends have no common base class.
            except Exception as error:
                status = getattr(error, "status", None)
                refused = isinstance(status, int) and 400 <= status < 500
                if isinstance(error, PermissionError) or (refused and status not in (408, 429)):
                    raise Refused(f"the server refuses it ({_line(error)})") from error
                if attempt + 1 == tries:
                    raise Unavailable(f"{_line(error)}, tried {tries:,} times") from error
            wait = min(BACKOFF * 2**attempt, LONGEST_BACKOFF)
            # Jitter: readers that failed together must not retry together.
            time.sleep(wait * random.Random().uniform(0.5, 1.0))

    def _accept_short(self, file: Remote, path: Path, length: int) -> None:
        say(f"{file.url} ends after {length:,} of {file.num_bytes:,} bytes; these are used")
        path.with_suffix(".short").touch()

    def _filesystem(self, url: str) -> Any:
        protocol = url.partition("://")[0]
        with self._mutex:
            if protocol not in self._filesystems:
                self._filesystems[protocol] = open_filesystem(url, timeout=self.timeout)
            return self._filesystems[protocol]

    def _make_room(self, num_bytes: int) -> None:
        """Remove the least recently used copies until another file fits."""
        with FileLock(self.folder / "room.lock"):
            limit = self.limit()
            copies = sorted(self._copies())
            total = sum(size for _, size, _ in copies) + num_bytes + self._halves()
            for _, size, path in copies:
                if total <= limit:
                    break
                path.unlink(missing_ok=True)
                total -= size
            for path in self._own_files(".*.bin.*"):
                if STALE_AFTER < _age(path) < math.inf:
                    path.unlink(missing_ok=True)

    def _halves(self) -> int:
        """Return the bytes of files that are being fetched now."""
        total = 0
        for path in self._own_files(".*.bin.*"):
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def _copies(self) -> list[tuple[float, int, Path]]:
        """Return (last use, size, path) of every copy."""
        found = []
        for path in self._own_files("*.bin"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # Removed by another process.
                continue
            found.append((stat.st_mtime, stat.st_size, path))
        return found


def open_filesystem(url: str, *, timeout: float) -> Any:
    """Return fsspec's file system for an address, with connections of its own.

    Raises:
        ValueError: If fsspec does not know the protocol, or the package for it is missing.
    """
    import fsspec  # type: ignore[import-untyped]

    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        wait = ClientTimeout(total=None, connect=timeout, sock_connect=timeout, sock_read=timeout)
        options["client_kwargs"] = {"timeout": wait, "trust_env": True}
    elif protocol == "s3":
        options["config_kwargs"] = {"connect_timeout": timeout, "read_timeout": timeout}
    try:
        return fsspec.filesystem(protocol, skip_instance_cache=True, **options)
    except ImportError as error:
        package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
        name = package.get(protocol)
        advice = f"pip install {name}" if name else str(error)
        raise ValueError(f"{protocol}:// needs another package: {advice}") from error
    except ValueError as error:
        raise ValueError(f"{url}: the protocol {protocol}:// is not known to fsspec") from error


def make_watch(*, max_bytes: int, reason: str, patience: float) -> Any:
    """Return a callback of fsspec that stops endless downloads.

    It raises Unavailable if more than `max_bytes` are declared or received, and TimeoutError if
    less than `SLOWEST` bytes per second arrived in the last `WINDOW` times `patience` seconds.
    """
    from fsspec.callbacks import Callback  # type: ignore[import-untyped]

    class Watch(Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.since, self.before = time.monotonic(), 0

        def call(self, *_: Any, **__: Any) -> None:
            if max(self.value, self.size or 0) > max_bytes:
                raise Unavailable(f"it has more than {max_bytes:,} bytes, {reason}")
            seconds = time.monotonic() - self.since
            if seconds > WINDOW * patience:
                if self.value - self.before < SLOWEST * seconds:
                    raise TimeoutError(f"less than {SLOWEST:,} bytes a second")
                self.since, self.before = time.monotonic(), self.value

    return Watch()


def say(line: str) -> None:
    """Print a line to standard error, from any process."""
    print(f"convnext: {printable(line)}", file=sys.stderr, flush=True)


def _check(file: Remote, path: Path) -> None:
    """Compare a download with the known size and hash of the file.

    Raises:
        ValueError: If they differ, so that it is fetched again.
    """
    size = path.stat().st_size
    if file.num_bytes is not None and size != file.num_bytes:
        raise ValueError(f"it has {size:,} bytes, but its index says {file.num_bytes:,}")
    if file.sha256:
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
                raise ValueError("its SHA-256 is not the one in its index")


def _age(path: Path) -> float:
    """Return the seconds since a file was written; infinity if there is none."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def _line(error: Exception) -> str:
    status = getattr(error, "status", None)
    if status:
        return f"the server answers {status} {getattr(error, 'message', '')}".rstrip()
    text = " ".join(str(error).split())
    return text or ("no answer in time" if "Timeout" in type(error).__name__ else repr(error))
