"""Inference on images of a data set: detections in the pixels of the original images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.data.masks import encode, paste_windows
from convnext.data.samples import BadImages
from convnext.data.tensors import normalize_batch
from convnext.data.threads import rank_items
from convnext.hardware.devices import ALONE, Ranks, autocast
from convnext.tasks.detection.dataset import EvalDataset


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The detections of an image, highest score first."""

    boxes: NDArray[np.float64]
    """(M, 4) as x1 y1 x2 y2 in pixels of the original image."""
    scores: NDArray[np.float64]
    """(M,)"""
    labels: NDArray[np.int64]
    """(M,) starting at 0."""
    masks: tuple[dict[str, Any] | None, ...]
    """Compressed COCO run-length encoding (RLE) of the whole image; None without masks."""
    size: tuple[int, int]
    """Height and width of the image."""

    def __len__(self) -> int:
        return len(self.scores)


def infer(
    model: nn.Module,
    dataset: EvalDataset,
    *,
    device: torch.device,
    precision: str,
    bad: BadImages,
    workers: int = 0,
    progress: Callable[[int], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[int, Detections]]:
    """Yield the index and the detections of every image, in order.

    Images that cannot be read are left out and recorded in `bad`. `progress` is called once per
    image. With several processes each yields its own part of the images. All of them process the
    same number of images, since the network may be sharded over them.
    """
    model.eval()
    for item, is_mine in rank_items(dataset, ranks, device, workers=workers):
        if is_mine:
            bad.update(item.bad)
        # A sharded network waits for every process, so placeholders of bad images run too.
        if not item.bad or ranks.count > 1:
            image = normalize_batch(dataset.preprocessing, item.pixels[None].to(device))[0]
            # A sharded network cannot gather its parameters in inference mode.
            with torch.inference_mode() if ranks.count == 1 else torch.no_grad():
                found = detect(model, image, item.size, device=device, precision=precision)
            if is_mine and not item.bad:
                yield item.index, found
        progress(1)


def detect(
    model: nn.Module,
    image: Tensor,
    size: tuple[int, int],
    *,
    device: torch.device,
    precision: str,
    threshold: float = 0.5,
) -> Detections:
    """Return the detections of a normalized image (C, h, w), in pixels of an image of `size`.

    Masks are encoded one by one, each within its own window, so that memory does not grow with
    the number of masks times the image.
    """
    with autocast(device, precision):
        found = model([image], paste=False)[0]
    # Users cannot see boxes without area.
    found = {k: v[_has_area(found["boxes"])] for k, v in found.items()}
    height, width = size
    factors = torch.tensor(
        [width / image.shape[2], height / image.shape[1]] * 2, device=found["boxes"].device
    )
    boxes = found["boxes"].float() * factors
    masks: tuple[dict[str, Any] | None, ...] = (None,) * len(boxes)
    if "shares" in found:
        parts = paste_windows(found["shares"].float(), boxes, size, threshold)
        masks = tuple(compress(encode(part.cpu().numpy(), w, size)) for part, w in parts)
    elif "masks" in found:  # An exported file may return masks pasted into its input image.
        window = (0, 0, width, height)
        bitmaps = (_resized(mask, size).cpu().numpy() for mask in found["masks"])
        masks = tuple(compress(encode(bitmap, window, size)) for bitmap in bitmaps)
    return Detections(
        boxes=boxes.double().cpu().numpy(),
        scores=found["scores"].double().cpu().numpy(),
        labels=found["labels"].cpu().numpy(),
        masks=masks,
        size=size,
    )


def _resized(mask: Tensor, size: tuple[int, int]) -> Tensor:  # h w -> *size
    """Return a bitmap at another size: the pixels that belong to the object by at least half."""
    if tuple(mask.shape) == size:
        return mask
    shares = F.interpolate(mask[None, None].float(), size, mode="bilinear", align_corners=False)
    return shares[0, 0] >= 0.5


def _has_area(boxes: Tensor) -> Tensor:  # M 4 -> M
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def compress(runs: dict[str, Any]) -> dict[str, Any]:
    """Replace the list of counts of a COCO RLE with COCO's string."""
    compressed = coco_mask.frPyObjects(runs, *runs["size"])
    counts = compressed["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": list(runs["size"]), "counts": text}
