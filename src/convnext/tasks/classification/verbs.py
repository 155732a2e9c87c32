"""Options and checks of classification for the verbs, without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convnext.deploy.runtimes import Exported
    from convnext.tasks.classification.exported import ExportedClassifier

NUM_INT8_IMAGES = 500


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of `predict`.

    Args:
        topk: Classes per image, in the table and in the files.
        batch_size: Images per batch. It may change the last bits of the probabilities.
        wide: Write one row per image into predictions.csv, with a column for each class and, if
            the folder names it, the true class.
    """

    topk: int = 5
    batch_size: int = 64
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of `evaluate`.

    Args:
        batch_size: Images per batch. It may change the last bits of the scores.
        only_best: Evaluate only the best weights of a run, not those of the last step too.
    """

    batch_size: int = 64
    only_best: bool = False


LAYOUT_NAMES = ("class_folders",)
"""The values of `layout` that are for this task alone."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of `data`.

    Args:
        layout: Layout of the annotations, such as `coco`, `yolo` or `voc`; for classification
            `class_folders` accepts any folder names as classes.
    """

    layout: str = ""


def recognizes(path: Path) -> bool:
    """Whether a path is certainly classification data; it is also the default for unknown data."""
    return False


def inspect(path: str, *, contact_sheet: bool, layout: str = "") -> tuple[Any, Any]:
    """Return the report on a data set, and its contact sheet or None.

    Raises:
        ValueError: If there is no such data, or no such layout.
    """
    from convnext.tasks.classification import inspect as module

    if layout not in ("", *LAYOUT_NAMES):
        raise ValueError(f"--layout is {layout!r}, but must be {' or '.join(LAYOUT_NAMES)} here")
    report = module.inspect(path, layout=layout)
    return report, module.contact_sheet(path, layout=layout) if contact_sheet else None


def file_predictor(exported: Exported) -> ExportedClassifier:
    """Return a predictor that uses only an exported file, without torch."""
    from convnext.tasks.classification.exported import ExportedClassifier

    return ExportedClassifier(exported)


def predictor_class() -> Any:
    """Import and return the predictor class."""
    from convnext.tasks.classification.predict import ClassPredictor

    return ClassPredictor
