"""How a task's images make up optimizer steps, over micro batches and processes."""

from __future__ import annotations

import math

from convnext.data.sampling import StepBatches
from convnext.hardware.ranks import Ranks


class InSteps:
    """The part of a task that counts: what it needs is set by the task itself."""

    ranks: Ranks
    micro_batch_size: int
    _batches: StepBatches

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return self._batches.steps_per_epoch

    @property
    def batch_size(self) -> int:
        """Images of a step, over all processes."""
        return self._batches.batch_size

    @property
    def first_part(self) -> int:
        """The number of this process's first micro batch among those of a step."""
        return self.ranks.rank * self.num_parts

    @property
    def num_parts(self) -> int:
        """Micro batches of a step in each process: equally many, since they wait for each other."""
        least, more = divmod(self.batch_size, self.ranks.count)
        return min(least, math.ceil((least + bool(more)) / self.micro_batch_size))
