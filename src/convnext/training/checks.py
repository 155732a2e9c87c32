"""Checks of a run, and the advice that it gives when it cannot continue unchanged.

A run must resume with the data and the batch size that it started with, and may follow a reference
curve.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from convnext.recipes.plan import Plan
from convnext.recipes.schema import ResolvedRecipe
from convnext.tasks.base import Task
from convnext.training.faults import DivergedError
from convnext.training.log import read_metrics
from convnext.weights.checkpoint import complete_steps


def diverged(what: str, recipe: ResolvedRecipe, *, rate: float, checkpoints: Path) -> DivergedError:
    """Return the error for a loss or a weight that is not finite."""
    advice = [f"--optim.lr {recipe.optim.lr / 3:.2g}"]
    if not recipe.optim.clip_grad:
        advice.append("--optim.clip_grad 1")
    advice.append("a longer --schedule.warmup_epochs")
    if recipe.run.precision != "fp32":
        advice.append("--run.precision fp32")
    if recipe.run.on_nan == "stop":
        advice.append("--run.on_nan rollback")
    saved = complete_steps(checkpoints)
    rest = (
        f"The last good checkpoint, {saved[-1]}, is intact; continue from it with --resume and "
        "one of these."
        if saved
        else "No checkpoint had been written yet."
    )
    return DivergedError(
        f"{what} (learning rate {rate:.2g}, precision {recipe.run.precision}). "
        f"Try {', '.join(advice)}. {rest}"
    )


def smaller_micro_batch(size: int) -> int:
    """Return half of a micro batch that did not fit.

    Raises:
        ValueError: If it was one image.
    """
    if size == 1:
        raise ValueError(
            "one image does not fit into the memory of the device; try --run.precision bf16, "
            "--run.checkpoint_activations true, or a smaller --input.image_size"
        )
    return size // 2


def check_same_run(counters: Mapping[str, Any], task: Task, folder: Path) -> None:
    """Check that a run resumes with the data and the batch size that it started with.

    Raises:
        ValueError: If either has changed.
    """
    if counters["data"] != task.fingerprint:
        raise ValueError(
            f"the data set has changed since the run started ({counters['data']} then, "
            f"{task.fingerprint} now), so that its steps would not be the same; start a new run "
            f"from its weights: --weights {quote(str(folder))}"
        )
    if counters["batch_size"] != task.batch_size:
        raise ValueError(
            f"the run began with a batch of {counters['batch_size']:,} and cannot continue with "
            f"{task.batch_size:,}; devices and micro_batch_size may change, optim.batch_size may "
            "not"
        )


def another_length(plan: Plan, step: int, before: int) -> str:
    """Describe how a schedule that ended at step `before` changes under a plan from `step` on."""
    then, now = plan.rate(min(step, before), num_steps=before), plan.rate(step)
    return (
        f"the schedule now ends at step {plan.num_steps:,} and not {before:,}: the learning rate "
        f"continues at {now:.2g} where it was at {then:.2g}, and falls from there to "
        f"{plan.rate(plan.num_steps):.2g} over {max(0, plan.num_steps - step):,} steps"
    )


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A metric by epoch; higher is better."""

    metric: str
    epochs: tuple[float, ...]
    values: tuple[float, ...]
    source: str
    tolerance: float = 2.0

    def at(self, epoch: float) -> float:
        """Return the value at an epoch: linear between points, constant after the last one."""
        return float(np.interp(epoch, self.epochs, self.values))

    def check(self, epoch: float, value: float) -> str | None:
        """Return a warning if `value` is below the curve by more than the tolerance.

        There is no warning before the first point. If the weights and their average were both
        evaluated, `value` is the better of the two, as in the curve.
        """
        if epoch < self.epochs[0]:
            return None
        expected = self.at(epoch)
        if value >= expected - self.tolerance:
            return None
        return (
            f"{self.metric} is {value:.2f} at epoch {epoch:.4g}, {expected - value:.2f} below the "
            f"reference ({expected:.2f}, from {self.source})"
        )


def read_reference(source: str, metric: str, tolerance: float = 2.0) -> Reference | None:
    """Read a reference curve; None for a source of `none`.

    Args:
        source: A run folder, its metrics.jsonl, or a CSV with the columns `epoch` and `metric`.
        metric: The metric to compare; the max counts if an epoch has several values.
        tolerance: The allowed distance below the curve, in points.

    Raises:
        ValueError: If the file does not exist, or does not have the metric.
    """
    if source == "none":
        return None
    path = Path(source)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"run.reference: there is no {path}; give a run folder, its metrics.jsonl, or a CSV "
            f"with the columns epoch,{metric}"
        )
    read = _read_run if path.suffix == ".jsonl" else _read_csv
    best: dict[float, float] = {}
    for epoch, value in read(path, metric):
        best[epoch] = max(value, best.get(epoch, value))
    if not best:
        raise ValueError(f"run.reference: {path} has no value of {metric}")
    epochs = sorted(best)
    return Reference(
        metric=metric,
        epochs=tuple(epochs),
        values=tuple(best[epoch] for epoch in epochs),
        source=source,
        tolerance=tolerance,
    )


def _read_run(path: Path, metric: str) -> Iterable[tuple[float, float]]:
    rows = [row for row in read_metrics(path) if row["kind"] == "val" and metric in row]
    return [(row["epoch"], row[metric]) for row in rows]


def _read_csv(path: Path, metric: str) -> Iterable[tuple[float, float]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"epoch", metric} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(
                f"run.reference: {path} has the columns {', '.join(reader.fieldnames or ())}; it "
                f"needs {' and '.join(sorted(missing))}"
            )
        rows = list(enumerate(reader, 2))
    points = []
    for line, row in rows:
        try:
            points.append((float(row["epoch"]), float(row[metric])))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"run.reference: line {line} of {path} is not two numbers: "
                f"{row['epoch']},{row[metric]}"
            ) from error
    return points
