"""What a run says while it goes: one progress line, metrics.jsonl, and TensorBoard events."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from convnext.atomic import write_text

# Without a terminal, a plain line now and then in place of a bar that redraws itself.
PLAIN_LINE_SECONDS = 15.0


class RunLog:
    """The log of a run in `folder`."""

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self.console = console or Console(file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder / "tensorboard"))
        self._progress: Progress | None = None
        self._bar = TaskID(0)
        self._num_steps = self._steps_per_epoch = 1
        self._first_step = 0
        self._images = self._window_images = 0
        self._waited = 0.0
        self._window_start = self._started = self._last_line = time.perf_counter()
        self._seconds_before = 0.0

    def begin_at(self, step: int) -> None:
        """Drop the lines after `step` that an interrupted run had written; say where it goes on."""
        path = self.folder / "metrics.jsonl"
        self._metrics.close()
        kept = [row for row in read_metrics(path) if row["step"] <= step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._metrics = path.open("a", encoding="utf-8")
        self._images = max((row["images"] for row in kept), default=0)
        self._seconds_before = max((row["seconds"] for row in kept), default=0.0)
        if step:
            self.console.print(f"Resuming at step {step:,}.")

    def start(self, *, num_steps: int, steps_per_epoch: int, first_step: int) -> None:
        """Begin the progress line."""
        self._num_steps, self._steps_per_epoch = num_steps, steps_per_epoch
        self._first_step = first_step
        self._window_start = self._started = self._last_line = time.perf_counter()
        if self.console.is_terminal:
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
        """End the progress line and flush the files."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        self._metrics.flush()
        self._events.flush()

    def close(self) -> None:
        """Close the files."""
        self.stop()
        self._metrics.close()
        self._events.close()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    def stepped(self, step: int, num_images: int) -> None:
        """Count a step."""
        self._images += num_images
        self._window_images += num_images
        if self._progress is not None:
            self._progress.update(self._bar, completed=step)

    def trained(self, step: int, *, loss: float, lr: float) -> None:
        """Record the mean loss since the last call, the rate, the speed and the waiting."""
        now = time.perf_counter()
        elapsed = max(now - self._window_start, 1e-9)
        speed, wait_share = self._window_images / elapsed, self._waited / elapsed
        self._window_start, self._window_images, self._waited = now, 0, 0.0
        row = {
            "loss": loss,
            "lr": lr,
            "images_per_s": round(speed, 1),
            "wait_share": round(wait_share, 4),
        }
        self._write("train", step, row)
        line = (
            f"step {step:,}/{self._num_steps:,}  epoch {step / self._steps_per_epoch:.1f}  "
            f"loss {loss:.3f}  lr {lr:.1e}  {speed:.0f} images/s  waiting {wait_share:.0%}"
        )
        if self._progress is not None:
            self._progress.update(self._bar, description=line)
        elif now - self._last_line > PLAIN_LINE_SECONDS:
            self._last_line = now
            done = step - self._first_step
            left = (now - self._started) / done * (self._num_steps - step)
            self.console.print(f"{line}  ETA {left:.0f} s", highlight=False, soft_wrap=True)

    def evaluated(self, step: int, weights: str, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Record an evaluation, and return it with its step and the name of the weights.

        The time that it took does not count in the speed of training.
        """
        row = {"weights": weights, **metrics}
        self._write("val", step, row)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        epoch = step / self._steps_per_epoch
        label = "val" if weights == "model" else f"val ({weights})"
        self.console.print(f"epoch {epoch:.4g}  {label}:  {shown}", highlight=False, soft_wrap=True)
        self._window_start, self._window_images, self._waited = time.perf_counter(), 0, 0.0
        return {"step": step, **row}

    def _write(self, kind: str, step: int, row: Mapping[str, Any]) -> None:
        seconds = self._seconds_before + time.perf_counter() - self._started
        full = {
            "kind": kind,
            "step": step,
            "epoch": round(step / self._steps_per_epoch, 4),
            "images": self._images,
            "seconds": round(seconds, 2),
            **row,
        }
        self._metrics.write(json.dumps(full) + "\n")
        self._metrics.flush()
        for name, value in row.items():
            if isinstance(value, int | float):
                tag = f"{kind}/{name}" if kind == "train" else f"{kind}/{name}_{row['weights']}"
                self._events.add_scalar(tag, value, step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl; a last line that was cut off is left out."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
