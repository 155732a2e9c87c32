"""`create_model`, which builds any network by name, and `list_models`.

A name is a member of the family, a step of the roadmap, a timm model, or one of these after the
prefix of a dense network, such as `upernet_convnext_tiny`, which a task builds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, cast

from torch import Tensor

from convnext.models.factory import create_network, list_networks, network_configs
from convnext.tasks import DEFAULT, task_module, task_names
from convnext.weights.dense import infer_model as infer_classifier

if TYPE_CHECKING:
    from torch import nn

    from convnext.weights.checkpoint import Card
    from convnext.weights.dense import DenseTables


class PublishedNetworks(Protocol):
    """The interface of a task's module `published`: its networks in their published form."""

    TABLES: tuple[DenseTables, ...]
    """One table for each kind of its dense networks; none for classifiers."""

    def build(self, name: str, **changes: Any) -> nn.Module:
        """Build a network of the task."""
        ...

    def published_card(self, source: str, name: str, changes: Mapping[str, Any]) -> Card:
        """Return a card for a file without one, from its source and tensor shapes."""
        ...


@dataclass(frozen=True)
class DenseKind:
    """A kind of dense network, and its task."""

    task: str
    tables: DenseTables
    networks: PublishedNetworks


def list_models(pattern: str = "*") -> list[str]:
    """Return the model names that match a shell pattern: the family, then the roadmap steps.

    Timm models are listed only for a pattern that starts with `timm/`, and dense networks only for
    one that starts with their prefix, such as `mask_rcnn_*`. Dense networks on timm backbones are
    not listed, because only building one shows whether it has a pyramid.
    """
    if (prefix := dense_prefix(pattern)) is not None:
        inner = pattern.removeprefix(prefix)
        pyramidal = [name for name, config in network_configs().items() if len(config.depths) > 1]
        return [f"{prefix}{name}" for name in pyramidal if fnmatchcase(name, inner)]
    return list_networks(pattern)


def create_model(name: str, *, weights: str | None = None, **changes: Any) -> nn.Module:
    """Build a model by name. The configuration alone determines the architecture.

    Args:
        name: A name from `list_models()`, `timm/<name>`, or one of these after `upernet_`,
            `mask_rcnn_` or `cascade_mask_rcnn_` for a dense network on that backbone.
        weights: A tag from `convnext models` ("fb_in1k", ...), a path, or a hub id; None for random
            weights. Every download is announced.
        **changes: Fields of `NetworkConfig` that differ from the named network, such as
            `num_classes`, `in_chans`, `stem_stride` or `drop_path_rate`. For a timm model: those
            that it supports, and its own arguments. For a dense network: fields of `UPerNetConfig`
            or `DetectorConfig`, and those of the backbone.

    Returns:
        A module in training mode. It maps images (N, in_chans, H, W) to logits (N, num_classes);
        a segmentor returns logits (N, num_classes, H, W), and a detector maps a list of images
        (in_chans, H, W) to a list of detections.

    Raises:
        ValueError: If the name or a change is unknown, a value is invalid, or the weights do not
            fit the network.
    """
    kind = dense_kind(name)
    model = (
        create_network(name, **changes) if kind is None else kind.networks.build(name, **changes)
    )
    if weights is not None:
        from convnext.weights.load import load_weights

        load_weights(model, weights)
    return model


def infer_model(state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Return the name and the changes with which `create_model` builds the network of a file.

    The network is a member of the family or the first ResNet of a roadmap, possibly with other
    `depths` and `dims`, or a dense network on one. The file may have any layout.

    Raises:
        ValueError: If the tensors do not belong to such a network.
    """
    kind = dense_kind(names=state_dict)
    return infer_classifier(state_dict) if kind is None else kind.tables.infer(state_dict)


def dense_prefix(name: str) -> str | None:
    """Return the prefix of a dense network's name, or None for a classifier."""
    kind = dense_kind(name)
    return None if kind is None else kind.tables.prefix


def input_size_of(name: str) -> tuple[int, int]:
    """Return the height and width for which a network's cost and speed are published."""
    kind = dense_kind(name)
    return (224, 224) if kind is None else kind.tables.input_size


def task_of_name(name: str) -> str:
    """Return the task of a network by its name."""
    kind = dense_kind(name)
    return DEFAULT if kind is None else kind.task


def dense_kind(name: str = "", *, names: Iterable[str] = ()) -> DenseKind | None:
    """Return the kind of a dense network by its name or its tensors' names, or None."""
    names = list(names)
    return next(
        (
            kind
            for kind in _kinds()
            if name.startswith(kind.tables.prefix) or kind.tables.matches(names)
        ),
        None,
    )


def published_of(name: str) -> PublishedNetworks:
    """Return the published networks of the task of a named network."""
    kind = dense_kind(name)
    return _published(DEFAULT) if kind is None else kind.networks


@cache
def _kinds() -> tuple[DenseKind, ...]:
    return tuple(
        DenseKind(task, tables, _published(task))
        for task in task_names()
        for tables in _published(task).TABLES
    )


def _published(task: str) -> PublishedNetworks:
    return cast(PublishedNetworks, task_module(task, "published"))
