"""Soak test of the training engine: a long run with and without kill -9, compared bit for bit.

    python benchmarks/soak.py --steps 10000 --every 20 60 --parallel
    python benchmarks/soak.py --steps 300 --every 5 9              # does it run at all?

Two runs on the bundled digits have the same seed. One is left undisturbed; the process group of the
other is repeatedly killed at random moments and resumed. At the end, every tensor of the last state
and of the best weights, and every row of the metrics except the timing columns, must be equal. The
resident memory of the undisturbed process, sampled every second, must not grow by more than 5
percent from the second tenth of the run to the last. Otherwise the exit code is 1. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from convnext.training.log import read_metrics
from convnext.weights.files import read_file

STEPS_PER_EPOCH = 44  # 1,437 images in batches of 32.
# The columns that depend on time and memory, as in tests/training/test_exactness.py.
TIMED = {"seconds", "images_per_s", "wait_share", "memory_gb", "mfu"}
MAX_GROWTH = 0.05
# Fraction of the kills that happen while the run still starts or reads its state.
EARLY = 0.2
# After this many kills in a row without a newer state, `every` is too short for this machine.
MAX_IN_VAIN = 20


@dataclass
class Run:
    """One run on the digits in `folder`, over as many processes as it takes."""

    folder: Path
    epochs: int
    seed: int
    kills: int = 0
    memory: list[float] = field(default_factory=list)
    """Resident MB of the process, sampled every second of training."""
    problem: str | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def step(self) -> int:
        """The step of the newest state."""
        return max((int(p.name[5:]) for p in self.folder.glob("checkpoints/step-*")), default=0)

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def start(self) -> subprocess.Popen[bytes]:
        """Start the run, or resume it, in a process group of its own."""
        command = [sys.executable, "-m", "convnext", "train", "--output", str(self.folder),
                   "--resume", "--data", "digits", "--schedule.epochs", str(self.epochs),
                   "--run.seed", str(self.seed), "--run.device", "cpu", "--loader.workers", "0",
                   "--run.save_every", "25"]  # fmt: skip
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return self.process

    def kill(self) -> None:
        """Send kill -9 to the process group."""
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def leave_alone(self) -> None:
        """Run to the end and record the memory."""
        process, last = self.start(), self.epochs * STEPS_PER_EPOCH
        while process.poll() is None:
            # The report after the last step imports more modules, which is not a leak.
            if 0 < self.step < last:
                self.memory.append(resident_mb(process.pid))
            time.sleep(1)
        self._ended(process.returncode)

    def disturb(self, every: tuple[float, float]) -> None:
        """Run to the end with kills at random times.

        The time until a kill is counted from the start of training; otherwise a slow machine would
        never reach it.
        """
        rng, in_vain = random.Random(self.seed), 0
        while True:
            before, rows = self.step, self._num_bytes()
            process = self.start()
            early = rng.random() < EARLY
            seconds = rng.uniform(0, every[0]) if early else rng.uniform(*every)
            while not early and process.poll() is None and self._num_bytes() == rows:
                time.sleep(0.05)
            try:
                self._ended(process.wait(timeout=seconds))
                return
            except subprocess.TimeoutExpired:
                self.kill()
            self.kills += 1
            in_vain = 0 if self.step > before else in_vain + 1
            if in_vain == MAX_IN_VAIN:
                self.problem = f"{in_vain} kills in a row without a newer state; raise --every"
                return

    def _num_bytes(self) -> int:
        path = self.folder / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def _ended(self, code: int) -> None:
        if code:
            self.problem = f"{self.folder.name} ended with exit code {code}; see {self.log}"


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process, 0 if it has exited."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith("VmRSS:")), "VmRSS: 0 kB")
    return int(line.split()[1]) * 1024 / 1e6


def difference(one: Run, other: Run) -> str | None:
    """Return the first difference between two finished runs; None if there is none."""
    if one.step != other.step:
        return f"the last steps, {one.step} and {other.step}"
    for name in (f"step-{one.step:08d}/model", f"step-{one.step:08d}/state", "best"):
        a, b = (read_file(r.folder / f"checkpoints/{name}.safetensors")[0] for r in (one, other))
        for key in sorted(a.keys() | b.keys()):
            if key not in a or key not in b or not same_bits(a[key], b[key]):
                return f"{name}: {key}"
    rows, other_rows = learned(one.folder), learned(other.folder)
    for row, other_row in zip(rows, other_rows, strict=False):
        if row != other_row:
            return f"metrics: {row} and {other_row}"
    return None if len(rows) == len(other_rows) else "the number of rows in metrics.jsonl"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the last bit: 0 differs from -0, and NaN equals itself."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def learned(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the metrics without the columns for time and memory."""
    return [
        {name: value for name, value in row.items() if name not in TIMED}
        for row in read_metrics(folder / "metrics.jsonl")
        if row["kind"] != "event"
    ]


def memory_of(samples: list[float]) -> dict[str, float]:
    """Return MB at 10, 50 and 100 percent of a run, and its growth.

    The first tenth is the warm-up: it fills the caches of images, allocators and the evaluation.
    """
    if len(samples) < 10:
        return {}
    tenth = len(samples) // 10
    early = statistics.mean(samples[tenth : 2 * tenth])
    late = statistics.mean(samples[-tenth:])
    slope = statistics.linear_regression(range(len(samples) - tenth), samples[tenth:]).slope
    return {
        "at_10_percent": round(samples[tenth], 1),
        "at_50_percent": round(samples[len(samples) // 2], 1),
        "at_100_percent": round(samples[-1], 1),
        "first_tenth": round(statistics.mean(samples[:tenth]), 1),
        "second_tenth": round(early, 1),
        "last_tenth": round(late, 1),
        "growth": round(late / early - 1, 4),
        "mb_per_hour": round(slope * 3600, 1),
    }


def main() -> int:
    """Run both, compare them, and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10_000, help="rounded up to whole epochs")
    parser.add_argument("--every", type=float, nargs=2, default=(20, 60), metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--parallel", action="store_true", help="run both at once, with a thread each"
    )
    parser.add_argument("--output", type=Path, help="folder of the runs (default: a new one)")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    root = arguments.output or Path(tempfile.mkdtemp(prefix="soak-"))
    root.mkdir(parents=True, exist_ok=True)
    epochs = -(-arguments.steps // STEPS_PER_EPOCH)
    whole, parts = (Run(root / name, epochs, arguments.seed) for name in ("whole", "parts"))
    if any(run.folder.exists() for run in (whole, parts)):
        parser.error(f"{root} already holds runs; choose another --output")
    began = time.perf_counter()

    every = (arguments.every[0], arguments.every[1])
    work = [
        threading.Thread(target=whole.leave_alone, daemon=True),
        threading.Thread(target=parts.disturb, args=(every,), daemon=True),
    ]
    try:
        for batch in [work] if arguments.parallel else [[thread] for thread in work]:
            for thread in batch:
                thread.start()
            while any(thread.is_alive() for thread in batch) and not (whole.problem):
                batch[-1].join(timeout=15)
                console.print(
                    f"{time.perf_counter() - began:6,.0f} s  undisturbed at step {whole.step:,}, "
                    f"{whole.memory[-1] if whole.memory else 0:,.0f} MB; disturbed at step "
                    f"{parts.step:,}, {parts.kills} kills"
                )
    finally:
        whole.kill()
        parts.kill()
    problem = whole.problem or parts.problem or difference(whole, parts)
    memory = memory_of(whole.memory)
    result = {
        "steps": whole.step,
        "kills": parts.kills,
        "seconds": round(time.perf_counter() - began),
        "identical": problem is None,
        "problem": problem,
        "memory_mb": memory,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "runs": str(root),
    }
    table = Table("", "", box=None, show_header=False)
    for name in ("steps", "kills", "seconds"):
        table.add_row(name, f"{result[name]:,}")
    table.add_row("to the last bit", problem or "identical")
    for name, value in memory.items():
        shown = f"{value:+.1%}" if name == "growth" else f"{value:,.1f} MB"
        table.add_row(f"memory {name.replace('_', ' ')}", shown)
    console.print(table)
    print(json.dumps(result))
    return 0 if problem is None and memory.get("growth", 0.0) <= MAX_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
