"""Open any trained network: a run, our checkpoint, a file in a published layout, or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convnext.data.preprocessing import RESAMPLING, Preprocessing
from convnext.hardware.devices import check_precision
from convnext.models.family import create_model, dense_prefix
from convnext.recipes.schema import IMAGENET_MEAN, IMAGENET_STD
from convnext.weights.checkpoint import FORMAT, Card, find_checkpoint

# The classes of published weights, by their number, as timm knows them.
SUBSETS = {1000: "imagenet-1k", 21841: "imagenet-22k"}


def open_model(source: str, device: torch.device) -> tuple[nn.Module, Card]:
    """Return a network in evaluation mode on `device`, and its card; an exported file likewise.

    Weights of a published layout have no card of their own: their network follows from the shapes,
    their classes are ImageNet's (a segmentor's ADE20K's, a detector's COCO's) where the count
    fits, their preprocessing is the published one.

    Raises:
        ValueError: If the source cannot be found or read.
    """
    from convnext.deploy.runtimes import is_exported
    from convnext.weights import infer_model, load_weights, read_source

    if is_exported(source):
        if device.type != "cpu":
            raise ValueError(f"{source} runs on the CPU: --device cpu")
        from convnext.tasks.exporting import open_network

        return open_network(source)
    path = find_checkpoint(source)
    weights, metadata = read_source(path or source)
    if metadata.get("format") == FORMAT:
        card = Card.from_metadata(metadata, where=str(path or source))
        model = _built(card, weights)
    else:
        name, changes = infer_model(weights)
        model = create_model(name, **changes)
        load_weights(model, weights)
        card = _published_card(source, name, changes, weights)
    del weights
    return keep_channels_last(model.to(device)).eval(), card


def keep_channels_last(model: nn.Module) -> nn.Module:
    """Put convolutions into channels_last in place, but for those that are in it already.

    `Module.to` copies the pointwise ones too, most of the weights, for other strides of the same
    bytes: a file's pages would stay mapped beside the copies.
    """
    for p in model.parameters():
        if p.dim() == 4 and not p.is_contiguous(memory_format=torch.channels_last):
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return model


def _built(card: Card, weights: dict[str, Tensor]) -> nn.Module:
    """Return the network of a card with its weights; one of the family draws no others before.

    Networks of timm and dense ones compute more than their state when they are built.
    """
    if card.task != "classify" or card.model.startswith("timm/"):
        model = card.build()
        model.load_state_dict(weights)
        return model
    with torch.device("meta"):
        model = card.build()
    whole = {n: t.float() if t.is_floating_point() else t for n, t in weights.items()}
    model.load_state_dict(whole, assign=True)
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    return model


def card_or_none(source: str) -> Card | None:
    """Return the card of a run or a checkpoint without its network; None where it has none.

    Raises:
        ValueError: If the file is damaged.
    """
    from convnext.deploy.runtimes import is_exported
    from convnext.weights.files import read_header

    path = None if is_exported(source) else find_checkpoint(source)
    header = None if path is None else read_header(path)
    if header is None or header[1].get("format") != FORMAT:
        return None
    return Card.from_metadata(header[1], where=str(path))


def task_of(source: str) -> str:
    """Return what a run, a checkpoint or a file of weights was trained for: "classify", ...

    Raises:
        ValueError: If the source cannot be found or read.
    """
    from convnext.deploy.runtimes import is_exported, open_exported
    from convnext.weights import read_source
    from convnext.weights.files import read_header
    from convnext.weights.published import find_published

    if is_exported(source):
        return open_exported(source).metadata.get("task", "classify")
    path = find_checkpoint(source)
    if path is None and find_published(source) is not None:
        return "classify"  # Known without a download.
    header = None if path is None else read_header(path)
    if header is None:
        tensors, metadata = read_source(path or source)
        header = list(tensors), metadata
    names, metadata = header
    if metadata.get("format") == FORMAT:
        return metadata.get("task", "classify")
    marks = {"decode_head.": "segment", "rpn_head.": "detect"}
    found = (task for mark, task in marks.items() if any(mark in name for name in names))
    return next(found, "classify")


def card_of(source: str, model: str) -> Card | None:
    """Return what is known of weights before they are loaded.

    None for a bare file of a classifier, whose network the user names, and for a hub id.
    """
    from convnext.weights.files import read_file
    from convnext.weights.published import find_published

    path = find_checkpoint(source)
    if path is not None and path.suffix == ".safetensors":
        _, metadata = read_file(path)
        if metadata.get("format") == FORMAT:
            return Card.from_metadata(metadata, where=str(path))
    if path is not None and task_of(source) != "classify":
        return _card_of_dense(source, path)
    published = find_published(source, model)
    if published is None and not model.startswith("timm/"):
        return None
    return Card(
        model=model,
        changes={},
        classes=(),
        preprocessing=_published_preprocessing(published) if published else _of_peer(model),
    )


def _card_of_dense(source: str, path: Path) -> Card | None:
    """Return the card of a segmentor's or detector's bare file; None for a backbone not of ours."""
    from convnext.weights import infer_model, read_source

    weights, _ = read_source(path)
    try:
        return _published_card(source, *infer_model(weights), weights)
    except ValueError:
        return None


def _of_peer(model: str) -> Preprocessing:
    """Return the preprocessing of timm's default weights for one of its networks."""
    from timm.models import get_pretrained_cfg

    name, _, tag = model.removeprefix("timm/").partition(".")
    known = get_pretrained_cfg(f"{name}.{tag}" if tag else name)
    if known is None:
        return _published_preprocessing(None)
    interpolation: Any = known.interpolation if known.interpolation in RESAMPLING else "bicubic"
    return Preprocessing(
        image_size=known.input_size[-1],
        crop_pct=known.crop_pct,
        interpolation=interpolation,
        mean=tuple(known.mean),
        std=tuple(known.std),
    )


def _published_preprocessing(published: Any, in_chans: int = 3) -> Preprocessing:
    return Preprocessing(
        image_size=published.input_size if published else 224,
        crop_pct=published.crop_pct if published else 0.875,
        interpolation=published.interpolation if published else "bicubic",
        in_chans=in_chans,
        mean=_per_channel(published.mean if published else IMAGENET_MEAN, in_chans),
        std=_per_channel(published.std if published else IMAGENET_STD, in_chans),
    )


def _per_channel(values: tuple[float, ...], in_chans: int) -> tuple[float, ...]:
    """Return a value per channel: one channel of grey has the mean of the colours."""
    return values if in_chans == len(values) else (sum(values) / len(values),) * in_chans


def pick_precision(precision: str, card: Card, device: torch.device) -> str:
    """Return the precision to run in: the one asked for, or for `auto` the one of training."""
    if precision != "auto":
        check_precision(precision, device)
        return precision
    trained = str(card.recipe.get("run", {}).get("precision", "fp32"))
    return trained if trained != "fp16" or device.type == "cuda" else "fp32"


def _published_card(source: str, name: str, changes: dict[str, Any], weights: Any) -> Card:
    from convnext.weights.published import find_published

    prefix = dense_prefix(name)
    if prefix == "upernet_":
        from convnext.tasks.segmentation import published as segmentor

        return segmentor.published_card(source, name, changes)
    if prefix:
        from convnext.tasks.detection import published as detector

        return detector.published_card(name, changes)
    published = find_published(source)
    num_classes = int(changes.get("num_classes", 1000))
    return Card(
        model=name,
        changes=changes,
        classes=imagenet_classes(num_classes),
        preprocessing=_published_preprocessing(published, int(changes.get("in_chans", 3))),
    )


def imagenet_classes(num_classes: int) -> tuple[str, ...]:
    """Return the names of ImageNet-1K or -22K, or numbers where the count is another one."""
    if num_classes not in SUBSETS:
        return tuple(str(c) for c in range(num_classes))
    from timm.data import ImageNetInfo

    info = ImageNetInfo(SUBSETS[num_classes])
    return tuple(info.index_to_description(c) for c in range(num_classes))


def imagenet_synsets(num_classes: int) -> dict[str, int]:
    """Return the position of each WordNet id among the classes of ImageNet-1K or -22K."""
    if num_classes not in SUBSETS:
        return {}
    from timm.data import ImageNetInfo

    info = ImageNetInfo(SUBSETS[num_classes])
    return {info.index_to_label_name(c): c for c in range(num_classes)}
