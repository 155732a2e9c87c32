"""The norms that dense tasks put on the maps of a layer-norm backbone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from convnext.models.blocks import LayerNorm2d
from convnext.models.pyramid import Backbone, Level


class OutputNorms(nn.ModuleList):
    """One layer norm over the channels of each map of a pyramid, eps 1e-6, as the authors have it.

    A classifier norms its pooled features, so its maps leave the stages without a norm. These
    belong to the dense task, and the weights of a classifier stay clean.
    """

    def __init__(self, levels: Mapping[str, Level]) -> None:
        super().__init__(LayerNorm2d(level.channels) for level in levels.values())

    def forward(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Norm each map (N, C, H, W), in the order of the levels."""
        return {name: norm(maps[name]) for name, norm in zip(maps, self, strict=True)}


def embed(backbone: Backbone, norms: nn.Module, images: Tensor) -> Tensor:
    """Return the last map of a dense network's backbone, normed and then pooled: (N, C)."""
    maps: dict[str, Tensor] = norms(backbone.pyramid(images))
    return list(maps.values())[-1].mean((2, 3))


def wants_output_norms(backbone: nn.Module) -> bool:
    """Whether dense tasks norm the maps of a network by default: those of a layer-norm network.

    ConvNeXt and Swin end their stages with a sum that nothing norms. The maps of a network with
    batch norms are used as they are, as those of ResNet always were.
    """
    batch = nn.modules.batchnorm._BatchNorm
    layers = list(backbone.modules())
    has_layer_norm = any(isinstance(layer, nn.LayerNorm) for layer in layers)
    return has_layer_norm and not any(isinstance(layer, batch) for layer in layers)
