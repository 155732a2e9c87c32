"""When things happen in a run, in steps: the pure arithmetic of its schedule."""

from __future__ import annotations

from dataclasses import dataclass

from convnext.recipe import Recipe, number
from convnext.train.optim import learning_rate

# How often the loss is looked at: rarely enough that a GPU is never made to wait for it.
LOG_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of a run and its learning rate."""

    num_steps: int
    warmup_steps: int
    eval_steps: int
    """Steps between evaluations; the last step is evaluated too."""
    save_steps: int
    peak: float
    """The largest learning rate."""
    final: float
    """The learning rate at the end."""

    @classmethod
    def of(cls, recipe: Recipe, steps_per_epoch: int) -> Plan:
        """Return the plan of a resolved recipe."""
        eval_steps = max(1, round(number(recipe.run.eval_every) * steps_per_epoch))
        every = recipe.run.save_every
        return cls(
            num_steps=round(number(recipe.schedule.epochs) * steps_per_epoch),
            warmup_steps=round(number(recipe.schedule.warmup_epochs) * steps_per_epoch),
            eval_steps=eval_steps,
            save_steps=min(1000, eval_steps) if isinstance(every, str) else every,
            peak=number(recipe.optim.lr),
            final=recipe.schedule.min_lr,
        )

    def rate(self, step: int, *, num_steps: int | None = None) -> float:
        """Return the learning rate after `step`, of this run or of one of another length."""
        return learning_rate(
            step,
            peak=self.peak,
            final=self.final,
            num_steps=self.num_steps if num_steps is None else num_steps,
            warmup_steps=self.warmup_steps,
        )

    def logs_at(self, step: int) -> bool:
        """Whether a line of the log is due after `step`."""
        return step == 1 or step % LOG_EVERY == 0

    def evaluates_at(self, step: int) -> bool:
        """Whether an evaluation is due after `step`."""
        return step % self.eval_steps == 0 or step >= self.num_steps
