"""Logits for a data set: the one path of evaluation in training, of `evaluate` and of `predict`.

The same images in the same batches give the same bits in all three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from convnext.device import autocast
from convnext.preprocess import Preprocessing
from convnext.tasks.classification.data import BadImages, EvalDataset, Samples, collate

BATCH_SIZE = 64


def infer(
    model: nn.Module,
    samples: Samples,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    precision: str,
    bad: BadImages,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield logits (N, num_classes), labels (N,) and positions (N,), batch by batch, in order.

    Images that cannot be read are left out and recorded in `bad`. `progress` is told how many
    images each batch has dealt with.
    """
    model.eval()
    loader = DataLoader(
        EvalDataset(samples, preprocessing),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate,
    )
    with torch.inference_mode():
        for batch in loader:
            bad.add(samples, batch.bad)
            if len(batch.labels):
                images = preprocessing.normalize(batch.images.to(device, non_blocking=True))
                images = images.contiguous(memory_format=torch.channels_last)
                with autocast(device, precision):
                    logits = model(images)
                yield logits.float(), batch.labels, batch.indices
            progress(len(batch.labels) + len(batch.bad))
