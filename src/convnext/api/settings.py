"""Recipe settings as arguments: short names, full names and sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from convnext.names import nearest
from convnext.recipes.recipe import (
    Recipe,
    all_settings,
    change_recipe,
    parse_settings,
    read_recipe,
)

Auto = Literal["auto"]

# Frozen by a test: scripts rely on these names, so later settings must not change them.
SHORT = {
    "epochs": "schedule.epochs",
    "warmup_epochs": "schedule.warmup_epochs",
    "batch_size": "optim.batch_size",
    "micro_batch_size": "optim.micro_batch_size",
    "lr": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "layer_decay": "optim.layer_decay",
    "image_size": "input.image_size",
    "drop_path_rate": "network.drop_path_rate",
    "mixup": "augment.mixup",
    "cutmix": "augment.cutmix",
    "rand_augment": "augment.rand_augment",
    "label_smoothing": "loss.label_smoothing",
    "ema_decay": "ema.decay",
    "workers": "loader.workers",
    "val_share": "loader.val_share",
    "max_bad_share": "loader.max_bad_share",
    "layout": "detect.layout",
    "annotations": "detect.annotations",
    "images": "detect.images",
    "exif": "detect.exif",
    "boxes": "detect.boxes",
    "allow_outside": "detect.allow_outside",
    "device": "run.device",
    "devices": "run.devices",
    "precision": "run.precision",
    "eval_every": "run.eval_every",
    "patience": "run.patience",
    "seed": "run.seed",
    "deterministic": "run.deterministic",
}
"""Short names of settings, and their full names."""
ONLY_IN_FULL_HELP = {"layout", "annotations", "images", "exif", "boxes", "allow_outside"}
"""Short names for unusual data; `data --help` shows them, `train --help-all` too."""


class Settings(TypedDict, total=False):
    """Recipe settings by short name, or a section as a mapping.

    Every setting also has a full name: `train(**{"schedule.min_lr": 0})`.
    """

    epochs: int | Auto
    warmup_epochs: float | Auto
    batch_size: int | Auto
    micro_batch_size: int | Auto
    lr: float | Auto
    weight_decay: float | Auto
    layer_decay: float | Auto
    image_size: int | Auto
    drop_path_rate: float | Auto
    mixup: float | Auto
    cutmix: float | Auto
    rand_augment: str
    label_smoothing: float | Auto
    ema_decay: float | Auto
    workers: int | Auto
    val_share: float
    max_bad_share: float
    layout: str
    annotations: str
    images: str
    exif: Literal["", "turned", "unturned"]
    boxes: Literal["", "xywh", "xyxy", "cxcywh"]
    allow_outside: bool
    device: str
    devices: int | Auto
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    eval_every: int | Auto
    patience: int
    seed: int
    deterministic: bool
    network: Mapping[str, Any]
    input: Mapping[str, Any]
    augment: Mapping[str, Any]
    loss: Mapping[str, Any]
    segment: Mapping[str, Any]
    detect: Mapping[str, Any]
    optim: Mapping[str, Any]
    schedule: Mapping[str, Any]
    ema: Mapping[str, Any]
    loader: Mapping[str, Any]
    run: Mapping[str, Any]


def full_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by their full names, with checked values.

    Args:
        given: Settings by short name, full name (`schedule.epochs`), or section
            (`schedule={"epochs": 20}`).

    Raises:
        ValueError: If a name is unknown (the nearest one is suggested), a value has the wrong type,
            or a setting is given twice.
    """
    leaves = all_settings()
    sections = {name.partition(".")[0] for name in leaves if "." in name}
    full: dict[str, Any] = {}

    def take(name: str, value: Any, called: str) -> None:
        if name in full:
            raise ValueError(f"{name} is given twice, the second time as {called}")
        if name not in leaves:
            known = nearest(called, [*SHORT, *leaves])
            raise ValueError(f"there is no setting {called}{known}")
        full[name] = value

    for name, value in given.items():
        if name in sections:
            if not isinstance(value, Mapping):
                raise ValueError(f"{name} is a section of settings, not {value!r}")
            for leaf, inner in value.items():
                take(f"{name}.{leaf}", inner, f"{name}.{leaf}")
        else:
            take(SHORT.get(name, name), value, name)
    checked = parse_settings(_nested(full)) if full else {}
    return {name: checked[name] for name in full}


def given_settings(settings: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """Return `settings` and the arguments in `own` that are not None, by full names.

    Raises:
        ValueError: As for `full_settings`.
    """
    asked = {name: value for name, value in own.items() if value is not None}
    return full_settings({**settings, **asked})


def make_recipe(source: Any, given: Mapping[str, Any]) -> Recipe:
    """Return a recipe with some settings changed.

    Args:
        source: A bundled name, a file, or a `Recipe`; None for the defaults.
        given: Settings by full name, as `full_settings` returns them.

    Raises:
        ValueError: If the recipe does not exist.
    """
    if source is None:
        recipe = Recipe()
    else:
        recipe = source if isinstance(source, Recipe) else read_recipe(source)
    return change_recipe(recipe, given)


def _nested(full: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in full.items():
        section, _, leaf = name.rpartition(".")
        plain = list(value) if isinstance(value, tuple) else value
        if section:
            tree.setdefault(section, {})[leaf] = plain
        else:
            tree[leaf] = plain
    return tree
