"""UPerNet of ours and of segmentation_models_pytorch, from scratch for the same time, side by side.

    python benchmarks/segmentation.py DATA --minutes 20 --seeds 0 1 2 --output results

Both networks get the same crops in the same order, the same loss, optimizer, moving average and
schedule; the learning rate follows the clock, so that each has taken all of its time when it is
measured. The two train at once, with one thread each, so that whatever else the machine does slows
both. The other package is not a dependency: `pip install segmentation-models-pytorch`.
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
from pathlib import Path

OURS, THEIRS = "ours", "smp"


def main() -> None:
    """Run all seeds, or with --side one network of one seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--encoder", default="tu-resnet10t", help="of the other package")
    parser.add_argument("--channels", type=int, default=64, help="width of both heads")
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--crop", type=int, default=160)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--set", nargs="*", default=[], metavar="SETTING=VALUE", help="of ours")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--side", choices=(OURS, THEIRS))
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(train(arguments, arguments.side, arguments.seeds[0])), flush=True)
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    rows = []
    for seed in arguments.seeds:
        command = [sys.executable, *without_seeds(sys.argv), "--seeds", str(seed), "--side"]
        running = {
            side: subprocess.Popen([*command, side], stdout=subprocess.PIPE, env=environment)
            for side in (OURS, THEIRS)
        }
        for process in running.values():
            assert process.stdout is not None
            rows.append(json.loads(process.stdout.read().splitlines()[-1]))
            print(json.dumps(rows[-1]), flush=True)
        (arguments.output / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
    for side in (OURS, THEIRS):
        values = [row["miou"] for row in rows if row["side"] == side]
        print(f"{side}: mIoU {statistics.mean(values):.2f} {[round(v, 2) for v in values]}")


def setting(text: str) -> tuple[str, object]:
    """Return a setting of the recipe and its value, from `name=value`."""
    import yaml

    name, _, value = text.partition("=")
    return name, yaml.safe_load(value)


def without_seeds(argv: list[str]) -> list[str]:
    """Return a command line without the option --seeds and its values."""
    kept, skips = [], False
    for word in argv:
        skips = word == "--seeds" or (skips and not word.startswith("--"))
        if not skips:
            kept.append(word)
    return kept


def train(arguments: argparse.Namespace, side: str, seed: int) -> dict[str, object]:
    """Train one network by the clock; return its scores."""
    import torch
    from rich.console import Console
    from torch import nn

    from convnext.recipe import Recipe, change_recipe
    from convnext.tasks import open_task
    from convnext.train.ema import Ema
    from convnext.train.optim import make_optimizer, set_learning_rate

    torch.set_num_threads(1)
    recipe = change_recipe(
        Recipe(),
        {
            "task": "segment",
            "data": arguments.data,
            "model": "upernet_convnext_atto",
            "input.image_size": arguments.size,
            "segment.crop": arguments.crop,
            "segment.channels": arguments.channels,
            "segment.auxiliary_weight": 0.0,
            "segment.jitter": (0.75, 1.5),
            "schedule.epochs": 10_000,
            "optim.lr": arguments.lr,
            "optim.batch_size": arguments.batch,
            "optim.micro_batch_size": arguments.batch,
            "run.seed": seed,
            "run.device": "cpu",
            **dict(map(setting, arguments.set)),
        },
    )
    task = open_task(recipe, torch.device("cpu"), Console(quiet=True))
    torch.manual_seed(seed)
    model = task.build_model() if side == OURS else build_other(arguments, len(task.data.classes))
    model = model.to(memory_format=torch.channels_last).train()
    task.prepare(Console(quiet=True))
    optimizer = make_optimizer(model, task.recipe.optim)
    ema = Ema(model, 0.98)
    budget, began, images = 60 * arguments.minutes, time.perf_counter(), 0
    for step, parts in enumerate(task.batches(0), 1):
        share = (time.perf_counter() - began) / budget
        if share >= 1:
            break
        warm = min(1.0, share / 0.05)
        rate = arguments.lr * warm * 0.5 * (1 + math.cos(math.pi * share))
        set_learning_rate(optimizer, max(rate, 1e-6))
        for p, part in enumerate(parts):
            loss = sum(task.losses(model, part, step, p).values()) / len(parts)
            loss.backward()
            images += task.size(part)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(model, step)
        if step % 100 == 0:
            line = f"{side} seed {seed}: {share:.0%}, {images:,} images, loss {float(loss):.3f}"
            print(line, file=sys.stderr, flush=True)
    scores = {"model": task.evaluate(model)["miou"]}
    with ema.lent_to(model):
        scores["ema"] = task.evaluate(model)["miou"]
    return {
        "side": side,
        "seed": seed,
        "miou": scores["ema"],
        "miou_without_average": scores["model"],
        "images": images,
        "minutes": arguments.minutes,
        "encoder": "convnext_atto" if side == OURS else arguments.encoder,
        "params": sum(p.numel() for p in model.parameters()),
    }


def build_other(arguments: argparse.Namespace, num_classes: int):  # type: ignore[no-untyped-def]
    """Build the other package's UPerNet behind the interface of our segmentors."""
    import segmentation_models_pytorch as smp
    from torch import nn

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = smp.UPerNet(
                encoder_name=arguments.encoder,
                encoder_weights=None,
                decoder_channels=arguments.channels,
                classes=num_classes,
            )

        def forward(self, images, *, heads: bool = False):  # type: ignore[no-untyped-def]
            bottom, right = (-n % 32 for n in images.shape[-2:])
            padded = nn.functional.pad(images, (0, right, 0, bottom))
            logits = self.network(padded)[..., : images.shape[-2], : images.shape[-1]]
            return {"decode": logits} if heads else logits

    return Other()


if __name__ == "__main__":
    main()
