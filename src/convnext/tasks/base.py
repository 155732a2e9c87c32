"""One task, as the loop, runs, studies, reports and deployment see it.

A task's folder has one subclass in its `task.py`: class attributes and class methods for what needs
no data set, a frame around its data, losses and metric for training. What a batch is, only the
subclass knows.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn
from torch.utils.data import DataLoader

from convnext.data.samples import BadImages
from convnext.data.sampling import StepBatches
from convnext.hardware.ranks import ALONE, Ranks
from convnext.hardware.signals import leave_signals_to_parent
from convnext.models.network import init_fan_in
from convnext.recipes.plan import num_steps as num_steps_of
from convnext.recipes.recipe import to_dict
from convnext.recipes.resolve import Choice, ResolveContext, context_of, print_choices
from convnext.recipes.schema import Recipe, ResolvedRecipe
from convnext.results import Scores
from convnext.tasks.factory import create_model, dense_prefix, task_of_name
from convnext.tasks.trained import Opened, card_of
from convnext.weights.checkpoint import Card
from convnext.weights.load import LoadReport, load_weights

if TYPE_CHECKING:  # It draws with matplotlib, which takes long to import.
    from convnext.deploy.export import ExportSettings, ExportSpec
    from convnext.deploy.runtimes import Exported
    from convnext.tasks.figures import ReportSections


class Data(Protocol):
    """An opened data set with its split."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def train(self) -> Any: ...
    @property
    def val(self) -> Any: ...
    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how it was read."""
        ...


class CachedDataset(Protocol):
    """A torch dataset that can keep its images in memory."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any) -> Any: ...
    def fill_cache(self, *, workers: int = 0, console: Console | None = None) -> str:
        """Read the images, if there is room; return what was done, as a line for the user."""
        ...


class Evaluated(Protocol):
    """An evaluation, as a task returns it."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        ...

    def print(self, console: Console) -> None:
        """Print a summary."""
        ...

    def write(self, folder: Path | str) -> Any:
        """Write the files into a folder; return where they are."""
        ...

    def scores(self) -> Scores:
        """Return the named scores."""
        ...


@dataclass(frozen=True)
class Phase:
    """Steps from `start` to `stop` that train on one dataset."""

    start: int
    stop: int
    dataset: CachedDataset


@dataclass(frozen=True)
class Workload:
    """What a measurement of speed repeats: on data that is in memory already."""

    loss: Callable[[], Tensor]
    """The forward pass of a training step."""
    infer: Callable[[], Any]
    """One pass as at inference."""
    tensors: Sequence[Tensor] = ()
    """The data, as far as it lies on the device."""


class Task(ABC):
    """A resolved recipe and a data set: batches, losses, validation.

    Args:
        recipe: Without any `auto`, but for what a timm model does not have.
        data: The opened data set.
        known: What `auto` looked at.
        device: Where the network runs.
        choices: What `auto` chose in the recipe.
        ranks: The processes that share the run.
        train: The training images; by default all of the data's.
    """

    name: ClassVar[str]
    """What recipes, checkpoints and the command line call it."""
    primary: ClassVar[str]
    """The metric that decides which weights are the best, in percent; higher is better."""
    primary_label: ClassVar[str]
    """The same as people write it."""
    others: ClassVar[tuple[str, ...]] = ()
    """What a comparison of networks reports beside it."""
    prefixes: ClassVar[tuple[str, ...]] = ()
    """How the names of its networks begin, before the backbone's; the first is the default."""
    backbone: ClassVar[str] = ""
    """Where the backbone is in the network; "" where it is the network itself."""

    preprocessing: Any
    train_set: CachedDataset
    """Augmented images, by the draws of `sampler`."""
    sampler: StepBatches
    loaded: LoadReport | None = None
    """What `build_model` took from the recipe's weights."""

    def __init__(
        self,
        recipe: ResolvedRecipe,
        data: Any,
        known: Any,
        device: torch.device,
        choices: tuple[Choice, ...] = (),
        ranks: Ranks = ALONE,
        *,
        train: Any = None,
    ) -> None:
        self.recipe, self.data, self.known, self.device = recipe, data, known, device
        self.choices, self.ranks = choices, ranks
        self.train = data.train if train is None else train
        self.bad_train = BadImages(self.train, max_share=recipe.loader.max_bad_share)
        self.bad_val = BadImages(data.val, max_share=recipe.loader.max_bad_share)

    # What needs no data set.

    @classmethod
    def open(
        cls, recipe: Recipe, device: torch.device, console: Console, ranks: Ranks = ALONE
    ) -> Self:
        """Open the data, choose what the recipe leaves to `auto`, and print what and why.

        Raises:
            ValueError: If the model belongs to another task, or the data cannot be used.
        """
        if recipe.model != "auto" and cls.prefixes and not recipe.model.startswith(cls.prefixes):
            names = " or ".join(f"{prefix}{recipe.model}" for prefix in cls.prefixes)
            raise ValueError(f"{recipe.model} does not {cls.name}; take --model {names}")
        if not cls.prefixes and (prefix := dense_prefix(recipe.model)) is not None:
            backbone = recipe.model.removeprefix(prefix)
            other = task_of_name(recipe.model)
            raise ValueError(
                f"{recipe.model} does not {cls.name}; take --model {backbone}, or --task {other} "
                "with data for it"
            )
        data = cls.open_data(recipe, console)
        known = cls.facts(data)
        recipe, context = context_of(recipe, device, card_of)
        resolved, choices = cls.resolve(recipe, known, context)
        console.print(f"[bold]{escape(recipe.data)}[/]  {cls.describe(known)}")
        for note in (*recipe.notes, *data.notes):
            console.print(f"note: {note}", markup=False)
        print_choices(choices, console)
        for warning in cls.warnings(resolved, known):
            console.print(f"[yellow]warning:[/] {escape(warning)}")
        return cls(resolved, data, known, device, choices, ranks)

    def under(self, recipe: Recipe) -> Self:
        """Return the task on the same data and device under another recipe, silently resolved."""
        recipe, context = context_of(recipe, self.device, card_of)
        resolved, choices = self.resolve(recipe, self.known, context)
        return type(self)(resolved, self.data, self.known, self.device, choices, self.ranks)

    @classmethod
    def default_prefix(cls) -> str:
        """Return what makes a name of its networks out of a backbone's; "" where nothing does."""
        return cls.prefixes[0] if cls.prefixes else ""

    @classmethod
    @abstractmethod
    def open_data(cls, recipe: Recipe, console: Console) -> Data:
        """Open the data set of a recipe.

        Raises:
            ValueError: If it cannot be used.
        """

    @classmethod
    @abstractmethod
    def describe(cls, known: Any) -> str:
        """Return one line about a data set."""

    @staticmethod
    @abstractmethod
    def facts(data: Any, /) -> Any:
        """Return what `auto` looks at."""

    @staticmethod
    @abstractmethod
    def resolve(
        recipe: Recipe, known: Any, context: ResolveContext, /
    ) -> tuple[ResolvedRecipe, tuple[Choice, ...]]:
        """Return the recipe without any `auto`, and what was chosen and why."""

    @staticmethod
    @abstractmethod
    def warnings(recipe: ResolvedRecipe, known: Any, /) -> tuple[str, ...]:
        """Return what cannot work well in a resolved recipe, each with what to do about it."""

    @classmethod
    def task_module(cls, name: str) -> Any:
        """Import a module of the task's folder, such as `task_module("report")`."""
        return importlib.import_module(f"{cls.__module__.rpartition('.')[0]}.{name}")

    @classmethod
    def evaluate(cls, source: str | Opened, **options: Any) -> Evaluated:
        """Evaluate a run, a checkpoint or published weights on a labelled data set.

        The options are those of `evaluate` in the task's `evaluate.py`.

        Raises:
            ValueError: If source or data cannot be read, or their classes do not match.
        """
        found: Evaluated = cls.task_module("evaluate").evaluate(source, **options)
        return found

    @classmethod
    def report(cls, evaluation: Mapping[str, Any]) -> ReportSections:
        """Return what a report shows of an evaluation, as `evaluation.json` holds it."""
        found: ReportSections = cls.task_module("report").report(evaluation)
        return found

    @classmethod
    def export_spec(
        cls,
        model: nn.Module,
        card: Card,
        source: str,
        settings: ExportSettings,
        *,
        images: Sequence[str | Path] = (),
        num_images: int = 32,
        note: Callable[[str], None] = lambda _: None,
    ) -> ExportSpec:
        """Return what the export of a network needs.

        Args:
            model: In evaluation mode, on the CPU, in fp32; it is left as it is.
            card: Of its checkpoint.
            source: What the user calls it.
            settings: What is in the file.
            images: Files and folders to prove it on; by default the validation set of the run.
            num_images: How many of them at most.
            note: Called with progress, a line at a time.

        Raises:
            ValueError: If a setting does not fit, or there is no image.
        """
        spec: ExportSpec = cls.task_module("export").export_spec(
            *(model, card, source, settings), images=images, num_images=num_images, note=note
        )
        return spec

    @classmethod
    def open_exported(cls, exported: Exported) -> tuple[nn.Module, Card]:
        """Return a file in the place of its network, and the card with what is left to do."""
        network, card = cls.task_module("export").open_network(exported)
        return network, card

    # What training asks of an opened task.

    @property
    @abstractmethod
    def input_size(self) -> int:
        """Side of the training images that the network sees, in pixels."""

    def change_precision(self, precision: Literal["fp32", "bf16", "fp16"], reason: str) -> None:
        """Compute in another precision than `auto` chose, for a reason that the choices give."""
        run = replace(self.recipe.run, precision=precision)
        self.recipe = replace(self.recipe, run=run)
        self.choices = tuple(
            replace(choice, value=precision, reason=reason)
            if choice.setting == "run.precision"
            else choice
            for choice in self.choices
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return self.sampler.steps_per_epoch

    @property
    def batch_size(self) -> int:
        """Images of a step, over all processes."""
        return self.sampler.batch_size

    def num_parts(self, micro_batch_size: int) -> int:
        """Return the micro batches of a step in each process.

        All have equally many, since they wait for each other.
        """
        least, more = divmod(self.batch_size, self.ranks.count)
        return min(least, math.ceil((least + bool(more)) / micro_batch_size))

    @property
    def fingerprint(self) -> str:
        """What the data set is: a run continues only with the one that it began with."""
        counts = f"{len(self.train):,} + {len(self.data.val):,} images"
        return f"{counts}, {self.identity()[:8]}"

    @abstractmethod
    def identity(self) -> str:
        """Return a hash of what makes the data set this one, in hexadecimal digits."""

    def build_model(self, *, pretrained: bool = True) -> nn.Module:
        """Build the network of the recipe for the data's classes.

        Args:
            pretrained: Whether it gets the weights of the recipe, where that names any.
        """
        settings = to_dict(self.recipe)["network"]
        init, changes = settings.pop("init"), settings.pop("changes")
        changes = {k: v for k, v in settings.items() if v != "auto"} | changes
        model = create_model(
            self.recipe.model,
            num_classes=len(self.data.classes),
            in_chans=self.preprocessing.in_chans,
            **self.head_settings(),
            **changes,
        )
        if init == "fan_in" and self.recipe.weights == "none":
            init_fan_in(model.get_submodule(self.backbone))
        if pretrained and self.recipe.weights != "none":
            self.loaded = load_weights(model, self.recipe.weights)
        return model

    def head_settings(self) -> dict[str, Any]:
        """Return the arguments of `create_model` that only this task has."""
        return {}

    def prepare(self, console: Console) -> None:
        """Read the images into memory, where the recipe asks for it and they fit."""
        if self.recipe.loader.cache:
            workers = self.recipe.loader.workers
            for dataset in self.cached_sets():
                console.print(dataset.fill_cache(workers=workers, console=console))

    def cached_sets(self) -> tuple[CachedDataset, ...]:
        """Return the datasets that are read into memory."""
        return (self.train_set,)

    def phases(self, num_steps: int) -> Iterable[Phase]:
        """Return the phases of a run, one after the other."""
        return (Phase(0, num_steps, self.train_set),)

    def batches(
        self,
        start_step: int,
        micro_batch_size: int,
        warn: Callable[[str], None] = lambda text: None,
    ) -> Iterator[Sequence[Any]]:
        """Yield this process's micro batches of every step, on the CPU.

        Args:
            start_step: The first step.
            micro_batch_size: Images of a backward pass on one device, at most.
            warn: Called with every image that cannot be read.
        """
        num_steps = num_steps_of(self.recipe.schedule, self.steps_per_epoch)
        for phase in self.phases(num_steps):
            self.sampler.start_step = max(start_step, phase.start)
            self.sampler.num_steps = phase.stop
            if len(self.sampler) == 0:
                continue
            loader: DataLoader[Any] = DataLoader(
                phase.dataset,  # type: ignore[arg-type]
                batch_sampler=self.sampler,
                num_workers=self.recipe.loader.workers,
                collate_fn=self.collate,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=leave_signals_to_parent,
            )
            for batch in loader:
                for bad in self.bad_train.update(batch.bad):
                    warn(f"skipped: {bad}")
                yield self.split(batch, self.num_parts(micro_batch_size))

    @staticmethod
    @abstractmethod
    def collate(items: Sequence[Any]) -> Any:
        """Make a batch, with `indices` and `bad`, of what the dataset returned."""

    @staticmethod
    @abstractmethod
    def split(batch: Any, count: int) -> Sequence[Any]:
        """Return a batch in `count` parts, whose sizes differ by one image at most."""

    def size(self, batch: Any) -> int:
        """Return the number of images of a micro batch."""
        return len(batch.indices)

    @abstractmethod
    def losses(
        self,
        model: nn.Module,
        batch: Any,
        step: int,
        part: int,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> dict[str, Tensor]:
        """Return the named losses of a micro batch: scalars, means over its images.

        Args:
            model: The network in training.
            batch: A micro batch of `batches`.
            step: The optimizer step.
            part: The number of the micro batch among all of the step; randomness follows from it.
            memory_format: How the images are laid out for the network.
        """

    @abstractmethod
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics of the validation set, the same in every process."""

    def inference_options(self) -> dict[str, Any]:
        """Return the arguments of `infer` that every task has."""
        return {
            "device": self.device,
            "precision": self.recipe.run.precision,
            "bad": self.bad_val,
            "workers": self.recipe.loader.workers,
            "ranks": self.ranks,
        }

    @abstractmethod
    def workload(self, model: nn.Module, batch_size: int) -> Workload:
        """Return what to measure a network's speed with: one batch of training data.

        Args:
            model: The network, on the device in channels_last.
            batch_size: Images of the batch.
        """

    def card(self, model: nn.Module, metrics: Mapping[str, Any], recipe: ResolvedRecipe) -> Card:
        """Return what is saved with the weights.

        Args:
            model: A network of `build_model`.
            metrics: What the weights reached, and at which step.
            recipe: The recipe of the run, with the backend that was chosen.
        """
        return Card(
            task=self.name,
            model=str(model.name),
            changes=dict(model.changes),  # type: ignore[arg-type]
            classes=self.data.classes,
            preprocessing=self.preprocessing,
            recipe=to_dict(recipe),
            metrics=metrics,
        )

    def next_commands(self, folder: Path) -> tuple[str, str]:
        """Return the two commands that a user may want next."""
        run, image = quote(str(folder)), quote(self.data.val.source(0))
        return (
            f"convnext evaluate {run}",
            f"convnext predict {run} {image} --output {quote(str(folder / 'predictions'))}",
        )


def hash_of_names(classes: Sequence[str], names: Sequence[str]) -> str:
    """Return a hash of classes and file names in their order, in hexadecimal digits."""
    text = "\n".join((*classes, "", *names))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def dense_workload(
    task: Task, model: nn.Module, batch_size: int, infer: Callable[[Any], object]
) -> Workload:
    """Return the first batch of a task's training, targets and all, as a workload."""
    batch = next(iter(task.batches(0, batch_size)))[0]
    return Workload(
        loss=lambda: torch.stack(list(task.losses(model, batch, 0, 0).values())).sum(),
        infer=lambda: infer(batch),
    )
