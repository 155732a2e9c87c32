"""Fused blocks have the outputs, gradients and random draws of plain ones."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from convnext.kernels import fused_branch as branch
from convnext.models.blocks import PLAIN, Block
from convnext.models.config import NetworkConfig
from convnext.models.execution import (
    Fused,
    Recomputed,
    is_fusable,
    set_fused,
)
from convnext.tasks.factory import create_model
from convnext.training.distributed import checkpoint_activations

SMALL = {"num_classes": 5, "depths": (1, 1, 2, 1)}
NAMES = (
    "convnext_atto",
    "convnext_isotropic_small",
    "roadmap/resnet50/separate_downsampling",
    "roadmap/resnet50/inverting_dimensions",
)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branch, "CHUNK_BYTES", 1)
    monkeypatch.setattr(branch, "MIN_CHUNK", 50)  # Not a divisor of the number of rows.


def num_fused(model: nn.Module) -> int:
    executions = [m.execute for m in model.modules() if isinstance(m, Block)]
    inner = [e.inner if isinstance(e, Recomputed) else e for e in executions]
    return sum(isinstance(e, Fused) for e in inner)


def gradients(
    model: nn.Module,
    *,
    fused: bool,
    dtype: torch.dtype = torch.float64,
    bf16: bool = False,
    widened: bool = False,
) -> list[Tensor]:
    """Return the logits and the gradients of the images and of every parameter."""
    count = set_fused(model, fused=fused, widened=widened)
    assert num_fused(model) == count * fused
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 96, 64, dtype=dtype, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    model.zero_grad()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(images)
    logits.to(dtype).square().sum().backward()
    parameters = [p.grad for p in model.parameters() if p.requires_grad]
    found = [logits.detach(), images.grad, *parameters]
    assert all(t is not None for t in found)
    return found  # type: ignore[return-value]


def distance(found: list[Tensor], true: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, true, strict=True))


@pytest.mark.parametrize("rate", [0.0, 0.6])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_stay(name, rate, randomize):
    depths = (2,) if "isotropic" in name else (1, 1, 2, 1)
    model = create_model(name, num_classes=5, depths=depths, drop_path_rate=rate)
    model = randomize(model).double().to(memory_format=torch.channels_last).train()
    names = list(model.state_dict())
    plain = gradients(model, fused=False)
    assert distance(gradients(model, fused=True), plain) < 1e-10
    assert list(model.state_dict()) == names
    assert all(p.grad.stride() == p.stride() for p in model.parameters())


def test_every_block_of_the_family_is_fusable():
    model = create_model("convnext_atto", **SMALL)
    assert set_fused(model, fused=True) == 5
    assert set_fused(model, fused=False) == 5
    assert num_fused(model) == 0
    batch_norm = create_model("roadmap/resnet50/resnet_baseline", num_classes=5)
    assert set_fused(batch_norm, fused=True) == 0
    assert not is_fusable(nn.Conv2d(4, 4, 1))


def test_single_precision_is_as_exact_as_that_of_the_layers(randomize):
    model = randomize(create_model("convnext_atto", **SMALL, drop_path_rate=0.0))
    model = model.to(memory_format=torch.channels_last).train()
    found = {fused: gradients(model, fused=fused, dtype=torch.float32) for fused in (False, True)}
    model.double()
    true = gradients(model, fused=False)
    single, plain = (distance([t.double() for t in found[fused]], true) for fused in (True, False))
    assert single < max(1e-5, 3 * plain)


@pytest.mark.parametrize("widened", [True, False])
def test_bf16_is_as_exact_as_that_of_the_layers(widened, randomize):
    model = randomize(create_model("convnext_atto", **SMALL, drop_path_rate=0.4))
    model = model.to(memory_format=torch.channels_last).train()
    true = gradients(model, fused=False, dtype=torch.float32)
    one, two = (
        gradients(model, fused=fused, dtype=torch.float32, bf16=True, widened=widened)
        for fused in (True, False)
    )
    assert one[0].dtype == two[0].dtype == torch.bfloat16
    assert distance(one, true) < 1.5 * distance(two, true)


def test_recomputed_activations_and_frozen_weights(randomize):
    model = randomize(create_model("convnext_atto", **SMALL, drop_path_rate=0.5))
    model = model.double().to(memory_format=torch.channels_last).train()
    model.stages[0].requires_grad_(False)
    plain = gradients(model, fused=False)
    assert checkpoint_activations(model)
    assert distance(gradients(model, fused=True), plain) < 1e-10


@pytest.mark.parametrize("fused", [False, True])
def test_recomputing_changes_no_bit(fused: bool, randomize) -> None:
    model = randomize(create_model("convnext_atto", **SMALL, drop_path_rate=0.5))
    model = model.to(memory_format=torch.channels_last).train()
    kept = gradients(model, fused=fused, dtype=torch.float32)
    assert checkpoint_activations(model)
    assert checkpoint_activations(model)  # A second call changes nothing.
    again = gradients(model, fused=fused, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    assert all(isinstance(b.execute, Recomputed) for b in model.modules() if isinstance(b, Block))


@pytest.mark.parametrize("execution", [PLAIN, Fused(widened=True), Recomputed(Fused())], ids=str)
def test_an_execution_is_copied_and_pickled_but_is_no_state(execution, randomize) -> None:
    block = randomize(_block()).train()
    names = list(block.state_dict())
    block.execute = execution
    assert list(block.state_dict()) == names
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert other.execute == execution
        assert type(other) is Block
    x = torch.randn(2, block.get_submodule("spatial").weight.shape[0], 8, 8)
    torch.manual_seed(0)
    expected = block(x)
    torch.manual_seed(0)
    assert torch.equal(copy.deepcopy(block)(x), expected)


def test_a_branch_that_every_image_drops_has_gradients_of_zero(randomize):
    config = NetworkConfig(dims=(8, 8, 8, 8), layer_scale_init=1.0)
    block = randomize(Block(config, in_dim=8, dim=8, drop_path_rate=1.0)).train()
    assert set_fused(block, fused=True) == 1
    x = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out = block(x)
    assert torch.equal(out, x)
    out.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert all(not p.grad.any() for p in block.parameters())


def test_evaluation_is_that_of_a_plain_block(randomize):
    model = randomize(create_model("convnext_atto", **SMALL)).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    set_fused(model, fused=True)
    assert torch.equal(model(images), expected)


def _block(**changes: object) -> Block:
    model = create_model("convnext_atto", **SMALL, **changes)
    return next(m for m in model.modules() if isinstance(m, Block))


def test_what_differs_from_the_block_of_convnext_is_left_alone() -> None:
    def spatial(block: Block, **values: object) -> None:
        for name, value in values.items():
            setattr(block.get_submodule("spatial"), name, value)

    changed = {
        "wrapped": lambda b: setattr(b, "pwconv1", nn.Sequential(b.pwconv1)),
        "circular": lambda b: spatial(b, padding_mode="circular"),
        "unpadded": lambda b: spatial(b, padding=(0, 0)),
        "dilated": lambda b: spatial(b, dilation=(2, 2)),
        "without bias": lambda b: spatial(b, bias=None),
        "tanh": lambda b: setattr(b, "pwconv1_act", nn.GELU("tanh")),
        "watched": lambda b: b.pwconv1.register_forward_hook(lambda *_: None),
    }
    assert set_fused(_block(), fused=True) == 1
    for name, change in changed.items():
        block = _block()
        change(block)
        assert set_fused(block, fused=True) == 0, name


def test_the_output_may_be_changed_in_place(randomize) -> None:
    block = randomize(_block(drop_path_rate=0.5)).train()
    set_fused(block, fused=True)
    dim = block.get_submodule("spatial").weight.shape[0]
    out = block(torch.randn(6, dim, 9, 8, requires_grad=True))
    assert out.is_contiguous(memory_format=torch.channels_last)
    out.mul_(2).sum().backward()


def test_frozen_blocks_and_weights_of_bf16_run_layer_by_layer(randomize) -> None:
    block = randomize(_block()).train()
    set_fused(block, fused=True)
    images = torch.randn(2, block.get_submodule("spatial").weight.shape[0], 8, 8)
    assert "Branch" in type(block(images).grad_fn).__name__
    assert block.requires_grad_(False)(images).grad_fn is None
    block.requires_grad_(True).bfloat16()
    out = block(images.bfloat16())
    assert "Branch" not in type(out.grad_fn).__name__
    out.sum().backward()
    assert all(p.grad is not None for p in block.parameters())
