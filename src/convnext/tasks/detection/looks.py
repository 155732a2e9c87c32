"""Inference settings of a trained detector."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import nn

from convnext.tasks.detection.export.exported import ExportedDetector
from convnext.tasks.detection.model.detector import Detector


def change_detector(model: nn.Module, **asked: Any) -> Detector | ExportedDetector:
    """Return a copy that shares the layers and has other inference settings; None keeps a setting.

    Raises:
        ValueError: If the network is not a detector, a value is out of range, or an exported file
            does not support it.
    """
    model = copy.copy(model)
    if isinstance(model, ExportedDetector):
        model.change(**{name: value for name, value in asked.items() if value is not None})
        return model
    if not isinstance(model, Detector):
        raise ValueError("the network does not detect objects")
    changes = {name: value for name, value in asked.items() if value is not None}
    limit = changes.get("max_detections", 0)
    if limit > model.config.num_proposals:
        changes["num_proposals"] = limit
    model.config = replace(model.config, **changes)
    return model
