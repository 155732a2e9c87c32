"""The configuration of a network: one frozen dataclass, ConvNeXt-T by default; and the family."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from convnext.names import nearest

StemKind = Literal["conv_pool", "patchify"]
BottleneckKind = Literal["narrow", "inverted"]
ActKind = Literal["relu", "gelu"]
NormKind = Literal["batch", "layer"]
HowMany = Literal["every", "one"]
DownsampleKind = Literal["in_block", "between_stages"]

GIVEN = "given/"
"""The prefix of the names of networks that a user passes as objects."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Every design choice between ResNet-50 and ConvNeXt (paper, sections 2.1 to 2.6).

    Every field changes what the network computes. How it runs (memory format, compilation,
    precision) is not a field. What follows from other fields (biases, shortcut convolutions, the
    position of the only norm) is derived in `convnext.models.blocks.block_rows`.
    """

    depths: tuple[int, ...] = (3, 3, 9, 3)
    """Blocks per stage. One stage makes an isotropic network."""
    dims: tuple[int, ...] = (96, 192, 384, 768)
    """Narrow width per stage, which is also its output width unless `bottleneck` is `narrow`."""
    stem: StemKind = "patchify"
    """`conv_pool` is ResNet's 7x7 convolution and max pool, `patchify` one k x k stride-k one."""
    stem_stride: int = 4
    """Pixels per position after the stem; 1 and 2 keep the detail of small images."""
    depthwise: bool = True
    """Whether the spatial convolution has one group per channel."""
    bottleneck: BottleneckKind = "inverted"
    """Whether the middle of the block is wider (`inverted`) or narrower, by `expansion`."""
    expansion: int = 4
    """Wide width over narrow width of a block; 4 everywhere in the paper."""
    spatial_first: bool = True
    """Whether the spatial convolution comes before the two pointwise ones or between them."""
    kernel_size: int = 7
    """Side of the spatial kernel, odd."""
    act: ActKind = "gelu"
    acts: HowMany = "one"
    """Activations after every convolution and the addition, or one before the last convolution."""
    norm: NormKind = "layer"
    norms: HowMany = "one"
    """Norms after every convolution, or only after the spatial one."""
    downsample: DownsampleKind = "between_stages"
    """A strided first block per stage, or a norm and a 2x2 convolution between stages."""
    layer_scale_init: float = 1e-6
    """Initial value of the layer scale `gamma`; 0 for no layer scale."""
    drop_path_rate: float = 0.0
    """Stochastic depth rate of the last block; it grows linearly from 0 at the first block."""
    num_classes: int = 1000
    """Classes of the head; 0 for a network that returns the pooled features."""
    in_chans: int = 3
    head_init_scale: float = 1.0
    """Factor on the initial weights and bias of the head; 0.001 for fine-tuning."""

    def __post_init__(self) -> None:
        # YAML and JSON have lists only.
        object.__setattr__(self, "depths", tuple(self.depths))
        object.__setattr__(self, "dims", tuple(self.dims))
        check_types(self)
        if len(self.depths) != len(self.dims) or not self.depths:
            raise ValueError(
                f"depths and dims need one entry per stage: {self.depths} has {len(self.depths)}, "
                f"{self.dims} has {len(self.dims)}"
            )
        for name in ("depths", "dims"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}"
                )
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, not {self.kernel_size}")
        if self.expansion < 1:
            raise ValueError(f"expansion must be positive, not {self.expansion}")
        if self.stem_stride < 1 or (self.stem == "conv_pool" and self.stem_stride not in (1, 2, 4)):
            raise ValueError(
                f"stem_stride is {self.stem_stride}; a conv_pool stem has 1, 2 or 4, "
                "a patchify stem any positive number"
            )
        if not 0.0 <= self.drop_path_rate < 1.0:
            raise ValueError(f"drop_path_rate must lie in [0, 1), not {self.drop_path_rate}")
        if self.in_chans < 1 or self.num_classes < 0:
            raise ValueError(
                f"in_chans must be positive and num_classes not negative, "
                f"not {self.in_chans} and {self.num_classes}"
            )

    @property
    def stage_dims(self) -> tuple[int, ...]:
        """Output channels of each stage: `dims`, or `expansion` times that if narrow."""
        wide = self.expansion if self.bottleneck == "narrow" else 1
        return tuple(wide * dim for dim in self.dims)

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels per position after each stage."""
        return tuple(self.stem_stride * 2**s for s in range(len(self.dims)))

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic depth rate of every block, linear from 0 to `drop_path_rate`."""
        num_blocks = sum(self.depths)
        return tuple(self.drop_path_rate * b / max(num_blocks - 1, 1) for b in range(num_blocks))


_CHOICES = {
    "stem": get_args(StemKind),
    "bottleneck": get_args(BottleneckKind),
    "act": get_args(ActKind),
    "acts": get_args(HowMany),
    "norm": get_args(NormKind),
    "norms": get_args(HowMany),
    "downsample": get_args(DownsampleKind),
}


def check_types(config: Any) -> None:
    """Check that numbers, switches and lists of a configuration have the types of their fields.

    A number may come from a card or a recipe, where 0.5 can stand for a count.

    Args:
        config: A dataclass.

    Raises:
        ValueError: Names the first field with a value of another type.
    """
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, kind):
            kinds = get_args(kind) if get_origin(kind) is UnionType else (kind,)
            words = " or ".join(_WORDS[part] for part in kinds)
            raise ValueError(f"{name} is {value!r:.40}, but must be {words}")


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value has a type; words are not checked here."""
    if kind in (int, float):
        # Numbers of numpy are registered as numbers of Python. A switch is not a count.
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(part, get_args(kind)[0]) for part in value)
    if get_origin(kind) is UnionType:
        return any(_fits(value, part) for part in get_args(kind))
    return get_origin(kind) is Literal or isinstance(value, kind)


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    tuple[int, ...]: "a list of whole numbers",
}


def change(config: NetworkConfig, **changes: Any) -> NetworkConfig:
    """Return `config` with some fields replaced.

    Raises:
        ValueError: If a name is not a field (the nearest one is suggested) or a value is invalid.
    """
    known = [field.name for field in fields(config)]
    for name in changes:
        if name not in known:
            raise ValueError(f"a network has no setting {name!r}{nearest(name, known)}")
    return replace(config, **changes)


def _pyramidal(depths: tuple[int, ...], width: int) -> NetworkConfig:
    return NetworkConfig(depths=depths, dims=tuple(width * 2**s for s in range(4)))


def _isotropic(depth: int, dim: int, layer_scale_init: float) -> NetworkConfig:
    return NetworkConfig(
        depths=(depth,), dims=(dim,), stem_stride=16, layer_scale_init=layer_scale_init
    )


# The ConvNeXt family: sizes from the paper (Tables 1, 2 and 9), atto to nano from timm.
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
