"""Logits for a data set: the one path of evaluation in training, of `evaluate` and of `predict`.

The same images in the same batches give the same bits in all three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from convnext.device import autocast
from convnext.tasks.classification.dataset import BadImages, EvalDataset, collate

BATCH_SIZE = 64


def infer(
    model: nn.Module,
    dataset: EvalDataset,
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
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=collate)
    with torch.inference_mode():
        for batch in loader:
            bad.update(batch.bad)
            if len(batch.labels):
                images = dataset.preprocessing.normalize(batch.pixels.to(device))
                images = images.contiguous(memory_format=torch.channels_last)
                with autocast(device, precision):
                    logits = model(images)
                yield logits.float(), batch.labels, batch.indices
            progress(len(batch.labels) + len(batch.bad))
