"""A finished training run: its folder, what it reached, and the model that it made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convnext.api.model import Model
    from convnext.api.types import Which


@dataclass(frozen=True, kw_only=True)
class Run:
    """What `train` returns."""

    folder: Path
    """With recipe.yaml, metrics.jsonl, checkpoints/, report.html and TensorBoard's events."""
    best: Mapping[str, Any]
    """Metrics of the best weights, with the `step` and the kind of `weights` (model or ema)."""
    name: str = ""
    """Of the network, as `create_model` takes it."""
    data: str = ""
    steps: int = 0
    """Optimizer steps that were taken."""
    seconds: float = 0.0
    network: Any = field(default=None, repr=False, compare=False)
    """The module that was trained, if it was given as an object."""

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, oldest first: `kind` is "train" or "val"."""
        from convnext.training.log import read_metrics

        return list(read_metrics(self.folder / "metrics.jsonl"))

    @property
    def report(self) -> Path:
        """The report, a page that needs no other file."""
        return self.folder / "report.html"

    def model(self, which: Which = "best", *, device: str = "auto") -> Model:
        """Load the trained network.

        Args:
            which: "best" for the weights with the best metric, "last" for those of the last step.
            device: `cpu`, `cuda`, `mps` or `auto`.

        Raises:
            ValueError: If the run has no checkpoint.
        """
        from convnext.api.model import load

        return load(self.folder, which=which, device=device)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "folder": str(self.folder),
            "model": self.name,
            "data": self.data,
            "best": dict(self.best),
            "steps": self.steps,
            "seconds": self.seconds,
        }
