"""Options and checks of segmentation for the verbs, without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

NUM_INT8_IMAGES = 500


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """Inference settings; by default those of the recipe.

    Args:
        window: Slide a square window with this side in pixels over the image.
        stride: Stride of the window in pixels.
        whole: Predict whole images, without a window.
        multi_scale: Average the predictions at six scales from 0.5 to 1.75.
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
class EvaluateOptions(InferenceOptions):
    """Options of `evaluate`.

    Args:
        boundary: Also measure the boundary F-score.
    """

    boundary: bool = False


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of `data`.

    Args:
        images: Pattern of the images, such as 'left/{split}/*/*_left.png'.
        masks: Pattern of the masks; its stars pair it with `images`.
        reduce_zero_label: Treat mask value 0 as no class.
    """

    images: str = ""
    masks: str = ""
    reduce_zero_label: bool | None = None


def recognizes(path: Path) -> bool:
    """Whether a folder is a segmentation data set, by its layout."""
    from convnext.data.formats.mask_folders import is_mask_folder

    return is_mask_folder(path)


def inspect(path: str, *, contact_sheet: bool, **options: Any) -> tuple[Any, Any]:
    """Return the report on a data set, and its contact sheet or None."""
    from convnext.tasks.segmentation import inspect as module
    from convnext.tasks.segmentation.data import open_dataset

    given = {name: value for name, value in options.items() if value is not None}
    report = module.inspect(path, **given)
    data = open_dataset(path, strict=False, **given) if contact_sheet else None
    return report, None if data is None else module.contact_sheet(data)


def predictor_class() -> Any:
    """Import and return the predictor class."""
    from convnext.tasks.segmentation.predict import PixelPredictor

    return PixelPredictor
