"""Which images make up the batch of each step: a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Draw = tuple[int, int]
"""(round, index): the number of the round in which an image is drawn, and the image. No image is
drawn twice in a round, so that the two are enough to seed its augmentation."""


class StepBatches(Sampler[list[Draw]]):
    """Yields the draws of one step after the other, from `start_step` on.

    Every epoch is a new permutation. Images that do not fill a last batch are left out of that
    epoch; a set smaller than the batch is the batch. With "balanced" sampling an epoch is as long,
    but every class fills an equal share of it: a rare class repeats its images, in a round each, a
    frequent one shows a part of its own.
    """

    def __init__(
        self,
        labels: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        sampling: Literal["uniform", "balanced"] = "uniform",
        start_step: int = 0,
        num_steps: int | None = None,
    ) -> None:
        """Prepare; `num_steps` is the step to stop before, None for never."""
        if not len(labels):
            raise ValueError("there are no images to sample from")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
        self.labels = np.asarray(labels)
        self.batch_size = min(batch_size, len(labels))
        self.seed = seed
        self.sampling = sampling
        self.start_step = start_step
        self.num_steps = num_steps

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in an epoch, at least 1."""
        return len(self.labels) // self.batch_size

    def __len__(self) -> int:
        if self.num_steps is None:
            raise TypeError("the batches never end; give num_steps")
        return max(0, self.num_steps - self.start_step)

    def __iter__(self) -> Iterator[list[Draw]]:
        step, epoch, draws = self.start_step, -1, np.empty((0, 2), np.int64)
        while self.num_steps is None or step < self.num_steps:
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                draws = epoch_draws(self.labels, seed=self.seed, epoch=epoch, kind=self.sampling)
            first = step % self.steps_per_epoch * self.batch_size
            yield [(r, i) for r, i in draws[first : first + self.batch_size].tolist()]
            step += 1


def epoch_draws(
    labels: NDArray[np.int64], *, seed: int, epoch: int, kind: Literal["uniform", "balanced"]
) -> NDArray[np.int64]:
    """Return the draws of an epoch in order, (n, 2) of round and index."""
    n = len(labels)
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    if kind == "uniform":
        return np.stack([np.full(n, epoch), generator.permutation(n)], axis=1)

    present, counts = np.unique(labels, return_counts=True)
    quotas = np.full(len(present), n // len(present))
    quotas[generator.permutation(len(present))[: n % len(present)]] += 1
    most = n // len(present) + 1
    rounds_per_epoch = int(-(-most // counts.min()))
    draws = []
    for label, quota in zip(present, quotas, strict=True):
        members = np.flatnonzero(labels == label)
        repeats = int(-(-quota // len(members)))
        order = np.concatenate([generator.permutation(members) for _ in range(max(1, repeats))])
        rounds = epoch * rounds_per_epoch + np.arange(len(order)) // len(members)
        draws.append(np.stack([rounds, order], axis=1)[:quota])
    return generator.permutation(np.concatenate(draws))
