"""The task interface for the training loop, runs, studies, reports and deployment.

Each task's `task.py` has one subclass. Class attributes and class methods need no data set;
instances combine data, losses and metrics for training. Only the subclass knows the type of a
batch. The file is long because all that may be asked of a task is in one class.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn
from torch.utils.data import DataLoader

from convnext.data.contents import Contents, contents_of_split
from convnext.data.samples import BadImages, SplitData, missing_files
from convnext.data.sampling import StepBatches
from convnext.data.threads import start_workers
from convnext.hardware.devices import ALONE, Ranks
from convnext.hardware.system import leave_signals_to_parent
from convnext.models.given import class_of, given_in
from convnext.models.network import init_fan_in
from convnext.recipes.recipe import to_dict
from convnext.recipes.resolve import (
    Choice,
    ResolveContext,
    Resolver,
    context_of,
    print_choices,
    warn_of_freezing,
)
from convnext.recipes.resolve import num_steps as num_steps_of
from convnext.recipes.schema import Recipe, ResolvedRecipe
from convnext.tasks.evaluation import EvaluationResult, EvaluationSettings
from convnext.tasks.factory import create_model, dense_prefix, task_of_name
from convnext.tasks.trained import Opened, card_of
from convnext.weights.checkpoint import Card
from convnext.weights.load import LoadReport, load_weights

if TYPE_CHECKING:  # Imports matplotlib, which is slow.
    from convnext.deploy.export import ExportRequest, ExportSpec
    from convnext.deploy.runtimes import Exported
    from convnext.tasks.figures import ReportSections


class CachedDataset(Protocol):
    """A torch dataset that can cache its images in memory."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any) -> Any: ...
    def fill_cache(self, *, workers: int = 0, console: Console | None = None) -> str:
        """Cache the images if they fit; return one line for the user about the result."""
        ...


@dataclass(frozen=True)
class Phase:
    """The steps from `start` to `stop`, which train on one dataset."""

    start: int
    stop: int
    dataset: CachedDataset


@dataclass(frozen=True)
class Workload:
    """The functions that a speed measurement repeats, on data in memory."""

    loss: Callable[[], Tensor]
    """The forward pass of a training step."""
    infer: Callable[[], Any]
    """One inference pass."""
    tensors: Sequence[Tensor] = ()
    """The data on the device."""


class Task(ABC):
    """A resolved recipe and a data set: batches, losses, validation.

    Args:
        recipe: The resolved recipe; `auto` remains only where timm models have no such setting.
        data: The opened data set.
        known: The facts about the data that `auto` used.
        device: The device of the network.
        choices: The choices of `auto` in the recipe.
        ranks: The processes of the run.
    """

    name: ClassVar[str]
    """Its name in recipes, checkpoints and on the command line."""
    primary: str
    """The metric that selects the best weights, in percent; higher is better."""
    primary_label: str
    """Label of the primary metric."""
    primaries: ClassVar[Mapping[str, str]] = {}
    """The labels of all primary metrics, if it depends on the data."""
    others: ClassVar[tuple[str, ...]] = ()
    """Other metrics that comparisons of networks report."""
    prefixes: ClassVar[tuple[str, ...]] = ()
    """Prefixes of its networks' names, before the backbone's; the first is the default."""
    large: ClassVar[int]
    """A data set of at least this many training images takes the paper's recipe unchanged."""
    backbone: ClassVar[str] = ""
    """Attribute of the network with the backbone; "" if the network is the backbone."""

    preprocessing: Any
    train_set: CachedDataset
    """Augmented images, indexed by the draws of `sampler`."""
    sampler: StepBatches
    loaded: LoadReport | None = None
    """Report of `build_model` about loading the recipe's weights."""

    def __init__(
        self,
        recipe: ResolvedRecipe,
        data: Any,
        known: Any,
        device: torch.device,
        choices: tuple[Choice, ...] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        self.recipe, self.data, self.known, self.device = recipe, data, known, device
        self.choices, self.ranks = choices, ranks
        self.train = self.training_images()
        self.bad_train = BadImages(self.train, max_share=recipe.loader.max_bad_share)
        self.bad_val = BadImages(data.val, max_share=recipe.loader.max_bad_share)
        self.set_up()

    def training_images(self) -> Any:
        """Return the images to train on: all of the training split."""
        return self.data.train

    @abstractmethod
    def set_up(self) -> None:
        """Set `preprocessing`, `train_set` and `sampler`."""

    # Methods without a data set.

    @classmethod
    def metric_of(cls, recipe: Mapping[str, Any]) -> tuple[str, str]:
        """Return the primary metric of a run by its saved recipe, and its label."""
        return cls.primary, cls.primary_label

    @classmethod
    def metrics(cls) -> Mapping[str, str]:
        """Return the labels of all metrics that may be the primary one, by their names."""
        return cls.primaries or {cls.primary: cls.primary_label}

    @classmethod
    def open(
        cls, recipe: Recipe, device: torch.device, console: Console, ranks: Ranks = ALONE
    ) -> Self:
        """Open the data, resolve `auto` in the recipe, and print the choices.

        Raises:
            ValueError: If the model belongs to another task, or the data cannot be used.
        """
        if recipe.model != "auto" and cls.prefixes and not recipe.model.startswith(cls.prefixes):
            names = " or ".join(f"{prefix}{recipe.model}" for prefix in cls.prefixes)
            raise ValueError(f"{recipe.model} does not {cls.name}; use --model {names}")
        if not cls.prefixes and (prefix := dense_prefix(recipe.model)) is not None:
            backbone = recipe.model.removeprefix(prefix)
            other = task_of_name(recipe.model)
            raise ValueError(
                f"{recipe.model} does not {cls.name}; use --model {backbone}, or --task {other} "
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
        for warning in (*cls.warnings(resolved, known), *warn_of_freezing(resolved)):
            console.print(f"[yellow]warning:[/] {escape(warning)}")
        return cls(resolved, data, known, device, choices, ranks)

    def under(self, recipe: Recipe) -> Self:
        """Return the task with another recipe on the same data and device; prints nothing."""
        recipe, context = context_of(recipe, self.device, card_of)
        resolved, choices = self.resolve(recipe, self.known, context)
        return type(self)(resolved, self.data, self.known, self.device, choices, self.ranks)

    @classmethod
    def default_prefix(cls) -> str:
        """Return the default prefix of its networks' names; "" if there is none."""
        return cls.prefixes[0] if cls.prefixes else ""

    @classmethod
    @abstractmethod
    def open_data(cls, recipe: Recipe, console: Console) -> SplitData[Any]:
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
        """Return the facts about the data that `auto` uses."""

    @classmethod
    def resolve(
        cls, recipe: Recipe, known: Any, context: ResolveContext
    ) -> tuple[ResolvedRecipe, tuple[Choice, ...]]:
        """Return the recipe without any `auto`, and the choices with their reasons."""
        resolver = Resolver(recipe, context, num_train=known.num_train, large=cls.large)
        cls.choose(resolver, known)
        return resolver.finish()

    @staticmethod
    @abstractmethod
    def choose(c: Resolver, known: Any, /) -> None:
        """Choose a value for every setting that is `auto`."""

    @staticmethod
    @abstractmethod
    def warnings(recipe: ResolvedRecipe, known: Any, /) -> tuple[str, ...]:
        """Return warnings about settings that cannot work well, with the fix."""

    @classmethod
    def task_module(cls, name: str) -> Any:
        """Import a module of the task's folder, such as `task_module("report")`."""
        return importlib.import_module(f"{cls.__module__.rpartition('.')[0]}.{name}")

    @classmethod
    def evaluate(
        cls, source: str | Opened, settings: EvaluationSettings, **options: Any
    ) -> EvaluationResult:
        """Evaluate a run, a checkpoint or published weights on a labeled data set.

        The options are those of `evaluate` in the task's `evaluate.py`.

        Raises:
            ValueError: If source or data cannot be read, or their classes do not match.
        """
        found: EvaluationResult = cls.task_module("evaluate").evaluate(source, settings, **options)
        return found

    @classmethod
    def report(cls, evaluation: Mapping[str, Any]) -> ReportSections:
        """Return the report sections of an evaluation, read from `evaluation.json`."""
        found: ReportSections = cls.task_module("report").report(evaluation)
        return found

    @classmethod
    def export_spec(cls, request: ExportRequest) -> ExportSpec:
        """Return the export spec of a network.

        Raises:
            ValueError: If a setting does not fit the network, or there are no images.
        """
        spec: ExportSpec = cls.task_module("export").export_spec(request)
        return spec

    @classmethod
    def open_exported(cls, exported: Exported) -> tuple[nn.Module, Card]:
        """Return a file as a network, and a card with the preprocessing outside of the file."""
        network, card = cls.task_module("export").open_network(exported)
        return network, card

    # Methods for training.

    @property
    @abstractmethod
    def input_size(self) -> int:
        """Side of the training images that the network sees, in pixels."""

    def change_precision(self, precision: Literal["fp32", "bf16", "fp16"], reason: str) -> None:
        """Replace the precision that `auto` chose, and record the reason among the choices."""
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
        """Images per step, over all processes."""
        return self.sampler.batch_size

    def num_parts(self, micro_batch_size: int) -> int:
        """Return the number of micro batches per step, the same in every process."""
        per_rank, remainder = divmod(self.batch_size, self.ranks.count)
        return min(per_rank, math.ceil((per_rank + bool(remainder)) / micro_batch_size))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data set: a run resumes only with the data that it started with."""
        counts = f"{len(self.train):,} + {len(self.data.val):,} images"
        return f"{counts}, {self.identity()[:8]}"

    def contents(self) -> Contents:
        """Return what the data set contains; reads all files of up to 100,000 images."""
        splits = {"train": self.data.train, "val": self.data.val}
        return Contents(
            classes=tuple(self.data.classes),
            splits={
                name: contents_of_split(
                    images,
                    partial(self.annotation, images, self.data.classes),
                    self.recipe.data,
                )
                for name, images in splits.items()
            },
        )

    def check_files(self) -> None:
        """Check that the files of both splits exist, before a step is taken.

        Raises:
            ValueError: If more are missing than `loader.max_bad_share` allows.
        """
        for images in (self.data.val, self.train):
            bad = BadImages(images, max_share=self.recipe.loader.max_bad_share)
            bad.update(missing_files(images))

    @staticmethod
    @abstractmethod
    def annotation(images: Any, classes: Sequence[str], index: int, /) -> str:
        """Return a hash of the annotation of an image of a split with these classes."""

    @abstractmethod
    def identity(self) -> str:
        """Return a hexadecimal hash that identifies the data set."""

    def build_model(self, *, pretrained: bool = True) -> nn.Module:
        """Build the network of the recipe for the data's classes.

        Args:
            pretrained: Whether to load the recipe's weights, if it names any.
        """
        model = create_model(
            self.recipe.model,
            num_classes=len(self.data.classes),
            in_chans=self.preprocessing.in_chans,
            **self.head_settings(),
            **self.network_settings(),
        )
        if self.recipe.network.init == "fan_in" and self.recipe.weights == "none":
            init_fan_in(model.get_submodule(self.backbone))
        if pretrained and self.recipe.weights != "none":
            self.loaded = load_weights(model, self.recipe.weights)
        return model

    def network_settings(self) -> dict[str, Any]:
        """Return the recipe's own arguments of `create_model`."""
        settings: dict[str, Any] = to_dict(self.recipe)["network"]
        changes: dict[str, Any] = settings.pop("changes")
        del settings["init"]
        return {name: value for name, value in settings.items() if value != "auto"} | changes

    def head_settings(self) -> dict[str, Any]:
        """Return this task's own arguments of `create_model`."""
        return {}

    def prepare(self, console: Console) -> None:
        """Cache the images in memory, if the recipe says so and they fit."""
        if self.recipe.loader.cache:
            workers = self.recipe.loader.workers
            for dataset in self.cached_sets():
                console.print(dataset.fill_cache(workers=workers, console=console))

    def cached_sets(self) -> tuple[CachedDataset, ...]:
        """Return the datasets to cache in memory."""
        return (self.train_set,)

    def phases(self, num_steps: int) -> Iterable[Phase]:
        """Return the phases of a run, in order."""
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
            micro_batch_size: Maximum number of images per backward pass on one device.
            warn: Called with a message about every image that cannot be read.
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
            for batch in start_workers(loader):
                for bad in self.bad_train.update(batch.bad):
                    warn(f"skipped: {bad}")
                yield self.split(batch, self.num_parts(micro_batch_size))

    @staticmethod
    @abstractmethod
    def collate(items: Sequence[Any]) -> Any:
        """Collate items of the dataset into a batch with `indices` and `bad`."""

    @staticmethod
    @abstractmethod
    def split(batch: Any, count: int) -> Sequence[Any]:
        """Split a batch into `count` parts whose sizes differ by at most one image."""

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
            batch: A micro batch from `batches`.
            step: The optimizer step.
            part: Index of the micro batch in the step; it determines all randomness.
            memory_format: Memory format of the images.
        """

    @abstractmethod
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics on the validation set, the same in every process."""

    def validate_in_phase(self, model: nn.Module, step: int) -> tuple[int, dict[str, float]] | None:
        """Return the metrics of a phase that trains on smaller images, at their size in pixels.

        None if the images of the phase that ends with or contains `step` have the full size.
        """
        return None

    def evaluation_data(self) -> str | None:
        """Return the data set for `evaluate`; None if the run folder may name it."""
        return None

    def evaluation_options(self) -> dict[str, Any]:
        """Return options of the task's `evaluate` that a run folder alone may not determine."""
        return {}

    def inference_options(self) -> dict[str, Any]:
        """Return the arguments of `infer` shared by all tasks."""
        return {
            "device": self.device,
            "precision": self.recipe.run.precision,
            "bad": self.bad_val,
            "workers": self.recipe.loader.workers,
            "ranks": self.ranks,
        }

    @abstractmethod
    def workload(self, model: nn.Module, batch_size: int) -> Workload:
        """Return a workload for measuring the speed of a network: one batch of training data.

        Args:
            model: The network, on the device in channels_last.
            batch_size: Number of images.
        """

    def card(self, model: nn.Module, metrics: Mapping[str, Any], recipe: ResolvedRecipe) -> Card:
        """Return the card to save with the weights.

        Args:
            model: A network from `build_model`.
            metrics: The metrics of the weights, and their step.
            recipe: The recipe of the run, with the chosen backend.
        """
        given = given_in(model)
        return Card(
            task=self.name,
            model=str(model.name),
            changes=dict(model.changes),  # type: ignore[arg-type]
            classes=self.data.classes,
            preprocessing=self.preprocessing,
            recipe=to_dict(recipe),
            metrics=metrics,
            network_class="" if given is None else class_of(given),
        )

    def next_commands(self, folder: Path) -> tuple[str, str]:
        """Return two commands to suggest next."""
        run, image = quote(str(folder)), quote(self.data.val.source(0))
        return (
            f"convnext evaluate {run}",
            f"convnext predict {run} {image} --output {quote(str(folder / 'predictions'))}",
        )


def dense_workload(
    task: Task, model: nn.Module, batch_size: int, infer: Callable[[Any], object]
) -> Workload:
    """Return the first training batch of a task, with its targets, as a workload."""
    batch = next(iter(task.batches(0, batch_size)))[0]
    return Workload(
        loss=lambda: torch.stack(list(task.losses(model, batch, 0, 0).values())).sum(),
        infer=lambda: infer(batch),
    )
