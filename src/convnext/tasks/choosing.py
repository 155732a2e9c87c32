"""How a task fills the settings that read `auto`: what it looks at, and what it says it chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from convnext.checkpoint import Card
from convnext.device import has_fast_bf16
from convnext.inference import card_of
from convnext.recipe import Recipe, change_recipe, flatten
from convnext.settings import NetworkRecipe


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


def circumstances(recipe: Recipe, device: torch.device) -> tuple[Recipe, Circumstances]:
    """Return the recipe for the network of its weights, and what `auto` looks at beside data."""
    recipe, card = _with_weights(recipe)
    return recipe, Circumstances(
        device=device.type,
        has_bf16=has_fast_bf16(device),
        preprocessing=card.preprocessing if card else None,
        weights_network=card.changes if card else {},
    )


def _with_weights(recipe: Recipe) -> tuple[Recipe, Card | None]:
    """Return the card of the weights that a recipe starts from, and the recipe for its network."""
    if recipe.weights == "none":
        return recipe, None
    card = card_of(recipe.weights, recipe.model)
    if card is None or recipe.model not in ("auto", card.model):
        return recipe, card
    recipe = replace(recipe, model=card.model)
    kept = {"num_classes", "in_chans", "drop_path_rate", "head_init_scale"}
    kept |= {"channels", "auxiliary", "dropout"}  # Of a segmentor: settings of its own section.
    kept |= {field.name for field in fields(NetworkRecipe)}
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
