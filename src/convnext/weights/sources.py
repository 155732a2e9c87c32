"""What a source of weights means: a path, a tag, or a hub id."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from convnext.names import nearest
from convnext.weights.files import read_file
from convnext.weights.hub import WEIGHT_FILES, download
from convnext.weights.published import find_published, published

_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def read_source(
    source: str | Path, *, model: str = "", ema: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a source, and the metadata of a safetensors file.

    Args:
        source: A file, a run folder, a folder with weights, a tag of `model`, a name and tag as
            timm writes them ("convnext_tiny.fb_in1k"), or a hub id.
        model: The network that a tag is looked up for.
        ema: Take the moving average of the weights where a file has both.

    Raises:
        ValueError: If the source is unknown, absent or unreadable.
    """
    return read_file(locate(source, model=model), ema=ema)


def locate(source: str | Path, *, model: str = "") -> Path:
    """Return the file of a source, fetched from the hub if that is where it is.

    Raises:
        ValueError: If there is none.
    """
    text, path = str(source), Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return path
    if isinstance(source, Path) or text.endswith(_ENDINGS) or text.startswith((".", "/", "~")):
        raise ValueError(f"there is no file or folder {source}")
    if "://" in text:
        raise ValueError(f"{source} is an address; fetch the file yourself and give its path")
    if (entry := find_published(text, model)) is not None:
        _, _, revision = text.partition("@")
        return download(entry.hub_id, revision=revision or None)
    if "/" in text:
        repo_id, _, revision = text.partition("@")
        return download(repo_id, revision=revision or None)
    if model.startswith("timm/"):
        return download(f"{model}.{text}")
    tags = [entry.tag for entry in published(model)]
    if not tags:
        raise ValueError(
            f"no weights are published for {model or 'a network without a name'}: {text!r} is "
            "neither a file nor a folder, nor a hub id (owner/name)"
        )
    raise ValueError(
        f"{model} has no weights {text!r}{nearest(text, tags)} (a file, a folder or a hub id will "
        "also do)"
    )


def _in_folder(folder: Path) -> Path:
    """Return the weights in a run folder, a snapshot of the hub, or a repository in its cache."""
    from convnext.weights.checkpoint import find_checkpoint

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
    what = f"{len(found)} files of weights, name one" if found else "no weights"
    raise ValueError(f"{folder} holds {what}")
