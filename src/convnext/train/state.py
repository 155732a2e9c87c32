"""What a run needs to go on as if it had never stopped, in folders that are whole or absent.

    checkpoints/best.safetensors            the best weights so far
    checkpoints/step-00000120/              the last complete state
        model.safetensors                   the weights, a checkpoint like any other
        state.safetensors                   moments of the optimizer, the moving average, counters

Randomness needs no state: it is a function of the seed and of the step or the sample.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from convnext.checkpoint import Card, save_checkpoint, save_tensors
from convnext.weights.files import read_file

_PREFIX = "step-"


def save_state(
    folder: Path,
    *,
    step: int,
    model: nn.Module,
    ema: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    card: Card,
    counters: Mapping[str, Any],
) -> Path:
    """Write the state of a step, then drop the others. Returns its folder."""
    target = folder / f"{_PREFIX}{step:08d}"
    temporary = folder / f".{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    save_checkpoint(temporary / "model.safetensors", model.state_dict(), card)
    tensors = _optimizer_tensors(model, optimizer)
    if ema is not None:
        tensors |= {f"ema.{name}": tensor for name, tensor in ema.state_dict().items()}
    metadata = {"format": "convnext-state-1", "counters": json.dumps({"step": step, **counters})}
    save_tensors(temporary / "state.safetensors", tensors, metadata)
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    # Not only the older ones: a damaged folder of a later step may have been passed over.
    for other in complete_steps(folder):
        if other != target:
            shutil.rmtree(other)
    return target


def complete_steps(folder: Path) -> list[Path]:
    """Return the folders of complete states, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())


def load_state(
    folder: Path,
    *,
    model: nn.Module,
    ema: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Put the newest complete state into model, moving average and optimizer.

    `tell` is told of every damaged state that is passed over for an older one.

    Returns:
        The counters that `save_state` was given, and `step`.

    Raises:
        ValueError: If there is no readable state, or it belongs to another network.
    """
    for path in reversed(complete_steps(folder)):
        try:
            weights, _ = read_file(path / "model.safetensors")
            tensors, metadata = read_file(path / "state.safetensors")
        except (ValueError, OSError, SafetensorError) as error:
            tell(f"passing over a damaged checkpoint: {error}")
            continue
        try:
            model.load_state_dict(weights)
            if ema is not None:
                ema.load_state_dict(_under("ema.", tensors))
        except RuntimeError as error:
            raise ValueError(
                f"{path} holds another network than this recipe builds; start a new run in "
                "another --output"
            ) from error
        _restore_optimizer(_under("optim.", tensors), model, optimizer)
        counters: dict[str, Any] = json.loads(metadata["counters"])
        return counters
    raise ValueError(
        f"no checkpoint in {folder} is whole enough to resume from; "
        "start a new run in another --output"
    )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"optim.{key}.{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_optimizer(
    tensors: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    parameters = dict(model.named_parameters())
    for full_name, tensor in tensors.items():
        key, name = full_name.split(".", 1)
        parameter = parameters[name]
        # The count of steps stays on the CPU, unless a fused optimizer wants it beside the rest.
        fused_elsewhere = optimizer.defaults.get("fused") and parameter.device.type != "cpu"
        device = parameter.device if tensor.ndim or fused_elsewhere else "cpu"
        value = tensor.to(device)
        if tensor.ndim == 4:
            value = value.to(memory_format=torch.channels_last)
        optimizer.state[parameter][key] = value
