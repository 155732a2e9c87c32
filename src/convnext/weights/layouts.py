"""The published layouts of the same networks, one table of names each.

A row pairs our name with theirs. It names a module, whose tensors (`weight`, `bias`, the running
statistics of a batch norm) keep the last part of their names, or a single tensor such as the layer
scale. Placeholders are `{b}` for the block and `{s}`, `{s+1}`, `{2s}` or `{2s+1}` for the stage. A
row without placeholders takes precedence.

Sources: the authors' repository, timm, torchvision, transformers and mmpretrain. The tests prove
the tables of timm, torchvision and transformers: the same weights give the same logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from convnext.models.config import FAMILY, NetworkConfig
from convnext.models.roadmap import RESNET50

# Our names, for every network of the roadmap.
OURS = (
    "stem.conv",
    "stem.norm",
    "downsample.{s}.norm",
    "downsample.{s}.conv",
    "stages.{s}.{b}.gamma",
    "stages.{s}.{b}.spatial",
    "stages.{s}.{b}.spatial_norm",
    "stages.{s}.{b}.norm",
    "stages.{s}.{b}.pwconv1",
    "stages.{s}.{b}.pwconv1_norm",
    "stages.{s}.{b}.pwconv2",
    "stages.{s}.{b}.pwconv2_norm",
    "stages.{s}.{b}.shortcut.conv",
    "stages.{s}.{b}.shortcut.norm",
    "head.norm",
    "head.fc",
)

OFFICIAL = {
    "stem.conv": "downsample_layers.0.0",
    "stem.norm": "downsample_layers.0.1",
    "downsample.{s}.norm": "downsample_layers.{s}.0",
    "downsample.{s}.conv": "downsample_layers.{s}.1",
    "stages.{s}.{b}.gamma": "stages.{s}.{b}.gamma",
    "stages.{s}.{b}.spatial": "stages.{s}.{b}.dwconv",
    "stages.{s}.{b}.norm": "stages.{s}.{b}.norm",
    "stages.{s}.{b}.pwconv1": "stages.{s}.{b}.pwconv1",
    "stages.{s}.{b}.pwconv2": "stages.{s}.{b}.pwconv2",
    "head.norm": "norm",
    "head.fc": "head",
}

OFFICIAL_ISOTROPIC = {
    "stem.conv": "stem",
    "stages.0.{b}.gamma": "blocks.{b}.gamma",
    "stages.0.{b}.spatial": "blocks.{b}.dwconv",
    "stages.0.{b}.norm": "blocks.{b}.norm",
    "stages.0.{b}.pwconv1": "blocks.{b}.pwconv1",
    "stages.0.{b}.pwconv2": "blocks.{b}.pwconv2",
    "head.norm": "norm",
    "head.fc": "head",
}

TIMM = {
    "stem.conv": "stem.0",
    "stem.norm": "stem.1",
    "downsample.{s}.norm": "stages.{s}.downsample.0",
    "downsample.{s}.conv": "stages.{s}.downsample.1",
    "stages.{s}.{b}.gamma": "stages.{s}.blocks.{b}.gamma",
    "stages.{s}.{b}.spatial": "stages.{s}.blocks.{b}.conv_dw",
    "stages.{s}.{b}.norm": "stages.{s}.blocks.{b}.norm",
    "stages.{s}.{b}.pwconv1": "stages.{s}.blocks.{b}.mlp.fc1",
    "stages.{s}.{b}.pwconv2": "stages.{s}.blocks.{b}.mlp.fc2",
    "head.norm": "head.norm",
    "head.fc": "head.fc",
}

TORCHVISION = {
    "stem.conv": "features.0.0",
    "stem.norm": "features.0.1",
    "downsample.{s}.norm": "features.{2s}.0",
    "downsample.{s}.conv": "features.{2s}.1",
    "stages.{s}.{b}.gamma": "features.{2s+1}.{b}.layer_scale",
    "stages.{s}.{b}.spatial": "features.{2s+1}.{b}.block.0",
    "stages.{s}.{b}.norm": "features.{2s+1}.{b}.block.2",
    "stages.{s}.{b}.pwconv1": "features.{2s+1}.{b}.block.3",
    "stages.{s}.{b}.pwconv2": "features.{2s+1}.{b}.block.5",
    "head.norm": "classifier.0",
    "head.fc": "classifier.2",
}

TRANSFORMERS = {
    "stem.conv": "convnext.embeddings.patch_embeddings",
    "stem.norm": "convnext.embeddings.layernorm",
    "downsample.{s}.norm": "convnext.encoder.stages.{s}.downsampling_layer.0",
    "downsample.{s}.conv": "convnext.encoder.stages.{s}.downsampling_layer.1",
    "stages.{s}.{b}.gamma": "convnext.encoder.stages.{s}.layers.{b}.layer_scale_parameter",
    "stages.{s}.{b}.spatial": "convnext.encoder.stages.{s}.layers.{b}.dwconv",
    "stages.{s}.{b}.norm": "convnext.encoder.stages.{s}.layers.{b}.layernorm",
    "stages.{s}.{b}.pwconv1": "convnext.encoder.stages.{s}.layers.{b}.pwconv1",
    "stages.{s}.{b}.pwconv2": "convnext.encoder.stages.{s}.layers.{b}.pwconv2",
    "head.norm": "convnext.layernorm",
    "head.fc": "classifier",
}

OPENMMLAB = {
    "stem.conv": "backbone.downsample_layers.0.0",
    "stem.norm": "backbone.downsample_layers.0.1",
    "downsample.{s}.norm": "backbone.downsample_layers.{s}.0",
    "downsample.{s}.conv": "backbone.downsample_layers.{s}.1",
    "stages.{s}.{b}.gamma": "backbone.stages.{s}.{b}.gamma",
    "stages.{s}.{b}.spatial": "backbone.stages.{s}.{b}.depthwise_conv",
    "stages.{s}.{b}.norm": "backbone.stages.{s}.{b}.norm",
    "stages.{s}.{b}.pwconv1": "backbone.stages.{s}.{b}.pointwise_conv1",
    "stages.{s}.{b}.pwconv2": "backbone.stages.{s}.{b}.pointwise_conv2",
    "head.norm": "backbone.norm3",
    "head.fc": "head.fc",
}

RESNET = {
    "stem.conv": "conv1",
    "stem.norm": "bn1",
    "stages.{s}.{b}.pwconv1": "layer{s+1}.{b}.conv1",
    "stages.{s}.{b}.pwconv1_norm": "layer{s+1}.{b}.bn1",
    "stages.{s}.{b}.spatial": "layer{s+1}.{b}.conv2",
    "stages.{s}.{b}.spatial_norm": "layer{s+1}.{b}.bn2",
    "stages.{s}.{b}.pwconv2": "layer{s+1}.{b}.conv3",
    "stages.{s}.{b}.pwconv2_norm": "layer{s+1}.{b}.bn3",
    "stages.{s}.{b}.shortcut.conv": "layer{s+1}.{b}.downsample.0",
    "stages.{s}.{b}.shortcut.norm": "layer{s+1}.{b}.downsample.1",
    "head.fc": "fc",
}

# Prefixes of wrappers around a network, which do not depend on the layout.
WRAPPERS = ("module.", "_orig_mod.", "model.", "network.", "backbone.", "convnext.")

LINEAR = {"pwconv1.weight": 2, "pwconv2.weight": 2}
"""Dimensions of the tensors whose shape differs from ours: linear layers for 1x1 convolutions."""

_SIZES = frozenset(
    {"depths", "dims", "stem_stride", "kernel_size", "num_classes", "in_chans", "layer_scale_init"}
    | {"drop_path_rate", "head_init_scale"}
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One table of names, and the networks that it applies to."""

    name: str
    rows: Mapping[str, str]
    like: NetworkConfig | None
    """A network that the table applies to; None for all our networks."""
    free: frozenset[str] = _SIZES
    """The fields in which other networks may differ from `like`."""
    num_dims: Mapping[str, int] = field(default_factory=dict)
    """Number of dimensions of exported tensors by the end of our name, if it differs."""
    ignored: tuple[str, ...] = ()
    """First components of names that are not part of the network, or belong to dense heads."""

    def covers(self, config: NetworkConfig) -> bool:
        """Whether the table applies to a network."""
        if self.like is None:
            return True
        same_stages = (len(config.depths) == 1) == (len(self.like.depths) == 1)
        return same_stages and not self.differences(config)

    def differences(self, config: NetworkConfig) -> list[str]:
        """Return the fields of a network that the table does not allow, as `norm=batch`."""
        return [
            f"{name}={getattr(config, name)}"
            for name, value in vars(self.like).items()
            if getattr(config, name) != value and name not in self.free
        ]


_RESNET_FREE = frozenset({"depths", "num_classes", "in_chans", "drop_path_rate", "head_init_scale"})
_OUTPUT_NORMS = ("norm0", "norm1", "norm2", "norm3")
_TINY = FAMILY["convnext_tiny"]

# In order of precedence if several match equally well.
LAYOUTS = (
    Layout(name="convnext", rows={name: name for name in OURS}, like=None),
    Layout(name="official", rows=OFFICIAL, like=_TINY, num_dims=LINEAR, ignored=_OUTPUT_NORMS),
    Layout(
        name="official",
        rows=OFFICIAL_ISOTROPIC,
        like=FAMILY["convnext_isotropic_small"],
        num_dims=LINEAR,
    ),
    Layout(name="timm", rows=TIMM, like=_TINY, num_dims=LINEAR),
    Layout(name="torchvision", rows=TORCHVISION, like=_TINY, num_dims=LINEAR | {"gamma": 3}),
    Layout(
        name="transformers",
        rows=TRANSFORMERS,
        like=_TINY,
        num_dims=LINEAR,
        ignored=("hidden_states_norms",),
    ),
    Layout(
        name="openmmlab",
        rows=OPENMMLAB,
        like=_TINY,
        num_dims=LINEAR,
        ignored=("data_preprocessor", *_OUTPUT_NORMS[:3]),
    ),
    Layout(name="torchvision", rows=RESNET, like=RESNET50, free=_RESNET_FREE),
    Layout(name="timm", rows=RESNET, like=RESNET50, free=_RESNET_FREE),
)

LAYOUT_NAMES = tuple(dict.fromkeys(layout.name for layout in LAYOUTS))

# timm builds these with 1x1 convolutions (`conv_mlp=True`) and the others with linear layers.
_CONV_MLP = tuple(FAMILY[f"convnext_{size}"].dims for size in ("atto", "femto", "pico", "nano"))


def num_dims(layout: Layout, config: NetworkConfig) -> dict[str, int]:
    """Return `Layout.num_dims` for one network."""
    as_convolutions = layout.name == "timm" and config.dims in _CONV_MLP
    return {} if as_convolutions else dict(layout.num_dims)


def layout_for(name: str, config: NetworkConfig, layouts: tuple[Layout, ...] = LAYOUTS) -> Layout:
    """Return the table of a layout that applies to a network, or to its backbone.

    Raises:
        ValueError: If there is no such layout, or it does not apply; names those that do.
    """
    if name not in LAYOUT_NAMES:
        raise ValueError(f"there is no layout {name!r}; choose one of {', '.join(LAYOUT_NAMES)}")
    found = {layout.name: layout for layout in layouts if layout.covers(config)}
    if name not in found:
        tables = [layout for layout in layouts if layout.name == name]
        differ = min((table.differences(config) for table in tables), key=len, default=[])
        why = f", whose networks do not have {', '.join(differ)}" if differ else ""
        raise ValueError(
            f"this network cannot be written in the layout {name!r}{why}; choose {', '.join(found)}"
        )
    return found[name]
