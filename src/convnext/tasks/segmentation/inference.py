"""From images to labels: the one path of evaluation in training, of `evaluate` and of `predict`.

It never asks what the network is: `model(images (N, C, H, W))` returns logits (N, K, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from convnext.data.tensors import Normalizing, normalize_batch
from convnext.data.threads import items_of
from convnext.hardware.ranks import ALONE, Ranks
from convnext.hardware.signals import leave_signals_to_parent
from convnext.tasks.segmentation.scores import InferenceSettings, Size, score_bands


@torch.no_grad()
def segment(
    model: nn.Module,
    images: Tensor,
    *,
    window: int | None = None,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window_batch: int = 8,
    on_cpu: bool = False,
    size: Size | None = None,
    device: torch.device,
    precision: str,
) -> Tensor:
    """Return the scores of every pixel: logits of a single view, else averaged probabilities.

    Args:
        model: A segmentor in evaluation mode, on `device`.
        images: Normalised images (C, H, W) or (N, C, H, W), on any device.
        window: As in `InferenceSettings`, like the next five.
        stride: See there.
        scales: See there.
        flip: See there.
        window_batch: See there.
        on_cpu: See there.
        size: Height and width of the scores; None for those of the images.
        device: Where the network runs.
        precision: "fp32", "bf16" or "fp16"; scores are gathered in fp32.

    Returns:
        fp32 (K, *size) or (N, K, *size).

    Raises:
        ValueError: As `InferenceSettings`.
    """
    settings = InferenceSettings(
        window=window,
        stride=stride,
        scales=tuple(scales),
        flip=flip,
        window_batch=window_batch,
        on_cpu=on_cpu,
    )
    batch = images if images.ndim == 4 else images[None]
    size = size or (batch.shape[-2], batch.shape[-1])
    bands = score_bands(model, batch, settings, size=size, device=device, precision=precision)
    scores = None
    for top, band in bands:
        if scores is None:
            scores = band.new_empty((*band.shape[:2], *size))
        scores[:, :, top : top + band.shape[2]] = band
    assert scores is not None
    return scores if images.ndim == 4 else scores[0]


@torch.no_grad()
def segment_labels(
    model: nn.Module,
    image: Tensor,
    *,
    settings: InferenceSettings | None = None,
    size: Size | None = None,
    device: torch.device,
    precision: str,
) -> Tensor:
    """Return the class of every pixel of one normalised image (C, H, W), on the CPU.

    Memory beside the image and the labels, in floats for K classes and output rows of `width`:

    - by windows: K (window + 64) W for W columns of the input, and the windows in the network;
    - whole: K H W for the logits at the size of the input, which is not that of the output;
    - bands of the output: about four times 64 MB, or one row of K `width` where that is more.

    So the 29 GB of 150 classes over 8000 x 6000 pixels are 2.8 GB by windows of 512. Several views
    take as much each, or all together the scores of the whole output and one view, where that is
    less: a very large image is better looked at once.

    Returns:
        (H, W) or `size`: uint8 for up to 256 classes, else int32.
    """
    settings = settings or InferenceSettings()
    size = size or (image.shape[-2], image.shape[-1])
    bands = score_bands(model, image[None], settings, size=size, device=device, precision=precision)
    return torch.cat([_as_labels(band)[0] for _, band in bands])


def _as_labels(scores: Tensor) -> Tensor:
    """Return the best class of scores (N, K, h, w) on the CPU."""
    return scores.argmax(1).to(torch.uint8 if scores.shape[1] <= 256 else torch.int32).cpu()


class Item(Protocol):
    """What a data set of evaluation gives: an image as the network sees it, and its whole mask."""

    @property
    def pixels(self) -> Tensor: ...  # uint8 (C, h, w)
    @property
    def mask(self) -> Any: ...  # integers (H, W)
    @property
    def index(self) -> int: ...
    @property
    def bad(self) -> Sequence[tuple[int, str]]: ...


class Items(Protocol):
    """A data set of evaluation."""

    @property
    def preprocessing(self) -> Normalizing: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Item: ...


class Records(Protocol):
    """Where images that cannot be read are counted: `BadImages`."""

    def update(self, records: Iterable[tuple[int, str]]) -> Any: ...


def infer(
    model: nn.Module,
    dataset: Items,
    *,
    device: torch.device,
    precision: str,
    bad: Records,
    settings: InferenceSettings | None = None,
    ignore_index: int = 255,
    workers: int = 0,
    progress: Callable[[int], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[Tensor, Tensor, int, float]]:
    """Yield labels (H, W), mask (H, W), index and loss of every image, in order.

    Labels have the size of the mask; the loss is the cross-entropy summed over labelled pixels.

    Images that cannot be read are left out and recorded in `bad`. `progress` is told of every image
    that is dealt with. Of several processes each yields its share, none twice. All look at equally
    many images, since the network may be sharded over them; a sharded network needs images of one
    size, or no windows, for equally many passes.
    """
    model.eval()
    settings = settings or InferenceSettings()
    mine = list(range(ranks.rank, len(dataset), ranks.count))
    num_spare = math.ceil(len(dataset) / ranks.count) - len(mine)
    loader: DataLoader[Any] = DataLoader(
        dataset,  # type: ignore[arg-type]  # torch's Dataset has no protocol
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
        # A sharded network is run equally often by all: on one pixel where there is no image.
        if not item.bad or ranks.count > 1:
            # A sharded network cannot gather its parameters in inference mode.
            with torch.inference_mode() if ranks.count == 1 else torch.no_grad():
                images = normalize_batch(dataset.preprocessing, item.pixels[None].to(device))
                labels, loss = _compare(
                    model, images, item.mask, settings, ignore_index, device, precision
                )
            if is_mine and not item.bad:
                yield labels, torch.as_tensor(item.mask), int(item.index), loss
        progress(1)


def _compare(
    model: nn.Module,
    images: Tensor,
    mask: Any,
    settings: InferenceSettings,
    ignore_index: int,
    device: torch.device,
    precision: str,
) -> tuple[Tensor, float]:
    """Return the labels (H, W) of an image (1, C, h, w), and its summed cross-entropy."""
    truth = torch.as_tensor(mask)
    size = (truth.shape[0], truth.shape[1])
    labels, total = [], 0.0
    for top, scores in score_bands(
        model, images, settings, size=size, device=device, precision=precision
    ):
        part = truth[top : top + scores.shape[2]].to(scores.device).long()[None]
        logs = scores.clamp(min=1e-12).log() if len(settings.views) > 1 else scores.log_softmax(1)
        # Summed apart: on a GPU the sum inside the loss has no deterministic form.
        losses = F.nll_loss(logs, part, ignore_index=ignore_index, reduction="none")
        total += float(losses.sum())
        labels.append(_as_labels(scores)[0])
    return torch.cat(labels), total


def _as_it_is(item: Any) -> Any:
    return item
