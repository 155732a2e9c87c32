"""An order of images that is random, and yet reads few shards at a time and each of them once.

The shards of an epoch are shuffled and laid end to end, and the row is cut into equal lanes. Within
a lane images are shuffled inside windows, and a batch takes an equal share of every lane. Ranks,
which take contiguous slices of a batch, so read different lanes, and with them different shards.

At any time one window of every lane is in use. All windows together hold at least 8 shards and
8,192 images, so that a batch draws from many more images than it shows even where the shards
themselves are sorted; with 32 or 64 lanes, where a window is two shards, they are 64 to 128 shards.
Larger windows would mix little better, and delay the first step, which needs one from each lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_LANES = 64
# Shards of a lane at least.
MIN_LANE = 2
# Shards of a window: this many with up to 8 lanes, fewer with more.
MIN_WINDOW, MAX_WINDOW = 2, 8
# Images in all windows together at least.
MIN_POOL = 8192


@dataclass(frozen=True)
class _Row:
    """The shards of an epoch, end to end."""

    shards: NDArray[np.int64]
    ends: NDArray[np.int64]
    """Where in the row each of them ends."""
    shift: int
    """Where in the row the epoch begins. It wraps around, so that what is left out at its end may
    be any part of a shard."""

    def shards_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the shards that hold some places of the epoch."""
        places = (places + self.shift) % self.ends[-1]
        return self.shards[np.searchsorted(self.ends, places, side="right")]


class ShardOrder:
    """The order of every epoch, and which shards are to be fetched when.

    Attributes:
        num_lanes: A power of two.
        lane_size: Images of a lane in an epoch.
        window: Images of a window, about.
    """

    def __init__(
        self, shard_sizes: Sequence[int], batch_size: int, part: slice, *, seed: int
    ) -> None:
        """Plan for batches of `batch_size`, of which a reader takes `part`."""
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
        # The lanes that the reader's part of a batch touches.
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

    def ahead(self, step: int, *, is_first: bool, stop: int | None = None) -> tuple[int, ...]:
        """Return the shards to begin fetching at a step, in the order of their use, before `stop`.

        As a lane moves through a window, the next one is asked for bit by bit, so that the load is
        even and all of it is there in time. The first step of a run asks for its whole window.
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
