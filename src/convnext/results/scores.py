"""Scores, exported files, embeddings and lists of predictions, and the names of their files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from convnext.atomic import atomic_write, write_text
from convnext.data.downloads import file_name, is_url
from convnext.data.drawing import MAX_NAME
from convnext.names import count_noun, csv_text, nearest, portable_name, text_cell

if TYPE_CHECKING:
    from convnext.results.predictions import Prediction


def file_stem(source: str | Path) -> str:
    """Return a name for the files of a result that is valid on every system.

    Args:
        source: A path, without whose extension the name is made; a URL, whose last part is used; or
            any name.
    """
    if isinstance(source, Path):
        source = source.stem
    name = file_name(source) if is_url(source) else source
    name = name.encode("utf-8", "replace").decode()
    name = name.encode()[:MAX_NAME].decode("utf-8", "ignore").rstrip(". ")
    return portable_name(name) if name else "image"


@contextmanager
def free_name(folder: Path, stem: str, endings: Sequence[str]) -> Iterator[str]:
    """Yield a name that no file has, and reserve it against other threads and processes."""
    folder.mkdir(parents=True, exist_ok=True)
    number, name = 1, stem
    while True:
        reservation = folder / f".{name}.reserved"
        try:
            handle = os.open(reservation, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            pass
        else:
            os.close(handle)
            if not any(Path(folder, f"{name}{ending}").exists() for ending in endings):
                break
            reservation.unlink()
        number += 1
        name = f"{stem}_{number}"
    try:
        yield name
    finally:
        reservation.unlink()


def set_field(frozen: Any, name: str, value: Any) -> None:
    """Set a field of a frozen dataclass while it is created."""
    object.__setattr__(frozen, name, value)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What scores were measured on, and how."""

    num_images: int
    split: str
    """"train", "val", "test" or "all"."""
    precision: str
    """`fp32`, `bf16` or `fp16`; for an exported file, its own."""
    backend: str
    """Implementation of the network, such as "folded"."""

    def __str__(self) -> str:
        images = count_noun(self.num_images, "image")
        return f"{images}, split: {self.split}, in {self.precision}, {self.backend}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, repr=False, eq=False)
class Scores(Mapping[str, float]):
    """Named scores of an evaluation: `Scores({"top1": 81.2})["top1"]`, `dict(scores)`."""

    scores: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict, kw_only=True)
    """Scores by class name, then by the name of the score."""
    conditions: Conditions | None = field(default=None, kw_only=True)
    """The images, split, precision and backend of the evaluation."""
    evaluation: Any = field(default=None, repr=False, compare=False)
    """The full results of the task: `to_dict()`, `print(console)`, `write(folder)`."""

    def __post_init__(self) -> None:
        if "per_class" in self.scores:
            raise ValueError("no score may be called per_class")
        values = {str(name): float(value) for name, value in self.scores.items()}
        set_field(self, "scores", values)
        classes = {
            str(name): {str(key): float(value) for key, value in of.items()}
            for name, of in self.per_class.items()
        }
        set_field(self, "per_class", classes)

    def __getitem__(self, name: str) -> float:
        if name not in self.scores:
            raise KeyError(f"there is no score {name!r}{nearest(str(name), self.scores)}")
        return self.scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; scores that are not defined (NaN) are None."""
        return {
            **{name: _json_number(value) for name, value in self.scores.items()},
            "per_class": {
                name: {key: _json_number(value) for key, value in of.items()}
                for name, of in self.per_class.items()
            },
            **({} if self.conditions is None else {"conditions": self.conditions.to_dict()}),
        }

    def __repr__(self) -> str:
        scores = ", ".join(f"{name}={value:.4g}" for name, value in self.scores.items())
        classes = count_noun(len(self.per_class), "class", "classes")
        more = [classes] if self.per_class else []
        more += [] if self.conditions is None else [str(self.conditions)]
        return f"Scores({'; '.join([scores, *more])})"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported file, and how it compares with the model."""

    path: Path
    proof: Mapping[str, Any]
    """The comparison of the file with the model, as plain values."""
    size: int | None = None
    """Size in bytes, including a separate file of weights if the format has one."""
    proof_path: Path | None = None
    """The file with the proof."""

    def __post_init__(self) -> None:
        set_field(self, "path", Path(self.path))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        known: dict[str, Any] = {} if self.size is None else {"bytes": self.size}
        known |= {} if self.proof_path is None else {"proof_path": str(self.proof_path)}
        return {"path": str(self.path), "proof": dict(self.proof), **known}

    def __repr__(self) -> str:
        return f"Exported({self.path})"


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """A vector for each image; `vectors, paths = model.embed(...)` works too."""

    vectors: NDArray[np.float32]
    """(N, C)"""
    paths: tuple[str, ...]
    """The path or URL of each image, or the name of an image in memory."""

    def __post_init__(self) -> None:
        set_field(self, "paths", tuple(str(path) for path in self.paths))
        vectors = np.asarray(self.vectors, np.float32)
        if vectors.ndim != 2 or len(vectors) != len(self.paths):
            raise ValueError(
                f"vectors must be (N, C) for the {len(self.paths)} images, not {vectors.shape}"
            )
        set_field(self, "vectors", vectors)

    def __iter__(self) -> Iterator[Any]:
        yield self.vectors
        yield self.paths

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Embeddings):
            return NotImplemented
        return self.paths == other.paths and np.array_equal(self.vectors, other.vectors)

    __hash__ = None  # type: ignore[assignment]  # arrays are not hashable

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"paths": list(self.paths), "vectors": self.vectors.tolist()}

    def write(self, path: str | Path) -> None:
        """Write a .npz with `vectors` and `paths`, or a .csv with a row per image.

        Raises:
            ValueError: If the path has another extension.
        """
        if Path(path).suffix == ".npz":
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, vectors=self.vectors, paths=np.asarray(self.paths))
        elif Path(path).suffix == ".csv":
            header = ["image", *(f"f{c}" for c in range(self.vectors.shape[1]))]
            rows = (
                [text_cell(name), *(f"{value:.7g}" for value in vector)]
                for name, vector in zip(self.paths, self.vectors.tolist(), strict=True)
            )
            write_text(path, csv_text([header, *rows]))
        else:
            raise ValueError(f"{path} must end in .npz or .csv")

    def __repr__(self) -> str:
        number, channels = self.vectors.shape
        return f"Embeddings({count_noun(number, 'image')}, {channels:,} features)"


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True, kw_only=True)
class Predictions(Sequence["Prediction"]):
    """The results of images, in order: a sequence with one result per image.

    Each is a `Classification`, a `Segmentation` or a `Detections`, by the task of the network.
    """

    results: tuple[Prediction, ...]
    bad_images: tuple[tuple[str, str], ...] = ()
    """Images that could not be read, with the reason."""

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prediction, ...]: ...
    def __getitem__(self, index: int | slice) -> Prediction | tuple[Prediction, ...]:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "results": [result.to_dict() for result in self.results],
            "bad_images": [{"source": s, "reason": r} for s, r in self.bad_images],
        }

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.results[:3]))
        more = f", and {len(self) - 3:,} more" if len(self) > 3 else ""
        unread = count_noun(len(self.bad_images), "image")
        bad = f"; {unread} could not be read" if self.bad_images else ""
        return f"Predictions({shown}{more}{bad})"
