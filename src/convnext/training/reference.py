"""A curve that a run should follow, such as an earlier run's, and the warning when it lags."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convnext.training.log import read_metrics


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

        Nothing is said of epochs before the first point. Where weights and their average were both
        evaluated, `value` is the better of the two, as it is in the curve.
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
        metric: The metric to compare; of several values at an epoch the highest counts.
        tolerance: How far below the curve is still fine, in points.

    Raises:
        ValueError: If there is no such file, or it does not have the metric.
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
    for number, row in rows:
        try:
            points.append((float(row["epoch"]), float(row[metric])))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"run.reference: line {number} of {path} is not two numbers: "
                f"{row['epoch']},{row[metric]}"
            ) from error
    return points
