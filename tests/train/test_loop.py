"""The loop, on a toy task of random images and a network of a few thousand parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from convnext import create_model
from convnext.checkpoint import Card
from convnext.preprocess import Preprocessing
from convnext.recipe import Recipe, change_recipe
from convnext.train.log import RunLog, read_metrics
from convnext.train.loop import DivergedError, Outcome, fit
from convnext.train.state import complete_steps
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
    "run.precision": "fp32",
}


class ToyTask:
    """Three classes told apart by the brightness of a channel."""

    primary = "top1"
    steps_per_epoch = NUM_IMAGES // BATCH

    def __init__(
        self, *, micro: int = BATCH, nan_at: int | None = None, stop_at: int = 10**9
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(NUM_IMAGES) % 3
        self.images = torch.randn(NUM_IMAGES, 3, 32, 32, generator=generator) * 0.5
        self.images[torch.arange(NUM_IMAGES), self.labels] += 1.0
        self.micro, self.nan_at, self.stop_at = micro, nan_at, stop_at
        self.scores: list[float] | None = None

    def batches(self, start_step: int) -> Iterator[Sequence[Any]]:
        step = start_step
        while True:
            if step == self.stop_at:
                raise KeyboardInterrupt
            rows = torch.arange(BATCH) + BATCH * (step % self.steps_per_epoch)
            yield list(rows.split(self.micro))
            step += 1

    def size(self, batch: Tensor) -> int:
        return len(batch)

    def losses(self, model: nn.Module, batch: Tensor, step: int, part: int) -> dict[str, Tensor]:
        loss = F.cross_entropy(model(self.images[batch]), self.labels[batch])
        return {"loss": loss * float("nan") if step == self.nan_at else loss}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        model.eval()
        if self.scores is not None:
            return {"top1": self.scores.pop(0)}
        with torch.no_grad():
            hits = model(self.images).argmax(1) == self.labels
        return {"top1": 100 * float(hits.float().mean())}

    def card(self, model: nn.Module, metrics: Mapping[str, Any]) -> Card:
        return Card(
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

    def losses(self, model: nn.Module, batch: Tensor, step: int, part: int) -> dict[str, Tensor]:
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
    folder: Path, task: ToyTask, *, resume: bool = False, drop_path: float = 0.3, **changes: Any
) -> Outcome:
    recipe = change_recipe(
        Recipe(), SETTINGS | {k.replace("__", "."): v for k, v in changes.items()}
    )
    log = RunLog(folder, Console(quiet=True))
    fabric = Fabric(accelerator="cpu", devices=1)
    try:
        return fit(
            task, toy_model(drop_path_rate=drop_path), recipe, fabric=fabric, log=log, resume=resume
        )
    finally:
        log.close()


def weights(path: Path) -> dict[str, Tensor]:
    return dict(read_file(path)[0])


def test_it_learns_and_keeps_the_best(tmp_path: Path) -> None:
    outcome = run(tmp_path, ToyTask(), schedule__epochs=20)
    assert outcome.best["top1"] > 90
    rows = read_metrics(tmp_path / "metrics.jsonl")
    evaluated = [row for row in rows if row["kind"] == "val"]
    assert outcome.best["top1"] == max(row["top1"] for row in evaluated)
    assert {row["weights"] for row in evaluated} == {"model", "ema"}
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses[-1] < losses[0]
    assert rows[-1]["step"] == outcome.steps == 60
    assert rows[-1]["images"] == 60 * BATCH
    assert len(complete_steps(tmp_path / "checkpoints")) == 1


@pytest.mark.parametrize("stop_at", [4, 7, 11])
def test_resume_is_exact(tmp_path: Path, stop_at: int) -> None:
    run(tmp_path / "whole", ToyTask())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", ToyTask(stop_at=stop_at))
    run(tmp_path / "parts", ToyTask(), resume=True)
    for name in (
        "best.safetensors",
        "step-00000012/model.safetensors",
        "step-00000012/state.safetensors",
    ):
        whole = weights(tmp_path / "whole/checkpoints" / name)
        parts = weights(tmp_path / "parts/checkpoints" / name)
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[key], parts[key]) for key in whole), name
    whole_rows, parts_rows = (
        [
            {k: row[k] for k in ("kind", "step", "images", "loss", "lr", "top1") if k in row}
            for row in read_metrics(tmp_path / part / "metrics.jsonl")
            if row["kind"] == "val"
        ]
        for part in ("whole", "parts")
    )
    assert whole_rows == parts_rows


def test_micro_batches_give_the_gradient_of_the_batch(tmp_path: Path) -> None:
    # Without stochastic depth, whose draws are per forward pass.
    for micro in (8, 3):
        run(tmp_path / str(micro), ToyTask(micro=micro), drop_path=0.0, schedule__epochs=1)
    state = "checkpoints/step-00000003/state.safetensors"
    whole, parts = weights(tmp_path / "8" / state), weights(tmp_path / "3" / state)
    for name, moment in whole.items():
        if "exp_avg." in name:
            assert torch.allclose(parts[name], moment, rtol=1e-3, atol=1e-6), name


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"step 6 .*--optim.lr 0.00067.*is intact"):
        run(tmp_path, ToyTask(nan_at=5))
    (last,) = complete_steps(tmp_path / "checkpoints")
    assert last.name == "step-00000003"
    assert all(torch.isfinite(w).all() for w in weights(last / "model.safetensors").values())
    outcome = run(tmp_path, ToyTask(), resume=True)
    assert outcome.steps == 12


def test_early_stopping(tmp_path: Path) -> None:
    task = ToyTask()
    task.scores = [50.0, 60.0, 55.0, 60.0]
    outcome = run(tmp_path, task, ema__decay=0.0, run__patience=2, schedule__epochs=50)
    assert outcome.stopped_early
    assert outcome.steps == 4 * task.steps_per_epoch
    assert (outcome.best["top1"], outcome.best["step"]) == (60.0, 2 * task.steps_per_epoch)


def test_resuming_before_the_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, ToyTask(stop_at=2))
    assert run(tmp_path, ToyTask(), resume=True).steps == 12
    steps = [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == sorted(steps)


def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="is not finite after step 1"):
        run(tmp_path, PoisonedTask(), run__eval_every=1 / 3)
    assert complete_steps(tmp_path / "checkpoints") == []
    assert not (tmp_path / "checkpoints/best.safetensors").exists()


def test_a_damaged_state_falls_back_to_an_older_one(tmp_path: Path) -> None:
    run(tmp_path, ToyTask())
    (last,) = complete_steps(tmp_path / "checkpoints")
    newer = last.with_name("step-00000099")
    newer.mkdir()
    (newer / "model.safetensors").write_bytes((last / "model.safetensors").read_bytes()[:999])
    outcome = run(tmp_path, ToyTask(), resume=True, schedule__epochs=5)
    assert outcome.steps == 15
    assert [path.name for path in complete_steps(tmp_path / "checkpoints")] == ["step-00000015"]


def test_lines_of_the_log_are_whole(tmp_path: Path) -> None:
    run(tmp_path, ToyTask())
    path = tmp_path / "metrics.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "st')
    assert len(read_metrics(path)) == len(path.read_text().splitlines()) - 1
    assert all(json.loads(line) for line in path.read_text().splitlines()[:-1])
