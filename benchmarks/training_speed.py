"""Time training steps in images per second: our loop and the inner loop of timm's train.py.

    python benchmarks/training_speed.py                            # ready batches, on a GPU
    python benchmarks/training_speed.py --input FOLDER             # JPEGs in FOLDER/train/CLASS/*
    python benchmarks/training_speed.py --device cpu --precision fp32 --model convnext_atto \
        --size 64 --batch 8 --workers 1 --rounds 2 --steps 3       # does it run at all?
    python benchmarks/training_speed.py --device cpu --precision fp32 --threads 2 --batch 8 \
        --rounds 5 --steps 2 --eager-only --layouts       # pointwise layers and memory formats

Both train the same network with the paper's recipe (RandAugment, mixup, cutmix, erasing, label
smoothing, moving average) in one process, in turns, so the medians over the rounds cover the same
minutes. Ours is a real step of `convnext.training.loop` on a real task. timm's is what its train.py
does with `--channels-last --amp --model-ema --mixup --cutmix`: its loader and prefetcher, mixing in
the loader's processes, cudnn.benchmark on. Only the side whose turn it is has a loader. With ready
batches, timm's images are already mixed and ours are mixed in every step; both sides normalize and
erase.

With `--layouts`, both sides train in both memory formats, and ours also with its pointwise
convolutions as linear layers. On a CPU our blocks train as one operation; "layer by layer" is the
same network without that. `--keep-memory` makes both sides keep freed memory, as our command line
does (Linux). `--cpu-time` counts processor time, for machines that others share; use it with one
thread only, because threads that wait for each other count as well.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table
from timm.data import FastCollateMixup, create_dataset, create_loader
from timm.data.auto_augment import NAME_TO_OP
from timm.data.loader import PrefetchLoader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, NativeScaler
from torch import Tensor, nn

from convnext.data.preprocessing import Preprocessing
from convnext.hardware.devices import ALONE, autocast, environment, pick_device
from convnext.hardware.peak_rates import mfu, peak_matmul_flops
from convnext.hardware.system import StopSignals, keep_freed_memory
from convnext.models.execution import set_fused
from convnext.models.flops import cost
from convnext.recipes.recipe import Recipe, change_recipe, read_recipe
from convnext.tasks import task_class
from convnext.tasks.classification.augment import BatchAugment, _posterize, losses
from convnext.tasks.classification.dataset import Batch
from convnext.tasks.factory import create_model
from convnext.training.backend import Backend, choose_backend
from convnext.training.distributed import make_fabric, seed_everything
from convnext.training.log import RunLog
from convnext.training.loop import _Trainer
from pointwise import set_pointwise

NUM_CLASSES = 1000  # The number of classes of ready batches, as in ImageNet.
NUM_IMAGES = 1_281_167  # The images of an epoch of ready batches; the minimum for timm.
QUIET = Console(quiet=True)


class ReadyTask:
    """Classification of one batch of random pixels that stays on the device."""

    primary = "top1"
    fingerprint = "random pixels"

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe = recipe
        self.batch_size = recipe.optim.batch_size
        self.steps_per_epoch = NUM_IMAGES // self.batch_size
        pixels, labels = random_batch(self.batch_size, recipe.input.image_size, device)
        self._batch = Batch(pixels, labels, torch.arange(self.batch_size), ())
        self._augment = BatchAugment(
            recipe.augment,
            num_classes=NUM_CLASSES,
            label_smoothing=recipe.loss.label_smoothing,
            preprocessing=Preprocessing(**asdict(recipe.input)),
        )

    def build_model(self) -> nn.Module:
        return create_model(self.recipe.model, drop_path_rate=0.1, num_classes=NUM_CLASSES)

    def batches(self, *_: Any) -> Generator[list[Batch], None, None]:
        while True:
            yield [self._batch]

    def size(self, batch: Batch) -> int:
        return len(batch.labels)

    def losses(
        self, model: nn.Module, batch: Batch, step: int, part: int, memory_format: Any
    ) -> dict[str, Tensor]:
        images, targets = self._augment(batch.pixels, batch.labels, step=step, part=part)
        return losses(model, images.contiguous(memory_format=memory_format), targets)


def random_batch(count: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return pixels (N, 3, H, W), uint8, and labels (N,)."""
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=device)
    return pixels, torch.randint(0, NUM_CLASSES, (count,), device=device)


class Ours:
    """A step of our loop with one backend, including everything between two batches."""

    def __init__(
        self,
        recipe: Recipe,
        backend: Backend,
        device: torch.device,
        folder: Path,
        *,
        linear: bool = False,
        fused: bool = True,
    ) -> None:
        run = replace(recipe.run, channels_last=backend.channels_last, compile=backend.compile)
        recipe = replace(recipe, run=run)
        fabric = make_fabric(run, device, run.precision)
        fabric.launch()
        seed_everything(run.seed)
        self.task = open_our_task(recipe, fabric.device)
        model = self.task.build_model()
        set_pointwise(model, linear=linear)
        self.trainer = _Trainer(
            self.task,
            model,
            replace(self.task.recipe, run=run),
            fabric=fabric,
            log=RunLog(folder, silent=True),
            stop=StopSignals(),
            macs=None,
        )
        if not fused:
            set_fused(model, fused=False)

    def batches(self) -> Generator[Any, None, None]:
        return self.task.batches(self.trainer.step, self.trainer.micro_batch_size)  # type: ignore[no-any-return]

    def step(self, batch: Any) -> None:
        trainer = self.trainer
        trainer._step(batch)
        trainer._check_losses(ends_window=trainer.plan.logs_at(trainer.step))


def open_our_task(recipe: Recipe, device: torch.device) -> Any:
    if recipe.data == "synthetic":
        return ReadyTask(recipe, device)
    return task_class(recipe.task).open(recipe, device, QUIET)


class Timm:
    """The inner loop of timm's train.py, eager or with --torchcompile."""

    def __init__(self, recipe: Recipe, device: torch.device, backend: Backend) -> None:
        layout = torch.channels_last if backend.channels_last else torch.contiguous_format
        self.memory_format = layout
        self.recipe, self.device = recipe, device
        self.precision = recipe.run.precision
        folder = Path(recipe.data) / "train"
        ready = recipe.data == "synthetic"
        self.num_classes = NUM_CLASSES if ready else sum(p.is_dir() for p in folder.iterdir())
        seed_everything(0)
        model = timm.create_model(recipe.model, num_classes=self.num_classes, drop_path_rate=0.1)
        self.model = model.to(device).to(memory_format=layout)
        self.optimizer = create_optimizer_v2(
            self.model, opt="adamw", lr=recipe.optim.lr, weight_decay=0.05
        )
        self.scaler = NativeScaler(device.type) if self.precision == "fp16" else None
        self.ema = ModelEmaV3(self.model, decay=recipe.ema.decay)
        self.forward = torch.compile(self.model) if backend.compile else self.model
        self.loss = SoftTargetCrossEntropy().to(device)
        self.num_updates = 0
        self.loader = self._ready_loader() if ready else self._loader(folder.parent)
        self.model.train()

    def _loader(self, folder: Path) -> Any:
        recipe = self.recipe
        # timm's own operation fails with Pillow 13 at full strength.
        NAME_TO_OP["PosterizeIncreasing"] = _posterize
        dataset = create_dataset("", root=str(folder), split="train", is_training=True)
        # An epoch is as long as ImageNet's, because the loader runs dry at the end of each.
        dataset.reader.samples *= -(-NUM_IMAGES // len(dataset.reader.samples))
        return create_loader(
            dataset,
            input_size=(3, int(recipe.input.image_size), int(recipe.input.image_size)),
            batch_size=recipe.optim.batch_size,
            is_training=True,
            auto_augment="rand-m9-mstd0.5-inc1",
            color_jitter=0.4,
            re_prob=0.25,
            re_mode="pixel",
            interpolation="bicubic",
            num_workers=recipe.loader.workers,
            collate_fn=FastCollateMixup(
                mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=self.num_classes
            ),
            pin_memory=self.device.type == "cuda",
            device=self.device,
            persistent_workers=False,
        )

    def _ready_loader(self) -> Any:
        size = self.recipe.input.image_size
        count = self.recipe.optim.batch_size
        pixels, labels = random_batch(count, size, self.device)
        targets = nn.functional.one_hot(labels, NUM_CLASSES).float()
        return PrefetchLoader(
            itertools.repeat((pixels, targets)),  # type: ignore[arg-type]
            device=self.device,
            re_prob=0.25,
            re_mode="pixel",
        )

    def batches(self) -> Generator[Any, None, None]:
        return iter(self.loader)

    def step(self, batch: Any) -> None:
        images, targets = batch
        images = images.contiguous(memory_format=self.memory_format)
        with autocast(self.device, self.precision):
            loss = self.loss(self.forward(images), targets)
        if self.scaler is not None:
            self.scaler(loss, self.optimizer)
        else:
            loss.backward()
            self.optimizer.step()
        self.num_updates += 1
        self.optimizer.zero_grad()
        self.ema.update(self.model, step=self.num_updates)


@dataclass(frozen=True)
class Measured:
    """Measurements over some steps of one side."""

    seconds: float
    """Seconds of one step."""
    wait_share: float
    memory: int
    """The peak bytes on the GPU, excluding those of the other sides."""


class Side:
    """One side: a network in training."""

    def __init__(
        self, make: Callable[[], Ours | Timm], settle: int, clock: Callable[[], float]
    ) -> None:
        self.settle = settle
        self.clock = clock
        before = allocated()
        self.trained = make()
        self.is_timm = isinstance(self.trained, Timm)
        self.own = 0
        self.measure(1)  # The first step compiles and creates the optimizer's moments.
        gc.collect()
        self.own = allocated() - before
        """Bytes that stay on the device between steps: weights, moments, the moving average."""

    def measure(self, steps: int) -> Measured:
        """Start a loader, take some warm-up steps, and time the following ones."""
        # train.py sets this for its whole process; our loop does not.
        torch.backends.cudnn.benchmark = self.is_timm
        torch.backends.cuda.matmul.allow_tf32 = self.is_timm
        others = allocated() - self.own
        waited = 0.0
        with closing(self.trained.batches()) as batches:
            for _ in range(self.settle):
                self.trained.step(next(batches))
            synchronize()
            if torch.cuda.is_initialized():
                torch.cuda.reset_peak_memory_stats()
            began = self.clock()
            for _ in range(steps):
                asked = self.clock()
                batch = next(batches)
                waited += self.clock() - asked
                self.trained.step(batch)
            synchronize()
            seconds = self.clock() - began
        return Measured(seconds / steps, waited / seconds, peak() - others)


def allocated() -> int:
    """Return the bytes of tensors on the GPU; 0 without one."""
    return torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0


def peak() -> int:
    """Return the peak bytes since the last reset; 0 without a GPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0


def synchronize() -> None:
    """Wait for the GPU, if one is used."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """Return the paper's recipe for ConvNeXt-T with the options' input, network and device."""
    return change_recipe(
        read_recipe("imagenet1k_tiny"),
        {
            "model": arguments.model,
            "data": arguments.input,
            "input.image_size": arguments.size,
            "optim.batch_size": arguments.batch,
            "optim.micro_batch_size": arguments.batch,
            "loader.workers": arguments.workers,
            "run.device": arguments.device,
            "run.precision": arguments.precision,
            # A small data set ends its epochs often; that is not what is measured here.
            "run.eval_every": 10**6,
            "run.save_every": 10**9,
        },
    )


def chosen_backend(recipe: Recipe, device: torch.device, folder: Path) -> tuple[Backend, str]:
    """Return the backend that a full run on ImageNet would choose, and the reason."""
    task = open_our_task(recipe, device)
    steps = round(recipe.schedule.epochs * NUM_IMAGES / task.batch_size)
    chosen = choose_backend(
        task,
        task.build_model().to(device),
        task.recipe,
        device,
        ranks=ALONE,
        num_steps=steps,
        micro_batch_size=task.batch_size,
        cache=folder / "forms.json",
    )
    return chosen.backend, chosen.reason


def main() -> None:
    """Measure, and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", default="synthetic", help="synthetic, or a folder of images")
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="bf16")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="timed steps per backend and round")
    parser.add_argument("--eager-only", action="store_true", help="compile nothing")
    parser.add_argument("--layouts", action="store_true", help="also time memory formats")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 for torch's choice")
    parser.add_argument(
        "--keep-memory", action="store_true", help="let both sides keep freed memory, as our CLI"
    )
    parser.add_argument("--cpu-time", action="store_true", help="count processor time")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.cpu_time and torch.get_num_threads() != 1:
        parser.error("--cpu-time needs --threads 1: threads that wait use the processor too")
    if arguments.keep_memory and not keep_freed_memory():
        parser.error("--keep-memory is for glibc only")
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    console, device = Console(highlight=False), pick_device(arguments.device)
    recipe = recipe_of(arguments)
    # A new loader first fills its queue with two batches per process.
    settle = 2 if arguments.input == "synthetic" else max(3, 2 * arguments.workers)

    with TemporaryDirectory() as scratch:
        folder, chosen, reason = Path(scratch), None, "not asked"
        backends = {"eager": Backend()}
        if not arguments.eager_only:
            console.print("choosing a backend")
            chosen, reason = chosen_backend(recipe, device, folder)
            backends["compiled"] = Backend(compile=True)
            if chosen not in backends.values():
                backends["chosen"] = chosen
        makers: dict[str, Callable[[], Ours | Timm]] = {}
        for how, backend in backends.items():
            makers[f"ours, {how}"] = partial(Ours, recipe, backend, device, folder / how)
            if how != "chosen":
                makers[f"timm, {how}"] = partial(Timm, recipe, device, backend)
        if device.type == "cpu":
            make = partial(Ours, recipe, Backend(), device, folder / "layers", fused=False)
            makers["ours, layer by layer"] = make
        if arguments.layouts:
            first = Backend(channels_last=False)
            makers["timm, channels_first"] = partial(Timm, recipe, device, first)
            for how, backend, linear in (
                ("linear", Backend(), True),
                ("channels_first", first, False),
                ("linear channels_first", first, True),
            ):
                make = partial(
                    Ours, recipe, backend, device, folder / how, linear=linear, fused=False
                )
                makers[f"ours, {how}"] = make
        sides = {}
        for name, make in makers.items():
            console.print(f"warming up: {name}")
            sides[name] = Side(make, settle, clock)
        measured: dict[str, list[Measured]] = {name: [] for name in sides}
        for round_ in range(arguments.rounds):
            for name, side in sides.items():
                measured[name].append(side.measure(arguments.steps))
            console.print(f"round {round_ + 1} of {arguments.rounds}")

    macs = cost(create_model(arguments.model), arguments.size).macs
    limit = peak_matmul_flops(device, arguments.precision)
    table = Table("form", "images/s", "timm eager", "waiting", "memory", "MFU", box=None)
    rows: dict[str, dict[str, float]] = {}
    base = measured["timm, eager"]
    for name, found in measured.items():
        speed = arguments.batch / statistics.median(m.seconds for m in found)
        # The median of the ratios per round: a disturbance slows both sides of a round.
        ratio = statistics.median(b.seconds / m.seconds for b, m in zip(base, found, strict=True))
        waits = statistics.median(m.wait_share for m in found)
        memory, used = max(m.memory for m in found) / 1e9, mfu(speed, macs, limit)
        rows[name] = {
            "images_per_s": round(speed, 1),
            "ratio": round(ratio, 3),
            "wait_share": round(waits, 4),
            "memory_gb": round(memory, 2),
            "mfu": round(used, 4),
        }
        # Only a GPU can measure the memory of each side.
        shown = f"{memory:.1f} GB" if memory else "-"
        table.add_row(name, f"{speed:,.1f}", f"x {ratio:.2f}", f"{waits:.0%}", shown, f"{used:.1%}")
    facts = environment(device) | {"timm": timm.__version__, "date": time.strftime("%Y-%m-%d")}
    console.print(
        f"{arguments.model} at {arguments.size}, batch {arguments.batch}, {arguments.precision}, "
        f"{arguments.input}; {facts['device']}, {facts['cpu']}, torch {facts['torch']}, "
        f"timm {facts['timm']}, {facts['date']}",
        soft_wrap=True,
    )
    console.print(table)
    if chosen is not None:
        console.print(f"a long run takes {chosen} ({reason})", soft_wrap=True)
    result = {"settings": vars(arguments), "environment": facts, "forms": rows, "limit": limit}
    print(json.dumps(result | {"chosen": asdict(chosen) if chosen else None, "reason": reason}))


if __name__ == "__main__":
    main()
