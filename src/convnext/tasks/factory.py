"""`create_model`, the one way to any network by name, and `list_models`.

A name is a member of the family, a rung of the roadmap, a network of timm, or one of these behind
the prefix of a dense network, such as `upernet_convnext_tiny`, which a task builds.
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
from convnext.weights.infer import infer_model as infer_classifier

if TYPE_CHECKING:
    from torch import nn

    from convnext.weights.checkpoint import Card
    from convnext.weights.dense import DenseTables


class PublishedNetworks(Protocol):
    """What the module `published` of a task has: its networks, as others have published them."""

    TABLES: tuple[DenseTables, ...]
    """Of each kind of its dense networks; none for classifiers."""

    def build(self, name: str, **changes: Any) -> nn.Module:
        """Build a network of the task."""
        ...

    def published_card(self, source: str, name: str, changes: Mapping[str, Any]) -> Card:
        """Return the card of a file without one, by its address and what its shapes tell."""
        ...


@dataclass(frozen=True)
class DenseKind:
    """One kind of dense networks, and the task that it belongs to."""

    task: str
    tables: DenseTables
    networks: PublishedNetworks


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern: the family, then the rungs.

    The hundreds of networks of timm are listed only for a pattern that begins with `timm/`, and
    those of a dense task only for one that begins with its prefix, such as `mask_rcnn_*`. Dense
    networks on backbones of timm are not listed: only building one tells whether it has a pyramid.
    """
    if (prefix := dense_prefix(pattern)) is not None:
        inner = pattern.removeprefix(prefix)
        pyramidal = [name for name, config in network_configs().items() if len(config.depths) > 1]
        return [f"{prefix}{name}" for name in pyramidal if fnmatchcase(name, inner)]
    return list_networks(pattern)


def create_model(name: str, *, weights: str | None = None, **changes: Any) -> nn.Module:
    """Build a model by name. The configuration alone determines the architecture.

    Args:
        name: A name of `list_models()`, `timm/<name>`, or one of these behind `upernet_`,
            `mask_rcnn_` or `cascade_mask_rcnn_` for a dense network on that backbone.
        weights: A tag of `convnext models` ("fb_in1k", ...), a path, or a hub id; None draws
            random weights. Nothing is downloaded without saying so.
        **changes: Fields of `NetworkConfig` that differ from the named network, such as
            `num_classes`, `in_chans`, `stem_stride` or `drop_path_rate`. For a network of timm:
            those of them that it understands, and its own arguments. For a dense network: fields
            of `UPerNetConfig` or `DetectorConfig`, and those of the backbone.

    Returns:
        A module from images (N, in_chans, H, W) to logits (N, num_classes), or of a segmentor
        (N, num_classes, H, W), or from a list of images (in_chans, H, W) to as many detections; in
        training mode.

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

    It is a member of the family or the ResNet that a roadmap begins with, if need be with other
    `depths` and `dims`, or a dense network on one. Files in any layout are understood.

    Raises:
        ValueError: If the tensors are not those of such a network.
    """
    kind = dense_kind(names=state_dict)
    return infer_classifier(state_dict) if kind is None else kind.tables.infer(state_dict)


def dense_prefix(name: str) -> str | None:
    """Return the prefix of the name of a dense network, or None for a classifier's."""
    kind = dense_kind(name)
    return None if kind is None else kind.tables.prefix


def input_size_of(name: str) -> tuple[int, int]:
    """Return the height and width for which the cost and speed of a network are published."""
    kind = dense_kind(name)
    return (224, 224) if kind is None else kind.tables.input_size


def task_of_name(name: str) -> str:
    """Return the task of a network by its name."""
    kind = dense_kind(name)
    return DEFAULT if kind is None else kind.task


def dense_kind(name: str = "", *, names: Iterable[str] = ()) -> DenseKind | None:
    """Return the kind of a dense network, by its name or those of its tensors, or None."""
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
    """Return what a task knows of published networks, by the name of one."""
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
