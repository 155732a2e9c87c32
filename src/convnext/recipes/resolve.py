"""How a task resolves the settings that read `auto`: what it looks at, and what it says it chose.

The frame is the same for all tasks; their `auto.py` has what differs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Never

import torch
from rich.console import Console
from rich.table import Table

from convnext.data.preprocessing import DensePreprocessing
from convnext.hardware.peak_rates import has_fast_bf16
from convnext.recipes.recipe import (
    all_settings,
    as_resolved,
    change_recipe,
    check_ranges,
    flatten,
)
from convnext.recipes.schema import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DenseInputRecipe,
    Recipe,
    ResolvedRecipe,
)
from convnext.weights.checkpoint import Card

# Mean and standard deviation of the luminance of ImageNet's images.
GRAY_MEAN, GRAY_STD = (0.449,), (0.226,)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One setting that `auto` chose."""

    setting: str
    value: Any
    reason: str


@dataclass(frozen=True, kw_only=True)
class ResolveContext:
    """What the rules look at beside the recipe and the data."""

    device: str
    """"cpu", "cuda" or "mps"."""
    has_bf16: bool
    """Whether the device computes in bf16 faster than in fp32."""
    preprocessing: Any = None
    """What the pretrained weights were made for, where it is known."""
    weights_network: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the network that the pretrained weights belong to, where they are ours."""


class Resolver:
    """Fills the settings that read `auto`, and keeps the reasons.

    Args:
        recipe: What was asked for.
        context: The device and the weights.
        num_train: Training images.
        large: Images from which on a data set takes the paper's recipe as it stands.

    Raises:
        ValueError: If a number of the recipe is out of its bounds.
    """

    def __init__(
        self, recipe: Recipe, context: ResolveContext, *, num_train: int, large: int
    ) -> None:
        check_ranges(recipe)
        self.context, self.num_train, self.large = context, num_train, num_train >= large
        self.on_cpu, self.scratch = context.device == "cpu", recipe.weights == "none"
        self.choices: list[Choice] = []
        self._recipe, self._values = recipe, dict(flatten(recipe))

    def __getitem__(self, setting: str) -> Any:
        return self._values[setting]

    def choose(self, setting: str, value: Any, reason: str) -> Any:
        """Set `setting` if it reads `auto`; return what it is now."""
        if self[setting] == "auto":
            self._values[setting] = value
            self.choices.append(Choice(setting=setting, value=value, reason=reason))
        return self[setting]

    def finish(self) -> tuple[ResolvedRecipe, tuple[Choice, ...]]:
        """Return the recipe without any setting left to its task, and what was chosen and why."""
        chosen = {choice.setting: choice.value for choice in self.choices}
        return as_resolved(change_recipe(self._recipe, chosen)), tuple(self.choices)

    def choose_model(self, prefix: str = "") -> None:
        """Choose the network; `prefix` makes it one of the task."""
        if self.on_cpu:
            reason = "the smallest of the family: there is no GPU"
            self.choose("model", f"{prefix}convnext_atto", reason)
        self.choose("model", f"{prefix}convnext_tiny", "the smallest network of the paper")

    def choose_pixels(self, *, gray: bool, own: Sequence[str] = ()) -> None:
        """Choose channels and statistics of the images.

        Args:
            gray: Whether no color was seen in the data.
            own: What the pretrained weights say; by default all that they know.
        """
        if self.context.preprocessing is not None:
            for name, value in asdict(self.context.preprocessing).items():
                if f"input.{name}" in self._values and (not own or name in own):
                    self.choose(f"input.{name}", value, "as the weights were made for")
        gray = gray and self.scratch
        reason = "no color was seen" if gray else "color images"
        chans = self.choose("input.in_chans", 1 if gray else 3, reason)
        self.choose("input.mean", IMAGENET_MEAN if chans == 3 else GRAY_MEAN, "of ImageNet")
        self.choose("input.std", IMAGENET_STD if chans == 3 else GRAY_STD, "of ImageNet")

    def choose_as_weights(self, section: str, *names: str) -> None:
        """Choose what the network of the pretrained weights has."""
        for name in names:
            if name in self.context.weights_network:
                value = self.context.weights_network[name]
                self.choose(f"{section}.{name}", value, "as the weights have it")

    def choose_design(self) -> None:
        """Choose the decisions about a backbone that the pretrained weights have made."""
        self.choose_as_weights("network", "stem", "stem_stride", "norm", "layer_scale_init")

    def choose_backbone(
        self, drop_path_rate: float, reason: str, *, conv_pool: bool = True
    ) -> None:
        """Choose the decisions about a ConvNeXt; what learns small data fast is from LOG.md."""
        self.choose("network.stem_stride", 4, "the paper's")
        if self.scratch and not self.large:
            self.choose("network.layer_scale_init", 0.0, "one of 1e-6 takes many epochs to wake up")
            self.choose("network.drop_path_rate", 0.0, "small data is learned faster without")
            self.choose("network.init", "fan_in", "a std of 0.02 takes many epochs to outgrow")
            self.choose("network.norm", "batch", "learns small data faster than layer norm")
            if conv_pool:
                self.choose("network.stem", "conv_pool", "learns small data faster than patches")
        self.choose("network.layer_scale_init", 1e-6, "the paper's")
        self.choose("network.drop_path_rate", drop_path_rate, reason)
        self.choose("network.norm", "layer", "the paper's")
        self.choose("network.stem", "patchify", "the paper's")
        self.choose(
            "network.init", "paper", "the paper's" if self.scratch else "weights replace it"
        )

    def choose_length(self, epochs: int) -> None:
        """Choose the epochs of small data, and the warm-up."""
        reason = f"{epochs * self.num_train:,} images in all"
        epochs = self.choose("schedule.epochs", epochs, reason)
        warmup = two_digits(epochs / 20)
        self.choose("schedule.warmup_epochs", warmup, "a twentieth of the run")

    def choose_dense_batch(self, *, on_cpu: int, micro_batch_size: int) -> None:
        """Choose the batch of a dense task, and the part of it that a GPU takes at once."""
        size = 16 if self.large else on_cpu if self.on_cpu else 8
        reason = "the paper's" if self.large else "many steps matter more than large ones"
        batch = self.choose("optim.batch_size", min(size, self.num_train), reason)
        micro_batch_size = batch if self.on_cpu else min(batch, micro_batch_size)
        self.choose("optim.micro_batch_size", micro_batch_size, "of one backward pass")

    def choose_dense_rate(self, scratch_rate: float, layer_decay: float) -> None:
        """Choose the optimizer of a dense task, whose decay depends on the task."""
        batch = self["optim.batch_size"]
        if self.scratch:
            self.choose("optim.lr", two_digits(scratch_rate), f"for {batch} images a step")
            self.choose("optim.layer_decay", 1.0, "every layer is new")
        rate = two_digits(1e-4 * math.sqrt(batch / 16))
        self.choose("optim.lr", rate, "the paper's, by the batch")
        self.choose("optim.weight_decay", 0.05, "the paper's")
        self.choose("optim.layer_decay", layer_decay, "the paper's")
        reason = "the paper's" if self.large else "small batches"
        self.choose("optim.clip_grad", 0.0 if self.large else 1.0, reason)

    def choose_average(self) -> None:
        """Choose the moving average by the number of steps."""
        num_steps = self["schedule.epochs"] * self._steps_per_epoch()
        if num_steps < 200:
            self.choose("ema.decay", 0.0, f"{num_steps} steps are too few to average")
        horizon = max(10, num_steps // 20)
        reason = "looks back over a twentieth of the run"
        self.choose("ema.decay", round(1 - 1 / horizon, 7), reason)

    def choose_execution(self, eval_every: int) -> None:
        """Choose evaluations, cache, workers and precision; the batch is known already."""
        every = self.choose("run.eval_every", eval_every, "epochs between evaluations")
        steps = max(1, round(every * self._steps_per_epoch()))
        self.choose("run.save_every", min(1000, steps), "steps that a crash can cost")
        reason = "too many images" if self.large else "if the images fit"
        self.choose("loader.cache", not self.large, reason)
        workers = 0 if self.on_cpu else min(16, max(2, (os.cpu_count() or 2) - 1))
        reason = "the network needs every core" if workers == 0 else "the cores beside the GPU"
        self.choose("loader.workers", workers, reason)
        fast = self.context.has_bf16
        reason = "this device is fastest in it" if fast else "this device has no fast bf16"
        self.choose("run.precision", "bf16" if fast else "fp32", reason)

    def choose_dense_execution(self, eval_every: int) -> None:
        """Choose the moving average and the execution of a dense task."""
        if self.large:
            self.choose("ema.decay", 0.0, "the paper's")
        self.choose_average()
        self.choose_execution(eval_every)

    def _steps_per_epoch(self) -> int:
        return max(1, self.num_train // int(self["optim.batch_size"]))


CardOf = Callable[[str, str], Card | None]
"""What is known of weights before they are loaded, by their source and the network's name."""


def context_of(
    recipe: Recipe, device: torch.device, card_of: CardOf
) -> tuple[Recipe, ResolveContext]:
    """Return the recipe for the network of its weights, and what `auto` looks at beside data."""
    recipe, card = _with_weights(recipe, card_of)
    return recipe, ResolveContext(
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
    kept = {"num_classes", "in_chans", "drop_path_rate", "auxiliary", "ignore_threshold", "masks"}
    # What is a setting, of the backbone or of a task's heads, is not taken from the weights.
    common = {f.name for f in fields(Recipe)} - {"network"}
    kept |= {n.rpartition(".")[2] for n in all_settings() if n.partition(".")[0] not in common}
    changes = {name: value for name, value in card.changes.items() if name not in kept}
    network = replace(recipe.network, changes=changes | recipe.network.changes)
    return replace(recipe, model=card.model, network=network), card


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


def dense_preprocessing(settings: DenseInputRecipe[Never]) -> DensePreprocessing:
    """Return the preprocessing that the settings of a dense task's input ask for."""
    return DensePreprocessing(**asdict(settings))


def warn_of_average(r: Mapping[str, Any], steps: int) -> list[str]:
    """Return a warning if the moving average looks back over more than the run."""
    decay = r["ema.decay"]
    if not decay or 1 / (1 - decay) <= steps:
        return []
    return [
        f"the moving average looks back {1 / (1 - decay):,.0f} steps, but the run has only "
        f"{steps:,}: it will lag behind the weights. Try --ema.decay auto"
    ]


def warn_of_batch(r: Mapping[str, Any], num_train: int, usual: int) -> list[str]:
    """Return a warning if a batch has more images than the data."""
    batch = r["optim.batch_size"]
    if batch <= num_train:
        return []
    return [
        f"a batch of {batch:,} is more than there are images: steps use {num_train:,}. "
        f"Try --optim.batch_size {min(usual, num_train)}"
    ]


def two_digits(value: float) -> float:
    """Round to two significant digits."""
    return float(f"{value:.2g}")
