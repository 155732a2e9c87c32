"""The log of a run: one progress line, metrics.jsonl, and TensorBoard events.

metrics.jsonl is append-only. A run that resumes at step N adds a row of kind `resume`; by that row
`read_metrics` omits what an earlier attempt wrote about later steps. Times are monotonic.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from convnext.progress import is_closed
from convnext.training.trackers import Tracker, tensorboard

# Without a terminal, print a plain line at intervals instead of redrawing a bar.
PLAIN_LINE_SECONDS = 15.0


LOSS = "loss/"


def named(losses: Mapping[str, float]) -> dict[str, float]:
    """Return the parts of a loss under their names in metrics.jsonl: `loss/NAME`."""
    return {f"{LOSS}{name}": value for name, value in losses.items()}


class RunLog:
    """The log of a run in `folder`.

    Args:
        folder: The run folder.
        console: Where to print.
        silent: Whether to write and print nothing, as in all processes except the first.
        trackers: Trackers that also receive the scalars, besides TensorBoard.
    """

    def __init__(
        self,
        folder: Path,
        console: Console | None = None,
        *,
        silent: bool = False,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.folder = folder
        self.console = Console(quiet=True) if silent else console or Console(file=sys.stderr)
        self._rows = None if silent else _Rows(folder / "metrics.jsonl")
        self._trackers = () if silent else tuple(trackers)
        self._events = None if silent else tensorboard(folder, 0)
        self._progress: Progress | None = None
        self._bar = TaskID(0)
        self._num_steps = self._steps_per_epoch = 1
        self._step = self._first_step = 0
        self._images = self._window_images = 0
        self._waited = self._paused = self._seconds_before = 0.0
        self._window_start = self._started = self._last_line = time.perf_counter()

    @property
    def is_closed(self) -> bool:
        """Whether the reader of the printed lines is gone."""
        return is_closed(self.console)

    def begin_at(
        self,
        step: int,
        images: int = 0,
        steps_per_epoch: int = 1,
        *,
        num_steps: int = 0,
        evaluates: bool = False,
    ) -> None:
        """Record that the run resumes at a step, which supersedes rows about later steps.

        With `evaluates`, the evaluation at this step is repeated and supersedes its rows too.
        """
        self._step, self._steps_per_epoch = step, steps_per_epoch
        self._images, self._seconds_before = images, 0.0
        self._started = time.perf_counter()
        if self._rows is None:
            return
        before = self._rows.read()
        kept = [row for row in before if row["step"] <= step]
        self._seconds_before = max((row["seconds"] for row in kept), default=0.0)
        if step or before:
            self._write("resume", step, {"evaluates": True} if evaluates else {})
        if step:
            assert self._events is not None
            self._events.close()
            self._events = tensorboard(self.folder, step)
            if step == num_steps:
                self.console.print(f"All {step:,} steps are done; nothing is left to train.")
            else:
                self.console.print(f"Resuming at step {step:,}.")

    def start(self, *, num_steps: int, steps_per_epoch: int, first_step: int) -> None:
        """Start the progress line."""
        self._num_steps, self._steps_per_epoch = num_steps, steps_per_epoch
        self._step = self._first_step = first_step
        self._started = self._last_line = time.perf_counter()
        self._begin_window()
        if self.console.is_terminal and self._rows is not None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )
            self._bar = self._progress.add_task("", total=num_steps, completed=first_step)
            self._progress.start()

    def stop(self) -> None:
        """Stop the progress line and flush the trackers."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        self._ask_trackers(Tracker.save)

    def close(self) -> None:
        """Close the files and the trackers."""
        self.stop()
        self._ask_trackers(Tracker.close)
        if self._rows is not None:
            self._rows.close()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in the block as waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time in the block, such as a save, from the training speed."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - before

    def stepped(self, step: int, num_images: int) -> None:
        """Count a step."""
        self._step = step
        self._images += num_images
        self._window_images += num_images
        if self._progress is not None:
            self._progress.update(self._bar, completed=step)

    def trained(
        self,
        step: int,
        *,
        loss: float,
        lr: float,
        losses: Mapping[str, float] | None = None,
        extra: Mapping[str, float] | None = None,
        groups: Mapping[str, float] | None = None,
        mfu: Callable[[float], float | None] | None = None,
    ) -> float:
        """Record the steps since the last call; return their speed in images per second.

        The time spent waiting is recorded too.

        Args:
            step: The number of steps taken.
            loss: The mean loss.
            lr: The learning rate of the schedule.
            losses: The parts of the loss by name, if it has several.
            extra: Other scalars, such as norms and memory.
            groups: The rate of every parameter group; the file gets the min and the max.
            mfu: Converts images per second to model FLOPs utilization; returns None if unknown.
        """
        now = time.perf_counter()
        elapsed = max(now - self._window_start - self._paused, 1e-9)
        speed, wait_share = self._window_images / elapsed, self._waited / elapsed
        self._begin_window()
        row: dict[str, float] = {"loss": loss, **named(losses or {}), "lr": lr}
        row |= {"images_per_s": round(speed, 1), "wait_share": round(wait_share, 4)}
        used = mfu(speed) if mfu is not None else None
        if used is not None:
            row["mfu"] = round(used, 4)
        rates = groups or {}
        if len(set(rates.values())) > 1:
            row |= {"lr_min": min(rates.values()), "lr_max": max(rates.values())}
        row |= extra or {}
        self._write("train", step, row)
        scalars = {f"train/{name}": value for name, value in row.items()}
        self._send(scalars | {f"lr/{name}": rate for name, rate in rates.items()}, step)
        line = (
            f"step {step:,}/{self._num_steps:,}  epoch {step / self._steps_per_epoch:.1f}  "
            f"loss {loss:.3f}  lr {lr:.1e}  {speed:.0f} images/s  waiting {wait_share:.0%}"
        )
        if used is not None:
            line += f"  MFU {used:.0%}"
        if self._progress is not None:
            self._progress.update(self._bar, description=line)
        elif now - self._last_line > PLAIN_LINE_SECONDS:
            self._last_line = now
            done = max(step - self._first_step, 1)
            left = (now - self._started) / done * (self._num_steps - step)
            self.console.print(f"{line}  ETA {left:.0f} s", highlight=False, soft_wrap=True)
        return speed

    def evaluated(
        self,
        step: int,
        weights: str,
        metrics: Mapping[str, float],
        *,
        image_size: int | None = None,
    ) -> dict[str, Any]:
        """Record an evaluation, and return it with its step and the name of the weights.

        Its time does not count toward the training speed. With `image_size`, it is one at the size
        of a training phase: a row of kind `val_phase`, which selects nothing.
        """
        kind = "val" if image_size is None else "val_phase"
        row = {"weights": weights, **metrics}
        if image_size is not None:
            row["image_size"] = image_size
        self._write(kind, step, row)
        self._send({f"{kind}/{name}_{weights}": value for name, value in metrics.items()}, step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        epoch = step / self._steps_per_epoch
        label = "val" if weights == "model" else f"val ({weights})"
        if image_size is not None:
            label += f" at {image_size} px, the size of this phase"
        self.console.print(f"epoch {epoch:.4g}  {label}:  {shown}", highlight=False, soft_wrap=True)
        self._begin_window()
        return {"step": step, **row}

    def warn(self, text: str, *, step: int | None = None) -> None:
        """Print a warning and record it for the report."""
        self._event(f"[yellow]warning:[/] {escape(text)}", text, step)

    def note(self, text: str, *, step: int) -> None:
        """Print what happens at a step, and record it for the report."""
        self._event(f"step {step:,}: {escape(text)}", text, step)

    def _event(self, shown: str, text: str, step: int | None) -> None:
        self.console.print(shown, highlight=False, soft_wrap=True)
        self._write("event", self._step if step is None else step, {"event": text})

    def _begin_window(self) -> None:
        self._window_start, self._window_images = time.perf_counter(), 0
        self._waited = self._paused = 0.0

    def _write(self, kind: str, step: int, row: Mapping[str, Any]) -> None:
        if self._rows is None:
            return
        seconds = self._seconds_before + time.perf_counter() - self._started
        full = {
            "kind": kind,
            "step": step,
            "epoch": round(step / self._steps_per_epoch, 4),
            "images": self._images,
            "seconds": round(seconds, 2),
            **row,
        }
        problem = self._rows.append(full)
        if problem:
            self.console.print(f"[yellow]warning:[/] {escape(problem)}", soft_wrap=True)

    def _send(self, scalars: Mapping[str, float], step: int) -> None:
        self._ask_trackers(lambda tracker: tracker.send(scalars, step))

    def _ask_trackers(self, act: Callable[[Tracker], str | None]) -> None:
        for tracker in (*self._trackers, *([self._events] if self._events else [])):
            problem = act(tracker)
            if problem:
                self.warn(problem)


class _Rows:
    """A JSON Lines file that appends each row in one write."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("a+b", buffering=0)
        # A row that a crash truncated stays on its own line.
        self._torn = False
        if path.stat().st_size:
            self._file.seek(-1, 2)
            self._torn = self._file.read(1) != b"\n"

    def read(self) -> list[dict[str, Any]]:
        return read_metrics(self.path)

    def append(self, row: Mapping[str, Any]) -> str | None:
        """Append a row; return the error, such as a full disk, if the previous row succeeded."""
        line = b"\n" * self._torn + json.dumps(row).encode() + b"\n"
        was_torn = self._torn
        try:
            self._torn = self._file.write(line) != len(line)
            problem = "only part of it was written"
        except OSError as error:
            self._torn = True
            problem = str(error)
        if self._torn and not was_torn:
            return f"a row of {self.path} could not be written ({problem}); the run continues"
        return None

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path, *, raw: bool = False) -> list[dict[str, Any]]:
    """Return the valid rows of a metrics.jsonl.

    Truncated lines are skipped, and so are rows that were superseded when the run resumed at an
    earlier step. With `raw`, superseded rows and rows of kind `resume` are included.
    """
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict) or not {"kind", "step"} <= set(row):
            continue
        if raw or row["kind"] != "resume":
            rows.append(row)
        else:
            rows = [earlier for earlier in rows if not _is_superseded(earlier, row)]
    return rows


def _is_superseded(row: Mapping[str, Any], resumed: Mapping[str, Any]) -> bool:
    """Whether a row is repeated after a later row of kind `resume`."""
    if row["step"] == resumed["step"] and row["kind"] in ("val", "val_phase"):
        return bool(resumed.get("evaluates"))
    return bool(row["step"] > resumed["step"])
