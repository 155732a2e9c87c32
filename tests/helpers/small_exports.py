"""Small networks of every task with distinct outputs, and photos to predict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from small_detectors import sharpen

from convnext.data.preprocessing import DensePreprocessing, Preprocessing
from convnext.tasks.trained import build
from convnext.weights.checkpoint import Card
from convnext.weights.files import save_checkpoint

CLASSES = ("cat", "dog", "héron")
NETWORK: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "num_classes": 3}
STATISTICS: dict[str, Any] = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
FILES = {"onnx": "net.onnx", "openvino": "net.xml", "pt2": "net.pt2"}


def small_checkpoint(path: Path, recipe: Mapping[str, Any] | None = None) -> str:
    """Write a checkpoint of three classes at 64 pixels and return its path."""
    card = Card(
        task="classify",
        model="convnext_atto",
        changes=NETWORK,
        classes=CLASSES,
        preprocessing=Preprocessing(image_size=64, crop_pct=0.875, **STATISTICS),
        recipe=recipe or {},
    )
    torch.manual_seed(0)
    model: Any = build(card)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p, 1.0 if "norm" in name or "gamma" in name else 0.0, 0.3)
    model.head.fc.weight.data.mul_(40)
    save_checkpoint(path, model.state_dict(), card)
    return str(path)


def small_segmentor(path: Path, channels: int = 8, **recipe: Any) -> str:
    """Write a checkpoint of a segmentor of three classes and return its path."""
    card = Card(
        task="segment",
        model="upernet_convnext_atto",
        changes={**NETWORK, "channels": channels},
        classes=("road", "sky", "tree"),
        preprocessing=DensePreprocessing(image_size=0, **STATISTICS),
        recipe={"segment": {"crop": 64, **recipe}},
    )
    torch.manual_seed(0)
    model: Any = build(card)
    torch.nn.init.normal_(model.decode_head.classifier.weight, std=5.0)
    # If all features are 0, only the biases distinguish classes.
    torch.nn.init.normal_(model.decode_head.classifier.bias)
    save_checkpoint(path, model.state_dict(), card)
    return str(path)


def small_detector_file(path: Path, method: str = "mask_rcnn_", **changes: Any) -> str:
    """Write a checkpoint of a detector whose boxes, scores and masks differ; return its path."""
    card = Card(
        task="detect",
        model=f"{method}convnext_atto",
        changes={
            **NETWORK,
            **{"channels": 16, "fc_dim": 24, "num_proposals": 50, "max_detections": 30},
            **{"score_threshold": 0.3, **changes},
        },
        classes=CLASSES,
        preprocessing=DensePreprocessing(image_size=64, max_size=128, **STATISTICS),
    )
    torch.manual_seed(0)
    model: Any = build(card)
    sharpen(model)
    save_checkpoint(path, model.state_dict(), card)
    return str(path)


def small_photos(folder: Path) -> Path:
    """Write images of several sizes and return their folder."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k, (width, height) in enumerate([(80, 64), (64, 64), (50, 120), (200, 90)]):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(folder / f"{k}.png")
    return folder
