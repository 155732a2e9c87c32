"""The exponential moving average of the weights, kept beside the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Ema:
    """Averages of all parameters and buffers, the numbers of timm's ModelEmaV3.

    That one keeps a second module, which can neither be copied from a sharded network nor share a
    compiled one; this one lends its values to the network while they are evaluated.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: t.detach().clone() for name, t in model.state_dict().items()}

    def decay_at(self, step: int) -> float:
        """Return the decay of a step, counted from 1: a warm-up keeps random weights out of it."""
        warmed: float = 1 - step**-0.75
        return min(self.decay, warmed)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after `step`."""
        # Sharded parameters and whole buffers cannot go through one call.
        pairs: dict[bool, tuple[list[Tensor], list[Tensor]]] = {False: ([], []), True: ([], [])}
        for name, value in model.state_dict().items():
            average = self.tensors[name]
            if average.is_floating_point():
                averages, weights = pairs[isinstance(average, DTensor)]
                averages.append(average)
                weights.append(value.detach())
            else:
                average.copy_(value)
        for averages, weights in pairs.values():
            if averages:
                torch._foreach_lerp_(averages, weights, weight=1.0 - self.decay_at(step))

    @contextmanager
    def lent_to(self, model: nn.Module) -> Iterator[None]:
        """Let the network have the averages for as long as the block lasts."""
        own = {name: t.detach().clone() for name, t in model.state_dict().items()}
        _copy(self.tensors, model)
        try:
            yield
        finally:
            _copy(own, model)


@torch.no_grad()
def _copy(values: dict[str, Tensor], model: nn.Module) -> None:
    for name, target in model.state_dict().items():
        target.copy_(values[name])
