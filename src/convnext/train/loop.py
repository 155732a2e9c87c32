"""The one training loop. It counts steps and knows no task."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from convnext.checkpoint import Card, save_checkpoint
from convnext.recipe import Recipe, number
from convnext.train.log import RunLog
from convnext.train.optim import learning_rate, make_optimizer, set_learning_rate
from convnext.train.state import complete_steps, load_state, save_state

# How often the loss is looked at, in steps: rarely enough that a GPU is never made to wait for it.
LOG_EVERY = 10


class Task(Protocol):
    """What the loop asks of a task. `Batch` is opaque to it."""

    primary: str
    """The metric that decides which weights are the best; higher is better."""

    @property
    def steps_per_epoch(self) -> int: ...

    def batches(self, start_step: int) -> Iterator[Sequence[Any]]:
        """Yield the micro batches of every step from `start_step` on, on the CPU."""
        ...

    def size(self, batch: Any) -> int:
        """Return the number of images of a micro batch."""
        ...

    def losses(self, model: nn.Module, batch: Any, step: int, part: int) -> dict[str, Tensor]:
        """Return named scalars, means over the micro batch `part` of a step."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics of the validation set."""
        ...

    def card(self, model: nn.Module, metrics: Mapping[str, Any]) -> Card:
        """Return what travels with the weights."""
        ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    best: Mapping[str, Any]
    """The metrics of the best weights, with `step` and `weights` ("model" or "ema")."""
    best_path: Path
    steps: int
    seconds: float
    """Of this process, evaluation included."""
    stopped_early: bool


class DivergedError(ArithmeticError):
    """The loss is no longer a number."""


def fit(
    task: Task,
    model: nn.Module,
    recipe: Recipe,
    *,
    fabric: Fabric,
    log: RunLog,
    resume: bool = False,
) -> Outcome:
    """Train `model` on `task` as the resolved `recipe` says, into the run folder of `log`.

    Raises:
        DivergedError: If a loss is not finite; the last good checkpoint stays.
        ValueError: If the state to resume from cannot be read.
    """
    started = time.perf_counter()
    checkpoints = log.folder / "checkpoints"
    model = model.to(fabric.device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, recipe.optim)
    decay = number(recipe.ema.decay)
    # The warm-up of the average keeps the random weights of the first steps out of it.
    ema = ModelEmaV3(model, decay=decay, use_warmup=True, warmup_power=3 / 4) if decay else None

    num_steps = round(number(recipe.schedule.epochs) * task.steps_per_epoch)
    warmup_steps = round(number(recipe.schedule.warmup_epochs) * task.steps_per_epoch)
    eval_steps = max(1, round(number(recipe.run.eval_every) * task.steps_per_epoch))
    clip_grad = number(recipe.optim.clip_grad)
    step, since_best = 0, 0
    best: dict[str, Any] = {}
    if resume and complete_steps(checkpoints):
        counters = load_state(
            checkpoints,
            model=model,
            ema=ema and ema.module,
            optimizer=optimizer,
            tell=lambda text: log.console.print(text, markup=False),
        )
        step, best, since_best = counters["step"], counters["best"], counters["since_best"]
    log.begin_at(step)
    first_step = step

    trained, optimizer = fabric.setup(model, optimizer)
    batches = task.batches(step)
    log.start(num_steps=num_steps, steps_per_epoch=task.steps_per_epoch, first_step=step)
    window: list[Tensor] = []
    rate = 0.0
    stopped_early = False
    while True:
        is_last = step >= num_steps
        evaluates = step > first_step and (step % eval_steps == 0 or is_last)
        if window and (evaluates or len(window) >= LOG_EVERY or step == first_step + 1):
            _check_losses(window, step, rate, recipe, log)
            log.trained(step, loss=float(torch.stack(window).mean()), lr=rate)
            window.clear()

        if evaluates:
            _check_weights(model, step, rate, recipe, log)
            improved = False
            for weights, evaluated in (("model", model), ("ema", ema and ema.module)):
                if evaluated is None:
                    continue
                metrics = log.evaluated(step, weights, task.evaluate(evaluated))
                if not best or metrics[task.primary] > best[task.primary]:
                    best, improved = metrics, True
                    save_checkpoint(
                        checkpoints / "best.safetensors",
                        evaluated.state_dict(),
                        task.card(model, best),
                    )
            since_best = 0 if improved else since_best + 1
            save_state(
                checkpoints,
                step=step,
                model=model,
                ema=ema and ema.module,
                optimizer=optimizer,
                card=task.card(model, {"step": step, "weights": "model"}),
                counters={"best": best, "since_best": since_best},
            )
            stopped_early = 0 < recipe.run.patience <= since_best and not is_last
        if is_last or stopped_early:
            break

        rate = learning_rate(
            step,
            peak=number(recipe.optim.lr),
            final=recipe.schedule.min_lr,
            num_steps=num_steps,
            warmup_steps=warmup_steps,
        )
        set_learning_rate(optimizer, rate)
        with log.waiting():
            parts = next(batches)
        num_images = sum(map(task.size, parts))

        # The randomness of a step (stochastic depth, noise) follows from the seed and the step.
        torch.manual_seed(hash((recipe.run.seed, step)) & 0xFFFF_FFFF)
        model.train()
        total = torch.zeros((), device=fabric.device)
        for p, part in enumerate(parts):
            losses = task.losses(trained, part, step, p)
            loss = torch.stack(list(losses.values())).sum() * (task.size(part) / num_images)
            fabric.backward(loss)
            total += loss.detach()
        if clip_grad:
            fabric.clip_gradients(trained, optimizer, max_norm=clip_grad, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if ema is not None:
            ema.update(model, step=step)

        window.append(total)
        log.stepped(step, num_images)

    log.stop()
    return Outcome(
        best=best,
        best_path=checkpoints / "best.safetensors",
        steps=step,
        seconds=time.perf_counter() - started,
        stopped_early=stopped_early,
    )


def _check_losses(
    window: list[Tensor], step: int, rate: float, recipe: Recipe, log: RunLog
) -> None:
    """Stop at the first loss of the window that is not a number."""
    for position, loss in enumerate(window):
        if not math.isfinite(loss):
            bad = step - len(window) + position + 1
            raise _diverged(f"the loss became {float(loss)} at step {bad}", rate, recipe, log)


def _check_weights(model: nn.Module, step: int, rate: float, recipe: Recipe, log: RunLog) -> None:
    """Stop before weights that are not numbers are measured or saved.

    A step's loss is taken before its update, so that good losses do not vouch for the weights.
    """
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise _diverged(f"{name} is not finite after step {step}", rate, recipe, log)


def _diverged(what: str, rate: float, recipe: Recipe, log: RunLog) -> DivergedError:
    log.stop()
    advice = [f"--optim.lr {number(recipe.optim.lr) / 3:.2g}"]
    if not number(recipe.optim.clip_grad):
        advice.append("--optim.clip_grad 1")
    advice.append("a longer --schedule.warmup_epochs")
    if recipe.run.precision != "fp32":
        advice.append("--run.precision fp32")
    saved = complete_steps(log.folder / "checkpoints")
    rest = (
        f"The last good checkpoint, {saved[-1]}, is intact; go on from it with --resume and one of "
        "these."
        if saved
        else "No checkpoint had been written yet."
    )
    return DivergedError(
        f"{what} (learning rate {rate:.2g}, precision {recipe.run.precision}). "
        f"Try {', '.join(advice)}. {rest}"
    )
