"""A trained network that is open: what evaluation, prediction and export begin with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from convnext.hardware.devices import pick_device
from convnext.tasks.trained import open_model
from convnext.weights.checkpoint import Card


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A network in evaluation mode, and what it needs to be used."""

    source: str
    """Where it came from, for messages."""
    model: nn.Module
    card: Card
    device: torch.device
    is_shared: bool = False
    """Whether others hold the network too: it must then stay as it is."""


def opened(source: str | Opened, device: str = "auto") -> Opened:
    """Open a run, a checkpoint or published weights; what is open already is returned.

    Raises:
        ValueError: If it cannot be found or read.
    """
    if isinstance(source, Opened):
        return source
    where = pick_device(device)
    model, card = open_model(source, where)
    return Opened(source=source, model=model, card=card, device=where)
