"""Reading a file of weights safely, and writing one. The bytes determine the kind, not the name.

A header must agree with the size of its file, and tensors must be finite floating point numbers.
Every error names the file and says what to do.

Checkpoints that are pickles (`.pth`, `.pt`, `.bin`) are read without running any code in them:
`torch.load(weights_only=True)` builds tensors and plain containers and refuses everything else.
Published files also contain the arguments and the log of their training. Those names are allowed,
but each is replaced by `Inert`, an empty object, or by a plain dictionary: none of their code runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnext.atomic import atomic_write
from convnext.weights.checkpoint import DIGEST, Card


class Inert:
    """Replaces any object whose value does not matter; does nothing."""

    def __new__(cls, *_: object, **__: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# Written by the authors' training script, by numpy numbers in logs, and by mmengine and mmcv.
# (mmengine pickles the methods of its history buffer, for which pickle uses `getattr`.)
INERT = (
    "argparse.Namespace",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "builtins.getattr",
    "mmcv.utils.config.Config",
    "mmengine.config.config.Config",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.logging.message_hub.MessageHub",
    "pathlib.Path",
    "pathlib.PosixPath",
)

# Dictionaries of these packages: torch fills only plain ones item by item.
DICTIONARIES = (
    "addict.addict.Dict",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
)

_STAND_INS: list[Any] = [(Inert, name) for name in INERT]
_STAND_INS += [(OrderedDict, name) for name in DICTIONARIES]

_PLAIN = ("model", "state_dict", "model_state_dict", "module", "net", "network")
# Teachers of self-distillation are averages of their students.
_EMA = ("model_ema", "state_dict_ema", "ema_state_dict", "ema", "teacher")
_HARMLESS = frozenset({"collections.OrderedDict", "torch.Size", *INERT, *DICTIONARIES})

# Raised for bytes that are not an archive or a pickle.
_MALFORMED = (
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError, struct.error),
    *(RuntimeError, EOFError, OSError, zipfile.BadZipFile),
)


NOTE = "convnext.note"
"""The key under which the metadata of a file says which of its weights were taken."""


def read_pickle(
    path: Path, *, ema: bool = False, notes: list[str] | None = None
) -> dict[str, Tensor]:
    """Read the tensors of a pickled checkpoint.

    Args:
        path: The file, either a zip archive or a plain pickle from before torch 1.6.
        ema: Use the moving average of the weights if a file has both.
        notes: Gets a note if there are both.

    Raises:
        ValueError: If the file is damaged, holds no state dict, or would run code.
    """
    _check_archive(path)
    try:
        # Warnings concern old pickle formats; the file either loads all the same or is refused.
        with (
            torch.serialization.safe_globals(_STAND_INS),
            warnings.catch_warnings(action="ignore"),
        ):
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.findall(r"GLOBAL ([\w.]+)", str(error))
        unsafe = sorted({*refused, *(n for n in _globals(path) if not _is_harmless(n))})
        if unsafe:
            raise ValueError(
                f"{path} was not loaded: it refers to {', '.join(unsafe[:5])}, which is code and "
                "not weights; none of it was run; ask its author for a .safetensors file"
            ) from error
        raise ValueError(_damaged(path)) from error
    except _MALFORMED as error:
        raise ValueError(_damaged(path)) from error
    try:
        return find_state_dict(payload, str(path), ema=ema, notes=notes)
    except RecursionError as error:  # A dictionary that holds itself.
        raise ValueError(_damaged(path)) from error


def find_state_dict(
    payload: Any, where: str, *, ema: bool = False, notes: list[str] | None = None
) -> dict[str, Tensor]:
    """Find the tensors in a result of `torch.load`, under one of the usual keys or at the top.

    Args:
        payload: The result of `torch.load`.
        where: Its name in messages.
        ema: Use the moving average of the weights if there are both.
        notes: Gets a note if there are both.

    Raises:
        ValueError: If there is no state dict, or no moving average although `ema` is set.
    """
    held_in = payload if isinstance(payload, Mapping) else {}
    for key in _EMA if ema else _PLAIN:
        if isinstance(held_in.get(key), Mapping):
            average = next((k for k in _EMA if isinstance(held_in.get(k), Mapping)), None)
            if notes is not None and not ema and average is not None:
                notes.append(f"took {key!r}; {average!r} is available with ema=True")
            return find_state_dict(payload[key], where)
    keys = [str(key) for key in payload] if isinstance(payload, Mapping) else []
    if ema:
        raise ValueError(
            f"{where} has no moving average of the weights; it holds {', '.join(keys[:8])}"
        )
    tensors = (
        {str(k): v for k, v in payload.items() if isinstance(v, Tensor)}
        if isinstance(payload, Mapping)
        else {}
    )
    if tensors:
        return tensors
    averages = [key for key in _EMA if key in keys]
    if averages:
        return find_state_dict(payload, where, ema=True)
    held = f"the keys {', '.join(keys[:8])}" if keys else f"a {type(payload).__name__}"
    raise ValueError(f"{where} holds no state dict but {held}; save one with torch.save")


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than its own size: torch does not compress."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
    except _MALFORMED as error:
        raise ValueError(_damaged(path)) from error
    if declared > path.stat().st_size:
        raise ValueError(
            f"{path} declares {declared:,} bytes but holds {path.stat().st_size:,}; torch does not "
            "compress its archives, so this is not a checkpoint"
        )


def _globals(path: Path) -> set[str]:
    """Return every name that the pickles of a file import, without running them."""
    names: set[str] = set()
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.namelist() if m.endswith(".pkl")]
                for member in members:
                    _scan(pickletools.genops(archive.read(member)), names)
        else:
            with path.open("rb") as file:
                for _ in range(5):  # Magic number, version, system, state dict, storage keys.
                    _scan(pickletools.genops(file), names)
    except _MALFORMED:
        pass  # A damaged file: report the names found so far.
    return names


def _scan(operations: Any, names: set[str]) -> None:
    strings: list[str] = []
    for operation, argument, _ in operations:
        if operation.name == "GLOBAL":
            names.add(str(argument).replace(" ", ".").replace("__builtin__.", "builtins."))
        elif operation.name == "STACK_GLOBAL" and len(strings) >= 2:
            names.add(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)


def _is_harmless(name: str) -> bool:
    """Whether a name belongs to plain data: storages, tensors, types, logs."""
    attribute = getattr(torch, name.removeprefix("torch."), None)
    return (
        name in _HARMLESS
        or isinstance(attribute, torch.dtype)
        or name.startswith(("torch._utils._rebuild_", "torch._tensor._rebuild_"))
        or (name.startswith("torch.") and name.endswith("Storage"))
    )


def _damaged(path: Path) -> str:
    return (
        f"{path} ({path.stat().st_size:,} bytes) is truncated, damaged or not a torch checkpoint; "
        "fetch it again, or save it with torch.save(model.state_dict(), path)"
    )


# The limit of the safetensors library itself.
MAX_HEADER_BYTES = 100_000_000

_LEARNED = ("weight", "bias", "gamma", "layer_scale", "layer_scale_parameter")


def read_file(path: str | Path, *, ema: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of weights.

    Args:
        path: A `.safetensors`, `.pth`, `.pt`, `.bin` or `.ckpt` file.
        ema: Use the moving average of the weights if a file has both.

    Returns:
        The tensors by their names in the file, on the CPU, and the metadata of a safetensors file;
        for other files a note about the weights that were taken, if there are several.

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
        notes: list[str] = []
        tensors = read_pickle(path, ema=ema, notes=notes)
        metadata = {NOTE: " ".join(notes)} if notes else {}
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
