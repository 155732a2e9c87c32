"""Devices, precisions and threads, and the processes of a distributed run."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from convnext.hardware.system import cpu_facts, peak_resident_bytes


@dataclass(frozen=True)
class Ranks:
    """One of `count` processes. All of them must call the same methods in the same order."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: Any) -> Any:
        """Return the value of the first process."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        if self.count > 1:
            dist.barrier()

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy the tensors of the first process to all others, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over all processes, on the device of the run."""
        if self.count > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
            tensor /= self.count
        return tensor


ALONE = Ranks()


AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """Return the named device, or the fastest one available for `auto`.

    Raises:
        ValueError: If the name is unknown or this machine does not have the device.
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
        raise ValueError(f"device {name!r} is not supported; choose cpu, cuda, mps or auto")
    missing = (device.type == "cuda" and not torch.cuda.is_available()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ValueError(f"this machine has no {device.type} device that torch can use; try cpu")
    return device


def check_precision(precision: str, device: torch.device) -> None:
    """Check that a precision exists and that a device supports it well.

    Raises:
        ValueError: For an unknown precision, and for fp16 on a CPU.
    """
    if precision not in ("fp32", *AMP_DTYPES):
        raise ValueError(f"there is no precision {precision!r}; choose fp32, bf16 or fp16")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("fp16 is not supported on a CPU; choose fp32, or bf16 if it is fast here")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the autocast context of a precision ("fp32", "bf16" or "fp16")."""
    dtype = AMP_DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


@contextmanager
def cpu_threads(threads: int) -> Iterator[None]:
    """Let torch use this many CPU threads in the block; 0 does not change the number."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def wait_for(device: torch.device) -> None:
    """Wait until a device has finished all its work."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def environment(device: torch.device) -> dict[str, Any]:
    """Return the versions and the hardware behind a measurement on `device`."""
    import torchvision

    import convnext

    return {
        "convnext": convnext.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
    }


def cpu_name() -> str:
    """Return the name of the processor."""
    return cpu_facts()[0] or platform.processor() or platform.machine()


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory so far, in 10^9 bytes.

    On a GPU this is what torch allocated; on a CPU the resident set of this process, including
    libraries and cached images; on MPS, which keeps no peak, the current allocation.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e9
    return peak_resident_bytes() / 1e9
