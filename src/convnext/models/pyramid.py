"""The pyramid: the interface between a backbone and the dense tasks, and the norms on its maps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from convnext.models.blocks import LayerNorm2d


class Level(NamedTuple):
    """One map of a pyramid: its channels, and the input pixels per position."""

    channels: int
    stride: int


def name_levels(levels: Iterable[Level]) -> dict[str, Level]:
    """Name each level c + log2(stride): c2 to c5 for strides 4 to 32.

    Raises:
        ValueError: If there are fewer than two scales, or a stride is not a power of two.
    """
    levels = list(levels)
    strides = [level.stride for level in levels]
    if len(set(strides)) < 2:
        raise ValueError(
            f"this network has a single scale (stride {strides[0]}) and so no pyramid; "
            "choose one with several stages, such as convnext_tiny or timm/resnet50"
        )
    for stride in strides:
        if stride & (stride - 1):
            raise ValueError(f"a pyramid needs strides that are powers of two, not {strides}")
    return {f"c{int(math.log2(level.stride))}": level for level in levels}


class OutputNorms(nn.ModuleList):
    """A layer norm over the channels of each map of a pyramid, eps 1e-6 as in the authors' code.

    A classifier norms its pooled features, so its stages end without a norm. These norms belong to
    the dense task and are not part of the weights of a classifier.
    """

    def __init__(self, levels: Mapping[str, Level]) -> None:
        super().__init__(LayerNorm2d(level.channels) for level in levels.values())

    def forward(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Normalize each map (N, C, H, W), in the order of the levels."""
        return {name: norm(maps[name]) for name, norm in zip(maps, self, strict=True)}


def wants_output_norms(backbone: nn.Module) -> bool:
    """Whether dense tasks norm the maps of a network by default: if it has layer norms.

    The stages of ConvNeXt and Swin end with a sum that is not normalized. The maps of a network
    with batch norms, such as ResNet, are used as they are.
    """
    batch = nn.modules.batchnorm._BatchNorm
    layers = list(backbone.modules())
    has_layer_norm = any(isinstance(layer, nn.LayerNorm) for layer in layers)
    return has_layer_norm and not any(isinstance(layer, batch) for layer in layers)


class DenseModule(nn.Module):
    """A dense network: a backbone with a pyramid, norms of its maps, and the heads of a subclass.

    Args:
        backbone: A network with a pyramid, without a head.
        config: The settings of the heads, a frozen dataclass; stored as `config`.
    """

    prefix: ClassVar[str]
    """The beginning of the names of such networks, before the name of the backbone."""
    # The convention of `convnext.cost`; all published costs of dense tasks use it.
    cost_convention = "toolbox"

    def __init__(self, backbone: Any, config: Any) -> None:
        super().__init__()
        self.config = config
        self.name = f"{self.prefix}{backbone.name}"
        self.backbone = backbone
        self.output_norms = OutputNorms(self.levels) if config.output_norms else nn.Identity()

    def embed(self, images: Tensor) -> Tensor:
        """Map normalized images (N, C, H, W) to pooled features of the last map (N, C)."""
        maps: dict[str, Tensor] = self.output_norms(self.backbone.pyramid(images))
        return list(maps.values())[-1].mean((2, 3))

    @property
    def levels(self) -> dict[str, Level]:
        """Channels and stride of each map of the backbone, by name."""
        levels: dict[str, Level] = self.backbone.levels
        return levels

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self.config.num_classes)

    @property
    def changes(self) -> dict[str, Any]:
        """The changes with which `create_model(model.name, **model.changes)` rebuilds it."""
        return {**self.backbone.changes, **asdict(self.config)}
