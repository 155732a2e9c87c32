"""`load_weights` from any source and layout, with a report; `export_weights` in any layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convnext.models.config import NetworkConfig
from convnext.names import count_noun
from convnext.weights.dense import DenseNetwork, Target, infer_model, layouts_of_model
from convnext.weights.files import NOTE, check_tensors, find_state_dict
from convnext.weights.layouts import (
    IMAGENET_1K,
    IMAGENET_22K,
    LAYOUT_NAMES,
    LAYOUTS,
    Layout,
    Recognition,
    bare,
    fit,
    fold_layer_scale,
    layout_for,
    num_dims,
    recognize,
    slice_head,
    to_layout,
    with_num_dims,
)
from convnext.weights.sources import read_source

MIN_MATCHED = 0.9
"""A file that matches less than this share of the backbone belongs to another network."""
_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """The outcome for every tensor of a source and of a network."""

    source: str
    layout: str
    loaded: int
    """Number of tensors that were loaded."""
    total: int
    """Number of tensors of the network."""
    renamed: int
    """Number of loaded tensors that have another name in the source."""
    resized: tuple[str, ...]
    """Loaded tensors that were resampled, with both shapes."""
    missing: tuple[str, ...]
    """Tensors that the source lacks; they keep their values."""
    unexpected: tuple[str, ...]
    """Tensors of the source that the network does not have."""
    head: str
    """What happened to the classifier, in words."""
    head_replaced: bool
    """Whether the network keeps its own new classifier."""
    matched: float
    """Share of the backbone's tensors, in source or network, that matched."""
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> str:
        """How many tensors were loaded, skipped and left new, in a line."""
        new = self.total - self.loaded
        return (
            f"{self.loaded:,} tensors loaded, {len(self.unexpected):,} of the file not used, "
            f"{new:,} start from scratch; head: {self.head}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.source}: layout {self.layout}, {self.loaded} of {self.total} tensors loaded "
            f"({100 * self.matched:.0f} % of the backbone)",
            f"head: {self.head}",
        ]
        lists = {"resized": self.resized, "missing": self.missing, "not used": self.unexpected}
        lines += [f"{what}: {shorten(names)}" for what, names in lists.items() if names]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def load_weights(
    model: nn.Module, source: str | Path | Mapping[str, Any], *, ema: bool = False
) -> LoadReport:
    """Load weights in any layout into a network.

    Args:
        model: A network from `create_model`.
        source: A file, a run folder or a snapshot folder of the hub; a tag of the model, such as
            "fb_in1k"; a hub id, `owner/name` or `owner/name@revision`; or a state dict, perhaps
            nested under `model`, `state_dict` or a similar key, as in published files.
        ema: Use the moving average of the weights if there are both.

    If the numbers of classes differ, `model` keeps its classifier, except that the 21,841 classes
    of ImageNet-22K are cut down to 1,000. A stem of another size or number of channels is
    resampled. Layer scales that only one side has are set to 1 or folded into the convolutions.
    The weights of a classifier are loaded into the backbone of a dense network, whose heads do not
    change.

    Raises:
        ValueError: If the source cannot be read or does not fit; the model is then unchanged.
    """
    notes: list[str] = []
    if isinstance(source, Mapping):
        label = "state dict"
        tensors = find_state_dict(source, "the state dict", ema=ema, notes=notes)
        check_tensors(tensors, "the state dict")
    else:
        name, backbone = (
            str(getattr(network, "name", ""))
            for network in (model, getattr(model, "backbone", model))
        )
        tensors, metadata = read_source(source, model=name, backbone=backbone, ema=ema)
        notes += [metadata[NOTE]] if NOTE in metadata else []
        label = str(source)
    target = Target.of(model, tensors)
    plan = _plan(target, tensors)
    if plan.mismatched or plan.matched < MIN_MATCHED:
        raise ValueError(_refusal(label, target, plan, tensors))
    target.module.load_state_dict(plan.tensors, strict=False)
    _follow_layout(model, target, plan)
    return LoadReport(
        source=label,
        layout=plan.layout,
        loaded=len(plan.tensors),
        total=len(target.expected) + len(target.outside),
        renamed=sum(theirs != ours for theirs, ours in plan.names.items() if ours in plan.tensors),
        resized=tuple(plan.resized),
        missing=(
            *(target.prefix + n for n in target.expected if n not in plan.tensors),
            *target.outside,
        ),
        unexpected=tuple(plan.unexpected),
        head=plan.head,
        head_replaced=plan.head_replaced,
        matched=plan.matched,
        notes=(*notes, *plan.notes),
    )


def _follow_layout(model: nn.Module, target: Target, plan: _Plan) -> None:
    """Set the open settings of a dense network by the layout of its heads."""
    if target.tables is None or not isinstance(model, DenseNetwork):
        return
    open_settings = {
        name: value
        for name, value in target.tables.by_layout.get(plan.layout, {}).items()
        if getattr(model.config, name) is None
    }
    if open_settings:
        model.config = replace(model.config, **open_settings)
        listed = ", ".join(f"{name}={value}" for name, value in open_settings.items())
        plan.notes.append(f"as in the layout {plan.layout}: {listed}")


@dataclass(kw_only=True)
class _Plan:
    """What will be loaded."""

    layout: str
    names: dict[str, str]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    resized: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    head: str = ""
    head_replaced: bool = False
    matched: float = 0.0


def _plan(target: Target, tensors: Mapping[str, Tensor]) -> _Plan:
    recognition = (
        recognize(tensors, target.layouts) if target.ours else _by_own_names(target, tensors)
    )
    plan = _Plan(layout=recognition.layout.name, names=recognition.names)
    found = {ours: tensors[theirs] for theirs, ours in recognition.names.items()}
    found = _match_layer_scales(target, found, plan)
    for name, tensor in found.items():
        if name not in target.expected or name.startswith(target.classifiers):
            continue
        shape = target.expected[name].shape
        fitted = fit(name, tensor, shape)
        if fitted is None:
            plan.mismatched.append(f"{name} {tuple(tensor.shape)} for {tuple(shape)}")
            continue
        plan.tensors[name] = fitted
        if fitted.numel() != tensor.numel():
            plan.resized.append(f"{name} {tuple(tensor.shape)} -> {tuple(shape)}")
    plan.matched = _share(target, found, recognition, plan)
    _plan_head(target, found, plan)
    unused = [t for t, ours in recognition.names.items() if ours not in target.expected]
    folded = {t for t in unused if recognition.names[t].endswith(".gamma")}
    plan.unexpected = [t for t in unused if t not in folded]
    plan.unexpected += [*recognition.unknown, *recognition.extra]
    return plan


def _share(
    target: Target, found: Mapping[str, Tensor], recognition: Recognition, plan: _Plan
) -> float:
    """Return the share of the backbone's tensors, in source or network, that will be loaded.

    Counting both sides tells small from tiny, whose tensors are all in small, and ConvNeXt V2 from
    V1. The batch counters of batch norms are left out: files of torch 0.4 do not have them.
    """
    either = {
        name
        for name in target.expected.keys() | found.keys()
        if not target.is_head(name) and not name.endswith("num_batches_tracked")
    }
    return len(either & plan.tensors.keys()) / max(len(either) + len(recognition.unknown), 1)


def _by_own_names(target: Target, tensors: Mapping[str, Tensor]) -> Recognition:
    """Match tensors by the names of the network itself."""
    names = {t: n for t in tensors for n in (t, bare(t)) if n in target.expected}
    rest = tuple(name for name in tensors if name not in names)
    layout = Layout(name="timm" if target.layouts is LAYOUTS else "convnext", rows={}, like=None)
    return Recognition(layout=layout, names=names, unknown=(), extra=rest)


def _match_layer_scales(target: Target, found: dict[str, Tensor], plan: _Plan) -> dict[str, Tensor]:
    wanted = [name for name in target.expected if target.ours and name.endswith(".gamma")]
    given = [name for name in found if target.ours and name.endswith(".gamma")]
    if wanted and not given:
        plan.notes.append("the source has no layer scale; it is set to 1, which leaves it out")
        return found | {name: torch.ones(target.expected[name].shape) for name in wanted}
    if given and not wanted:
        plan.notes.append("the layer scales of the source are folded into the convolutions")
        return fold_layer_scale(found)
    return found


def _plan_head(target: Target, found: Mapping[str, Tensor], plan: _Plan) -> None:
    """Decide whether to load the classifier, cut it down, or keep the network's own."""
    wanted = [name for name in target.expected if name.startswith(target.classifiers)]
    given = [name for name in found if name.startswith(target.classifiers)]
    if target.outside:
        plan.head, plan.head_replaced = "fresh, the source has none for this task", True
        return
    if not target.classifiers or not wanted:
        plan.head = "the network has none" + (", that of the source is not used" * bool(given))
        return
    given = [name for name in given if name in target.expected]
    if not given:
        plan.head, plan.head_replaced = "fresh, the source has none", True
        return
    heads = {name: fit(name, found[name], target.expected[name].shape) for name in given}
    # A detector has a background class in one layer and four box rows per class in another.
    classes = min(len(target.expected[name]) for name in wanted)
    old = min(len(found[name]) for name in given)
    if all(head is not None for head in heads.values()):
        plan.head = f"loaded, {count_noun(classes, 'class', 'classes')}"
    elif target.ours and (old, classes) == (IMAGENET_22K, IMAGENET_1K):
        heads = {
            name: fit(name, slice_head(found[name]), target.expected[name].shape) for name in given
        }
        plan.head = (
            "the 21,841 classes of ImageNet-22K cut down to the 1,000 of ImageNet-1K "
            "(teddy bear, which 22K lacks, has the mean of the others)"
        )
    else:
        plan.head = f"fresh for {count_noun(classes, 'class', 'classes')}, the source has {old:,}"
        plan.head_replaced = True
        return
    plan.tensors |= {name: head for name, head in heads.items() if head is not None}


def _refusal(label: str, target: Target, plan: _Plan, tensors: Mapping[str, Tensor]) -> str:
    missing = [n for n in target.expected if n not in plan.tensors and not target.is_head(n)]
    clauses = [
        f"{label} does not fit {target.name}: {100 * plan.matched:.0f} % of the backbone matches "
        f"(at least {100 * MIN_MATCHED:.0f} % must, in shape too); the nearest layout is "
        f"{plan.layout!r}"
    ]
    lists = {
        "not in the source": missing,
        "not in the network": plan.unexpected,
        "of another shape": plan.mismatched,
    }
    clauses += [f"{what}: {shorten(names)}" for what, names in lists.items() if names]
    try:
        infer = infer_model if target.tables is None else target.tables.infer
        name, changes = infer(tensors)
    except ValueError:
        return "; ".join(clauses)
    settings = "".join(f", {key}={value!r}" for key, value in changes.items())
    clauses.append(f"this file looks like {name}: create_model({name!r}{settings})")
    return "; ".join(clauses)


def shorten(names: Sequence[str]) -> str:
    """Return the first few names and the number of the others."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def export_weights(model: nn.Module, layout: str) -> dict[str, Tensor]:
    """Return the weights of a network of our own in a published layout.

    Args:
        model: A member of the family, a step of the roadmap, or a dense network on one.
        layout: "official", "timm", "torchvision", "transformers", "openmmlab" or "convnext".

    Returns:
        The tensors, which share memory with those of the network.

    Raises:
        ValueError: If there is no such layout, or it cannot hold this network.
    """
    name = str(getattr(model, "name", type(model).__name__))
    config = getattr(getattr(model, "backbone", model), "config", None)
    if isinstance(config, NetworkConfig):
        return export_tensors(model.state_dict(), config, layout, layouts_of_model(model))
    if layout == "convnext" and hasattr(model, "backbone"):
        return dict(model.state_dict())
    inner = getattr(model, "network", None)
    if isinstance(inner, nn.Module) and layout == "timm":
        return dict(inner.state_dict())
    if layout not in LAYOUT_NAMES:
        raise ValueError(f"there is no layout {layout!r}; choose one of {', '.join(LAYOUT_NAMES)}")
    raise ValueError(
        f"{name} cannot be written in the layout {layout!r}"
        + ("; choose timm" if isinstance(inner, nn.Module) else "")
    )


def export_tensors(
    tensors: Mapping[str, Tensor],
    config: NetworkConfig,
    layout: str,
    layouts: tuple[Layout, ...] = LAYOUTS,
) -> dict[str, Tensor]:
    """Convert tensors under our names to a published layout, as `export_weights` does.

    `config` is that of the network or its backbone; `layouts` are the tables to choose from.
    """
    form = layout_for(layout, config, layouts)
    if layout != "convnext" and "output_norms.{s}" in form.rows and not _has_norms(tensors):
        raise ValueError(
            f"the layout {layout!r} has norms on the maps of the backbone, this network has none; "
            "build it with output_norms=True, or write it as 'convnext'"
        )
    dims = num_dims(form, config)
    names = to_layout(tensors, form)
    assert len(names) == len(tensors), "a layout that covers a network names all its tensors"
    exported = {}
    for ours, theirs in names.items():
        wanted = next((n for end, n in dims.items() if ours.endswith(f".{end}")), None)
        tensor = tensors[ours].detach()
        exported[theirs] = tensor if wanted is None else with_num_dims(tensor, wanted)
    return exported


def _has_norms(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("output_norms.") for name in tensors)
