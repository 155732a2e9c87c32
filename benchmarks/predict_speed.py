"""Time `convnext predict` on JPEG files, compare it with its network alone, and measure memory.

    python benchmarks/predict_speed.py FOLDER                           # photos in FOLDER
    python benchmarks/predict_speed.py FOLDER --model convnext_xlarge --size 384 --count 2 --no-fast
    python benchmarks/predict_speed.py FOLDER --count 8 --rounds 1 --model convnext_atto    # runs?

The photos are first rewritten with sides of `--side` pixels at quality 92. Each round has two
measurements, in separate processes that take turns. `predict` reads, decodes and resizes all files
and runs the network with the backend that it chooses (the search for it happens before the first
round, as it does once per machine). The network alone gets the same number of noise images in the
same batches, with the same backend. Both exclude the time to import Python and torch, which is
reported separately. Memory is the peak of the `predict` process minus what it had after the
imports.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import convnext
from convnext.data.preprocessing import Preprocessing
from convnext.deploy.fast import Fast
from convnext.deploy.optimize import cache_key, known_backend, optimize
from convnext.hardware.devices import environment, peak_memory_gb
from convnext.hardware.system import keep_freed_memory
from convnext.hardware.tuning_cache import cache_file
from convnext.models.flops import cost
from convnext.recipes.schema import IMAGENET_MEAN, IMAGENET_STD
from convnext.tasks.classification.predict import BATCH_SIZE
from convnext.tasks.factory import create_model
from convnext.weights.checkpoint import Card
from convnext.weights.files import save_checkpoint
from input_speed import write_photos

CPU = torch.device("cpu")
NUM_EXAMPLES = 8  # The batch on which `convnext.deploy.fast` measures.
SIDES = ("predict", "network")


def run_side(side: str, checkpoint: Path, folder: Path, *, fast: bool) -> dict[str, float]:
    """Run one side in this process; return its seconds, and for `predict` its memory in GB."""
    files = sorted(folder.rglob("*.jpg"))
    libraries, began = peak_memory_gb(CPU), time.perf_counter()
    if side == "predict":
        found = convnext.predict(checkpoint, files, device="cpu", fast=fast, progress=False)
        assert len(found) == len(files)
    else:
        from convnext.tasks.trained import open_model

        model, card = open_model(str(checkpoint), CPU)
        size = card.preprocessing.image_size
        noise = torch.randn(min(BATCH_SIZE, len(files)), 3, size, size)
        noise = noise.contiguous(memory_format=torch.channels_last)
        network = Fast(model, device=CPU, precision="fp32", num_images=len(files), enabled=fast)
        done = network.watch(lambda _: None)
        began = time.perf_counter()
        with torch.inference_mode():
            for start in range(0, len(files), len(noise)):
                num = min(len(noise), len(files) - start)
                network(noise[:num])
                done(num)
    return {"seconds": time.perf_counter() - began, "gb": peak_memory_gb(CPU) - libraries}


def find_backend(checkpoint: Path, size: int, *, fast: bool) -> str:
    """Search for the backend that `predict` uses, unless it is known; return its name."""
    from convnext.tasks.trained import open_model

    if not fast:
        return "as trained"
    keep_freed_memory()
    model, _ = open_model(str(checkpoint), CPU)
    example = torch.randn(NUM_EXAMPLES, 3, size, size)
    optimize(model, example, precision="fp32")
    known = known_backend(cache_file(), cache_key(model, example, "fp32"))
    return "as trained" if known is None else str(known.form)


def main() -> None:
    """Measure, and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="a folder of photos")
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--side", type=int, default=500, help="long side of the JPEGs, in pixels")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-fast", action="store_true", help="run the network as trained")
    parser.add_argument("--run", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    fast = not arguments.no_fast
    if arguments.run:
        found = run_side(arguments.run, arguments.checkpoint, arguments.photos, fast=fast)
        print(json.dumps(found))
        return

    random.seed(0)
    torch.manual_seed(0)
    console = Console(highlight=False)
    measured: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_photos(arguments.photos, folder, count=arguments.count, side=arguments.side)
        model = create_model(arguments.model)
        params = cost(model, arguments.size).params
        card = Card(
            task="classify",
            model=arguments.model,
            changes={},
            classes=tuple(map(str, range(1000))),
            preprocessing=Preprocessing(
                image_size=arguments.size, crop_pct=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD
            ),
        )
        checkpoint = folder / "random.safetensors"
        save_checkpoint(checkpoint, model.state_dict(), card)
        del model
        backend = find_backend(checkpoint, arguments.size, fast=fast)
        command = [sys.executable, __file__, str(folder), "--checkpoint", str(checkpoint)]
        command += ["--no-fast"] * arguments.no_fast
        for _ in range(arguments.rounds):
            for side in SIDES:
                began = time.perf_counter()
                told = subprocess.run(
                    [*command, "--run", side], check=True, capture_output=True, text=True
                )
                whole = time.perf_counter() - began
                measured[side].append(json.loads(told.stdout.splitlines()[-1]) | {"whole": whole})

    def median(side: str, what: str) -> float:
        return statistics.median(row[what] for row in measured[side])

    share = statistics.median(
        network["seconds"] / own["seconds"]
        for own, network in zip(measured["predict"], measured["network"], strict=True)
    )
    table = Table("", "s", "images/s", "with start", "GB", box=None)
    for side in SIDES:
        seconds = median(side, "seconds")
        table.add_row(
            side,
            f"{seconds:.2f}",
            f"{arguments.count / seconds:.1f}",
            f"{median(side, 'whole'):.2f} s",
            f"{median(side, 'gb'):.2f}",
        )
    facts = environment(CPU) | {"date": time.strftime("%Y-%m-%d")}
    console.print(
        f"{arguments.model} at {arguments.size}, {arguments.count} JPEGs {arguments.side} pixels "
        f"long, {backend}; weights {4 * params / 1e9:.2f} GB; {facts['cpu']}, {facts['threads']} "
        f"threads, torch {facts['torch']}, {facts['date']}",
        soft_wrap=True,
    )
    console.print(table)
    console.print(f"predict has {100 * share:.0f} % of the speed of its network alone")
    settings = vars(arguments) | {"photos": str(arguments.photos), "checkpoint": None}
    print(
        json.dumps(
            {"settings": settings, "environment": facts, "form": backend, "share": round(share, 3)}
            | {"weights_gb": 4 * params / 1e9, "rounds": measured}
        )
    )


if __name__ == "__main__":
    main()
