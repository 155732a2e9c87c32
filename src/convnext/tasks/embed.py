"""`embed`: feature vectors of images, from a network of any task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from convnext.data.images import BadImage
from convnext.data.sources import Source
from convnext.data.tensors import normalize_batch
from convnext.hardware.devices import autocast
from convnext.progress import progress_bar
from convnext.results import Embeddings
from convnext.tasks.trained import Opened
from convnext.tasks.verbs import Skipped
from convnext.weights.open import pick_precision


def embed_images(
    own: Opened,
    sources: list[Source] | Iterator[Source],
    *,
    batch_size: int = 64,
    precision: str = "auto",
    max_bad_share: float = 1.0,
    console: Console | None = None,
) -> tuple[Embeddings, tuple[tuple[str, str], ...]]:
    """Return the features of images, and the unreadable images with the reasons.

    Raises:
        ValueError: If the network has no features, no image can be read, or too many cannot.
    """
    embed: Callable[[Tensor], Tensor] | None = getattr(own.model, "embed", None)
    if embed is None:
        raise ValueError(
            f"{own.source} does not return features; use the run or checkpoint it was exported from"
        )
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, not {batch_size}")
    executed = pick_precision(precision, own.card, own.device)
    total = len(sources) if isinstance(sources, list) else None
    bad = Skipped(total, max_bad_share)
    names: list[str] = []
    vectors: list[NDArray[np.float32]] = []

    preprocessing = own.card.preprocessing
    with progress_bar("embedding", total or 0, console if total else None) as advance:
        for found, pixels in _batches(preprocessing, sources, batch_size, bad):
            images = normalize_batch(preprocessing, torch.from_numpy(pixels).to(own.device))
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.inference_mode(), autocast(own.device, executed):
                features = embed(images)
            vectors.append(features.float().cpu().numpy())
            names += found
            advance(len(found))
    bad.require(len(vectors))
    return Embeddings(vectors=np.concatenate(vectors), paths=tuple(names)), tuple(bad.images)


def _batches(
    preprocessing: Any,
    sources: Iterable[Source],
    batch_size: int,
    skip: Callable[[Source, BadImage], None],
) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
    """Yield names and pixels (N, C, h, w) of consecutive images of the same size."""
    names: list[str] = []
    pixels: list[NDArray[np.uint8]] = []
    for source in sources:
        try:
            image = preprocessing.pixels(source.open(preprocessing.mode))
        except BadImage as error:
            skip(source, error)
            continue
        if pixels and (len(pixels) == batch_size or pixels[0].shape != image.shape):
            yield names, np.stack(pixels)
            names, pixels = [], []
        names.append(source.name)
        pixels.append(image)
    if pixels:
        yield names, np.stack(pixels)
