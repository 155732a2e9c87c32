"""Inference on a data set, shared by evaluation in training, `evaluate` and `predict`.

Equal batches give bit-identical logits in all three, unless the network switches to a faster
backend (`convnext.deploy.fast`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from convnext.data.samples import BadImages
from convnext.data.tensors import normalize_batch
from convnext.data.threads import items_of
from convnext.hardware.devices import autocast
from convnext.hardware.ranks import ALONE, Ranks
from convnext.hardware.system import leave_signals_to_parent
from convnext.tasks.classification.dataset import EvalDataset, collate

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
    ranks: Ranks = ALONE,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield logits (N, num_classes), labels (N,) and positions (N,), batch by batch, in order.

    Images that cannot be read are left out and recorded in `bad`. `progress` is called with the
    number of images of each batch. With several processes each yields its own part of the batches.
    All of them run the same number of batches, since the network may be sharded over them.
    """
    model.eval()
    if getattr(dataset.preprocessing, "whole", False):
        batch_size = 1  # An exported file resizes images of any size itself.
    batches = [
        list(range(start, min(start + batch_size, len(dataset))))
        for start in range(0, len(dataset), batch_size)
    ]
    mine = batches[ranks.rank :: ranks.count]
    num_spare = math.ceil(len(batches) / ranks.count) - len(mine)
    loader = DataLoader(
        dataset,
        batch_sampler=[*mine, *batches[:num_spare]],
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=leave_signals_to_parent,
    )
    for b, batch in enumerate(items_of(loader, device)):
        if b < len(mine):
            bad.update(batch.bad)
        if len(batch.labels):
            images = normalize_batch(dataset.preprocessing, batch.pixels.to(device))
            images = images.contiguous(memory_format=torch.channels_last)
            # A sharded network cannot gather its parameters in inference mode.
            with (
                torch.inference_mode() if ranks.count == 1 else torch.no_grad(),
                autocast(device, precision),
            ):
                logits = model(images).float()
            if b < len(mine):
                yield logits, batch.labels, batch.indices
        progress(len(batch.labels) + len(batch.bad))
