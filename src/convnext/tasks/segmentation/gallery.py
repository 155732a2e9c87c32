"""Pictures of chosen images of a data set: image, truth, prediction and errors side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn

from convnext.data.drawing import data_uri
from convnext.data.tensors import normalize_batch
from convnext.tasks.segmentation.inference import Items, segment_labels
from convnext.tasks.segmentation.render import compare
from convnext.tasks.segmentation.scores import InferenceSettings


def draw_images(
    model: nn.Module,
    dataset: Items,
    indices: Sequence[int],
    *,
    num_classes: int,
    device: torch.device,
    precision: str,
    settings: InferenceSettings | None = None,
    ignore_index: int = 255,
    width: int = 320,
) -> Iterator[str]:
    """Yield a comparison of each image as a data URI, "" if it can no longer be read.

    The picture is the network's input before normalization; `width` is that of one panel.
    """
    model.eval()
    for index in indices:
        item = dataset[index]
        if item.bad:
            yield ""
            continue
        mask = np.asarray(item.mask)
        images = normalize_batch(dataset.preprocessing, item.pixels[None].to(device))
        labels = segment_labels(
            model,
            images[0],
            settings=settings,
            size=(mask.shape[0], mask.shape[1]),
            device=device,
            precision=precision,
        )
        pixels = np.moveaxis(item.pixels.numpy(), 0, -1)
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        yield data_uri(
            compare(
                image, mask, labels.numpy(), num_classes, ignore_index=ignore_index, width=width
            )
        )
