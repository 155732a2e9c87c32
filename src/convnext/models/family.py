"""The family as data, and `create_model`, the one way to any network of the package.

Sizes are those of the paper (Tables 1, 2 and 9) and, from atto to nano, of timm. A name may also be
a rung of the roadmap (`roadmap/resnet50/<rung>`) or a peer (`timm/<name>`), and any of these that
has a pyramid may follow the prefix of a dense task (`upernet_convnext_tiny`).
"""

from __future__ import annotations

import importlib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from convnext.models.config import NetworkConfig, change
from convnext.names import nearest

if TYPE_CHECKING:
    from torch import nn


def _pyramidal(depths: tuple[int, ...], width: int) -> NetworkConfig:
    return NetworkConfig(depths=depths, dims=tuple(width * 2**s for s in range(4)))


def _isotropic(depth: int, dim: int, layer_scale_init: float) -> NetworkConfig:
    return NetworkConfig(
        depths=(depth,), dims=(dim,), stem_stride=16, layer_scale_init=layer_scale_init
    )


FAMILY: dict[str, NetworkConfig] = {
    "convnext_atto": _pyramidal((2, 2, 6, 2), 40),
    "convnext_femto": _pyramidal((2, 2, 6, 2), 48),
    "convnext_pico": _pyramidal((2, 2, 6, 2), 64),
    "convnext_nano": _pyramidal((2, 2, 8, 2), 80),
    "convnext_tiny": NetworkConfig(),
    "convnext_small": _pyramidal((3, 3, 27, 3), 96),
    "convnext_base": _pyramidal((3, 3, 27, 3), 128),
    "convnext_large": _pyramidal((3, 3, 27, 3), 192),
    "convnext_xlarge": _pyramidal((3, 3, 27, 3), 256),
    # Layer scale only where the depth needs it to train (paper, appendix A.3 and section 3.3).
    "convnext_isotropic_small": _isotropic(18, 384, 0.0),
    "convnext_isotropic_base": _isotropic(18, 768, 0.0),
    "convnext_isotropic_large": _isotropic(36, 1024, 1e-6),
}

# Prefixes of the names of dense networks, and the package that builds them on a backbone.
DENSE = {
    "upernet_": "convnext.tasks.segmentation.model",
    "mask_rcnn_": "convnext.tasks.detection.model.detector",
    "cascade_mask_rcnn_": "convnext.tasks.detection.model.detector",
}


def dense_prefix(name: str) -> str | None:
    """Return the prefix of the name of a dense network, or None for a classifier's."""
    return next((prefix for prefix in DENSE if name.startswith(prefix)), None)


def network_configs() -> dict[str, NetworkConfig]:
    """Return the configuration of every network of our own by name: the family, then the rungs."""
    from convnext.models.roadmap import REGIMES, roadmap

    rungs = {
        f"roadmap/{regime}/{rung.name}": rung.config
        for regime in REGIMES
        for rung in roadmap(regime)
    }
    return FAMILY | rungs


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern: the family, then the rungs.

    The hundreds of peers are listed only for a pattern that begins with `timm/`, and the networks
    of a dense task only for one that begins with its prefix, such as `mask_rcnn_*`. Those on peers
    are not listed: only building a peer tells whether it has a pyramid.
    """
    if (prefix := dense_prefix(pattern)) is not None:
        inner = pattern.removeprefix(prefix)
        pyramidal = [name for name, config in network_configs().items() if len(config.depths) > 1]
        return [f"{prefix}{name}" for name in pyramidal if fnmatchcase(name, inner)]
    if pattern.startswith("timm/"):
        from convnext.models.timm import list_peers

        return list_peers(pattern)
    return [name for name in network_configs() if fnmatchcase(name, pattern)]


def create_model(name: str, *, weights: str | None = None, **changes: Any) -> nn.Module:
    """Build a network by name, in evaluation of nothing but its configuration.

    Args:
        name: A name of `list_models()`, `timm/<name>` for a peer, or one of these behind
            `upernet_`, `mask_rcnn_` or `cascade_mask_rcnn_` for a dense network on that backbone.
        weights: A tag of `convnext models` ("fb_in1k", ...), a path, or a hub id; None draws
            random weights. Nothing is downloaded without saying so.
        **changes: Fields of `NetworkConfig` that differ from the named network, such as
            `num_classes`, `in_chans`, `stem_stride` or `drop_path_rate`. For a peer: those of them
            that it understands, and its own arguments. For a dense network: fields of
            `UPerNetConfig` or `DetectorConfig`, and those of the backbone.

    Returns:
        A module from images (N, in_chans, H, W) to logits (N, num_classes), or of a segmentor
        (N, num_classes, H, W), or from a list of images (in_chans, H, W) to as many detections; in
        training mode.

    Raises:
        ValueError: If the name or a change is unknown, a value is invalid, or the weights do not
            fit the network.
    """
    from convnext.models.network import Network

    model: nn.Module
    if (prefix := dense_prefix(name)) is not None:
        model = importlib.import_module(DENSE[prefix]).build(name, **changes)
    elif name.startswith("timm/"):
        from convnext.models.timm import TimmNetwork

        model = TimmNetwork(name.removeprefix("timm/"), **changes)
    else:
        configs = network_configs()
        if name not in configs:
            raise ValueError(f"there is no model {name!r}{nearest(name, configs)}")
        model = Network(change(configs[name], **changes), name=name)
    if weights is not None:
        from convnext.weights import load_weights

        load_weights(model, weights)
    return model
