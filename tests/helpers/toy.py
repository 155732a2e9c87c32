"""A toy task of random images and a network of a few thousand parameters, for the loop's tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from convnext import create_model
from convnext.data.preprocessing import Preprocessing
from convnext.recipes.recipe import Recipe, change_recipe
from convnext.tasks.base import Phase
from convnext.training.log import RunLog
from convnext.training.loop import Outcome, fit
from convnext.training.trackers import Callback
from convnext.weights.checkpoint import Card
from convnext.weights.files import read_file

NUM_IMAGES, BATCH = 24, 8
SETTINGS = {
    "optim.lr": 2e-3,
    "optim.weight_decay": 0.05,
    "optim.layer_decay": 1.0,
    "optim.clip_grad": 0.0,
    "optim.batch_size": BATCH,
    "schedule.epochs": 4,
    "schedule.warmup_epochs": 1.0,
    "ema.decay": 0.9,
    "run.eval_every": 1,
    "run.save_every": 100,
    "run.channels_last": True,
    "run.compile": False,
    "run.precision": "fp32",
}


class ToyTask:
    """Three classes that differ in the brightness of a channel."""

    primary = "top1"
    steps_per_epoch = NUM_IMAGES // BATCH
    batch_size = BATCH
    fingerprint = "toy"
    device = torch.device("cpu")

    def __init__(
        self,
        *,
        micro: int = BATCH,
        nan_at: int | None = None,
        nans: int = 10**9,
        stop_at: int = 10**9,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(NUM_IMAGES) % 3
        self.images = torch.randn(NUM_IMAGES, 3, 32, 32, generator=generator) * 0.5
        self.images[torch.arange(NUM_IMAGES), self.labels] += 1.0
        self.micro, self.nan_at, self.stop_at = micro, nan_at, stop_at
        self.nans = nans
        self.scores: list[float] | None = None

    def batches(
        self, start_step: int, micro_batch_size: int, warn: Any = None
    ) -> Iterator[Sequence[Any]]:
        step = start_step
        while True:
            if step == self.stop_at:
                raise KeyboardInterrupt
            rows = torch.arange(BATCH) + BATCH * (step % self.steps_per_epoch)
            yield list(rows.split(micro_batch_size))
            step += 1

    def validate_in_phase(self, model: Any, step: int) -> None:
        """Return nothing: all images have one size."""

    def phases(self, num_steps: int) -> Iterable[Phase]:
        return (Phase(0, num_steps, None),)  # type: ignore[arg-type]

    def size(self, batch: Tensor) -> int:
        return len(batch)

    def losses(
        self, model: nn.Module, batch: Tensor, step: int, part: int, memory_format: Any = None
    ) -> dict[str, Tensor]:
        loss = F.cross_entropy(model(self.images[batch]), self.labels[batch])
        if step == self.nan_at and self.nans:
            self.nans -= 1
            loss = loss * float("nan")
        return {"loss": loss}

    def validate(self, model: nn.Module) -> dict[str, float]:
        model.eval()
        if self.scores is not None:
            return {"top1": self.scores.pop(0)}
        with torch.no_grad():
            hits = model(self.images).argmax(1) == self.labels
        return {"top1": 100 * float(hits.float().mean())}

    def card(self, model: nn.Module, metrics: Mapping[str, Any], recipe: Recipe) -> Card:
        return Card(
            task="classify",
            model=str(model.name),
            changes=dict(model.changes),  # type: ignore[arg-type]
            classes=("a", "b", "c"),
            preprocessing=Preprocessing(
                image_size=32, crop_pct=1.0, in_chans=3, mean=(0.5,) * 3, std=(0.2,) * 3
            ),
            metrics=metrics,
        )


class PoisonedTask(ToyTask):
    """The losses are fine, but the first update makes the weights infinite."""

    def losses(
        self, model: nn.Module, batch: Tensor, step: int, part: int, memory_format: Any = None
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            next(iter(model.parameters())).fill_(float("inf"))
        return {"loss": sum(p.sum() * 0 for p in list(model.parameters())[1:]) + torch.tensor(1.0)}


def toy_model(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return create_model(
        "convnext_atto",
        **{
            "depths": (1, 1, 2, 1),
            "dims": (8, 8, 8, 16),
            "num_classes": 3,
            "layer_scale_init": 0.0,
            "drop_path_rate": 0.3,
            **changes,
        },
    )


def run(
    folder: Path,
    task: ToyTask,
    *,
    resume: bool = False,
    drop_path: float = 0.3,
    norm: str = "layer",
    fabric: Fabric | None = None,
    callbacks: Sequence[Callback] = (),
    **changes: Any,
) -> Outcome:
    recipe = change_recipe(
        Recipe(), SETTINGS | {k.replace("__", "."): v for k, v in changes.items()}
    )
    log = RunLog(folder, Console(quiet=True))
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    try:
        return fit(
            task,  # type: ignore[arg-type]
            toy_model(drop_path_rate=drop_path, norm=norm),
            recipe,
            fabric=fabric,
            log=log,
            micro_batch_size=task.micro,
            resume=resume,
            callbacks=callbacks,
        )
    finally:
        log.close()


def weights(path: Path) -> dict[str, Tensor]:
    return dict(read_file(path)[0])


def assert_same_states(whole: Path, parts: Path) -> None:
    names = ("best.safetensors", "step-00000012/model.safetensors")
    for name in (*names, "step-00000012/state.safetensors"):
        tensors, metadata = read_file(whole / "checkpoints" / name)
        others, other_metadata = read_file(parts / "checkpoints" / name)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[key], others[key]) for key in tensors), name
        assert metadata == other_metadata
