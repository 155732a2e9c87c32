"""mCE and the other scores against a computation by hand."""

from __future__ import annotations

import pytest

from convnext.tasks.classification.robustness.benchmarks import (
    ALEXNET_ERROR,
    C_BAR,
    Score,
    summarize,
)
from convnext.tasks.classification.robustness.corruptions import CORRUPTIONS

LEVELS = (1, 2, 3, 4, 5)
# As printed in the ImageNet-C paper.
PRINTED = (
    *(88.6, 89.4, 92.3, 82.0, 82.6, 78.6, 79.8, 86.7, 82.7, 81.9, 56.5, 85.3, 64.6, 71.8, 60.7),
)


def score(name: str, severity: int, error: int, num_images: int = 100) -> Score:
    return Score(
        corruption=name,
        severity=severity,
        num_correct=num_images - error,
        num_images=num_images,
    )


def full(error: int = 40) -> list[Score]:
    return [score(name, level, error) for name in CORRUPTIONS for level in LEVELS]


def test_alexnet_has_an_error_for_every_corruption_in_order() -> None:
    assert tuple(ALEXNET_ERROR) == tuple(CORRUPTIONS)
    for exact, printed in zip(ALEXNET_ERROR.values(), PRINTED, strict=True):
        assert exact == pytest.approx(printed, abs=0.0501)


def test_the_corruption_error_is_relative_to_alexnet_over_all_severities() -> None:
    scores = [s for s in full() if s.corruption != "brightness"]
    scores += [score("brightness", level, 10 * level) for level in LEVELS]
    summary = summarize("imagenet-c", scores, clean=None, is_imagenet=True)
    by_name = {row.corruption: row for row in summary.corruptions}
    assert by_name["brightness"].ce == pytest.approx(100 * (10 + 20 + 30 + 40 + 50) / (5 * 56.4592))
    by_hand = sum(100 * 40 / e for n, e in ALEXNET_ERROR.items() if n != "brightness")
    by_hand = (by_hand + 100 * 30 / 56.4592) / 15
    assert summary.mce == pytest.approx(by_hand)
    assert summary.mce_withheld == ""
    assert summary.mean_error == pytest.approx((14 * 40 + 30) / 15)


def test_alexnet_itself_has_an_mce_of_100() -> None:
    scores = [
        score(name, level, round(10_000 * ALEXNET_ERROR[name]), 1_000_000)
        for name in CORRUPTIONS
        for level in LEVELS
    ]
    summary = summarize("imagenet-c", scores, clean=None, is_imagenet=True)
    assert summary.mce == pytest.approx(100)


def test_the_extra_corruptions_are_reported_but_do_not_count() -> None:
    extra = [score("saturate", level, 99) for level in LEVELS]
    alone = summarize("imagenet-c", full(), clean=None, is_imagenet=True)
    summary = summarize("imagenet-c", full() + extra, clean=None, is_imagenet=True)
    assert (summary.mce, summary.mean_error) == (alone.mce, alone.mean_error)
    row = summary.corruptions[-1]
    assert (row.corruption, row.mean_error, row.ce, row.counted) == ("saturate", 99, None, False)


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (
            lambda s: s.corruption not in ("fog", "snow"),
            "2 of 15 corruptions are missing (snow, fog)",
        ),
        (
            lambda s: (s.corruption, s.severity) != ("fog", 3),
            "not all five severities were measured for fog",
        ),
    ],
)
def test_an_mce_is_withheld_with_the_reason(kept: object, reason: str) -> None:
    assert callable(kept)
    summary = summarize("imagenet-c", list(filter(kept, full())), clean=None, is_imagenet=True)
    assert summary.mce is None
    assert summary.mce_withheld == reason
    assert summary.mean_error == pytest.approx(40)


def test_other_classes_and_own_corruptions_have_no_mce() -> None:
    summary = summarize("imagenet-c", full(), clean=None, is_imagenet=False)
    assert summary.mce is None
    assert "AlexNet do not apply" in summary.mce_withheld
    own = summarize("corrupt", full(), clean=80.0, is_imagenet=False)
    assert (own.mce, own.mce_withheld) == (None, "")
    assert all(row.ce is None for row in own.corruptions)


def test_c_bar_is_a_plain_mean() -> None:
    scores = [score(name, level, 5 * k) for k, name in enumerate(C_BAR) for level in LEVELS]
    summary = summarize("imagenet-c-bar", scores, clean=None, is_imagenet=True)
    assert summary.mean_error == pytest.approx(sum(5 * k for k in range(10)) / 10)
    assert summary.mce is None


def test_the_drop_is_relative_to_the_clean_accuracy() -> None:
    summary = summarize("corrupt", full(40), clean=80.0, is_imagenet=False)
    assert summary.relative_drop == pytest.approx(25)
    assert summarize("corrupt", full(40), clean=None, is_imagenet=False).relative_drop is None
