"""Train two networks from scratch for the same wall time, side by side.

Both get the same images in the same order and the same optimizer, moving average and schedule. The
learning rate is a function of the time that has passed. They train at the same time with one thread
each, so that other processes on the machine slow both down alike.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def add_options(parser: argparse.ArgumentParser, sides: Sequence[str]) -> None:
    """Add the options that both benchmarks share."""
    parser.add_argument("data")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="SETTING=VALUE", help="of ours")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--side", choices=sides, help="train one network with one seed")


def run_pairs(arguments: argparse.Namespace, sides: Sequence[str], scores: Sequence[str]) -> None:
    """Run this script once for each side and seed, the sides of a seed at once; print means."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        command = [sys.executable, *without_seeds(sys.argv), "--seeds", str(seed), "--side"]
        running = {
            side: subprocess.Popen([*command, side], stdout=subprocess.PIPE, env=environment)
            for side in sides
        }
        for process in running.values():
            assert process.stdout is not None
            rows.append(json.loads(process.stdout.read().splitlines()[-1]))
            print(json.dumps(rows[-1]), flush=True)
        (arguments.output / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
    for side in sides:
        for score in scores:
            values = [row[score] for row in rows if row["side"] == side]
            listed = [round(value, 2) for value in values]
            print(f"{side}: {score} {statistics.mean(values):.2f} {listed}")


def train(
    task: Any, model: Any, *, lr: float, minutes: float, title: str
) -> tuple[dict[str, float], int]:
    """Train for a fixed time; return the metrics of the moving average and the number of images."""
    import torch
    from rich.console import Console
    from torch import nn

    from convnext.training.optim import Ema, make_optimizer, set_learning_rate

    model = model.to(memory_format=torch.channels_last).train()
    task.prepare(Console(quiet=True))
    optimizer = make_optimizer(model, task.recipe.optim)
    ema = Ema(model, 0.98)
    budget, began, images = 60 * minutes, time.perf_counter(), 0
    for step, parts in enumerate(task.batches(0, int(task.recipe.optim.micro_batch_size)), 1):
        share = (time.perf_counter() - began) / budget
        if share >= 1:
            break
        rate = lr * min(1.0, share / 0.05) * 0.5 * (1 + math.cos(math.pi * share))
        set_learning_rate(optimizer, max(rate, 1e-6))
        total = 0.0
        for p, part in enumerate(parts):
            loss = sum(task.losses(model, part, step, p).values()) / len(parts)
            loss.backward()
            total += float(loss.detach())
            images += task.size(part)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(model, step)
        if step % 100 == 0:
            line = f"{title}: {share:.0%}, {images:,} images, loss {total:.3f}"
            print(line, file=sys.stderr, flush=True)
    with ema.applied_to(model):
        return task.validate(model), images


def setting(text: str) -> tuple[str, object]:
    """Return a setting of the recipe and its value, from `name=value`."""
    import yaml

    name, _, value = text.partition("=")
    return name, yaml.safe_load(value)


def open_task(arguments: argparse.Namespace, changes: Mapping[str, Any]) -> Any:
    """Open the task of a recipe that never ends, on the CPU with one thread."""
    import torch
    from rich.console import Console

    from convnext.recipes.recipe import Recipe, change_recipe
    from convnext.tasks import task_class

    torch.set_num_threads(1)
    seed = arguments.seeds[0]
    fixed = {"data": arguments.data, "schedule.epochs": 10_000, "run.device": "cpu"}
    own = dict(map(setting, arguments.set))
    recipe = change_recipe(Recipe(), {**fixed, "run.seed": seed, **changes, **own})
    task = task_class(recipe.task).open(recipe, torch.device("cpu"), Console(quiet=True))
    torch.manual_seed(seed)
    return task


def without_seeds(argv: list[str]) -> list[str]:
    """Return a command line without the option --seeds and its values."""
    kept, skips = [], False
    for word in argv:
        skips = word == "--seeds" or (skips and not word.startswith("--"))
        if not skips:
            kept.append(word)
    return kept
