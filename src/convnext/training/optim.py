"""Parameter groups and learning rate of the optimizer, and the moving average of the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any, Literal, Never

import torch
from torch import nn

from convnext.models.network import Network
from convnext.models.timm import TimmNetwork
from convnext.recipes.resolve import OPTIMIZERS, own_settings
from convnext.recipes.schema import OptimRecipe
from convnext.training.distributed import full_tensor

if TYPE_CHECKING:
    from rich.table import Table


from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.distributed.tensor import DTensor

DecayBy = Literal["layer", "stage"]

# Ranges of modules that a table row names before it summarizes the rest as "and N more".
MAX_NAMED = 4
# The end of the name of a group that does not train from the start.
FROZEN = ", frozen at first"
GROUP_KEYS = {"params", "name", "lr_scale"}
"""The keys of a group from `parameter_groups` that are not settings of the optimizer."""


def layer_ids(model: nn.Module, by: DecayBy = "layer") -> dict[str, int]:
    """Return the group of every parameter for layer-wise or stage-wise decay, 0 at the input.

    The groups belong to the backbone: the model itself, or the first ConvNeXt or timm network in
    it. Every other parameter (neck, heads, output norms) is in the last group.

    By layer, as the authors do for classification and COCO: the stem is 0; stage 1 is 1; the first
    downsampling and stage 2 are 2; the second downsampling is 3; stage 3 starts at 3 and advances
    by one every three blocks; the third downsampling and stage 4 are one more (N, 12 for depths
    3-3-27-3 and 6 for 3-3-9-3); the rest is N + 1. An isotropic network starts at 1 and advances by
    one every three blocks. By stage, as they do for ADE20K: stem and downsampling are 0; stage s
    (from 1) is s; the rest is N + 1 with the same N. timm models have the groups that timm defines.

    Raises:
        ValueError: If the model has no such network, or timm does not distinguish the layers or
            stages of its model.
    """
    found = (
        (name, module, ids_of)
        for name, module in model.named_modules()
        for kind, ids_of in _BACKBONES.items()
        if isinstance(module, kind)
    )
    prefix, backbone, ids_of = next(found, ("", None, None))
    if ids_of is None:
        raise ValueError(
            f"{type(model).__name__} contains no network of `convnext models` whose layers "
            "could have separate rates; set optim.layer_decay to 1"
        )
    ids, last = ids_of(backbone, by)
    start = f"{prefix}." if prefix else ""
    return {
        name: ids.get(name.removeprefix(start), last) if name.startswith(start) else last
        for name, _ in model.named_parameters()
    }


def _ids_of_ours(network: Network, by: DecayBy) -> tuple[dict[str, int], int]:
    """Return the group of every parameter in stem and stages, and the group of all others."""
    depths = network.config.depths
    # Blocks are grouped by three in the long stage: the third, or the only one if isotropic.
    long = 0 if len(depths) == 1 else 2
    first = list(
        accumulate((math.ceil(d / 3) if s == long else 1 for s, d in enumerate(depths)), initial=1)
    )

    def layer(part: str, stage: int, block: int) -> int:
        return first[stage] + (block // 3 if part == "stages" and stage == long else 0)

    def stage_of(part: str, stage: int, block: int) -> int:
        return stage + 1 if part == "stages" else 0

    id_of = {"layer": layer, "stage": stage_of}[by]
    ids = {}
    for name, _ in network.named_parameters():
        part, *rest = name.split(".")
        if part == "stem":
            ids[name] = 0
        elif part in ("downsample", "stages"):
            ids[name] = id_of(part, int(rest[0]), int(rest[1]) if part == "stages" else 0)
    return ids, first[-1]


def _ids_of_timm(timm_model: TimmNetwork, by: DecayBy) -> tuple[dict[str, int], int]:
    ids = _timm_groups(timm_model, coarse=False)
    last = max(ids.values())
    if by == "layer":
        return ids, last
    try:
        num_levels = len(timm_model.levels)
    except ValueError as error:
        raise ValueError(f"{error}; or set optim.layer_decay_by to layer") from error
    parts, ends = timm_stages(timm_model)
    stages = _timm_stage_names(timm_model, num_levels)
    # timm counts what follows the last stage as part of it, or of the head.
    names = [name for name, _ in timm_model.named_parameters()]
    end = max(n for n, name in enumerate(names) if name.startswith(stages[-1]))
    ids = {}
    for name in names[: end + 1]:
        part = parts[name]
        if part == 0 or any(name.startswith(f"{stage}downsample.") for stage in stages):
            ids[name] = 0
        else:
            # A stage may span several parts in timm; only the last one outputs its feature map.
            ids[name] = 1 + next(s for s, end in enumerate(ends) if part <= end)
    return ids, max(last, num_levels + 1)


def timm_stages(timm_model: TimmNetwork) -> tuple[dict[str, int], list[int]]:
    """Return the part of every parameter of a timm model, and the last part of each stage.

    Raises:
        ValueError: If the model has a single scale, or its stages cannot be told apart.
    """
    stages = _timm_stage_names(timm_model, len(timm_model.levels))
    parts = _timm_groups(timm_model, coarse=True)
    ends = [max((i for n, i in parts.items() if n.startswith(s)), default=-1) for s in stages]
    if ends != sorted(set(ends)) or ends[0] < 0:
        raise ValueError(
            f"the parameters of {timm_model.name} cannot be told apart by stage; set "
            "optim.layer_decay_by to layer"
        )
    return parts, ends


def _timm_stage_names(timm_model: TimmNetwork, num_levels: int) -> list[str]:
    rows = timm_model.network.feature_info[-num_levels:]
    return [f"network.{row['module']}." for row in rows]


def _timm_groups(timm_model: TimmNetwork, *, coarse: bool) -> dict[str, int]:
    from timm.models import group_parameters

    if not hasattr(timm_model.network, "group_matcher"):
        raise ValueError(
            f"timm has no groups of layers for {timm_model.name}; set optim.layer_decay to 1"
        )
    matcher = timm_model.network.group_matcher(coarse=coarse)
    groups = group_parameters(timm_model.network, matcher, reverse=True)
    return {f"network.{name}": int(group) for name, group in groups.items()}


_BACKBONES: dict[type[nn.Module], Callable[[Any, DecayBy], tuple[dict[str, int], int]]] = {
    Network: _ids_of_ours,
    TimmNetwork: _ids_of_timm,
}


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float,
    layer_decay_by: DecayBy = "layer",
    frozen: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Return the optimizer's groups: one for each layer and kind of weight decay.

    Biases and one-dimensional parameters do not decay, as in the authors' recipe. The schedule
    multiplies its rate by the `lr_scale` of each group: `layer_decay ** (last - id)`. Parameters
    in `frozen` are in groups of their own, whose names say so.
    """
    ids = layer_ids(model, layer_decay_by) if layer_decay != 1 else {}
    last = max(ids.values(), default=0)
    groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        is_frozen = name in frozen
        if not (parameter.requires_grad or is_frozen):
            continue
        decays = parameter.ndim > 1 and not name.endswith(".bias")
        layer = ids.get(name, last)
        group = groups.setdefault(
            (layer, decays, is_frozen),
            {
                "name": f"group {layer} {'decay' if decays else 'no decay'}"
                f"{FROZEN if is_frozen else ''}",
                "params": [],
                "lr_scale": layer_decay ** (last - layer),
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    for group in groups.values():
        group["lr"] = lr * group["lr_scale"]
    return [groups[key] for key in sorted(groups)]


def make_optimizer(
    model: nn.Module, recipe: OptimRecipe[Never], frozen: Collection[str] = ()
) -> torch.optim.Optimizer:
    """Build the optimizer over `parameter_groups`; AdamW is fused where the device supports it.

    Parameters in `frozen` are in it only if the recipe unfreezes them.

    Raises:
        ValueError: If the optimizer lacks one of the settings, or timm lacks the optimizer.
    """
    settings = own_settings(recipe)
    groups = _groups(model, recipe, frozen)
    if not recipe.unfreeze_at:
        groups = [group for group in groups if not group["name"].endswith(FROZEN)]
    if recipe.name == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, fused=_has_fused(model), **settings)
    if recipe.name == "lamb":
        settings["max_grad_norm"] = None  # `optim.clip_grad` clips.
    import timm
    from timm.optim import create_optimizer_v2, list_optimizers

    if recipe.name not in (known := list_optimizers()):
        others = ", ".join(name for name in OPTIMIZERS if name in known)
        raise ValueError(
            f"timm {timm.__version__} has no {recipe.name}: install a newer one, or choose one of "
            f"{others}"
        )
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        groups, opt=recipe.name, lr=recipe.lr, **settings
    )
    return optimizer


def _groups(
    model: nn.Module, recipe: OptimRecipe[Never], frozen: Collection[str]
) -> list[dict[str, Any]]:
    return parameter_groups(
        model,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        layer_decay_by=recipe.layer_decay_by,
        frozen=frozen,
    )


def _has_fused(model: nn.Module) -> bool:
    return next(model.parameters()).device.type in ("cpu", "cuda")


def group_rows(
    model: nn.Module, recipe: OptimRecipe[Never], frozen: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Return the optimizer's groups as plain values: their modules, rates and weight decay.

    `frozen` is "" for what trains, "to the end", or "to epoch N".
    """
    until = f"to epoch {recipe.unfreeze_at:g}" if recipe.unfreeze_at else "to the end"
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        {
            "name": group["name"],
            "holds": name_modules([names[id(p)] for p in group["params"]]),
            "tensors": len(group["params"]),
            "params": sum(p.numel() for p in group["params"]),
            "lr_scale": group["lr_scale"],
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
            "frozen": until if group["name"].endswith(FROZEN) else "",
        }
        for group in _groups(model, recipe, frozen)
    ]


def group_table(
    model: nn.Module, recipe: OptimRecipe[Never], frozen: Collection[str] = ()
) -> Table:
    """Return `group_rows` as a table for the terminal."""
    from rich.table import Table

    rows = group_rows(model, recipe, frozen)
    scales = any(row["lr_scale"] != 1 for row in rows)
    table = Table(box=None, header_style="bold")
    table.add_column("group", no_wrap=True)
    table.add_column("holds", overflow="fold")
    headings = ("tensors", "params (M)", *(["lr scale"] if scales else []), "peak lr")
    for heading in (*headings, "weight decay"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["name"].removesuffix(FROZEN)
            + (f"\nfrozen {row['frozen']}" if row["frozen"] else ""),
            row["holds"],
            f"{row['tensors']:,}",
            f"{row['params'] / 1e6:.3f}",
            *([f"{row['lr_scale']:.4f}"] if scales else []),
            f"{row['lr']:.3g}",
            f"{row['weight_decay']:g}",
        )
    return table


def name_modules(names: Sequence[str]) -> str:
    """Summarize the modules of some parameters, such as "stages.2.3 to stages.2.5".

    A numbered module (a block) represents everything in it.
    """
    modules = dict.fromkeys(
        block[0] if (block := re.match(r".*?\.\d+(?:\.\d+)*(?=\.)", name)) else _parent(name)
        for name in names
    )
    runs = []
    for _, members in groupby(modules, key=_parent):
        first, *others = members
        runs.append(f"{first} to {others[-1]}" if others else first)
    more = len(runs) - MAX_NAMED
    return ", ".join(runs[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _parent(name: str) -> str:
    return name.rpartition(".")[0] or name


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, scaled by its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


class Ema:
    """Moving averages of all parameters and buffers, with the same values as timm's ModelEmaV3.

    ModelEmaV3 keeps a second module, which cannot be copied from a sharded network and cannot share
    a compiled one. This class copies the averages into the network while they are evaluated.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: t.detach().clone() for name, t in model.state_dict().items()}

    def decay_at(self, step: int) -> float:
        """Return the decay of a step, counted from 1. A warm-up discounts the random weights."""
        warmed: float = 1 - step**-0.75
        return min(self.decay, warmed)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the averages with the weights after `step`."""
        # One call cannot mix sharded parameters and unsharded buffers.
        pairs: dict[bool, tuple[list[Tensor], list[Tensor]]] = {False: ([], []), True: ([], [])}
        for name, value in model.state_dict().items():
            average = self.tensors[name]
            if average.is_floating_point():
                averages, weights = pairs[isinstance(average, DTensor)]
                averages.append(average)
                weights.append(value.detach())
            else:
                average.copy_(value)
        for averages, weights in pairs.values():
            if averages:
                torch._foreach_lerp_(averages, weights, weight=1.0 - self.decay_at(step))

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Copy the averages into the network inside the block, then restore its own values."""
        own = {name: t.detach().clone() for name, t in model.state_dict().items()}
        _copy(self.tensors, model)
        try:
            yield
        finally:
            _copy(own, model)


@torch.no_grad()
def _copy(values: dict[str, Tensor], model: nn.Module) -> None:
    for name, target in model.state_dict().items():
        target.copy_(values[name])


def l2_norm(model: nn.Module) -> Tensor:
    """Return the L2 norm of all parameters, as a tensor on their device.

    If they are sharded over processes, every process must call.
    """
    return _l2(p.detach() for p in model.parameters())


class UpdateNorm:
    """The L2 norm of one update: created before `optimizer.step()`, computed after it.

    It holds a second copy of the trained parameters in between, so a loop measures only
    occasionally.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._before = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def compute(self) -> Tensor:
        """Return the norm and release the copy."""
        before, self._before = self._before, []
        torch._foreach_sub_(before, [p.detach() for p in self._parameters])
        return _l2(before)


@torch.no_grad()
def _l2(tensors: Iterable[Tensor]) -> Tensor:
    return full_tensor(nn.utils.get_total_norm(list(tensors)))
