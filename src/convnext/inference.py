"""Open any trained network: a run, our checkpoint, a file in a published layout, or a hub id."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from convnext.checkpoint import FORMAT, Card, find_checkpoint
from convnext.family import create_model
from convnext.preprocess import Preprocessing
from convnext.recipe import IMAGENET_MEAN, IMAGENET_STD

# The classes of published weights, by their number, as timm knows them.
SUBSETS = {1000: "imagenet-1k", 21841: "imagenet-22k"}


def open_model(source: str, device: torch.device) -> tuple[nn.Module, Card]:
    """Return a network in evaluation mode on `device`, and its card.

    Weights of a published layout have no card of their own: their network follows from the shapes,
    their classes are ImageNet's where the count fits, their preprocessing is the published one.

    Raises:
        ValueError: If the source cannot be found or read.
    """
    from convnext.weights import infer_model, load_weights, read_source

    path = find_checkpoint(source)
    weights, metadata = read_source(path or source)
    if metadata.get("format") == FORMAT:
        card = Card.from_metadata(metadata, where=str(path or source))
        model = card.build()
        model.load_state_dict(weights)
    else:
        name, changes = infer_model(weights)
        model = create_model(name, **changes)
        load_weights(model, weights)
        card = _published_card(source, name, changes, weights)
    model = model.to(device).to(memory_format=torch.channels_last)
    return model.eval(), card


def pick_precision(precision: str, card: Card, device: torch.device) -> str:
    """Return the precision to run in: the one asked for, or for `auto` the one of training."""
    if precision != "auto":
        return precision
    trained = str(card.recipe.get("run", {}).get("precision", "fp32"))
    return trained if trained != "fp16" or device.type == "cuda" else "fp32"


def _published_card(source: str, name: str, changes: dict[str, Any], weights: Any) -> Card:
    from convnext.weights.published import find_published

    published = find_published(source)
    num_classes = int(changes.get("num_classes", 1000))
    size = published.input_size if published else 224
    return Card(
        model=name,
        changes=changes,
        classes=imagenet_classes(num_classes),
        preprocessing=Preprocessing(
            image_size=size,
            crop_pct=published.crop_pct if published else 0.875,
            interpolation="bicubic",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            in_chans=int(changes.get("in_chans", 3)),
        ),
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
