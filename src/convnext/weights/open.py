"""Open any trained network: a run, our checkpoint, a file in a published layout, or a hub id.

What is found is data, a checked card and tensors, or the path of an exported file. Building the
network from it belongs to the tasks, running an exported file to `convnext.deploy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convnext.hardware.devices import check_precision
from convnext.weights.checkpoint import FORMAT, Card, find_checkpoint
from convnext.weights.files import read_header
from convnext.weights.published import find_published
from convnext.weights.sources import read_source

EXPORTED = (".onnx", ".xml", ".pt2")
"""Endings of exported files."""


@dataclass(frozen=True, kw_only=True)
class OpenedWeights:
    """What a source holds."""

    path: Path | None
    """The file; None for one of the hub, which lies in its cache."""
    card: Card | None = None
    """What the file says of itself; None for weights of a published layout and exported files."""
    tensors: Mapping[str, Tensor] | None = None
    """The weights, on the CPU; None for an exported file."""


def open_weights(source: str) -> OpenedWeights:
    """Read a run, a checkpoint, a file of weights or a hub id; an exported file is only named.

    Raises:
        ValueError: If the source cannot be found or read.
    """
    if is_exported(source):
        return OpenedWeights(path=Path(source))
    path = find_checkpoint(source)
    tensors, metadata = read_source(path or source)
    card = None
    if metadata.get("format") == FORMAT:
        card = Card.from_metadata(metadata, where=str(path or source))
    return OpenedWeights(path=path, card=card, tensors=tensors)


def is_exported(source: str | Path) -> bool:
    """Tell whether a source is an exported file, by its ending."""
    return Path(source).suffix in EXPORTED


def card_or_none(source: str) -> Card | None:
    """Return the card of a run or a checkpoint without its network; None where it has none.

    Raises:
        ValueError: If the file is damaged.
    """
    path = None if is_exported(source) else find_checkpoint(source)
    header = None if path is None else read_header(path)
    if header is None or header[1].get("format") != FORMAT:
        return None
    return Card.from_metadata(header[1], where=str(path))


def names_of(source: str) -> list[str]:
    """Return the names of the tensors of a file, a run or a hub id; none where it is not fetched.

    What is known of published weights is known without a download.

    Raises:
        ValueError: If the source cannot be found or read.
    """
    path = find_checkpoint(source)
    if path is None and find_published(source) is not None:
        return []
    header = None if path is None else read_header(path)
    return list(read_source(path or source)[0]) if header is None else header[0]


def pick_precision(precision: str, card: Card, device: torch.device) -> str:
    """Return the precision to run in: the one asked for, or for `auto` the one of training."""
    if precision != "auto":
        check_precision(precision, device)
        return precision
    trained = str(card.recipe.get("run", {}).get("precision", "fp32"))
    return trained if trained != "fp16" or device.type == "cuda" else "fp32"
