"""The learning rate range test: a few training steps at growing rates, and the loss at each.

The steps are those of the loop: its batches, augmentation, loss, optimizer and precision. Nothing
is saved, and the network is discarded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console

from convnext.hardware.devices import pick_device
from convnext.hardware.peak_rates import pick_training_precision
from convnext.models.execution import set_fused, widens
from convnext.progress import progress_bar
from convnext.recipes.recipe import Recipe
from convnext.recipes.resolve import two_digits
from convnext.tasks import task_class
from convnext.tasks.base import Task
from convnext.training.distributed import (
    count_devices,
    make_fabric,
    process_state_restored,
    seed_everything,
    set_threads,
)
from convnext.training.freezing import Frozen
from convnext.training.optim import make_optimizer, set_learning_rate
from convnext.training.run import check_request

# The range around the learning rate of the recipe, in factors.
LOWEST, HIGHEST = 1e-3, 1e2
# The test ends when the loss exceeds its smoothed minimum by this factor.
DIVERGED = 4.0
# Width of the smoothing in steps, as a fraction of the test.
SMOOTHING = 0.03
# The loss must fall by this fraction for a suggestion.
MIN_FALL = 0.05


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """The losses at growing learning rates, and the rate that they suggest."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """The loss of the step at each rate."""
    smoothed: tuple[float, ...]
    """The losses without their noise."""
    suggestion: float | None
    """The suggested peak learning rate; None if the loss does not fall."""
    reason: str
    """How the suggestion follows from the curve."""
    auto: float
    """The learning rate of the recipe: what `auto` chooses, unless it gives one."""
    model: str
    data: str
    optimizer: str
    batch_size: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}


def range_test(
    recipe: Recipe,
    *,
    console: Console,
    lowest: float | None = None,
    highest: float | None = None,
    num_steps: int = 100,
) -> RangeTest:
    """Train for a few steps at learning rates that grow exponentially.

    Args:
        recipe: The model, the data and all settings, as for `train`.
        console: Where to print.
        lowest: The first rate; by default a thousandth of the recipe's.
        highest: The last rate, unless the loss diverges before; by default 100 times the recipe's.
        num_steps: The number of steps.

    Raises:
        ValueError: If the recipe or the data cannot be used, the rates do not grow, or the run
            would use several devices.
    """
    check_request(recipe)
    if num_steps < 10:
        raise ValueError(f"--num-steps is {num_steps}, but must be at least 10")
    device = pick_device(recipe.run.device)
    if math.prod(count_devices(recipe.run, device)) > 1:
        raise ValueError("find-lr uses one device; leave out --devices and torchrun")
    with process_state_restored():
        precision = pick_training_precision(recipe.run.precision, device)
        fabric = make_fabric(replace(recipe.run, strategy="ddp"), device, precision)
        set_threads(recipe.run, device)
        fabric.launch()
        task = task_class(recipe.task).open(recipe, fabric.device, console)
        auto = task.recipe.optim.lr
        low, high = lowest or auto * LOWEST, highest or auto * HIGHEST
        if not 0 < low < high:
            raise ValueError(f"the rates must grow, but go from {low:g} to {high:g}")
        task.check_files()
        task.prepare(console)
        rates = np.geomspace(low, high, num_steps).tolist()
        losses = _losses(task, fabric, rates, console)
    curve = smooth(losses, num_steps)
    suggestion, reason = suggest(rates[: len(losses)], curve)
    return RangeTest(
        rates=tuple(rates[: len(losses)]),
        losses=tuple(losses),
        smoothed=curve,
        suggestion=suggestion,
        reason=reason,
        auto=auto,
        model=task.recipe.model,
        data=task.recipe.data,
        optimizer=task.recipe.optim.name,
        batch_size=task.batch_size,
    )


def _losses(task: Task, fabric: Any, rates: Sequence[float], console: Console) -> list[float]:
    """Return the loss of a step at each rate, up to the one at which it diverges."""
    recipe, device = task.recipe, fabric.device
    run, optim = recipe.run, recipe.optim
    seed_everything(run.seed)
    model = task.build_model().to(device)
    fused = run.fused and device.type == "cpu"
    set_fused(
        model,
        fused=fused,
        widened=fused and widens(run.precision, deterministic=run.deterministic),
    )
    channels_last = run.channels_last is not False
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=memory_format)
    frozen = Frozen(model, optim.freeze)
    frozen.hold()
    trained = fabric.setup_module(model)
    raw = make_optimizer(model, replace(optim, unfreeze_at=0.0), frozen.names)
    optimizer = fabric.setup_optimizers(raw)
    batches = _batches(task, optim.micro_batch_size)
    found: list[float] = []
    lowest = math.inf
    with progress_bar("range test", len(rates), console) as advance:
        for step, rate in enumerate(rates):
            set_learning_rate(raw, rate)
            model.train()
            frozen.eval()
            parts, total = next(batches), 0.0
            for p, part in enumerate(parts):
                seed_everything(run.seed, step, p)
                with fabric.no_backward_sync(trained, enabled=p + 1 < len(parts)):
                    losses = task.losses(trained, part, step, p, memory_format)
                    loss = torch.stack(list(losses.values())).sum()
                    loss = loss * (task.size(part) / task.batch_size)
                    fabric.backward(loss)
                total += float(loss.detach())
            if optim.clip_grad:
                fabric.clip_gradients(trained, optimizer, max_norm=optim.clip_grad)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if not math.isfinite(total):
                break
            found.append(total)
            lowest = min(lowest, smooth(found, len(rates))[-1])
            if total > DIVERGED * lowest:
                break
            advance(1)
    if not found:
        raise ValueError(
            f"the loss is not finite at the lowest rate, {rates[0]:g}; choose a smaller --lowest"
        )
    return found


def _batches(task: Task, micro_batch_size: int) -> Iterator[Sequence[Any]]:
    """Yield the micro batches of a run, again from the start if it is shorter than the test."""
    while True:
        yield from task.batches(0, micro_batch_size)


def smooth(losses: Sequence[float], num_steps: int) -> tuple[float, ...]:
    """Return losses without their noise, by a Gaussian window in steps."""
    # Importing scipy changes the warning filters.
    from scipy.ndimage import gaussian_filter1d  # type: ignore[import-untyped]

    width = max(1.0, SMOOTHING * num_steps)
    values = gaussian_filter1d(np.asarray(losses, np.float64), width, mode="nearest")
    return tuple(values.tolist())


def suggest(rates: Sequence[float], smoothed: Sequence[float]) -> tuple[float | None, str]:
    """Return the suggested rate, and the reason.

    It is the geometric mean of the rate at which the loss falls fastest, which is cautious, and
    the one at which it is lowest, beyond which training is unstable. None if the loss falls by less
    than 5 %.
    """
    curve, log_rates = np.asarray(smoothed), np.log(np.asarray(rates))
    lowest = int(curve.argmin())
    start = curve[0]
    if lowest < 2 or curve[lowest] > (1 - MIN_FALL) * start:
        return None, (
            f"the loss does not fall between {rates[0]:.2g} and {rates[-1]:.2g}: take more "
            "--num-steps or another range, and check labels and augmentation"
        )
    slopes = np.gradient(curve[: lowest + 1], log_rates[: lowest + 1])
    fastest = rates[int(slopes.argmin())]
    return two_digits(math.sqrt(fastest * rates[lowest])), (
        f"the loss falls fastest at {fastest:.2g} and is lowest at {rates[lowest]:.2g}, beyond "
        "which training becomes unstable; the rate in the middle is suggested"
    )
