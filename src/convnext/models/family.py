"""The ConvNeXt family: sizes from the paper (Tables 1, 2 and 9), atto to nano from timm."""

from __future__ import annotations

from convnext.models.config import NetworkConfig


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
    # Layer scale only where a network is too deep to train without it (paper, sections A.3, 3.3).
    "convnext_isotropic_small": _isotropic(18, 384, 0.0),
    "convnext_isotropic_base": _isotropic(18, 768, 0.0),
    "convnext_isotropic_large": _isotropic(36, 1024, 1e-6),
}
