"""`fold`: turn any network into an equivalent one with fewer operations, for inference.

With fixed weights, layers can be merged (`convnext.deploy.layers`):

    layer scale                       into the second pointwise layer
    weights of a layer norm           into the layer after it, if that is not padded
    batch norm                        into the convolution before it, or the unpadded one after it
    normalization of the images       into the stem
    dropout, stochastic depth         removed
    parts used only in training       removed

Pointwise convolutions can become linear layers over channels_last maps. Modules in which only
`forward` defines the order of the layers implement `Foldable`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, cast, get_args, runtime_checkable

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import StochasticDepth

from convnext.deploy.layers import (
    Affine,
    ChunkedBlock,
    FoldedBlock,
    Layer,
    Normalized,
    Positionwise,
    Product,
    Standardize,
    StandardizeLast,
    affine,
    is_unpadded,
    join,
    product_then,
    simplify,
    split,
)
from convnext.models.blocks import Block, Head
from convnext.models.flops import in_chans
from convnext.models.network import Network
from convnext.models.timm import TimmNetwork

PointwiseForm = Literal["linear", "conv", "chunked"]
_DROPPED = (nn.modules.dropout._DropoutNd, StochasticDepth)
# Devices without fp64: their weights are merged on the CPU.
WITHOUT_FP64 = ("mps",)

Merge = Callable[[Sequence[nn.Module]], list[nn.Module]]
"""Maps consecutive layers to fewer equivalent ones."""


@runtime_checkable
class Foldable(Protocol):
    """A module that knows which of its layers can be merged."""

    def fold_layers(self, merge: Merge) -> None:
        """Replace layers by the result of `merge`, and remove parts used only in training."""
        ...


@torch.no_grad()
def fold(
    model: nn.Module,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    form: PointwiseForm = "linear",
    inplace: bool = False,
) -> nn.Module:
    """Return an equivalent network with fewer operations, in evaluation mode.

    Outputs agree within 1e-5 relative in fp32. Works for classifiers, segmentation networks,
    detectors, every step of the roadmap and timm models, which keep their interface (`forward`,
    `pyramid`, `levels`) but can no longer be trained.

    Args:
        model: Any network from `convnext.create_model`; it is not changed.
        mean: Mean of the normalization, to fold it into the network, which then takes images before
            normalization. In units of these images: for pixels from 0 to 255, 255 times the usual
            value.
        std: Standard deviation, like `mean`.
        form: How pointwise layers run. `linear`: over channels_last maps. `conv`: as convolutions,
            best for compilers and for channels_first. `chunked`: like `linear`, a few rows at a
            time, which is fastest and uses least memory in eager mode on CPUs, but cannot be traced
            or exported.
        inplace: Modify `model` instead of a copy, which saves the memory for a second set of
            weights.

    Raises:
        ValueError: If only one of `mean` and `std` is given, they do not fit the network's
            channels, or the form does not exist.
    """
    if form not in get_args(PointwiseForm):
        known = ", ".join(get_args(PointwiseForm))
        raise ValueError(f"form is {form!r}, but must be one of {known}")
    if (mean is None) != (std is None):
        raise ValueError("give both mean and std, or neither")
    model = (model if inplace else copy.deepcopy(model)).eval().requires_grad_(False)
    like = next(model.parameters())
    dtype, device = like.dtype, like.device
    if device.type in WITHOUT_FP64:
        model = model.cpu()
    normalization = None if mean is None or std is None else _normalization(model, mean, std)
    # A padded stem would see zeros where the mean belongs.
    takes_it = isinstance(model, Network) and is_unpadded(model.stem[0])
    first = normalization if takes_it else None
    folded = _fold(model, form, first).to(device, dtype)
    if normalization is None or first is not None:
        return folded
    means, stds = (torch.tensor(v, dtype=dtype, device=device) for v in (mean, std))
    return Normalized(folded, means, stds).eval()


def _normalization(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Affine:
    if len(mean) != len(std) or min(std) <= 0:
        raise ValueError(f"mean {mean} and std {std} need one value per channel, std above 0")
    if len(mean) != in_chans(model):
        raise ValueError(
            f"mean has {len(mean)} values, but the network takes {in_chans(model)} channels"
        )
    like = next(model.parameters()).device
    means, stds = (torch.tensor(v, dtype=torch.float64, device=like) for v in (mean, std))
    return Affine(1 / stds, -means / stds)


def _fold(module: nn.Module, form: PointwiseForm, first: Affine | None = None) -> nn.Module:
    """Return the folded form of a module, after folding its children in place."""
    if isinstance(module, TimmNetwork):
        fold_batch_norms(module)
        return module
    if isinstance(module, Block):
        return _fold_block(module, form)
    if isinstance(module, _DROPPED):
        return nn.Identity()
    if isinstance(module, Network):
        _replace_in_order(module.stem, [*([first] if first else []), *module.stem.children()])
    if isinstance(module, Head):
        _fold_head(module)
    elif isinstance(module, nn.Sequential) and _runs_in_order(module):
        _replace_in_order(module, list(module.children()))
    if isinstance(module, Foldable):
        module.fold_layers(_merge)
    for name, child in list(module.named_children()):
        setattr(module, name, _fold(child, form))
    return module


def _merge(layers: Sequence[nn.Module]) -> list[nn.Module]:
    return join(simplify(layers))


def _runs_in_order(module: nn.Sequential) -> bool:
    return type(module).forward is nn.Sequential.forward


def _replace_in_order(sequence: nn.Sequential, layers: Sequence[Layer]) -> None:
    """Replace the modules of a sequence by folded layers, named by position."""
    layers = [x for x in layers if not isinstance(x, (*_DROPPED, nn.Identity))]
    simpler = join(simplify(layers))
    for name in list(sequence._modules):
        del sequence._modules[name]
    for layer in simpler:
        sequence.append(layer)


def _fold_head(head: Head) -> None:
    norms = join(simplify([head.norm]))
    if isinstance(head.fc, nn.Linear):
        *norms, fc = join(simplify([head.norm, head.fc]))
        head.fc = cast(nn.Linear, fc)
    head.norm = norms[0] if norms else nn.Identity()


def _fold_block(block: Block, form: PointwiseForm) -> nn.Module:
    layers: list[Layer] = [cast(nn.Module, getattr(block, name)) for name in block.order]
    if block.gamma is not None:
        layers.append(affine(block.gamma))
    rows = join(simplify(layers))
    if form != "conv":
        rows = _as_linear(rows)
    chunked = _chunked(rows) if form == "chunked" and _is_plain(block) else None
    if chunked is not None:
        return chunked
    shortcut = _fold(block.shortcut, form)
    return FoldedBlock(nn.Sequential(*rows), shortcut, block.act).eval()


def _is_plain(block: Block) -> bool:
    return isinstance(block.shortcut, nn.Identity) and isinstance(block.act, nn.Identity)


def _chunked(rows: Sequence[nn.Module]) -> ChunkedBlock | None:
    """Return the chunked form of: spatial layer, norm, linear, GELU, linear over channels."""
    if len(rows) != 2 or not isinstance(rows[1], Positionwise):
        return None
    spatial, pointwise = rows[0], list(rows[1])
    norm = pointwise.pop(0) if isinstance(pointwise[0], Standardize | nn.LayerNorm) else None
    kinds = tuple(type(layer) for layer in pointwise)
    if kinds != (nn.Linear, nn.GELU, nn.Linear) or not isinstance(spatial, nn.Conv2d):
        return None
    first, gelu, second = cast(Any, pointwise)
    if gelu.approximate != "none":
        return None
    for linear in (first, second):
        if linear.bias is None:
            linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features), False)
    return ChunkedBlock(spatial, norm, first, second).eval()


def _as_linear(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Group consecutive pointwise layers to run over the channels as the last dimension."""
    out: list[nn.Module] = []
    run: list[nn.Module] = []

    def close() -> None:
        if any(isinstance(layer, Product) for layer in run):
            out.append(Positionwise(*map(_over_last, run)))
        else:
            out.extend(run)
        run.clear()

    for layer in layers:
        pointwise = isinstance(layer, nn.Conv2d) and _is_pointwise(layer)
        if pointwise or isinstance(layer, Standardize | nn.GELU | nn.ReLU):
            run.append(layer)
        else:
            close()
            out.append(layer)
    close()
    return out


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return (conv.kernel_size, conv.stride, conv.groups) == ((1, 1), (1, 1), 1) and (
        is_unpadded(conv)
    )


def _over_last(layer: nn.Module) -> nn.Module:
    """Return the version of a layer that takes (..., C)."""
    if isinstance(layer, Standardize):
        return StandardizeLast(layer.dim, eps=layer.eps)
    if isinstance(layer, nn.Conv2d):
        linear: Any = nn.Linear(layer.in_channels, layer.out_channels, device="meta")
        linear.weight = nn.Parameter(
            layer.weight.detach().flatten(1).contiguous(), requires_grad=False
        )
        linear.bias = None
        if layer.bias is not None:
            linear.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
        return cast(nn.Module, linear)
    return layer


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, qualified_name)


def fold_batch_norms(timm_model: TimmNetwork) -> int:
    """Fold the batch norms of a timm model in place; return their number.

    In timm models only `forward` defines the order of the layers. Tracing finds convolutions whose
    output goes to a batch norm and nowhere else. Models that cannot be traced are left unchanged;
    Swin and ViT have no batch norms anyway.
    """
    network = cast(nn.Module, timm_model.network)
    if not any(isinstance(m, _BatchNorm) for m in network.modules()):
        return 0
    try:
        graph = _Tracer().trace(network)
    except Exception:  # Tracing runs the model's own code on proxies, which may fail in any way.
        return 0
    modules = dict(network.named_modules())
    count = 0
    for node in graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, _BatchNorm):
            continue
        before = node.args[0]
        product = modules.get(str(before.target)) if before.op == "call_module" else None
        once = all(_num_calls(graph, n.target) == 1 for n in (node, before))
        if not isinstance(product, Product) or len(before.users) != 1 or not once:
            continue
        parts = _split_norm(norm)
        if parts is None:
            continue
        after, rest = parts
        _put(network, str(before.target), product_then(product, after))
        _put(network, str(node.target), rest)
        count += 1
    return count


def _split_norm(norm: _BatchNorm) -> tuple[Affine, nn.Module] | None:
    """Split timm's batch norm into an Affine and the dropout and activation after it."""
    own: Any = norm
    rest = [m for m in (getattr(own, "drop", None), getattr(own, "act", None)) if m is not None]
    known = (nn.BatchNorm2d.forward, _BatchNorm.forward)
    if type(norm).forward not in known and len(rest) < 2:
        return None
    plain = nn.BatchNorm2d(norm.num_features, eps=norm.eps, affine=norm.affine)
    plain.weight, plain.bias = norm.weight, norm.bias
    plain.running_mean, plain.running_var = norm.running_mean, norm.running_var
    (after,) = split(plain.eval())
    if not isinstance(after, Affine):
        return None
    rest = [m for m in rest if not isinstance(m, nn.Identity)]
    return after, nn.Sequential(*rest) if rest else nn.Identity()


def _num_calls(graph: fx.Graph, target: Any) -> int:
    return sum(n.op == "call_module" and n.target == target for n in graph.nodes)


def _put(root: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(root.get_submodule(parent), own, new)
