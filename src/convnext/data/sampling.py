"""Which images make up the batch of each step: a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from convnext.data.shards.order import ShardOrder

Draw = tuple[int, int]
"""(round, index): the number of the round in which an image is drawn, and the image. No image is
drawn twice in a round, so that the two are enough to seed its augmentation."""


class Draws(list[Draw]):
    """The draws of one step."""

    ahead: tuple[int, ...] = ()
    """Shards that later steps will read, to be fetched by whoever reads this one."""


class StepBatches(Sampler[list[Draw]]):
    """Yields the draws of one step after the other, from `start_step` on.

    Every epoch is a new permutation. Images that do not fill a last batch are left out of that
    epoch; a set smaller than the batch is the batch. With "balanced" sampling an epoch is as long,
    but every class fills an equal share of it: a rare class repeats its images, in a round each, a
    frequent one shows a part of its own.

    With `shard_sizes` the permutation is that of `ShardOrder`, which reads few shards at a time.

    The batch of a step is the same however many ranks there are; each yields its own slice of it.
    """

    def __init__(
        self,
        labels: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        sampling: Literal["uniform", "balanced"] = "uniform",
        shard_sizes: Sequence[int] | None = None,
        rank: int = 0,
        num_ranks: int = 1,
        start_step: int = 0,
        num_steps: int | None = None,
    ) -> None:
        """Prepare.

        Args:
            labels: The class of every image.
            batch_size: Images per step, over all ranks.
            seed: Another one gives another order.
            sampling: What an epoch shows; see above.
            shard_sizes: How many of the images each shard holds, one shard after the other, where
                reading at random would be slow; None for images that can be read in any order.
            rank: Which slice of the batch to yield.
            num_ranks: How many slices there are.
            start_step: The first step.
            num_steps: The step to stop before, None for never.
        """
        if not len(labels):
            raise ValueError("there are no images to sample from")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
        if sampling == "balanced" and shard_sizes is not None:
            raise ValueError(
                "balanced sampling would fetch a remote shard for every few images of it: set "
                "--loader.sampling uniform, or copy the shards to a local folder"
            )
        if shard_sizes is not None and sum(shard_sizes) != len(labels):
            raise ValueError(f"shards of {sum(shard_sizes):,} images, but {len(labels):,} labels")
        self.labels = np.asarray(labels)
        self.batch_size = min(batch_size, len(labels))
        self.slice = rank_slice(self.batch_size, rank, num_ranks)
        self.seed = seed
        self.sampling = sampling
        self.start_step = start_step
        self.num_steps = num_steps
        self._shards = (
            None
            if shard_sizes is None
            else ShardOrder(shard_sizes, self.batch_size, self.slice, seed=seed)
        )

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in an epoch, at least 1."""
        return len(self.labels) // self.batch_size

    def __len__(self) -> int:
        if self.num_steps is None:
            raise TypeError("the batches never end; give num_steps")
        return max(0, self.num_steps - self.start_step)

    def __iter__(self) -> Iterator[list[Draw]]:
        step, epoch = self.start_step, -1
        while self.num_steps is None or step < self.num_steps:
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                rounds, order = self._epoch(epoch)
            # One row per lane; the batch takes an equal share of each.
            share = self.batch_size // len(order)
            first = step % self.steps_per_epoch * share
            batch = (part[:, first : first + share].ravel()[self.slice] for part in (rounds, order))
            draws = Draws(zip(*(part.tolist() for part in batch), strict=True))
            if self._shards is not None:
                is_first = step == self.start_step
                draws.ahead = self._shards.ahead(step, is_first=is_first, stop=self.num_steps)
            yield draws
            step += 1

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rounds and the images of an epoch, (lanes, images)."""
        if self._shards is not None:
            order = self._shards.epoch(epoch)
            return np.broadcast_to(np.int64(epoch), order.shape), order
        rounds, order = epoch_draws(self.labels, seed=self.seed, epoch=epoch, kind=self.sampling)
        return rounds[None], order[None]


def rank_slice(batch_size: int, rank: int, num_ranks: int) -> slice:
    """Return which part of a batch is a rank's own; the sizes of two differ by one at most.

    Raises:
        ValueError: If there is not an image for every rank.
    """
    if not 0 <= rank < num_ranks:
        raise ValueError(f"rank is {rank}, but must be one of the {num_ranks} from 0 on")
    if batch_size < num_ranks:
        raise ValueError(
            f"a batch of {batch_size} images leaves some of {num_ranks} devices without any: set "
            f"--optim.batch_size to at least {num_ranks} (the data set must be as large), or use "
            f"{batch_size} devices"
        )
    return slice(rank * batch_size // num_ranks, (rank + 1) * batch_size // num_ranks)


def epoch_draws(
    labels: NDArray[np.int64], *, seed: int, epoch: int, kind: Literal["uniform", "balanced"]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rounds and the indices of an epoch's draws, in order."""
    n = len(labels)
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    if kind == "uniform":
        return np.broadcast_to(np.int64(epoch), n), generator.permutation(n)

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
    mixed = generator.permutation(np.concatenate(draws))
    return mixed[:, 0], mixed[:, 1]
