"""Addresses of remote shards: told from paths, and read from patterns and lists."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from convnext.data.shards.store import Missing, Refused, Remote, Store, Unavailable

# A pattern that stands for more shards than this is a slip of the keyboard.
MAX_SHARDS = 1_000_000

_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_remote(path: str) -> bool:
    """Tell an address from a path."""
    return "://" in path


def addresses(path: str, store: Store) -> list[str]:
    """Return the addresses that a pattern of braces stands for, or that a text file lists.

    Lines of a remote file may be relative to it.

    Raises:
        ValueError: If there is none.
    """
    if not path.endswith(".txt"):
        found = list(islice(expand(path), MAX_SHARDS + 1))
    else:
        text = fetch_text(path, store)
        if text is None:
            raise ValueError(f"there is no {path}")
        above = path.rpartition("/")[0]
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        found = [line if is_remote(line) else f"{above}/{line}" for line in lines]
    local = next((address for address in found if not is_remote(address)), None)
    if local is not None:
        raise ValueError(
            f"{path} lists {local}, which is no address; for local shards give a folder"
        )
    own = {path.partition("://")[0], "https"}
    other = next((a for a in found if a.partition("://")[0] not in own), None)
    if is_remote(path) and other is not None:
        raise ValueError(f"{path} lists {other}; only shards of its own protocol or https are read")
    if not found or len(found) > MAX_SHARDS:
        raise ValueError(f"{path} names no shard, or too many; give 1 to {MAX_SHARDS:,}")
    return list(dict.fromkeys(found))


def expand(pattern: str) -> Iterator[str]:
    """Yield what a pattern of braces stands for: `{000..012}` counts, `{a,b}` lists.

    Raises:
        ValueError: If a brace is not closed, or a range is none.
    """
    before, brace, rest = pattern.partition("{")
    if not brace:
        yield pattern
        return
    depth, end = 1, 0
    while depth:
        if end == len(rest):
            raise ValueError(f"a brace is not closed in {pattern}")
        depth += {"{": 1, "}": -1}.get(rest[end], 0)
        end += 1
    inner, after = rest[: end - 1], rest[end:]
    counted = _RANGE.fullmatch(inner)
    if counted:
        first, last = counted.groups()
        if not 0 <= int(last) - int(first) < MAX_SHARDS:
            raise ValueError(f"{{{inner}}} is no range of shards; write {{000000..000009}}")
        width = len(first)
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = [c for choice in _split_choices(inner) for c in expand(choice)]
    for choice in choices:
        for tail in expand(after):
            yield f"{before}{choice}{tail}"


def _split_choices(text: str) -> list[str]:
    """Split at the commas that are inside no further brace."""
    choices, depth = [""], 0
    for letter in text:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and not depth:
            choices.append("")
        else:
            choices[-1] += letter
    return choices


def fetch_text(url: str, store: Store, *, or_refused: bool = False) -> str | None:
    """Return the text at an address or a path, or None if there is no such file.

    Some servers refuse what they do not have; with `or_refused` that is no file either.

    Raises:
        ValueError: If it cannot be fetched.
    """
    if not is_remote(url):
        return Path(url).expanduser().read_text(encoding="utf-8-sig")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text"
        try:
            store.download(Remote(url=url), path)
        except Missing:
            return None
        except Unavailable as error:
            if or_refused and isinstance(error, Refused):
                return None
            raise ValueError(f"{url} cannot be fetched: {error}") from error
        return path.read_text(encoding="utf-8-sig")
