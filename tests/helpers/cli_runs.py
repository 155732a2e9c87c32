"""Runs of the command line in separate processes, small enough to take seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import torch
import yaml
from forked import CAN_FORK, ForkedCommand

from convnext.recipes.recipe import Recipe, to_yaml
from convnext.training.log import read_metrics
from convnext.weights.files import read_file

# 1,437 training digits: 29 steps an epoch. With layer norm, several processes compute the same.
SMALL = {
    "data": "digits",
    "model": "convnext_atto",
    "network": {
        "norm": "layer",
        "stem": "patchify",
        "drop_path_rate": 0.2,
        "changes": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
    },
    "augment": {"mixup": 0.2, "erasing": 0.2},
    "optim": {"batch_size": 48, "micro_batch_size": 24, "clip_grad": 1.0},
    "schedule": {"epochs": 2},
    "ema": {"decay": 0.9},
    "run": {"device": "cpu", "precision": "fp32", "eval_every": 1, "save_every": 5},
}


Process = subprocess.Popen[str] | ForkedCommand


def start_command(
    arguments: Sequence[str], folder: Path, *, launcher: tuple[str, ...] = (), new: bool = False
) -> Process:
    """Start `convnext` in a session of its own, with its caches in a folder.

    Args:
        arguments: The words after `convnext`.
        folder: The folder of the caches.
        launcher: The arguments of Python in front of `-m convnext`.
        new: Start a new interpreter where a fork would do.
    """
    # matplotlib's list of fonts takes long to make, and is the same for all.
    shared = {"OMP_NUM_THREADS": "1", "MPLCONFIGDIR": matplotlib.get_cachedir()}
    environment = os.environ | shared | {"XDG_CACHE_HOME": str(folder)}
    if CAN_FORK and not launcher and not new:
        return ForkedCommand(arguments, environment)
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "convnext", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@dataclass
class Runs:
    """Starts `convnext train` on the digits with the settings above, or by another recipe."""

    folder: Path
    recipe: Recipe | None = None
    started: list[Process] = field(default_factory=list)

    def start(
        self, output: Path, *options: str, launcher: tuple[str, ...] = (), new: bool = False
    ) -> Process:
        """Start a run; with --resume, continue it."""
        recipe = self.folder / "small.yaml"
        text = yaml.safe_dump(SMALL) if self.recipe is None else to_yaml(self.recipe)
        recipe.write_text(text, encoding="utf-8")
        arguments = ["train", str(recipe), "--output", str(output), *options]
        process = start_command(arguments, self.folder, launcher=launcher, new=new)
        self.started.append(process)
        return process

    def finish(
        self, output: Path, *options: str, launcher: tuple[str, ...] = (), new: bool = False
    ) -> str:
        """Run to the end; return the output."""
        process = self.start(output, *options, launcher=launcher, new=new)
        printed, _ = process.communicate(timeout=240)
        assert process.returncode == 0, printed
        return printed

    def kill_at(
        self,
        output: Path,
        step: int,
        *options: str,
        launcher: tuple[str, ...] = (),
        number: int = signal.SIGKILL,
    ) -> str:
        """Start a run, and send a signal once the state of `step` or a later one is saved."""
        process = self.start(output, *options, launcher=launcher)
        wait_for(lambda: last_state(output) >= step, process)
        os.killpg(process.pid, number)
        printed, _ = process.communicate(timeout=120)
        assert process.returncode != 0, printed
        return printed


def last_state(output: Path) -> int:
    """Return the step of the newest state in a run folder, -1 for none."""
    return max((int(p.name[5:]) for p in output.glob("checkpoints/step-*")), default=-1)


def wait_for(
    condition: Callable[[], bool],
    process: Process | None = None,
    seconds: float = 120,
) -> None:
    """Wait until a condition holds, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(process.communicate()[0])
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# Columns that depend on time and memory rather than on training.
TIMED = {"seconds", "images_per_s", "wait_share", "memory_gb", "mfu"}


def learned(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Return every tensor of a finished run, and its metrics without those that depend on time."""
    tensors = {}
    for path in sorted(folder.glob("checkpoints/**/*.safetensors")):
        for name, tensor in read_file(path)[0].items():
            tensors[f"{path.relative_to(folder)}:{name}"] = tensor
    rows = [
        {k: v for k, v in row.items() if k not in TIMED}
        for row in read_metrics(folder / "metrics.jsonl")
        if row["kind"] != "event"
    ]
    return tensors, rows


def assert_same(one: Path, other: Path) -> None:
    tensors, rows = learned(one)
    other_tensors, other_rows = learned(other)
    assert len(tensors) > 50
    assert tensors.keys() == other_tensors.keys()
    different = [name for name in tensors if not torch.equal(tensors[name], other_tensors[name])]
    assert not different
    assert rows == other_rows


# 1,437 images: 20 steps of 70, in parts of 35.
TWENTY = (
    *("--optim.batch_size", "70", "--optim.micro_batch_size", "35"),
    *("--schedule.epochs", "1", "--ema.decay", "0.9"),
)


def state(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights, moments and averages after 20 steps."""
    weights, _ = read_file(folder / "checkpoints/step-00000020/model.safetensors")
    rest, _ = read_file(folder / "checkpoints/step-00000020/state.safetensors")
    return weights | rest


def assert_close(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], within: float = 1e-6
) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        error = float(torch.linalg.vector_norm(tensor - other[name]))
        assert error <= within * float(torch.linalg.vector_norm(tensor)), name
