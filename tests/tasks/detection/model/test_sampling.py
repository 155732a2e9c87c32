"""The number, the kind and the randomness of sampled boxes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext.tasks.detection.model.boxes import NEGATIVE, sample


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.integers(-2, 3), max_size=40),
    st.integers(1, 20),
    st.sampled_from([0.25, 0.5, 1.0]),
)
def test_as_many_as_there_are_and_no_more(
    values: list[int], num: int, positive_fraction: float
) -> None:
    matches = torch.tensor(values, dtype=torch.long)
    positive, negative = sample(matches, num, positive_fraction)
    assert (matches[positive] >= 0).all()
    assert (matches[negative] == NEGATIVE).all()
    wanted = min(int((matches >= 0).sum()), int(num * positive_fraction))
    assert len(positive) == wanted == len(positive.unique())
    wanted = min(int((matches == NEGATIVE).sum()), num - wanted)
    assert len(negative) == wanted == len(negative.unique())


def test_chance_has_a_seed_and_no_favorites() -> None:
    matches = torch.tensor([0] * 10 + [NEGATIVE] * 30)
    draws = [sample(matches, 8, 0.5, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert all(map(torch.equal, draws[0], draws[1]))
    assert not all(map(torch.equal, draws[0], draws[2]))
    random = torch.Generator().manual_seed(0)
    counts = torch.zeros(40)
    for _ in range(2000):
        counts[torch.cat(sample(matches, 8, 0.5, random))] += 1
    # 800 and 267 expected, with standard deviations of 22 and 15.
    assert (counts[:10] - 800).abs().max() < 110
    assert (counts[10:] - 2000 * 4 / 30).abs().max() < 80
