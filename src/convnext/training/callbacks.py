"""Callbacks of a training run.

The first process of a run calls them between steps. Training derives its randomness from the seed,
the step and the sample alone, so a callback may use random numbers freely. A callback that changes
the network or the optimizer changes the run. The saved state does not include such changes: a run
that resumes, or returns to its last saved state after a fault, is then not identical bit for bit.
Repeated steps are reported again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from convnext.training.loop import Outcome


@dataclass(frozen=True, kw_only=True)
class StepEnd:
    """One completed optimizer step."""

    step: int
    """Steps taken so far, this one included."""
    num_steps: int
    """Steps of the whole run."""
    epoch: float
    lr: float
    """The learning rate of the schedule in this step."""
    losses: Mapping[str, Tensor]
    """Each part of the loss, averaged over the images of this process. The tensors are on the
    device of the run; reading one as a number waits for the device."""
    model: nn.Module = field(repr=False)
    """The network in training, in training mode."""


@dataclass(frozen=True, kw_only=True)
class EvaluationEnd:
    """One evaluation of the validation set."""

    step: int
    epoch: float
    weights: str
    """"model", or "ema" for their moving average."""
    metrics: Mapping[str, float]
    """In percent, except the loss."""
    is_best: bool
    """Whether these weights are the best so far, and were saved as such."""
    model: nn.Module = field(repr=False)
    """The network, which holds the evaluated weights during the call."""


class Callback:
    """The base class of callbacks: override what you need; each method does nothing here.

    An exception that a method raises ends the run; its last saved state stays and can be resumed.
    """

    def on_step_end(self, end: StepEnd) -> None:
        """Called after every optimizer step."""

    def on_evaluation(self, end: EvaluationEnd) -> None:
        """Called after every evaluation: twice if the run keeps a moving average."""

    def on_end(self, outcome: Outcome) -> None:
        """Called once when training is complete, but not after an interruption or an error."""


def check_callbacks(callbacks: Sequence[Any]) -> tuple[Callback, ...]:
    """Return the callbacks.

    Raises:
        TypeError: If one of them is not a `Callback`, such as a class that was not called.
    """
    for callback in callbacks:
        if not isinstance(callback, Callback):
            problem = (
                "is a class; pass an instance of it"
                if isinstance(callback, type) and issubclass(callback, Callback)
                else "is not a callback; derive its class from convnext.Callback"
            )
            raise TypeError(f"{callback!r} {problem}")
    return tuple(callbacks)
