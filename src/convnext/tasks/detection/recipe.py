"""The recipe of detection: what it adds to the settings that all tasks read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal

from convnext.recipes.schema import AUTO, A, DenseInputRecipe, Recipe, bounds


@dataclass(frozen=True, kw_only=True)
class DetectRecipe(Generic[A]):
    """What only detection has: its heads, its crops, and which boxes it learns from."""

    channels: int | A = field(default=AUTO, metadata=bounds(1))
    """Width of the pyramid and of the heads' convolutions; 256 in the paper."""
    fc_dim: int | A = field(default=AUTO, metadata=bounds(1))
    """Width of the fully connected layers of the box heads; 1024 in the paper."""
    anchor_scale: float | A = field(default=AUTO, metadata=bounds(0.1))
    """Side of a square anchor in strides; 8 in the paper. Smaller objects want smaller ones."""
    policy: Literal["multi_scale", "large_scale_jitter"] | A = AUTO
    """Resize to one of several sizes, as in the paper, or by any factor and crop to a square."""
    sides: tuple[int, ...] | A = AUTO
    """Short sides that `multi_scale` draws from, in pixels."""
    crop_sides: tuple[int, ...] = (400, 500, 600)
    """Short sides of which half of the images of `multi_scale` are first cut; () cuts none."""
    crop_range: tuple[int, int] = (384, 600)
    """Smallest and largest side of those cuts."""
    jitter: tuple[float, float] | A = AUTO
    """Factors that `large_scale_jitter` draws from, on an image that just fits into `crop`."""
    crop: int | A = field(default=AUTO, metadata=bounds(1))
    """Side of the square that `large_scale_jitter` cuts out; 1024 is usual."""
    photometric: bool = False
    """Distort brightness, contrast, saturation and hue."""
    skip_empty: bool = False
    """Leave images without objects out of training, as the published networks do."""
    ignore_crowd: bool | A = AUTO
    """Do not train on boxes within crowd regions; the published networks take them for nothing."""
    group_by_aspect: bool = True
    """Batches of images that all lie or all stand, so that less is padded."""
    num_proposals: int | A = field(default=AUTO, metadata=bounds(1))
    """Proposals of an image that are looked at; 1000 in the paper."""
    rpn_batch_size: int | A = field(default=AUTO, metadata=bounds(1))
    """Anchors of an image that the proposals are trained on; 256 in the paper."""
    box_batch_size: int | A = field(default=AUTO, metadata=bounds(1))
    """Proposals of an image that the heads are trained on; 512 in the paper."""
    max_detections: int | A = field(default=AUTO, metadata=bounds(1))
    """Most objects that are found on an image; 100 in the paper and in COCO's metric."""
    score_threshold: float = field(default=0.05, metadata=bounds(0, 1))
    """Least score of a detection in evaluation."""
    nms_threshold: float = field(default=0.5, metadata=bounds(0, 1))
    """Overlap from which the better of two detections of one class suppresses the other."""


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(Recipe[A]):
    """Everything that determines a run of detection."""

    noun: ClassVar[str] = "detection"
    task: Literal["detect"] = "detect"
    input: DenseInputRecipe[A] = field(default_factory=DenseInputRecipe)
    detect: DetectRecipe[A] = field(default_factory=DetectRecipe)
