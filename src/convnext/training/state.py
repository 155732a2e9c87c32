"""What a run needs to go on as if it had never stopped, in folders that are whole or absent.

    checkpoints/best.safetensors            the best weights so far
    checkpoints/step-00000120/              a complete state; the last two are kept
        model.safetensors                   the weights, a checkpoint like any other
        state.safetensors                   moments of the optimizer, the moving average, counters

Every file carries a hash of its bytes, so that damage is found and the state before it is taken.
Randomness needs no state: it is a function of the seed and of the step or the sample.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from convnext.atomic import sync_folder
from convnext.hardware.ranks import Ranks
from convnext.training.distributed import put, whole
from convnext.training.ema import Ema
from convnext.weights.checkpoint import Card
from convnext.weights.files import read_file, save_checkpoint, save_tensors

KEPT = 2
_PREFIX = "step-"


@dataclass(frozen=True)
class Learner:
    """What changes with every step, beside the counters of the loop."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None
    scaler: torch.amp.GradScaler | None = None

    def gather(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the weights, and all else by name, whole; every process must call."""
        weights = {name: whole(t) for name, t in self.model.state_dict().items()}
        rest = {
            f"optim.{key}.{name}": whole(value)
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        if self.ema is not None:
            rest |= {f"ema.{name}": whole(t) for name, t in self.ema.tensors.items()}
        return weights, rest

    def restore(self, weights: Mapping[str, Tensor], rest: Mapping[str, Tensor]) -> None:
        """Take what `gather` returned.

        Raises:
            ValueError: If it belongs to another network.
        """
        _fill(self.model.state_dict(), weights)
        if self.ema is not None:
            _fill(self.ema.tensors, _under("ema.", rest))
        parameters = dict(self.model.named_parameters())
        self.optimizer.state.clear()
        for full_name, tensor in _under("optim.", rest).items():
            key, name = full_name.split(".", 1)
            parameter = parameters[name]
            # The count of steps stays on the CPU, unless a fused optimizer wants it with the rest.
            fused = self.optimizer.defaults.get("fused") and parameter.device.type != "cpu"
            value = tensor
            if tensor.shape == parameter.shape and tensor.ndim:
                value = torch.empty_like(parameter, requires_grad=False)
                put(value, tensor)
            elif fused:
                value = tensor.to(parameter.device)
            self.optimizer.state[parameter][key] = value


def _fill(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    different = targets.keys() ^ values.keys()
    different |= {k for k in targets.keys() & values.keys() if targets[k].shape != values[k].shape}
    if different:
        raise ValueError(
            f"{len(different)} tensors differ from what this recipe builds, such as "
            f"{min(different)}; start a new run in another --output"
        )
    for name, target in targets.items():
        put(target, values[name])


def save_state(
    folder: Path,
    *,
    step: int,
    weights: Mapping[str, Tensor],
    rest: Mapping[str, Tensor],
    card: Card,
    counters: Mapping[str, Any],
) -> Path:
    """Write the state of a step, then drop all but the last two. Returns its folder."""
    target = folder / f"{_PREFIX}{step:08d}"
    temporary = folder / f".{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save_checkpoint(temporary / "model.safetensors", weights, card)
        metadata = {
            "format": "convnext-state-2",
            "counters": json.dumps({"step": step, **counters}),
        }
        # A state without tensors of its own (no moving average, no step yet) still has a file.
        save_tensors(temporary / "state.safetensors", rest or {"empty": torch.zeros(1)}, metadata)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    # Those of later steps are of a course that was left: they were damaged, or went astray.
    for other in [*complete_steps(folder, before=step)[: 1 - KEPT], *_after(folder, step)]:
        shutil.rmtree(other)
    return target


def needed_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the room that tensors take on a disk."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def complete_steps(folder: Path, before: int | None = None) -> list[Path]:
    """Return the folders of complete states, oldest first; those before a step, if one is given."""
    found = sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())
    return found if before is None else [p for p in found if step_of(p) < before]


def step_of(path: Path) -> int:
    """Return the step of the folder of a state."""
    return int(path.name.removeprefix(_PREFIX))


def _after(folder: Path, step: int) -> list[Path]:
    return [path for path in complete_steps(folder) if step_of(path) > step]


def load_state(
    folder: Path, learner: Learner, *, ranks: Ranks, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Put the newest complete state into the learner of every process.

    The first process chooses it. `tell` is told of every damaged state that is passed over.

    Returns:
        The counters that `save_state` was given, and `step`.

    Raises:
        ValueError: If there is no readable state, or it belongs to another network.
    """
    found = _newest_whole(folder, tell) if ranks.is_first else None
    name = ranks.of_first(found.path.name if found else None)
    if name is None:
        raise ValueError(
            f"no checkpoint in {folder} is whole enough to resume from; "
            "start a new run in another --output"
        )
    state = found or _read(folder / name)
    try:
        learner.restore(state.weights, state.rest)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{state.path} holds another network: {error}") from error
    if learner.scaler is not None and state.counters.get("scaler"):
        learner.scaler.load_state_dict(state.counters["scaler"])
        # What it remembers of a step that failed half way is no part of its own state.
        learner.scaler._per_optimizer_states.clear()
    return dict(state.counters)


@dataclass(frozen=True)
class _State:
    path: Path
    weights: Mapping[str, Tensor]
    rest: Mapping[str, Tensor]
    counters: Mapping[str, Any]


def _newest_whole(folder: Path, tell: Callable[[str], None]) -> _State | None:
    for path in reversed(complete_steps(folder)):
        try:
            return _read(path)
        except (ValueError, KeyError, OSError, SafetensorError) as error:
            tell(f"passing over a damaged checkpoint: {error}")
    return None


def _read(path: Path) -> _State:
    weights, _ = read_file(path / "model.safetensors")
    rest, metadata = read_file(path / "state.safetensors")
    return _State(path, weights, rest, json.loads(metadata["counters"]))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
