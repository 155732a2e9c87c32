"""Opening of trained networks: the task of a source, its card, and the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import Tensor, nn

from convnext.deploy.fast import Fast
from convnext.deploy.runtimes import Exported, open_exported
from convnext.hardware.devices import AMP_DTYPES, check_precision, pick_device
from convnext.models.given import check_class, provided_network
from convnext.progress import notes
from convnext.recipes.schema import Speedup
from convnext.tasks import DEFAULT, task_class
from convnext.tasks.factory import create_model, dense_kind, infer_model, published_of
from convnext.weights.checkpoint import Card, find_checkpoint, is_exported, setting_of
from convnext.weights.load import load_weights
from convnext.weights.published import (
    find_published,
    find_published_dense,
    preprocessing_of,
    preprocessing_of_timm,
)
from convnext.weights.sources import card_or_none, names_of, open_weights, read_source


def open_model(source: str, device: torch.device) -> tuple[nn.Module, Card]:
    """Return a network or an exported file in evaluation mode on `device`, and its card.

    Weights in a published layout have no card. Their network is inferred from the shapes; their
    classes are ImageNet's, ADE20K's or COCO's if the number fits; their preprocessing is the
    published one.

    Raises:
        ValueError: If the source cannot be found or read.
    """
    if is_exported(source):
        if device.type != "cpu":
            raise ValueError(f"{source} runs only on the CPU: use --device cpu")
        file = opened_file(open_exported(source))
        return file.model, file.card
    card, tensors = open_weights(source)
    if card is not None:
        _check_task(card, source)
        try:
            model = _built(card, tensors)
        except (RuntimeError, TypeError) as error:  # Shapes or arguments that the model rejects.
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{source}: its weights do not fit its model card ({reason})"
            ) from error
    else:
        name, changes = infer_model(tensors)
        model = create_model(name, **changes)
        load_weights(model, tensors)
        card = published_of(name).published_card(source, name, changes)
    del tensors
    return keep_channels_last(model.to(device)).eval(), card


def keep_channels_last(model: nn.Module) -> nn.Module:
    """Convert convolutions to channels_last in place, except those that already have it.

    `Module.to` would also copy pointwise weights, which are most of the weights, only to change
    their strides: the mapped pages of a file would stay in memory next to the copies.
    """
    for p in model.parameters():
        if p.dim() == 4 and not p.is_contiguous(memory_format=torch.channels_last):
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return model


def _built(card: Card, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return the network of a card with its weights.

    The family's networks skip random initialization. Timm models and dense networks cannot, since
    their constructors compute more than the state.
    """
    _check_depth(card, weights)
    if dense_kind(card.model) is not None or card.model.startswith("timm/"):
        _check_shapes(card, weights)
        model = build(card)
        model.load_state_dict(weights)
        return model
    with torch.device("meta"):
        model = build(card)
    whole = {n: t.float() if t.is_floating_point() else t for n, t in weights.items()}
    model.load_state_dict(whole, assign=True)
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    return model


def _check_task(card: Card, source: str) -> None:
    """Check that the task of a card is that of its network.

    Raises:
        ValueError: If it is not.
    """
    kind = dense_kind(card.model)
    own = DEFAULT if kind is None else kind.task
    if (card.task or DEFAULT) != own:
        raise ValueError(
            f"{source} has damaged metadata: its task is {card.task!r}, but {card.model} is for "
            f"the task {own}"
        )


def _check_depth(card: Card, weights: Mapping[str, Tensor]) -> None:
    """Refuse a card with more blocks than there are tensors, before millions are built.

    Raises:
        RuntimeError: If it has.
    """
    for name in ("depth", "depths", "layers"):
        value = card.changes.get(name, 0)
        counts = value if isinstance(value, list | tuple) else [value]
        if sum(count for count in counts if isinstance(count, int)) > len(weights):
            raise RuntimeError(f"{name}={value!r:.60} are more blocks than there are tensors")


def _check_shapes(card: Card, weights: Mapping[str, Tensor]) -> None:
    """Compare the shapes of weights with a network that takes no memory.

    A card from anywhere may ask for a network of terabytes.

    Raises:
        RuntimeError: If they differ.
    """
    try:
        with torch.device("meta"):
            expected = {name: t.shape for name, t in build(card).state_dict().items()}
    except NotImplementedError:  # Some models of timm compute with real numbers.
        return
    found = {name: tensor.shape for name, tensor in weights.items()}
    odd = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    if odd:
        name = min(odd)
        has, needs = (
            None if s is None else tuple(s) for s in (found.get(name), expected.get(name))
        )
        raise RuntimeError(f"{name} is {has}, but should be {needs}")


def build(card: Card) -> nn.Module:
    """Build the network of a card, with random weights.

    Raises:
        ValueError: If the network was passed as an object, and is not provided now.
    """
    if (network := provided_network()) is not None:
        check_class(network, card.network_class, "the checkpoint")
    return create_model(card.model, **card.changes)


def task_of(source: str) -> str:
    """Return the task of a run, a checkpoint or a file of weights, such as "segment".

    Raises:
        ValueError: If the source cannot be found or read.
    """
    if is_exported(source):
        return open_exported(source).card.task or DEFAULT
    card = card_or_none(source)
    if card is not None:
        return card.task or DEFAULT
    kind = dense_kind(names=names_of(source))
    return DEFAULT if kind is None else kind.task


def card_of(source: str, model: str) -> Card | None:
    """Return the card of weights before they are loaded.

    None for a bare file of a classifier, whose network the user names, and for a hub id.
    """
    path = find_checkpoint(source)
    card = card_or_none(source)
    if card is not None:
        return card
    if path is not None and task_of(source) != DEFAULT:
        tensors, _ = read_source(path)
        try:
            name, changes = infer_model(tensors)
        except ValueError:  # Not a backbone of this package.
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
    """A network in evaluation mode with its card, ready for use."""

    source: str
    """Its source, for messages."""
    model: nn.Module
    card: Card
    device: torch.device
    is_shared: bool = False
    """Whether the network is shared and must not be changed."""
    is_best: bool = True
    """Whether `source` alone identifies these weights; False for a run's last step."""

    def fast(
        self, *, precision: str, num_images: int, backend: Speedup, console: Console | None
    ) -> Fast:
        """Return the network as it is run on `num_images` images."""
        return Fast(
            self.model.eval(),
            device=self.device,
            precision=precision,
            num_images=num_images,
            backend=backend,
            keep=self.is_shared,
            note=notes(console),
        )


def opened_file(exported: Exported) -> Opened:
    """Return an exported file instead of its network, on the CPU."""
    model, card = task_class(exported.card.task).open_exported(exported)
    return Opened(source=exported.source, model=model, card=card, device=torch.device("cpu"))


def opened(source: str | Opened, device: str = "auto") -> Opened:
    """Open a run, a checkpoint or published weights; an open network is returned unchanged.

    Raises:
        ValueError: If it cannot be found or read.
    """
    if isinstance(source, Opened):
        return source
    where = pick_device(device)
    model, card = open_model(source, where)
    return Opened(source=source, model=model, card=card, device=where)


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
