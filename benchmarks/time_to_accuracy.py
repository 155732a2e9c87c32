"""Measure how long training takes to reach an accuracy, for several settings and seeds.

Every run has one core, and as many run at a time as cores are given; a side gets another core with
every seed. The curve of a run is the validation accuracy of its best weights so far over the
seconds since its process started, so that start-up counts. The marks are 90, 95 and 98 percent of
the best final accuracy of all runs. Finished runs are kept: the same command continues. Settings of
a side are JSON:

    python benchmarks/time_to_accuracy.py PATH --output DIR --seeds 0 1 2 \\
        --side 'auto={}' --side 'progressive={"schedule.progressive": true}' \\
        --side 'resnet18={"model": "timm/resnet18"}'

A program of another environment is a command that prints one JSON line for each evaluation, with
`seconds` since it started (perhaps `cpu_seconds`) and `accuracy` in percent; {data}, {seed} and
{output} are filled in:

    --command "name=/path/to/python script.py {data} {seed} {output}"

Beside other processes on the same cores, `--clock cpu_seconds` counts the processor time instead.

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
STARTED = time.time()


def best_so_far(points: Sequence[tuple[float, float]]) -> Curve:
    """Return the running maximum of the accuracy over time."""
    curve: Curve = []
    for seconds, accuracy in sorted(points):
        curve.append((seconds, max(accuracy, curve[-1][1] if curve else 0.0)))
    return curve


def time_to(curve: Curve, accuracy: float) -> float | None:
    """Return the seconds until an accuracy is first reached; None if it never is."""
    return next((seconds for seconds, value in curve if value >= accuracy), None)


def curve_of(text: str, clock: str) -> Curve:
    """Return the curve of the JSON lines that a run printed."""
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return best_so_far([(row.get(clock, row["seconds"]), row["accuracy"]) for row in rows])


def train(data: str, settings: str, seed: int, folder: str, began: float) -> None:
    """Train, and print one JSON line for each evaluation."""
    import convnext

    class Recorder(convnext.Callback):
        def on_evaluation(self, end: Any) -> None:
            row = {
                "accuracy": end.metrics["top1"],
                "seconds": time.time() - began,
                "cpu_seconds": time.process_time(),
                "epoch": end.epoch,
                "weights": end.weights,
            }
            print(json.dumps(row), flush=True)

    given = {"run.eval_every": 1, "run.seed": seed, **json.loads(settings or "{}")}
    convnext.train(data=data, output=folder, callbacks=Recorder(), progress=False, **given)


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


def draw(runs: Sequence[Mapping[str, Any]], path: Path, title: str, clock: str) -> None:
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
        xlabel="seconds" if clock == "seconds" else "seconds of processor time",
        ylabel="best accuracy so far (%)",
        title=title,
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
    parser.add_argument("--side", action="append", default=[], metavar="NAME=JSON")
    parser.add_argument("--command", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--clock", choices=["seconds", "cpu_seconds"], default="seconds")
    parser.add_argument(
        "--train", nargs=3, metavar=("SEED", "SETTINGS", "FOLDER"), help=argparse.SUPPRESS
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cores", type=int, nargs="+", default=sorted(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    if arguments.train is not None:
        seed, settings, folder = arguments.train
        train(arguments.data, settings, int(seed), folder, STARTED)
        return
    own = shlex.join([sys.executable, __file__, "{data}", "--output", ".", "--train", "{seed}"])
    sides = [
        (name, f"{own} {shlex.quote(settings).replace('{', '{{').replace('}', '}}')} {{output}}")
        for name, _, settings in (text.partition("=") for text in arguments.side)
    ]
    sides += [(name, command) for name, _, command in (t.partition("=") for t in arguments.command)]
    if not sides:
        parser.error("give at least one --side or --command")
    arguments.output.mkdir(parents=True, exist_ok=True)
    store = arguments.output / "runs.json"
    runs: list[dict[str, Any]] = json.loads(store.read_text()) if store.exists() else []
    done = {(run["side"], run["seed"]) for run in runs}
    order = [
        (side, seed)
        for number, seed in enumerate(arguments.seeds)
        for side in (sides if number % 2 == 0 else sides[::-1])
        if (side[0], seed) not in done
    ]
    free: SimpleQueue[int] = SimpleQueue()
    for core in arguments.cores:
        free.put(core)

    def work(job: tuple[tuple[str, str], int]) -> dict[str, Any]:
        (name, command), seed = job
        core = free.get()
        try:
            folder = arguments.output / f"{name}-{seed}-{time.strftime('%H%M%S')}"
            data, output = shlex.quote(arguments.data), shlex.quote(str(folder))
            filled = command.format(data=data, seed=seed, output=output)
            printed = _call(shlex.split(filled), core, folder.with_suffix(".log"))
        finally:
            free.put(core)
        curve = curve_of(printed, arguments.clock)
        return {"side": name, "seed": seed, "command": command, "core": core, "curve": curve}

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
    draw(runs, arguments.output / "curves.png", Path(arguments.data).name, arguments.clock)


if __name__ == "__main__":
    main()
