"""A small classifier whose answers differ, and photos to ask it about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from convnext.checkpoint import Card, save_checkpoint
from convnext.preprocess import Preprocessing

CLASSES = ("cat", "dog", "héron")
NETWORK: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "num_classes": 3}
STATISTICS: dict[str, Any] = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}


def small_checkpoint(path: Path) -> str:
    """Write a checkpoint of three classes at 64 pixels and return its path."""
    card = Card(
        model="convnext_atto",
        changes=NETWORK,
        classes=CLASSES,
        preprocessing=Preprocessing(image_size=64, crop_pct=0.875, **STATISTICS),
    )
    torch.manual_seed(0)
    model: Any = card.build()
    for name, p in model.named_parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p, 1.0 if "norm" in name or "gamma" in name else 0.0, 0.3)
    model.head.fc.weight.data.mul_(40)
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
