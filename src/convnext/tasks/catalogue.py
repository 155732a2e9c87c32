"""The list of `convnext models`: networks, their cost, and their published weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from convnext.models.flops import cost
from convnext.names import nearest
from convnext.tasks.factory import (
    create_model,
    dense_kind,
    dense_prefix,
    input_size_of,
    list_models,
)
from convnext.weights.published import (
    PUBLISHED_DENSE,
    PublishedDense,
    published,
    published_dense,
)

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

    Dense networks with published weights follow their backbones, without costs, which are slow to
    count.

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
        kind = dense_kind(name)
        # The published dense networks have the classes of ADE20K or COCO.
        num_classes = 1000 if kind is None else int(kind.tables.defaults["num_classes"])
        default = (input_size_of(name)[0], num_classes)
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
            _dense_row(entry)
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
    with torch.device("meta"):
        model = create_model(name, num_classes=num_classes)
    try:
        counted = cost(model, (size, size) if dense_kind(name) is None else input_size_of(name))
    except (AssertionError, RuntimeError):  # A timm model with a fixed input size.
        return sum(p.numel() for p in model.parameters()), None
    return counted.params, counted.macs
