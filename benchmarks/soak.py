"""The soak of the training engine: a long run with and without kill -9, compared to the last bit.

    python benchmarks/soak.py --steps 10000 --every 20 60

Two runs of the built-in digits with the same seed, side by side with a thread each. One is left
alone, the other's processes are killed again and again at random moments and resumed. At the end
every tensor of the last state and of the best weights, and every row of the metrics but for the
clock's columns, must be the same; and the memory of the undisturbed process must not grow.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from convnext.train.log import read_metrics
from convnext.weights.files import read_file

STEPS_PER_EPOCH = 44  # 1,437 images in batches of 32.
TIMED = {"seconds", "images_per_s", "wait_share", "memory_gb", "mfu"}
MAX_GROWTH = 0.05


def start(folder: Path, epochs: int, seed: int, log: Path) -> subprocess.Popen[bytes]:
    """Start or resume a run in a process group of its own."""
    command = [sys.executable, "-m", "convnext", "train", "--resume", "--output", str(folder)]
    settings = ["--data", "digits", "--schedule.epochs", str(epochs), "--seed", str(seed)]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*command, *settings, "--run.device", "cpu", "--run.save_every", "25"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process, 0 if it has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith("VmRSS:")), "VmRSS: 0 kB")
    return int(line.split()[1]) / 1000


def last_step(folder: Path) -> int:
    """Return the step of the newest state of a run."""
    return max((int(p.name[5:]) for p in folder.glob("checkpoints/step-*")), default=0)


def disturb(folder: Path, epochs: int, seed: int, every: tuple[float, float], log: Path) -> int:
    """Run to the end with kills at random times; return how many there were."""
    rng, kills = random.Random(seed), 0
    while True:
        process = start(folder, epochs, seed, log)
        try:
            code = process.wait(timeout=rng.uniform(*every))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        if code:
            raise RuntimeError(f"the disturbed run ended with exit code {code}; see {log}")
        return kills


def difference(one: Path, other: Path) -> str | None:
    """Return the first thing in which two finished runs differ, None for nothing."""
    last = last_step(one)
    if last != last_step(other):
        return f"the last steps, {last} and {last_step(other)}"
    names = [f"step-{last:08d}/model", f"step-{last:08d}/state", "best"]
    for name in names:
        a, b = (read_file(run / f"checkpoints/{name}.safetensors")[0] for run in (one, other))
        for key in sorted(a.keys() | b.keys()):
            if key not in a or key not in b or not torch.equal(a[key], b[key]):
                return f"{name}: {key}"
    rows_a, rows_b = (learned(run) for run in (one, other))
    for a_row, b_row in zip(rows_a, rows_b, strict=False):
        if a_row != b_row:
            return f"metrics: {a_row} and {b_row}"
    return None if len(rows_a) == len(rows_b) else "the number of rows in metrics.jsonl"


def learned(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the metrics without what depends on the clock and on memory."""
    return [
        {name: value for name, value in row.items() if name not in TIMED}
        for row in read_metrics(folder / "metrics.jsonl")
        if row["kind"] != "event"
    ]


def growth(memory: list[float]) -> tuple[float, float]:
    """Return the mean memory of the second tenth of a run and of its last tenth, in MB.

    The first tenth is the warm-up: caches of images, of allocators and of the first evaluation.
    """
    tenth = max(1, len(memory) // 10)
    early, late = memory[tenth : 2 * tenth], memory[-tenth:]
    return sum(early) / max(1, len(early)), sum(late) / max(1, len(late))


def main() -> int:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--every", type=float, nargs=2, default=(20, 60), metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where the runs go (default: a new folder)")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    root = arguments.output or Path(tempfile.mkdtemp(prefix="soak-"))
    root.mkdir(parents=True, exist_ok=True)
    epochs = -(-arguments.steps // STEPS_PER_EPOCH)
    whole, parts = root / "whole", root / "parts"
    began = time.perf_counter()

    found: dict[str, Any] = {}

    def run_disturbed() -> None:
        try:
            every = tuple(arguments.every)
            found["kills"] = disturb(parts, epochs, arguments.seed, every, root / "parts.log")
        except RuntimeError as error:
            found["error"] = str(error)

    thread = threading.Thread(target=run_disturbed)
    thread.start()
    process = start(whole, epochs, arguments.seed, root / "whole.log")
    memory: list[float] = []
    told = 0.0
    while process.poll() is None or thread.is_alive():
        time.sleep(1)
        if process.poll() is None:
            memory.append(resident_mb(process.pid))
        if time.perf_counter() - told > 30:
            told = time.perf_counter()
            console.print(
                f"{told - began:6.0f} s  undisturbed at step {last_step(whole):,}, disturbed at "
                f"{last_step(parts):,}, {memory[-1] if memory else 0:,.0f} MB"
            )
    thread.join()
    problem = found.get("error")
    if process.returncode:
        problem = f"the undisturbed run ended with exit code {process.returncode}"
    problem = problem or difference(whole, parts)
    early, late = growth(memory)
    result = {
        "steps": last_step(whole),
        "kills": found.get("kills"),
        "seconds": round(time.perf_counter() - began),
        "identical": problem is None,
        "problem": problem,
        "memory_mb": {"second_tenth": round(early, 1), "last_tenth": round(late, 1)},
        "peak_mb": round(max(memory, default=0), 1),
        "torch": torch.__version__,
        "runs": str(root),
    }
    verdict = "identical" if problem is None else f"different: {problem}"
    console.print(
        f"{result['steps']:,} steps, {result['kills']} kills, {result['seconds']:,} s: {verdict}; "
        f"memory {early:,.0f} MB early, {late:,.0f} MB at the end"
    )
    print(json.dumps(result))
    return 0 if problem is None and late <= early * (1 + MAX_GROWTH) else 1


if __name__ == "__main__":
    sys.exit(main())
