"""Reading a file of weights safely, and writing one. The bytes determine the kind, not the name.

A header must agree with the size of its file, and tensors must be finite floating point numbers.
Every error names the file and says what to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from convnext.atomic import atomic_write
from convnext.weights.checkpoint import Card
from convnext.weights.pickles import read_pickle

# Metadata key of the digest in our own files.
DIGEST = "sha256"

# The limit of the safetensors library itself.
MAX_HEADER_BYTES = 100_000_000

_LEARNED = ("weight", "bias", "gamma", "layer_scale", "layer_scale_parameter")


def read_file(path: str | Path, *, ema: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of weights.

    Args:
        path: A `.safetensors`, `.pth`, `.pt`, `.bin` or `.ckpt` file.
        ema: Use the moving average of the weights if a file has both.

    Returns:
        The tensors by their names in the file, on the CPU, and the metadata of a safetensors file.

    Raises:
        ValueError: If the file is missing, empty, damaged, not a checkpoint, not made of finite
            floating point numbers, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    metadata: dict[str, str] = {}
    kind = _kind(path)
    if kind == "safetensors":
        if ema:
            raise ValueError(f"{path} is a safetensors file, which holds one set of weights")
        tensors, metadata = _read_safetensors(path)
    else:
        tensors = read_pickle(path, ema=ema)
    check_tensors(tensors, str(path))
    return tensors, metadata


def read_header(path: str | Path) -> tuple[list[str], dict[str, str]] | None:
    """Return the tensor names and the metadata of a safetensors file; None for any other file.

    Raises:
        ValueError: If the file is empty or damaged.
    """
    path = Path(path)
    if _kind(path) != "safetensors":
        return None
    header = _header(path)
    declared = header.pop("__metadata__", {})
    return list(header), {str(k): str(v) for k, v in declared.items()}


def check_tensors(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that no network can use.

    Raises:
        ValueError: If there are none, or some are integers, not finite, not dense, or larger than
            the memory that they were read from.
    """
    if not tensors:
        raise ValueError(f"{where} holds no tensors")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise ValueError(f"{where}: {name} is not a plain dense tensor; save it as one")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(
                f"{where}: {name} declares more numbers than there are; fetch it again"
            )
        if not tensor.is_floating_point():
            if name.rsplit(".", 1)[-1] in _LEARNED:
                raise ValueError(
                    f"{where}: {name} is {tensor.dtype}, but weights are floating point numbers; "
                    "a quantized file must be converted back first"
                )
        elif not _is_finite(tensor):
            raise ValueError(
                f"{where}: {name} contains NaN or infinity: a training that diverged, or a damaged "
                "file; take an earlier checkpoint or fetch it again"
            )


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], sign: bool = True
) -> None:
    """Write a safetensors file atomically; with `sign`, store a hash that reveals damage.

    Raises:
        OSError: If it cannot be written; the old file is kept.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    signature = {DIGEST: digest(plain, metadata)} if sign else {}
    with atomic_write(path) as temporary:
        try:
            save_file(plain, temporary, metadata={**metadata, **signature})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata in the header of a safetensors file, which the library writes unordered.

    Equal tensors with equal metadata then give the same bytes.

    Raises:
        ValueError: If the header does not have the length that the library gave it.
    """
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > length:
            raise ValueError(f"the header of {path} cannot be sorted in place")
        file.seek(8)
        file.write(text.ljust(length))


def save_checkpoint(path: str | Path, weights: Mapping[str, Tensor], card: Card) -> None:
    """Write weights and their card to one safetensors file, atomically."""
    save_tensors(path, weights, card.to_metadata())


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of tensors and metadata, as hexadecimal digits.

    It covers names, types, shapes and all bytes; an entry `sha256` of the metadata is left out.
    """
    rest = {key: value for key, value in metadata.items() if key != DIGEST}
    found = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite: min and max show it, since both propagate NaN."""
    if not tensor.numel():
        return True
    # torch has no aminmax for types of one byte.
    low, high = torch.aminmax(tensor if tensor.element_size() > 1 else tensor.float())
    return bool(low.isfinite() & high.isfinite())


def _kind(path: Path) -> str:
    """Return "safetensors" or "pickle", judging by the first bytes of a file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if size == 0:
        raise ValueError(f"{path} is empty; fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull`")
    if head.lstrip().startswith(b"<"):
        raise ValueError(
            f"{path} is a web page, probably the error page of a download; fetch the file again"
        )
    # The header length may begin with the same byte as a pickle.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "pickle"
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return "safetensors"
    raise ValueError(
        f"{path} is not a checkpoint: neither safetensors nor written by torch.save "
        f"(it begins with {head[:8]!r})"
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = _header(path)
    declared = header.get("__metadata__", {})
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not a valid safetensors file ({error}); fetch it again"
        ) from error
    metadata = {str(k): str(v) for k, v in declared.items()}
    if DIGEST in metadata and digest(tensors, metadata) != metadata[DIGEST]:
        raise ValueError(
            f"{path} is damaged: its bytes do not have the hash that was stored with them; take an "
            "earlier checkpoint or fetch it again"
        )
    return tensors, metadata


def _header(path: Path) -> dict[str, dict[str, object]]:
    """Return the JSON header of a safetensors file, after checking it against the file size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(
                f"{path} declares a header of {length:,} bytes but has {size:,} in all: truncated, "
                "or not a safetensors file; fetch it again"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.setdefault("__metadata__", {}).items()  # An object, like the rest.
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        declared = max((int(entry["data_offsets"][1]) for entry in entries), default=0)
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} has a damaged safetensors header; fetch it again") from error
    held = size - 8 - length
    if declared != held:
        raise ValueError(
            f"{path} declares {declared:,} bytes of tensors but holds {held:,}: truncated or "
            "damaged; fetch it again"
        )
    assert isinstance(header, dict)
    return header
