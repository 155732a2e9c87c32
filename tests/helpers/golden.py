"""Weights and inputs derived from names, as for the golden outputs of the authors' code.

Each tensor is drawn in float64 by a generator seeded with the CRC-32 of its full name.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "reference" / "golden"


def golden_weights(name: str) -> dict[str, Tensor]:
    """Return the state dict of a golden file, by the names and shapes in `<name>.json`."""
    rows = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return {key: torch.from_numpy(_weight(key, tuple(shape))) for key, shape in rows}


def golden_images(height: int, width: int) -> Tensor:
    """Return the normalized image (1, 3, height, width) that the golden outputs belong to."""
    values = _normal("input", (1, 3, height, width))
    return torch.from_numpy(values.astype(np.float32))


def sha256(weights: Mapping[str, Tensor]) -> str:
    """Return the digest over names and bytes, in order."""
    found = hashlib.sha256()
    for key, tensor in weights.items():
        found.update(key.encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def _weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    leaf = key.split(".")[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    values = _normal(key, shape)
    if len(shape) > 1:
        # Box heads get larger weights, since otherwise no score would reach the threshold.
        gain = 2.0 if key.startswith("roi_head.") else 1.0
        values = values * math.sqrt(gain / math.prod(shape[1:]))
    elif leaf in ("bias", "running_mean"):
        values = 0.1 * values
    else:
        values = 1 + 0.1 * (np.abs(values) if leaf == "running_var" else values)
    return values.astype(np.float32)


def _normal(key: str, shape: Iterable[int]) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    return generator.standard_normal(tuple(shape))
