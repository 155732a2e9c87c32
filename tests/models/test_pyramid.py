"""The pyramid contract: names and strides."""

from __future__ import annotations

import pytest

from convnext.models.network import Level, name_levels


def test_a_level_is_named_for_its_stride() -> None:
    levels = [Level(96, 4), Level(192, 8), Level(384, 16), Level(768, 32)]
    assert name_levels(levels) == dict(zip(("c2", "c3", "c4", "c5"), levels, strict=True))
    assert list(name_levels([Level(8, 1), Level(8, 2)])) == ["c0", "c1"]
    assert list(name_levels(iter(levels[1:]))) == ["c3", "c4", "c5"]


def test_what_is_no_pyramid() -> None:
    with pytest.raises(ValueError, match=r"single scale \(stride 16\)"):
        name_levels([Level(384, 16)] * 4)
    with pytest.raises(ValueError, match=r"powers of two, not \[4, 12\]"):
        name_levels([Level(8, 4), Level(8, 12)])
