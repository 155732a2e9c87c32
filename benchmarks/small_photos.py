"""Train ConvNeXt and ResNet from scratch on a small set of photos for the same wall time.

The two runs of a pair train at the same time on one core each; the cores are swapped with every
seed. `auto` chooses the settings of both networks, and the number of epochs sets their length.
First measure how long an epoch takes:

    python benchmarks/small_photos.py PATH --epochs 5 5 --seeds 1

Then choose the epochs so that both take the same time, or the second network takes longer:

    python benchmarks/small_photos.py PATH --epochs 28 14 --seeds 3

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def start(model: str, *, core: int, data: str, epochs: int, seed: int, folder: Path) -> Any:
    """Start a run on one core."""
    command = [sys.executable, "-m", "convnext", "train", "--data", data, "--model", model,
               "--schedule.epochs", str(epochs), "--run.seed", str(seed),
               "--run.eval_every", str(epochs), "--output", str(folder), "--json"]  # fmt: skip
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=(folder.parent / f"{folder.name}.log").open("w"),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        text=True,
    )


def finish(process: Any, folder: Path) -> dict[str, float]:
    """Wait for a run; return its accuracy and the seconds of its training."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit((folder.parent / f"{folder.name}.log").read_text())
    result = json.loads(output.splitlines()[-1])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["kind"] == "train"]
    final = {row["weights"]: row["top1"] for row in rows if row["kind"] == "val"}
    return {
        "top1": result["best"]["top1"],
        "top1_weights": final["model"],
        "seconds": trained[-1]["seconds"],
        "images": trained[-1]["images"],
    }


def main() -> None:
    """Run all pairs and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--models", nargs=2, default=["convnext_atto", "timm/resnet18"])
    parser.add_argument("--epochs", nargs=2, type=int, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {model: [] for model in arguments.models}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(arguments.seeds):
            running = []
            for side, (model, epochs) in enumerate(
                zip(arguments.models, arguments.epochs, strict=True)
            ):
                folder = Path(scratch) / f"{side}-{seed}"
                core = (side + seed) % 2
                process = start(
                    model, core=core, data=arguments.data, epochs=epochs, seed=seed, folder=folder
                )
                running.append((model, folder, process))
            for model, folder, process in running:
                results[model].append(finish(process, folder))
                print(f"{model:<20} seed {seed}  {results[model][-1]}", flush=True)
    for model, rows in results.items():
        top1 = [row["top1"] for row in rows]
        spread = f" ± {statistics.stdev(top1):.1f}" if len(top1) > 1 else ""
        seconds = statistics.mean(row["seconds"] for row in rows)
        print(f"{model:<20} {statistics.mean(top1):.1f}{spread} %  in {seconds:.0f} s")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
