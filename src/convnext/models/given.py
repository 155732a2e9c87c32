"""Networks that a user passes as objects: a classifier, or a backbone with a pyramid.

They are called `given/<class>`. A checkpoint stores the qualified name of the class, but not how to
build it: to open one, pass a network of that class again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from convnext.models.config import GIVEN
from convnext.models.network import Level, name_levels

_SIDE = 128
"""Side of the test image by which the strides of a pyramid are measured."""
_PROVIDED: ContextVar[nn.Module | None] = ContextVar("provided", default=None)


def name_of_network(module: nn.Module) -> str:
    """Return the name under which `create_model` builds a network within `provided`.

    Raises:
        TypeError: If it is not a module, for example a class rather than an instance.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"a network is an nn.Module, not {module!r}")
    return f"{GIVEN}{type(module).__name__}"


def class_of(module: nn.Module) -> str:
    """Return the qualified name of a network's class, such as `my_package.networks.Net`."""
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}"


@contextmanager
def provided(module: nn.Module | None) -> Iterator[None]:
    """Let `create_model` build this network within the block; None changes nothing."""
    token = None if module is None else _PROVIDED.set(module)
    try:
        yield
    finally:
        if token is not None:
            _PROVIDED.reset(token)


def provided_network() -> nn.Module | None:
    """Return the network of the innermost `provided` block."""
    return _PROVIDED.get()


def given_in(model: nn.Module) -> nn.Module | None:
    """Return the network from the user that is, or is the backbone of, a model; None if none is."""
    found = (m for m in model.modules() if isinstance(m, GivenNetwork))
    return next((m.network for m in found), None)


def check_class(module: nn.Module, stored: str, where: str) -> None:
    """Check that a network has the class that a checkpoint was trained with.

    Args:
        module: The network.
        stored: The qualified name in the checkpoint; empty in old ones.
        where: The checkpoint, for the message.

    Raises:
        ValueError: If it has another class. A class of a script, whose module is `__main__`, may
            have moved to another module.
    """
    own = class_of(module)
    names = [name.removeprefix("__main__.") for name in (own, stored)]
    in_script = own != names[0] or stored != names[1]
    moved = in_script and any(a == b or a.endswith(f".{b}") for a, b in (names, names[::-1]))
    if stored and own != stored and not moved:
        raise ValueError(f"{where} was trained with a network of the class {stored}, not {own}")


def create_given(name: str, **changes: Any) -> GivenNetwork:
    """Return a copy of the provided network with its current weights.

    Raises:
        ValueError: If none is provided, it has another name, or a change does not apply to it.
    """
    module = _PROVIDED.get()
    if module is None:
        raise ValueError(
            f"{name} was given as an object, which is not here: pass it again in Python, with "
            "convnext.load(run, network=...) or convnext.train(model=..., resume=True)"
        )
    if name_of_network(module) != name:
        raise ValueError(f"the network is {name}, not {name_of_network(module)}")
    return GivenNetwork(name, copy.deepcopy(module), **changes)


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
        # An exporter would turn the comparison into a condition on the number of images.
        if not torch.compiler.is_exporting() and shape != (len(images), self.num_classes):
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
