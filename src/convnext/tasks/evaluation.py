"""What `evaluate` does in every task: settings, choice of the split, inference, and the result."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from convnext.atomic import write_text
from convnext.data.contents import Compared, compare_with_run, held_positions, split_to_evaluate
from convnext.data.samples import BadImages
from convnext.deploy.fast import Fast
from convnext.progress import progress_bar
from convnext.recipes.schema import Speedup
from convnext.results import Conditions, Scores
from convnext.tasks.trained import Opened, pick_precision
from convnext.weights.checkpoint import Card, is_own_data


class Images(Protocol):
    """Labeled images, each with the path or name it comes from."""

    def __len__(self) -> int: ...
    def source(self, index: int, /) -> str: ...


I = TypeVar("I", bound=Images)  # noqa: E741
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Settings of `evaluate` for all tasks."""

    data: str | None = None
    """The data set; by default the local one that the run was trained on."""
    split: str = "auto"
    """"auto", "train", "val", "test" or "all"; see `choose_split`."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps` or `auto`."""
    precision: str = "fp32"
    """`fp32`, `bf16`, `fp16`, or `auto` for the precision of training."""
    max_bad_share: float = 0.01
    """Maximum fraction of images that may be unreadable."""
    backend: Speedup = "folded"
    """"folded" gives the same scores however busy the machine is; "eager" runs the network
    unmodified; "fastest" may search for a faster backend during a long evaluation."""
    console: Console | None = None
    """Console of the progress bar; None for no output."""


class EvaluationSplit(NamedTuple, Generic[I]):
    """The images to evaluate on, with the network's labels."""

    images: I
    data: str
    """The data set that they belong to."""
    split: str
    """The split: "train", "val", "test" or "all"."""
    classes: tuple[str, ...]
    """The classes of the data set; if the images have the network's labels, the network's."""
    left_out: tuple[str, ...] = ()
    """What was left out, and why."""


def choose_split(split: str, data: str, card: Card, *, has_val: bool, has_test: bool) -> str:
    """Return the split to evaluate on.

    `auto` takes the images that training held out; of other data its test split, else its
    validation split, else all images.
    """
    is_own = is_own_data(data, card)
    return split_to_evaluate(split, is_own=is_own, has_val=has_val, has_test=has_test)


def held_split(
    images: Images, held: Collection[str], data: str
) -> tuple[list[int], list[int]] | None:
    """Return the positions of the images that a run trained on, and of those that it held out.

    None if the run recorded no names, or none of its images is there.
    """
    return held_positions(held, map(images.source, range(len(images))), data)


def images_of_split(
    parts: Mapping[str, T | None], split: str, data: str, join: Callable[[list[T]], T]
) -> T:
    """Return the images of a split, or of all of them.

    Args:
        parts: The images by split; None where the data has no such split.
        split: The split, or "all".
        data: The data set, for the message.
        join: Joins several splits.

    Raises:
        ValueError: If there is no such split.
    """
    found = {name: part for name, part in parts.items() if part is not None and len(part)}  # type: ignore[arg-type]
    if split == "all":
        return join(list(found.values()))
    if split not in found:
        raise ValueError(f"{data} has no {split} split; its splits are {', '.join(found)}")
    return found[split]


def some_classes(names: Sequence[str], num: int = 5) -> str:
    """Return the first names of a list, with an ellipsis if there are more."""
    return ", ".join(names[:num]) + (", ..." if len(names) > num else "")


MAX_CLASSES = 30


def score_table(
    columns: Sequence[str], rows: Sequence[tuple[float, Sequence[str]]], score: str
) -> Table:
    """Return a table of the classes, or of the `MAX_CLASSES` with the lowest score.

    Args:
        columns: Headings after the first one, "class".
        rows: The score of each class, and its cells: its name, and one for each column.
        score: The name of that score.
    """
    few = len(rows) > MAX_CLASSES
    shown = sorted(rows, key=lambda row: row[0])[:MAX_CLASSES] if few else rows
    title = f"the {len(shown)} classes with the lowest {score}, of {len(rows)}" if few else None
    table = Table(box=None, header_style="bold", title=title, title_justify="left")
    table.add_column("class")
    for name in columns:
        table.add_column(name, justify="right")
    for _, (name, *cells) in shown:
        table.add_row(escape(name), *cells)
    return table


class Evaluator(Generic[I]):
    """Inference on the images to evaluate on, which are compared with those of the run.

    Args:
        own: The network.
        found: The images.
        settings: The settings.
        annotate: Returns the hash of an image's annotation, by its index.

    Raises:
        ValueError: If the run's file of contents is damaged.
    """

    def __init__(
        self,
        own: Opened,
        found: EvaluationSplit[I],
        settings: EvaluationSettings,
        annotate: Callable[[int], str],
    ) -> None:
        self.own, self.found, self.settings = own, found, settings
        self.bad = BadImages(found.images, max_share=settings.max_bad_share)
        self.precision = pick_precision(settings.precision, own.card, own.device)
        self.compared = compare_with_run(
            own.source,
            found.images,
            annotate,
            data=found.data,
            classes=found.classes,
            own_split=found.split if is_own_data(found.data, own.card) else "",
        )

    def fast(self, own: Opened) -> Fast:
        """Return a network in the backend that the settings ask for."""
        return own.fast(
            precision=self.precision,
            num_images=len(self.found.images),
            backend=self.settings.backend,
            console=self.settings.console,
        )

    def outputs(
        self,
        infer: Callable[..., Iterable[T]],
        network: Fast,
        dataset: Any,
        label: str = "",
        **options: Any,
    ) -> Iterator[T]:
        """Yield the outputs of a task's `infer` on all images, with a progress bar."""
        count, console = len(self.found.images), self.settings.console
        with progress_bar(f"evaluating {label}".rstrip(), count, console) as advance:
            yield from infer(
                network,
                dataset,
                device=self.own.device,
                precision=self.precision,
                bad=self.bad,
                progress=network.watch(advance),
                **options,
            )

    def common(self, num_images: int, network: Fast, *, num_views: int = 1) -> dict[str, Any]:
        """Return the fields shared by the results of all tasks.

        Args:
            num_images: The number of images that the scores count.
            network: The network after inference.
            num_views: The number of views of an image that were averaged; the conditions name it.
        """
        conditions = network.conditions(num_images, self.found.split)
        if num_views > 1:
            backend = f"{conditions.backend}, mean of {num_views} views"
            conditions = replace(conditions, backend=backend)
        return {
            "source": self.own.source,
            "data": self.found.data,
            "card": self.own.card,
            "bad_images": tuple((image.source, image.reason) for image in self.bad.found.values()),
            "left_out": self.found.left_out,
            "conditions": conditions,
            "compared": self.compared.without(self.bad.found),
        }


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(ABC):
    """An evaluation with its source and data, and pictures of some images."""

    pictured: ClassVar[tuple[str, str]] = ("worst", "picture")
    """Where `to_dict` puts the pictures: the key of the images, and that of each picture."""

    source: str
    data: str
    card: Card
    evaluation: Any
    """The scores: a type of the task, with `to_dict`."""
    pictures: tuple[tuple[str, str], ...]
    """Path of each of the images shown, and a picture of it as a data URI."""
    bad_images: tuple[tuple[str, str], ...]
    """Images that could not be read, each with the reason."""
    conditions: Conditions
    """The images, split, precision and backend."""
    left_out: tuple[str, ...] = ()
    """What was left out of the data, and why."""
    compared: Compared = field(default_factory=Compared)
    """Whether images were trained on, and what has changed since."""

    def to_dict(self, *, pictures: bool = False) -> dict[str, Any]:
        """Return nested plain values for JSON, with the pictures only on request."""
        result: dict[str, Any] = self.evaluation.to_dict()
        rows, key = self.pictured
        for row, (source, picture) in zip(result[rows], self.pictures, strict=True):
            row |= {"source": source} | ({key: picture} if pictures else {})
        return {
            "source": self.source,
            "data": self.data,
            **self.conditions.to_dict(),
            "model": self.card.model,
            "weights": self.card.metrics.get("weights", "model"),
            "step": self.card.metrics.get("step"),
            **self.own_values(),
            **result,
            "left_out": list(self.left_out),
            **self.compared.to_dict(),
            "bad_images": [{"source": s, "reason": r} for s, r in self.bad_images],
        }

    def own_values(self) -> dict[str, Any]:
        """Return plain values of the task for `to_dict`, besides those of the evaluation."""
        return {}

    @abstractmethod
    def scores(self) -> Scores:
        """Return the named scores, and those per class."""

    def write(self, folder: str | Path) -> Path:
        """Write `evaluation.json` into a folder and return its path."""
        path = Path(folder) / "evaluation.json"
        write_text(path, json.dumps(self.to_dict(pictures=True)) + "\n")
        return path

    def print(self, console: Console) -> None:
        """Print the scores, and what to know about the images."""
        self.print_scores(console)
        for line in (*self.left_out, *self.compared.lines()):
            console.print(line, markup=False)
        for source, reason in self.bad_images:
            console.print(f"skipped: {source}: {reason}", markup=False)

    @abstractmethod
    def print_scores(self, console: Console) -> None:
        """Print the scores, and a table of the classes."""
