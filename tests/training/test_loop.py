"""The loop, on a toy task of random images and a network of a few thousand parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from toy import BATCH, PoisonedTask, ToyTask, assert_same_states, run, weights

from convnext.recipes.resolve import OPTIMIZERS
from convnext.training.log import read_metrics
from convnext.training.loop import DivergedError
from convnext.weights.checkpoint import complete_steps
from convnext.weights.files import read_file


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
    assert [p.name for p in complete_steps(tmp_path / "checkpoints")] == [
        "step-00000057",
        "step-00000060",
    ]


@pytest.mark.parametrize("stop_at", [4, 7, 11])
def test_resume_is_exact(tmp_path: Path, stop_at: int) -> None:
    run(tmp_path / "whole", ToyTask())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", ToyTask(stop_at=stop_at))
    run(tmp_path / "parts", ToyTask(), resume=True)
    assert_same_states(tmp_path / "whole", tmp_path / "parts")
    whole_rows, parts_rows = (
        [
            {k: row[k] for k in ("kind", "step", "images", "loss", "lr", "top1") if k in row}
            for row in read_metrics(tmp_path / part / "metrics.jsonl")
            if row["kind"] == "val"
        ]
        for part in ("whole", "parts")
    )
    assert whole_rows == parts_rows


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw"])
def test_resume_is_exact_with_every_optimizer(tmp_path: Path, name: str) -> None:
    lr = 2e-3 * OPTIMIZERS[name].rate
    # Groups of several layers: LAMB counts the steps of each.
    settings = {"optim__name": name, "optim__lr": lr, "optim__layer_decay": 0.7}
    whole = run(tmp_path / "whole", ToyTask(), **settings)
    assert whole.best["top1"] > 40
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", ToyTask(stop_at=7), **settings)
    run(tmp_path / "parts", ToyTask(), resume=True, **settings)
    assert_same_states(tmp_path / "whole", tmp_path / "parts")
    other = "adamw" if name == "sgd" else "sgd"
    with pytest.raises(ValueError, match=f"began with optim.name {name} and cannot continue"):
        run(tmp_path / "parts", ToyTask(), resume=True, **settings | {"optim__name": other})


def test_numbers_in_the_state_of_an_optimizer_are_saved(tmp_path: Path) -> None:
    kept = {"muon": "use_muon", "laprop": "exp_avg_lr_1"}
    for name, key in kept.items():
        run(tmp_path / name, ToyTask(), optim__name=name, schedule__epochs=1)
        state = tmp_path / name / "checkpoints/step-00000003/state.safetensors"
        counters = json.loads(read_file(state)[1]["counters"])
        assert any(key in own for own in counters["optimizer"]["parameters"].values())
    run(tmp_path / "lamb", ToyTask(), optim__name="lamb", schedule__epochs=1)
    state = tmp_path / "lamb/checkpoints/step-00000003/state.safetensors"
    groups = json.loads(read_file(state)[1]["counters"])["optimizer"]["groups"]
    assert [group["step"]["value"] for group in groups.values()] == [3.0, 3.0]


def test_micro_batches_give_the_gradient_of_the_batch(tmp_path: Path) -> None:
    # No stochastic depth, which draws once per forward pass.
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
    last = complete_steps(tmp_path / "checkpoints")[-1]
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
    assert [p.name for p in complete_steps(tmp_path / "checkpoints")] == ["step-00000000"]
    assert not (tmp_path / "checkpoints/best.safetensors").exists()


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "emptied"])
@pytest.mark.parametrize("name", ["model", "state"])
def test_a_damaged_state_falls_back_to_the_one_before(
    tmp_path: Path, damage: str, name: str
) -> None:
    run(tmp_path, ToyTask(), schedule__epochs=3)
    first, last = complete_steps(tmp_path / "checkpoints")
    assert (first.name, last.name) == ("step-00000006", "step-00000009")
    path = last / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    broken = {"truncated": content[:-999], "bit flipped": content, "emptied": b""}[damage]
    path.write_bytes(broken)
    outcome = run(tmp_path, ToyTask(), resume=True, schedule__epochs=5)
    assert outcome.steps == 15
    rows = read_metrics(tmp_path / "metrics.jsonl", raw=True)
    told = [row["event"] for row in rows if row["kind"] == "event"]
    assert any("damaged checkpoint" in text and str(last) in text for text in told)
    run(tmp_path / "whole", ToyTask(), schedule__epochs=5)
    # The steps were repeated, and only time was lost.
    step = "checkpoints/step-00000015/state.safetensors"
    whole = weights(tmp_path / "whole" / step)
    again = weights(tmp_path / step)
    assert whole.keys() == again.keys()


def test_lines_of_the_log_are_whole(tmp_path: Path) -> None:
    run(tmp_path, ToyTask())
    path = tmp_path / "metrics.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "st')
    assert len(read_metrics(path)) == len(path.read_text().splitlines()) - 1
    assert all(json.loads(line) for line in path.read_text().splitlines()[:-1])


def test_the_loss_scale_of_fp16_is_saved(tmp_path: Path) -> None:
    def fabric() -> Fabric:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6, growth_interval=5)
        return Fabric(
            accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]
        )

    run(tmp_path / "whole", ToyTask(), fabric=fabric())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", ToyTask(stop_at=7), fabric=fabric())
    run(tmp_path / "parts", ToyTask(), fabric=fabric(), resume=True)
    rows = [
        [
            (r["step"], r["loss_scale"], r["loss"])
            for r in read_metrics(tmp_path / name / "metrics.jsonl")
            if "loss_scale" in r
        ]
        for name in ("whole", "parts")
    ]
    assert rows[0] == rows[1]
    assert rows[0][-1][1] == 2.0**8, "grown twice in 12 steps"
    state = "checkpoints/step-00000012/model.safetensors"
    whole, parts = weights(tmp_path / "whole" / state), weights(tmp_path / "parts" / state)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
