"""Studies of any networks, ours and timm's, trained with one recipe."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import resources

from convnext.models.factory import check_name
from convnext.models.family import FAMILY
from convnext.models.roadmap import PAPER_REGIMES, roadmap
from convnext.studies.plan import Entry, Paper
from convnext.studies.roadmap import paper_of, parse_value, pin_network, show, split_list
from convnext.tasks import DEFAULT, task_class
from convnext.tasks.factory import dense_prefix

# LABEL=NAME@WEIGHTS:field=value,field=value, all but the name optional.
SPEC = re.compile(
    r"(?:(?P<label>[\w.\- ]+)=)?(?P<model>[^=@:]+)"
    r"(?:@(?P<weights>[^=]+?))?(?::(?P<changes>\w+=.*))?"
)
GROUPS = (
    ("resnext", "ResNeXt"),
    ("resnet", "ResNet"),
    ("swin", "Swin"),
    ("deit", "ViT"),
    ("vit", "ViT"),
)
# The paper's names of timm models.
PAPER_NAMES = {
    "timm/deit_small_patch16_224": "DeiT-S",
    "timm/deit_base_patch16_224": "DeiT-B",
    "timm/swin_tiny_patch4_window7_224": "Swin-T",
    "timm/swin_small_patch4_window7_224": "Swin-S",
    "timm/swin_base_patch4_window7_224": "Swin-B",
    "timm/vit_small_patch16_224": "ViT-S",
    "timm/vit_base_patch16_224": "ViT-B",
    "timm/vit_large_patch16_224": "ViT-L",
    "convnext_tiny": "ConvNeXt-T",
    "convnext_small": "ConvNeXt-S",
    "convnext_base": "ConvNeXt-B",
    "convnext_large": "ConvNeXt-L",
    "convnext_isotropic_small": "ConvNeXt-S(iso)",
    "convnext_isotropic_base": "ConvNeXt-B(iso)",
    "convnext_isotropic_large": "ConvNeXt-L(iso)",
}


def entries_of(specs: Sequence[str], task: str = DEFAULT) -> list[Entry]:
    """Return an entry for every `[LABEL=]MODEL[@WEIGHTS][:field=value,...]`.

    The others are compared with the first one. Fields are those of `NetworkConfig`, or arguments of
    a timm model. For segmentation and detection, a backbone is used in UPerNet or Mask R-CNN; full
    names work too.

    Raises:
        ValueError: If a model is unknown, a field is not `field=value`, or two share a label.
    """
    entries: list[Entry] = []
    for spec in specs:
        entry = _entry(spec, departs_from=entries[0].name if entries else "", task=task)
        if entry.name in {other.name for other in entries}:
            raise ValueError(
                f"two networks are called {entry.name!r}; give one of them a label: LABEL=MODEL"
            )
        entries.append(entry)
    return entries


def rivals_of(specs: Sequence[str]) -> list[Entry]:
    """Return entries for networks that run in addition to a roadmap, without comparison.

    Raises:
        ValueError: See `entries_of`.
    """
    return [replace(entry, departs_from="") for entry in entries_of(specs)]


def _entry(spec: str, *, departs_from: str, task: str) -> Entry:
    found = SPEC.fullmatch(spec)
    if found is None:
        raise ValueError(f"{spec!r} is not [LABEL=]MODEL[@WEIGHTS][:field=value,...]")
    kind = task_class(task)
    prefix = dense_prefix(found["model"]) or ""
    model, weights = found["model"].removeprefix(prefix), found["weights"]
    prefix = prefix or kind.default_prefix()
    if bool(prefix) != bool(kind.prefixes):
        raise ValueError(
            f"{found['model']} is not a network for --task {task}; name its backbone, or change "
            "--task"
        )
    changes = {}
    for part in split_list(found["changes"] or ""):
        name, equals, text = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} in {spec!r} is not field=value")
        changes[name] = parse_value(text)
    check_name(model)
    pins = pin_network(FAMILY[model]) if model in FAMILY else {}
    all_changes = dict(changes)
    leaves: dict[str, object] = {}
    settings = {f"network.{name}": changes.pop(name) for name in list(changes) if name in _OWN}
    leaves |= settings
    if changes:
        leaves["network.changes"] = changes
    if weights:
        leaves["weights"] = weights
    label = found["label"] or found["model"].replace("timm/", "") + (
        f"@{weights}" if weights else ""
    )
    if all_changes and not found["label"]:
        label += ":" + ",".join(f"{name}={show(value)}" for name, value in all_changes.items())
    # The paper has no accuracies of changed or pretrained networks.
    of_paper = not all_changes and not weights and not kind.prefixes
    paper = paper_figures(model) if of_paper else Paper()
    return Entry(
        name=label,
        what=_describe(model, all_changes),
        group=group_of(model),
        model=prefix + model,
        changes=leaves,
        pins=pins,
        departs_from=departs_from,
        paper=paper,
    )


# Fields of the network that are also recipe settings.
_OWN = ("drop_path_rate", "layer_scale_init", "stem", "stem_stride", "norm", "head_init_scale")


def group_of(model: str) -> str:
    """Return the kind of a network, which determines its color in figures."""
    if not model.startswith("timm/"):
        return "ConvNeXt" if "isotropic" not in model else "ConvNeXt (isotropic)"
    name = model.removeprefix("timm/")
    return next((group for start, group in GROUPS if start in name), "other")


def paper_figures(model: str) -> Paper:
    """Return the paper's figures for a network trained on ImageNet-1K at 224."""
    for regime in PAPER_REGIMES:
        for rung in roadmap(regime):
            if model == f"roadmap/{regime}/{rung.name}":
                return paper_of(rung, regime)
    name = PAPER_NAMES.get(model)
    return _figures().get(name, Paper(name=name)) if name else Paper()


@cache
def _figures() -> dict[str, Paper]:
    text = (resources.files("convnext.studies") / "imagenet1k.csv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {
        row["model"]: Paper(
            name=row["model"],
            top1=float(row["top1"]),
            gmacs=float(row["gmacs"]),
            images_per_s=float(row["images_per_s"]),
        )
        for row in csv.DictReader(lines)
    }


def _describe(model: str, changes: dict[str, object]) -> str:
    if not changes:
        return model
    return f"{model}, " + ", ".join(f"{name} {show(value)}" for name, value in changes.items())
