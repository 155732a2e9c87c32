"""The types that type checkers see; mypy checks this file, and the tests run it."""

from __future__ import annotations

from typing import assert_type

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor, nn

import convnext
from convnext.results import Classification, Detections, Guess, Segmentation


class Means(nn.Module):
    """A classifier by the mean of each channel."""

    def forward(self, images: Tensor) -> Tensor:  # N C h w
        return images.mean((-2, -1))


@pytest.fixture(name="model")
def _model() -> convnext.Model:
    preprocessing = convnext.Preprocessing(
        image_size=32, crop_pct=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    return convnext.load(Means(), classes=("r", "g", "b"), preprocessing=preprocessing)


def image() -> NDArray[np.uint8]:
    found = np.zeros((32, 32, 3), np.uint8)
    found[..., 1] = 255
    return found


def of_a_task(result: convnext.Prediction) -> NDArray[np.generic]:
    """Narrow a prediction to the type of its task."""
    if isinstance(result, Classification):
        return assert_type(result, Classification).probabilities
    if isinstance(result, Detections):
        return assert_type(result, Detections).boxes
    return assert_type(result, Segmentation).mask


def test_predictions_have_the_types_of_the_tasks(model: convnext.Model) -> None:
    results = assert_type(model.predict(image()), convnext.Predictions)
    first = assert_type(results[0], Classification | Segmentation | Detections)
    assert_type(results[:1], tuple[Classification | Segmentation | Detections, ...])
    assert [of_a_task(result).shape for result in results] == [(3,)]
    assert isinstance(first, Classification)
    best = assert_type(first.top(1)[0], Guess)
    assert assert_type(best.name, str) == "g"


def test_streams_and_the_function_have_them_too(model: convnext.Model) -> None:
    for result in model.predict(image(), stream=True):
        assert_type(result, Classification | Segmentation | Detections)
        assert isinstance(result, Classification)
    for result in convnext.predict(model, [image(), image()], progress=False):
        assert_type(result, Classification | Segmentation | Detections)
        assert isinstance(result, Classification)
