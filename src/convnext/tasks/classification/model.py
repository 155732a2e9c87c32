"""Classifiers; the classes and preprocessing of published ones, whose files hold only tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from convnext.models.factory import create_network
from convnext.weights.checkpoint import Card
from convnext.weights.dense import DenseTables
from convnext.weights.published import find_published, preprocessing_of

TABLES: tuple[DenseTables, ...] = ()
# Timm's names for the classes of published weights, by their number.
SUBSETS = {1000: "imagenet-1k", 21841: "imagenet-22k"}


def build(name: str, **changes: Any) -> nn.Module:
    """Build a classifier by name."""
    return create_network(name, **changes)


def published_card(source: str, name: str, changes: Mapping[str, Any]) -> Card:
    """Return a card for a file without one, from its source and tensor shapes."""
    num_classes = int(changes.get("num_classes", 1000))
    return Card(
        task="classify",
        model=name,
        changes=changes,
        classes=imagenet_classes(num_classes),
        preprocessing=preprocessing_of(find_published(source), int(changes.get("in_chans", 3))),
    )


def imagenet_classes(num_classes: int) -> tuple[str, ...]:
    """Return the class names of ImageNet-1K or -22K, or numbers for other counts."""
    if num_classes not in SUBSETS:
        return tuple(str(c) for c in range(num_classes))
    from timm.data import ImageNetInfo

    info = ImageNetInfo(SUBSETS[num_classes])
    return tuple(info.index_to_description(c) for c in range(num_classes))


def imagenet_synsets(num_classes: int) -> dict[str, int]:
    """Return the index of each WordNet id among the classes of ImageNet-1K or -22K."""
    if num_classes not in SUBSETS:
        return {}
    from timm.data import ImageNetInfo

    info = ImageNetInfo(SUBSETS[num_classes])
    return {info.index_to_label_name(c): c for c in range(num_classes)}
