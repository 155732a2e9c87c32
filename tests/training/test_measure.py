"""Norms against sums of squares, plain and sharded; peak rate, utilization and memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from convnext.hardware.devices import peak_memory_gb
from convnext.hardware.peak_rates import mfu, peak_matmul_flops, train_flops_per_image
from convnext.training.optim import UpdateNorm, l2_norm

CPU = torch.device("cpu")


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """A group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def by_hand(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float((t.double() ** 2).sum()) for t in tensors))


def check_norms(model: nn.Module, parameters: list[torch.Tensor]) -> None:
    """Compare the update norm of a plain gradient descent step with the norm of its gradients."""
    rate = 0.1
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    model(torch.ones(2, 3)).square().sum().backward()
    assert float(l2_norm(model)) == pytest.approx(by_hand(parameters), rel=1e-6)
    update = UpdateNorm(model)
    optimizer.step()
    gradient = by_hand([p.grad for p in model.parameters() if p.grad is not None])
    assert gradient > 0
    assert float(update.compute()) == pytest.approx(rate * gradient, rel=1e-4)


def test_norms() -> None:
    model = network()
    check_norms(model, [p.detach().clone() for p in model.parameters()])


def test_norms_of_a_sharded_network(mesh: DeviceMesh) -> None:
    model = network()
    values = [p.detach().clone() for p in model.parameters()]
    fully_shard(model, mesh=mesh)
    check_norms(model, values)
    assert type(l2_norm(model)) is torch.Tensor


def test_frozen_parameters_count_but_do_not_move() -> None:
    model = network()
    model[0].requires_grad_(False)
    check_norms(model, [p.detach().clone() for p in model.parameters()])


def test_share_of_the_limit() -> None:
    assert train_flops_per_image(4.5e9) == 27e9
    assert mfu(1000, 4.5e9, 54e12) == pytest.approx(0.5)


def test_the_limit_is_measured_once_and_draws_no_random_number() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    limit = peak_matmul_flops(CPU, "fp32")
    assert torch.equal(torch.get_rng_state(), state)
    assert 1e8 < limit < 1e14
    assert peak_matmul_flops(CPU, "fp32") == limit


def test_memory_is_that_of_the_process() -> None:
    block = torch.ones(30_000_000)
    assert peak_memory_gb(CPU) > block.nbytes / 1e9
