"""What a source of weights means: a path, a tag, or a hub id."""

from __future__ import annotations

import sys
from difflib import get_close_matches
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
        raise ValueError(f"there is no file or folder {source}{_nearest_path(path)}")
    if "://" in text:
        raise ValueError(f"{source} is an address; fetch the file yourself and give its path")
    if (entry := find_published(text, model)) is not None:
        _, _, revision = text.partition("@")
        return download(entry.hub_id, revision=revision or None)
    if "/" in text:
        repo_id, _, revision = hub_id(text).partition("@")
        return download(repo_id, revision=revision or None)
    if model.startswith("timm/"):
        return download(f"{model}.{text}")
    tags = [entry.tag for entry in published(model)]
    if not tags:
        about = f"no weights are published for {model}: " if model else ""
        raise ValueError(
            f"{about}{text!r} is not a run, a file or a folder{_nearest_path(path)} (a hub id is "
            "owner/name)"
        )
    raise ValueError(
        f"{model} has no weights {text!r}{nearest(text, tags)} (a file, a folder or a hub id will "
        "also do)"
    )


def hub_id(text: str) -> str:
    """Return the hub id that a name stands for, after saying that the hub will be asked.

    Args:
        text: `hf:owner/name`, or `owner/name` if no folder is called nearly so.

    Raises:
        ValueError: If it is rather the path of a run that does not exist.
    """
    if text.startswith("hf:"):
        return text.removeprefix("hf:")
    path = Path(text)
    owner = path.parts[0]
    here = sorted(folder.name for folder in Path().iterdir() if folder.is_dir())
    alike = get_close_matches(owner, here, n=1, cutoff=0.75)
    if len(path.parts) != 2 or alike:
        raise ValueError(f"there is no such run, file or folder {text}{_nearest_path(path)}")
    print(f"{text} is not a path here: asking the hub for it", file=sys.stderr)
    return text


def _nearest_path(path: Path) -> str:
    """Return `"; did you mean 'runs/first'?"` for a path with a mistake in one of its parts."""
    found = Path()
    for part in path.parts:
        names = [entry.name for entry in found.iterdir()] if found.is_dir() else []
        close = [part] if part in names else get_close_matches(part, names, n=1, cutoff=0.5)
        if not close:
            return ""
        found /= close[0]
    return f"; did you mean {str(found)!r}?"


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
