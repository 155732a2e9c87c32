"""Saved states of a run, from which it resumes bit for bit; each folder is complete or absent.

    checkpoints/best.safetensors            the best weights so far
    checkpoints/step-00000120/              a complete state; the last two are kept
        model.safetensors                   the weights, a checkpoint like any other
        state.safetensors                   moments of the optimizer, the moving average, counters

Every file contains a hash of its bytes. If a state is damaged, the run resumes from the one before.
Randomness needs no state: it is a function of the seed and of the step or the sample.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from convnext.atomic import remove_temporary_files, sync_folder, write_text
from convnext.hardware.devices import Ranks
from convnext.training.distributed import copy_, full_tensor
from convnext.training.faults import is_full_disk
from convnext.training.log import RunLog
from convnext.training.optim import GROUP_KEYS, Ema
from convnext.weights.checkpoint import Card, complete_steps, step_of
from convnext.weights.files import read_file, save_checkpoint, save_tensors

NUM_KEPT = 2
# Enough for a report, and for the pictures of an evaluation.
REPORT_BYTES = 20_000_000


@dataclass(frozen=True)
class Learner:
    """Everything that changes with every step, besides the counters of the loop."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None
    scaler: torch.amp.GradScaler | None = None

    def gather(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the full weights, and all other full tensors by name; every process must call."""
        weights = {name: full_tensor(t) for name, t in self.model.state_dict().items()}
        rest = {
            f"optim.{key}.{name}": full_tensor(value)
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }
        if self.ema is not None:
            rest |= {f"ema.{name}": full_tensor(t) for name, t in self.ema.tensors.items()}
        return weights, rest

    def numbers(self) -> dict[str, dict[str, Any]]:
        """Return the rest of the optimizer's state, for JSON: no tensor of a parameter.

        Returns:
            Under "parameters" the numbers of single parameters by their names, and under "groups"
            what a group has as a whole by its name; empty for AdamW.
        """
        parameters = {
            name: {k: v for k, v in own.items() if not isinstance(v, Tensor)}
            for name, parameter in self.model.named_parameters()
            if (own := self.optimizer.state.get(parameter, {}))
        }
        groups = {
            group["name"]: {key: _to_json(group[key]) for key in self._own_keys(group)}
            for group in self.optimizer.param_groups
        }
        found = {"parameters": parameters, "groups": groups}
        return {kind: {n: kept for n, kept in all_.items() if kept} for kind, all_ in found.items()}

    def restore_numbers(self, numbers: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what `numbers` returned; call it after `restore`."""
        parameters, groups = (numbers.get(kind, {}) for kind in ("parameters", "groups"))
        for name, parameter in self.model.named_parameters():
            if name in parameters:
                self.optimizer.state[parameter].update(parameters[name])
        for group in self.optimizer.param_groups:
            self.forget_numbers([group])
            values = groups.get(group["name"], {})
            group.update({key: _from_json(value) for key, value in values.items()})

    def forget_numbers(self, groups: Iterable[Mapping[str, Any]]) -> None:
        """Delete what groups have as a whole, such as the steps in which they were frozen."""
        for group in groups:
            for key in self._own_keys(group):
                del group[key]  # type: ignore[attr-defined]

    def _own_keys(self, group: Mapping[str, Any]) -> list[str]:
        """Return the keys of a group that are state: neither settings nor from `parameter_groups`.

        LAMB counts the steps of a group.
        """
        return [k for k in group if k not in self.optimizer.defaults and k not in GROUP_KEYS]

    def restore(self, weights: Mapping[str, Tensor], rest: Mapping[str, Tensor]) -> None:
        """Restore what `gather` returned.

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
            # The step count stays on the CPU, unless a fused optimizer needs it on the device.
            fused = self.optimizer.defaults.get("fused") and parameter.device.type != "cpu"
            value = tensor
            if tensor.shape == parameter.shape and tensor.ndim:
                value = torch.empty_like(parameter, requires_grad=False)
                copy_(value, tensor)
            elif fused:
                value = tensor.to(parameter.device)
            self.optimizer.state[parameter][key] = value


def _to_json(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return {"value": value.item(), "dtype": str(value.dtype).removeprefix("torch.")}


def _from_json(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return torch.tensor(value["value"], dtype=getattr(torch, value["dtype"]))


def _fill(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    different = targets.keys() ^ values.keys()
    different |= {k for k in targets.keys() & values.keys() if targets[k].shape != values[k].shape}
    if different:
        raise ValueError(
            f"{len(different)} tensors differ from what this recipe builds, such as "
            f"{min(different)}; start a new run in another --output"
        )
    for name, target in targets.items():
        copy_(target, values[name])


def save_state(
    folder: Path,
    *,
    step: int,
    weights: Mapping[str, Tensor],
    rest: Mapping[str, Tensor],
    card: Card,
    counters: Mapping[str, Any],
) -> Path:
    """Write the state of a step, delete all but the last two, and return its folder."""
    target = folder / f"step-{step:08d}"
    temporary = folder / f".{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save_checkpoint(temporary / "model.safetensors", weights, card)
        metadata = {
            "format": "convnext-state-2",
            "counters": json.dumps({"step": step, **counters}),
        }
        # A state with no other tensors (no moving average, no step yet) still has a file.
        save_tensors(temporary / "state.safetensors", rest or {"empty": torch.zeros(1)}, metadata)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    # States of later steps belong to an abandoned attempt: they were damaged, or it diverged.
    for other in [*complete_steps(folder, before=step)[: 1 - NUM_KEPT], *_after(folder, step)]:
        shutil.rmtree(other)
    return target


def needed_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes that tensors take on disk."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _after(folder: Path, step: int) -> list[Path]:
    return [path for path in complete_steps(folder) if step_of(path) > step]


def load_state(
    folder: Path, learner: Learner, *, ranks: Ranks, warn: Callable[[str], None]
) -> dict[str, Any]:
    """Load the newest complete state into the learner of every process.

    The first process chooses it, and calls `warn` for every damaged state that it skips.

    Returns:
        The counters that `save_state` was given, and `step`.

    Raises:
        ValueError: If there is no readable state, or it belongs to another network.
    """
    found = _newest_readable(folder, warn) if ranks.is_first else None
    name = ranks.broadcast_object(found.path.name if found else None)
    if name is None:
        raise ValueError(
            f"no checkpoint in {folder} is complete enough to resume from; "
            "start a new run in another --output"
        )
    state = found or _read(folder / name)
    try:
        learner.restore(state.weights, state.rest)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{state.path} holds another network: {error}") from error
    learner.restore_numbers(state.counters.get("optimizer", {}))
    if learner.scaler is not None and state.counters.get("scaler"):
        learner.scaler.load_state_dict(state.counters["scaler"])
        # Values left over from a step that failed halfway are not part of the scaler's state.
        learner.scaler._per_optimizer_states.clear()
    return dict(state.counters)


@dataclass(frozen=True)
class _State:
    path: Path
    weights: Mapping[str, Tensor]
    rest: Mapping[str, Tensor]
    counters: Mapping[str, Any]


def _newest_readable(folder: Path, warn: Callable[[str], None]) -> _State | None:
    for path in reversed(complete_steps(folder)):
        try:
            return _read(path)
        except (ValueError, KeyError, OSError, SafetensorError) as error:
            warn(f"skipping a damaged checkpoint: {error}")
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


# A failed save is retried after this many steps.
RETRY_STEPS = 50
_MICRO = "micro_batch_size.json"


class Saver:
    """The checkpoints of a run. All processes call its methods; only the first one writes."""

    def __init__(self, folder: Path, learner: Learner, *, log: RunLog, ranks: Ranks) -> None:
        self.folder, self.learner, self.log, self.ranks = folder, learner, log, ranks
        self.saved = -1
        """The step of the last state that was saved or restored."""
        self._retry_at: int | None = None

    @property
    def best_path(self) -> Path:
        """The path of the best weights."""
        return self.folder / "best.safetensors"

    def tidy(self, best: Mapping[str, Any]) -> bool:
        """Delete partial files of a killed process; return whether the best weights are intact.

        If they are damaged, the user is warned.
        """
        problem = None
        if self.ranks.is_first:
            remove_temporary_files(self.folder, r"best\.safetensors|micro_batch_size\.json")
            for left in self.folder.glob(".step-*"):
                if re.fullmatch(r"\.step-\d{8,}", left.name) and left.is_dir():
                    shutil.rmtree(left)  # Refuses links.
            try:
                if best:
                    read_file(self.best_path)
            except ValueError as error:
                problem = f"{error}: the best of the following evaluations replaces it"
                self.log.warn(problem)
        return self.ranks.broadcast_object(problem) is None

    def check_space(self) -> None:
        """Check that the disk has space for the checkpoints of the run and its report.

        A state is written before the oldest one is deleted, and so are the best weights.

        Raises:
            OSError: In every process, if there is too little.
        """
        model, ema = self.learner.model, self.learner.ema
        weights = needed_bytes(model.state_dict().values())
        groups = self.learner.optimizer.param_groups
        moments = 2 * needed_bytes(p for g in groups for p in g["params"])  # The maximum.
        state = weights + moments + (needed_bytes(ema.tensors.values()) if ema else 0)
        problem = None
        if self.ranks.is_first:
            kept = min(NUM_KEPT, len(complete_steps(self.folder)))
            best = 1 if self.best_path.is_file() else 2
            need = (NUM_KEPT + 1 - kept) * state + best * weights + REPORT_BYTES
            free = shutil.disk_usage(self.folder.parent).free
            if free < need:
                problem = (
                    f"the run needs {need / 1e6:,.0f} MB in {self.folder}, for states of "
                    f"{state / 1e6:,.0f} MB, the best weights and the report, but "
                    f"{free / 1e6:,.0f} MB are free; free some, or choose another --output"
                )
        if problem := self.ranks.broadcast_object(problem):
            raise OSError(problem)

    def is_due(self, step: int, every: int) -> bool:
        """Whether the state is saved at a step."""
        again = self._retry_at is not None and step >= self._retry_at
        return step != self.saved and (step % every == 0 or again)

    def save(self, step: int, card: Card, counters: Mapping[str, Any], *, must: bool) -> None:
        """Save the state of a step. If the disk is full or fails, warn and retry later.

        Raises:
            OSError: If it could not be saved and `must` is set.
        """
        weights, rest = self.learner.gather()
        problem = None
        if self.ranks.is_first:
            try:
                save_state(
                    self.folder, step=step, weights=weights, rest=rest, card=card, counters=counters
                )
            except (OSError, SafetensorError) as error:
                problem = self._problem(error, step, [*weights.values(), *rest.values()])
        problem = self.ranks.broadcast_object(problem)
        if problem is None:
            self.saved, self._retry_at = step, None
            return
        if must:
            raise OSError(f"{problem}. Fix this, then continue with --resume")
        self._retry_at = step + RETRY_STEPS
        self.log.warn(f"{problem}. The run continues and will retry", step=step)

    def save_best(self, card: Card) -> bool:
        """Save the current weights as the best; return whether the disk had space."""
        weights = {name: full_tensor(t) for name, t in self.learner.model.state_dict().items()}
        saved = True
        if self.ranks.is_first:
            try:
                save_checkpoint(self.best_path, weights, card)
            except (OSError, SafetensorError) as error:
                saved = False
                step = int(card.metrics["step"])
                problem = self._problem(error, step, list(weights.values()))
                self.log.warn(f"{problem}. The best weights are still the earlier ones", step=step)
        return bool(self.ranks.broadcast_object(saved))

    def _problem(self, error: Exception, step: int, tensors: list[Any]) -> str:
        if not is_full_disk(error):
            return f"step {step:,} could not be saved in {self.folder} ({error})"
        need, free = needed_bytes(tensors), shutil.disk_usage(self.folder).free
        return (
            f"step {step:,} could not be saved: it needs {need / 1e6:,.1f} MB in {self.folder}, "
            f"where {free / 1e6:,.1f} MB are free"
        )

    def keep_micro_batch_size(self, size: int) -> None:
        """Store a size that may fit, for the restart of a run that cannot recover by itself."""
        write_text(self.folder / _MICRO, json.dumps({"micro_batch_size": size}) + "\n")

    def micro_batch_size(self) -> int | None:
        """Return the size that an earlier start stored."""
        path = self.folder / _MICRO
        if not path.is_file():
            return None
        return int(json.loads(path.read_text(encoding="utf-8"))["micro_batch_size"])
