"""The user's choices of inference settings."""

from __future__ import annotations

import pytest

from convnext.tasks.segmentation.scores import (
    MULTI_SCALE,
    InferenceSettings,
    choose_inference,
    default_stride,
    describe,
    inference_of,
)

SLID = {"segment": {"mode": "slide", "window": 640, "stride": 426}}


def test_by_default_as_in_training() -> None:
    assert inference_of({}) == InferenceSettings()
    assert inference_of(SLID) == InferenceSettings(window=640, stride=426)
    chosen = choose_inference(SLID, multi_scale=True, flip=True)
    assert chosen == InferenceSettings(window=640, stride=426, scales=MULTI_SCALE, flip=True)
    assert choose_inference(SLID, whole=True) == InferenceSettings()
    assert choose_inference(SLID, stride=100) == InferenceSettings(window=640, stride=100)


@pytest.mark.parametrize(
    "segment", [{}, {"window": 64, "stride": 90}, {"window": 0}, {"window": 1.5}, {"window": [9]}]
)
def test_an_impossible_window_on_a_card_is_refused(segment: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"window|stride"):
        inference_of({"segment": {"mode": "slide", **segment}})


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (512, 341), (640, 426)])
def test_the_stride_that_is_told_is_the_one_that_is_taken(window: int, stride: int) -> None:
    assert default_stride(window) == stride
    assert describe(InferenceSettings(window=window)) == f"windows of {window} every {stride}"


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"window": 0}, "window is 0"),
        ({"stride": 9}, "give a window too"),
        ({"whole": True, "window": 64}, "--whole excludes"),
    ],
)
def test_what_cannot_be(wishes: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choose_inference({}, **wishes)  # type: ignore[arg-type]
