"""What the loop asks of a task: data, losses and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from convnext.weights.checkpoint import Card


class Task(Protocol):
    """A task as the loop sees it. What a batch is, the loop never asks."""

    primary: str
    """The metric that decides which weights are the best; higher is better."""
    micro_batch_size: int
    """Images of a backward pass on one device; the loop halves it when memory does not suffice."""
    tell: Callable[[str], None]
    """Where the task's warnings go, such as an image that cannot be read."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def batch_size(self) -> int:
        """Images of a step, over all processes."""
        ...

    @property
    def first_part(self) -> int:
        """The number of this process's first micro batch among those of a step."""
        ...

    @property
    def fingerprint(self) -> str:
        """What the data set is: a run goes on only with the one that it began with."""
        ...

    def batches(self, start_step: int) -> Iterator[Sequence[Any]]:
        """Yield this process's micro batches of every step from `start_step` on, on the CPU."""
        ...

    def size(self, batch: Any) -> int:
        """Return the number of images of a micro batch."""
        ...

    def losses(self, model: nn.Module, batch: Any, step: int, part: int) -> dict[str, Tensor]:
        """Return named scalars, means over the micro batch `part` of a step."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics of the validation set, the same in every process."""
        ...

    def card(self, model: nn.Module, metrics: Mapping[str, Any]) -> Card:
        """Return what travels with the weights."""
        ...
