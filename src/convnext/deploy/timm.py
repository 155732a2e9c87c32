"""Batch norms of timm's networks into their convolutions, wherever the order is certain.

timm's networks say in `forward` alone which layer follows which. Tracing finds the pairs in which
a convolution's output goes to a batch norm and nowhere else; a network that cannot be traced has
none (Swin and ViT have no batch norms).
"""

from __future__ import annotations

from typing import Any, cast

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convnext.deploy.algebra import Affine, Product, product_then, split
from convnext.models.timm import TimmNetwork


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, qualified_name)


def fold_batch_norms(peer: TimmNetwork) -> int:
    """Fold every batch norm that follows a convolution alone, in place; return how many."""
    network = cast(nn.Module, peer.network)
    if not any(isinstance(m, _BatchNorm) for m in network.modules()):
        return 0
    try:
        graph = _Tracer().trace(network)
    except Exception:  # Tracing runs the network's own code on proxies, which may fail in any way.
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
        parts = _split(norm)
        if parts is None:
            continue
        after, rest = parts
        _replace(network, str(before.target), product_then(product, after))
        _replace(network, str(node.target), rest)
        count += 1
    return count


def _split(norm: _BatchNorm) -> tuple[Affine, nn.Module] | None:
    """Return a batch norm as an Affine and what timm does after it: dropout and an activation."""
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


def _replace(root: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(root.get_submodule(parent), own, new)
