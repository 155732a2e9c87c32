"""How a trained segmentor looks at images: as in training, unless a user asks otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from convnext.tasks.segmentation.scores import InferenceSettings, default_stride
from convnext.weights.checkpoint import setting_of

# Scales of multi-scale testing (paper, Table 7).
MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def inference_of(recipe: Mapping[str, Any]) -> InferenceSettings:
    """Return how the network read images when it was trained, by the recipe on its card.

    Raises:
        ValueError: If the card has an impossible window.
    """
    if setting_of(recipe, "segment.mode", str) != "slide":
        return InferenceSettings()
    window, stride = (setting_of(recipe, f"segment.{name}", int) for name in ("window", "stride"))
    if window is None:
        raise ValueError("the model card has a sliding window without a size; give --window")
    return InferenceSettings(window=window, stride=stride)


def choose_inference(
    recipe: Mapping[str, Any],
    *,
    window: int | None = None,
    stride: int | None = None,
    whole: bool = False,
    multi_scale: bool = False,
    flip: bool = False,
) -> InferenceSettings:
    """Return the settings of training with what a user asks for instead.

    Raises:
        ValueError: If a value is impossible, or two contradict each other.
    """
    settings = inference_of(recipe)
    if whole:
        if window is not None or stride is not None:
            raise ValueError("whole images have no window and no stride; leave out --whole or both")
        settings = InferenceSettings()
    if window is not None or stride is not None:
        window = settings.window if window is None else window
        settings = InferenceSettings(window=window, stride=stride)
    scales = MULTI_SCALE if multi_scale else settings.scales
    return replace(settings, scales=scales, flip=flip)


def describe(settings: InferenceSettings) -> str:
    """Return in words how images are looked at."""
    words = ["whole images"]
    if settings.window is not None:
        stride = settings.stride or default_stride(settings.window)
        words = [f"windows of {settings.window} every {stride}"]
    if len(settings.scales) > 1:
        words.append(f"{len(settings.scales)} scales")
    if settings.flip:
        words.append("flipped")
    return ", ".join(words)
