"""Measure the speed and the memory use of the networks of a study on this machine.

Throughput is measured in rounds over all networks, so that a machine that slows down slows all of
them, and the median of the rounds counts. Training is forward, backward and an AdamW step on one
batch that is in memory already; inference is the forward pass without gradients.

Memory is the peak of tensor memory during such a step: weights, gradients, moments, activations and
the batch. On a GPU, torch's allocator counts it; on a CPU, it is the sum of the storages that are
alive, without the scratch space of operations.
"""

from __future__ import annotations

import json
import statistics
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convnext.atomic import write_text
from convnext.hardware.devices import autocast, cpu_threads, environment
from convnext.hardware.tuner import samples_for
from convnext.studies.plan import EVALUATIONS, Entry, Study
from convnext.tasks.base import Task
from convnext.training.faults import is_out_of_memory

ROUNDS = 5
SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The measured speed and memory of one network on this machine."""

    batch: int
    train_images_per_s: float
    infer_images_per_s: float
    train_memory: int
    infer_memory: int

    def columns(self) -> dict[str, Any]:
        """Return the columns of the table of results."""
        values = asdict(self)
        return values | {"speed_batch": values.pop("batch")}


def read_speeds(plan: Study, root: Path) -> dict[str, Speed]:
    """Return the saved measurements of the study's networks, by the name of the entry."""
    try:
        tree = json.loads((root / "speed.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    entries = {plan.identity(entry): entry.name for entry in plan.own_entries()}
    return {
        entries[identity]: Speed(**values)
        for identity, values in tree["networks"].items()
        if identity in entries
    }


def speeds_of(plan: Study, task: Task, root: Path, console: Console) -> dict[str, Speed]:
    """Return the speeds of all entries, from speed.json if it is complete.

    If one is missing, all are measured again, because speeds from different times are not
    comparable.
    """
    entries = plan.own_entries()
    known = read_speeds(plan, root)
    if not {entry.name for entry in entries} <= known.keys():
        known = measure(plan, task, console)
        facts = environment(task.device) | {"precision": plan.recipe.run.precision}
        networks = {plan.identity(e): asdict(known[e.name]) for e in entries if e.name in known}
        tree = {"environment": facts, "networks": networks}
        write_text(root / "speed.json", json.dumps(tree, indent=1) + "\n")
    return known


def measure(plan: Study, task: Task, console: Console) -> dict[str, Speed]:
    """Measure all entries in rounds; report and skip an entry that does not fit in memory."""
    entries = plan.own_entries()
    benches: dict[str, _Bench] = {}
    train: dict[str, list[float]] = {entry.name: [] for entry in entries}
    infer: dict[str, list[float]] = {entry.name: [] for entry in entries}
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("measuring speed", total=len(entries) * (ROUNDS + 1))
        for entry in entries:
            try:
                benches[entry.name] = _Bench(plan, task, entry)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                console.print(f"not enough memory to measure {entry.name} next to the others")
            progress.advance(bar)
        for _ in range(ROUNDS):
            for name, bench in benches.items():
                train[name].append(bench.rate(bench.train_step))
                infer[name].append(bench.rate(bench.infer))
                progress.advance(bar)
    return {
        name: bench.speed(statistics.median(train[name]), statistics.median(infer[name]))
        for name, bench in benches.items()
    }


def rates_of_runs(plan: Study, task: Task, console: Console) -> dict[str, float]:
    """Measure training images per second of every entry, with the threads of a run."""
    with cpu_threads(plan.threads):
        return {name: s.train_images_per_s for name, s in measure(plan, task, console).items()}


def epochs_for(plan: Study, rates: Mapping[str, float], task: Task, minutes: float) -> list[Entry]:
    """Return the entries with the number of epochs that each trains in `minutes`, at least one.

    Warm-up and evaluations scale with the epochs. Entries of a resumed study keep their epochs.
    """
    images = task.steps_per_epoch * task.batch_size
    entries = []
    for entry in plan.entries:
        if "schedule.epochs" in entry.changes:
            entries.append(entry)
            continue
        epochs = max(1, round(60 * minutes * rates[entry.own_name] / images))
        changes = dict(entry.changes) | {
            "schedule.epochs": epochs,
            "schedule.warmup_epochs": epochs / 20,
            "run.eval_every": max(1, round(epochs / EVALUATIONS)),
        }
        entries.append(replace(entry, changes=changes))
    return entries


class _Bench:
    """One network with an optimizer and a batch, on the device."""

    def __init__(self, plan: Study, task: Task, entry: Entry) -> None:
        own = task.under(plan.recipe_of(entry, plan.seeds[0]))
        self.device: torch.device = task.device
        self.precision = plan.recipe.run.precision
        with torch.random.fork_rng(devices=[]):
            model = own.build_model()
        self.model: nn.Module = model.to(self.device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        self.batch_size = task.recipe.optim.micro_batch_size
        self.work = own.workload(self.model, self.batch_size)
        self.infer_memory = self._peak(self.infer)
        self.train_step()
        self.train_memory = self._peak(self.train_step)

    def train_step(self) -> None:
        self.model.train()
        with autocast(self.device, self.precision):
            loss = self.work.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def infer(self) -> None:
        self.model.eval()
        with torch.inference_mode(), autocast(self.device, self.precision):
            self.work.infer()

    def rate(self, work: Callable[[], None]) -> float:
        """Measure images per second for at least a quarter of a second, after a warm-up."""
        seconds = samples_for(work, self.device, seconds=SECONDS)
        return len(seconds) * self.batch_size / sum(seconds)

    def speed(self, train: float, infer: float) -> Speed:
        return Speed(
            batch=self.batch_size,
            train_images_per_s=round(train, 1),
            infer_images_per_s=round(infer, 1),
            train_memory=self.train_memory,
            infer_memory=self.infer_memory,
        )

    def _peak(self, work: Callable[[], None]) -> int:
        held = [*self.model.state_dict().values(), *self.work.tensors]
        held += [t for s in self.optimizer.state.values() for t in s.values()]
        if self.device.type == "cuda":
            others = torch.cuda.memory_allocated(self.device) - _bytes(held)
            torch.cuda.reset_peak_memory_stats(self.device)
            work()
            return int(torch.cuda.max_memory_allocated(self.device) - others)
        with PeakMemory(held) as peak:
            work()
        return int(peak.most)


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of live storages that operations in the block create.

    Args:
        held: Existing tensors that count from the start.
    """

    def __init__(self, held: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._alive: dict[int, int] = {}
        for tensor in held:
            self._see(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the storages that it creates."""
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            self._see(leaf)
        return made

    def _see(self, tensor: Any) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)


def _bytes(tensors: list[Any]) -> int:
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
