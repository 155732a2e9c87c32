"""A checkpoint: one safetensors file that describes itself.

The tensors are the weights under our names. The metadata holds the network, the class names, the
preprocessing and the recipe as JSON, so that the file alone is enough to predict with. This module
handles the metadata, which exported files have too, and imports no torch; `convnext.weights.files`
reads and writes the tensors.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from convnext.data.preprocessing import DensePreprocessing, Preprocessing

FORMAT = "convnext-1"
DIGEST = "sha256"
"""Metadata key of the SHA-256 of the weights."""
EXPORTED = {".onnx": "onnx", ".xml": "openvino", ".pt2": "pt2"}
"""Formats of exported files, by suffix."""
# Arguments of timm models that a card may have: none makes timm fetch or open a file.
_FOR_TIMM = (
    "attn_drop_rate base_width cardinality channels class_token depth depths dims drop_path_rate "
    "drop_rate dynamic_img_size embed_dim embed_dims global_pool head_hidden_size img_size "
    "in_chans layers mlp_ratio num_classes num_heads output_stride patch_size proj_drop_rate "
    "qkv_bias reg_tokens stem_width strict_img_size width widths window_size"
)
# Settings of the dense networks, by name, since a card is read without torch; a test compares them.
_OF_DENSE = (
    "anchor_scale auxiliary auxiliary_channels box_batch_size channels dropout empty_proposals "
    "fc_dim ignore_threshold mask_threshold masks max_detections nms_threshold num_classes "
    "num_proposals output_norms rpn_batch_size score_threshold"
)
_TIMM, _DENSE = frozenset(_FOR_TIMM.split()), frozenset(_OF_DENSE.split())


@dataclass(frozen=True, kw_only=True)
class Card:
    """The model card: the metadata of weights and of exported files."""

    model: str
    changes: Mapping[str, Any]
    """Arguments of `create_model` besides the name."""
    classes: tuple[str, ...]
    preprocessing: Any
    """`Preprocessing` for classification, `DensePreprocessing` for the dense tasks."""
    task: str = ""
    """The name of the task; empty for the default task."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """The scores of the weights, and the step of training."""
    category_ids: tuple[int, ...] = ()
    """The ids of a detector's classes in the json that it was trained on."""
    thresholds: tuple[float, ...] = ()
    """The probability from which an image has each label; empty unless images may have several."""
    network_class: str = ""
    """The qualified name of the class, if the user passed the network as an object."""

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
            **({"thresholds": json.dumps(self.thresholds)} if self.thresholds else {}),
            **({"network_class": self.network_class} if self.network_class else {}),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], where: str) -> Card:
        """Read the metadata of a file.

        Raises:
            ValueError: If it is not ours, or damaged, or has an argument for timm that is not
                allowed.
        """
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{where} is not a checkpoint of this package (no {FORMAT} metadata)")
        try:
            changes = _mapping(metadata["changes"])
            check_changes(metadata["model"], changes, where)
            classes = _items(metadata["classes"], str)
            return cls(
                task=metadata["task"],
                model=metadata["model"],
                changes=changes,
                classes=classes,
                preprocessing=_preprocessing(metadata),
                recipe=_mapping(metadata["recipe"]),
                metrics=_mapping(metadata["metrics"]),
                category_ids=_items(metadata.get("category_ids", "[]"), int),
                thresholds=_thresholds(metadata.get("thresholds", "[]"), classes),
                network_class=metadata.get("network_class", ""),
            )
        except (KeyError, TypeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{where} has damaged metadata: {error!r}") from error


def is_exported(source: str | Path) -> bool:
    """Return whether a source is an exported file, by its suffix."""
    return Path(source).suffix in EXPORTED


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


def _thresholds(text: str, classes: tuple[str, ...]) -> tuple[float, ...]:
    """Read the thresholds of the classes; none if there are none.

    Raises:
        TypeError: If they are not one probability for each class.
    """
    values = _items(text, float)
    if values and not (len(values) == len(classes) and all(0 <= value <= 1 for value in values)):
        raise TypeError(f"{text[:40]} is not one probability for each of {len(classes)} classes")
    return values


def check_changes(model: str, changes: Mapping[str, Any], where: str) -> None:
    """Check that a card names no weights, and for timm only sizes and rates of the network.

    Other arguments of timm may be URLs, folders and files.

    Raises:
        ValueError: Names the first argument that is not allowed.
    """
    if {"name", "weights"} & changes.keys():
        raise ValueError(f"{where} asks for other weights than its own; that is refused")
    allowed = _TIMM if model.startswith("timm/") else _TIMM | _DENSE
    for name, value in changes.items() if "timm/" in model else ():
        is_word = name == "global_pool" and isinstance(value, str)
        if name not in allowed or not (is_word or _is_numbers(value)):
            raise ValueError(
                f"{where} asks for {model} with {name}={value!r}, which a checkpoint must not "
                "pass to timm: only sizes and rates of the network are allowed"
            )


def _is_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_numbers, value))
    return value is None or isinstance(value, int | float)


def setting_of(values: Mapping[str, Any], name: str, *kinds: type[T]) -> T | None:
    """Return an entry of a card's recipe or metrics, such as `run.precision`; None without one.

    Raises:
        ValueError: If its type is not one of `kinds`.
    """
    section, _, leaf = name.rpartition(".")
    inner = setting_of(values, section, dict) if section else values
    value = None if inner is None else inner.get(leaf)
    if value is None or type(value) in kinds:
        return value
    known = " or ".join(kind.__name__ for kind in kinds)
    raise ValueError(f"the model card has {name}={value!r:.40}, but its type must be {known}")


def data_of(source: str | Path, card: Card, advice: str = "give --data PATH") -> str:
    """Return the data set that a run was trained on.

    A file may come from anywhere, so URLs are fetched only if the user gives them.

    Args:
        source: The run folder.
        card: The card of its checkpoint.
        advice: What to do if there is none.

    Raises:
        ValueError: If the source is not a run folder, its data set is unknown, or that is a URL.
    """
    data = setting_of(card.recipe, "data", str)
    if not Path(source).is_dir() or data is None:
        what = "does not say" if data is None else "is not a run folder, which could say"
        raise ValueError(f"{source} {what} what it was trained on; {advice}")
    # A list of shards may contain URLs.
    if is_address(data) or data.endswith(".txt"):
        raise ValueError(
            f"{source} was trained on {data!r}, but URLs in a checkpoint are not used; {advice}"
        )
    return data


def is_own_data(data: str | Path, card: Card) -> bool:
    """Whether a path is the data set of training, however it is written: relative, or by a link."""
    own = setting_of(card.recipe, "data", str)
    # On Windows, even looking up a path may contact the host that it names.
    if own is None or is_address(own) or is_address(str(data)):
        return own is not None and own == str(data)
    return own == str(data) or Path(data).resolve() == Path(own).resolve()


def is_address(path: str) -> bool:
    """Tell a URL, or a path of Windows that names a host or a device, from a local path."""
    return "://" in path or path.replace("\\", "/").startswith("//")


def val_share_of(card: Card) -> float:
    """Return the share that was held out in training, so that training images are not scored."""
    share = (setting_of(card.recipe, "loader", dict) or {}).get("val_share", 0.2)
    return float(share) if isinstance(share, int | float) and 0 < share < 1 else 0.2


def check_no_groups(card: Card, source: str) -> None:
    """Refuse to hold out images by their names where training held out groups of them.

    A pattern of groups in a checkpoint is not used: its run folder lists the images.

    Raises:
        ValueError: If training did.
    """
    if setting_of(card.recipe, "loader.group", str):
        raise ValueError(
            f"{source} was trained with --group, and only its run folder lists the images that "
            "were held out: give the run folder, or --split all"
        )


def _preprocessing(metadata: Mapping[str, str]) -> Preprocessing | DensePreprocessing:
    values = _mapping(metadata["preprocessing"])
    # Only the dense preprocessing limits the long side.
    kind = DensePreprocessing if "max_size" in values else Preprocessing
    return kind.from_dict(values)


def __getattr__(name: str) -> Any:
    """Return `save_checkpoint`, which was here in 0.1.0 and needs torch."""
    if name != "save_checkpoint":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("convnext.weights.files"), name)


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
    found = sorted(p for p in folder.glob("step-*") if p.name[5:].isdecimal() and p.is_dir())
    return found if before is None else [p for p in found if step_of(p) < before]


def step_of(path: Path) -> int:
    """Return the step of the folder of a training state."""
    return int(path.name.removeprefix("step-"))
