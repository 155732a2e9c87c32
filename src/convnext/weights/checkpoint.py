"""A checkpoint: one safetensors file that describes itself.

The tensors are the weights under our names. The metadata holds the network, the class names, the
preprocessing and the recipe as JSON, so that the file alone is enough to predict with. This module
handles the metadata, which exported files have too, and imports no torch; `convnext.weights.files`
reads and writes the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from convnext.data.preprocessing import DensePreprocessing, Preprocessing

FORMAT = "convnext-1"


@dataclass(frozen=True, kw_only=True)
class Card:
    """The model card: the metadata of weights and of exported files."""

    task: str
    model: str
    changes: Mapping[str, Any]
    """Arguments of `create_model` besides the name."""
    classes: tuple[str, ...]
    preprocessing: Any
    """`Preprocessing` for classification, `DensePreprocessing` for the dense tasks."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """The scores of the weights, and the step of training."""
    category_ids: tuple[int, ...] = ()
    """The ids of a detector's classes in the json that it was trained on."""

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata of the safetensors file: strings only, JSON where nested."""
        return {
            "format": FORMAT,
            "task": self.task,
            "model": self.model,
            "changes": json.dumps(self.changes),
            "classes": json.dumps(self.classes),
            "preprocessing": json.dumps(self.preprocessing.to_dict()),
            "recipe": json.dumps(self.recipe),
            "metrics": json.dumps(self.metrics),
            **({"category_ids": json.dumps(self.category_ids)} if self.category_ids else {}),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], where: str) -> Card:
        """Read the metadata of a file.

        Raises:
            ValueError: If it is not ours, or damaged.
        """
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{where} is not a checkpoint of this package (no {FORMAT} metadata)")
        try:
            return cls(
                task=metadata["task"],
                model=metadata["model"],
                changes=_mapping(metadata["changes"]),
                classes=_items(metadata["classes"], str),
                preprocessing=_preprocessing(metadata),
                recipe=_mapping(metadata["recipe"]),
                metrics=_mapping(metadata["metrics"]),
                category_ids=_items(metadata.get("category_ids", "[]"), int),
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{where} has damaged metadata: {error!r}") from error


T = TypeVar("T")


def _mapping(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError(f"{text[:40]} is not a JSON object")
    return value


def _items(text: str, kind: type[T]) -> tuple[T, ...]:
    values = json.loads(text)
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise TypeError(f"{text[:40]} is not a JSON list of {kind.__name__}")
    return tuple(values)


def _preprocessing(metadata: Mapping[str, str]) -> Preprocessing | DensePreprocessing:
    values = _mapping(metadata["preprocessing"])
    # Only the dense preprocessing limits the long side.
    kind = DensePreprocessing if "max_size" in values else Preprocessing
    return kind.from_dict(values)


def find_checkpoint(source: str | Path) -> Path | None:
    """Return a file itself, or the best checkpoint of a run folder, else its last."""
    path = Path(source)
    if path.is_file():
        return path
    folder = path / "checkpoints"
    best = folder / "best.safetensors"
    if best.is_file():
        return best
    steps = sorted(folder.glob("step-*/model.safetensors"))
    return steps[-1] if steps else None


def complete_steps(folder: Path, before: int | None = None) -> list[Path]:
    """Return the folders of complete training states, oldest first, perhaps only before a step."""
    found = sorted(path for path in folder.glob("step-*") if path.is_dir())
    return found if before is None else [p for p in found if step_of(p) < before]


def step_of(path: Path) -> int:
    """Return the step of the folder of a training state."""
    return int(path.name.removeprefix("step-"))
