"""What a run tells its user when it cannot go on as it was, with the settings that would help."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from convnext.recipes.plan import Plan
from convnext.recipes.recipe import Recipe, number
from convnext.tasks.base import Task
from convnext.training.faults import DivergedError
from convnext.training.state import complete_steps


def diverged(what: str, recipe: Recipe, *, rate: float, checkpoints: Path) -> DivergedError:
    """Return the error for a loss or a weight that is no number."""
    advice = [f"--optim.lr {number(recipe.optim.lr) / 3:.2g}"]
    if not number(recipe.optim.clip_grad):
        advice.append("--optim.clip_grad 1")
    advice.append("a longer --schedule.warmup_epochs")
    if recipe.run.precision != "fp32":
        advice.append("--run.precision fp32")
    if recipe.run.on_nan == "stop":
        advice.append("--run.on_nan rollback")
    saved = complete_steps(checkpoints)
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


def smaller_micro_batch(size: int) -> int:
    """Return half of a micro batch that did not fit.

    Raises:
        ValueError: If it was one image.
    """
    if size == 1:
        raise ValueError(
            "one image does not fit into the memory of the device; try --run.precision bf16, "
            "--run.checkpoint_activations true, or a smaller --input.image_size"
        )
    return size // 2


def check_same_run(counters: Mapping[str, Any], task: Task, folder: Path) -> None:
    """See that a run goes on with the data and the batch that it began with.

    Raises:
        ValueError: If not.
    """
    if counters["data"] != task.fingerprint:
        raise ValueError(
            f"the data set has changed since the run began ({counters['data']} then, "
            f"{task.fingerprint} now), so that its steps would not be the same; start a new run "
            f"from its weights: --weights {quote(str(folder))}"
        )
    if counters["batch_size"] != task.batch_size:
        raise ValueError(
            f"the run began with a batch of {counters['batch_size']:,} and cannot go on with "
            f"{task.batch_size:,}; devices and micro_batch_size may change, optim.batch_size may "
            "not"
        )


def another_length(plan: Plan, step: int, before: int) -> str:
    """Return what a schedule that ended at step `before` becomes under a plan, from `step` on."""
    then, now = plan.rate(min(step, before), num_steps=before), plan.rate(step)
    return (
        f"the schedule now ends at step {plan.num_steps:,} and not {before:,}: the learning rate "
        f"goes on at {now:.2g} where it was at {then:.2g}, and falls from there to "
        f"{plan.rate(plan.num_steps):.2g} over {max(0, plan.num_steps - step):,} steps"
    )
