"""Infer the network of a state dict from the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from convnext.models.config import NetworkConfig
from convnext.models.family import FAMILY
from convnext.models.roadmap import REGIMES, RESNET50, roadmap
from convnext.weights.adapt import fit
from convnext.weights.translate import Recognition, recognize

# Fields that follow from shapes. The stride of a conv_pool stem and layers without weights do not.
_FROM_SHAPES = ("depths", "dims", "stem_stride", "kernel_size", "num_classes", "in_chans")


def infer_model(state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Return the name and the changes with which `create_model` builds the network of a file.

    The network is a member of the family or the ResNet at the start of a roadmap, with other
    `depths` and `dims` if needed. All layouts are recognized. The steps in between are not, because
    most of them differ in layers without weights. For a dense network, this infers the backbone.

    Raises:
        ValueError: If the tensors are not those of such a network.
    """
    recognition = recognize(state_dict)
    config = infer_config(recognition, state_dict)
    name = next((n for n, known in _named() if _same_size(known, config)), None)
    if name is None:
        name = next(n for n, known in _named() if _same_design(known, config))
    known = dict(_named())[name]
    inferred = (*_FROM_SHAPES, "layer_scale_init")
    changes = {f: getattr(config, f) for f in inferred if getattr(config, f) != getattr(known, f)}
    return name, changes


def infer_config(recognition: Recognition, tensors: Mapping[str, Tensor]) -> NetworkConfig:
    """Return the configuration of the network that a recognized file is from.

    Raises:
        ValueError: If the file is not a complete ConvNeXt or ResNet.
    """
    shapes = {ours: tuple(tensors[theirs].shape) for theirs, ours in recognition.names.items()}
    resnet = "stages.0.0.pwconv1_norm.weight" in shapes
    width = "pwconv1" if resnet else "spatial"
    depths: list[int] = []
    dims: list[int] = []
    while f"stages.{len(depths)}.0.{width}.weight" in shapes:
        s, depth = len(depths), 0
        while f"stages.{s}.{depth}.{width}.weight" in shapes:
            depth += 1
        depths.append(depth)
        dims.append(shapes[f"stages.{s}.0.{width}.weight"][0])
    stem = shapes.get("stem.conv.weight", ())
    if not depths or len(stem) != 4:
        raise ValueError(_unrecognized(recognition))
    base = _base(shapes, resnet=resnet)
    head = shapes.get("head.fc.weight", (0,))
    scaled = "stages.0.0.gamma" in shapes
    config = replace(
        base,
        depths=tuple(depths),
        dims=tuple(dims),
        # A stem of stride 1 has a 3x3 kernel, see `Stem`.
        stem_stride=base.stem_stride if resnet else 1 if stem[-1] == 3 else stem[-1],
        kernel_size=shapes["stages.0.0.spatial.weight"][-1],
        num_classes=head[0],
        in_chans=stem[1],
        layer_scale_init=(base.layer_scale_init or 1e-6) if scaled else 0.0,
    )
    _check(config, recognition, tensors)
    return _canonical(config)


def expected_tensors(config: NetworkConfig) -> dict[str, Tensor]:
    """Return the tensors of a network on the meta device: shapes without memory."""
    from convnext.models.network import Network

    with torch.device("meta"):
        return dict(Network(config).state_dict())


def _base(shapes: Mapping[str, tuple[int, ...]], *, resnet: bool) -> NetworkConfig:
    if resnet:
        return RESNET50
    isotropic = "stem.norm.weight" not in shapes
    return FAMILY["convnext_isotropic_small" if isotropic else "convnext_tiny"]


def _check(config: NetworkConfig, recognition: Recognition, tensors: Mapping[str, Tensor]) -> None:
    expected = {n: t for n, t in expected_tensors(config).items() if not n.startswith("head.")}
    found = {ours: tensors[theirs] for theirs, ours in recognition.names.items()}
    fitting = [
        name
        for name, tensor in expected.items()
        if name in found and fit(name, found[name].to("meta"), tensor.shape) is not None
    ]
    known = found.keys() & expected.keys()
    inside = len(expected.keys() | {n for n in found if not n.startswith("head.")})
    if len(fitting) < max(len(known), 0.9 * (inside + len(recognition.unknown))):
        raise ValueError(_unrecognized(recognition))


def _unrecognized(recognition: Recognition) -> str:
    unknown = ", ".join((recognition.unknown or recognition.extra)[:4])
    return (
        "these tensors belong to neither a ConvNeXt nor a bottleneck ResNet; the nearest layout "
        f"is {recognition.layout.name!r}" + (f", which has no {unknown}" if unknown else "")
    )


def _named() -> list[tuple[str, NetworkConfig]]:
    starts = [(f"roadmap/{r}/{roadmap(r)[0].name}", roadmap(r)[0].config) for r in REGIMES]
    # Tiny first: sizes without a name of their own are described as changes to it.
    return [("convnext_tiny", FAMILY["convnext_tiny"]), *FAMILY.items(), *starts]


def _same_design(a: NetworkConfig, b: NetworkConfig) -> bool:
    one_stage = len(a.depths) == 1, len(b.depths) == 1
    return a.norms == b.norms and one_stage[0] == one_stage[1]


def _same_size(a: NetworkConfig, b: NetworkConfig) -> bool:
    return _same_design(a, b) and (a.depths, a.dims) == (b.depths, b.dims)


def _canonical(config: NetworkConfig) -> NetworkConfig:
    """Take the initial layer scale, which no file contains, from the named network of that size."""
    known = next((k for _, k in _named() if _same_size(k, config)), config)
    if config.layer_scale_init and known.layer_scale_init:
        return replace(config, layer_scale_init=known.layer_scale_init)
    return config
