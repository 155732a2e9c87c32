"""Reads checkpoints that are pickles (`.pth`, `.pt`, `.bin`) without running any code in them.

`torch.load(weights_only=True)` builds tensors and plain containers and refuses everything else.
Published files also contain the arguments and the log of their training. Those names are allowed,
but each is replaced by `Inert`, an empty object, or by a plain dictionary: none of their code runs.
"""

from __future__ import annotations

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

# Raised by the unpickler for bytes that are not a pickle.
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, AssertionError, struct.error)


def read_pickle(path: Path, *, ema: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a pickled checkpoint.

    Args:
        path: The file, either a zip archive or a plain pickle from before torch 1.6.
        ema: Use the moving average of the weights if a file has both.

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
    except (RuntimeError, EOFError, OSError, *_MALFORMED) as error:
        raise ValueError(_damaged(path)) from error
    return find_state_dict(payload, str(path), ema=ema)


def find_state_dict(payload: Any, where: str, *, ema: bool = False) -> dict[str, Tensor]:
    """Find the tensors in a result of `torch.load`, under one of the usual keys or at the top.

    Args:
        payload: The result of `torch.load`.
        where: Its name in messages.
        ema: Use the moving average of the weights if there are both.

    Raises:
        ValueError: If there is no state dict, or no moving average although `ema` is set.
    """
    for key in _EMA if ema else _PLAIN:
        if isinstance(payload, Mapping) and isinstance(payload.get(key), Mapping):
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
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        declared = sum(entry.file_size for entry in archive.infolist())
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
    except (ValueError, OSError, zipfile.BadZipFile):
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
