"""Images per second of training: our loop's step against the inner loop of timm's training script.

    python benchmarks/training_speed.py --data PATH                # on a GPU: bf16, batch 256
    python benchmarks/training_speed.py --data PATH --model convnext_atto --size 64 --batch 8 \
        --device cpu --precision fp32 --rounds 3 --steps 4         # does it run at all?

Both train the same network with the paper's recipe (RandAugment, mixup, cutmix, erasing, label
smoothing, moving average) in the same precision, in one process and in turns: the medians over the
rounds are of the same minutes. `synthetic` feeds batches that are on the device already, `jpeg`
decodes and augments the images of PATH (train/CLASS/*) with as many worker processes on both sides.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

from convnext.costs import cost
from convnext.device import autocast, environment
from convnext.recipe import Recipe, change_recipe, read_recipe
from convnext.tasks import open_task
from convnext.tasks.classification.dataset import Batch
from convnext.train.log import RunLog
from convnext.train.loop import _Trainer
from convnext.train.measure import matrix_limit, mfu
from convnext.train.parallel import make_fabric
from convnext.train.stop import StopSignals

Step = Callable[[], None]
QUIET = Console(quiet=True)


def recipe_of(arguments: argparse.Namespace, *, compiled: bool) -> Recipe:
    """Return the paper's recipe for ConvNeXt-T on the data, network and device of the options."""
    return change_recipe(
        read_recipe("imagenet1k_tiny"),
        {
            "model": arguments.model,
            "data": str(arguments.data),
            "input.image_size": arguments.size,
            "optim.batch_size": arguments.batch,
            "optim.micro_batch_size": arguments.batch,
            "loader.workers": arguments.workers,
            "loader.cache": False,
            "run.device": arguments.device,
            "run.precision": arguments.precision,
            "run.channels_last": True,
            "run.compile": compiled,
            "run.save_every": 10**9,
        },
    )


def our_step(arguments: argparse.Namespace, *, compiled: bool, synthetic: bool) -> Step:
    """Return a function that takes one step of our loop, everything in it included."""
    recipe = recipe_of(arguments, compiled=compiled)
    device = torch.device(arguments.device)
    fabric = make_fabric(recipe.run, device, arguments.precision)
    fabric.launch()
    task = open_task(recipe, fabric.device, QUIET)
    log = RunLog(Path(tempfile.mkdtemp()), silent=True)
    model = task.build_model()
    trainer = _Trainer(
        task, model, task.recipe, fabric=fabric, log=log, stop=StopSignals(), macs=None
    )
    batches: Iterator[Any] = task.batches(0)
    if synthetic:
        shape = (arguments.batch, 3, arguments.size, arguments.size)
        batch = Batch(
            torch.randint(0, 256, shape, dtype=torch.uint8, device=device),
            torch.randint(0, len(task.data.classes), shape[:1], device=device),
            torch.arange(arguments.batch),
            (),
        )
        batches = itertools.repeat([batch])

    def step() -> None:
        trainer._step(next(batches))
        trainer._look(ends_window=trainer.plan.logs_at(trainer.step))

    return step


def timm_step(arguments: argparse.Namespace, *, compiled: bool, synthetic: bool) -> Step:
    """Return a function that takes one step as timm's training script does."""
    device = torch.device(arguments.device)
    num_classes = len(list((arguments.data / "train").iterdir()))
    model = timm.create_model(arguments.model, num_classes=num_classes, drop_path_rate=0.1)
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=4e-3, weight_decay=0.05)
    ema = ModelEmaV3(model, decay=0.9999)
    forward = torch.compile(model) if compiled else model
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=num_classes)
    loss_of = SoftTargetCrossEntropy().to(device)
    batches: Iterator[Any]
    if synthetic:
        images = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=device)
        labels = torch.randint(0, num_classes, (arguments.batch,), device=device)
        batches = itertools.repeat((images, labels))
    else:
        loader = create_loader(
            create_dataset("", root=str(arguments.data), split="train", is_training=True),
            input_size=(3, arguments.size, arguments.size),
            batch_size=arguments.batch,
            is_training=True,
            use_prefetcher=device.type == "cuda",
            auto_augment="rand-m9-mstd0.5-inc1",
            color_jitter=0.4,
            re_prob=0.25,
            re_mode="pixel",
            interpolation="bicubic",
            num_workers=arguments.workers,
            device=device,
        )
        batches = (batch for _ in itertools.count() for batch in loader)
    model.train()

    def step() -> None:
        images, labels = next(batches)
        images, labels = mixup(images.to(device).clone(), labels.to(device))
        images = images.contiguous(memory_format=torch.channels_last)
        with autocast(device, arguments.precision):
            loss = loss_of(forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)

    return step


def seconds_of(step: Step, count: int, device: torch.device) -> float:
    """Return the seconds of one step, a mean over `count`."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / count


def main() -> None:
    """Measure, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="bf16")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="steps of each form in a round")
    parser.add_argument("--eager-only", action="store_true")
    arguments = parser.parse_args()
    console, device = Console(highlight=False), torch.device(arguments.device)

    forms: dict[str, Step] = {}
    for inputs in ("synthetic", "jpeg"):
        for compiled in (False,) if arguments.eager_only else (False, True):
            how = f"{inputs}, {'compiled' if compiled else 'eager'}"
            options = {"compiled": compiled, "synthetic": inputs == "synthetic"}
            forms[f"ours, {how}"] = our_step(arguments, **options)
            forms[f"timm, {how}"] = timm_step(arguments, **options)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for name, step in forms.items():
        console.print(f"warming up: {name}")
        seconds_of(step, max(3, arguments.steps // 4), device)
    for round_ in range(arguments.rounds):
        for name, step in forms.items():
            times[name].append(seconds_of(step, arguments.steps, device))
        console.print(f"round {round_ + 1} of {arguments.rounds}")

    facts = environment(device)
    network = timm.create_model(arguments.model)
    macs = cost(network, arguments.size).macs
    limit = matrix_limit(device, arguments.precision)
    table = Table("form", "images/s", "against timm eager", "MFU", box=None)
    rows = {}
    for name, measured in times.items():
        base = times[f"timm, {name.split(', ')[1]}, eager"]
        speed = arguments.batch / statistics.median(measured)
        # Of one round each, then the median: what disturbs a round disturbs both.
        ratio = statistics.median(b / m for b, m in zip(base, measured, strict=True))
        used = mfu(speed, macs, limit)
        rows[name] = {"images_per_s": round(speed, 1), "ratio": round(ratio, 3)}
        table.add_row(name, f"{speed:,.1f}", f"{ratio:.2f}", f"{used:.0%}")
    console.print(
        f"{arguments.model} at {arguments.size}, batch {arguments.batch}, {arguments.precision}, "
        f"{facts['device']}, torch {facts['torch']}, {time.strftime('%Y-%m-%d')}"
    )
    console.print(table)
    print(json.dumps({"settings": vars(arguments) | {"data": str(arguments.data)}, "forms": rows}))


if __name__ == "__main__":
    main()
