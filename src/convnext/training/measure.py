"""Measurements of a run: norms of its weights, memory, and model FLOPs utilization (MFU)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from convnext.hardware.system import peak_resident_bytes
from convnext.training.distributed import full_tensor


def train_flops_per_image(macs: float) -> float:
    """Return the operations of one training image: 3 x 2 x its multiply-accumulates.

    The convention of the field (PaLM, appendix B): two operations for each multiply-accumulate, and
    a backward pass that costs twice the forward one. Recomputed activations do not count.
    """
    return 3 * 2 * macs


def mfu(images_per_s: float, macs: float, limit: float) -> float:
    """Return the fraction of a device's peak rate (operations per second) that training reaches."""
    return images_per_s * train_flops_per_image(macs) / limit


def l2_norm(model: nn.Module) -> Tensor:
    """Return the L2 norm of all parameters, as a tensor on their device.

    If they are sharded over processes, every process must call.
    """
    return _l2(p.detach() for p in model.parameters())


class UpdateNorm:
    """The L2 norm of one update: created before `optimizer.step()`, computed after it.

    It holds a second copy of the trained parameters in between, so a loop measures only
    occasionally.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._before = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def compute(self) -> Tensor:
        """Return the norm and release the copy."""
        before, self._before = self._before, []
        torch._foreach_sub_(before, [p.detach() for p in self._parameters])
        return _l2(before)


@torch.no_grad()
def _l2(tensors: Iterable[Tensor]) -> Tensor:
    return full_tensor(nn.utils.get_total_norm(list(tensors)))


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
