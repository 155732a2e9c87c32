"""How a task fills the settings that read `auto`: what it looks at, and what it says it chose."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from convnext.data.preprocessing import DensePreprocessing
from convnext.hardware.peak_rates import has_fast_bf16
from convnext.recipes.recipe import Recipe, change_recipe, flatten, number
from convnext.recipes.schema import DetectRecipe, NetworkRecipe, SegmentRecipe
from convnext.weights.checkpoint import Card

GREY_MEAN, GREY_STD = (0.449,), (0.226,)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One setting that `auto` chose."""

    setting: str
    value: Any
    reason: str


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What the rules look at beside the recipe and the data."""

    device: str
    """"cpu", "cuda" or "mps"."""
    has_bf16: bool
    """Whether the device computes in bf16 faster than in fp32."""
    preprocessing: Any = None
    """What the pretrained weights were made for, where it is known."""
    weights_network: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the network that the pretrained weights belong to, where they are ours."""


class Chooser:
    """Fills the settings that read `auto`, and remembers why."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.choices: list[Choice] = []

    def __getitem__(self, setting: str) -> Any:
        return dict(flatten(self.recipe))[setting]

    def set(self, setting: str, value: Any) -> None:
        """Set `setting` without a word, where nothing reads it."""
        self.recipe = change_recipe(self.recipe, {setting: value})

    def choose(self, setting: str, value: Any, reason: str) -> Any:
        """Set `setting` if it reads `auto`; return what it is now."""
        if self[setting] == "auto":
            self.recipe = change_recipe(self.recipe, {setting: value})
            self.choices.append(Choice(setting=setting, value=value, reason=reason))
        return self[setting]


CardOf = Callable[[str, str], Card | None]
"""What is known of weights before they are loaded, by their source and the network's name."""


def circumstances(
    recipe: Recipe, device: torch.device, card_of: CardOf
) -> tuple[Recipe, Circumstances]:
    """Return the recipe for the network of its weights, and what `auto` looks at beside data."""
    recipe, card = _with_weights(recipe, card_of)
    return recipe, Circumstances(
        device=device.type,
        has_bf16=has_fast_bf16(device),
        preprocessing=card.preprocessing if card else None,
        weights_network=card.changes if card else {},
    )


def _with_weights(recipe: Recipe, card_of: CardOf) -> tuple[Recipe, Card | None]:
    """Return the card of the weights that a recipe starts from, and the recipe for its network."""
    if recipe.weights == "none":
        return recipe, None
    card = card_of(recipe.weights, recipe.model)
    if card is None or recipe.model not in ("auto", card.model):
        return recipe, card
    recipe = replace(recipe, model=card.model)
    kept = {"num_classes", "in_chans", "drop_path_rate", "head_init_scale"}
    kept |= {"auxiliary", "ignore_threshold", "masks"}
    for section in (NetworkRecipe, SegmentRecipe, DetectRecipe):
        kept |= {field.name for field in fields(section)}
    changes = {name: value for name, value in card.changes.items() if name not in kept}
    network = replace(recipe.network, changes=changes | recipe.network.changes)
    return replace(recipe, network=network), card


def print_choices(choices: Sequence[Choice], console: Console) -> None:
    """Print what `auto` chose, and why."""
    if not choices:
        return
    table = Table(box=None, header_style="dim", title="chosen by auto", title_justify="left")
    for name in ("setting", "value", "because"):
        table.add_column(name, overflow="fold")
    for choice in choices:
        value = choice.value
        shown = ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
        table.add_row(choice.setting, shown, choice.reason)
    console.print(table)


def dense_preprocessing(recipe: Recipe) -> DensePreprocessing:
    """Return the preprocessing that a resolved recipe asks for."""
    settings = recipe.input
    assert not isinstance(settings.mean, str)
    assert not isinstance(settings.std, str)
    assert settings.interpolation != "auto"
    return DensePreprocessing(
        image_size=int(number(settings.image_size)),
        max_size=settings.max_size,
        interpolation=settings.interpolation,
        mean=settings.mean,
        std=settings.std,
        in_chans=int(number(settings.in_chans)),
    )


def choose_execution(c: Chooser, where: Circumstances, n: int, *, large: bool) -> None:
    """Choose what dense tasks choose alike: averaging, evaluations, cache, workers, precision.

    Args:
        c: Knows the batch and the epochs already.
        where: The device.
        n: Training images.
        large: Whether the data is as large as that of the paper.
    """
    _choose_ema(c, n, large=large)
    every = max(1, round(c["schedule.epochs"] / 10))
    every = c.choose("run.eval_every", every, "epochs between evaluations")
    steps = max(1, round(every * max(1, n // c["optim.batch_size"])))
    c.choose("run.save_every", min(1000, steps), "steps that a crash can cost")
    c.choose("loader.cache", not large, "too many images" if large else "if the images fit")
    workers = 0 if where.device == "cpu" else min(16, max(2, (os.cpu_count() or 2) - 1))
    reason = "the network needs every core" if workers == 0 else "the cores beside the GPU"
    c.choose("loader.workers", workers, reason)
    precision = "bf16" if where.has_bf16 else "fp32"
    reason = "this device is fastest in it" if where.has_bf16 else "this device has no fast bf16"
    c.choose("run.precision", precision, reason)


def _choose_ema(c: Chooser, n: int, *, large: bool) -> None:
    num_steps = c["schedule.epochs"] * max(1, n // c["optim.batch_size"])
    if large:
        c.choose("ema.decay", 0.0, "the paper's")
    if num_steps < 200:
        c.choose("ema.decay", 0.0, f"{num_steps} steps are too few to average")
    horizon = max(10, num_steps // 20)
    c.choose("ema.decay", round(1 - 1 / horizon, 7), "looks back over a twentieth of the run")


def two_digits(value: float) -> float:
    """Round to two significant digits."""
    return float(f"{value:.2g}")
