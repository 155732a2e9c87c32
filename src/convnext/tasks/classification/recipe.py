"""The recipe of classification: what it adds to the settings that all tasks read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal

from convnext.recipes.schema import (
    AUTO,
    A,
    AugmentRecipe,
    Auto,
    InputRecipe,
    LoaderRecipe,
    NetworkRecipe,
    Recipe,
    ScheduleRecipe,
    bounds,
)


@dataclass(frozen=True, kw_only=True)
class ClassificationNetwork(NetworkRecipe):
    """What differs from the named network, its head included."""

    head_init_scale: float | Auto = AUTO
    """Factor on the head's first weights. Not for peers."""


@dataclass(frozen=True, kw_only=True)
class ClassificationInput(InputRecipe[A]):
    """How an image becomes the square that a classifier sees."""

    crop_pct: float | A = AUTO
    """Share of the resized short side that the centre crop keeps; 1 resizes to the square."""


@dataclass(frozen=True, kw_only=True)
class ClassificationAugment(AugmentRecipe[A]):
    """What happens to training images only (paper, Table 5)."""

    scale: tuple[float, float] | A = AUTO
    """Share of the image's area that a random crop keeps."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratios of the random crop."""
    rand_augment: str | A = AUTO
    """RandAugment in timm's notation, such as `rand-m9-mstd0.5-inc1`; `none` for none."""
    color_jitter: float | A = AUTO
    """Strength of brightness, contrast and saturation; RandAugment replaces it (as in timm)."""
    mixup: float | A = AUTO
    cutmix: float | A = AUTO
    mix_prob: float = 1.0
    """Probability that a batch is mixed at all."""
    mix_switch_prob: float = 0.5
    """Probability of cutmix rather than mixup, where both are on."""
    erasing: float | A = AUTO
    """Probability of random erasing, one rectangle of noise."""
    exact: bool = False
    """Cut and transform as Pillow does, to fractions of pixels and as smoothly; half as long again.
    Training images are meant; no other image is ever approximate."""


@dataclass(frozen=True, kw_only=True)
class LossRecipe(Generic[A]):
    """What the optimizer minimises."""

    label_smoothing: float | A = field(default=AUTO, metadata=bounds(0, 1))


@dataclass(frozen=True, kw_only=True)
class ClassificationSchedule(ScheduleRecipe[A]):
    """Linear warm-up, then a descent, per step, on images that may grow."""

    progressive: bool | A = AUTO
    """Begin with smaller images: half the size, then two thirds, the last fifth in full."""


@dataclass(frozen=True, kw_only=True)
class ClassificationLoader(LoaderRecipe[A]):
    """How samples reach the network, from a disk or from remote shards."""

    sampling: Literal["uniform", "balanced"] = "uniform"
    """`balanced` draws every class equally often."""
    shard_cache: str = "~/.cache/convnext/shards"
    """Folder for copies of remote shards; one on a local disk, for all runs of a machine."""
    shard_cache_gb: float = field(default=0.0, metadata=bounds(0))
    """Gigabytes of copies at most, those used least recently make room; 0 for half of what is free
    on that disk."""
    retries: int = field(default=5, metadata=bounds(0))
    """How often a failed request for remote data is repeated, with growing pauses."""
    timeout: float = field(default=60.0, metadata=bounds(0.001))
    """Seconds to wait for a server to connect, and then for each piece of data."""


@dataclass(frozen=True, kw_only=True)
class ClassificationRecipe(Recipe[A]):
    """Everything that determines a run of classification."""

    noun: ClassVar[str] = "classification"
    task: Literal["classify"] = "classify"
    network: ClassificationNetwork = field(default_factory=ClassificationNetwork)
    input: ClassificationInput[A] = field(default_factory=ClassificationInput)
    augment: ClassificationAugment[A] = field(default_factory=ClassificationAugment)
    loss: LossRecipe[A] = field(default_factory=LossRecipe)
    schedule: ClassificationSchedule[A] = field(default_factory=ClassificationSchedule)
    loader: ClassificationLoader[A] = field(default_factory=ClassificationLoader)
