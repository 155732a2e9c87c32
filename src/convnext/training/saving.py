"""How a run is saved: by the first process, never in place, and not ended by a full disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from convnext.atomic import write_text
from convnext.hardware.ranks import Ranks
from convnext.training.distributed import whole
from convnext.training.faults import is_full_disk
from convnext.training.log import RunLog
from convnext.training.state import Learner, needed_bytes, save_state
from convnext.weights.checkpoint import Card
from convnext.weights.files import read_file, save_checkpoint

# A save that failed is tried again after this many steps.
RETRY_STEPS = 50
_MICRO = "micro_batch_size.json"


class Saver:
    """The checkpoints of a run. All processes call its methods, the first one writes."""

    def __init__(self, folder: Path, learner: Learner, *, log: RunLog, ranks: Ranks) -> None:
        self.folder, self.learner, self.log, self.ranks = folder, learner, log, ranks
        self.saved = -1
        """The step of the last state that was saved or restored."""
        self._retry_at: int | None = None

    @property
    def best_path(self) -> Path:
        """Where the best weights are."""
        return self.folder / "best.safetensors"

    def tidy(self, best: Mapping[str, Any]) -> bool:
        """Remove what a killed process left half written; return whether the best are whole.

        The best weights, that is; where they are not, the user is told.
        """
        problem = None
        if self.ranks.is_first:
            for left in self.folder.glob(".*"):
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()
            try:
                if best:
                    read_file(self.best_path)
            except ValueError as error:
                problem = f"{error}: the best of the evaluations to come takes its place"
                self.log.warn(problem)
        return self.ranks.of_first(problem) is None

    def is_due(self, step: int, every: int) -> bool:
        """Whether a step is one to save at."""
        again = self._retry_at is not None and step >= self._retry_at
        return step != self.saved and (step % every == 0 or again)

    def save(self, step: int, card: Card, counters: Mapping[str, Any], *, must: bool) -> None:
        """Save the state of a step. A full or failing disk is told of, and tried again later.

        Raises:
            OSError: If it could not be saved and `must` is set.
        """
        weights, rest = self.learner.gather()
        problem = None
        if self.ranks.is_first:
            try:
                save_state(
                    self.folder, step=step, weights=weights, rest=rest, card=card, counters=counters
                )
            except (OSError, SafetensorError) as error:
                problem = self._problem(error, step, [*weights.values(), *rest.values()])
        problem = self.ranks.of_first(problem)
        if problem is None:
            self.saved, self._retry_at = step, None
            return
        if must:
            raise OSError(f"{problem}. Mend that, and go on with --resume")
        self._retry_at = step + RETRY_STEPS
        self.log.warn(f"{problem}. The run goes on and tries again", step=step)

    def save_best(self, card: Card) -> bool:
        """Save the weights as they are now as the best; return whether there was room."""
        weights = {name: whole(t) for name, t in self.learner.model.state_dict().items()}
        saved = True
        if self.ranks.is_first:
            try:
                save_checkpoint(self.best_path, weights, card)
            except (OSError, SafetensorError) as error:
                saved = False
                step = int(card.metrics["step"])
                problem = self._problem(error, step, list(weights.values()))
                self.log.warn(f"{problem}. The best weights are still the earlier ones", step=step)
        return bool(self.ranks.of_first(saved))

    def _problem(self, error: Exception, step: int, tensors: list[Any]) -> str:
        if not is_full_disk(error):
            return f"step {step:,} could not be saved in {self.folder} ({error})"
        need, free = needed_bytes(tensors), shutil.disk_usage(self.folder).free
        return (
            f"step {step:,} could not be saved: it needs {need / 1e6:,.1f} MB in {self.folder}, "
            f"where {free / 1e6:,.1f} MB are free"
        )

    def keep_micro_batch_size(self, size: int) -> None:
        """Remember a size that may fit, for the next start of a run that cannot mend itself."""
        write_text(self.folder / _MICRO, json.dumps({"micro_batch_size": size}) + "\n")

    def micro_batch_size(self) -> int | None:
        """Return what an earlier start has remembered."""
        path = self.folder / _MICRO
        if not path.is_file():
            return None
        return int(json.loads(path.read_text(encoding="utf-8"))["micro_batch_size"])
