"""Files from the Hugging Face hub, by way of its cache; nothing is fetched without saying so."""

from __future__ import annotations

import sys
from pathlib import Path

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weights on the hub, the one to prefer first."""


def download(repo_id: str, filename: str | None = None, *, revision: str | None = None) -> Path:
    """Return a file of a hub repository, from the cache where it is there.

    Args:
        repo_id: `owner/name`.
        filename: A file of the repository; by default its weights, safetensors if it has them.
        revision: A branch, tag or commit.

    The environment variables of the hub hold: HF_HUB_CACHE (where the cache is), HF_HUB_OFFLINE
    (never go online), HF_ENDPOINT (a mirror). One line on standard error says what is fetched.

    Raises:
        ValueError: If the file is neither in the cache nor to be had; says where to put it.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    names = (filename,) if filename else WEIGHT_FILES
    cache = Path(constants.HF_HUB_CACHE)
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
    """Return " (114 MB)" where the hub tells; a courtesy, so no failure of it is an error."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        size = get_hf_file_metadata(hf_hub_url(repo_id, filename, revision=revision)).size
    except Exception:  # Every version of the hub's client has its own; the download speaks next.
        return ""
    return f" ({size / 1e6:.0f} MB)" if size else ""


def _absent(repo_id: str, names: tuple[str, ...], cache: Path, reason: str) -> str:
    owner, _, name = repo_id.partition("/")
    return (
        f"{' or '.join(names)} of {repo_id} is not in the cache {cache}, {reason}; fetch it on a "
        f"machine that is online (`hf download {repo_id}`) and copy the folder "
        f"{cache / f'models--{owner}--{name}'}, or give the path of the file as the weights"
    )
