"""The network: a stem, stages of blocks, and a head; its initial weights, and its pyramid.

The weights are drawn as in the authors' code, or in another way for short runs. The pyramid is the
interface between a backbone and the dense tasks, with the norms on its maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from convnext.models.blocks import Block, Downsample, Head, LayerNorm2d, Stem
from convnext.models.config import NetworkConfig


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


PAPER_STD = 0.02
# Measured on small photos, see LOG.md.
FAN_IN_GAIN = 1.4
WINDOW_SIGMA = 1.6


class Network(nn.Module):
    """Any network from ResNet-50 to ConvNeXt, and every member of the family.

    Args:
        config: The configuration, kept as `network.config`.
        name: A name that `create_model` knows: that of the network, or of a similar one.

    Images are (N, in_chans, H, W) floats, already normalized. Weights are drawn as in the
    authors' code: truncated normal of std 0.02, zero biases, the head scaled by `head_init_scale`.
    """

    def __init__(self, config: NetworkConfig, *, name: str = "convnext_tiny") -> None:
        super().__init__()
        self.config = config
        self.name = name
        self.stem = Stem(config)
        self.downsample = nn.ModuleList()
        self.stages = nn.ModuleList()
        rates = iter(config.drop_path_rates)
        in_dim = config.dims[0]
        for s, (depth, dim, out_dim) in enumerate(
            zip(config.depths, config.dims, config.stage_dims, strict=True)
        ):
            between = s > 0 and config.downsample == "between_stages"
            self.downsample.append(
                Downsample(config, in_dim=in_dim, out_dim=out_dim) if between else nn.Identity()
            )
            in_dim = out_dim if between else in_dim
            stage = nn.Sequential()
            for b in range(depth):
                stride = 2 if s > 0 and b == 0 and not between else 1
                stage.append(
                    Block(config, in_dim=in_dim, dim=dim, stride=stride, drop_path_rate=next(rates))
                )
                in_dim = out_dim
            self.stages.append(stage)
        self.head = Head(config)
        init_paper(self)
        self._scale_head()

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes), or features (N, C)."""
        logits: Tensor = self.head(self.forward_features(images))
        return logits

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to the last stage's output (N, C, H/32, W/32)."""
        return self._stage_outputs(images)[-1]

    def embed(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to pooled features (N, C), after the last norm."""
        return self.head.pool(self.forward_features(images))

    def pyramid(self, images: Tensor) -> dict[str, Tensor]:
        """Return the backbone maps {"c2": (N, C, H/4, W/4), ..., "c5": (N, C, H/32, W/32)}.

        The maps are not normed: the output norms belong to the dense tasks.
        """
        return dict(zip(self.levels, self._stage_outputs(images), strict=True))

    @property
    def levels(self) -> dict[str, Level]:
        """Channels and stride of each map of the pyramid, by name.

        Raises:
            ValueError: If the network is isotropic and so has a single scale.
        """
        return name_levels(map(Level, self.config.stage_dims, self.config.strides))

    @property
    def changes(self) -> dict[str, Any]:
        """The changes with which `create_model(network.name, **changes)` builds it again."""
        return asdict(self.config)

    @property
    def num_features(self) -> int:
        """Channels that reach the classifier."""
        return self.config.stage_dims[-1]

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a new one for `num_classes` classes (0: no head)."""
        like = next(self.parameters())
        self.config = replace(self.config, num_classes=num_classes)
        fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.fc = fc.to(device=like.device, dtype=like.dtype)
        init_paper(self.head.fc)
        self._scale_head()

    def drop_head(self) -> None:
        """Remove what the pyramid does not need: the classifier and the norm before it."""
        self.reset_classifier(0)
        self.head.norm = nn.Identity()

    def _stage_outputs(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images)
        outputs = []
        for downsample, stage in zip(self.downsample, self.stages, strict=True):
            x = stage(downsample(x))
            outputs.append(x)
        return outputs

    def _scale_head(self) -> None:
        if isinstance(self.head.fc, nn.Linear):
            self.head.fc.weight.data.mul_(self.config.head_init_scale)
            self.head.fc.bias.data.mul_(self.config.head_init_scale)


def init_paper(module: nn.Module) -> None:
    """Draw weights as the authors' code does: truncated normal of std 0.02, zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=PAPER_STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_fan_in(module: nn.Module) -> None:
    """Draw convolutions that preserve the variance of their input; keep biases and heads.

    With a std of 0.02 every block begins almost as the identity, which only a long schedule can
    undo. Depthwise kernels are random under a Gaussian window of unit energy, so that at first a
    block mixes nearby positions rather than a single one.
    """
    for layer in module.modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        if layer.groups > 1:
            with torch.no_grad():
                layer.weight.copy_(_windowed(layer.weight))
        else:
            fan_in = layer.weight[0].numel()
            nn.init.trunc_normal_(layer.weight, std=FAN_IN_GAIN / math.sqrt(fan_in))


def _windowed(kernels: Tensor) -> Tensor:  # C 1 K K
    side = kernels.shape[-1]
    x = torch.arange(side, device=kernels.device) - side // 2
    window = torch.exp(-(x[:, None] ** 2 + x[None] ** 2) / (2 * WINDOW_SIGMA**2))
    drawn = torch.randn_like(kernels) * window
    energy: Tensor = torch.linalg.vector_norm(drawn, dim=(1, 2, 3), keepdim=True)
    return torch.div(drawn, energy)
