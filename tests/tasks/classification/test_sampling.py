"""Which images make up a batch: every one once, exactly resumed, every class alike."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from convnext.tasks.classification.sampling import StepBatches

LABELS = [0] * 40 + [1] * 15 + [2] * 5


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
