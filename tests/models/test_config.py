"""The configuration: defaults, checks, and messages that name the fix."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from convnext.models.config import NetworkConfig, change
from convnext.tasks.detection.model.heads import DetectorConfig
from convnext.tasks.segmentation.heads import UPerNetConfig


def test_the_defaults_are_convnext_tiny() -> None:
    config = NetworkConfig()
    assert (config.depths, config.dims) == ((3, 3, 9, 3), (96, 192, 384, 768))
    assert config.stage_dims == config.dims
    assert config.strides == (4, 8, 16, 32)
    with pytest.raises(FrozenInstanceError):
        config.act = "relu"  # type: ignore[misc]


def test_what_follows_from_the_fields() -> None:
    narrow = NetworkConfig(bottleneck="narrow", stem_stride=2)
    assert narrow.stage_dims == (384, 768, 1536, 3072)
    assert narrow.strides == (2, 4, 8, 16)
    rates = NetworkConfig(depths=(1, 3), dims=(8, 16), drop_path_rate=0.3).drop_path_rates
    assert rates == pytest.approx((0.0, 0.1, 0.2, 0.3))
    assert NetworkConfig(depths=(1,), dims=(8,), drop_path_rate=0.3).drop_path_rates == (0.0,)


def test_lists_of_yaml_become_tuples() -> None:
    config = NetworkConfig(depths=[1, 2], dims=[8, 16])  # type: ignore[arg-type]
    assert config == NetworkConfig(depths=(1, 2), dims=(8, 16))
    assert hash(config) == hash(NetworkConfig(depths=(1, 2), dims=(8, 16)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (1, 2)}, r"one entry per stage: \(1, 2\) has 2, .* has 4"),
        ({"depths": (), "dims": ()}, "one entry per stage"),
        ({"depths": (3, 0, 9, 3)}, r"depths must be positive, not \(3, 0, 9, 3\)"),
        ({"stem": "patches"}, "stem is 'patches'; choose one of conv_pool, patchify"),
        ({"act": "silu"}, "act is 'silu'; choose one of relu, gelu"),
        ({"norms": "two"}, "norms is 'two'; choose one of every, one"),
        ({"kernel_size": 8}, "kernel_size must be odd and positive, not 8"),
        ({"stem_stride": 0}, "stem_stride is 0"),
        ({"stem": "conv_pool", "stem_stride": 8}, "a conv_pool stem has 1, 2 or 4"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must lie in \[0, 1\), not 1.0"),
        ({"in_chans": 0}, "in_chans must be positive"),
        ({"num_classes": -1}, "num_classes not negative"),
        ({"depths": (3, 3, 9, 1.5)}, r"depths is .* but must be a list of whole numbers"),
        ({"num_classes": 2.5}, "num_classes is 2.5, but must be a whole number"),
        ({"kernel_size": True}, "kernel_size is True, but must be a whole number"),
        ({"depthwise": 1}, "depthwise is 1, but must be true or false"),
        ({"drop_path_rate": "0.1"}, "drop_path_rate is '0.1', but must be a number"),
        ({"stem": ["patchify"]}, "stem is .'patchify'.; choose one of"),
        ({"drop_path": 0.1}, "no setting 'drop_path'; did you mean 'drop_path_rate'"),
        ({"kernelsize": 9}, "no setting 'kernelsize'; did you mean 'kernel_size'"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        change(NetworkConfig(), **changes)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (DetectorConfig, {"max_detections": 0.5}, "max_detections is 0.5, .* a whole number"),
        (DetectorConfig, {"masks": None}, "masks is None, but must be true or false"),
        (DetectorConfig, {"ignore_threshold": "x"}, "ignore_threshold is 'x', .* number or null"),
        (UPerNetConfig, {"channels": 8.5}, "channels is 8.5, but must be a whole number"),
    ],
)
def test_values_of_other_types_are_named_in_dense_networks(
    config: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_numbers_of_numpy_are_numbers() -> None:
    assert change(NetworkConfig(), num_classes=np.int64(7), drop_path_rate=1 / np.float32(4))
    assert DetectorConfig(ignore_threshold=None, anchor_scale=4).anchor_scale == 4
