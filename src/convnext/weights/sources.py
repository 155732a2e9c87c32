"""Sources of weights: a path, a tag, or a hub id; their cards and tensors; the hub and its cache.

Every download is announced. Imports torch only to read a file, so that mistakes in a name are found
at once. What is opened is data, a checked card and tensors: the tasks build the network from it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from convnext.names import nearest, nearest_path, printable
from convnext.weights.checkpoint import FORMAT, Card, find_checkpoint, is_exported
from convnext.weights.published import (
    PUBLISHED,
    PUBLISHED_DENSE,
    PublishedDense,
    find_published,
    find_published_dense,
    published,
    published_dense,
)

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of files of weights on the hub, in order of preference."""
_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def read_source(
    source: str | Path, *, model: str = "", backbone: str = "", ema: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a source, and the metadata of a safetensors file.

    Args:
        source: A file, a run folder, a folder with weights, a tag of `model`, a name and a tag as
            in timm ("convnext_tiny.fb_in1k"), or a hub id.
        model: The network that a tag belongs to.
        backbone: The backbone of a dense network, whose tags are accepted too.
        ema: Use the moving average of the weights if a file has both.

    Raises:
        ValueError: If the source is unknown, missing or unreadable.
    """
    from convnext.weights.files import read_file

    return read_file(locate(source, model=model, backbone=backbone), ema=ema)


def locate(source: str | Path, *, model: str = "", backbone: str = "") -> Path:
    """Return the file of a source, fetched from the hub if needed.

    Raises:
        ValueError: If there is none.
    """
    found = _resolve(source, model, backbone)
    return found if isinstance(found, Path) else found()


def check_source(source: str | Path, *, model: str = "", backbone: str = "") -> None:
    """Check that a source is valid, without fetching anything.

    Raises:
        ValueError: If it is a path that does not exist, or an unknown name.
    """
    _resolve(source, model, backbone)


def _resolve(source: str | Path, model: str, backbone: str) -> Path | Callable[[], Path]:
    """Return the file of a source, or a function that fetches it."""
    text, path, whole = str(source), Path(source).expanduser(), model
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return path
    if isinstance(source, Path) or text.endswith(_ENDINGS) or text.startswith((".", "/", "~")):
        raise ValueError(f"there is no file or folder {source}{nearest_path(path)}")
    if (dense := find_published_dense(text, model)) is not None:
        return _authors_file(dense)
    model = backbone or model
    if "://" in text:
        raise ValueError(f"{source} is a URL; download the file and give its path")
    if (entry := find_published(text, model)) is not None:
        _, _, revision = text.partition("@")
        return partial(download, entry.hub_id, revision=revision or None)
    if "/" in text:
        _check_hub_id(text)
        return partial(_ask_hub, text)
    if model.startswith("timm/"):
        return partial(download, f"{model}.{text}")
    tags = [entry.tag for entry in published_dense(whole)]
    tags += [entry.tag for entry in published(model)]
    if not tags:
        about = f"no weights are published for {whole}: " if whole else ""
        near = nearest_path(path) or ("" if whole else _nearest_published(text))
        raise ValueError(
            f"{about}{text!r} is not a run, a file or a folder{near} (a hub id is owner/name)"
        )
    raise ValueError(
        f"{whole} has no weights {text!r}{nearest(text, tags)} (a file, a folder or a hub id works "
        "too)"
    )


def _check_hub_id(text: str) -> None:
    """Check that a name is a hub id: `hf:owner/name`, or `owner/name` unlike any folder here.

    Raises:
        ValueError: If it looks like the path of a run that does not exist.
    """
    if text.startswith("hf:"):
        return
    path = Path(text)
    owner = path.parts[0]
    here = sorted(folder.name for folder in Path().iterdir() if folder.is_dir())
    # `runs` is the default folder of runs; before the first run it does not exist.
    alike = owner == "runs" or get_close_matches(owner, here, n=1, cutoff=0.75)
    if len(path.parts) != 2 or alike:
        raise ValueError(f"there is no such run, file or folder {text}{nearest_path(path)}")


def _ask_hub(text: str) -> Path:
    """Fetch `hf:owner/name`, or `owner/name` with a notice; a revision may follow after @."""
    if not text.startswith("hf:"):
        print(f"{printable(text)} is not a local path: looking for it on the hub", file=sys.stderr)
    repo_id, _, revision = text.removeprefix("hf:").partition("@")
    return download(repo_id, revision=revision or None)


def _nearest_published(text: str) -> str:
    """Return the weights of a network that is named without them, or the nearest full name."""
    names = [(e.model, e.tag) for e in PUBLISHED] + [(e.model, e.tag) for e in PUBLISHED_DENSE]
    own = [f"{model}.{tag}" for model, tag in names if model == text]
    if own:
        return f", but a network; name its weights too: {', '.join(own)}"
    network, _, asked = text.partition(".")
    close = get_close_matches(network, {model for model, _ in names}, n=1, cutoff=0.8)
    if not close:
        return ""
    tags = [tag for model, tag in names if model == close[0]]
    best = get_close_matches(asked, tags, n=1, cutoff=0.0) if asked else tags
    return f"; did you mean {f'{close[0]}.{best[0]}'!r}?"


def _authors_file(entry: PublishedDense) -> Path:
    """Return a file that is not on the hub, from torch's folder of downloaded checkpoints."""
    import torch

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / entry.filename
    if not path.is_file():
        raise ValueError(
            f"the weights {entry.tag} of {entry.model} are not on the hub: fetch {entry.url} and "
            f"put it into {folder}, or give the path of the file as the weights"
        )
    return path


def _in_folder(folder: Path) -> Path:
    """Return the weights in a run folder, a hub snapshot, or a repository in the hub's cache."""
    if (checkpoint := find_checkpoint(folder)) is not None:
        return checkpoint
    main = folder / "refs" / "main"
    if main.is_file():
        folder = folder / "snapshots" / main.read_text(encoding="utf-8").strip()
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in _ENDINGS)
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} files of weights; name one" if found else "no weights"
    raise ValueError(f"{folder} holds {what}")


def download(repo_id: str, *, revision: str | None = None) -> Path:
    """Return the weights of a hub repository, preferably as safetensors, from the cache if there.

    Args:
        repo_id: `owner/name`.
        revision: A branch, tag or commit.

    The hub's environment variables apply: HF_HUB_CACHE (the cache folder), HF_HUB_OFFLINE (never go
    online), HF_ENDPOINT (a mirror). A line on standard error announces each download.

    Raises:
        ValueError: If the file is not in the cache and cannot be fetched; says where to put it.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    names, cache = WEIGHT_FILES, Path(constants.HF_HUB_CACHE)
    try:
        for name in names:
            cached = try_to_load_from_cache(repo_id, name, cache_dir=cache, revision=revision)
            if isinstance(cached, str):
                return Path(cached)
        if constants.HF_HUB_OFFLINE:
            raise ValueError(
                _absent(repo_id, names, cache, "and HF_HUB_OFFLINE forbids fetching it")
            )
        for name in names:
            size = _size(repo_id, name, revision)
            print(
                f"fetching {name}{size} of {repo_id} from {constants.ENDPOINT} into {cache}",
                file=sys.stderr,
            )
            try:
                path = hf_hub_download(repo_id, name, revision=revision, cache_dir=cache)
            except LocalEntryNotFoundError as error:
                raise ValueError(
                    _absent(repo_id, names, cache, f"and {constants.ENDPOINT} cannot be reached")
                ) from error
            except EntryNotFoundError:
                continue
            return Path(path)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        where = f"{repo_id}@{revision}" if revision else repo_id
        raise ValueError(f"the hub has no public repository {where}; check its name") from error
    raise ValueError(f"{repo_id} on the hub has none of {', '.join(names)}")


def _size(repo_id: str, filename: str, revision: str | None) -> str:
    """Return " (114 MB)" if the hub gives the size; failures are ignored."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        size = get_hf_file_metadata(hf_hub_url(repo_id, filename, revision=revision)).size
    except Exception:  # Types vary between versions of the client; the download reports failures.
        return ""
    return f" ({size / 1e6:.0f} MB)" if size else ""


def _absent(repo_id: str, names: tuple[str, ...], cache: Path, reason: str) -> str:
    owner, _, name = repo_id.partition("/")
    return (
        f"{' or '.join(names)} of {repo_id} is not in the cache {cache}, {reason}; fetch it on a "
        f"machine that is online (`hf download {repo_id}`) and copy the folder "
        f"{cache / f'models--{owner}--{name}'}, or give the path of the file as the weights"
    )


def open_weights(source: str) -> tuple[Card | None, Mapping[str, Tensor]]:
    """Read a run, a checkpoint, a file of weights or a hub id.

    Returns:
        The card, or None for weights in a published layout; and the weights on the CPU.

    Raises:
        ValueError: If the source cannot be found or read.
    """
    path = find_checkpoint(source)
    tensors, metadata = read_source(path or source)
    card = None
    if metadata.get("format") == FORMAT:
        card = Card.from_metadata(metadata, where=str(path or source))
    return card, tensors


def card_or_none(source: str) -> Card | None:
    """Return the card of a run or a checkpoint, without reading the weights; None without a card.

    Raises:
        ValueError: If the file is damaged.
    """
    from convnext.weights.files import read_header

    path = None if is_exported(source) else find_checkpoint(source)
    header = None if path is None else read_header(path)
    if header is None or header[1].get("format") != FORMAT:
        return None
    return Card.from_metadata(header[1], where=str(path))


def names_of(source: str) -> list[str]:
    """Return the tensor names of a file, a run or a hub id; an empty list if it is not local.

    Nothing is downloaded for published weights.

    Raises:
        ValueError: If the source cannot be found or read.
    """
    from convnext.weights.files import read_header

    path = find_checkpoint(source)
    if path is None and find_published(source) is not None:
        return []
    header = None if path is None else read_header(path)
    return list(read_source(path or source)[0]) if header is None else header[0]
