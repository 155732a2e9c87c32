"""Downloads, each of which is announced: images at a URL, and data sets of the Hugging Face hub.

Images are fetched over http and https only, with limits on size and time. A data set is fetched
only if the user names it.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urljoin, urlsplit

from convnext.data.formats.paths import split_of, split_of_path
from convnext.data.images import BadImage, readable_extensions
from convnext.documents import parse_yaml
from convnext.names import count_noun, nearest, portable_name, printable
from convnext.progress import counted, progress_bar, safe_console

Notice = Callable[[str], None]
# A slow download is given up after this many times the timeout.
PATIENCE = 10
CHUNK = 64 * 2**10


def to_stderr(line: str) -> None:
    """Print a line on standard error."""
    print(printable(line), file=sys.stderr, flush=True)


def is_url(name: object) -> bool:
    """Whether a name begins with a scheme and "://"; a Windows drive does not count."""
    return isinstance(name, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name) is not None


@dataclass(frozen=True, kw_only=True)
class Download:
    """Limits on downloads."""

    notice: Notice = to_stderr
    max_bytes: int = 64 * 2**20
    timeout: float = 30.0
    """Seconds that a server may be silent; a download may take `PATIENCE` times as long."""

    def check(self, url: str) -> None:
        """Refuse a bad URL before anything else runs.

        Raises:
            ValueError: If it is not http or https, or holds a password.
        """
        parts = urlsplit(url)
        if parts.scheme.lower() not in ("http", "https"):
            hint = "; pass the path instead" if parts.scheme.lower() == "file" else ""
            raise ValueError(f"{url}: images are fetched over http and https only{hint}")
        if not parts.hostname:
            raise ValueError(f"{url} names no server")
        if "@" in parts.netloc:
            shown = url.replace(parts.netloc, parts.netloc.rpartition("@")[2])
            raise ValueError(f"{shown}: a URL with a user name or password is not fetched")

    def fetch(self, url: str) -> bytes:
        """Return the content of a URL.

        Raises:
            BadImage: If it cannot be fetched within the limits; the message says why.
        """
        self.check(url)
        self.notice(f"fetching {url}")
        end = time.monotonic() + PATIENCE * self.timeout
        request = urllib.request.Request(
            url, headers={"User-Agent": "convnext", "Accept": "image/*"}
        )
        try:
            with _opener(end).open(request, timeout=self.timeout) as response:
                return self._read(url, response)
        except urllib.error.HTTPError as error:
            with error:
                raise BadImage(url, f"the server answered {error.code} {error.reason}") from error
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, BadImage):
                raise
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(cause, _TooLongError):
                seconds = PATIENCE * self.timeout
                raise BadImage(url, f"it took longer than {seconds:g} seconds") from error
            if isinstance(cause, TimeoutError):
                raise BadImage(
                    url, f"the server was silent for {self.timeout:g} seconds"
                ) from error
            raise BadImage(url, f"it cannot be fetched ({cause})") from error

    def _read(self, url: str, response: Any) -> bytes:
        limit = f"more than {self.max_bytes / 2**20:,.4g} MB are refused"
        declared = response.headers.get("Content-Length", "")
        if declared.isdigit() and int(declared) > self.max_bytes:
            raise BadImage(url, f"it has {int(declared) / 2**20:,.4g} MB; {limit}")
        content = bytearray()
        while chunk := response.read1(CHUNK):
            content += chunk
            if len(content) > self.max_bytes:
                raise BadImage(url, f"it is too large; {limit}")
        if declared.isdigit() and len(content) < int(declared):
            raise BadImage(url, f"the server sent {len(content):,} of {int(declared):,} bytes")
        return bytes(content)


class _TooLongError(TimeoutError):
    """The download has taken longer than all of it may."""


class _Timed(io.RawIOBase):
    """Bytes from a socket until a time: headers may drip as slowly as content."""

    def __init__(self, raw: io.RawIOBase, end: float) -> None:
        self._raw, self._end = raw, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self._end:
            raise _TooLongError
        return cast("int | None", self._raw.readinto(buffer))

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: Any, *args: Any, end: float, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Timed(cast(Any, self.fp).detach(), end))


class _Connections(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections over http and https from which nothing is read after a time."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self._end = end

    def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
        def connect(host: str, **given: Any) -> Any:
            connection = http_class(host, **given)
            connection.response_class = partial(_Response, end=self._end)
            return connection

        return super().do_open(cast(Any, connect), req, **options)


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, and to nothing else."""

    def http_error_302(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
    ) -> Any:
        target = headers.get("location", "")
        if urlsplit(urljoin(req.full_url, target)).scheme.lower() not in ("http", "https"):
            fp.close()
            raise BadImage(req.full_url, f"it redirects to {target}, which is not http or https")
        return super().http_error_302(req, fp, code, msg, headers)

    # The base class also has one function under these names.
    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener(end: float) -> urllib.request.OpenerDirector:
    """Return an opener without urllib's default handlers of files, ftp and data."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Connections(end),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _WebOnly(),
    ):
        opener.add_handler(handler)
    return opener


def file_name(url: str) -> str:
    """Return the last part of a URL's path without its extension, or "image" if it is empty."""
    return Path(urlsplit(url).path).stem or "image"


# Endings of files of a data set, besides images.
_TABLES_OF_IMAGES = (".parquet", ".arrow")
_TEXTS = (".csv", ".tsv", ".jsonl", ".json", ".txt", ".xml", ".yaml", ".yml")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".rar", ".7z")
# Where a copy keeps the card of its repository and its commit; readers pass hidden folders.
_ABOUT = ".hub"
_THREADS = 8
# With this many files or fewer, each shows its own progress.
_FEW = 16
# train-00000-of-00003.parquet, 0000.parquet
_NUMBER = re.compile(r"[-_.]?\d+(-of-\d+.*)?$")


def local_data(path: str) -> str:
    """Return the folder of a data set `hf:owner/name`, fetched if needed, and any other path as is.

    To be called with what the user gives, never with a path from a file of somebody else.

    Raises:
        ValueError: As for `hub_data`.
    """
    is_hub = path.startswith("hf:") and not path.startswith("hf://")
    return str(hub_data(HubName.parse(path))) if is_hub else path


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A data set on the Hugging Face hub."""

    repo: str
    config: str = ""
    """One of the data sets that a repository holds."""
    revision: str = ""
    """A branch, tag or commit; "" for the branch `main`."""

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Parse `hf:owner/name`, perhaps with `/config` and `@revision`.

        Raises:
            ValueError: If it is something else.
        """
        word = r"[A-Za-z0-9_-][\w.-]*"
        pattern = rf"hf:(?P<repo>{word}/{word})(/(?P<config>[^@]+))?(@(?P<revision>.+))?"
        found = re.fullmatch(pattern, text, re.ASCII)
        if found is None:
            raise ValueError(
                f"{text!r} does not name a data set of the hub; write hf:OWNER/NAME, perhaps with "
                "/CONFIG or @REVISION"
            )
        return cls(**{key: value for key, value in found.groupdict().items() if value})

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return f"hf:{self.repo}{config}" + (f"@{self.revision}" if self.revision else "")

    def folder(self) -> Path:
        """Return the folder of its copy in the user's cache."""
        from convnext.hardware.system import cache_folder

        owner, _, name = self.repo.partition("/")
        revision = _folder_name(self.revision or "main")
        config = f"--{_folder_name(self.config)}" if self.config else ""
        return cache_folder() / "datasets" / owner / revision / (name + config)


def _folder_name(text: str) -> str:
    """Return the name of a folder for a text; that of every other text is another one."""
    name = portable_name(text)
    return name if name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def hub_data(name: HubName, *, notice: Notice = to_stderr) -> Path:
    """Return the folder of a data set of the hub, fetched unless there is a copy of it.

    Images, tables and annotations are fetched as real files. No code of a repository is fetched,
    and archives are not unpacked. The hub's environment variables apply, such as HF_HUB_OFFLINE
    and HF_ENDPOINT.

    Args:
        name: The data set.
        notice: Called with lines on what is used, fetched or left out.

    Raises:
        ValueError: If it cannot be fetched, or has no files that can be read.
    """
    from filelock import FileLock

    target = name.folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Of several processes of a run, one fetches and the others wait.
    with FileLock(target.with_name(f".{target.name}.lock")):
        if not target.is_dir():
            _fetch(name, target, notice)
            return target
    commit = target / _ABOUT / "commit"
    which = f" of the commit {commit.read_text()[:12]}" if commit.is_file() else ""
    notice(
        f"{name}: the copy{which} in {target} is used; remove this folder to fetch the data again"
    )
    return target


def _fetch(name: HubName, target: Path, notice: Notice) -> None:
    """Fetch the files of a data set into a folder that appears when it is complete.

    Raises:
        ValueError: If they cannot be fetched, or there are none that can be read.
    """
    from huggingface_hub import constants, dataset_info, hf_hub_download

    if constants.HF_HUB_OFFLINE:
        raise ValueError(
            f"{name} is not in the cache, and HF_HUB_OFFLINE forbids fetching it: fetch it on a "
            f"machine that is online (`convnext data {name}`), and copy the folder {target}"
        )
    with _asking(name):
        info = dataset_info(name.repo, revision=name.revision or None, files_metadata=True)
    commit = info.sha or ""
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    draft = _draft(target, commit[:12])

    def get(file: str, folder: Path) -> Path:
        with _asking(name):
            path = hf_hub_download(
                name.repo, file, repo_type="dataset", revision=commit or None, local_dir=folder
            )
        return Path(path)

    card = get("README.md", draft / _ABOUT) if "README.md" in sizes else None
    split_of_file = _wanted(name, _configs(card, notice), sizes, notice)
    files = sorted(split_of_file)
    total = sum(sizes[file] for file in files)
    free = shutil.disk_usage(target.parent).free
    if total > free:
        raise ValueError(
            f"{name} has {total / 1e9:,.3g} GB, but only {free / 1e9:,.3g} GB are free in "
            f"{target.parent}; XDG_CACHE_HOME names another folder for the cache"
        )
    size = f"{total / 1e9:,.3g} GB" if total >= 1e9 else f"{total / 1e6:,.3g} MB"
    notice(
        f"fetching {count_noun(len(files), 'file')} ({size}) of {name} from {constants.ENDPOINT} "
        f"into {target}"
    )
    _fetch_all(files, lambda file: get(file, draft))
    for file in files:
        path = draft / file
        is_whole = sizes[file] in (0, path.stat().st_size) if path.is_file() else False
        if path.is_symlink() or not is_whole:
            raise ValueError(f"{name}: {file} did not arrive as a file of {sizes[file]:,} bytes")
    _name_splits(draft, split_of_file, notice)
    shutil.rmtree(draft / ".cache", ignore_errors=True)  # The notes of the hub's library.
    shutil.rmtree(draft / _ABOUT / ".cache", ignore_errors=True)
    (draft / _ABOUT).mkdir(exist_ok=True)
    (draft / _ABOUT / "commit").write_text(commit)
    draft.rename(target)


def _draft(target: Path, commit: str) -> Path:
    """Return the unfinished folder of a commit, and remove those of other commits."""
    draft = target.with_name(f".{target.name}.{commit}")
    for old in target.parent.iterdir():
        is_draft = re.fullmatch(rf"\.{re.escape(target.name)}\.[0-9a-f]{{12}}", old.name)
        if is_draft and old != draft:
            shutil.rmtree(old)
    return draft


def _fetch_all(files: Sequence[str], get: Callable[[str], object]) -> None:
    """Fetch files in a few threads, with one progress bar if they are many."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars
    from rich.console import Console

    is_quiet = len(files) > _FEW and constants.HF_HUB_DISABLE_PROGRESS_BARS is None
    console = safe_console(Console(stderr=True)) if is_quiet else None
    if is_quiet:
        disable_progress_bars()
    pool = ThreadPoolExecutor(_THREADS)
    try:
        with progress_bar("fetching", len(files), console) as advance:
            for _ in counted(pool.map(get, files), advance):
                pass
    finally:
        pool.shutdown(cancel_futures=True)
        if is_quiet:
            enable_progress_bars()


@contextmanager
def _asking(name: HubName) -> Iterator[None]:
    """Turn what the hub's library raises into an error that says what to do.

    Raises:
        ValueError: If the hub has no such data set, keeps it closed, or cannot be reached.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise ValueError(
            f"{name} asks for consent: accept its terms on its page, and log in with `hf auth "
            "login`"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        at = f" with the revision {name.revision}" if name.revision else ""
        raise ValueError(
            f"the hub has no public data set {name.repo}{at}; check its name, or log in with `hf "
            "auth login` if it is private"
        ) from error
    except Exception as error:  # Types vary between versions of the client.
        text = " ".join(str(error).split())
        raise ValueError(
            f"{name} cannot be fetched from {constants.ENDPOINT} ({type(error).__name__}: {text}); "
            "the same command continues where it ended"
        ) from error


@dataclass(frozen=True, kw_only=True)
class _Config:
    """A data set that the card of a repository describes."""

    is_default: bool
    patterns: Sequence[tuple[str, str]]
    """The split and the pattern of files."""


def _configs(card: Path | None, notice: Notice) -> dict[str, _Config]:
    """Return the data sets that a card describes in its first lines, by their names."""
    text = "" if card is None else card.read_text(encoding="utf-8", errors="replace")
    found = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if found is None:
        return {}
    import yaml

    try:
        tree = parse_yaml(found[1])
    except yaml.YAMLError as error:
        notice(f"the card of the data set is not read, since it is not YAML: {error}")
        return {}
    listed = tree.get("configs") if isinstance(tree, dict) else None
    configs = {}
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("config_name"), str):
            folder = str(entry.get("data_dir") or "").strip("./")
            below = f"{folder}/" if folder else ""
            patterns = _patterns(entry.get("data_files") or "**")
            configs[entry["config_name"]] = _Config(
                is_default=entry.get("default") is True or entry["config_name"] == "default",
                patterns=[(split, below + path.removeprefix("./")) for split, path in patterns],
            )
    return configs


def _patterns(files: Any, split: str = "") -> list[tuple[str, str]]:
    """Return the splits and patterns of `data_files` of a card, in any of its forms."""
    if isinstance(files, str):
        return [(split, files)]
    if isinstance(files, list):
        return [pair for entry in files for pair in _patterns(entry, split)]
    if isinstance(files, dict) and "path" in files:
        return _patterns(files["path"], str(files.get("split") or split))
    if isinstance(files, dict):
        return [pair for name, entry in files.items() for pair in _patterns(entry, str(name))]
    return []


def _matching(pattern: str, files: Iterable[str]) -> list[str]:
    """Return the files that a pattern means, or those of the folder that it names."""
    wanted = pattern.strip("/").split("/")
    return [
        file
        for file in files
        if _matches(wanted, file.split("/")) or file.startswith(f"{pattern.rstrip('/')}/")
    ]


def _matches(wanted: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern, in which `**` means any number."""
    reached = {0}
    for part in wanted:
        if part == "**":
            reached = {*range(min(reached, default=0), len(parts) + 1)} if reached else reached
        else:
            reached = {i + 1 for i in reached if i < len(parts) and fnmatchcase(parts[i], part)}
    return len(parts) in reached


def _wanted(
    name: HubName, configs: Mapping[str, _Config], sizes: Mapping[str, int], notice: Notice
) -> dict[str, str]:
    """Return the files to fetch, each with its split by the card or "".

    Raises:
        ValueError: If it is not clear which data set is meant, or no file can be read.
    """
    chosen = _chosen(name, configs, [*sizes], notice)
    images = readable_extensions()
    kept = {file: split for file, split in chosen.items() if _is_data(file, images)}
    if not any(_ending(file) in (*images, *_TABLES_OF_IMAGES) for file in kept):
        # The card may list a table alone, and not the images beside it.
        kept |= {file: "" for file in sizes if _ending(file) in images and _is_data(file, images)}
    left = Counter(
        _ending(file) or "no ending"
        for file in chosen
        if file not in kept and not re.match(r"\.\w|README.md$", file)
    )
    listed = ", ".join(f"{count:,} {ending}" for ending, count in left.most_common(8))
    if not any(_ending(file) in (*images, *_TABLES_OF_IMAGES) for file in kept):
        raise ValueError(
            f"{name} has neither images nor Parquet or Arrow files ({listed or 'no files'})"
            + _advice(name, left)
        )
    if left:
        notice(f"{name}: files that are not fetched: {listed}{_advice(name, left)}")
    return kept


def _ending(file: str) -> str:
    return Path(file).suffix.lower()


def _is_data(file: str, images: Container[str]) -> bool:
    """Whether a file of a repository is of a known kind, and its name stays in the folder."""
    parts = file.split("/")
    is_plain = all(part and not part.startswith(".") for part in parts)
    is_known = _ending(file) in images or _ending(file) in (*_TABLES_OF_IMAGES, *_TEXTS)
    is_safe = is_plain and re.search(r"[\\:\x00-\x1f]", file) is None
    return is_safe and is_known and file != "dataset_infos.json"


def _advice(name: HubName, left: Container[str]) -> str:
    if any(ending in left for ending in _ARCHIVES):
        return (
            f"; archives are not unpacked: fetch them with `hf download {name.repo} --repo-type "
            "dataset --local-dir DIR`, unpack them there and give --data DIR; shards are read as "
            f"--data hf://datasets/{name.repo}/train-{{0000..0009}}.tar"
        )
    if ".py" in left and not name.revision:
        return (
            f"; its script is not run: the hub may keep its tables as Parquet, --data "
            f"hf:{name.repo}@refs/convert/parquet"
        )
    return ""


def _chosen(
    name: HubName, configs: Mapping[str, _Config], files: Sequence[str], notice: Notice
) -> dict[str, str]:
    """Return the files of the data set that a name means, each with its split by the card or "".

    Raises:
        ValueError: If the repository has no such data set, or several without a default.
    """
    config = name.config
    if config and config not in configs:
        below = {file: "" for file in files if file.startswith(f"{config}/")}
        if below:
            return below
        known = [*configs] or sorted({file.split("/")[0] for file in files if "/" in file})
        raise ValueError(f"hf:{name.repo} has no part {config!r}{nearest(config, known)}")
    if not configs:
        return dict.fromkeys(files, "")
    if not config:
        default = [key for key, entry in configs.items() if entry.is_default]
        if not default and len(configs) > 1:
            shown = ", ".join(f"hf:{name.repo}/{key}" for key in [*configs][:10])
            raise ValueError(
                f"hf:{name.repo} holds {len(configs):,} data sets: give one of {shown}"
            )
        config = (default or [*configs])[0]
        others = [key for key in configs if key != config]
        if others:
            notice(
                f"{name} is its part {config!r}; hf:{name.repo}/NAME reads another: "
                f"{', '.join(others[:10])}"
            )
    found: dict[str, str] = {}
    for split, pattern in configs[config].patterns:
        matching = _matching(pattern, files)
        if not matching:
            raise ValueError(f"hf:{name.repo}: its card lists {pattern}, but it has no such file")
        found |= {file: split for file in matching if file not in found}
    return found


def _name_splits(folder: Path, split_of_file: Mapping[str, str], notice: Notice) -> None:
    """Move tables whose split only the card states into a folder of its name."""
    tables = {f: split for f, split in split_of_file.items() if _ending(f) in _TABLES_OF_IMAGES}
    if len({*tables.values()}) < 2:
        return
    for file, split in tables.items():
        own = split_of(_NUMBER.sub("", Path(file).stem)) or split_of_path(file)
        meant = split_of(split)
        if own is None and meant is not None:
            named = folder / meant / file
            named.parent.mkdir(parents=True, exist_ok=True)
            (folder / file).rename(named)
        elif own and meant and own != meant:
            notice(f"{file} is read as {own} by its name, though the card calls it {split}")
