"""What receives the progress of a run: the user's callbacks, TensorBoard, Weights & Biases, MLflow.

The first process of a run calls the callbacks between steps. Training derives its randomness from
the seed, the step and the sample alone, so a callback may use random numbers freely. A callback
that changes the network or the optimizer changes the run. The saved state does not include such
changes: a run that resumes, or returns to its last saved state after a fault, is then not identical
bit for bit. Repeated steps are reported again.

Trackers are the Lightning loggers that also work with Fabric. If a tracker fails (its server is
down, the disk is full), the run warns once, drops the tracker and continues.
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from convnext.atomic import write_text
from convnext.names import install_extra, nearest

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


def check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """Return the callbacks: one, or several in order.

    Raises:
        TypeError: If one of them is not a `Callback`, such as a class that was not called.
    """
    several = isinstance(callbacks, Iterable) and not isinstance(callbacks, Callback | type)
    found = tuple(callbacks) if several else (callbacks,)
    for callback in found:
        if not isinstance(callback, Callback):
            problem = (
                "is a class; pass an instance of it"
                if isinstance(callback, type) and issubclass(callback, Callback)
                else "is not a callback; derive its class from convnext.Callback"
            )
            raise TypeError(f"{callback!r} {problem}")
    return found


class Tracker:
    """A Lightning logger whose failure cannot end a run.

    Args:
        name: Its name in the warning if it fails.
        make: Makes the logger when it is first needed. It has `log_hyperparams`, `log_metrics`,
            `save` and `finalize`.
        config: The settings of the run, sent before the first scalar.
    """

    def __init__(
        self, name: str, make: Callable[[], Any], config: Mapping[str, Any] | None = None
    ) -> None:
        self.name = name
        self._make: Callable[[], Any] | None = make
        self._logger: Any = None
        self._config = dict(config or {})

    def send(self, scalars: Mapping[str, float], step: int) -> str | None:
        """Send scalars; return the error if the tracker failed and was dropped."""
        return self._try(lambda: self._send(scalars, step))

    def save(self) -> str | None:
        """Flush what is still in memory; return the error, if any."""
        return None if self._logger is None else self._try(self._logger.save)

    def close(self) -> str | None:
        """End the tracker's run; return the error, if any."""
        logger, self._make, self._logger = self._logger, None, None
        return None if logger is None else self._try(lambda: logger.finalize("success"))

    def _send(self, scalars: Mapping[str, float], step: int) -> None:
        if self._make is not None and self._logger is None:
            self._logger = self._make()
            if self._config:
                self._logger.log_hyperparams(self._config)
        if self._logger is not None:
            self._logger.log_metrics(dict(scalars), step)

    def _try(self, act: Callable[[], Any]) -> str | None:
        try:
            act()
        except Exception as error:
            self._make = self._logger = None
            what = " ".join(str(error).split())[:300]
            return f"{self.name} failed ({type(error).__name__}: {what}) and gets no more scalars"
        return None


def tensorboard(folder: Path, step: int) -> Tracker:
    """Return the events of a run that starts or resumes at `step`; later ones are superseded."""
    from lightning_fabric.loggers import TensorBoardLogger

    purge = {"purge_step": step + 1} if step else {}
    return Tracker(
        "TensorBoard",
        lambda: TensorBoardLogger(folder, name="tensorboard", version="", **purge),
    )


def check_trackers(names: Sequence[str]) -> None:
    """Check that the trackers exist and are installed.

    Raises:
        ValueError: If a name of `run.loggers` is unknown, or its package is not installed.
    """
    for name in names:
        if name not in _KINDS:
            raise ValueError(f"run.loggers has no {name!r}{nearest(name, _KINDS)}")
        kind = _KINDS[name]
        if not all(map(_is_installed, ("pytorch_lightning", kind.module))):
            raise ValueError(f"{kind.title} is not installed: {install_extra(name)}")


def make_trackers(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Return the trackers of `run.loggers`; nothing is sent yet.

    Environment variables configure them: WANDB_PROJECT (`convnext` by default), WANDB_MODE
    (`offline` keeps everything in the run folder), MLFLOW_TRACKING_URI (the run folder by default)
    and MLFLOW_EXPERIMENT_NAME.

    Raises:
        ValueError: See `check_trackers`.
    """
    check_trackers(names)
    return [
        Tracker(_KINDS[name].title, partial(_KINDS[name].make, folder), config) for name in names
    ]


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _wandb(folder: Path) -> Any:
    from pytorch_lightning.loggers import WandbLogger

    # A resumed run continues under the same name, in the same place.
    id_file = folder / "wandb_id"
    if not id_file.is_file():
        write_text(id_file, uuid.uuid4().hex[:12])
    return WandbLogger(
        name=folder.name,
        save_dir=folder,
        id=id_file.read_text(encoding="utf-8").strip(),
        project=os.environ.get("WANDB_PROJECT", "convnext"),
        resume="allow",
    )


def _mlflow(folder: Path) -> Any:
    from pytorch_lightning.loggers import MLFlowLogger

    return MLFlowLogger(
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", "convnext"),
        run_name=folder.name,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI")
        or f"sqlite:///{(folder / 'mlflow.db').resolve()}",
    )


@dataclass(frozen=True)
class _Kind:
    title: str
    module: str
    make: Callable[[Path], Any]


_KINDS = {
    "wandb": _Kind("Weights & Biases", "wandb", _wandb),
    "mlflow": _Kind("MLflow", "mlflow", _mlflow),
}
