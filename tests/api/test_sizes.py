"""Sizes as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from convnext.api.tools import _size


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("512x768", (512, 768)),
        ("512", (512, 512)),
        (512, (512, 512)),
        ((512, 768), (512, 768)),
        ("any", "any"),
        (None, None),
    ],
)
def test_a_size_is_read(given: Any, size: Any) -> None:
    assert _size(given) == size


@pytest.mark.parametrize("given", ["0", "5x", "1x2x3", "-5", -5, 0, True, (1, 2, 3), (), (1.5, 2)])
def test_what_is_not_a_size_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        _size(given)
