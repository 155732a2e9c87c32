"""The recipe of segmentation, and its options and checks for the verbs: no heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, Literal

from convnext.recipes.schema import AUTO, A, DenseInputRecipe, Recipe, bounds

PREFIX = "upernet_"
PREFIXES = (PREFIX,)
"""How the names of the networks begin, before the name of the backbone."""


@dataclass(frozen=True, kw_only=True)
class SegmentRecipe(Generic[A]):
    """Settings of segmentation only: head, crops, loss, and inference."""

    channels: int | A = field(default=AUTO, metadata=bounds(1))
    """Width of UPerNet's head; 512 in the paper."""
    auxiliary_weight: float = field(default=0.4, metadata=bounds(0))
    """Loss weight of the auxiliary head on c4; 0 removes the head."""
    dropout: float = field(default=0.1, metadata=bounds(0, 1))
    """Dropout rate before the classifiers of both heads."""
    crop: int | A = field(default=AUTO, metadata=bounds(1))
    """Side of the square training crop, in pixels of the resized image."""
    jitter: tuple[float, float] | A = AUTO
    """Range of the random scale factor applied before the crop."""
    max_class_share: float = field(default=0.75, metadata=bounds(0.01, 1))
    """Redraw a crop, up to ten times, if one class covers more than this fraction of it."""
    photometric: bool = True
    """Distort brightness, contrast, saturation and hue."""
    average: Literal["all", "labelled"] = "all"
    """Average the loss over all pixels, as the published networks do, or over labeled ones."""
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"
    """Loss weight of each class; `balanced` uses the inverse square root of its pixel frequency."""
    dice: float = field(default=0.0, metadata=bounds(0))
    """Weight of the soft Dice loss, which is added to the cross-entropy."""
    ohem: float = field(default=0.0, metadata=bounds(0, 1))
    """Count only pixels whose true class has less than this probability, usually 0.7; 0 for all."""
    mode: Literal["whole", "slide"] | A = AUTO
    """Predict whole images, or slide a window over them."""
    window: int | A = field(default=AUTO, metadata=bounds(1))
    """Side of the sliding window in pixels of the resized image; the crop size by default."""
    stride: int | A = field(default=AUTO, metadata=bounds(1))
    """Stride of the sliding window in pixels; two thirds of the window by default."""
    images: str = ""
    """Pattern of the images, such as `left/{split}/*/*_left.png`; by default their known layout."""
    masks: str = ""
    """Pattern of the masks; the text matched by its stars pairs them with the images."""
    exif: Literal["", "turned", "unturned"] = ""
    """Whether masks were drawn on images turned by EXIF; else recognized by their sizes."""
    layout: str = ""
    """Layout of the objects that masks are drawn from, such as `coco`; else recognized."""
    annotations: str = ""
    """Files of these objects, separated by commas, where several could be meant."""
    allow_outside: bool = False
    """Read files outside the data folder that the annotations of objects or links name."""
    reduce_zero_label: bool | A = AUTO
    """Whether mask value 0 means no class, as in ADE20K; `auto` recognizes that layout."""


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe(Recipe[A]):
    """The recipe of a segmentation run."""

    noun: ClassVar[str] = "segmentation"
    task: Literal["segment"] = "segment"
    input: DenseInputRecipe[A] = field(default_factory=DenseInputRecipe)
    segment: SegmentRecipe[A] = field(default_factory=SegmentRecipe)


NUM_INT8_IMAGES = 500


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """Inference settings; by default those of the recipe.

    Args:
        window: Slide a square window with this side in pixels over the image.
        stride: Stride of the window in pixels.
        whole: Predict whole images, without a window.
        multi_scale: Average the predictions at several scales.
        flip: Average with the prediction for the mirrored image.
    """

    window: int | None = None
    stride: int | None = None
    whole: bool = False
    multi_scale: bool = False
    flip: bool = False


@dataclass(frozen=True, kw_only=True)
class PredictOptions(InferenceOptions):
    """Options of `predict`.

    Args:
        overlays: Format of the pictures.
        alpha: Opacity of the colors in the overlays, from 0 to 1.
    """

    overlays: Literal["png", "jpg", "none"] = "png"
    alpha: float = 0.55


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How data with masks is read; by default, that of a run as in training.

    Args:
        images: Pattern of the images, such as left/{split}/*/*_left.png.
        masks: Pattern of the masks; its stars pair it with `images`.
        reduce_zero_label: Treat mask value 0 as no class.
        exif: Whether masks were drawn on images with their EXIF orientation applied.
        layout: Layout of the objects that masks are drawn from.
        annotations: Files of these objects, separated by commas, where several could be meant.
        allow_outside: Read files outside the data folder that annotations or links name.
    """

    images: str = ""
    masks: str = ""
    reduce_zero_label: bool | None = None
    exif: Literal["", "turned", "unturned"] = ""
    layout: str = ""
    annotations: str = ""
    allow_outside: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(InferenceOptions, ReadingOptions):
    """Options of `evaluate`.

    Args:
        boundary: Also measure the boundary F-score.
    """

    boundary: bool = False


@dataclass(frozen=True, kw_only=True)
class DataOptions(ReadingOptions):
    """Options of `data`.

    Args:
        group: Keep images of one patient or place in one split: a regular expression such as
            `(patient\\d+)` for the paths of images, or a column of a table.
    """

    group: str = ""


SHARED_OPTIONS = frozenset({"layout", "annotations", "allow_outside", "group"})
"""Options of `data` that do not say that a folder is for this task."""


def recognizes(path: Path) -> bool:
    """Whether a folder is a segmentation data set, by its layout."""
    from convnext.data.formats.mask_folders import is_mask_folder

    return is_mask_folder(path)
