"""Means, intervals, paired comparisons, rank correlation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from convnext.studies.statistics import compare, correlate, estimate, summarize
from studies import made_up


def test_the_interval_is_students() -> None:
    found = estimate([51.0, 52.0, 53.0])
    assert found is not None
    assert (found.mean, found.std) == (52.0, 1.0)
    # The 97.5 percent quantile with two degrees of freedom is 4.302653 (any table).
    assert found.low == pytest.approx(52 - 4.302653 / 3**0.5)
    assert found.high == pytest.approx(52 + 4.302653 / 3**0.5)


@pytest.mark.parametrize("values", [[99.0, 100.0, 99.9], [0.0, 1.0, 0.1]])
def test_an_interval_of_percentages_stays_within_them(values: list[float]) -> None:
    found = estimate(values)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.mean <= found.high <= 100
    signed = estimate([-1.0, 1.0], minimum=-100.0)
    assert signed is not None
    assert signed.low is not None
    assert signed.low < 0


def test_one_seed_has_no_interval_and_none_no_estimate() -> None:
    found = estimate([5.0])
    assert found is not None
    assert (found.mean, found.std, found.low, found.high) == (5.0, None, None, None)
    assert estimate([]) is None


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({0: 60.0, 1: 61.1, 2: 59.1}, "better"),
        ({0: 40.0, 1: 41.1, 2: 39.1}, "worse"),
        ({0: 52.0, 1: 49.0, 2: 50.5}, "no difference seen"),
        ({0: 60.0}, "one seed"),
    ],
)
def test_the_words_of_a_comparison(scores: dict[int, float], words: str) -> None:
    found = compare(scores, {0: 50.0, 1: 51.0, 2: 49.5}, to="other")
    assert found is not None
    assert found.words == words


def test_pairing_finds_what_the_spread_of_seeds_hides() -> None:
    other = {0: 40.0, 1: 50.0, 2: 60.0}
    found = compare({seed: score + 1 + seed / 100 for seed, score in other.items()}, other, to="x")
    assert found is not None
    assert (found.words, found.difference.mean) == ("better", pytest.approx(1.01))
    assert found.p_value is not None
    assert found.p_value < 0.01


def test_seeds_that_only_one_of_the_two_has_are_left_out() -> None:
    found = compare({0: 1.0, 1: 2.0}, {1: 1.0, 2: 9.0}, to="x")
    assert found is not None
    assert (found.difference.count, found.difference.mean) == (1, 1.0)
    assert compare({0: 1.0}, {1: 1.0}, to="x") is None


def test_neighbors_are_compared_and_shared_runs_are_not() -> None:
    by_name = {summary.first.entry: summary for summary in summarize(made_up())}
    first, second = by_name["resnet_baseline"], by_name["enhanced_recipe"]
    assert first.comparison is None
    assert second.comparison is not None
    assert second.comparison.words == "the same network"
    gelu = by_name["relu_to_gelu"].comparison
    assert gelu is not None
    assert gelu.to == "kernel_7"


def test_rank_correlation_with_the_paper() -> None:
    results = made_up()
    ranked = [replace(result, score=result.paper_top1) for result in results]
    same = correlate(summarize(ranked))
    assert same is not None
    assert (same.spearman, same.kendall) == (pytest.approx(1), pytest.approx(1))
    assert same.count == 16  # Seventeen steps, of which two are the same network.
    turned = [replace(r, score=-(r.paper_top1 or 0)) for r in results]
    opposite = correlate(summarize(turned))
    assert opposite is not None
    assert opposite.spearman == pytest.approx(-1)
    assert correlate(summarize([r for r in results if r.entry == "kernel_7"])) is None


def test_a_missing_run_is_no_zero() -> None:
    summaries = {s.first.entry: s for s in summarize(made_up(missing=["kernel_7"]))}
    assert summaries["kernel_7"].estimate is None
    assert summaries["kernel_9"].comparison is None


def test_equal_differences_of_few_images_are_no_certainty() -> None:
    # A difference of one image of 360, as from rounding.
    scores, other = (
        {0: 100 * 351 / 360, 1: 100 * 348 / 360},
        {0: 100 * 350 / 360, 1: 100 * 347 / 360},
    )
    found = compare(scores, other, to="x", num_val=360)
    assert found is not None
    assert found.words == "no difference seen"
    assert found.p_value is not None
    assert found.p_value > 0.05
    far = {seed: score + 20 for seed, score in other.items()}
    found = compare(far, other, to="x", num_val=360)
    assert found is not None
    assert found.words == "better"
