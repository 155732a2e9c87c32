"""Labels of images, for validation in training, `evaluate` and `predict`.

Works with any network that maps images (N, C, H, W) to logits (N, K, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.data.tensors import Normalizing, normalize_batch
from convnext.data.threads import rank_items
from convnext.hardware.devices import ALONE, Ranks
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
    """Return the scores of every pixel: logits of a single view, or averaged probabilities.

    Args:
        model: A segmentor in evaluation mode, on `device`.
        images: Normalized images (C, H, W) or (N, C, H, W), on any device.
        window: This and the next five are the fields of `InferenceSettings`.
        stride: See there.
        scales: See there.
        flip: See there.
        window_batch: See there.
        on_cpu: See there.
        size: Height and width of the scores; None for those of the images.
        device: The device of the network.
        precision: "fp32", "bf16" or "fp16"; scores are accumulated in fp32.

    Returns:
        fp32 (K, *size) or (N, K, *size).

    Raises:
        ValueError: If a setting is invalid.
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
    """Return the class of every pixel of one normalized image (C, H, W), on the CPU.

    Memory in addition to the image and the labels, in floats, for K classes and an output `width`:

    - with windows: K (window + 64) W for W columns of the input, plus the windows in the network;
    - whole: K H W for the logits at the input's size, which can differ from the output's;
    - bands of the output: about four times 64 MB, or one row of K `width` if that is more.

    For example, 150 classes on 8000 x 6000 pixels take 2.8 GB instead of 29 GB with windows of 512.
    Either each view needs this much, or the scores of the whole output and one view are kept,
    whichever is less: use a single view for a very large image.

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
    """An item of an evaluation data set: a preprocessed image and its mask at full size."""

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
    """Counts images that cannot be read, like `BadImages`."""

    def update(self, records: Iterable[tuple[int, str]]) -> Any: ...


class FileNetwork(nn.Module):
    """A segmentor that runs an exported file.

    Args:
        votes: Whether the file returns labels, which become logits of 1 and 0.
    """

    def __init__(self, *, votes: bool) -> None:
        super().__init__()
        self.votes = votes


def has_scores(network: nn.Module) -> bool:
    """Return whether outputs are scores, not the votes of an exported file that returns labels."""
    return not (isinstance(network, FileNetwork) and network.votes)


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

    Labels have the size of the mask; the loss is the cross-entropy summed over labeled pixels.

    Images that cannot be read are skipped and recorded in `bad`. `progress` is called for each
    processed image. With several processes, each yields its own part of the images. All of them
    process the same number of images, since the network may be sharded; a sharded network needs
    images of one size, or no windows, so that the number of passes is equal.
    """
    model.eval()
    settings = settings or InferenceSettings()
    for item, is_mine in rank_items(dataset, ranks, device, workers=workers):
        if is_mine:
            bad.update(item.bad)
        # A sharded network waits for every process, so placeholders of bad images run too.
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
        # Summed separately: the sum inside the loss is not deterministic on a GPU.
        losses = F.nll_loss(logs, part, ignore_index=ignore_index, reduction="none")
        total += float(losses.sum())
        labels.append(_as_labels(scores)[0])
    return torch.cat(labels), total
