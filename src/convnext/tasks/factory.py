"""`create_model`, which builds any network by name, and the list of `convnext models`.

A name is a member of the family, a step of the roadmap, a timm model, or one of these after the
prefix of a dense network, such as `upernet_convnext_tiny`, which a task builds. The list has the
networks, their cost, and their published weights; it is made without importing torch.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from rich.console import Console
from rich.table import Table

from convnext.models.factory import create_network, list_networks, network_configs
from convnext.names import nearest
from convnext.tasks import DEFAULT, task_module, task_names
from convnext.weights.published import (
    PUBLISHED_DENSE,
    PublishedDense,
    published,
    published_dense,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convnext.weights.checkpoint import Card
    from convnext.weights.dense import DenseTables


COSTS = Path(__file__).with_name("costs.csv")
"""Costs of the networks of `list_models`; a slow test counts them again."""


class PublishedNetworks(Protocol):
    """The interface of a task's module `model`: its networks in their published form."""

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
    from convnext.weights.dense import infer_model as infer_classifier

    kind = dense_kind(names=state_dict)
    return infer_classifier(state_dict) if kind is None else kind.tables.infer(state_dict)


def dense_prefix(name: str) -> str | None:
    """Return the prefix of a dense network's name, or None for a classifier."""
    return next((prefix for prefix in _prefixes() if name.startswith(prefix)), None)


def input_size_of(name: str) -> tuple[int, int]:
    """Return the height and width for which a network's cost and speed are published."""
    kind = dense_kind(name)
    return (224, 224) if kind is None else kind.tables.input_size


def task_of_name(name: str) -> str:
    """Return the task of a network by its name."""
    return _prefixes().get(dense_prefix(name) or "", DEFAULT)


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
def _prefixes() -> dict[str, str]:
    """Return the task of each prefix of dense networks."""
    return {
        prefix: task
        for task in task_names()
        for prefix in getattr(task_module(task, "recipe"), "PREFIXES", ())
    }


@cache
def _kinds() -> tuple[DenseKind, ...]:
    return tuple(
        DenseKind(task, tables, _published(task))
        for task in task_names()
        for tables in _published(task).TABLES
    )


def _published(task: str) -> PublishedNetworks:
    return cast(PublishedNetworks, task_module(task, "model"))


# Counting a timm model means building it, which is too slow for a pattern that matches hundreds.
MAX_COUNTED = 40


@dataclass(frozen=True, kw_only=True)
class CatalogueRow:
    """A network, or a network with one of its published weights."""

    model: str
    params: int | None
    macs: int | None
    """MACs for one image of `input_size`."""
    input_size: int
    weights: str = ""
    """The tag that `create_model(model, weights=...)` takes."""
    hub_id: str = ""
    source: str = ""
    license: str = ""
    top1: float | None = None
    """ImageNet-1K top-1 in percent, as published."""
    num_classes: int = 1000
    url: str = ""
    """Source of the file, if it is not on a hub."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Published scores of a dense network on ADE20K or COCO, in percent."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def catalogue(pattern: str) -> list[CatalogueRow]:
    """Return the networks that match a shell pattern, one row for each of their weights.

    Dense networks with published weights follow their backbones. Costs come from `costs.csv`, and
    those of other networks, such as timm models, are counted here.

    Raises:
        ValueError: If none matches.
    """
    names = list_models(pattern)
    if not names:
        raise ValueError(f"no model matches {pattern!r}{nearest(pattern, list_models())}")
    counted = not pattern.startswith("timm/") or len(names) <= MAX_COUNTED
    rows = []
    for name in names:
        dense = published_dense(name)
        entries = published(name)
        height, _, num_classes = _usual(name)
        default = (height, num_classes)
        kinds = {(entry.input_size, entry.num_classes) for entry in entries} or {default}
        counts = {kind: _count(name, *kind) if counted else (None, None) for kind in kinds}
        if dense:
            rows += [_dense_row(entry, *counts[default]) for entry in dense]
        elif not entries:
            params, macs = counts[default]
            size, num_classes = default
            rows.append(
                CatalogueRow(
                    model=name, params=params, macs=macs, input_size=size, num_classes=num_classes
                )
            )
        for entry in entries:
            params, macs = counts[entry.input_size, entry.num_classes]
            rows.append(
                CatalogueRow(
                    model=name,
                    params=params,
                    macs=macs,
                    input_size=entry.input_size,
                    weights=entry.tag,
                    hub_id=entry.hub_id,
                    source=entry.source,
                    license=entry.license,
                    top1=entry.top1,
                    num_classes=entry.num_classes,
                )
            )
    if dense_prefix(pattern) is None:
        rows += [
            _dense_row(entry, *_count(entry.model, entry.input_size, entry.num_classes))
            for entry in PUBLISHED_DENSE
            if entry.model.removeprefix(dense_prefix(entry.model) or "") in names
        ]
    return rows


def _dense_row(
    entry: PublishedDense, params: int | None = None, macs: int | None = None
) -> CatalogueRow:
    return CatalogueRow(
        model=entry.model,
        params=params,
        macs=macs,
        input_size=entry.input_size,
        weights=entry.tag,
        source=entry.source,
        license=entry.license,
        num_classes=entry.num_classes,
        url=entry.url,
        scores=entry.scores,
    )


def print_catalogue(rows: list[CatalogueRow], console: Console) -> None:
    """Print the rows; the paper's accuracies are marked as published, not measured here."""
    table = Table(box=None, header_style="bold")
    for name in ("model", "weights"):
        table.add_column(name, no_wrap=True)
    for name in ("published", "size", "params", "MACs"):
        table.add_column(name, justify="right")
    table.add_column("classes", justify="right")
    table.add_column("license")
    table.add_column("source", overflow="fold", style="dim")
    last = ""
    for row in rows:
        table.add_row(
            row.model if row.model != last else "",
            row.weights or "-",
            _shown_scores(row),
            f"{row.input_size}",
            f"{row.params / 1e6:.1f} M" if row.params else "-",
            f"{row.macs / 1e9:.2f} G" if row.macs else "-",
            f"{row.num_classes:,}",
            row.license or "-",
            row.source,
        )
        last = row.model
    console.print(table)
    if any(row.top1 is not None or row.scores for row in rows):
        console.print(
            "published: top-1 on ImageNet-1K, mIoU on ADE20K (multi-scale and single-scale), or "
            "box and mask AP on COCO, in percent; params and MACs: counted here"
        )


def _shown_scores(row: CatalogueRow) -> str:
    if row.scores:
        return " / ".join(f"{score:.1f}" for score in row.scores.values())
    return f"{row.top1:.1f}" if row.top1 is not None else "-"


def _count(name: str, size: int, num_classes: int) -> tuple[int | None, int | None]:
    height, width = (size, size) if dense_prefix(name) is None else _usual(name)[:2]
    known = _known_costs().get(name, {}).get((height, width, num_classes))
    return known or count_cost(name, (height, width), num_classes)


def _usual(name: str) -> tuple[int, int, int]:
    """Return the height, width and number of classes for which a network is published.

    Those of dense networks are the classes of ADE20K or COCO.
    """
    if dense_prefix(name) is None:
        return 224, 224, 1000
    if name in _known_costs():
        return next(iter(_known_costs()[name]))
    kind = dense_kind(name)
    assert kind is not None
    return *kind.tables.input_size, int(kind.tables.defaults["num_classes"])


@cache
def _known_costs() -> dict[str, dict[tuple[int, int, int], tuple[int, int]]]:
    """Return parameters and MACs by name, then by height, width and number of classes."""
    found: dict[str, dict[tuple[int, int, int], tuple[int, int]]] = {}
    with COSTS.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = int(row["height"]), int(row["width"]), int(row["num_classes"])
            found.setdefault(row["model"], {})[key] = int(row["params"]), int(row["macs"])
    return found


def count_cost(name: str, size: tuple[int, int], num_classes: int) -> tuple[int | None, int | None]:
    """Return the parameters and MACs of a network, which is built for it.

    The MACs of a timm model that does not take this size are None.
    """
    import torch

    from convnext.models.flops import cost

    with torch.device("meta"):
        model = create_model(name, num_classes=num_classes)
    try:
        counted = cost(model, size)
    except (AssertionError, RuntimeError):  # A timm model with a fixed input size.
        return sum(p.numel() for p in model.parameters()), None
    return counted.params, counted.macs
