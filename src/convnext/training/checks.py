"""Checks of a run, and the advice that it gives when it cannot continue unchanged.

A run must resume with the data and the batch size that it started with, and may follow a reference
curve.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console

from convnext.atomic import only_writer, remove_temporary_files
from convnext.data.contents import changes, read_contents
from convnext.names import count_noun
from convnext.recipes.recipe import flatten
from convnext.recipes.resolve import Plan
from convnext.recipes.schema import Recipe, ResolvedRecipe
from convnext.tasks.base import Task
from convnext.training.faults import DivergedError
from convnext.training.log import read_metrics
from convnext.weights.checkpoint import complete_steps

# Marks a run folder from its first moment on, and is locked while a process writes the run.
RUN_MARK = ".convnext-run"
# What a run and its reports write.
OWN_FILES = r".+\.(csv|html|json|jsonl|md|pdf|png|safetensors|svg|txt|yaml)"
# Files that the system makes in any folder.
_OF_THE_SYSTEM = {".DS_Store", "desktop.ini", "Thumbs.db", "lost+found"}


def check_folder(output: Path | None, *, resume: bool) -> None:
    """Check that a run may write into a folder: it is new, empty, or the run to resume.

    Raises:
        ValueError: If it holds a run and `resume` is not set, holds anything else, or has links,
            through which a run would write elsewhere.
    """
    if output is None or not (output.exists() or output.is_symlink()):
        return
    if not output.is_dir():
        raise ValueError(f"{output} is not a folder; choose another --output")
    names = {path.name for path in output.iterdir()} - _OF_THE_SYSTEM
    links = [path for path in (*output.iterdir(), *output.glob("checkpoints/*")) if is_link(path)]
    if links:
        raise ValueError(
            f"{links[0]} is a link, and a run writes only into its own folder; choose another "
            "--output"
        )
    saved = complete_steps(output / "checkpoints")
    if names and not saved and RUN_MARK not in names:
        some = ", ".join(sorted(names)[:3])
        raise ValueError(
            f"{output} is not a run folder and holds other things ({some}); choose a new or empty "
            "--output"
        )
    if saved and not resume:
        raise ValueError(
            f"{output} already holds a run; continue it with --resume, or choose another --output"
        )


def is_link(path: Path) -> bool:
    """Whether a path leads elsewhere: a symbolic link, or a junction on Windows."""
    return path.is_symlink() or getattr(path, "is_junction", bool)()


def mark_folder(folder: Path) -> None:
    """Make a run folder, and mark it as one."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RUN_MARK).exists():  # Opening the file would release this process's lock.
        (folder / RUN_MARK).touch()


@contextmanager
def held_folder(folder: Path, console: Console, *, resume: bool) -> Iterator[None]:
    """Keep other processes from writing a run folder, and remove what a killed one left.

    Raises:
        ValueError: As `check_folder`, or if another process writes the run.
    """
    check_folder(folder, resume=resume)
    mark_folder(folder)
    with only_writer(folder / RUN_MARK) as is_locked:
        # Another process may have finished a run here in the meantime.
        check_folder(folder, resume=resume)
        if not is_locked:
            console.print(
                f"the file system of {folder} has no locks: make sure that no other process "
                "writes this run",
                markup=False,
            )
        for own in (folder, folder / "figures"):
            remove_temporary_files(own, OWN_FILES)
        yield


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


# Settings that a run keeps from its start to its end, besides its batch size.
FIXED = ("optim.name", "optim.freeze", "optim.unfreeze_at")


def fixed_settings(recipe: ResolvedRecipe) -> dict[str, Any]:
    """Return the settings that a run keeps."""
    values = dict(flatten(recipe))
    return {name: values[name] for name in FIXED}


def check_same_run(
    counters: Mapping[str, Any], task: Task, recipe: ResolvedRecipe, folder: Path
) -> None:
    """Check that a run resumes with the data, the batch size and the optimizer of its start.

    Raises:
        ValueError: If one of them has changed.
    """
    before = counters.get("fixed", fixed_settings(cast(ResolvedRecipe, Recipe())))
    for name, value in fixed_settings(recipe).items():
        if before.get(name, value) != value:
            raise ValueError(
                f"the run began with {name} {before[name]} and cannot continue with {value}; leave "
                f"out --{name}, or start a new run from its weights: --weights {quote(str(folder))}"
            )
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


def changes_since(folder: Path, task: Task) -> str:
    """Return what has changed in the data since a run started; "" if nothing has.

    A run of an earlier version, and one without a saved state, have nothing to compare with.
    """
    before = read_contents(folder)
    if before is None or not complete_steps(folder / "checkpoints"):
        return ""
    found = changes(before, task.contents())
    if not found:
        return ""
    return (
        f"the data set has changed since the run started, so that its steps would not be the same: "
        f"{'; '.join(found)}. Start a new run from its weights: --weights {quote(str(folder))}"
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


class SlowSteps:
    """Notices once that steps have taken much longer than at first for a while.

    Args:
        factor: How much longer.
        seconds: For how long.
    """

    def __init__(self, *, factor: float = 2.0, seconds: float = 60.0) -> None:
        self.factor, self.seconds = factor, seconds
        self.has_noticed = False
        self.begin()

    def begin(self) -> None:
        """Start over, as when steps begin to take other images."""
        self._first: list[float] = []
        self._since: float | None = None

    def update(self, images_per_s: float, now: float) -> float | None:
        """Return by what factor steps have slowed down, when that is first known; else None.

        Args:
            images_per_s: The speed since the last call, evaluations and saved states left out.
            now: The time in seconds, of a clock that never goes back.
        """
        if self.has_noticed or images_per_s <= 0:
            return None
        if len(self._first) < 5:
            # The very first steps are slower.
            self._first.append(images_per_s)
            return None
        slower = float(np.median(self._first)) / images_per_s
        if slower < self.factor:
            self._since = None
        elif self._since is None:
            self._since = now
        elif now - self._since >= self.seconds:
            self.has_noticed = True
            return slower
        return None


def slow_steps_text(slower: float, device: torch.device) -> str:
    """Return the warning that steps have slowed down by a factor, with what may help."""
    text = f"for a minute, a step has taken {slower:.1f} times as long as at first: "
    if device.type != "cpu":
        return text + "see what else uses this device, and the time spent waiting for data"
    threads = count_noun(torch.get_num_threads(), "thread")
    return text + (
        "another process probably uses the same cores. Beside one, a run with --run.threads 1 is "
        f"slowed down less; this run keeps its {threads}, since its result depends on them"
    )
