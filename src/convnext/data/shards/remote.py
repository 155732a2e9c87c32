"""Remote data: shards at a URL that fsspec supports, found by an index or by their names.

    https://host/folder                            a folder with the shards.json of our converter
    https://host/train-{000000..000009}.tar        WebDataset shards by a pattern of their names
    https://host/shards.txt                        or by a list of them, one URL per line; it may be
                                                   a local file

Shards without an index are fetched once to make one, which is kept.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

from rich.console import Console

from convnext.data.samples import ImageListing
from convnext.data.shards import index as shard_index
from convnext.data.shards.index import Listed, Listing, Places, index_name, index_shard
from convnext.data.shards.layout import (
    Raw,
    agrees,
    choose_parts,
    class_lines,
    found_in,
    no_samples,
    resolve,
)
from convnext.data.shards.samples import TRIES, Shard, base_name
from convnext.data.shards.store import Missing, Refused, Remote, Store, Unavailable
from convnext.data.threads import for_each
from convnext.progress import safe_console

# Threads that fetch the small files of an index; they mostly wait.
THREADS = 16


class ShardSettings(Protocol):
    """Where copies of remote shards are kept, and how patiently they are fetched."""

    @property
    def shard_cache(self) -> str: ...
    @property
    def shard_cache_gb(self) -> float: ...
    @property
    def retries(self) -> int: ...
    @property
    def timeout(self) -> float: ...


def find_remote(
    path: str, loader: ShardSettings, *, console: Console | None = None
) -> ImageListing:
    """List the images at a URL; a message announces what is fetched, and where to.

    Raises:
        ValueError: If there is nothing, the protocol is unknown, or the index is damaged.
    """
    console = console or safe_console(Console(stderr=True))
    store = Store(
        loader.shard_cache,
        limit_gb=loader.shard_cache_gb,
        retries=loader.retries,
        timeout=loader.timeout,
    )
    store.forget_failures()
    note = (
        f"{path} is remote: its shards are fetched as they are needed and kept in {store.folder}, "
        f"up to {store.limit() / 1e9:,.3g} GB (--loader.shard_cache, --loader.shard_cache_gb)"
    )
    console.print(note, markup=False)
    notes, faults = [note], list[str]()
    if "{" in path or path.endswith((".tar", ".txt")):
        urls = addresses(path, store)
        # Indexes of older versions may call a test split validation.
        folder = store.folder / f"index-{_digest('train, val, test', *urls)}"
        if not (folder / shard_index.FILE).is_file():
            _build(path, urls, folder, store, console, notes)
        else:
            notes.append(f"its index is from an earlier run; remove {folder} to fetch it again")
    else:
        path = path.rstrip("/")
        folder = store.folder / f"index-{_digest(path)}"
        _fetch_listing(path, folder, store)
    listing = shard_index.read_listing(folder / shard_index.FILE, source=f"the index of {path}")
    shards = _indexed(path, folder, listing, store, console, faults)
    return found_in(path, listing.classes, shards, notes=notes, faults=faults, store=store)


def _fetch_listing(url: str, folder: Path, store: Store) -> None:
    """Fetch the index of a folder, which may have changed since the last run."""
    address = f"{url}/{shard_index.FILE}"
    try:
        store.download(Remote(url=address), folder / shard_index.FILE)
    except Missing as error:
        raise ValueError(
            f"there is no {address}: write the shards with `convnext data FOLDER --to-shards DIR`, "
            f"or name them yourself, such as {url}/train-{{000000..000009}}.tar, or "
            f"{url}/shards.txt with an address in each line"
        ) from error
    except Unavailable as error:
        raise ValueError(f"{address} cannot be fetched: {error}") from error
    listing = shard_index.read_listing(folder / shard_index.FILE, source=address)
    for entry in (entry for listed in listing.parts.values() for entry in listed):
        if is_remote(entry.name) and _protocol(entry.name) not in (_protocol(url), "https"):
            raise ValueError(
                f"{address} lists {entry.name}; only shards of its own protocol or https are read"
            )


def _indexed(
    url: str,
    folder: Path,
    listing: Listing,
    store: Store,
    console: Console,
    faults: list[str],
) -> list[Shard]:
    """Return the listed shards with the places of their images, fetching new indexes."""
    entries = [(part, entry) for part, listed in listing.parts.items() for entry in listed]
    shards: list[Shard | None] = [None] * len(entries)
    problems: list[str] = []
    unavailable: list[str] = []

    def read(number: int) -> None:
        part, entry = entries[number]
        address = entry.name if is_remote(entry.name) else f"{url}/{entry.name}"
        name = f"{part}-{_digest(address, entry.sha256 or str(entry.num_bytes))}.idx"
        index = folder / name
        try:
            places = _read(index, listing, entry)
            if places is None:
                store.download(Remote(url=index_name(address)), index)
                places = _read(index, listing, entry)
            if places is None:
                index.unlink(missing_ok=True)
                raise ValueError("its .idx belongs to another shard or is damaged")
        except Unavailable as error:
            if not isinstance(error, Missing):
                unavailable.append(f"{index_name(address)} cannot be fetched: {error}")
                return
            problems.append(f"{address} is left out: it has no .idx")
            return
        except ValueError as error:
            problems.append(f"{address} is left out: {error}")
            return
        remote = Remote(url=address, num_bytes=entry.num_bytes, sha256=entry.sha256)
        shards[number] = Shard(title=address, part=part, file=remote, places=places, index=index)

    for_each(read, len(entries), "fetching the index", console=console, threads=THREADS)
    if unavailable:
        # A server error must not change the data set: other processes and a resumed run would see
        # another one.
        raise ValueError(
            f"{min(unavailable)}. Try again; the index of {len(entries) - len(unavailable):,} of "
            f"{len(entries):,} shards is kept"
        )
    faults += sorted(problems)
    found = [shard for shard in shards if shard is not None]
    if not any(len(shard.places) for shard in found):
        raise ValueError(no_samples(url, len(entries), faults))
    return found


def _read(index: Path, listing: Listing, entry: Listed) -> Places | None:
    try:
        places = shard_index.read_places(index, num_classes=len(listing.classes))
    except (ValueError, OSError):
        return None
    return places if agrees(places, entry) else None


def _build(
    path: str,
    urls: list[str],
    folder: Path,
    store: Store,
    console: Console,
    notes: list[str],
) -> None:
    """Fetch every shard once to list its images, and write the index to `folder`."""
    parts_of = dict(zip(urls, choose_parts([base_name(url) for url in urls], notes), strict=True))
    urls = [url for url in urls if parts_of[url]]
    console.print(
        f"there is no index of {path}: {len(urls):,} shards are fetched once to make one",
        markup=False,
    )
    raws: list[Raw | None] = [None] * len(urls)
    failures: list[str] = []

    def read(number: int) -> None:
        if failures:
            return
        for attempt in range(TRIES):
            try:
                tar = store.get(Remote(url=urls[number]))
                size, index = tar.stat().st_size, index_shard(tar, title=urls[number])
                raws[number] = Raw(urls[number], size, index)
                return
            except OSError as error:
                # The shard was removed to make room before it was read.
                if not isinstance(error, FileNotFoundError) or attempt + 1 == TRIES:
                    failures.append(f"{urls[number]} cannot be fetched: {error}")
                    return

    for_each(read, len(urls), "fetching shards", console=console, threads=4)
    if failures:
        raise ValueError(
            f"{failures[0]}. Without it {path} cannot be indexed: try again (what was fetched is "
            "kept), or leave it out of the pattern or the list"
        )
    read_raws = [raw for raw in raws if raw is not None]
    faults = [fault for raw in read_raws for fault in raw.index.faults]
    if not any(raw.index.images for raw in read_raws):
        raise ValueError(no_samples(path, len(urls), faults))
    notes += faults
    classes, places = resolve(read_raws, _remote_classes(urls[0], store), path, notes)
    parts: dict[str, list[Listed]] = {}
    for raw, of_shard in zip(read_raws, places, strict=True):
        part = parts_of[raw.title]
        digest = _digest(raw.title, str(raw.num_bytes))
        shard_index.write_places(folder / f"{part}-{digest}.idx", of_shard)
        entry = Listed(name=raw.title, num_images=len(of_shard), num_bytes=raw.num_bytes)
        parts.setdefault(part, []).append(entry)
    listing = Listing(classes=classes, parts={p: tuple(e) for p, e in parts.items()})
    shard_index.write_listing(folder / shard_index.FILE, listing)


def _remote_classes(url: str, store: Store) -> tuple[str, ...] | None:
    """Return the classes in the `classes.txt` beside a shard, or None if there is none."""
    address = f"{url.rpartition('/')[0]}/classes.txt"
    text = fetch_text(address, store, or_refused=True)
    return None if text is None else class_lines(text, address)


def _protocol(url: str) -> str:
    return url.partition("://")[0]


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:24]


# A pattern for more shards than this is a typo.
MAX_SHARDS = 1_000_000

_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_remote(path: str) -> bool:
    """Tell a URL from a path."""
    return "://" in path


def addresses(path: str, store: Store) -> list[str]:
    """Return the URLs that a brace pattern expands to, or that a text file lists.

    Lines of a remote file may be relative to it.

    Raises:
        ValueError: If there are none.
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
            f"{path} lists {local}, which is not a URL; for local shards give a folder"
        )
    own = {path.partition("://")[0], "https"}
    other = next((a for a in found if a.partition("://")[0] not in own), None)
    if is_remote(path) and other is not None:
        raise ValueError(f"{path} lists {other}; only shards of its own protocol or https are read")
    if not found or len(found) > MAX_SHARDS:
        raise ValueError(f"{path} names no shard, or too many; give 1 to {MAX_SHARDS:,}")
    return list(dict.fromkeys(found))


def expand(pattern: str) -> Iterator[str]:
    """Expand a brace pattern: `{000..012}` counts, `{a,b}` lists.

    Raises:
        ValueError: If a brace is not closed, or a range is invalid.
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
            raise ValueError(f"{{{inner}}} is not a range of shards; write {{000000..000009}}")
        width = len(first)
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = [c for choice in _split_choices(inner) for c in expand(choice)]
    for choice in choices:
        for tail in expand(after):
            yield f"{before}{choice}{tail}"


def _split_choices(text: str) -> list[str]:
    """Split at the commas outside of inner braces."""
    choices, depth = [""], 0
    for letter in text:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and not depth:
            choices.append("")
        else:
            choices[-1] += letter
    return choices


def fetch_text(url: str, store: Store, *, or_refused: bool = False) -> str | None:
    """Return the text at a URL or a path, or None if there is no such file.

    Some servers refuse access to missing files; with `or_refused` this also returns None.

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
