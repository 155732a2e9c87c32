"""The images of each batch: every image once, exact resumption, balanced classes."""

from __future__ import annotations

from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest

from convnext.data.sampling import ShardOrder, StepBatches, rank_slice

LABELS = [0] * 40 + [1] * 15 + [2] * 5
# 1,024 images in shards of uneven sizes, one of them empty.
SHARDS = [20, 44, 32, 0, 10, 54, *[32] * 27]


def steps(count, labels=LABELS, batch_size=10, **options):
    sampler = StepBatches(labels, batch_size, **({"seed": 0} | options))
    return list(islice(sampler, count))


def test_every_image_is_drawn_once_per_epoch():
    for epoch in range(3):
        draws = [draw for batch in steps(18)[6 * epoch : 6 * epoch + 6] for draw in batch]
        assert sorted(draws) == [(epoch, index) for index in range(60)]


def test_epochs_and_seeds_differ():
    first, second = steps(6), steps(12)[6:]
    assert [i for batch in first for _, i in batch] != [i for batch in second for _, i in batch]
    assert first != steps(6, seed=1)
    assert first == steps(6)


def test_what_does_not_fill_a_batch_is_left_out():
    sampler = StepBatches(LABELS, 16, seed=0)
    assert sampler.steps_per_epoch == 3
    draws = [draw for batch in islice(sampler, 3) for draw in batch]
    assert len(set(draws)) == 48


@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
@pytest.mark.parametrize("start", [0, 1, 5, 6, 7, 20])
def test_a_later_start_goes_on_exactly(sampling, start):
    whole = steps(25, sampling=sampling)
    assert steps(25 - start, sampling=sampling, start_step=start) == whole[start:]


def test_a_set_smaller_than_the_batch_is_the_batch():
    sampler = StepBatches([0, 1, 1], 8, seed=0, num_steps=2)
    assert sampler.steps_per_epoch == 1
    assert [sorted(i for _, i in batch) for batch in sampler] == [[0, 1, 2]] * 2


@pytest.mark.parametrize("labels", [LABELS, [0] * 30 + [3] * 31, [0, 1] * 30 + [2]])
def test_balanced_draws_every_class_equally_often_in_epochs_of_the_same_length(labels):
    for epoch in range(4):
        size = len(labels)
        draws = steps(epoch + 1, labels, batch_size=size, sampling="balanced")[epoch]
        assert len(draws) == size
        counts = Counter(labels[index] for _, index in draws)
        assert max(counts.values()) - min(counts.values()) <= 1
        within = Counter(index for _, index in draws)
        for label in counts:
            # No image of a class comes back before all others of its class have been shown.
            shown = [within[i] for i, other in enumerate(labels) if other == label]
            assert max(shown) - min(shown) <= 1


def test_no_image_is_drawn_twice_in_a_round():
    draws = [draw for batch in steps(60, sampling="balanced") for draw in batch]
    assert len(set(draws)) == len(draws) == 600


def test_the_length_is_what_is_left():
    assert len(StepBatches(LABELS, 10, seed=0, start_step=4, num_steps=9)) == 5
    assert len(list(StepBatches(LABELS, 10, seed=0, start_step=4, num_steps=9))) == 5
    with pytest.raises(TypeError, match="never end"):
        len(StepBatches(LABELS, 10, seed=0))


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="no images"):
        StepBatches([], 4, seed=0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        StepBatches([1], 0, seed=0)
    with pytest.raises(ValueError, match="--balance logit or loss instead, or copy the shards"):
        StepBatches(LABELS, 10, seed=0, sampling="balanced", shard_sizes=[30, 30])
    with pytest.raises(ValueError, match="shards of 59 images, but 60 labels"):
        StepBatches(LABELS, 10, seed=0, shard_sizes=[30, 29])
    with pytest.raises(ValueError, match=r"batch_size to at least 4 .* or use 3 devices"):
        StepBatches([0, 1, 1], 8, seed=0, rank=0, num_ranks=4)
    with pytest.raises(ValueError, match="rank is 2"):
        rank_slice(8, 2, 2)


@pytest.mark.parametrize(("batch_size", "num_ranks"), [(8, 2), (10, 4), (3, 3), (7, 3)])
def test_the_slices_of_the_ranks_make_up_the_batch(batch_size, num_ranks):
    slices = [rank_slice(batch_size, rank, num_ranks) for rank in range(num_ranks)]
    assert [i for part in slices for i in range(batch_size)[part]] == list(range(batch_size))
    sizes = [part.stop - part.start for part in slices]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("options", [{}, {"sampling": "balanced"}, {"shard_sizes": SHARDS}])
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_the_batches_are_the_same_for_any_number_of_ranks(options, num_ranks):
    labels = list(np.arange(1024) % 5)
    whole = steps(40, labels, 32, **options)
    parts = [
        steps(40, labels, 32, rank=rank, num_ranks=num_ranks, **options)
        for rank in range(num_ranks)
    ]
    assert [list(chain(*slices)) for slices in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("batch_size", [1, 32, 100, 128, 1024])
def test_in_sharded_order_every_image_is_drawn_once_per_epoch(batch_size):
    per_epoch = 1024 // batch_size
    batches = steps(3 * per_epoch, [0] * 1024, batch_size, shard_sizes=SHARDS)
    for epoch in range(3):
        draws = list(chain(*batches[epoch * per_epoch : (epoch + 1) * per_epoch]))
        assert {number for number, _ in draws} == {epoch}
        assert len({index for _, index in draws}) == per_epoch * batch_size
    assert batches[0] != [(0, index) for _, index in batches[per_epoch]]


@pytest.mark.parametrize("start", [0, 1, 31, 32, 70])
def test_in_sharded_order_a_later_start_goes_on_exactly(start):
    whole = steps(80, [0] * 1024, 32, shard_sizes=SHARDS)
    assert steps(80 - start, [0] * 1024, 32, shard_sizes=SHARDS, start_step=start) == whole[start:]


def large_order(num_ranks=1, rank=0):
    """256 shards of 1,000 images in batches of 64."""
    return ShardOrder([1000] * 256, 64, rank_slice(64, rank, num_ranks), seed=0)


def test_lanes_are_a_power_of_two_that_divides_the_batch_and_leaves_each_two_shards():
    def lanes(num_shards, batch_size):
        order = ShardOrder([100] * num_shards, batch_size, slice(0, batch_size), seed=0)
        return order.num_lanes

    assert lanes(256, 64) == lanes(256, 4096) == 64
    assert lanes(33, 64) == 16
    assert lanes(256, 24) == 8
    assert lanes(256, 7) == lanes(3, 64) == lanes(1, 64) == 1


def test_ranks_read_mostly_different_shards():
    lanes = large_order().epoch(0)
    shards = [set((part // 1000).ravel().tolist()) for part in np.split(lanes, 4)]
    assert all(64 <= len(part) <= 66 for part in shards)
    assert len(set.union(*shards)) == 256


def test_few_shards_are_in_use_at_a_time_and_a_batch_mixes_many():
    order = large_order()
    lanes = order.epoch(0) // 1000
    assert lanes.shape == (64, 4000)
    for start in range(0, 4000, order.window):
        window = lanes[:, start : start + order.window]
        assert all(len(set(lane)) <= 3 for lane in window.tolist())
    assert all(len(set(lanes[:, place].tolist())) > 50 for place in range(0, 4000, 100))


def test_shards_are_announced_before_they_are_read():
    order = large_order(num_ranks=4, rank=1)
    lanes = [order.epoch(epoch)[16:32] // 1000 for epoch in range(2)]
    announced: set[int] = set()
    for step in range(7, 8000):
        epoch, place = divmod(step, 4000)
        prefetch = order.prefetch(step, is_first=step == 7)
        assert len(prefetch) < 64
        announced.update(prefetch)
        assert set(lanes[epoch][:, place].tolist()) <= announced
        if place == 0:
            # Shards announced for the previous epoch may have been removed since.
            announced = set(prefetch) | set(lanes[epoch][:, : order.window + 1].ravel().tolist())


def test_the_order_of_fourteen_million_images_takes_a_second_or_two():
    shards = [3000] * 4732
    order = ShardOrder(shards, 4096, slice(0, 512), seed=0)
    lanes = order.epoch(0)
    assert lanes.shape == (64, 14_196_000 // 4096 * 64)
    assert np.unique(lanes[0]).size == lanes.shape[1]
