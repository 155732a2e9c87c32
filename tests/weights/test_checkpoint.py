"""The card of a checkpoint: what is read is what was written, and damage is named."""

from __future__ import annotations

from typing import Any

import pytest

from convnext.data.preprocessing import DensePreprocessing, Preprocessing
from convnext.weights.checkpoint import Card

MEAN, STD = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
CROPPED = Preprocessing(image_size=32, crop_pct=0.9, mean=MEAN, std=STD)
WHOLE = DensePreprocessing(image_size=64, max_size=128, mean=MEAN, std=STD)


def card(preprocessing: Any = CROPPED, **changes: Any) -> Card:
    given: dict[str, Any] = {
        "task": "classify",
        "model": "convnext_atto",
        "changes": {"num_classes": 2, "dims": [8, 8, 8, 8]},
        "classes": ("cat", "dog"),
        "recipe": {"run": {"precision": "fp32"}},
        "metrics": {"top1": 91.5},
    }
    return Card(preprocessing=preprocessing, **given | changes)


@pytest.mark.parametrize(
    "written", [card(), card(WHOLE, task="detect", category_ids=(1, 7)), card(WHOLE, task="other")]
)
def test_what_is_read_is_what_was_written(written: Card) -> None:
    assert Card.from_metadata(written.to_metadata(), "here") == written


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("changes", "[1]"),
        ("changes", "{"),
        ("classes", '"cat"'),
        ("classes", "[1, 2]"),
        ("recipe", "null"),
        ("metrics", "3"),
        ("category_ids", "[true]"),
        ("preprocessing", "[]"),
        ("model", None),
    ],
)
def test_damage_is_named(key: str, text: str | None) -> None:
    metadata = card().to_metadata() | {key: text or ""}
    if text is None:
        del metadata[key]
    with pytest.raises(ValueError, match="here has damaged metadata"):
        Card.from_metadata(metadata, "here")


def test_a_wrong_preprocessing_says_what_is_wrong() -> None:
    metadata = card().to_metadata()
    metadata["preprocessing"] = metadata["preprocessing"].replace("0.9", "7")
    with pytest.raises(ValueError, match="crop_pct is 7"):
        Card.from_metadata(metadata, "here")


def test_metadata_of_others_is_not_ours() -> None:
    with pytest.raises(ValueError, match="here is not a checkpoint of this package"):
        Card.from_metadata({"format": "pt"}, "here")
