"""The schedule of a run in steps: a pure function of its recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Never

from convnext.recipes.schema import ResolvedRecipe, ScheduleRecipe

# Steps between log lines: reading the loss more often would stall a GPU.
LOG_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of a run and its learning rate."""

    num_steps: int
    warmup_steps: int
    eval_steps: int
    """Steps between evaluations; the last step is evaluated too."""
    save_steps: int
    steps_per_epoch: int
    peak: float
    """Peak learning rate."""
    schedule: ScheduleRecipe[Never]

    @classmethod
    def of(cls, recipe: ResolvedRecipe, steps_per_epoch: int) -> Plan:
        """Return the plan of a recipe."""
        eval_steps = max(1, round(recipe.run.eval_every * steps_per_epoch))
        return cls(
            num_steps=num_steps(recipe.schedule, steps_per_epoch),
            warmup_steps=recipe.schedule.warmup_steps
            or round(recipe.schedule.warmup_epochs * steps_per_epoch),
            eval_steps=eval_steps,
            save_steps=recipe.run.save_every,
            steps_per_epoch=steps_per_epoch,
            peak=recipe.optim.lr,
            schedule=recipe.schedule,
        )

    def rate(self, step: int, *, num_steps: int | None = None) -> float:
        """Return the learning rate after `step`, by default for the length of this run."""
        return learning_rate(
            step,
            peak=self.peak,
            num_steps=self.num_steps if num_steps is None else num_steps,
            warmup_steps=self.warmup_steps,
            schedule=self.schedule,
            milestones=tuple(round(m * self.steps_per_epoch) for m in self.schedule.milestones),
        )

    def logs_at(self, step: int) -> bool:
        """Whether a log line is due after `step`."""
        return step == 1 or step % LOG_EVERY == 0

    def evaluates_at(self, step: int) -> bool:
        """Whether an evaluation is due after `step`."""
        return step % self.eval_steps == 0 or step >= self.num_steps


def num_steps(schedule: ScheduleRecipe[Never], steps_per_epoch: int) -> int:
    """Return the number of optimizer steps of a run."""
    return schedule.steps or round(schedule.epochs * steps_per_epoch)


def learning_rate(
    step: int,
    *,
    peak: float,
    num_steps: int,
    warmup_steps: int,
    schedule: ScheduleRecipe[Never],
    milestones: tuple[int, ...] = (),
) -> float:
    """Return the learning rate of a step: linear warm-up to `peak`, then decay.

    Cosine decay starts after the warm-up (paper, appendix A). Polynomial and multistep decay start
    at step 0 and the warm-up scales them, as in the recipes of ADE20K and COCO; `milestones` are
    steps.
    """
    ratio, final = schedule.warmup_ratio, schedule.min_lr
    if schedule.shape == "cosine":
        if step < warmup_steps:
            # Like the authors' linspace(0, peak, warmup_steps), which ends with the peak.
            return peak * (ratio + (1 - ratio) * step / max(warmup_steps - 1, 1))
        share = (step - warmup_steps) / max(num_steps - warmup_steps, 1)
        return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * min(share, 1.0)))
    if schedule.shape == "polynomial":
        left = max(1 - step / max(num_steps, 1), 0.0)
        rate = final + (peak - final) * math.pow(left, schedule.power)
    else:
        rate = peak * math.pow(0.1, sum(step >= milestone for milestone in milestones))
    if step < warmup_steps:
        rate *= 1 - (1 - step / warmup_steps) * (1 - ratio)
    return rate
