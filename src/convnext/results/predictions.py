"""Predictions for one image: its classes, its objects, or the class of every pixel.

Each can be drawn, saved and converted to JSON. Nothing here needs torch. The file is long because
the three types share their checks and the base class.

Shapes: H, W height and width of the image; K classes; M objects.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.atomic import atomic_write, write_text
from convnext.data.drawing import class_colors
from convnext.data.images import PICTURE, decode
from convnext.data.run_lengths import RunLengths, compress, decode_window, encode
from convnext.data.run_lengths import decode as decode_runs
from convnext.data.sources import to_image
from convnext.results import pictures
from convnext.results.fonts import fitted, readable, text_size
from convnext.results.pictures import percent
from convnext.results.scores import file_stem, free_name, set_field


class Guess(NamedTuple):
    """A class and its probability."""

    name: str
    probability: float


class Area(NamedTuple):
    """The share of an image that a class covers."""

    name: str
    label: int
    pixels: int
    share: float
    """Share of the image, in [0, 1]."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class _Result:
    """Base class of the predictions of all tasks."""

    path: Path | None = None
    """The file of the image; None for a URL and for an image in memory."""
    size: tuple[int, int]
    """Height and width of the image in pixels."""
    names: tuple[str, ...]
    """Names of all K classes, in the order of the labels."""
    source: str = ""
    """The path or URL of the image, or the name of an image in memory."""
    image: Any = field(default=None, compare=False, repr=False)
    """The image if it came from memory, as accepted by `to_image`. Ignored in comparisons."""

    def __post_init__(self) -> None:
        if self.path is not None:
            set_field(self, "path", Path(self.path))
        set_field(self, "source", self.source or (str(self.path) if self.path else "image"))
        set_field(self, "names", _names(self.names))
        height, width = self.size
        set_field(self, "size", (int(height), int(width)))
        if min(self.size) < 1:
            raise ValueError(f"size is {self.size}; it must be (height, width) in pixels")

    def plot(self, *, image: Any = None) -> Image.Image:
        """Return a picture of the result; each task has its own."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "source": self.source,
            "path": None if self.path is None else str(self.path),
            "height": self.size[0],
            "width": self.size[1],
            "names": list(self.names),
        }

    def save(self, folder: str | Path, *, image: Any = None) -> tuple[Path, ...]:
        """Write NAME.png with the picture and NAME.json into a folder, and a mask if there is one.

        NAME is the name of the image, made valid for every system. Existing files are never
        overwritten: another result of the same name becomes NAME_2.

        Args:
            folder: The folder, which is created if needed.
            image: See `plot`.

        Returns:
            The paths of the files, the picture first and the JSON last.

        Raises:
            ValueError: If there is no image to draw on, or if the folder is named like a picture.
        """
        if Path(folder).suffix.lower() in (".png", ".jpg", ".jpeg"):
            raise ValueError(
                f"save writes several files into a folder, and {folder} is named like a picture: "
                f"name a folder, or write the picture alone with .plot().save({str(folder)!r})"
            )
        pictures = {"": self.plot(image=image), **self._extra_pictures()}
        endings = [*(f"{suffix}.png" for suffix in pictures), ".json"]
        with free_name(Path(folder), file_stem(self.path or self.source), endings) as stem:
            written = [Path(folder, f"{stem}{ending}") for ending in endings]
            for path, picture in zip(written, pictures.values(), strict=False):
                with atomic_write(path) as temporary:
                    picture.save(temporary, "PNG")
            named = {
                suffix.strip("_") or "picture": path.name
                for suffix, path in zip(pictures, written, strict=False)
            }
            content = {**self.to_dict(), **named}
            write_text(written[-1], json.dumps(content, indent=1, allow_nan=False) + "\n")
        return tuple(written)

    def _extra_pictures(self) -> dict[str, Image.Image]:
        """Return pictures to save beside the plot, by the suffix of their names."""
        return {}

    def _background(self, image: Any) -> Image.Image:
        """Return the image to draw on, in RGB."""
        if image is None:
            image = self.image
        if image is not None:
            picture = to_image(image).convert("RGB")
        elif self.path is not None:
            picture = decode(self.path, mode=PICTURE)
        else:
            raise ValueError(
                f"this result of {self.source} holds neither a path nor an image to draw on; pass "
                "image=..."
            )
        if picture.size != self.size[::-1]:
            raise ValueError(
                f"the result is for an image of {self.size[1]} x {self.size[0]} pixels; the one to "
                f"draw on has {picture.width} x {picture.height}"
            )
        return picture

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(
            _equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.compare
        )

    __hash__ = None  # type: ignore[assignment]  # arrays are not hashable

    def _short(self, text: str) -> str:
        name = Path(self.source).name if self.path else self.source
        return f"{type(self).__name__}({name}: {text})"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Classification(_Result):
    """The classes of an image: one of them, or with `thresholds` any number."""

    probabilities: NDArray[np.float32]
    """(K,) in [0, 1], in the order of `names`; they add up to 1 unless there are thresholds."""
    thresholds: NDArray[np.float64] | None = None
    """(K,) the probability from which the image has each label; None if it has one label."""

    def __post_init__(self) -> None:
        super().__post_init__()
        values = _array(self.probabilities, np.float32, (len(self.names),), "probabilities")
        set_field(self, "probabilities", _in_unit(values, "probabilities"))
        if self.thresholds is not None:
            limits = _array(self.thresholds, np.float64, (len(self.names),), "thresholds")
            set_field(self, "thresholds", _in_unit(limits, "thresholds"))

    @property
    def labels(self) -> NDArray[np.int64]:
        """The indices of the classes, the most probable first: (K,), all of them.

        With `thresholds`, those of the image's labels: none, one or several.
        """
        order = self._order
        if self.thresholds is None:
            return order
        return order[self.probabilities[order] >= self.thresholds[order]]

    @property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(-self.probabilities, kind="stable").astype(np.int64)

    def top(self, k: int = 5) -> tuple[Guess, ...]:
        """Return the k most probable classes, or all if there are fewer: (name, probability).

        Raises:
            ValueError: If k is less than 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        return tuple(
            Guess(self.names[i], float(self.probabilities[i])) for i in self._order[:k].tolist()
        )

    def plot(self, *, image: Any = None, k: int = 5) -> Image.Image:
        """Return the image with bars of the k most probable classes below it.

        Args:
            image: Drawn on instead of the image of the result.
            k: How many classes.

        Raises:
            ValueError: If there is no image to draw on, or it has another size.
        """
        self.top(k)  # Refuses a k below 1.
        picture, _ = pictures.enlarged(self._background(image))
        width, text = pictures.panel_size(picture.size)
        bars = [
            (readable(self.names[i], i), float(self.probabilities[i]))
            for i in self._order[:k].tolist()
        ]
        return pictures.stacked(picture, pictures.bar_panel(width, text, bars))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: `probabilities` of all classes, and the `top` five.

        With thresholds, also these, and the names of the `labels`.
        """
        several: dict[str, Any] = {}
        if self.thresholds is not None:
            several["labels"] = [self.names[i] for i in self.labels.tolist()]
            several["thresholds"] = [_rounded(value) for value in self.thresholds]
        return {
            **super().to_dict(),
            **several,
            "top": [
                {"name": self.names[i], "label": i, "probability": _rounded(self.probabilities[i])}
                for i in self._order[:5].tolist()
            ],
            "probabilities": [_rounded(value) for value in self.probabilities],
        }

    def __repr__(self) -> str:
        name, probability = self.top(1)[0]
        if self.thresholds is not None:
            found = [f"{self.names[i]} {100 * self.probabilities[i]:.1f}%" for i in self.labels]
            return self._short(_first(found, 5, "labels") or "no label")
        return self._short(f"{name} {100 * probability:.1f}%")


class _MaskField:
    """Masks that are stored as run lengths and read as an array.

    As arrays, a hundred masks of a large photo would take a gigabyte.
    """

    @overload
    def __get__(self, result: None, owner: type) -> None: ...
    @overload
    def __get__(self, result: Detections, owner: type) -> NDArray[np.bool_] | None: ...
    def __get__(self, result: Detections | None, owner: type) -> NDArray[np.bool_] | None:
        if result is None:  # The default of the field.
            return None
        runs = result.run_lengths
        if runs is None:
            return None
        masks = np.empty((len(runs), *result.size), np.bool_)
        for mask, of in zip(masks, runs, strict=True):
            mask[:] = decode_runs(of)
        return masks

    def __set__(
        self, result: Detections, value: NDArray[Any] | Sequence[Mapping[str, Any]] | None
    ) -> None:
        result.__dict__["_masks"] = value


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Detections(_Result):
    """The objects in an image, the highest score first."""

    boxes: NDArray[np.float32]
    """(M, 4) as x1 y1 x2 y2 in pixels of the image."""
    scores: NDArray[np.float32]
    """(M,) in [0, 1]."""
    labels: NDArray[np.int64]
    """(M,) class indices, from 0."""
    masks: _MaskField = _MaskField()
    """(M, H, W) booleans, or None without masks. They are stored as `run_lengths` and decoded at
    each access: assign them to a variable before a loop. The constructor takes an array, or COCO's
    run lengths, one per object."""

    def __post_init__(self) -> None:
        super().__post_init__()
        boxes = np.asarray(self.boxes, np.float32)
        if boxes.size == 0:
            boxes = boxes.reshape(0, 4)
        boxes = _array(boxes, np.float32, (len(boxes), 4), "boxes")
        if not np.isfinite(boxes).all() or (boxes[:, :2] > boxes[:, 2:]).any():
            raise ValueError("boxes must be finite x1 y1 x2 y2 with x1 <= x2 and y1 <= y2")
        set_field(self, "boxes", boxes)
        scores = _array(self.scores, np.float32, (len(boxes),), "scores")
        set_field(self, "scores", _in_unit(scores, "scores"))
        labels = _labels(self.labels, len(self.names), "labels")
        set_field(self, "labels", _array(labels, np.int64, (len(boxes),), "labels"))
        self.__dict__["_masks"] = self._packed(self.__dict__["_masks"])

    def _packed(self, masks: Any) -> tuple[RunLengths, ...] | None:
        if masks is None:
            return None
        if isinstance(masks, np.ndarray):
            if masks.shape != (len(self), *self.size) or masks.dtype != np.bool_:
                raise ValueError(
                    f"masks must be bool {(len(self), *self.size)}, not {masks.dtype} {masks.shape}"
                )
            return tuple(encode(mask) for mask in masks)
        runs = tuple(compress(mask) for mask in masks)
        if len(runs) != len(self) or any(tuple(of["size"]) != self.size for of in runs):
            raise ValueError(f"masks must be {len(self)} run lengths of the size {self.size}")
        return runs

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def run_lengths(self) -> tuple[RunLengths, ...] | None:
        """The masks as COCO's run lengths, one per object, or None without masks."""
        runs: tuple[RunLengths, ...] | None = self.__dict__["_masks"]
        return runs

    @property
    def counts(self) -> dict[str, int]:
        """The number of objects per class, the most frequent first."""
        return dict(Counter(self.names[label] for label in self.labels.tolist()).most_common())

    def plot(self, *, image: Any = None) -> Image.Image:
        """Return the image with boxes, names, scores and masks drawn on it.

        An image whose longer side is below 480 pixels is enlarged by a whole factor.

        Args:
            image: Drawn on instead of the image of the result.

        Raises:
            ValueError: If there is no image to draw on, or it has another size.
        """
        background = self._background(image)
        if not len(self):
            picture, _ = pictures.enlarged(background)
            pictures.write_chip(picture, "no objects found")
            return picture
        colors = class_colors(len(self.names))[self.labels]
        if len(self.names) == 1:
            number = pictures.NUM_COLORS
            colors = class_colors(number)[np.arange(len(self)) % number]
        order = np.argsort(-self.scores, kind="stable")
        runs = self.run_lengths
        width = max(background.width, pictures.SMALL_SIDE) * 0.45
        text = text_size(pictures.enlarged_size(background.size))
        return pictures.draw_objects(
            background,
            boxes=self.boxes[order],
            colors=colors[order],
            captions=[
                f"{fitted(readable(self.names[label], label), width, text)} {score:.2f}"
                for label, score in zip(
                    self.labels[order].tolist(), self.scores[order].tolist(), strict=True
                )
            ],
            masks=None
            if runs is None
            else (pictures.MaskPart(*decode_window(runs[i])) for i in order),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: a list of `objects`, masks as COCO's run lengths."""
        runs = self.run_lengths
        return {
            **super().to_dict(),
            "objects": [
                {
                    "name": self.names[label],
                    "label": label,
                    "score": _rounded(self.scores[i]),
                    "box": [round(value, 3) for value in self.boxes[i].tolist()],
                    **({} if runs is None else {"mask": runs[i]}),
                }
                for i, label in enumerate(self.labels.tolist())
            ],
        }

    def to_coco(
        self, image_id: int, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Return the objects as COCO's results, with boxes as x, y, width, height.

        Args:
            image_id: The id of the image in the annotation file.
            category_ids: The id of each class, in the order of `names`; None for 1 to K.

        Raises:
            ValueError: If there is not one id per class.
        """
        ids = range(1, len(self.names) + 1) if category_ids is None else list(category_ids)
        if len(ids) != len(self.names):
            raise ValueError(f"category_ids has {len(ids)} values for {len(self.names)} classes")
        runs = self.run_lengths
        return [
            {
                "image_id": image_id,
                "category_id": int(ids[label]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(self.scores[i]),
                **({} if runs is None else {"segmentation": runs[i]}),
            }
            for i, (label, (x1, y1, x2, y2)) in enumerate(
                zip(self.labels.tolist(), self.boxes.tolist(), strict=True)
            )
        ]

    def to_supervision(self) -> Any:
        """Return the objects as `supervision.Detections`, with the names as `class_name`.

        Raises:
            ImportError: If the package supervision is not installed.
        """
        try:
            supervision = importlib.import_module("supervision")
        except ImportError as error:
            raise ImportError(
                "to_supervision() needs the package supervision: pip install supervision"
            ) from error
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            mask=self.masks,
            confidence=self.scores.copy(),
            class_id=self.labels.copy(),
            data={"class_name": np.array([self.names[i] for i in self.labels.tolist()], np.str_)},
        )

    def __repr__(self) -> str:
        found = [f"{number} {name}" for name, number in self.counts.items()]
        return self._short(_first(found, 5, "classes") or "no objects")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Segmentation(_Result):
    """The class of every pixel of an image."""

    mask: NDArray[Any]
    """(H, W) class indices: uint8 for up to 256 classes, else int32."""
    probabilities: NDArray[np.float32] | None = None
    """(K, H, W) in [0, 1], or None if they were not requested."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.names) > 2**16:
            raise ValueError(f"{len(self.names):,} classes; a mask has at most 65,536")
        mask = _labels(self.mask, len(self.names), "mask")
        dtype: Any = np.uint8 if len(self.names) <= 256 else np.int32
        set_field(self, "mask", _array(mask, dtype, self.size, "mask"))
        if self.probabilities is not None:
            shape = (len(self.names), *self.size)
            values = _array(self.probabilities, np.float32, shape, "probabilities")
            set_field(self, "probabilities", _in_unit(values, "probabilities"))

    @property
    def areas(self) -> tuple[Area, ...]:
        """The classes that occur, the largest first."""
        pixels = np.bincount(self.mask.ravel(), minlength=len(self.names))
        order = np.argsort(-pixels, kind="stable")[: np.count_nonzero(pixels)].tolist()
        return tuple(
            Area(self.names[i], i, int(pixels[i]), int(pixels[i]) / self.mask.size) for i in order
        )

    def plot(self, *, image: Any = None, alpha: float = 0.55) -> Image.Image:
        """Return the image with the colors of its classes on top and a legend below it.

        An image whose longer side is below 480 pixels is enlarged by a whole factor.

        Args:
            image: Drawn on instead of the image of the result.
            alpha: The opacity of the colors, in [0, 1].

        Raises:
            ValueError: If there is no image to draw on, it has another size, or alpha is wrong.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], not {alpha}")
        picture, factor = pictures.enlarged(self._background(image))
        mask = self.mask.repeat(factor, 0).repeat(factor, 1) if factor > 1 else self.mask
        colors = class_colors(len(self.names))
        picture = pictures.overlay(picture, mask, colors, alpha=alpha)
        width, text = pictures.panel_size(picture.size)
        areas = self.areas
        entries = [
            (f"{percent(area.share)} {readable(area.name, area.label)}", colors[area.label])
            for area in areas[: pictures.MAX_LEGEND]
        ]
        more = len(areas) - len(entries)
        note = f"and {more:,} more" if more else ""
        return pictures.stacked(picture, pictures.legend_panel(width, text, entries, note))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: the `areas` of the classes that occur, without the mask."""
        areas = [{**a._asdict(), "share": _rounded(a.share)} for a in self.areas]
        return {**super().to_dict(), "areas": areas}

    def _extra_pictures(self) -> dict[str, Image.Image]:
        colors = class_colors(len(self.names))
        return {"_mask": pictures.index_image(self.mask, colors)}

    def __repr__(self) -> str:
        shares = [f"{area.name} {percent(area.share)}" for area in self.areas]
        return self._short(_first(shares, 5, "classes"))


Prediction = Classification | Segmentation | Detections
"""The prediction of one image, by the task of the network."""


def _names(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"names must be the names of the classes, not {names!r:.80}")
    return tuple(names)


def _array(value: Any, dtype: Any, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    array = np.asarray(value)
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, not {array.shape}")
    return array.astype(dtype, copy=False)


def _in_unit(values: NDArray[Any], name: str) -> NDArray[Any]:
    # NaN fails both comparisons.
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"{name} must be in [0, 1], not from {values.min():g} to {values.max():g}; logits need "
            "a softmax or a sigmoid first"
        )
    return values


def _labels(values: Any, num_classes: int, name: str) -> NDArray[Any]:
    labels = np.asarray(values)
    if labels.size == 0:
        return labels.astype(np.int64)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, not {labels.dtype}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"{name} must be from 0 to {num_classes - 1}, the classes, not from {labels.min()} to "
            f"{labels.max()}"
        )
    return labels


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return type(one) is type(other) and np.array_equal(one, other)
    return bool(one == other)


def _rounded(value: Any) -> float:
    return round(float(value), 6)


def _first(items: Sequence[str], number: int, noun: str) -> str:
    """Return the first items of a list and the number of the others."""
    more = len(items) - number
    shown = ", ".join(items[:number])
    return f"{shown} and {more} more {noun}" if more > 0 else shown
