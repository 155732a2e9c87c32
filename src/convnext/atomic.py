"""Files and folders that are either complete or absent, and folders with one writer."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# The name that `atomic_write` gives a file until it is complete.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")
_DRAFT_MARK = ".convnext-draft"
_DRAFT_SUFFIX = ".unfinished"
_LOCK = ".convnext-lock"

# The lock files that this process holds: the system does not tell its threads apart.
_held: set[str] = set()
_mutex = threading.Lock()


class BusyError(ValueError):
    """Another process or thread writes the same folder."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it into place once the block has succeeded.

    A reader sees the old file or the new one, never a partial one, even after a power failure.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # Let the system apply the umask, which cannot be read without setting it for all threads.
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    os.close(handle)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)  # A writer may have replaced it by a file with private permissions.
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: str | Path) -> None:
    """Flush a folder to disk, so that renames survive a power failure; POSIX only."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically; file names in it that are not UTF-8 keep their bytes."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_together(main: str | Path, text: str, others: Mapping[str, str]) -> tuple[Path, ...]:
    """Write text files that belong together; `main` appears last, when all of them are complete.

    An old `main` is removed first, so that it is never found with new files.

    Args:
        main: The file that readers open first.
        text: Its content.
        others: The contents of the files beside it, by name.

    Returns:
        The paths, beginning with `main`.
    """
    main = Path(main)
    main.unlink(missing_ok=True)
    for name, content in others.items():
        write_text(main.with_name(name), content)
    write_text(main, text)
    return main, *(main.with_name(name) for name in others)


def remove_temporary_files(folder: str | Path, names: str) -> None:
    """Remove what `atomic_write` left in a folder when its process was killed.

    Args:
        folder: A folder that this process alone writes.
        names: A pattern of the names of the complete files.
    """
    for path in Path(folder).glob(".*"):
        complete = path.name[1:-9]
        own = _TEMPORARY.fullmatch(path.name) and re.fullmatch(names, complete)
        if own and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


@contextmanager
def only_writer(file: str | Path) -> Iterator[bool]:
    """Lock a file for this thread of this process; the system unlocks it if the process dies.

    It is a lock of records, which child processes do not inherit: a loader process that outlives
    its killed parent does not hold it. Nothing else may open the file.

    Yields:
        Whether it is locked; some file systems have no locks.

    Raises:
        BusyError: If another process or thread holds the lock.
    """
    path = Path(file).resolve()
    with _mutex:
        if str(path) in _held:
            raise BusyError(f"another thread of this process writes into {path.parent}")
        _held.add(str(path))
    try:
        with path.open("ab") as handle:
            yield _lock(handle, path)
    finally:
        with _mutex:
            _held.discard(str(path))


def _lock(handle: BinaryIO, path: Path) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise BusyError(
            f"another process writes into {path.parent}; wait for it, end it, or choose another "
            "folder"
        ) from error
    except OSError:
        return False
    try:
        is_same = os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        is_same = False
    if not is_same:  # `one_writer` removes its file.
        raise BusyError(f"another process has just written into {path.parent}; try again")
    return True


@contextmanager
def one_writer(folder: str | Path, names: str) -> Iterator[bool]:
    """Keep other processes from writing into a folder until the block ends or this process dies.

    Temporary files that killed processes left there are removed.

    Args:
        folder: The folder; it is made if it does not exist.
        names: A pattern of the names of the files that are written into it.

    Yields:
        Whether it is locked; some file systems have no locks.

    Raises:
        BusyError: If another process or thread writes into the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / _LOCK
    with only_writer(lock) as is_locked:
        remove_temporary_files(folder, names)
        try:
            yield is_locked
        finally:
            if sys.platform != "win32":  # There, an open file cannot be removed.
                lock.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: str | Path) -> Iterator[Path]:
    """Yield a draft folder beside `target`; it gets that name once the block has succeeded.

    A reader sees the complete folder or none. The draft of a killed process is removed by the next
    one that makes a draft beside it.

    Raises:
        ValueError: If `target` exists and is not an empty folder, or the name of the draft is
            taken.
        BusyError: If another process writes the same folder.
    """
    target = Path(os.path.abspath(target))  # `.` has no name beside which a draft could be.
    check_new_folder(target)
    with _held_draft(target) as draft:
        yield draft
        if sys.platform != "win32":
            _give_name(draft, target)
    if sys.platform == "win32":  # There, a folder with an open file cannot be renamed.
        _give_name(draft, target)


def check_new_folder(target: Path) -> None:
    """Check that a folder is new or empty; one that has just become complete loses its mark.

    Raises:
        ValueError: If it is anything else.
    """
    is_folder = target.is_dir() and not target.is_symlink()
    if is_folder:
        (target / _DRAFT_MARK).unlink(missing_ok=True)  # Killed after the rename: it is complete.
    is_empty = is_folder and not any(target.iterdir())
    if (target.is_symlink() or target.exists()) and not is_empty:
        raise ValueError(f"{target} exists and is not empty; choose another folder")


def _give_name(draft: Path, target: Path) -> None:
    if target.exists():
        target.rmdir()
    # Without its mark, the draft of a process that is killed here would not be known as ours.
    draft.rename(target)
    sync_folder(target.parent)
    (target / _DRAFT_MARK).unlink()


@contextmanager
def draft_beside(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` for files to move from it; it is removed at the end.

    That of a killed process is removed by the next one that makes a draft in the same folder.

    Raises:
        ValueError: If its name is taken.
        BusyError: If another process uses it.
    """
    with _held_draft(target) as draft:
        yield draft
    _remove_draft(draft)


@contextmanager
def _held_draft(target: Path) -> Iterator[Path]:
    """Yield a draft folder that this process holds; it is removed only if the block fails."""
    _remove_dead_drafts(target.parent)
    draft = target.with_name(f".{target.name}{_DRAFT_SUFFIX}")
    mark = draft / _DRAFT_MARK
    # A process may have been killed before it made the mark, or after it had removed that.
    is_empty = draft.is_dir() and not any(draft.iterdir())
    if draft.is_symlink() or (draft.exists() and not mark.is_file() and not is_empty):
        raise ValueError(f"{draft} is not of this package; move it away, or choose another folder")
    draft.mkdir(parents=True, exist_ok=True)
    with only_writer(mark):
        _empty_draft(draft)
        try:
            yield draft
        except BaseException:
            _remove_draft(draft)
            raise


def _remove_dead_drafts(folder: Path) -> None:
    """Remove the drafts of killed processes from a folder, whatever their targets are.

    A draft is dead if it has its mark and nobody holds that. Where nothing can be held, only the
    next process with the same target replaces it.
    """
    if sys.platform == "win32":  # There, a complete draft is not held while it is renamed.
        return
    for draft in folder.glob(f".*{_DRAFT_SUFFIX}"):
        # Its process lives, or has just removed it; or it is in a folder of another user.
        with suppress(BusyError, OSError):
            mark = draft / _DRAFT_MARK
            if draft.is_symlink() or mark.is_symlink() or not mark.is_file():
                continue
            with only_writer(mark) as is_locked:
                if is_locked:
                    _remove_draft(draft)


def _empty_draft(draft: Path) -> None:
    """Remove everything from a draft but its mark."""
    for left in draft.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        elif left.name != _DRAFT_MARK:
            left.unlink()


def _remove_draft(draft: Path) -> None:
    """Remove a draft, its mark last, as far as that is possible."""
    with suppress(OSError):
        _empty_draft(draft)
        (draft / _DRAFT_MARK).unlink()
        draft.rmdir()
