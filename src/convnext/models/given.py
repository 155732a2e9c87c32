"""Networks that a user passes as objects: a classifier, or a backbone with a pyramid.

They are called `given/<class>`, in this process only. To open a checkpoint of one in another
process, pass the object again.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from convnext.models.config import GIVEN
from convnext.models.network import Level, name_levels

_SIDE = 128
"""Side of the test image by which the strides of a pyramid are measured."""
_given: dict[str, nn.Module] = {}


def give(module: nn.Module, name: str = "") -> str:
    """Register a network under a name that `create_model` knows, and return the name.

    Args:
        module: A classifier, or a network with `pyramid(images) -> {"c2": ..., "c5": ...}`.
        name: The name; by default `given/<class>`.

    Raises:
        TypeError: If it is not a module, for example a class rather than an instance.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"a network is an nn.Module, not {module!r}")
    name = name or f"{GIVEN}{type(module).__name__}"
    _given[name] = module
    return name


def create_given(name: str, **changes: Any) -> GivenNetwork:
    """Return a copy of a registered network with its current weights.

    Raises:
        ValueError: If no network has this name, or a change does not apply to such networks.
    """
    if name not in _given:
        raise ValueError(
            f"{name} was given as an object, which is not here: pass it again in Python, with "
            "convnext.load(run, network=...) or convnext.train(model=..., resume=True)"
        )
    return GivenNetwork(name, copy.deepcopy(_given[name]), **changes)


class GivenNetwork(nn.Module):
    """A network from the user, with the interface of our own networks.

    Args:
        name: Its name.
        network: The module.
        num_classes: The required number of logits; 0 for a backbone.
        in_chans: The number of input channels.
    """

    def __init__(
        self, name: str, network: nn.Module, *, num_classes: int = 0, in_chans: int = 3, **rest: Any
    ) -> None:
        super().__init__()
        if rest:
            raise ValueError(
                f"{name} was given as an object, which has its own settings; leave out "
                f"network.{next(iter(rest))}"
            )
        self.name, self.network = name, network
        self.num_classes, self.in_chans = num_classes, in_chans
        self.changes: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans}

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes).

        Raises:
            ValueError: If the network returns anything else.
        """
        logits = self.network(images)
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if shape != (len(images), self.num_classes):
            raise ValueError(
                f"{self.name} returns {shape} for {len(images)} images, but must return logits "
                f"{(len(images), self.num_classes)}, one for each class of the data"
            )
        return cast(Tensor, logits)

    def embed(self, images: Tensor) -> Tensor:
        """Map images to features (N, C) with the network's own `embed`.

        Raises:
            ValueError: If it has none.
        """
        embed: Any = getattr(self.network, "embed", None)
        if embed is None:
            raise ValueError(f"{self.name} has no method `embed` that returns features")
        return cast(Tensor, embed(images))

    def pyramid(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps {"c2": (N, C, H/4, W/4), ...}."""
        maps: dict[str, Tensor] = self.network.pyramid(images)  # type: ignore[operator]
        return dict(zip(self.levels, maps.values(), strict=True))

    @cached_property
    def levels(self) -> dict[str, Level]:
        """Channels and stride of each map of the pyramid, measured on a test image.

        Raises:
            ValueError: If the network has no pyramid, or only a single scale.
        """
        if not callable(getattr(self.network, "pyramid", None)):
            raise ValueError(
                f"{self.name} has no method `pyramid`, which segmentation and detection need: it "
                'returns maps {"c2": (N, C, H/4, W/4), ...} from fine to coarse'
            )
        like = next(self.parameters())
        image = torch.zeros(1, self.in_chans, _SIDE, _SIDE, device=like.device, dtype=like.dtype)
        was_training = self.training
        with torch.no_grad():
            maps = self.eval().network.pyramid(image)  # type: ignore[operator]
        self.train(was_training)
        return name_levels(Level(m.shape[1], _SIDE // m.shape[3]) for m in maps.values())

    def drop_head(self) -> None:
        """Do nothing: only the pyramid of a backbone is used."""
