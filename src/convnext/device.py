"""Where a network runs, and in which precision."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """Return the named device, or for `auto` the best there is.

    Raises:
        ValueError: If the name is unknown or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"there is no device {name!r}; choose cpu, cuda, mps or auto") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"{name!r} is not a device to run on; choose cpu, cuda, mps or auto")
    missing = (device.type == "cuda" and not torch.cuda.is_available()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ValueError(f"this machine has no {device.type} device that torch can use; try cpu")
    return device


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse what the device cannot compute well.

    Raises:
        ValueError: For fp16 on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("a CPU does not train in fp16; choose fp32, or bf16 where it is fast")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context in which a network runs in `precision` ("fp32", "bf16" or "fp16")."""
    dtype = AMP_DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


# A product in bf16 at this many times the rate in fp32 is worth its 8 bits of mantissa.
BF16_GAIN = 1.2


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the device is faster in bf16 than in fp32.

    A CPU without instructions for bf16 computes it correctly but several times slower. One with
    them is asked by measuring a matrix product, once: with AVX512_BF16 some are twice as fast in
    bf16, and others half as fast (LOG.md).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if not any(getattr(torch.cpu, check, lambda: False)() for check in checks):
        return False
    return bf16_gain(torch.get_num_threads()) > BF16_GAIN


@cache
def bf16_gain(threads: int) -> float:
    """Return the rate of a product in bf16 by that in fp32 on this CPU, measured or remembered.

    It decides how runs compute: two of them on one machine must not differ by chance.
    """
    from convnext.remembered import alone, cache_folder, key_of, recall, remember

    file = cache_folder() / "bf16_gain.json"
    key = key_of(_cpu_name(), threads, torch.__version__)
    # One process of several measures, and does so undisturbed; the others read what it found.
    with alone(file):
        known = recall(file).get(key)
        if isinstance(known, float) and known > 0:
            return known
        from convnext.train.measure import matrix_limit

        device = torch.device("cpu")
        rates = {name: matrix_limit(device, name, seconds=0.1) for name in ("bf16", "fp32")}
        gain = rates["bf16"] / rates["fp32"]
        remember(file, key, gain)
    return gain


def pick_training_precision(precision: str, device: torch.device) -> str:
    """Return the precision of a recipe, or for `auto` the fastest that trains as well as fp32.

    Raises:
        ValueError: As `check_precision`.
    """
    if precision == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    check_precision(precision, device)
    return precision


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a reader must know to repeat a measurement on `device`."""
    import torchvision

    import convnext

    return {
        "convnext": convnext.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _cpu_name() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
