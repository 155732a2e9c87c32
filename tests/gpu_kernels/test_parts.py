"""Graphs, timings, operation counts, and the behavior without Triton."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gpu_kernels import cuda_graph, graphs
from gpu_kernels.measure import interleaved_medians
from gpu_kernels.traffic import H200, Work, floor_seconds, total_bytes, work_of

CPU = torch.device("cpu")
STAGES = [(256, 96, 56, 56), (256, 192, 28, 28), (256, 384, 14, 14), (256, 768, 7, 7)]


WITHOUT_TRITON = """
import os, sys
sys.modules["triton"] = None  # It cannot be imported.
os.environ["TRITON_INTERPRET"] = "1"
import torch, convnext
from gpu_kernels import apply_kernels
model = convnext.create_model("convnext_atto", depths=(1, 1), dims=(4, 8)).eval()
images = torch.randn(1, 3, 8, 8)
assert torch.equal(apply_kernels(model, images)(images), model(images))
"""


@pytest.mark.slow
def test_without_triton_everything_is_as_before() -> None:
    command = [sys.executable, "-c", WITHOUT_TRITON]
    beside = Path(__file__).parents[2] / "benchmarks"
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=beside)
    assert ran.returncode == 0, ran.stderr
    assert "no kernels on cpu" in ran.stderr


def test_a_graph_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="needs a CUDA device"):
        cuda_graph(torch.relu, torch.zeros(1))


def test_a_graph_replays_on_held_buffers_and_refuses_other_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class OnGpu(Tensor):
        """A CPU tensor that claims to be on a GPU."""

        device = torch.device("cuda", 0)

    def record(function: Callable[[Tensor], Tensor], held: Tensor) -> object:
        result = torch.zeros(2, 3)
        return lambda: result.copy_(function(held.as_subclass(Tensor))), result

    monkeypatch.setattr(graphs, "_record", record)
    call = cuda_graph(lambda x: 2 * x, torch.ones(2, 3).as_subclass(OnGpu))
    first = call(torch.full((2, 3), 5.0).as_subclass(OnGpu))
    second = call(torch.full((2, 3), 7.0).as_subclass(OnGpu))
    assert float(first.sum()) == 60.0
    assert float(second.sum()) == 84.0
    with pytest.raises(ValueError, match=r"recorded for \(2, 3\) float32 on cuda:0, not \(1, 3\)"):
        call(torch.ones(1, 3).as_subclass(OnGpu))
    with pytest.raises(ValueError, match="float64"):
        call(torch.ones(2, 3, dtype=torch.float64).as_subclass(OnGpu))


def test_timings_are_interleaved_medians() -> None:
    calls: list[str] = []
    functions = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    medians = interleaved_medians(functions, CPU, rounds=3, seconds=0.0)
    assert sorted(medians) == ["a", "b"]
    assert all(value > 0 for value in medians.values())
    assert calls == ["a"] * 3 + ["b"] * 3 + ["a", "b"] * 3  # Warm-up first.


@pytest.mark.parametrize("shape", STAGES, ids=str)
def test_fused_pieces_move_less(shape: tuple[int, ...]) -> None:
    one = 2 * shape[0] * shape[1] * shape[2] * shape[3]
    assert total_bytes(work_of("spatial", "fused", shape, 2)) == 2 * one
    assert total_bytes(work_of("spatial", "torch", shape, 2)) == 4 * one
    assert total_bytes(work_of("pair", "fused", shape, 2)) == 3 * one
    assert total_bytes(work_of("pair", "torch", shape, 2)) == 23 * one
    for piece in ("spatial", "pair"):
        fused, plain = (floor_seconds(work_of(piece, o, shape, 2)) for o in ("fused", "torch"))
        assert fused < plain


def test_the_floor_is_the_slowest_part() -> None:
    assert Work(bytes=4.3e12, tensor_flops=1.0).seconds(H200) == 1.0
    assert Work(bytes=1.0, tensor_flops=1580e12).seconds(H200) == 2.0
    assert Work(bytes=1.0, other_ops=3 * 28.7e12).seconds(H200) == pytest.approx(3.0)
