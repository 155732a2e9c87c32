"""Open any trained network: a run, our checkpoint, a file in a published layout, or a hub id.

The result is data, a checked card and tensors: the tasks build the network from it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from convnext.hardware.devices import AMP_DTYPES, check_precision
from convnext.weights.checkpoint import FORMAT, Card, find_checkpoint, is_exported, setting_of
from convnext.weights.files import read_header
from convnext.weights.published import find_published
from convnext.weights.sources import read_source


def open_weights(source: str) -> tuple[Card | None, Mapping[str, Tensor]]:
    """Read a run, a checkpoint, a file of weights or a hub id.

    Returns:
        The card, or None for weights in a published layout; and the weights on the CPU.

    Raises:
        ValueError: If the source cannot be found or read.
    """
    path = find_checkpoint(source)
    tensors, metadata = read_source(path or source)
    card = None
    if metadata.get("format") == FORMAT:
        card = Card.from_metadata(metadata, where=str(path or source))
    return card, tensors


def card_or_none(source: str) -> Card | None:
    """Return the card of a run or a checkpoint, without reading the weights; None without a card.

    Raises:
        ValueError: If the file is damaged.
    """
    path = None if is_exported(source) else find_checkpoint(source)
    header = None if path is None else read_header(path)
    if header is None or header[1].get("format") != FORMAT:
        return None
    return Card.from_metadata(header[1], where=str(path))


def names_of(source: str) -> list[str]:
    """Return the tensor names of a file, a run or a hub id; an empty list if it is not local.

    Nothing is downloaded for published weights.

    Raises:
        ValueError: If the source cannot be found or read.
    """
    path = find_checkpoint(source)
    if path is None and find_published(source) is not None:
        return []
    header = None if path is None else read_header(path)
    return list(read_source(path or source)[0]) if header is None else header[0]


def pick_precision(precision: str, card: Card, device: torch.device) -> str:
    """Return the requested precision, or for `auto` the precision of training.

    Raises:
        ValueError: As `check_precision`, or if the card has no known precision.
    """
    if precision != "auto":
        check_precision(precision, device)
        return precision
    trained = setting_of(card.recipe, "run.precision", str) or "fp32"
    if trained not in ("fp32", *AMP_DTYPES):
        raise ValueError(f"the model card has the unknown precision {trained!r}; give --precision")
    return trained if trained != "fp16" or device.type == "cuda" else "fp32"
