"""The images of each step's batch: a pure function of the seed and the step.

Shards are read in a random order that needs few shards at a time and each of them once. The shards
of an epoch are shuffled and laid end to end, and the row is cut into equal lanes. Within a lane
images are shuffled inside windows, and a batch takes an equal share of every lane. Each rank takes
a contiguous slice of a batch, so ranks read different lanes and thus different shards.

At any time one window of every lane is in use. All windows together hold at least 8 shards and
8,192 images, so that a batch draws from many more images than it shows even where the shards
themselves are sorted; with 32 or 64 lanes, where a window is two shards, they are 64 to 128 shards.
Larger windows would mix little better, and delay the first step, which needs one from each lane.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Draw = tuple[int, int]
"""(round, index): the round in which an image is drawn, and the index of the image. No image is
drawn twice in a round, so that both together can seed its augmentation."""


class Draws(list[Draw]):
    """The draws of one step."""

    prefetch: tuple[int, ...] = ()
    """Shards that later steps need; the reader of this step fetches them."""


class StepBatches(Sampler[list[Draw]]):
    """Yields the draws of each step, from `start_step` on.

    Every epoch is a new permutation. Images that do not fill a last batch are left out of that
    epoch. If there are fewer images than `batch_size`, all of them are the batch. With "balanced"
    sampling an epoch has the same length, but every class fills an equal share of it: the images of
    a rare class repeat, once per round, and only some of a frequent class are drawn.

    With `shard_sizes`, `ShardOrder` gives the permutation, so that few shards are read at a time.

    The batch of a step does not depend on the number of ranks; each rank yields its own slice.
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
        """Prepare the sampler.

        Args:
            labels: The class of every image.
            batch_size: Images per step, over all ranks.
            seed: Determines the order.
            sampling: "uniform" or "balanced"; see above.
            shard_sizes: Number of images per shard, in order, if random reads would be slow; None
                for images that can be read in any order.
            rank: The slice of the batch to yield.
            num_ranks: The number of slices.
            start_step: The first step.
            num_steps: The step to stop before; None for no end.
        """
        if not len(labels):
            raise ValueError("there are no images to sample from")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
        if sampling == "balanced" and shard_sizes is not None:
            raise ValueError(
                "balanced sampling would fetch a remote shard for every few images of it: use "
                "--balance logit or loss instead, or copy the shards to a local folder"
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
                draws.prefetch = self._shards.prefetch(step, is_first=is_first, stop=self.num_steps)
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
    """Return the slice of a batch for a rank; the sizes of slices differ by at most one.

    Raises:
        ValueError: If there are fewer images than ranks.
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


MAX_LANES = 64
# Minimum number of shards per lane.
MIN_LANE = 2
# Shards per window: the maximum with up to 8 lanes, fewer with more lanes.
MIN_WINDOW, MAX_WINDOW = 2, 8
# Minimum number of images in all windows together.
MIN_POOL = 8192


@dataclass(frozen=True)
class _Row:
    """The shards of an epoch, end to end."""

    shards: NDArray[np.int64]
    ends: NDArray[np.int64]
    """Where in the row each shard ends."""
    shift: int
    """Where in the row the epoch begins. It wraps around, so that the images left out at the end
    may be any part of a shard."""

    def shards_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the shards that hold the given places of the epoch."""
        places = (places + self.shift) % self.ends[-1]
        return self.shards[np.searchsorted(self.ends, places, side="right")]


class ShardOrder:
    """The order of images in every epoch, and the shards to prefetch at each step.

    Attributes:
        num_lanes: The number of lanes, a power of two.
        lane_size: Images per lane in an epoch.
        window: The approximate number of images per window.
    """

    def __init__(
        self, shard_sizes: Sequence[int], batch_size: int, part: slice, *, seed: int
    ) -> None:
        """Plan for batches of `batch_size` images, of which a reader takes `part`."""
        self.sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.seed = seed
        num_shards = np.count_nonzero(self.sizes)
        self.num_lanes = 1
        while (
            self.num_lanes < MAX_LANES
            and batch_size % (2 * self.num_lanes) == 0
            and num_shards >= 2 * self.num_lanes * MIN_LANE
        ):
            self.num_lanes *= 2
        self.share = batch_size // self.num_lanes
        self.steps_per_epoch = int(self.sizes.sum()) // batch_size
        self.lane_size = self.share * self.steps_per_epoch
        shards = min(max(64 // self.num_lanes, MIN_WINDOW), MAX_WINDOW)
        wanted = max(shards * self.sizes.sum() / num_shards, MIN_POOL / self.num_lanes)
        windows = max(1, round(self.lane_size / wanted))
        self.edges = np.linspace(0, self.lane_size, windows + 1).astype(np.int64)
        self.window = -(-self.lane_size // windows)
        # The lanes that the reader's part of a batch comes from.
        self.lanes = np.arange(part.start // self.share, (part.stop - 1) // self.share + 1)

    def epoch(self, number: int) -> NDArray[np.int64]:
        """Return the images of an epoch, (num_lanes, lane_size)."""
        row, generator = self._row(number)
        sizes = self.sizes[row.shards]
        offsets = np.repeat(self.starts[row.shards] - (row.ends - sizes), sizes)
        offsets += np.arange(len(offsets))
        order = np.roll(offsets, -row.shift)[: self.num_lanes * self.lane_size]
        lanes = order.reshape(self.num_lanes, self.lane_size)
        for lane in lanes:
            for start, stop in zip(self.edges[:-1], self.edges[1:], strict=True):
                generator.shuffle(lane[start:stop])
        return lanes

    def prefetch(self, step: int, *, is_first: bool, stop: int | None = None) -> tuple[int, ...]:
        """Return the shards to start fetching at a step, in the order of use, before step `stop`.

        As a lane moves through a window, the shards of the next one are requested step by step, so
        that the load is even and all arrive in time. The first step requests its whole window.
        """
        distance = -(-self.window // self.share)
        within = step % self.steps_per_epoch
        earliest = step + max(-within, -distance) if is_first else step + distance
        latest = step + distance if stop is None else min(step + distance, stop - 1)
        steps = np.arange(earliest, latest + 1)
        found: list[int] = []
        for epoch in np.unique(steps // self.steps_per_epoch).tolist():
            row, _ = self._row(epoch)
            ours = steps[steps // self.steps_per_epoch == epoch] % self.steps_per_epoch
            places = self.lanes[None, :] * self.lane_size + ours[:, None] * self.share
            # The last place of a share may lie in the shard after that of the first.
            both = np.stack([places, places + self.share - 1], axis=-1)
            found += row.shards_at(both.ravel()).tolist()
        return tuple(dict.fromkeys(found))

    def _row(self, epoch: int) -> tuple[_Row, np.random.Generator]:
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        shards = generator.permutation(len(self.sizes))
        ends = np.cumsum(self.sizes[shards])
        return _Row(shards, ends, int(generator.integers(ends[-1]))), generator


def split_tensors(batch: Any, count: int) -> list[Any]:
    """Return a named tuple of tensors and unreadable images in parts, without the images.

    The sizes of the parts differ by at most one image.
    """
    *tensors, _ = batch
    parts = zip(*(tensor.tensor_split(count) for tensor in tensors), strict=True)
    return [type(batch)(*part, ()) for part in parts]
