"""Trained networks ready for use: the task of a source, its card, and the network itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import Tensor, nn

from convnext.deploy.fast import Fast
from convnext.deploy.runtimes import open_exported
from convnext.hardware.devices import pick_device
from convnext.progress import notes
from convnext.tasks import DEFAULT, task_class
from convnext.tasks.factory import create_model, dense_kind, infer_model, published_of
from convnext.weights.checkpoint import FORMAT, Card, find_checkpoint
from convnext.weights.files import read_file
from convnext.weights.load import load_weights
from convnext.weights.open import card_or_none, is_exported, names_of, open_weights
from convnext.weights.published import (
    find_published,
    find_published_dense,
    preprocessing_of,
    preprocessing_of_timm,
)
from convnext.weights.sources import read_source


def open_model(source: str, device: torch.device) -> tuple[nn.Module, Card]:
    """Return a network in evaluation mode on `device`, and its card; an exported file likewise.

    Weights of a published layout have no card of their own: their network follows from the shapes,
    their classes are ImageNet's (a segmentor's ADE20K's, a detector's COCO's) where the count
    fits, their preprocessing is the published one.

    Raises:
        ValueError: If the source cannot be found or read.
    """
    if is_exported(source):
        if device.type != "cpu":
            raise ValueError(f"{source} runs on the CPU: --device cpu")
        exported = open_exported(source)
        return task_class(exported.card.task).open_exported(exported)
    opened = open_weights(source)
    assert opened.tensors is not None
    card = opened.card
    if card is not None:
        model = _built(card, opened.tensors)
    else:
        name, changes = infer_model(opened.tensors)
        model = create_model(name, **changes)
        load_weights(model, opened.tensors)
        card = published_of(name).published_card(source, name, changes)
    del opened
    return keep_channels_last(model.to(device)).eval(), card


def keep_channels_last(model: nn.Module) -> nn.Module:
    """Put convolutions into channels_last in place, except those that are in it already.

    `Module.to` copies the pointwise ones too, most of the weights, for other strides of the same
    bytes: a file's pages would stay mapped beside the copies.
    """
    for p in model.parameters():
        if p.dim() == 4 and not p.is_contiguous(memory_format=torch.channels_last):
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return model


def _built(card: Card, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return the network of a card with its weights; one of the family draws no others before.

    Networks of timm and dense ones compute more than their state when they are built.
    """
    if dense_kind(card.model) is not None or card.model.startswith("timm/"):
        model = build(card)
        model.load_state_dict(weights)
        return model
    with torch.device("meta"):
        model = build(card)
    whole = {n: t.float() if t.is_floating_point() else t for n, t in weights.items()}
    model.load_state_dict(whole, assign=True)
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    return model


def build(card: Card) -> nn.Module:
    """Build the network of a card, with random weights."""
    return create_model(card.model, **card.changes)


def task_of(source: str) -> str:
    """Return what a run, a checkpoint or a file of weights was trained for, such as "segment".

    Raises:
        ValueError: If the source cannot be found or read.
    """
    if is_exported(source):
        return open_exported(source).metadata.get("task", DEFAULT)
    card = card_or_none(source)
    if card is not None:
        return card.task or DEFAULT
    kind = dense_kind(names=names_of(source))
    return DEFAULT if kind is None else kind.task


def card_of(source: str, model: str) -> Card | None:
    """Return what is known of weights before they are loaded.

    None for a bare file of a classifier, whose network the user names, and for a hub id.
    """
    path = find_checkpoint(source)
    if path is not None and path.suffix == ".safetensors":
        _, metadata = read_file(path)
        if metadata.get("format") == FORMAT:
            return Card.from_metadata(metadata, where=str(path))
    if path is not None and task_of(source) != DEFAULT:
        tensors, _ = read_source(path)
        try:
            name, changes = infer_model(tensors)
        except ValueError:  # A backbone that is not ours.
            return None
        return published_of(name).published_card(source, name, changes)
    if path is None and (dense := find_published_dense(source, model)) is not None:
        return published_of(dense.model).published_card(dense.filename, dense.model, {})
    entry = find_published(source, model)
    if entry is None and not model.startswith("timm/"):
        return None
    kind = dense_kind(model)
    return Card(
        task=DEFAULT if kind is None else kind.task,
        model=model,
        changes={},
        classes=(),
        preprocessing=preprocessing_of(entry) if entry else preprocessing_of_timm(model),
    )


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
    is_best: bool = True
    """Whether these are the weights that the source stands for; not for a run's last step."""

    def fast(
        self, *, precision: str, num_images: int, enabled: bool, console: Console | None
    ) -> Fast:
        """Return the network in a form that speeds up while it works through `num_images`."""
        return Fast(
            self.model.eval(),
            device=self.device,
            precision=precision,
            num_images=num_images,
            enabled=enabled,
            keep=self.is_shared,
            note=notes(console),
        )


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
