"""The return values of the API: predictions, scores, exported files, embeddings.

Nothing here imports torch or timm.
"""

from __future__ import annotations

from convnext.results.predictions import (
    Area,
    Classification,
    Detections,
    Guess,
    Prediction,
    Segmentation,
)
from convnext.results.scores import Conditions, Embeddings, Exported, Predictions, Scores

__all__ = [
    "Area",
    "Classification",
    "Conditions",
    "Detections",
    "Embeddings",
    "Exported",
    "Guess",
    "Prediction",
    "Predictions",
    "Scores",
    "Segmentation",
]
