"""What goes into the file of each task: the folded network, and what is computed around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convnext.data.tensors import normalize_batch
from convnext.deploy.export_settings import MAX_BATCH, ExportSettings
from convnext.deploy.fold import fold
from convnext.deploy.graphs import (
    Graph,
    Half,
    Labels,
    Pixels,
    Probabilities,
    WholeImage,
)
from convnext.deploy.layers import spell_out
from convnext.deploy.writers import Blueprint
from convnext.hardware.devices import AMP_DTYPES
from convnext.tasks.segmentation.any_size import LEAST_ANY, AnySizeSegmentor
from convnext.weights.checkpoint import Card

# Longest side of a segmentor's images of any size.
MOST_SIDE = 16384


def blueprint_of(model: nn.Module, card: Card, settings: ExportSettings) -> Blueprint:
    """Return the graph of a network as writers take it.

    Args:
        model: In evaluation mode, on the CPU, in fp32.
        card: Of its checkpoint.
        settings: What is in the file.

    Raises:
        ValueError: If a setting does not fit the network.
    """
    settings.check_task(card.task)
    if card.task == "detect":
        from convnext.tasks.detection.export.file import detector_blueprint

        return detector_blueprint(model, card, settings)
    batch = batch_of(settings)
    return Blueprint(
        graph=build_graph(model, card, settings),
        examples=(_example(card, settings, batch or 2, example_size(card, settings)),),
        open_dims=(_open_dims(settings, batch),),
    )


def build_graph(model: nn.Module, card: Card, settings: ExportSettings) -> Graph:
    """Return a classifier or a segmentor with what goes into the file around it, folded."""
    pre = card.preprocessing
    assert settings.inside != "full" or card.task == "classify"
    if settings.inside == "none":
        folded = fold(model, form="conv")
    else:
        scaled = ([255 * v for v in values] for values in (pre.mean, pre.std))
        mean, std = scaled
        folded = fold(model, mean=mean, std=std, form="conv")
    is_half = settings.precision in AMP_DTYPES
    if settings.size == "any":
        folded = AnySizeSegmentor(folded, contiguous=is_half)
    # Casting what a layer norm has moved depends on strides, which torch's exporter must not know.
    if settings.format == "openvino" or (settings.size == "any" and is_half):
        folded = spell_out(folded, two_passes=settings.precision != "int8")
    if settings.format != "openvino" and is_half:
        folded = Half(folded, AMP_DTYPES[settings.precision])
    prepare: nn.Module = {"none": nn.Identity(), "normalize": Pixels()}.get(
        settings.inside
    ) or WholeImage(pre)
    finish: nn.Module = nn.Identity()
    if settings.answers:
        finish = Probabilities() if card.task == "classify" else Labels()
    return Graph(prepare, folded, finish).eval()


def facts_of(model: nn.Module, card: Card, settings: ExportSettings) -> dict[str, Any]:
    """Return what a file says of its graph."""
    is_open = settings.inside == "full" or settings.size == "any"
    facts: dict[str, Any] = {
        "inside": settings.inside,
        "batch": 1 if card.task == "detect" else batch_of(settings),
        "size": None if is_open else list(example_size(card, settings)),
        "precision": settings.precision,
    }
    if card.task == "detect":
        from convnext.tasks.detection.export import file as detector_file

        return facts | detector_file.facts_of(model, settings) | {"canvas": settings.size}
    if not settings.answers:
        return facts | {"output": "logits"}
    return facts | {"output": "probabilities" if card.task == "classify" else "labels"}


def batch_of(settings: ExportSettings) -> int | None:
    """Return how many images a classifier or a segmentor is given at a time; None for any."""
    return 1 if settings.inside == "full" else settings.batch


def example_size(card: Card, settings: ExportSettings) -> tuple[int, int]:
    """Return the height and width of the images that a file takes, or one size of all."""
    if isinstance(settings.size, tuple):
        return settings.size
    assert card.task != "detect"  # Its size follows from images.
    if card.task == "classify":
        side = int(card.preprocessing.image_size)
        return side, side
    crop = card.recipe.get("segment", {}).get("crop")
    side = int(crop or card.preprocessing.image_size or 512)
    # No side is a special case: neither equal nor a multiple of a stride.
    return (side + 37, side + 91) if settings.size == "any" else (side, side)


def given(pixels: Tensor, card: Card, settings: ExportSettings) -> Tensor:
    """Return pixels, uint8 (N, C, H, W), as the graph takes them."""
    if settings.inside == "none":
        normalized: Tensor = normalize_batch(card.preprocessing, pixels)
        return normalized
    return pixels.permute(0, 2, 3, 1).contiguous()


def _example(card: Card, settings: ExportSettings, num: int, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    chans, (height, width) = int(card.preprocessing.in_chans), size
    if settings.inside == "none":
        return torch.randn(num, chans, height, width, generator=generator)
    if settings.inside == "full":  # No side is a special case: neither equal nor the target's.
        height, width = height + 37, width + 91
    return torch.randint(
        0, 256, (num, height, width, chans), generator=generator, dtype=torch.uint8
    )


def _open_dims(settings: ExportSettings, batch: int | None) -> dict[int, Any]:
    """Return the dimensions of the images that stay open."""
    dims: dict[int, Any] = {}
    if batch is None:
        dims[0] = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    if settings.inside == "full" or settings.size == "any":
        least, most = (8, 32768) if settings.inside == "full" else (LEAST_ANY, MOST_SIDE)
        first = 2 if settings.inside == "none" else 1
        for i, name in enumerate(("height", "width")):
            dims[first + i] = torch.export.Dim(name, min=least, max=most)
    return dims
