"""From images to the objects on them, in the images' own pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from convnext.data.masks import encode, paste_windows
from convnext.data.samples import BadImages
from convnext.data.tensors import normalize_batch
from convnext.data.threads import items_of
from convnext.hardware.devices import autocast
from convnext.hardware.ranks import ALONE, Ranks
from convnext.hardware.signals import leave_signals_to_parent
from convnext.tasks.detection.data.dataset import EvalDataset


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The objects that were found on an image, the surest first."""

    boxes: NDArray[np.float64]
    """(M, 4) as x1 y1 x2 y2 in the image's own pixels."""
    scores: NDArray[np.float64]
    """(M,)"""
    labels: NDArray[np.int64]
    """(M,) from 0."""
    masks: tuple[dict[str, Any] | None, ...]
    """Run lengths as COCO has them, compressed; of the whole image. None without masks."""
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
    """Yield the index of every image and what was found on it, in order.

    Images that cannot be read are left out and recorded in `bad`. `progress` is told of every image
    that is dealt with. Of several processes each yields its share, none twice. All look at equally
    many images, since the network may be sharded over them.
    """
    model.eval()
    mine = list(range(ranks.rank, len(dataset), ranks.count))
    num_spare = math.ceil(len(dataset) / ranks.count) - len(mine)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        sampler=[*mine, *range(num_spare)],
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=leave_signals_to_parent,
    )
    for i, item in enumerate(items_of(loader, device)):
        is_mine = i < len(mine)
        if is_mine:
            bad.update(item.bad)
        # A sharded network waits for every process: they look at what stands for bad images too.
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
    """Return what is on a normalised image (C, h, w), in the pixels of one of `size` (H, W).

    Masks become run lengths one by one, each within its own window: memory does not grow with
    their number times the image.
    """
    with autocast(device, precision):
        found = model([image], paste=False)[0]
    # A box without area is no object that a user could see.
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
    elif "masks" in found:  # An exported file may have pasted them already, in what it was given.
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
    """Return a bitmap at another size: pixels of which half belongs to the object."""
    if tuple(mask.shape) == size:
        return mask
    shares = F.interpolate(mask[None, None].float(), size, mode="bilinear", align_corners=False)
    return shares[0, 0] >= 0.5


def _has_area(boxes: Tensor) -> Tensor:  # M 4 -> M
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def compress(runs: dict[str, Any]) -> dict[str, Any]:
    """Return run lengths with COCO's own string in place of a list of counts."""
    compressed = coco_mask.frPyObjects(runs, *runs["size"])
    counts = compressed["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": list(runs["size"]), "counts": text}


def _as_it_is(item: Any) -> Any:
    return item
