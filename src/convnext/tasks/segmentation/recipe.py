"""The recipe of segmentation: what it adds to the settings that all tasks read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal

from convnext.recipes.schema import AUTO, A, DenseInputRecipe, Recipe, bounds


@dataclass(frozen=True, kw_only=True)
class SegmentRecipe(Generic[A]):
    """What only segmentation has: its head, its crops, its loss, and how large images are read."""

    channels: int | A = field(default=AUTO, metadata=bounds(1))
    """Width of UPerNet's head; 512 in the paper."""
    auxiliary_weight: float = field(default=0.4, metadata=bounds(0))
    """Of the loss of the auxiliary head on c4; 0 leaves the head out."""
    dropout: float = field(default=0.1, metadata=bounds(0, 1))
    """Before the classifiers of both heads."""
    crop: int | A = field(default=AUTO, metadata=bounds(1))
    """Side of the square that training cuts out, in pixels of the resized image."""
    jitter: tuple[float, float] | A = AUTO
    """Factors on the size of the image before the crop."""
    max_class_share: float = field(default=0.75, metadata=bounds(0.01, 1))
    """A crop with more than this of one class is drawn anew, up to ten times."""
    photometric: bool = True
    """Distort brightness, contrast, saturation and hue."""
    average: Literal["all", "labelled"] = "all"
    """Divide the loss by all pixels, as the published networks, or by those with a label."""
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"
    """Factors on the loss of each class; `balanced` by the inverse root of its share of pixels."""
    dice: float = field(default=0.0, metadata=bounds(0))
    """Weight of the soft dice loss beside the cross-entropy."""
    ohem: float = field(default=0.0, metadata=bounds(0, 1))
    """Count only pixels whose true class has less than this probability (0.7 is usual); 0: all."""
    mode: Literal["whole", "slide"] | A = AUTO
    """Read an image whole, or by a window that slides over it."""
    window: int | A = field(default=AUTO, metadata=bounds(1))
    """Side of that window in pixels of the resized image; the crop by default."""
    stride: int | A = field(default=AUTO, metadata=bounds(1))
    """Pixels between two windows; two thirds of the window by default."""
    images: str = ""
    """Pattern of the images, such as `left/{split}/*/*_left.png`; empty to go by the layout."""
    masks: str = ""
    """Pattern of the masks; what the stars stand for pairs them with the images."""
    reduce_zero_label: bool | A = AUTO
    """Value 0 of a mask means no class, as in ADE20K; `auto` knows that layout."""


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe(Recipe[A]):
    """Everything that determines a run of segmentation."""

    noun: ClassVar[str] = "segmentation"
    task: Literal["segment"] = "segment"
    input: DenseInputRecipe[A] = field(default_factory=DenseInputRecipe)
    segment: SegmentRecipe[A] = field(default_factory=SegmentRecipe)
