"""Check that a CPU computes the gradients of a network's layers in bf16 as it does in fp32.

Libraries have bugs that appear only at some shapes: torch 2.15 with AMX leaves parts of the weight
gradient uninitialized for a 3 x 3 convolution of stride 2 on a 1 x 1 map. Each layer is therefore
checked separately, at its shape in this network: the accumulated error of a deep network would hide
the bug.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convnext.hardware.tuning_cache import TuningCache, key_of
from convnext.tasks.base import Task
from convnext.training.backend import first_part

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
"""The layers that autocast computes in bf16."""
MAX_ERROR = 0.05
IMAGES = 4
"""The number of images of a batch that is enough for the check."""
TRIES = 2

Shapes = dict[str, tuple[nn.Module, tuple[int, ...]]]


def wrong_in_bf16(
    task: Task, model: nn.Module, micro_batch_size: int, cache: Path | None = None
) -> str:
    """Return the layer whose bf16 gradients are wrong on this CPU, and the error; "" if none are.

    The answer is cached for these layers and shapes, this processor, its threads and this torch.

    Args:
        task: Provides the first micro batch, as in the loop.
        model: The network on the CPU, in fp32; it is left unchanged.
        micro_batch_size: Images per backward pass.
        cache: The file of answers; by default in the user's cache folder.
    """
    shapes = shapes_of(task, model, micro_batch_size)
    answers = TuningCache(cache)
    key = key_of("bf16_gradients", torch.device("cpu"), torch.get_num_threads(), sorted(shapes))
    # One of several processes checks; the others read its result.
    with answers.exclusive():
        known = answers.load(key, _text)
        if known is not None:
            return str(known)
        found = ""
        for layer, shape in shapes.values():
            error = gradient_error(layer, shape)
            if error > MAX_ERROR:
                wrong = f"off by {100 * error:.3g} %" if error < math.inf else "not numbers"
                found = f"the gradients of {_name(layer, shape)} are {wrong}"
                break
        answers.store(key, found)
    return found


def shapes_of(task: Task, model: nn.Module, micro_batch_size: int) -> Shapes:
    """Return each distinct layer that a micro batch passes through, with its input shape."""
    found: Shapes = {}

    def record(layer: nn.Module, given: tuple[Any, ...]) -> None:
        shape = (min(given[0].shape[0], IMAGES), *given[0].shape[1:])
        if 0 not in shape:
            found.setdefault(_name(layer, shape), (layer, shape))

    part = first_part(task, min(micro_batch_size, IMAGES))
    # Training changes buffers, such as batch norm statistics, so use a copy.
    copied = copy.deepcopy(model).train()
    layers = [module for module in copied.modules() if isinstance(module, LAYERS)]
    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    with torch.random.fork_rng(), torch.no_grad():
        task.losses(copied, part, 0, 0)
    for hook in hooks:
        hook.remove()
    return found


def gradient_error(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """Return the max relative error of a layer's bf16 gradients, over its weights and input.

    Args:
        layer: A convolution or a linear layer in fp32, on the CPU.
        shape: The shape of its input.
    """
    generator = torch.Generator().manual_seed(0)
    memory_format = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    layer = copy.deepcopy(layer).to(memory_format=memory_format)
    given = torch.randn(shape, generator=generator).contiguous(memory_format=memory_format)
    given.requires_grad_()
    sources = [given, *layer.parameters()]
    out = layer(given)
    back = torch.randn(out.shape, generator=generator)
    exact = torch.autograd.grad(out, sources, back)
    worst = 0.0
    for _ in range(TRIES):
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(given)
        # Uninitialized memory must not pass because it happened to be zero.
        _fill_freed_memory(max(source.numel() for source in sources))
        found = torch.autograd.grad(out, sources, back.to(out.dtype))
        errors = [_relative(a, b) for a, b in zip(found, exact, strict=True)]
        worst = max(worst, *errors)
    return worst


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is not a string")


def _fill_freed_memory(num: int) -> None:
    """Fill the memory that the next gradient will be allocated in with NaN."""
    blocks = [torch.full((num,), float("nan"), dtype=torch.bfloat16) for _ in range(8)]
    del blocks


def _relative(found: Tensor, exact: Tensor) -> float:
    error = float((found.float() - exact).norm() / exact.norm().clamp_min(1e-12))
    return error if math.isfinite(error) else math.inf


def _name(layer: nn.Module, shape: tuple[int, ...]) -> str:
    size = " x ".join(map(str, shape))
    return f"{layer.__class__.__name__}({layer.extra_repr()}) on {size}"
