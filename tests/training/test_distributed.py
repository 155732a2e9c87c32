"""Two processes compute the same as one: over gloo on a CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import TWENTY, Runs, assert_close, state, wait_for
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from toy import ToyTask, toy_model

from convnext import create_model
from convnext.hardware.devices import ALONE, Ranks
from convnext.recipes.recipe import Recipe, change_recipe
from convnext.recipes.schema import RunRecipe
from convnext.training import processes
from convnext.training.distributed import (
    checkpoint_activations,
    count_devices,
    make_fabric,
    process_state_restored,
)
from convnext.training.faults import LostProcessError
from convnext.training.run import warn_of_batch_norm


def test_two_processes_are_one(runs: Runs, tmp_path: Path, free_port: int) -> None:
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    runs.finish(tmp_path / "one", *TWENTY)
    printed = runs.finish(
        tmp_path / "two", *TWENTY, launcher=(*torchrun, "--master-port", str(free_port))
    )
    assert "70 images per step: 2 devices x 35" in printed
    assert printed.count("run folder:") == 1, "only the first process speaks"
    assert "GLOBAL_RANK" not in printed
    assert_close(state(tmp_path / "one"), state(tmp_path / "two"))


JOIN = """
import torch
from convnext.recipes.schema import RunRecipe
from convnext.training.distributed import launched, make_fabric, ranks_of
fabric = make_fabric(RunRecipe(), torch.device("cpu"), "fp32")
with launched(fabric, lambda: None):
    print(ranks_of(fabric).gather(fabric.global_rank))
"""


def test_a_restarted_process_does_not_find_the_addresses_of_dead_ones() -> None:
    agent = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)

    def start(attempt: int, rank: int) -> subprocess.Popen[str]:
        ours = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "MASTER_PORT": agent.port}
        counts = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_RESTART_COUNT": attempt}
        texts = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "none"}
        texts |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1"}
        texts |= {name: str(value) for name, value in (ours | counts).items()}
        return subprocess.Popen(
            [sys.executable, "-c", JOIN],
            env=os.environ | texts,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    for attempt in (0, 1):
        before = agent.num_keys()
        first = start(attempt, 0)
        # The other one is late: the first has published its address and looks for the other's.
        wait_for(lambda before=before: agent.num_keys() > before, first)  # type: ignore[misc]
        second = start(attempt, 1)
        for process in (first, second):
            printed, _ = process.communicate(timeout=120)
            assert process.returncode == 0, printed
            assert "[0, 1]" in printed


@pytest.mark.parametrize("code", ["0", "75"])
def test_a_process_that_ends_before_it_is_ready_is_lost(
    code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_CODE", f"raise SystemExit({code})")
    with (
        process_state_restored(),
        pytest.raises(LostProcessError, match="process 1 of the 2 of this run was lost"),
        processes.other_processes(2, print),
    ):
        pass


def test_no_process_is_left_if_another_one_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(rank: int) -> subprocess.Popen[bytes]:
        if rank == 2:
            raise BlockingIOError("no more processes")
        started.append(own_start(rank))
        return started[0]

    own_start = processes._start
    monkeypatch.setattr(processes, "_CODE", "import sys; sys.stdin.read()")
    monkeypatch.setattr(processes, "_start", start)
    with (
        process_state_restored(),
        pytest.raises(BlockingIOError),
        processes.other_processes(3, print),
    ):
        pass
    assert started[0].poll() == -signal.SIGKILL


def test_a_sharded_network_is_a_whole_one(runs: Runs, tmp_path: Path) -> None:
    runs.finish(tmp_path / "one", *TWENTY)
    runs.finish(tmp_path / "two", *TWENTY, "--run.devices", "2", "--run.strategy", "fsdp")
    # FSDP divides the sum of the gradients at another point.
    assert_close(state(tmp_path / "one"), state(tmp_path / "two"), within=1e-5)


@pytest.mark.parametrize(
    ("devices", "nodes", "environment", "message"),
    [
        (
            2,
            1,
            {"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"},
            "torchrun started 4 processes on each of 2",
        ),
        ("auto", 2, {}, "only this machine was started"),
    ],
)
def test_devices_that_were_not_started(
    monkeypatch: pytest.MonkeyPatch,
    devices: Any,
    nodes: int,
    environment: dict[str, str],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        count_devices(RunRecipe(devices=devices, num_nodes=nodes), torch.device("cpu"))


def test_the_launcher_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert count_devices(RunRecipe(), torch.device("cpu")) == (4, 2)
    monkeypatch.delenv("WORLD_SIZE")
    assert count_devices(RunRecipe(), torch.device("cpu")) == (1, 1)


@pytest.mark.parametrize("name", ["convnext_atto", "timm/resnet18", "timm/vit_tiny_patch16_224"])
def test_activations_are_computed_again(name: str) -> None:
    small = {"depths": (1, 1, 2, 1), "dims": (8, 8, 8, 16)} if name == "convnext_atto" else {}
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        model = create_model(name, num_classes=3, drop_path_rate=0.5, **small)
        names = set(model.state_dict())
        assert not again or checkpoint_activations(model)
        assert set(model.state_dict()) == names
        torch.manual_seed(1)
        images = torch.randn(2, 3, *((224, 224) if "vit" in name else (64, 64)))
        model(images).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_one_device_cannot_be_sharded() -> None:
    with pytest.raises(ValueError, match=r"give --run\.devices 2 or more"):
        make_fabric(RunRecipe(strategy="fsdp"), torch.device("cpu"), "fp32")


@pytest.mark.parametrize(
    ("norm", "ranks", "micro", "device", "found"),
    [
        ("batch", Ranks(0, 2), 8, "cpu", "average over 4 images at a time, and over 8 on one"),
        ("batch", Ranks(0, 2), 8, "cuda", ""),
        ("batch", Ranks(0, 2), 4, "cuda", ""),
        ("batch", ALONE, 8, "cpu", ""),
        ("batch", ALONE, 3, "cpu", "average over 3 images at a time, and over 8"),
        ("layer", Ranks(0, 2), 8, "cpu", ""),
    ],
)
def test_another_batch_of_batch_norms_is_told_of(
    norm: str, ranks: Ranks, micro: int, device: str, found: str
) -> None:
    task: Any = ToyTask()
    task.device, task.recipe = (
        torch.device(device),
        change_recipe(Recipe(), {"optim.micro_batch_size": 8}),
    )
    task.num_parts = lambda size: -(-8 // ranks.count // size)
    said = warn_of_batch_norm(task, toy_model(norm=norm), ranks, micro)
    assert found in said
    assert bool(said) == bool(found)
