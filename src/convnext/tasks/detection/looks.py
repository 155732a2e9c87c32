"""What a trained detector reports: as in training, unless a user asks otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from convnext.tasks.detection.export.exported import ExportedDetector
from convnext.tasks.detection.model.detector import Detector


def change_detector(model: nn.Module, **asked: Any) -> Detector | ExportedDetector:
    """Change fields of a detector's config that say what is reported, and return it; None changes
    nothing.

    Raises:
        ValueError: If the network is no detector, a value is out of its bounds, or an exported file
            was not written for it.
    """
    if isinstance(model, ExportedDetector):
        model.change(**{name: value for name, value in asked.items() if value is not None})
        return model
    if not isinstance(model, Detector):
        raise ValueError("the network does not detect objects")
    changes = {name: value for name, value in asked.items() if value is not None}
    most = changes.get("max_detections", 0)
    if most > model.config.num_proposals:
        changes["num_proposals"] = most
    model.config = replace(model.config, **changes)
    return model
