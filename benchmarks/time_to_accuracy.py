"""Measure how long training takes to reach an accuracy, for several settings and seeds.

Every run has one core, and as many run at a time as cores are given; a side gets another core with
every seed. The curve of a run is the validation accuracy of its best weights so far over the
seconds since its command started, so that start-up counts. The marks are 90, 95 and 98 percent of
the best final accuracy of all runs. Finished runs are kept: the same command continues.

    python benchmarks/time_to_accuracy.py PATH --output DIR --seeds 0 1 2 \\
        --side "auto=" --side "progressive=--schedule.progressive True" \\
        --side "resnet18=--model timm/resnet18"

A peer of another environment is a command that prints one JSON line for each evaluation, with
`seconds` since it started and `accuracy` in percent; {data}, {seed} and {output} are filled in:

    --peer "name=/path/to/python script.py {data} {seed} {output}"

It writes runs.json, summary.json and curves.png into DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

Curve = list[tuple[float, float]]
"""Seconds and the best accuracy so far, in percent."""
MARKS = (0.90, 0.95, 0.98)


def best_so_far(points: Sequence[tuple[float, float]]) -> Curve:
    """Return the running maximum of the accuracy over time."""
    curve: Curve = []
    for seconds, accuracy in sorted(points):
        curve.append((seconds, max(accuracy, curve[-1][1] if curve else 0.0)))
    return curve


def time_to(curve: Curve, accuracy: float) -> float | None:
    """Return the seconds until an accuracy is first reached; None if it never is."""
    return next((seconds for seconds, value in curve if value >= accuracy), None)


def curve_of_run(folder: Path, began: float) -> Curve:
    """Return the curve of a run folder whose command began at a time of the clock."""
    # The folder gets this file when training begins.
    start = max(0.0, (folder / "choices.json").stat().st_mtime - began)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "val"]
    return best_so_far([(start + row["seconds"], row["top1"]) for row in rows])


def curve_of_lines(text: str) -> Curve:
    """Return the curve of the JSON lines that a peer printed."""
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return best_so_far([(row["seconds"], row["accuracy"]) for row in rows])


def run_ours(
    arguments: argparse.Namespace, options: str, seed: int, folder: Path, core: int
) -> Curve:
    """Train with `convnext train` on one core."""
    command = [sys.executable, "-m", "convnext", "train", "--data", arguments.data,
               "--run.eval_every", "1", "--output", str(folder), "--run.seed", str(seed),
               *shlex.split(arguments.common), *shlex.split(options)]  # fmt: skip
    began = time.time()
    _call(command, core, folder.with_suffix(".log"))
    return curve_of_run(folder, began)


def run_peer(
    arguments: argparse.Namespace, template: str, seed: int, folder: Path, core: int
) -> Curve:
    """Run a peer's command on one core."""
    filled = template.format(data=arguments.data, seed=seed, output=folder)
    return curve_of_lines(_call(shlex.split(filled), core, folder.with_suffix(".log")))


def _call(command: Sequence[str], core: int, log: Path) -> str:
    def pin() -> None:
        os.sched_setaffinity(0, {core})

    with log.open("w", encoding="utf-8") as errors:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=pin,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(
            f"{shlex.join(command)} failed:\n{log.read_text(encoding='utf-8')[-2000:]}"
        )
    return done.stdout


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return each side's final accuracies and the times to the marks, and print them."""
    best = max(run["curve"][-1][1] for run in runs)
    summary: dict[str, Any] = {"best": best, "sides": {}}
    print(
        f"best final accuracy {best:.2f} %; marks at " + ", ".join(f"{m * best:.2f}" for m in MARKS)
    )
    for side in dict.fromkeys(run["side"] for run in runs):
        curves = [run["curve"] for run in runs if run["side"] == side]
        final = [curve[-1][1] for curve in curves]
        times = {str(mark): [time_to(curve, mark * best) for curve in curves] for mark in MARKS}
        seconds = [curve[-1][0] for curve in curves]
        summary["sides"][side] = {"final": final, "times": times, "seconds": seconds}
        shown = "  ".join(f"{float(mark):.0%} {_median(found)}" for mark, found in times.items())
        mean = statistics.mean(final)
        print(
            f"{side:<16} final {mean:.2f} {final}  {shown}  end {statistics.median(seconds):.0f} s"
        )
    return summary


def _median(times: Sequence[float | None]) -> str:
    """Return the median time as text; "never" if most runs do not reach the mark."""
    ordered = sorted(float("inf") if found is None else found for found in times)
    middle = statistics.median_high(ordered)
    return "never" if middle == float("inf") else f"{middle:.0f} s"


def draw(runs: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw the curves, one line a run and one color a side."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for number, side in enumerate(dict.fromkeys(run["side"] for run in runs)):
        for k, run in enumerate(run for run in runs if run["side"] == side):
            seconds, accuracy = zip(*run["curve"], strict=True)
            axes.plot(
                seconds, accuracy, drawstyle="steps-post", color=f"C{number}", alpha=0.8,
                linewidth=1.4, label=side if k == 0 else None,
            )  # fmt: skip
    axes.set(
        xlabel="seconds since the command started", ylabel="best accuracy so far (%)", title=title
    )
    axes.set_ylim(0, 100)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run what is missing, then print the table and draw the curves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--side", action="append", default=[], metavar="NAME=OPTIONS")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--common", default="", help="options of all sides of ours")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cores", type=int, nargs="+", default=sorted(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    sides = [(run_ours, *text.partition("=")[::2]) for text in arguments.side]
    sides += [(run_peer, *text.partition("=")[::2]) for text in arguments.peer]
    if not sides:
        parser.error("give at least one --side or --peer")
    arguments.output.mkdir(parents=True, exist_ok=True)
    store = arguments.output / "runs.json"
    runs: list[dict[str, Any]] = json.loads(store.read_text()) if store.exists() else []
    done = {(run["side"], run["seed"]) for run in runs}
    order = [
        (side, seed)
        for number, seed in enumerate(arguments.seeds)
        for side in (sides if number % 2 == 0 else sides[::-1])
        if (side[1], seed) not in done
    ]
    free: SimpleQueue[int] = SimpleQueue()
    for core in arguments.cores:
        free.put(core)

    def work(job: tuple[Any, int]) -> dict[str, Any]:
        (act, name, options), seed = job
        core = free.get()
        try:
            folder = arguments.output / f"{name}-{seed}-{time.strftime('%H%M%S')}"
            curve = act(arguments, options, seed, folder, core)
        finally:
            free.put(core)
        return {"side": name, "seed": seed, "options": options, "core": core, "curve": curve}

    with ThreadPoolExecutor(len(arguments.cores)) as pool:
        for run in pool.map(work, order):
            runs.append(run)
            store.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
            seconds, accuracy = run["curve"][-1]
            print(
                f"{run['side']} seed {run['seed']}: {accuracy:.2f} % in {seconds:.0f} s", flush=True
            )
    summary = summarize(runs)
    (arguments.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw(runs, arguments.output / "curves.png", Path(arguments.data).name)


if __name__ == "__main__":
    main()
